//! Rows to records: a value, a key and headers for each. Dead letters are records of their own kind.

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
    codec::{CodecError, Texts, encoder},
    sink::{SinkError, SinkReject, cell},
};

/// Rows that one thread encodes at a time.
const SLICE: usize = 32_768;
/// librdkafka's own limit of a record, where `message.max.bytes` says nothing else.
const MAX_RECORD_BYTES: usize = 1_000_000;
/// What a record has beside its key and value: its fields' lengths, and the batch's head.
const RECORD_OVERHEAD: usize = 128;

/// How rows become records.
#[derive(Clone, Debug)]
pub(super) struct Format {
    codec: Codec,
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
    /// Rows that are too long: row, how long, and the row.
    too_long: Vec<(u64, usize, String)>,
    max_bytes: usize,
}

/// Records of one slice of rows.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    pub(super) bytes: Vec<u8>,
    /// Of each record: where its value lies in `bytes`. `None`: a tombstone.
    pub(super) values: Vec<Option<Range<usize>>>,
    pub(super) keys: Option<Texts>,
    pub(super) headers: Vec<(String, Texts)>,
    /// Records that are not sent.
    left_out: Vec<usize>,
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
        Ok(Self {
            codec: config.codec.clone(),
            key: config.key.as_ref().map(|key| key.value.clone()),
            headers: config.headers.iter().map(|(name, column)| (name.clone(), column.value.clone())).collect(),
            delete_when: config.delete_when.as_ref().map(|column| column.value.clone()),
            max_bytes: max_bytes.saturating_sub(RECORD_OVERHEAD),
            dead_letters: id.name() == SinkId::DEAD_LETTERS,
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
        encoder(&self.codec, &written).map(drop).map_err(fatal)
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

    /// The records of a batch's rows.
    pub(super) fn encode(&self, batches: &[RecordBatch]) -> Result<Rows, SinkError> {
        let mut slices = Vec::new();
        let mut before = 0;
        for batch in batches.iter().filter(|batch| batch.num_rows() > 0) {
            for at in (0..batch.num_rows()).step_by(SLICE) {
                slices.push((before + at as u64, batch.slice(at, SLICE.min(batch.num_rows() - at))));
            }
            before += batch.num_rows() as u64;
        }
        let encode = |(first, slice): &(u64, RecordBatch)| {
            let mut chunk = if self.dead_letters { dead_letters::chunk(slice)? } else { self.chunk(slice)? };
            let too_long = chunk.leave_out(self.max_bytes);
            let too_long = too_long
                .into_iter()
                .map(|(row, bytes)| (first + row as u64, bytes, Json::Object(cell::record(slice, row)).to_string()));
            Ok((chunk, too_long.collect::<Vec<_>>()))
        };
        // A hand-over to another thread costs more than a small batch.
        let done = match &slices[..] {
            [only] => vec![encode(only)?],
            _ => slices.par_iter().map(encode).collect::<Result<Vec<_>, SinkError>>()?,
        };
        let mut rows = Rows { max_bytes: self.max_bytes, ..Rows::default() };
        for (chunk, too_long) in done {
            rows.chunks.push(chunk);
            rows.too_long.extend(too_long);
        }
        Ok(rows)
    }

    fn chunk(&self, rows: &RecordBatch) -> Result<Chunk, SinkError> {
        let schema = rows.schema();
        let (written, places) = self.written(&schema)?;
        let bare = rows.project(&places).map_err(|error| SinkError::Fatal(error.to_string()))?;
        let (bytes, values) = self.values(&bare, &written)?;
        let column = |at: usize| Texts::new(rows.column(at)).map_err(fatal);
        let mut headers = Vec::new();
        for (name, from) in &self.headers {
            let at = schema.index_of(from).map_err(|_| lacks(&format!("headers.{name}"), from, &schema))?;
            headers.push((name.clone(), column(at)?));
        }
        let keys = self.key_column(&schema)?.map(column).transpose()?;
        let flags = self.delete_when.as_ref().and_then(|flag| rows.column_by_name(flag)).and_then(flags);
        let values = values.into_iter().enumerate().map(|(row, value)| {
            let gone = flags.is_some_and(|flags| flags.is_valid(row) && flags.value(row));
            (!gone).then_some(value)
        });
        Ok(Chunk { bytes, values: values.collect(), keys, headers, left_out: Vec::new() })
    }

    /// The bytes of all values, and where each lies.
    fn values(&self, rows: &RecordBatch, schema: &SchemaRef) -> Result<(Vec<u8>, Vec<Range<usize>>), SinkError> {
        let mut encoder = encoder(&self.codec, schema).map_err(fatal)?;
        let (mut bytes, mut values) = (Vec::new(), Vec::with_capacity(rows.num_rows()));
        if self.codec == Codec::Json {
            // An object is one line, and no line break is in it.
            encoder.encode(rows, &mut bytes).map_err(fatal)?;
            let mut start = 0;
            for end in memchr_iter(b'\n', &bytes) {
                values.push(start..end);
                start = end + 1;
            }
        } else {
            for row in 0..rows.num_rows() {
                let start = bytes.len();
                encoder.encode(&rows.slice(row, 1), &mut bytes).map_err(fatal)?;
                // What ends a line in a file is no part of a record.
                let end = bytes.len() - usize::from(bytes.last() == Some(&b'\n'));
                values.push(start..end);
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
    fn value(&self, row: usize) -> Option<&[u8]> {
        self.bytes.get(self.values[row].clone()?)
    }

    /// Leaves out records that are longer than `most`; returns them with their lengths.
    fn leave_out(&mut self, most: usize) -> Vec<(usize, usize)> {
        let length = |row: usize| {
            let headers = self.headers.iter().map(|(name, texts)| name.len() + texts.get(row).map_or(0, <[u8]>::len));
            let key = self.keys.as_ref().and_then(|keys| keys.get(row)).map_or(0, <[u8]>::len);
            self.value(row).map_or(0, <[u8]>::len) + key + headers.sum::<usize>()
        };
        let long: Vec<(usize, usize)> =
            (0..self.values.len()).map(|row| (row, length(row))).filter(|(_, length)| *length > most).collect();
        self.left_out = long.iter().map(|(row, _)| *row).collect();
        long
    }

    fn each(&self, send: &mut dyn FnMut(Out<'_>) -> Result<(), SinkError>) -> Result<(), SinkError> {
        let mut left_out = self.left_out.iter().peekable();
        for row in 0..self.values.len() {
            if left_out.next_if(|left| **left == row).is_some() {
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

    /// Gives each record, in order.
    pub(super) fn each(&self, mut send: impl FnMut(Out<'_>) -> Result<(), SinkError>) -> Result<(), SinkError> {
        self.chunks.iter().try_for_each(|chunk| chunk.each(&mut send))
    }

    /// Rows that no record can hold, numbered from `first` on.
    pub(super) fn rejects(&self, permit: &Permit, first: u64) -> Vec<SinkReject> {
        let plan = &permit.mark().plan;
        let reject = |((row, bytes, record), number): (&(u64, usize, String), u64)| SinkReject {
            number,
            seq: plan.seq,
            input: plan.input(),
            row: *row,
            reason: "too_big".into(),
            detail: format!(
                "the record has {bytes} bytes, at most {} are allowed (`message.max.bytes`)",
                self.max_bytes
            ),
            record: record.clone(),
        };
        self.too_long.iter().zip(first..).map(reject).collect()
    }
}
