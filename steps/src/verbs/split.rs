//! `split: { column, by }`: one row per piece; with `into: [a, b]` one column per piece.

use std::{collections::BTreeSet, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, StringBuilder, UInt32Array},
    compute::take,
    datatypes::{DataType, SchemaRef},
    error::ArrowError,
};
use tidemill_config::{At, Located};

use super::{Notes, Output, Planned, Verb, add::with_column};
use crate::{account, columns as schemas};

/// One row per piece. Null stays one row.
#[derive(Debug)]
struct Rows {
    column: usize,
    name: String,
    by: String,
}

impl Verb for Rows {
    fn apply(&self, batch: &RecordBatch, _: Option<&ArrayRef>) -> Result<Output, ArrowError> {
        let text = batch.column(self.column).as_string::<i32>();
        let mut from: Vec<u32> = Vec::with_capacity(text.len());
        let bytes = text.value_offsets()[text.len()] - text.value_offsets()[0];
        let mut pieces = StringBuilder::with_capacity(text.len(), bytes as usize);
        // Every piece of a row has all of its other columns.
        let others = batch.columns().iter().enumerate().filter(|(index, _)| *index != self.column);
        let others: Vec<_> = others.map(|(_, column)| column).collect();
        let (mut start, mut spread) = (0, 0_u64);
        for (row, value) in text.iter().enumerate() {
            let Some(value) = value else {
                pieces.append_null();
                from.push(row as u32);
                start = from.len();
                continue;
            };
            for piece in value.split(self.by.as_str()) {
                pieces.append_value(piece);
                from.push(row as u32);
            }
            let count = (from.len() - start) as u64;
            let bytes = others.iter().map(|column| account::values(column.as_ref(), row, 1)).sum::<u64>();
            (start, spread) = (from.len(), spread.saturating_add(bytes.saturating_mul(count)));
        }
        if from.len() == text.len() {
            return Ok(Output { batch: batch.clone(), from: None, bad: Vec::new() });
        }
        account::expect(spread)?;
        let pieces: ArrayRef = Arc::new(pieces.finish());
        let indices = UInt32Array::from(from.clone());
        let arrays = (0..batch.num_columns()).map(|index| match index == self.column {
            true => Ok(Arc::clone(&pieces)),
            false => take(batch.column(index), &indices, None),
        });
        let batch = schemas::batch_of(batch.schema_ref(), arrays.collect::<Result<_, _>>()?, from.len())?;
        Ok(Output { batch, from: Some(from), bad: Vec::new() })
    }
    fn needs(&self, mut wanted: BTreeSet<String>) -> BTreeSet<String> {
        wanted.insert(self.name.clone());
        wanted
    }
}

/// One column per piece: the last gets the rest, those without a piece are null.
#[derive(Debug)]
struct Columns {
    column: usize,
    name: String,
    by: String,
    into: Vec<String>,
    schema: SchemaRef,
}

impl Verb for Columns {
    fn apply(&self, batch: &RecordBatch, _: Option<&ArrayRef>) -> Result<Output, ArrowError> {
        let text = batch.column(self.column).as_string::<i32>();
        let bytes = (text.value_offsets()[text.len()] - text.value_offsets()[0]) as usize;
        let mut pieces: Vec<StringBuilder> =
            self.into.iter().map(|_| StringBuilder::with_capacity(text.len(), bytes / self.into.len())).collect();
        for value in text {
            let mut rest = value.map(|value| value.splitn(self.into.len(), self.by.as_str()));
            for builder in &mut pieces {
                builder.append_option(rest.as_mut().and_then(Iterator::next));
            }
        }
        let mut arrays = batch.columns().to_vec();
        for (name, mut builder) in self.into.iter().zip(pieces) {
            let pieces: ArrayRef = Arc::new(builder.finish());
            match self.schema.index_of(name)? {
                index if index < arrays.len() => arrays[index] = pieces,
                _ => arrays.push(pieces),
            }
        }
        Ok(Output { batch: schemas::batch_of(&self.schema, arrays, batch.num_rows())?, from: None, bad: Vec::new() })
    }
    fn needs(&self, mut wanted: BTreeSet<String>) -> BTreeSet<String> {
        // A column that is replaced is needed too: it gives the new one its place.
        wanted.insert(self.name.clone());
        wanted
    }
}

/// The column that is split, once separator and type are right.
fn column(name: &Located<String>, by: &str, at: &At, schema: &SchemaRef, notes: &mut Notes<'_>) -> usize {
    if by.is_empty() {
        notes.error(at, "`by` is empty: say what stands between the pieces");
    }
    notes.text_column(name, schema, "split", "Cast it first").unwrap_or_default()
}

pub fn rows(name: &Located<String>, by: &str, at: &At, schema: &SchemaRef, notes: &mut Notes<'_>) -> Planned {
    let column = column(name, by, at, schema, notes);
    Planned { verb: Box::new(Rows { column, name: name.value.clone(), by: by.to_owned() }), schema: Arc::clone(schema) }
}

pub fn columns(
    name: &Located<String>,
    by: &str,
    into: &[Located<String>],
    at: &At,
    schema: &SchemaRef,
    notes: &mut Notes<'_>,
) -> Planned {
    let column = column(name, by, at, schema, notes);
    let into: Vec<String> = into.iter().map(|name| name.value.clone()).collect();
    notes.distinct(at, into.iter().map(String::as_str));
    let schema = into.iter().fold(Arc::clone(schema), |schema, name| with_column(&schema, name, DataType::Utf8));
    let verb = Columns { column, name: name.value.clone(), by: by.to_owned(), into, schema: Arc::clone(&schema) };
    Planned { verb: Box::new(verb), schema }
}
