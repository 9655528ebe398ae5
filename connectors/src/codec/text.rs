//! Text: one record is one row with the column `text`. And the codec that refuses.

use std::sync::Arc;

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Field, Schema, SchemaRef},
};

use super::{
    Codec, CodecError, Decoded, Decoder, Encoder,
    column::complete,
    encoding::{self, Transcoded},
    rows::{self, Bad},
    values::Values,
};
use crate::source::Slice;

/// The only column that the codec reads.
const COLUMN: &str = "text";

/// The codec `text`, in an encoding by its label.
pub(super) struct Text(pub String);

/// What every record gives.
pub(super) fn columns() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new(COLUMN, DataType::Utf8, true)]))
}

struct TextDecoder {
    schema: SchemaRef,
    column: Option<usize>,
    encoding: String,
}

impl Codec for Text {
    fn infer(&self, _: &[Slice]) -> Result<SchemaRef, CodecError> {
        Ok(columns())
    }

    fn decoder(&self, schema: &SchemaRef, _: &SchemaRef) -> Box<dyn Decoder> {
        let (schema, column) = (schema.clone(), schema.index_of(COLUMN).ok());
        Box::new(TextDecoder { schema, column, encoding: self.0.clone() })
    }

    fn text(&self, slice: &Slice, record: usize) -> Option<String> {
        encoding::text_of(slice, record, &self.0)
    }
}

impl Decoder for TextDecoder {
    fn decode(&mut self, slice: &Slice) -> Decoded {
        let text = Transcoded::of(slice, &self.encoding);
        rows::decode(&self.schema, slice, &text.bytes, &text.records, text.encoding.name(), |record, columns, row| {
            if let Some(column) = self.column.and_then(|at| columns.get_mut(at))
                && !column.parse(record.as_bytes())
            {
                let value = format!("{:?}", rows::shown(record.as_bytes()));
                return Err(Bad::Type { column: COLUMN.into(), value, expected: column.expected() });
            }
            complete(columns, row);
            Ok(())
        })
    }
}

/// A codec that cannot read, and why.
pub(super) struct Refused(pub String);

struct RefusedDecoder(String, SchemaRef);

impl Codec for Refused {
    fn infer(&self, _: &[Slice]) -> Result<SchemaRef, CodecError> {
        Err(CodecError(self.0.clone()))
    }

    fn decoder(&self, schema: &SchemaRef, _: &SchemaRef) -> Box<dyn Decoder> {
        Box::new(RefusedDecoder(self.0.clone(), schema.clone()))
    }
}

impl Decoder for RefusedDecoder {
    fn decode(&mut self, slice: &Slice) -> Decoded {
        rows::decode(&self.1, slice, &slice.bytes, &slice.records, "UTF-8", |_, _, _| {
            Err(Bad::Other("codec", self.0.clone()))
        })
    }
}

/// Writes one text a line, as it is: line ends inside of it are not escaped. Null is an empty line.
pub(super) struct TextEncoder {
    column: usize,
}

impl TextEncoder {
    pub(super) fn new(schema: &SchemaRef) -> Result<Self, CodecError> {
        let is_text = |at: &usize| {
            matches!(schema.field(*at).data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
        };
        let texts: Vec<usize> = (0..schema.fields().len()).filter(is_text).collect();
        let named = schema.index_of(COLUMN).ok().filter(|at| is_text(at));
        match (named, &*texts) {
            (Some(column), _) => Ok(Self { column }),
            (None, [column]) => Ok(Self { column: *column }),
            (None, _) => {
                let names: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
                Err(CodecError(format!(
                    "text writes the column `text`, or the only string column; the rows have {}: add a `select` or `rename`",
                    names.join(", ")
                )))
            }
        }
    }
}

impl Encoder for TextEncoder {
    fn encode(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let column =
            batch.columns().get(self.column).ok_or_else(|| CodecError("a batch lacks the column of text".into()))?;
        let values = Values::new(column).map_err(|error| CodecError(format!("writing text: {error}")))?;
        for row in 0..batch.num_rows() {
            if !values.is_null(row) {
                out.extend_from_slice(values.text(row).unwrap_or_default().as_bytes());
            }
            out.push(b'\n');
        }
        Ok(())
    }
}
