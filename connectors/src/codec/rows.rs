//! What all decoders share: records of a slice into columns, where a bad one costs one reject and leaves no half row.

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{RecordBatch, RecordBatchOptions},
    datatypes::SchemaRef,
};

use super::{
    Decoded, Undecodable,
    column::{Column, MAX_TEXT_BYTES},
};
use crate::source::Slice;

/// Of a value or record, a message shows so many characters.
const MAX_SHOWN: usize = 80;

/// Why a record is no row.
#[derive(Debug)]
pub(super) enum Bad {
    /// It is no JSON.
    Json { at: usize, what: &'static str },
    /// A value does not fit its column.
    Type { column: String, value: String, expected: String },
    /// A reason and a sentence.
    Other(&'static str, String),
}

impl Bad {
    /// The column lies inside of another one.
    #[cold]
    pub(super) fn inside(self, outer: &str) -> Self {
        match self {
            Self::Type { column, value, expected } => {
                let column = if column.is_empty() { outer.to_owned() } else { format!("{outer}.{column}") };
                Self::Type { column, value, expected }
            }
            other => other,
        }
    }

    /// The reason and the sentence.
    pub(super) fn told(self) -> (&'static str, String) {
        match self {
            Self::Json { at, what } => ("json", format!("at byte {at}: {what}")),
            Self::Type { column, value, expected } => ("type", format!("column {column}: {value} is not {expected}")),
            Self::Other(reason, detail) => (reason, detail),
        }
    }

    fn reject(self, index: usize) -> Undecodable {
        let (reason, detail) = self.told();
        Undecodable { record: index as u32, reason, detail }
    }
}

/// A text's beginning, for messages.
pub(super) fn shown(text: &[u8]) -> String {
    // A character has at most four bytes.
    let text = String::from_utf8_lossy(&text[..text.len().min(4 * MAX_SHOWN)]);
    let mut short: String = text.chars().take(MAX_SHOWN).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// Decodes the records that lie at `records` in `bytes`, which came from `encoding`. `record` appends one row to every
/// column, or fails.
pub(super) fn decode(
    schema: &SchemaRef,
    slice: &Slice,
    bytes: &[u8],
    records: &[(u32, u32)],
    encoding: &'static str,
    mut record: impl FnMut(&str, &mut [Column], usize) -> Result<(), Bad>,
) -> Decoded {
    // Almost always the whole slice is UTF-8: one fast check instead of many.
    let whole = std::str::from_utf8(bytes).ok();
    each(schema, slice, records, |range, columns, row| {
        let text = match whole {
            Some(text) => text.get(range.clone()),
            None => bytes.get(range.clone()).and_then(|text| std::str::from_utf8(text).ok()),
        };
        let text = text.ok_or_else(|| broken(bytes.get(range).unwrap_or_default(), encoding))?;
        record(text, columns, row)
    })
}

/// The same for records that are no text. Their rows may be longer than they are: names of fields, defaults.
pub(super) fn binary(
    schema: &SchemaRef,
    slice: &Slice,
    mut record: impl FnMut(&[u8], &mut [Column], usize) -> Result<(), Bad>,
) -> Decoded {
    each(schema, slice, &slice.records, |range, columns, row| {
        record(slice.bytes.get(range).unwrap_or_default(), columns, row)?;
        if columns.iter().any(Column::is_too_long) { Err(too_large()) } else { Ok(()) }
    })
}

fn each(
    schema: &SchemaRef,
    slice: &Slice,
    records: &[(u32, u32)],
    mut record: impl FnMut(Range<usize>, &mut [Column], usize) -> Result<(), Bad>,
) -> Decoded {
    let mut columns: Vec<Column> =
        schema.fields().iter().map(|field| Column::new(field.data_type(), records.len())).collect();
    let mut good = Vec::with_capacity(records.len());
    let mut rejects = Vec::new();
    let mut taken = 0;
    for (index, (start, end)) in records.iter().enumerate() {
        let range = *start as usize..*end as usize;
        taken += range.len();
        let result = if taken > MAX_TEXT_BYTES { Err(too_large()) } else { record(range, &mut columns, good.len()) };
        match result {
            Ok(()) => good.push(index as u32),
            Err(bad) => {
                columns.iter_mut().for_each(|column| column.truncate(good.len()));
                rejects.push(bad.reject(index));
            }
        }
    }
    debug_assert!(
        columns.iter().all(|column| column.len() == good.len()),
        "every record gives one value of each column"
    );
    finish(schema, slice, columns, good, rejects)
}

#[cold]
fn too_large() -> Bad {
    Bad::Other("too_large", "the slice holds more than 2 GiB: make `batch: max_bytes` smaller".into())
}

#[cold]
fn broken(bytes: &[u8], encoding: &str) -> Bad {
    let at = std::str::from_utf8(bytes).err().map(|error| format!("at byte {}: ", error.valid_up_to()));
    Bad::Other("utf8", format!("{}the bytes are not {encoding}", at.unwrap_or_default()))
}

fn finish(
    schema: &SchemaRef,
    slice: &Slice,
    columns: Vec<Column>,
    records: Vec<u32>,
    mut rejects: Vec<Undecodable>,
) -> Decoded {
    let options = RecordBatchOptions::new().with_row_count(Some(records.len()));
    let arrays: Result<Vec<_>, _> = columns.into_iter().map(Column::finish).collect();
    match arrays.and_then(|arrays| RecordBatch::try_new_with_options(schema.clone(), arrays, &options)) {
        Ok(rows) => Decoded { rows, records, rejects },
        // A schema that no batch can have (a column that may not be null, say): every record is refused, none is lost.
        Err(error) => {
            rejects = (0..slice.records.len())
                .map(|index| Undecodable { record: index as u32, reason: "schema", detail: error.to_string() })
                .collect();
            Decoded { rows: RecordBatch::new_empty(Arc::clone(schema)), records: Vec::new(), rejects }
        }
    }
}
