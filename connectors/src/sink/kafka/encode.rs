//! Rows to records: a value, a key and headers for each. Dead letters are records of their own kind.
//!
//! Codecs of binary records have a writer for each schema of rows, made before ([`Format::writer`]): it may ask a registry.

use std::ops::Range;

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch},
    compute::cast,
    datatypes::{DataType, Int64Type, Schema, SchemaRef, TimeUnit},
};
use memchr::memchr_iter;
use rayon::prelude::*;
use rdkafka::message::{Header, OwnedHeaders};
use serde_json::Value as Json;
use std::sync::Arc;
use tidemill_checkpoint::{Permit, SinkId};
use tidemill_config::{Codec, KafkaCompression, KafkaSink};

use super::{cluster::Tag, dead_letters, limits::Limits};
use crate::{
    codec::{
        CodecError, PrepareError, Texts, encoder, from_base64,
        records::{Columns, Records, Value, Writer},
    },
    sink::{SinkError, SinkReject, cell},
};

/// Rows that one thread encodes at a time.
const SLICE: usize = 32_768;
/// librdkafka's own limit of a record, where `message.max.bytes` says nothing else.
const MAX_RECORD_BYTES: usize = 1_000_000;
/// What a record has beside its key and value: its fields' lengths, and the batch's head.
const RECORD_OVERHEAD: usize = 128;

/// Reasons of rejects.
pub(super) const TOO_BIG: &str = "too_big";
pub(super) const NULL_KEY: &str = "null_key";
pub(super) const REFUSED: &str = "refused";

/// Writers that are kept: a job's lanes have rows of one schema, or of two while it changes.
const WRITERS: usize = 8;

/// How rows become records.
pub(super) struct Format {
    codec: Codec,
    /// The codec, where its records are no lines.
    records: Option<Records>,
    /// By the columns of the rows.
    writers: tokio::sync::Mutex<Vec<(SchemaRef, Arc<dyn Writer>)>>,
    topic: String,
    key: Option<String>,
    headers: Vec<(String, String)>,
    headers_from: Option<String>,
    timestamp: Option<String>,
    omit: Vec<String>,
    delete_when: Option<String>,
    /// Records longer than this are rejects.
    max_bytes: usize,
    /// A batch is as long as its records are.
    compresses: bool,
    dead_letters: bool,
}

/// What a record may have, and who says so.
#[derive(Clone, Copy)]
struct Most {
    bytes: usize,
    /// The topic's limit, and not the client's.
    is_topics: bool,
}

/// A record that is not sent, and why.
type LeftOut = (usize, &'static str, String);

/// Headers of one record, in order.
type MoreHeaders = Vec<(String, Option<Vec<u8>>)>;

/// The records of one batch.
#[derive(Debug, Default)]
pub(super) struct Rows {
    chunks: Vec<Chunk>,
    refused: Vec<Refused>,
    /// Rows were refused that the topic might take if it were configured otherwise.
    is_limited: bool,
}

/// A row that is no record.
#[derive(Debug)]
struct Refused {
    row: u64,
    reason: &'static str,
    detail: String,
    /// The row as JSON.
    record: String,
}

/// Records of one slice of rows.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    pub(super) bytes: Vec<u8>,
    /// Of each record: where its value lies in `bytes`. `None`: a tombstone.
    pub(super) values: Vec<Option<Range<usize>>>,
    pub(super) keys: Option<Texts>,
    pub(super) headers: Vec<(String, Texts)>,
    /// Headers that differ from record to record, where there are such.
    more_headers: Option<Vec<MoreHeaders>>,
    /// Milliseconds since 1970, where records have times of their own.
    times: Option<Vec<Option<i64>>>,
    /// Records that are not sent, in order, and why: a short word and a sentence.
    left_out: Vec<LeftOut>,
    /// The rows, and the number of the first of them: what the brokers refuse is kept as a row.
    rows: Option<RecordBatch>,
    first: u64,
}

/// One record as it is sent.
pub(super) struct Out<'a> {
    pub(super) key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
    pub(super) headers: Option<OwnedHeaders>,
    pub(super) time: Option<i64>,
    pub(super) tag: Tag,
}

impl Format {
    pub(super) fn new(id: &SinkId, config: &KafkaSink) -> Result<Self, SinkError> {
        let limit = config.properties.iter().find(|(name, _)| name == "message.max.bytes");
        let max_bytes = match limit {
            None => MAX_RECORD_BYTES,
            Some((_, bytes)) => bytes.parse().map_err(|_| {
                SinkError::Fatal("properties: `message.max.bytes` is a number of bytes like `1000000`".into())
            })?,
        };
        let dead_letters = id.name() == SinkId::DEAD_LETTERS;
        Ok(Self {
            records: if dead_letters { None } else { Records::new(&config.codec, &config.topic).map_err(fatal)? },
            writers: tokio::sync::Mutex::default(),
            topic: config.topic.clone(),
            codec: config.codec.clone(),
            key: config.key.as_ref().map(|key| key.value.clone()),
            headers: config.headers.iter().map(|(name, column)| (name.clone(), column.value.clone())).collect(),
            headers_from: config.headers_from.as_ref().map(|column| column.value.clone()),
            timestamp: config.timestamp.as_ref().map(|column| column.value.clone()),
            omit: config.omit.iter().map(|column| column.value.clone()).collect(),
            delete_when: config.delete_when.as_ref().map(|column| column.value.clone()),
            max_bytes: max_bytes.saturating_sub(RECORD_OVERHEAD),
            compresses: config.compression != KafkaCompression::None,
            dead_letters,
        })
    }

    /// Of a key and a value together, where batches of the topic have so many bytes.
    pub(super) fn max_bytes(&self, limits: &Limits) -> usize {
        self.most(limits, false).bytes
    }

    /// `shrinks`: the brokers see a compressed record, and its length is theirs to judge.
    fn most(&self, limits: &Limits, shrinks: bool) -> Most {
        let topics = limits.max_bytes.map(|bytes| bytes.saturating_sub(RECORD_OVERHEAD));
        match topics.filter(|bytes| !shrinks && *bytes < self.max_bytes) {
            Some(bytes) => Most { bytes, is_topics: true },
            None => Most { bytes: self.max_bytes, is_topics: false },
        }
    }

    /// Whether records have keys, as far as the configuration says.
    pub(super) fn has_keys(&self) -> bool {
        self.key.is_some()
    }

    /// Whether rows of this schema can be written.
    pub(super) fn check(&self, schema: &SchemaRef) -> Result<(), SinkError> {
        if self.dead_letters {
            return Ok(());
        }
        let named = self.headers.iter().map(|(name, column)| (format!("headers.{name}"), column));
        let of = |what: &'static str| move |column| (what.to_owned(), column);
        let named = named.chain(self.headers_from.iter().map(of("headers_from")));
        let named = named.chain(self.timestamp.iter().map(of("timestamp"))).chain(self.omit.iter().map(of("omit")));
        for (what, column) in named.chain(self.delete_when.iter().map(of("delete_when"))) {
            if schema.index_of(column).is_err() {
                return Err(lacks(&what, column, schema));
            }
        }
        if let Some(flag) = &self.delete_when {
            let kind = schema.field_with_name(flag).map_or(&DataType::Null, |field| field.data_type());
            if *kind != DataType::Boolean {
                return Err(SinkError::Fatal(format!(
                    "delete_when: the column `{flag}` is {}, and has to be boolean: add one with an `add` step",
                    crate::codec::type_name(kind)
                )));
            }
            if self.key.is_none() {
                return Err(SinkError::Fatal("delete_when: a tombstone needs a key: add `key: COLUMN`".into()));
            }
        }
        if let Some(column) = &self.headers_from {
            let kind = schema.field_with_name(column).map_or(&DataType::Null, |field| field.data_type());
            if !matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) {
                return Err(SinkError::Fatal(format!(
                    "headers_from: the column `{column}` is {}, and has to be a string with a JSON object",
                    crate::codec::type_name(kind)
                )));
            }
        }
        if let Some(column) = &self.timestamp {
            let kind = schema.field_with_name(column).map_or(&DataType::Null, |field| field.data_type());
            if !matches!(kind, DataType::Timestamp(..) | DataType::Int64) {
                return Err(SinkError::Fatal(format!(
                    "timestamp: the column `{column}` is {}, and has to be a timestamp, or int64 milliseconds since 1970: \
                     add a `cast` step",
                    crate::codec::type_name(kind)
                )));
            }
        }
        self.key_column(schema)?;
        let (written, _) = self.written(schema)?;
        match &self.records {
            Some(records) => {
                let columns = Columns { fields: written.fields(), spare: &self.spare() };
                records.fits(columns).map_err(|why| self.not_asked(PrepareError::Fatal(why)))
            }
            None => encoder(&self.codec, &written).map(drop).map_err(fatal),
        }
    }

    /// Whether [`Self::writer`] would work. Changes nothing.
    pub(super) async fn ask(&self, schema: Option<&SchemaRef>) -> Result<(), SinkError> {
        let Some(records) = &self.records else { return Ok(()) };
        let written = schema.map(|schema| self.written(schema)).transpose()?;
        let spare = self.spare();
        let columns = written.as_ref().map(|(written, _)| Columns { fields: written.fields(), spare: &spare });
        records.check(columns).await.map_err(|error| self.not_asked(error))
    }

    /// The writer of rows of this schema, where the codec has one. Asks the registry once for each.
    pub(super) async fn writer(&self, schema: &Schema) -> Result<Option<Arc<dyn Writer>>, SinkError> {
        let Some(records) = &self.records else { return Ok(None) };
        let (written, _) = self.written(schema)?;
        // One at a time: all lanes would ask for the same.
        let mut writers = self.writers.lock().await;
        if let Some((_, writer)) = writers.iter().find(|(known, _)| *known == written) {
            return Ok(Some(writer.clone()));
        }
        let columns = Columns { fields: written.fields(), spare: &self.spare() };
        let writer = records.prepare(columns).await.map_err(|error| self.not_asked(error))?;
        if writers.len() >= WRITERS {
            writers.remove(0);
        }
        writers.push((written, writer.clone()));
        Ok(Some(writer))
    }

    /// Columns that are in a record beside its value.
    fn spare(&self) -> Vec<String> {
        let beside = self.headers.iter().map(|(_, column)| column).chain(&self.key);
        beside.chain(&self.headers_from).chain(&self.timestamp).cloned().collect()
    }

    fn not_asked(&self, error: PrepareError) -> SinkError {
        match error {
            PrepareError::Transient(cause) => {
                SinkError::Transient { what: format!("asking for the schema of topic {}", self.topic), cause }
            }
            PrepareError::Fatal(why) => SinkError::Fatal(format!("records of topic {}: {why}", self.topic)),
        }
    }

    /// The column of the key: of its own name, or what the steps made of the expression.
    fn key_column(&self, schema: &Schema) -> Result<Option<usize>, SinkError> {
        let Some(key) = &self.key else { return Ok(None) };
        let found = schema.index_of(KafkaSink::KEY_COLUMN).or_else(|_| schema.index_of(key));
        found.map(Some).map_err(|_| lacks("key", key, schema))
    }

    /// The columns of values, with their places in the rows.
    fn written(&self, schema: &Schema) -> Result<(SchemaRef, Vec<usize>), SinkError> {
        let is_written = |name: &str| {
            let is_omitted = self.omit.iter().any(|omitted| omitted == name);
            name != KafkaSink::KEY_COLUMN && Some(name) != self.delete_when.as_deref() && !is_omitted
        };
        let kept = schema.fields().iter().enumerate().filter(|(_, field)| is_written(field.name()));
        let (places, fields): (Vec<usize>, Vec<_>) = kept.map(|(at, field)| (at, field.clone())).unzip();
        if fields.is_empty() {
            return Err(SinkError::Fatal("`delete_when` and `omit` leave no column to write".into()));
        }
        Ok((Arc::new(Schema::new(fields)), places))
    }

    /// The records of a batch's rows, by the writer of their schema, where there is one, for a topic that takes so much.
    pub(super) fn encode(
        &self,
        batches: &[RecordBatch],
        writer: Option<&dyn Writer>,
        limits: &Limits,
    ) -> Result<Rows, SinkError> {
        // A dead letter is cut, and goes nowhere else: it must fit however it packs.
        let most = self.most(limits, self.compresses && !self.dead_letters);
        let mut slices = Vec::new();
        let mut before = 0;
        for batch in batches.iter().filter(|batch| batch.num_rows() > 0) {
            for at in (0..batch.num_rows()).step_by(SLICE) {
                slices.push((before + at as u64, batch.slice(at, SLICE.min(batch.num_rows() - at))));
            }
            before += batch.num_rows() as u64;
        }
        let encode = |(first, slice): &(u64, RecordBatch)| {
            let mut chunk = if self.dead_letters {
                dead_letters::chunk(slice, most.bytes)?
            } else {
                self.chunk(slice, writer, limits)?
            };
            (chunk.rows, chunk.first) = (Some(slice.clone()), *first);
            chunk.leave_out(most);
            let refused =
                chunk.left_out.iter().map(|(row, reason, detail)| chunk.refused(*row, reason, detail.clone()));
            let refused = refused.collect::<Vec<_>>();
            Ok((chunk, refused))
        };
        // A hand-over to another thread costs more than a small batch.
        let done = match &slices[..] {
            [only] => vec![encode(only)?],
            _ => slices.par_iter().map(encode).collect::<Result<Vec<_>, SinkError>>()?,
        };
        let mut rows = Rows::default();
        for (chunk, refused) in done {
            let is_limited = |refused: &Refused| match refused.reason {
                TOO_BIG => most.is_topics,
                reason => reason == NULL_KEY && self.delete_when.is_none(),
            };
            rows.is_limited |= refused.iter().any(is_limited);
            rows.chunks.push(chunk);
            rows.refused.extend(refused);
        }
        Ok(rows)
    }

    fn chunk(&self, rows: &RecordBatch, writer: Option<&dyn Writer>, limits: &Limits) -> Result<Chunk, SinkError> {
        let schema = rows.schema();
        let (written, places) = self.written(&schema)?;
        let bare = rows.project(&places).map_err(|error| SinkError::Fatal(error.to_string()))?;
        let (bytes, values) = match writer {
            None => self.values(&bare, &written)?,
            Some(writer) => {
                let mut bytes = Vec::new();
                let values = writer.write(&bare, &mut bytes).map_err(fatal)?;
                (bytes, values)
            }
        };
        let column = |at: usize| Texts::new(rows.column(at)).map_err(fatal);
        let mut headers = Vec::new();
        for (name, from) in &self.headers {
            let at = schema.index_of(from).map_err(|_| lacks(&format!("headers.{name}"), from, &schema))?;
            headers.push((name.clone(), column(at)?));
        }
        let keys = self.key_column(&schema)?.map(column).transpose()?;
        let flags = self.delete_when.as_ref().and_then(|flag| rows.column_by_name(flag)).and_then(flags);
        let mut left_out = Vec::new();
        if let (Some(keys), Some(why)) = (&keys, self.needs_key(limits)) {
            let keyless = (0..rows.num_rows()).filter(|row| keys.get(*row).is_none());
            left_out.extend(keyless.map(|row| (row, NULL_KEY, why.to_owned())));
        }
        let values = values.into_iter().enumerate().map(|(row, value)| match value {
            // A tombstone has no value that had to fit.
            _ if flags.is_some_and(|flags| flags.is_valid(row) && flags.value(row)) => None,
            Value::At(range) => Some(range),
            Value::Absent => None,
            Value::Refused(reason, detail) => {
                left_out.push((row, reason, detail));
                None
            }
        });
        let values = values.collect();
        let placed = |what, name: &str| rows.column_by_name(name).ok_or_else(|| lacks(what, name, &schema));
        let times = match &self.timestamp {
            None => None,
            Some(name) => Some(times(placed("timestamp", name)?, &mut left_out)?),
        };
        let more_headers = match &self.headers_from {
            None => None,
            Some(name) => {
                let texts = Texts::new(placed("headers_from", name)?).map_err(fatal)?;
                Some(more_headers(&texts, rows.num_rows(), &mut left_out))
            }
        };
        Ok(Chunk { bytes, values, keys, headers, more_headers, times, left_out, ..Chunk::default() })
    }

    /// Why a record needs a key, if it does.
    fn needs_key(&self, limits: &Limits) -> Option<&'static str> {
        match (limits.compacted, &self.delete_when) {
            (true, _) => Some("the key is null, and the topic is compacted: it takes no record without a key"),
            (false, Some(_)) => Some("the key is null: with `delete_when` each record says what becomes of its key"),
            (false, None) => None,
        }
    }

    /// The bytes of all values, and where each lies.
    fn values(&self, rows: &RecordBatch, schema: &SchemaRef) -> Result<(Vec<u8>, Vec<Value>), SinkError> {
        let mut encoder = encoder(&self.codec, schema).map_err(fatal)?;
        let (mut bytes, mut values) = (Vec::new(), Vec::with_capacity(rows.num_rows()));
        if self.codec == Codec::Json {
            // An object is one line, and no line break is in it.
            encoder.encode(rows, &mut bytes).map_err(fatal)?;
            let mut start = 0;
            for end in memchr_iter(b'\n', &bytes) {
                values.push(Value::At(start..end));
                start = end + 1;
            }
        } else {
            for row in 0..rows.num_rows() {
                let start = bytes.len();
                encoder.encode(&rows.slice(row, 1), &mut bytes).map_err(fatal)?;
                // What ends a line in a file is no part of a record.
                let end = bytes.len() - usize::from(bytes.last() == Some(&b'\n'));
                values.push(Value::At(start..end));
            }
        }
        if values.len() == rows.num_rows() {
            return Ok((bytes, values));
        }
        Err(SinkError::Fatal(format!("{} rows gave {} records", rows.num_rows(), values.len())))
    }
}

/// The records' times, in milliseconds. The client takes 0 for "now", and brokers take none before 1970.
fn times(array: &ArrayRef, left_out: &mut Vec<LeftOut>) -> Result<Vec<Option<i64>>, SinkError> {
    let failed = |error: arrow::error::ArrowError| SinkError::Fatal(format!("timestamp: {error}"));
    let millis: ArrayRef = match array.data_type() {
        DataType::Timestamp(_, zone) => {
            cast(array, &DataType::Timestamp(TimeUnit::Millisecond, zone.clone())).map_err(failed)?
        }
        _ => array.clone(),
    };
    let millis = cast(&millis, &DataType::Int64).map_err(failed)?;
    let millis = millis.as_primitive::<Int64Type>();
    for (row, time) in millis.iter().enumerate().filter(|(_, time)| time.is_some_and(|time| time <= 0)) {
        let time = time.unwrap_or_default();
        let detail = format!("the record's time is {time} ms since 1970, and Kafka's records have later ones");
        left_out.push((row, "timestamp", detail));
    }
    Ok(millis.iter().collect())
}

/// The headers that each text says, which is a JSON object as the source's `_headers` is.
fn more_headers(texts: &Texts, count: usize, left_out: &mut Vec<LeftOut>) -> Vec<MoreHeaders> {
    let of = |row| match texts.get(row).map(serde_json::from_slice::<Json>) {
        None | Some(Ok(Json::Null)) => Vec::new(),
        Some(Ok(Json::Object(object))) => {
            object.into_iter().flat_map(|(name, value)| named_headers(name, value)).collect()
        }
        _ => {
            left_out.push((row, "headers", "the column of `headers_from` holds no JSON object".to_owned()));
            Vec::new()
        }
    };
    (0..count).map(of).collect()
}

/// A header, or several of one name.
fn named_headers(name: String, value: Json) -> MoreHeaders {
    match value {
        Json::Array(values) => values.into_iter().map(|value| (name.clone(), header_bytes(value))).collect(),
        value => vec![(name, header_bytes(value))],
    }
}

fn header_bytes(value: Json) -> Option<Vec<u8>> {
    match value {
        Json::Null => None,
        Json::String(text) => Some(text.into_bytes()),
        Json::Object(object) if object.len() == 1 && object.get("base64").is_some_and(Json::is_string) => {
            object.get("base64").and_then(Json::as_str).map(from_base64)
        }
        other => Some(other.to_string().into_bytes()),
    }
}

fn flags(array: &ArrayRef) -> Option<&BooleanArray> {
    array.as_boolean_opt()
}

fn lacks(what: &str, column: &str, schema: &Schema) -> SinkError {
    let columns = schema.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>().join(", ");
    SinkError::Fatal(format!("{what}: the rows have no column `{column}`; they have {columns}"))
}

fn fatal(error: CodecError) -> SinkError {
    SinkError::Fatal(error.to_string())
}

impl Chunk {
    pub(super) fn value(&self, row: usize) -> Option<&[u8]> {
        self.bytes.get(self.values[row].clone()?)
    }

    /// How many bytes a record's key and headers have.
    pub(super) fn beside_value(&self, row: usize) -> usize {
        let headers = self.headers.iter().map(|(name, texts)| name.len() + texts.get(row).map_or(0, <[u8]>::len));
        let length = |(name, value): &(String, Option<Vec<u8>>)| name.len() + value.as_ref().map_or(0, Vec::len);
        let more = self.more_of(row).iter().map(length).sum::<usize>();
        self.key(row).map_or(0, <[u8]>::len) + headers.sum::<usize>() + more
    }

    fn more_of(&self, row: usize) -> &[(String, Option<Vec<u8>>)] {
        self.more_headers.as_ref().and_then(|all| all.get(row)).map_or(&[], Vec::as_slice)
    }

    /// The bytes of a record.
    fn length(&self, row: usize) -> usize {
        self.value(row).map_or(0, <[u8]>::len) + self.beside_value(row)
    }

    /// Leaves out records that are longer than `most`.
    fn leave_out(&mut self, most: Most) {
        let Most { bytes: most, is_topics } = most;
        let long = (0..self.values.len()).map(|row| (row, self.length(row))).filter(|(_, length)| *length > most);
        let by = if is_topics { "the topic's max.message.bytes" } else { "`message.max.bytes`" };
        let detail = |bytes| format!("the record has {bytes} bytes, at most {most} are allowed ({by})");
        let long: Vec<_> = long.map(|(row, bytes)| (row, TOO_BIG, detail(bytes))).collect();
        self.left_out.extend(long);
        self.settle();
    }

    /// Puts what is left out in order: of several reasons the first counts.
    fn settle(&mut self) {
        self.left_out.sort_by_key(|(row, ..)| *row);
        self.left_out.dedup_by_key(|(row, ..)| *row);
    }

    /// A row as it is kept.
    fn refused(&self, row: usize, reason: &'static str, detail: String) -> Refused {
        let record = self.rows.as_ref().map(|rows| Json::Object(cell::record(rows, row)).to_string());
        Refused { row: self.first + row as u64, reason, detail, record: record.unwrap_or_default() }
    }

    fn key(&self, row: usize) -> Option<&[u8]> {
        self.keys.as_ref()?.get(row)
    }

    fn each(&self, send: &mut dyn FnMut(Out<'_>) -> Result<(), SinkError>) -> Result<(), SinkError> {
        let mut left_out = self.left_out.iter().peekable();
        for row in 0..self.values.len() {
            if left_out.next_if(|(left, ..)| *left == row).is_some() {
                continue;
            }
            let more = self.more_of(row);
            let headers = (!self.headers.is_empty() || !more.is_empty()).then(|| {
                let mut made = OwnedHeaders::new_with_capacity(self.headers.len() + more.len());
                for (name, texts) in &self.headers {
                    if let Some(value) = texts.get(row) {
                        made = made.insert(Header { key: name, value: Some(value) });
                    }
                }
                for (name, value) in more {
                    made = made.insert(Header { key: name, value: value.as_ref() });
                }
                made
            });
            let tag = usize::try_from(self.first).unwrap_or(usize::MAX).saturating_add(row + 1);
            let time = self.times.as_ref().and_then(|times| times.get(row).copied().flatten());
            send(Out { key: self.key(row), value: self.value(row), headers, time, tag })?;
        }
        Ok(())
    }
}

impl Rows {
    pub(super) fn bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.bytes.len() as u64).sum()
    }

    /// Whether rows were refused for what the topic's configuration says, which may be another one by now.
    pub(super) fn is_limited(&self) -> bool {
        self.is_limited
    }

    /// The chunk of a row, and its place in it.
    fn place(&self, row: u64) -> Option<(usize, usize)> {
        let chunk = self.chunks.partition_point(|chunk| chunk.first <= row).checked_sub(1)?;
        let place = usize::try_from(row - self.chunks[chunk].first).ok()?;
        (place < self.chunks[chunk].values.len()).then_some((chunk, place))
    }

    /// The bytes of a row's record.
    pub(super) fn size(&self, row: u64) -> usize {
        self.place(row).map_or(0, |(chunk, place)| self.chunks[chunk].length(place))
    }

    /// Whether a row's record has a key.
    pub(super) fn has_key(&self, row: u64) -> bool {
        self.place(row).is_some_and(|(chunk, place)| self.chunks[chunk].key(place).is_some())
    }

    /// Rows without a key that would be sent.
    pub(super) fn keyless(&self) -> Vec<u64> {
        let of = |chunk: &Chunk| -> Vec<u64> {
            let is_out = |row: &usize| chunk.left_out.binary_search_by_key(row, |(row, ..)| *row).is_ok();
            let rows = (0..chunk.values.len()).filter(|row| chunk.key(*row).is_none() && !is_out(row));
            rows.map(|row| chunk.first + row as u64).collect()
        };
        self.chunks.iter().flat_map(of).collect()
    }

    /// Takes rows out that the brokers refuse: they are not sent again.
    pub(super) fn refuse(&mut self, rows: Vec<(u64, &'static str, String)>) {
        for (row, reason, detail) in rows {
            let Some((chunk, place)) = self.place(row) else { continue };
            let chunk = &mut self.chunks[chunk];
            let refused = chunk.refused(place, reason, detail.clone());
            chunk.left_out.push((place, reason, detail));
            self.refused.push(refused);
        }
        self.chunks.iter_mut().for_each(Chunk::settle);
        self.refused.sort_by_key(|refused| refused.row);
        self.refused.dedup_by_key(|refused| refused.row);
    }

    /// Whether there is no record to send.
    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Gives each record, in order.
    pub(super) fn each(&self, mut send: impl FnMut(Out<'_>) -> Result<(), SinkError>) -> Result<(), SinkError> {
        self.chunks.iter().try_for_each(|chunk| chunk.each(&mut send))
    }

    /// Rows that no record can hold, numbered from `first` on.
    pub(super) fn rejects(&self, permit: &Permit, first: u64) -> Vec<SinkReject> {
        let plan = &permit.mark().plan;
        let reject = |(refused, number): (&Refused, u64)| SinkReject {
            number,
            seq: plan.seq,
            input: permit.input(),
            row: refused.row,
            reason: refused.reason.into(),
            detail: refused.detail.clone(),
            record: refused.record.clone(),
        };
        self.refused.iter().zip(first..).map(reject).collect()
    }
}
