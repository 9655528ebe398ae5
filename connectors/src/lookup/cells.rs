//! Values as databases send them, as texts or bytes, into columns of the job's types.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, BinaryArray, BinaryBuilder, RecordBatch, RecordBatchOptions},
    compute::{CastOptions, cast_with_options},
    datatypes::{DataType, SchemaRef, TimeUnit, TimestampMicrosecondType},
};

use super::{LookupError, too_large};

/// One column of texts cannot have more: its offsets are 32 bits wide.
const MAX_COLUMN_BYTES: u64 = i32::MAX as u64;
/// What a value costs beside its bytes.
const OVERHEAD_BYTES: u64 = 8;

/// Rows on their way into columns.
pub(super) struct Cells {
    what: String,
    columns: Vec<BinaryBuilder>,
    bytes: u64,
    max_bytes: u64,
}

impl Cells {
    pub(super) fn new(what: &str, columns: usize, max_bytes: u64) -> Self {
        let columns = (0..columns).map(|_| BinaryBuilder::new()).collect();
        Self { what: what.to_owned(), columns, bytes: 0, max_bytes }
    }

    /// The cells, to be filled elsewhere: what is left has none.
    pub(super) fn take(&mut self) -> Self {
        let left = Self::new(&self.what, self.columns.len(), self.max_bytes);
        std::mem::replace(self, left)
    }

    /// The next value of a column. Every row gives one of each.
    pub(super) fn push(&mut self, column: usize, value: Option<&[u8]>) -> Result<(), LookupError> {
        self.bytes += OVERHEAD_BYTES + value.map_or(0, |value| value.len() as u64);
        if self.bytes > self.max_bytes.min(MAX_COLUMN_BYTES) {
            return Err(too_large(&self.what, self.max_bytes.min(MAX_COLUMN_BYTES)));
        }
        self.columns[column].append_option(value);
        Ok(())
    }

    /// The rows, in the types of `schema`. An error names the column with a value that is none of its type.
    pub(super) fn finish(mut self, schema: &SchemaRef) -> Result<RecordBatch, LookupError> {
        let rows = self.columns.first_mut().map_or(0, |column| arrow::array::ArrayBuilder::len(column));
        let mut arrays = Vec::with_capacity(self.columns.len());
        for (field, mut column) in schema.fields().iter().zip(self.columns) {
            let values = typed(column.finish(), field.data_type());
            arrays
                .push(values.map_err(|why| LookupError::of(&self.what, format!("column `{}`: {why}", field.name())))?);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options)
            .map_err(|error| LookupError::of(&self.what, error))
    }
}

fn typed(values: BinaryArray, kind: &DataType) -> Result<ArrayRef, String> {
    let values: ArrayRef = Arc::new(values);
    if kind == &DataType::Binary {
        return Ok(values);
    }
    if kind.is_nested() {
        return Err("lists and structs are not read from databases: take their parts, or their text".into());
    }
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    let texts =
        cast_with_options(&values, &DataType::Utf8, &strict).map_err(|_| "a text that is not UTF-8".to_owned())?;
    if let DataType::Timestamp(TimeUnit::Microsecond, Some(zone)) = kind {
        // What has an offset is brought to UTC; what has none is there already: sessions are.
        let plain = cast_with_options(&texts, &DataType::Timestamp(TimeUnit::Microsecond, None), &strict);
        let plain = plain.map_err(|error| format!("{error}; `schema` can give it another type"))?;
        return Ok(Arc::new(plain.as_primitive::<TimestampMicrosecondType>().clone().with_timezone(zone.clone())));
    }
    cast_with_options(&texts, kind, &strict).map_err(|error| format!("{error}; `schema` can give it another type"))
}
