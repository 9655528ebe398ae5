//! JSON: one object a line, the elements of a top-level array, or objects over several lines.
//!
//! [`cursor`] reads text, strictly; [`decode`] puts records into columns, [`infer`] finds their types, [`encode`] writes
//! rows, [`merge`] puts back what `_extra` keeps of fields inside of columns, [`frame`] cuts files.

use std::sync::Arc;

use arrow::datatypes::{Field, Fields, Schema, SchemaRef};

use super::{Codec, CodecError, Decoder};
use crate::source::Slice;

pub(super) mod cursor;
pub(super) mod decode;
pub(super) mod encode;
pub(super) mod frame;
pub(super) mod infer;
pub(super) mod keys;
mod merge;

/// A schema with more columns is not inferred: such objects are rather maps.
pub(super) const MAX_COLUMNS: usize = 4096;

/// The codec `json`.
pub(super) struct Json;

impl Codec for Json {
    fn infer(&self, slices: &[Slice]) -> Result<SchemaRef, CodecError> {
        let mut fields = Vec::new();
        for slice in slices {
            for index in 0..slice.records.len() {
                if let Some(record) = fields_of(slice.record(index)) {
                    infer::merge_fields(&mut fields, record);
                }
            }
        }
        if fields.len() > MAX_COLUMNS {
            return Err(CodecError(format!(
                "the records have more than {MAX_COLUMNS} different fields: name the columns by `schema`"
            )));
        }
        let fields: Fields = fields.iter().map(|(name, kind)| Field::new(name, kind.data_type(1), true)).collect();
        Ok(Arc::new(Schema::new(fields)))
    }

    fn decoder(&self, schema: &SchemaRef, known: &SchemaRef) -> Box<dyn Decoder> {
        Box::new(decode::JsonDecoder::new(schema, known))
    }
}

/// The fields of a record; `None` where it will be a reject.
fn fields_of(record: &[u8]) -> Option<Vec<(String, infer::Kind)>> {
    std::str::from_utf8(record).ok()?;
    let mut cursor = cursor::Cursor::new(record);
    cursor.space();
    if cursor.peek() != b'{' {
        return None;
    }
    let fields = infer::object(&mut cursor, 1).ok()?;
    cursor.end().ok()?;
    Some(fields)
}
