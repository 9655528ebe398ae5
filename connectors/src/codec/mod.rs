//! Codecs: bytes to rows and back. Framing (where a record ends) is separate from decoding (what it says).
//!
//! [`framer`] cuts a file into records, [`codec()`] decodes records into Arrow rows with a fixed schema, [`encoder`]
//! writes rows. What each format accepts, rejects and chooses is in `docs/codecs.md`; every rule there is a test here.
//!
//! Invariants: the same bytes and schema always give the same rows and rejects; each record gives one row or one reject;
//! no input panics.

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use tidemill_config::model;

use crate::source::Slice;

mod column;
mod csv;
pub mod frame;
mod json;
mod names;
mod number;
mod parquet;
mod rows;
pub mod schema;
#[cfg(test)]
mod tests;
mod text;
mod texts;
mod time;
mod values;

pub use frame::{FrameError, Framed, Framer, framer};
pub use names::{base64, type_name};
pub use schema::to_arrow;
pub(crate) use texts::{Texts, from_base64};

/// The column that keeps, as the text of a JSON object, the fields which the pinned schema does not have.
pub const EXTRA: &str = "_extra";

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

/// Writes rows as bytes.
pub trait Encoder: Send {
    /// What a file begins with, before its first rows: CSV's header line. `None` where a format has no such thing.
    fn header(&self) -> Option<Vec<u8>> {
        None
    }
    /// Appends the rows of `batch`, which has the encoder's schema, to `out`. For `parquet` each call appends one
    /// complete file: call it once per file.
    fn encode(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), CodecError>;
}

/// The codec that a job names. One that cannot read (`parquet`, or an encoding whose letters have no borders) refuses every
/// record, with the reason.
pub fn codec(config: &model::Codec) -> Box<dyn Codec> {
    match config {
        model::Codec::Json => Box::new(json::Json),
        model::Codec::Csv(options) => match csv::refusal(options) {
            None => Box::new(csv::Csv(options.clone())),
            Some(why) => Box::new(text::Refused(why)),
        },
        model::Codec::Text => Box::new(text::Text),
        model::Codec::Parquet => Box::new(text::Refused("sources cannot read parquet".into())),
    }
}

/// The encoder of a codec for rows of `schema`; an error names the column that the codec cannot write.
pub fn encoder(config: &model::Codec, schema: &SchemaRef) -> Result<Box<dyn Encoder>, CodecError> {
    Ok(match config {
        model::Codec::Json => Box::new(json::encode::JsonEncoder::new(schema)?),
        model::Codec::Csv(options) => Box::new(csv::encode::CsvEncoder::new(schema, options)?),
        model::Codec::Text => Box::new(text::TextEncoder::new(schema)?),
        model::Codec::Parquet => Box::new(parquet::ParquetEncoder::new(schema)),
    })
}
