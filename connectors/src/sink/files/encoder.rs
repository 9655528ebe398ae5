//! Encoders by codec.

use std::io::Write as _;

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use parquet::{arrow::ArrowWriter, basic::Compression, file::properties::WriterProperties};
use serde_json::Value;
use tidemill_config::Codec;

use crate::{
    codec::{CodecError, Encoder},
    sink::cell,
};

struct Json;
struct Parquet(SchemaRef);

/// The encoder of a codec for rows of `schema`.
pub(super) fn encoder(codec: &Codec, schema: &SchemaRef) -> Result<Box<dyn Encoder>, CodecError> {
    match codec {
        Codec::Json => Ok(Box::new(Json)),
        Codec::Parquet => Ok(Box::new(Parquet(schema.clone()))),
        other => Err(CodecError(format!("{other:?} cannot be written yet"))),
    }
}

impl Encoder for Json {
    fn encode(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), CodecError> {
        (0..batch.num_rows()).try_for_each(|row| {
            writeln!(out, "{}", Value::Object(cell::record(batch, row))).map_err(|error| CodecError(error.to_string()))
        })
    }
}

impl Encoder for Parquet {
    fn encode(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let write = || -> parquet::errors::Result<()> {
            let mut writer = ArrowWriter::try_new(out, self.0.clone(), Some(properties))?;
            writer.write(batch)?;
            writer.close().map(drop)
        };
        write().map_err(|error| CodecError(format!("writing parquet: {error}")))
    }
}
