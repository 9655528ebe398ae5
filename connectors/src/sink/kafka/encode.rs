//! Rows to records: a value, a key and headers for each. Dead letters are records of their own kind.
//!
//! Codecs of binary records have a writer for each schema of rows, made before ([`Format::writer`]): it may ask a registry.

use std::ops::Range;

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch},
    datatypes::{DataType, Schema, SchemaRef},
};
use memchr::memchr_iter;
use rayon::prelude::*;
use rdkafka::message::{Header, OwnedHeaders};
use serde_json::Value as Json;
use std::sync::Arc;
use tidemill_checkpoint::{Permit, SinkId};
use tidemill_config::{Codec, KafkaSink};

use super::dead_letters;
use crate::{
    codec::{
        CodecError, PrepareError, Texts, encoder,
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
    delete_when: Option<String>,
    /// Records longer than this are rejects.
    max_bytes: usize,
    dead_letters: bool,
}

/// The records of one batch.
#[derive(Debug, Default)]
pub(super) struct Rows {
    chunks: Vec<Chunk>,
    refused: Vec<Refused>,
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
    /// Records that are not sent, in order, and why: a short word and a sentence.
    left_out: Vec<(usize, &'static str, String)>,
}

/// One record as it is sent.
pub(super) struct Out<'a> {
    pub(super) key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
    pub(super) headers: Option<OwnedHeaders>,
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
            delete_when: config.delete_when.as_ref().map(|column| column.value.clone()),
            max_bytes: max_bytes.saturating_sub(RECORD_OVERHEAD),
            dead_letters,
        })
    }

    /// Of a key and a value together.
    pub(super) fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Whether rows of this schema can be written.
    pub(super) fn check(&self, schema: &SchemaRef) -> Result<(), SinkError> {
        if self.dead_letters {
            return Ok(());
        }
        let named = self.headers.iter().map(|(name, column)| (format!("headers.{name}"), column));
        for (what, column) in named.chain(self.delete_when.iter().map(|column| ("delete_when".into(), column))) {
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
        self.headers.iter().map(|(_, column)| column).chain(&self.key).cloned().collect()
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
        let is_written = |name: &str| name != KafkaSink::KEY_COLUMN && Some(name) != self.delete_when.as_deref();
        let kept = schema.fields().iter().enumerate().filter(|(_, field)| is_written(field.name()));
        let (places, fields): (Vec<usize>, Vec<_>) = kept.map(|(at, field)| (at, field.clone())).unzip();
        if fields.is_empty() {
            return Err(SinkError::Fatal("delete_when names the only column: nothing is left to write".into()));
        }
        Ok((Arc::new(Schema::new(fields)), places))
    }

    /// The records of a batch's rows, by the writer of their schema, where there is one.
    pub(super) fn encode(&self, batches: &[RecordBatch], writer: Option<&dyn Writer>) -> Result<Rows, SinkError> {
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
                dead_letters::chunk(slice, self.max_bytes)?
            } else {
                self.chunk(slice, writer)?
            };
            chunk.leave_out(self.max_bytes);
            let refused = chunk.left_out.iter().map(|(row, reason, detail)| Refused {
                row: first + *row as u64,
                reason,
                detail: detail.clone(),
                record: Json::Object(cell::record(slice, *row)).to_string(),
            });
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
            rows.chunks.push(chunk);
            rows.refused.extend(refused);
        }
        Ok(rows)
    }

    fn chunk(&self, rows: &RecordBatch, writer: Option<&dyn Writer>) -> Result<Chunk, SinkError> {
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
        Ok(Chunk { bytes, values: values.collect(), keys, headers, left_out })
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
        self.keys.as_ref().and_then(|keys| keys.get(row)).map_or(0, <[u8]>::len) + headers.sum::<usize>()
    }

    /// Leaves out records that are longer than `most`.
    fn leave_out(&mut self, most: usize) {
        let length = |row: usize| self.value(row).map_or(0, <[u8]>::len) + self.beside_value(row);
        let long = (0..self.values.len()).map(|row| (row, length(row))).filter(|(_, length)| *length > most);
        let detail = |bytes| format!("the record has {bytes} bytes, at most {most} are allowed (`message.max.bytes`)");
        let long: Vec<_> = long.map(|(row, bytes)| (row, "too_big", detail(bytes))).collect();
        if !long.is_empty() {
            self.left_out.extend(long);
            self.left_out.sort_by_key(|(row, ..)| *row);
            self.left_out.dedup_by_key(|(row, ..)| *row);
        }
    }

    fn each(&self, send: &mut dyn FnMut(Out<'_>) -> Result<(), SinkError>) -> Result<(), SinkError> {
        let mut left_out = self.left_out.iter().peekable();
        for row in 0..self.values.len() {
            if left_out.next_if(|(left, ..)| *left == row).is_some() {
                continue;
            }
            let headers = (!self.headers.is_empty()).then(|| {
                let mut made = OwnedHeaders::new_with_capacity(self.headers.len());
                for (name, texts) in &self.headers {
                    if let Some(value) = texts.get(row) {
                        made = made.insert(Header { key: name, value: Some(value) });
                    }
                }
                made
            });
            let key = self.keys.as_ref().and_then(|keys| keys.get(row));
            send(Out { key, value: self.value(row), headers })?;
        }
        Ok(())
    }
}

impl Rows {
    pub(super) fn bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.bytes.len() as u64).sum()
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
