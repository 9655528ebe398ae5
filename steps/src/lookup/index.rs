//! Where each key of a table is: an open hash table of row numbers over keys in arrow's row format.

use std::hash::{BuildHasher, RandomState};

use arrow::{
    array::{Array, ArrayRef, RecordBatch, UInt32Array, UInt32Builder},
    buffer::NullBuffer,
    compute::cast,
    datatypes::DataType,
    error::ArrowError,
    row::{RowConverter, Rows, SortField},
    util::display::{ArrayFormatter, FormatOptions},
};
use tidemill_config::Duplicates;

/// A slot without a row. So a table has at most one row less than `u32` can count.
const EMPTY: u32 = u32::MAX;

/// Rows of a table by their keys.
#[derive(Debug)]
pub(crate) struct Index {
    converter: RowConverter,
    keys: Rows,
    /// Twice as many as there are rows, at least: a power of two.
    slots: Vec<u32>,
    hasher: RandomState,
}

impl Index {
    /// An index over the columns `keys`, cast to `kinds`. An error names a key that is there twice.
    pub fn new(rows: &RecordBatch, keys: &[usize], kinds: &[DataType], twice: Duplicates) -> Result<Self, String> {
        let columns: Result<Vec<ArrayRef>, ArrowError> =
            keys.iter().zip(kinds).map(|(key, kind)| cast(rows.column(*key), kind)).collect();
        let defect = |error: ArrowError| format!("its keys cannot be indexed: {error}");
        let columns = columns.map_err(defect)?;
        let mut index = Self::empty(kinds, rows.num_rows()).map_err(defect)?;
        index.keys = index.converter.convert_columns(&columns).map_err(defect)?;
        let nulls = nulls_of(&columns);
        for row in 0..rows.num_rows() {
            if nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
                continue;
            }
            let slot = index.slot(index.keys.row(row).as_ref());
            match (index.slots[slot], twice) {
                (EMPTY, _) | (_, Duplicates::Last) => index.slots[slot] = row as u32,
                (_, Duplicates::First) => {}
                (first, Duplicates::Fail) => {
                    let names = keys.iter().map(|key| rows.schema_ref().field(*key).name().as_str());
                    return Err(format!(
                        "the key {} is in it twice (rows {} and {}): make it unique, or say which counts by `duplicates: first` or `last`",
                        shown(names, &columns, row),
                        first as usize + 1,
                        row + 1
                    ));
                }
            }
        }
        Ok(index)
    }

    fn empty(kinds: &[DataType], rows: usize) -> Result<Self, ArrowError> {
        if rows >= EMPTY as usize {
            return Err(ArrowError::ComputeError(format!("{rows} rows are more than a lookup can have")));
        }
        let converter = RowConverter::new(kinds.iter().map(|kind| SortField::new(kind.clone())).collect())?;
        let keys = converter.empty_rows(0, 0);
        let slots = vec![EMPTY; (2 * rows).next_power_of_two().max(2)];
        Ok(Self { converter, keys, slots, hasher: RandomState::new() })
    }

    /// The slot of a key: where it is, or would be.
    fn slot(&self, key: &[u8]) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = self.hasher.hash_one(key) as usize & mask;
        // It ends: at least half of the slots are empty.
        while self.slots[slot] != EMPTY && self.keys.row(self.slots[slot] as usize).as_ref() != key {
            slot = (slot + 1) & mask;
        }
        slot
    }

    /// For each row of `columns`, which have the index's types, the number of the table's row; null where there is none.
    pub fn find(&self, columns: &[ArrayRef]) -> Result<UInt32Array, ArrowError> {
        let keys = self.converter.convert_columns(columns)?;
        let nulls = nulls_of(columns);
        let mut found = UInt32Builder::with_capacity(keys.num_rows());
        for (row, key) in keys.iter().enumerate() {
            if nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
                found.append_null();
                continue;
            }
            let at = self.slots[self.slot(key.as_ref())];
            found.append_option((at != EMPTY).then_some(at));
        }
        Ok(found.finish())
    }
}

/// The first row of each key in these columns, in order; rows with a null in their key are left out.
pub(crate) fn distinct(columns: &[ArrayRef]) -> Result<UInt32Array, ArrowError> {
    let kinds: Vec<DataType> = columns.iter().map(|column| column.data_type().clone()).collect();
    let rows = columns.first().map_or(0, |column| column.len());
    let mut index = Index::empty(&kinds, rows)?;
    index.keys = index.converter.convert_columns(columns)?;
    let nulls = nulls_of(columns);
    let mut firsts = Vec::new();
    for row in (0..rows).filter(|row| nulls.as_ref().is_none_or(|nulls| nulls.is_valid(*row))) {
        let slot = index.slot(index.keys.row(row).as_ref());
        if index.slots[slot] == EMPTY {
            index.slots[slot] = row as u32;
            firsts.push(row as u32);
        }
    }
    Ok(firsts.into())
}

/// Null where any of the columns is.
fn nulls_of(columns: &[ArrayRef]) -> Option<NullBuffer> {
    columns.iter().fold(None, |all, column| NullBuffer::union(all.as_ref(), column.logical_nulls().as_ref()))
}

/// `code = "DE", kind = 7`: a key as a message shows it.
pub(crate) fn shown<'n>(names: impl Iterator<Item = &'n str>, columns: &[ArrayRef], row: usize) -> String {
    let parts = names.zip(columns).map(|(name, column)| {
        if column.is_null(row) {
            return format!("{name} = null");
        }
        let value = ArrayFormatter::try_new(column, &FormatOptions::default())
            .map_or_else(|_| "?".to_owned(), |display| display.value(row).to_string());
        match column.data_type() {
            DataType::Utf8 => format!("{name} = {}", crate::verbs::shown(&value)),
            _ => format!("{name} = {value}"),
        }
    });
    parts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{Int64Array, StringArray},
        datatypes::{Field, Schema},
    };

    use super::*;

    fn table(keys: Vec<Option<&str>>) -> RecordBatch {
        let schema = Arc::new(Schema::new(vec![Field::new("k", DataType::Utf8, true)]));
        RecordBatch::try_new(schema, vec![Arc::new(StringArray::from(keys))]).unwrap()
    }

    #[test]
    fn every_key_is_found_among_many() {
        let keys: Vec<String> = (0..10_000).map(|n| (n * 7).to_string()).collect();
        let rows = table(keys.iter().map(|key| Some(key.as_str())).collect());
        let index = Index::new(&rows, &[0], &[DataType::Int64], Duplicates::Fail).unwrap();
        let asked: ArrayRef = Arc::new(Int64Array::from_iter_values(0..70_000));
        let found = index.find(&[asked]).unwrap();
        for n in 0..70_000 {
            let expected = (n % 7 == 0).then_some(n as u32 / 7);
            assert_eq!(found.is_valid(n).then(|| found.value(n)), expected, "{n}");
        }
    }

    #[test]
    fn which_of_two_counts() {
        let rows = table(vec![Some("a"), None, Some("b"), Some("a"), None]);
        let asked: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None, Some("b"), Some("c")]));
        for (twice, a) in [(Duplicates::First, 0), (Duplicates::Last, 3)] {
            let index = Index::new(&rows, &[0], &[DataType::Utf8], twice).unwrap();
            let found = index.find(std::slice::from_ref(&asked)).unwrap();
            assert_eq!(found, UInt32Array::from(vec![Some(a), None, Some(2), None]));
        }
        let error = Index::new(&rows, &[0], &[DataType::Utf8], Duplicates::Fail).unwrap_err();
        assert!(error.contains("the key k = \"a\" is in it twice (rows 1 and 4)"), "{error}");
        // What two texts are as a number may be the same.
        let rows = table(vec![Some("7"), Some("07")]);
        assert!(Index::new(&rows, &[0], &[DataType::Utf8], Duplicates::Fail).is_ok());
        assert!(Index::new(&rows, &[0], &[DataType::Int64], Duplicates::Fail).is_err());
    }

    #[test]
    fn distinct_keys_come_in_order() {
        let a: ArrayRef = Arc::new(StringArray::from(vec![Some("x"), Some("y"), Some("x"), None, Some("x")]));
        let b: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), Some(1), Some(1), Some(1), Some(2)]));
        assert_eq!(distinct(&[a, b]).unwrap(), UInt32Array::from(vec![0, 1, 4]));
    }
}
