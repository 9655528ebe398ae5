//! Bytes: one record is one row with one column. And files that are one record.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::{
    Codec, CodecError, Decoded, Decoder, Framed, Framer,
    column::complete,
    frame::addressable,
    rows::{self, Bad},
    scalar::{self, Scalar},
};
use crate::source::Slice;

/// The codec `bytes`.
pub(super) struct Bytes(pub String);

struct BytesDecoder {
    schema: SchemaRef,
    name: String,
    column: Option<usize>,
}

/// What every record gives.
pub(super) fn columns(column: &str) -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new(column, DataType::Binary, true)]))
}

impl Codec for Bytes {
    fn infer(&self, _: &[Slice]) -> Result<SchemaRef, CodecError> {
        Ok(columns(&self.0))
    }

    fn decoder(&self, schema: &SchemaRef, _: &SchemaRef) -> Box<dyn Decoder> {
        Box::new(BytesDecoder { schema: schema.clone(), name: self.0.clone(), column: schema.index_of(&self.0).ok() })
    }
}

impl Decoder for BytesDecoder {
    fn decode(&mut self, slice: &Slice) -> Decoded {
        rows::binary(&self.schema, slice, |record, columns, row| {
            if let Some(column) = self.column.and_then(|at| columns.get_mut(at))
                && !scalar::put(column, &Scalar::Binary(record))
            {
                let value = format!("{:?}", rows::shown(record));
                return Err(Bad::Type { column: self.name.clone(), value, expected: column.expected() });
            }
            complete(columns, row);
            Ok(())
        })
    }
}

/// Takes a file as one record: in binary formats nothing marks the border between two. An empty file has none.
#[derive(Debug, Default)]
pub(super) struct WholeFile;

impl Framer for WholeFile {
    fn frame(&mut self, _: u64, bytes: &[u8], at_end: bool, max_records: usize, out: &mut Vec<(u32, u32)>) -> Framed {
        let (bytes, at_end) = addressable(bytes, at_end);
        if !at_end || max_records == 0 {
            return Framed::default();
        }
        if !bytes.is_empty() {
            out.push((0, bytes.len() as u32));
        }
        Framed::consumed(bytes.len())
    }
}
