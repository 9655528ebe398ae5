//! Codecs: bytes to rows and back. Framing (where a record ends) is separate from decoding (what it says).

use arrow::{array::RecordBatch, datatypes::SchemaRef};

use crate::source::Slice;

/// One record that is not a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undecodable {
    /// Its index in the slice.
    pub record: u32,
    /// A short, stable word for metrics: `json`, `not_an_object`, `csv`, `utf8`, `type`.
    pub reason: &'static str,
    /// The sentence.
    pub detail: String,
}

/// The rows of one slice.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// The rows, with exactly the decoder's schema.
    pub rows: RecordBatch,
    /// For each row the index of its record in the slice.
    pub records: Vec<u32>,
    /// Records that gave no row.
    pub rejects: Vec<Undecodable>,
}

/// Decodes slices on one thread.
pub trait Decoder: Send {
    /// All rows of a slice. One bad record costs one reject, not its batch.
    fn decode(&mut self, slice: &Slice) -> Decoded;
}

/// Why a codec cannot be made or a schema not be inferred.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CodecError(pub String);

/// A format of records.
pub trait Codec: Send + Sync {
    /// The schema that these slices suggest (types as wide as the values need), without `_extra`.
    fn infer(&self, slices: &[Slice]) -> Result<SchemaRef, CodecError>;

    /// A decoder for `schema`, which decodes these columns and no others. With `extra`, fields outside the pinned schema
    /// `known` are kept as JSON in the column `_extra`, where `schema` has it.
    fn decoder(&self, schema: &SchemaRef, known: &SchemaRef) -> Box<dyn Decoder>;
}
