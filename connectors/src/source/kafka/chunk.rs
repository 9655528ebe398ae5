//! Records that were read from one partition: bytes in one piece, offsets, and the metadata columns that the job asks for.

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{
        ArrayRef, BinaryBuilder, BooleanBuilder, Int32Array, Int64Array, StringArray, StringBuilder,
        TimestampMicrosecondBuilder,
    },
    datatypes::DataType,
};
use bytes::Bytes;
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Headers, Message};
use tidemill_checkpoint::{Position, ShardId};
use tidemill_config::Tombstones;

use super::topics::Partition;
use crate::{
    codec::base64,
    source::{Base, RawBatch, RawReject, Slice},
};

/// Slices are decoded in parallel, each by one core.
const SLICE_BYTES: usize = 256 * 1024;
/// What a record costs beside its bytes, for budgets.
const RECORD_BYTES: usize = 16;
/// The column that tells records without a value, which no codec sees.
pub const TOMBSTONE: &str = "tombstone";
/// The column of keys as they are, which those that decode keys read.
pub const KEY_BYTES: &str = "key_bytes";

/// How much something is, for budgets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Size {
    pub records: usize,
    pub bytes: usize,
}

impl std::ops::Add for Size {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { records: self.records.saturating_add(other.records), bytes: self.bytes.saturating_add(other.bytes) }
    }
}

impl std::ops::Sub for Size {
    type Output = Self;
    /// Never below nothing: one record may be larger than any budget.
    fn sub(self, other: Self) -> Self {
        Self { records: self.records.saturating_sub(other.records), bytes: self.bytes.saturating_sub(other.bytes) }
    }
}

/// Which columns are made, and what becomes of records without a value.
#[derive(Clone, Debug)]
pub(super) struct Form {
    pub metadata: Vec<&'static str>,
    pub tombstones: Tombstones,
}

impl Form {
    /// `decodes_keys`: the keys' bytes are asked for, whatever the job says of metadata.
    pub fn new(
        metadata: impl IntoIterator<Item = impl AsRef<str>>,
        tombstones: Tombstones,
        decodes_keys: bool,
    ) -> Self {
        /// `position` is made from every slice, whatever its source.
        const KNOWN: [&str; 8] =
            ["key", "key_bytes", "topic", "partition", "offset", "timestamp", "headers", TOMBSTONE];
        let given: Vec<String> = metadata.into_iter().map(|name| name.as_ref().to_owned()).collect();
        let mut metadata: Vec<_> = KNOWN.into_iter().filter(|known| given.iter().any(|name| name == known)).collect();
        if decodes_keys && !metadata.contains(&KEY_BYTES) {
            metadata.push(KEY_BYTES);
        }
        // The rows of records that are kept are told by it.
        if tombstones == Tombstones::Keep && !metadata.contains(&TOMBSTONE) {
            metadata.push(TOMBSTONE);
        }
        Self { metadata, tombstones }
    }
    fn has(&self, name: &str) -> bool {
        self.metadata.contains(&name)
    }

    /// The bytes that are kept of a record: its value, and what its columns hold of it.
    fn bytes_of(&self, message: &BorrowedMessage<'_>) -> usize {
        let keys = ["key", "key_bytes"].into_iter().filter(|name| self.has(name)).count();
        let headers = message.headers().filter(|_| self.has("headers"));
        let of_headers = |headers: &BorrowedHeaders| -> usize {
            headers.iter().map(|header| header.key.len() + header.value.map_or(0, <[u8]>::len)).sum()
        };
        message.payload_len() + keys * message.key_len() + headers.map_or(0, of_headers)
    }
}

/// Records in the making.
pub(super) struct Builder {
    form: Form,
    partition: Partition,
    bytes: Vec<u8>,
    ends: Vec<u32>,
    kept: Vec<usize>,
    offsets: Vec<u64>,
    rejects: Vec<u64>,
    keys: StringBuilder,
    key_bytes: BinaryBuilder,
    timestamps: TimestampMicrosecondBuilder,
    headers: StringBuilder,
    tombstones: BooleanBuilder,
}

impl Builder {
    pub fn new(form: &Form, partition: &Partition) -> Self {
        Self {
            form: form.clone(),
            partition: partition.clone(),
            bytes: Vec::new(),
            ends: Vec::new(),
            kept: Vec::new(),
            offsets: Vec::new(),
            rejects: Vec::new(),
            keys: StringBuilder::new(),
            key_bytes: BinaryBuilder::new(),
            timestamps: TimestampMicrosecondBuilder::new(),
            headers: StringBuilder::new(),
            tombstones: BooleanBuilder::new(),
        }
    }

    pub fn push(&mut self, message: &BorrowedMessage<'_>) {
        let offset = u64::try_from(message.offset()).unwrap_or_default();
        match (message.payload(), self.form.tombstones) {
            (None, Tombstones::Skip) => return,
            (None, Tombstones::Reject) => return self.rejects.push(offset),
            (payload, _) => self.bytes.extend_from_slice(payload.unwrap_or_default()),
        }
        self.ends.push(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX));
        self.kept.push(self.kept.last().unwrap_or(&0) + self.form.bytes_of(message));
        self.offsets.push(offset);
        if self.form.has("key") {
            self.keys.append_option(message.key().and_then(|key| std::str::from_utf8(key).ok()));
        }
        if self.form.has("key_bytes") {
            self.key_bytes.append_option(message.key());
        }
        if self.form.has("timestamp") {
            self.timestamps.append_option(message.timestamp().to_millis().map(|ms| ms.saturating_mul(1000)));
        }
        if self.form.has("headers") {
            self.headers.append_option(message.headers().map(headers_text));
        }
        if self.form.has(TOMBSTONE) {
            self.tombstones.append_value(message.payload().is_none());
        }
    }

    /// How much is in it.
    pub fn size(&self) -> Size {
        let records = self.offsets.len() + self.rejects.len();
        Size { records, bytes: self.kept.last().unwrap_or(&0) + records * RECORD_BYTES }
    }

    /// How much a record would add.
    pub fn size_of(&self, message: &BorrowedMessage<'_>) -> Size {
        Size { records: 1, bytes: self.form.bytes_of(message) + RECORD_BYTES }
    }

    pub fn finish(mut self) -> Chunk {
        let count = self.offsets.len();
        let column = |name: &'static str| -> Option<(&'static str, ArrayRef)> {
            let array: ArrayRef = match name {
                "key" => Arc::new(self.keys.finish()),
                "key_bytes" => Arc::new(self.key_bytes.finish()),
                "topic" => Arc::new(StringArray::from_iter_values(std::iter::repeat_n(&*self.partition.topic, count))),
                "partition" => Arc::new(Int32Array::from_value(self.partition.number, count)),
                "offset" => Arc::new(Int64Array::from_iter_values(
                    self.offsets.iter().map(|offset| i64::try_from(*offset).unwrap_or(i64::MAX)),
                )),
                "timestamp" => Arc::new(self.timestamps.finish().with_timezone("UTC")),
                "headers" => Arc::new(self.headers.finish()),
                TOMBSTONE => Arc::new(self.tombstones.finish()),
                _ => return None,
            };
            Some((name, array))
        };
        let columns = self.form.metadata.clone().into_iter().filter_map(column).collect();
        let (ends, kept, offsets, rejects) = (self.ends, self.kept, self.offsets, self.rejects);
        Chunk { bytes: self.bytes.into(), ends, kept, offsets, rejects, columns }
    }
}

/// The type of a metadata column, where it is another one than text.
pub fn metadata_type(name: &str) -> Option<DataType> {
    Some(match name {
        "key_bytes" => DataType::Binary,
        "partition" => DataType::Int32,
        "offset" => DataType::Int64,
        "timestamp" => DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, Some("UTC".into())),
        TOMBSTONE => DataType::Boolean,
        _ => return None,
    })
}

/// Headers as a JSON object. A name that occurs more than once has a list of its values, in their order; a value that is no
/// UTF-8 is `{"base64": "..."}`.
fn headers_text(headers: &BorrowedHeaders) -> String {
    use serde_json::{Map, Value, json};
    let mut object = Map::new();
    let mut repeated: Vec<String> = Vec::new();
    for header in headers.iter() {
        let value = match header.value.map(|bytes| (std::str::from_utf8(bytes), bytes)) {
            None => Value::Null,
            Some((Ok(text), _)) => text.into(),
            Some((Err(_), bytes)) => json!({ "base64": base64(bytes) }),
        };
        match object.get_mut(header.key) {
            None => drop(object.insert(header.key.to_owned(), value)),
            Some(Value::Array(values)) if repeated.iter().any(|name| name == header.key) => values.push(value),
            Some(first) => {
                repeated.push(header.key.to_owned());
                *first = Value::Array(vec![first.take(), value]);
            }
        }
    }
    Value::Object(object).to_string()
}

/// Records of one partition, in their order.
#[derive(Debug)]
pub(super) struct Chunk {
    bytes: Bytes,
    /// Where each record ends; it begins where the one before it ends.
    ends: Vec<u32>,
    /// How much is kept of all records up to and with each, for budgets.
    kept: Vec<usize>,
    offsets: Vec<u64>,
    /// Offsets of records without a value that are rejected.
    rejects: Vec<u64>,
    columns: Vec<(&'static str, ArrayRef)>,
}

impl Chunk {
    fn start(&self, index: usize) -> u32 {
        if index == 0 { 0 } else { self.ends[index - 1] }
    }

    /// How much is kept of the records before this one.
    fn kept_before(&self, index: usize) -> usize {
        if index == 0 { 0 } else { self.kept[index - 1] }
    }

    /// How much lies at `from` and behind it.
    pub fn size_from(&self, from: u64) -> Size {
        let index = self.offsets.partition_point(|at| *at < from);
        let records = self.offsets.len() - index + self.rejects.len() - self.rejects.partition_point(|at| *at < from);
        Size { records, bytes: self.kept_before(self.kept.len()) - self.kept_before(index) + records * RECORD_BYTES }
    }

    /// The offset at which a budget is used up, for records from `from` on: `None` where all fit. The first record is
    /// taken whatever its size, where it must be.
    pub fn cut(&self, from: u64, left: &mut Size, is_first: bool) -> Option<u64> {
        let (mut index, mut reject) =
            (self.offsets.partition_point(|at| *at < from), self.rejects.partition_point(|at| *at < from));
        let mut must = is_first;
        loop {
            let next = (self.offsets.get(index), self.rejects.get(reject));
            let (offset, size) = match next {
                (None, None) => return None,
                (Some(at), other) if other.is_none_or(|other| at < other) => {
                    index += 1;
                    (*at, self.kept[index - 1] - self.kept_before(index - 1) + RECORD_BYTES)
                }
                (_, Some(at)) => {
                    reject += 1;
                    (*at, RECORD_BYTES)
                }
                (Some(_), None) => return None,
            };
            if left.records == 0 || (size > left.bytes && !must) {
                return Some(offset);
            }
            *left = *left - Size { records: 1, bytes: size };
            must = false;
        }
    }

    /// Adds the records of `[from, to)` to a batch.
    pub fn read(&self, shard: &ShardId, from: u64, to: u64, batch: &mut RawBatch) {
        let inside = |offsets: &[u64]| -> Range<usize> {
            offsets.partition_point(|at| *at < from)..offsets.partition_point(|at| *at < to)
        };
        let mut rest = inside(&self.offsets);
        while !rest.is_empty() {
            let first = self.start(rest.start);
            let full = self.ends[rest.clone()].partition_point(|end| ((*end - first) as usize) < SLICE_BYTES);
            let end = rest.start + (full + 1).min(rest.len());
            batch.slices.push(self.slice(shard, rest.start..end));
            rest.start = end;
        }
        batch.rejects.extend(self.rejects[inside(&self.rejects)].iter().map(|offset| RawReject {
            shard: shard.clone(),
            position: Position::number(*offset),
            reason: "tombstone".into(),
            detail:
                "the record has no value: `tombstones: skip` leaves such out, `keep` makes each a row of nulls".into(),
            record: Bytes::new(),
            metadata: Vec::new(),
        }));
    }

    fn slice(&self, shard: &ShardId, range: Range<usize>) -> Slice {
        let first = self.start(range.start);
        let records = range.clone().map(|index| (self.start(index) - first, self.ends[index] - first)).collect();
        let columns = self.columns.iter().map(|(name, array)| (*name, array.slice(range.start, range.len()))).collect();
        Slice {
            shard: shard.clone(),
            bytes: self.bytes.slice(first as usize..self.ends[range.end - 1] as usize),
            records,
            base: Base::Offsets(self.offsets[range].into()),
            header: None,
            metadata: Vec::new(),
            columns,
        }
    }
}
