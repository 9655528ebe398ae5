//! Codecs: bytes to rows and back. Framing (where a record ends) is separate from decoding (what it says).
//!
//! [`framer`] cuts a file into records, [`codec()`] decodes records into Arrow rows with a fixed schema, [`encoder`]
//! writes rows. What each format accepts, rejects and chooses is in `docs/codecs.md`; every rule there is a test here.
//!
//! Invariants: the same bytes and schema always give the same rows and rejects; each record gives one row or one reject;
//! no input panics.

use std::borrow::Cow;

use arrow::{
    array::{ArrayRef, AsArray, RecordBatch},
    datatypes::SchemaRef,
};
use async_trait::async_trait;
use encoding_rs::{Encoding, UTF_8};
use tidemill_config::model;

use crate::source::Slice;

mod avro;
mod binary;
mod column;
mod csv;
mod encoding;
pub mod frame;
mod json;
mod names;
mod number;
pub(crate) mod parquet;
mod protobuf;
mod raw;
pub(crate) mod records;
mod registry;
mod rows;
mod scalar;
pub mod schema;
#[cfg(test)]
mod tests;
mod text;
mod texts;
mod time;
mod tree;
mod values;

pub use frame::{FrameError, Framed, Framer, framer};
pub use names::{base64, type_name};
pub use schema::to_arrow;
pub(crate) use texts::{Texts, from_base64};
pub(crate) use values::json_of;

/// The column that keeps, as the text of a JSON object, the fields which the pinned schema does not have.
pub const EXTRA: &str = "_extra";

/// The column `_extra` of rows that have columns with these names of Tidemill's own: a field of one of these names gets
/// another (`_key_2`). `None`: there is none.
pub fn rename_extra(extra: &ArrayRef, names: &[String]) -> Option<ArrayRef> {
    let renamed = json::rename_extra(extra.as_string_opt::<i32>()?, names)?;
    Some(std::sync::Arc::new(renamed))
}

/// One record that is not a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undecodable {
    /// Its index in the slice.
    pub record: u32,
    /// A short, stable word for metrics: `json`, `not_an_object`, `csv`, `utf8`, `type`, `bad_avro`.
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

/// Why what decoding needs cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// It may pass: the batch is tried again.
    #[error("{0}")]
    Transient(String),
    /// No retry helps.
    #[error("{0}")]
    Fatal(String),
}

/// A format of records.
#[async_trait]
pub trait Codec: Send + Sync {
    /// The schema that these slices suggest (types as wide as the values need), without `_extra`.
    fn infer(&self, slices: &[Slice]) -> Result<SchemaRef, CodecError>;

    /// A decoder for `schema`, which decodes these columns and no others. With `extra`, fields outside the pinned schema
    /// `known` are kept as JSON in the column `_extra`, where `schema` has it.
    fn decoder(&self, schema: &SchemaRef, known: &SchemaRef) -> Box<dyn Decoder>;

    /// Gets what decoding these slices needs from elsewhere, such as the schemas that wrote them. Decoding asks nobody: it
    /// comes after this, and what was got never changes.
    async fn prepare(&self, _: &[Slice]) -> Result<(), PrepareError> {
        Ok(())
    }

    /// After [`Codec::prepare`], where some ids that these slices name stand for no schema, so that their records are rejects:
    /// the others. A plan names them, so that a replay makes the same records rejects, whatever a registry learns meanwhile.
    /// `None`: every id stands for one.
    fn readable(&self, _: &[Slice]) -> Option<Vec<u32>> {
        None
    }

    /// A decoder like [`Codec::decoder`] that knows no other ids of schemas than these.
    fn decoder_of(&self, schema: &SchemaRef, known: &SchemaRef, _readable: &[u32]) -> Box<dyn Decoder> {
        self.decoder(schema, known)
    }

    /// A record as people read it, where its bytes are text in another encoding than UTF-8: for dead letters.
    fn text(&self, _: &Slice, _record: usize) -> Option<String> {
        None
    }

    /// Looks at what it needs from elsewhere, without a record: for `validate --connect`.
    async fn check(&self) -> Result<(), PrepareError> {
        Ok(())
    }

    /// The schema to pin for a source whose job gives none: from these slices, its first.
    async fn first_schema(&self, slices: &[Slice]) -> Result<SchemaRef, PrepareError> {
        self.prepare(slices).await?;
        self.infer(slices).map_err(|error| PrepareError::Fatal(format!("its schema cannot be inferred: {error}")))
    }
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
    let utf8 = || "utf-8".to_owned();
    let refused = |what: &str, label: &str| {
        encoding::refusal(label).map(|why| Box::new(text::Refused(format!("{what}: {why}"))) as Box<dyn Codec>)
    };
    match config {
        model::Codec::Json => Box::new(json::Json(model::Json { encoding: utf8(), confluent: false })),
        model::Codec::JsonWith(options) => {
            refused("json", &options.encoding).unwrap_or_else(|| Box::new(json::Json(options.clone())))
        }
        model::Codec::Csv(options) => match csv::refusal(options) {
            None => Box::new(csv::Csv(options.clone())),
            Some(why) => Box::new(text::Refused(why)),
        },
        model::Codec::Text => Box::new(text::Text(utf8())),
        model::Codec::TextIn(label) => refused("text", label).unwrap_or_else(|| Box::new(text::Text(label.clone()))),
        model::Codec::Bytes(column) => Box::new(raw::Bytes(column.clone())),
        model::Codec::Avro(options) => made(avro::Avro::new(options)),
        model::Codec::Protobuf(options) => made(protobuf::Protobuf::new(options)),
        model::Codec::Parquet => Box::new(text::Refused("sources cannot read parquet".into())),
    }
}

fn made(codec: Result<impl Codec + 'static, String>) -> Box<dyn Codec> {
    match codec {
        Ok(codec) => Box::new(codec),
        Err(why) => Box::new(text::Refused(why)),
    }
}

/// The columns that a codec gives by itself, before the first record; `None` where records must tell. An error is what is
/// wrong with the file that describes them, and where the job names it.
pub fn columns(config: &model::Codec) -> Result<Option<SchemaRef>, model::Located<String>> {
    let wrong = |at: &model::At, value: String| model::Located { value, at: at.clone() };
    Ok(match config {
        model::Codec::Text | model::Codec::TextIn(_) => Some(text::columns()),
        model::Codec::Bytes(column) => Some(raw::columns(column)),
        model::Codec::Avro(options) => {
            let columns = options.schema.as_ref().map(|file| {
                let columns = avro::of_file(file).and_then(|schema| schema.columns());
                columns.map_err(|why| wrong(&file.path.at, format!("{} cannot be used: {why}", file.shown())))
            });
            columns.transpose()?
        }
        model::Codec::Protobuf(options) => Some(protobuf::columns(options)?),
        model::Codec::Json | model::Codec::JsonWith(_) | model::Codec::Csv(_) | model::Codec::Parquet => None,
    })
}

/// The label of the encoding that a codec's files have, where the job names one.
pub fn encoding_of(config: &model::Codec) -> Option<&str> {
    match config {
        model::Codec::Csv(options) => Some(&options.encoding),
        _ => None,
    }
}

/// Bytes in an encoding as a text; `None` where the label is UTF-8's, or nobody's. What cannot be decoded is U+FFFD.
pub fn decoded<'b>(label: &str, bytes: &'b [u8]) -> Option<Cow<'b, str>> {
    let encoding = Encoding::for_label(label.as_bytes()).filter(|encoding| *encoding != UTF_8)?;
    Some(encoding.decode_without_bom_handling(bytes).0)
}

/// The encoder of a codec for rows of `schema`; an error names the column that the codec cannot write.
pub fn encoder(config: &model::Codec, schema: &SchemaRef) -> Result<Box<dyn Encoder>, CodecError> {
    Ok(match config {
        model::Codec::Json | model::Codec::JsonWith(_) => Box::new(json::encode::JsonEncoder::new(schema)?),
        model::Codec::Csv(options) => Box::new(csv::encode::CsvEncoder::new(schema, options)?),
        model::Codec::Text | model::Codec::TextIn(_) => Box::new(text::TextEncoder::new(schema)?),
        model::Codec::Parquet => Box::new(parquet::ParquetEncoder::new(schema)),
        model::Codec::Bytes(_) | model::Codec::Avro(_) | model::Codec::Protobuf(_) => {
            return Err(CodecError(
                "bytes, avro and protobuf are single records, and no files are made of them".into(),
            ));
        }
    })
}
