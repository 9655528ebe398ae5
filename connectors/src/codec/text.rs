//! Text: a record is one row with the column `text`.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::{Codec, CodecError, Decoded, Decoder, rows};
use crate::source::Slice;

/// The codec `text`.
pub(super) struct Text;

struct TextDecoder(SchemaRef);

impl Codec for Text {
    fn infer(&self, _: &[Slice]) -> Result<SchemaRef, CodecError> {
        Ok(Arc::new(Schema::new(vec![Field::new("text", DataType::Utf8, true)])))
    }
    fn decoder(&self, schema: &SchemaRef, _: &SchemaRef) -> Box<dyn Decoder> {
        Box::new(TextDecoder(schema.clone()))
    }
}

impl Decoder for TextDecoder {
    fn decode(&mut self, slice: &Slice) -> Decoded {
        rows::decode(&self.0, slice, &slice.bytes, &slice.records, |record, columns, _| {
            for column in columns {
                if !column.text(record.as_bytes()) {
                    column.null();
                }
            }
            Ok(())
        })
    }
}
