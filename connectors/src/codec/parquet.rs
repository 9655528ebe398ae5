//! Rows as Parquet files.

use ::parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};
use arrow::{array::RecordBatch, datatypes::SchemaRef};

use super::{CodecError, Encoder};

/// Writes a whole file per call: Parquet files end with their footer and cannot be appended to. Pages are compressed with
/// Snappy, which every reader knows, or with Zstandard.
pub(crate) struct ParquetEncoder {
    schema: SchemaRef,
    compression: Compression,
}

impl ParquetEncoder {
    pub(super) fn new(schema: &SchemaRef) -> Self {
        Self { schema: schema.clone(), compression: Compression::SNAPPY }
    }

    pub(crate) fn zstd(schema: &SchemaRef) -> Self {
        Self { schema: schema.clone(), compression: Compression::ZSTD(ZstdLevel::default()) }
    }
}

impl Encoder for ParquetEncoder {
    fn encode(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let properties = WriterProperties::builder().set_compression(self.compression).build();
        let write = || -> ::parquet::errors::Result<()> {
            let mut writer = ArrowWriter::try_new(out, self.schema.clone(), Some(properties))?;
            writer.write(batch)?;
            writer.close().map(drop)
        };
        write().map_err(|error| CodecError(format!("writing parquet: {error}")))
    }
}
