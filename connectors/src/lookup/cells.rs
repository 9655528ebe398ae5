//! Values as databases send them, as texts or bytes, into columns of the job's types.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, BinaryArray, BinaryBuilder, RecordBatch, RecordBatchOptions},
    compute::{CastOptions, cast_with_options},
    datatypes::{DataType, SchemaRef, TimeUnit, TimestampMicrosecondType},
};

use super::{LookupError, too_large};
use crate::codec::type_name;

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

    /// Adds the rows of others with the same columns.
    pub(super) fn append(&mut self, other: Self) -> Result<(), LookupError> {
        if self.bytes == 0 {
            *self = other;
            return Ok(());
        }
        self.bytes += other.bytes;
        if self.bytes > self.max_bytes.min(MAX_COLUMN_BYTES) {
            return Err(too_large(&self.what, self.max_bytes.min(MAX_COLUMN_BYTES)));
        }
        for (mine, mut theirs) in self.columns.iter_mut().zip(other.columns) {
            mine.append_array(&theirs.finish()).map_err(|error| LookupError::of(&self.what, error))?;
        }
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
    let Ok(texts) = cast_with_options(&values, &DataType::Utf8, &strict) else {
        let bytes = values.as_binary::<i32>().iter().flatten().find(|bytes| std::str::from_utf8(bytes).is_err());
        let hex: String = bytes.unwrap_or_default().iter().take(SHOWN).map(|byte| format!("{byte:02x}")).collect();
        return Err(format!(
            "the bytes {hex} are a text that is not UTF-8: convert it by `sql`, or read the column as it is by `schema: {{ ...: binary }}`"
        ));
    };
    if let DataType::Timestamp(TimeUnit::Microsecond, Some(zone)) = kind {
        // What has an offset is brought to UTC; what has none is there already: sessions are.
        let plain = parsed(&texts, &DataType::Timestamp(TimeUnit::Microsecond, None))?;
        return Ok(Arc::new(plain.as_primitive::<TimestampMicrosecondType>().clone().with_timezone(zone.clone())));
    }
    parsed(&texts, kind)
}

/// Characters of a value that a message shows.
const SHOWN: usize = 40;

/// Texts as values of a type. The first one that is no such value is named: `infinity`, or a date of zeros.
fn parsed(texts: &ArrayRef, kind: &DataType) -> Result<ArrayRef, String> {
    let values = cast_with_options(texts, kind, &CastOptions::default()).map_err(|error| error.to_string())?;
    let wrong = (0..texts.len()).find(|row| texts.is_valid(*row) && values.is_null(*row));
    wrong.map_or(Ok(values), |row| {
        let value: String = texts.as_string::<i32>().value(row).chars().take(SHOWN).collect();
        Err(format!(
            "{value:?} is not a valid {}: leave such rows out by `sql` (SELECT ... WHERE ...), or read the column as a text by \
             `schema: {{ ...: string }}`",
            type_name(kind)
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_is_none_of_its_type_is_named_with_the_fix() {
        let of = |values: &[&[u8]], kind: &DataType| {
            typed(BinaryArray::from_iter_values(values), kind).map(|array| array.len())
        };
        let stamp = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        assert_eq!(of(&[b"2024-01-02 03:04:05", b"2024-01-02 03:04:05.5+02"], &stamp), Ok(2));
        for (value, kind, name) in [
            ("infinity", &stamp, "timestamp"),
            ("0000-00-00", &DataType::Date32, "date"),
            ("0000-00-00 00:00:00", &stamp, "timestamp"),
            ("12a", &DataType::Int64, "int64"),
        ] {
            let error = of(&[value.as_bytes()], kind).err().unwrap_or_default();
            assert!(error.starts_with(&format!("{value:?} is not a valid {name}: leave such rows out")), "{error}");
            assert_eq!(of(&[value.as_bytes()], &DataType::Utf8), Ok(1), "as a text it is read");
        }
        let error = of(&[b"a", b"caf\xe9"], &DataType::Utf8).err().unwrap_or_default();
        assert!(error.starts_with("the bytes 636166e9 are a text that is not UTF-8"), "{error}");
    }
}
