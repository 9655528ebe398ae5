//! Rows as CSV.

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use encoding_rs::{Encoding, UTF_8};
use tidemill_config::model::Csv;

use crate::codec::{
    CodecError, Encoder,
    frame::UTF8_BOM,
    values::{Values, can_write},
};

/// Writes CSV with `\n` line ends; quotes only where the text would be read as something else without them.
pub(in crate::codec) struct CsvEncoder {
    options: Csv,
    names: Vec<String>,
    /// By byte: a field that has it is written in quotes.
    special: [bool; 256],
}

impl CsvEncoder {
    pub(in crate::codec) fn new(schema: &SchemaRef, options: &Csv) -> Result<Self, CodecError> {
        if Encoding::for_label(options.encoding.as_bytes()) != Some(UTF_8) {
            return Err(CodecError(format!(
                "csv is written as utf-8, not as {}: leave out `encoding`",
                options.encoding
            )));
        }
        for field in schema.fields() {
            if !can_write(field.data_type()) {
                return Err(CodecError(format!(
                    "column {} of type {} cannot be written as csv: cast it to string",
                    field.name(),
                    field.data_type()
                )));
            }
        }
        let mut special = [false; 256];
        // With the first character of a longer delimiter a field would end where it is not meant to.
        let first = options.delimiter.bytes().next();
        for byte in [b'\n', b'\r'].into_iter().chain(first).chain(options.quote) {
            special[usize::from(byte)] = true;
        }
        let names = schema.fields().iter().map(|field| field.name().clone()).collect();
        Ok(Self { options: options.clone(), names, special })
    }

    /// Puts the field that was appended from `start` on into quotes, where it needs them.
    #[inline]
    fn quote(&self, start: usize, out: &mut Vec<u8>) {
        let text = &out[start..];
        let is_plain = !text.is_empty()
            && !text.iter().any(|byte| self.special[usize::from(*byte)])
            && !text.starts_with(UTF8_BOM)
            && !self.options.nulls.iter().any(|null| null.as_bytes() == text);
        if !is_plain {
            self.quote_slowly(start, out);
        }
    }

    fn quote_slowly(&self, start: usize, out: &mut Vec<u8>) {
        // Of sinks every field may have quotes.
        let quote = self.options.quote.unwrap_or(b'"');
        let escape = self.options.escape.unwrap_or(quote);
        let text = out.split_off(start);
        out.push(quote);
        for byte in text {
            if byte == quote || byte == escape {
                out.push(escape);
            }
            out.push(byte);
        }
        out.push(quote);
    }
}

impl Encoder for CsvEncoder {
    fn header(&self) -> Option<Vec<u8>> {
        if !self.options.header {
            return None;
        }
        let mut line = Vec::new();
        for (at, name) in self.names.iter().enumerate() {
            if at > 0 {
                line.extend_from_slice(self.options.delimiter.as_bytes());
            }
            let start = line.len();
            line.extend_from_slice(name.as_bytes());
            if name.trim() == name {
                self.quote(start, &mut line);
            } else {
                self.quote_slowly(start, &mut line);
            }
        }
        line.push(b'\n');
        Some(line)
    }

    fn encode(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let bound: Result<Vec<Values>, _> = batch.columns().iter().map(Values::new).collect();
        let mut columns = bound.map_err(|error| CodecError(format!("writing csv: {error}")))?;
        let null = self.options.nulls.first().map_or(&b""[..], |null| null.as_bytes());
        for row in 0..batch.num_rows() {
            for (at, column) in columns.iter_mut().enumerate() {
                if at > 0 {
                    out.extend_from_slice(self.options.delimiter.as_bytes());
                }
                if column.is_null(row) {
                    out.extend_from_slice(null);
                } else {
                    let start = out.len();
                    column.plain(row, out);
                    self.quote(start, out);
                }
            }
            out.push(b'\n');
        }
        Ok(())
    }
}
