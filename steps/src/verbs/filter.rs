//! `filter`, `drop_nulls`, `drop_empty`: which rows go on.

use std::{collections::BTreeSet, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch},
    buffer::BooleanBuffer,
    compute::{and, filter_record_batch},
    datatypes::SchemaRef,
    error::ArrowError,
};
use tidemill_config::Located;

use super::{Notes, Output, Planned, Verb};
use crate::expression::{Bad, Expression};

/// `filter: EXPR`; also a sink's `where`.
#[derive(Debug)]
pub struct Filter(pub Expression);

impl Verb for Filter {
    fn apply(&self, batch: &RecordBatch, keys: Option<&ArrayRef>) -> Result<Output, ArrowError> {
        let mut bad = Vec::new();
        let kept = self.0.test(batch, keys, &mut bad)?;
        keep(batch, &kept, bad)
    }
    fn needs(&self, mut wanted: BTreeSet<String>) -> BTreeSet<String> {
        wanted.extend(self.0.columns().iter().cloned());
        wanted
    }
    fn is_seeded(&self) -> bool {
        self.0.is_seeded()
    }
}

/// Rows of which some columns have values.
#[derive(Debug)]
struct Present {
    columns: Vec<usize>,
    names: Vec<String>,
    /// Empty text is no value either.
    text: bool,
}

impl Verb for Present {
    fn apply(&self, batch: &RecordBatch, _: Option<&ArrayRef>) -> Result<Output, ArrowError> {
        let mut kept: Option<BooleanArray> = None;
        for index in &self.columns {
            let Some(mask) = present(batch.column(*index), self.text) else { continue };
            kept = Some(match kept {
                Some(before) => and(&before, &mask)?,
                None => mask,
            });
        }
        match kept {
            Some(kept) => keep(batch, &kept, Vec::new()),
            None => Ok(Output { batch: batch.clone(), from: None, bad: Vec::new() }),
        }
    }
    fn needs(&self, mut wanted: BTreeSet<String>) -> BTreeSet<String> {
        wanted.extend(self.names.iter().cloned());
        wanted
    }
}

/// Which rows have a value; `None`: all.
fn present(values: &ArrayRef, text: bool) -> Option<BooleanArray> {
    if text {
        let values = values.as_string::<i32>();
        let offsets = values.value_offsets();
        let filled = BooleanBuffer::collect_bool(values.len(), |row| offsets[row] < offsets[row + 1]);
        let filled = match values.nulls() {
            Some(nulls) => &filled & nulls.inner(),
            None => filled,
        };
        return Some(BooleanArray::new(filled, None));
    }
    let nulls = values.logical_nulls()?;
    Some(BooleanArray::new(nulls.inner().clone(), None))
}

/// The rows of `batch` for which `kept` is true.
fn keep(batch: &RecordBatch, kept: &BooleanArray, bad: Vec<Bad>) -> Result<Output, ArrowError> {
    if kept.true_count() == batch.num_rows() {
        return Ok(Output { batch: batch.clone(), from: None, bad });
    }
    let from = kept.values().set_indices().map(|row| row as u32).collect();
    Ok(Output { batch: filter_record_batch(batch, kept)?, from: Some(from), bad })
}

pub fn condition(text: &Located<String>, schema: &SchemaRef, notes: &mut Notes<'_>) -> Planned {
    let verb: Box<dyn Verb> = match notes.condition(text, schema) {
        Some(expression) => Box::new(Filter(expression)),
        None => Box::new(Present { columns: Vec::new(), names: Vec::new(), text: false }),
    };
    Planned { verb, schema: Arc::clone(schema) }
}

pub fn drop_nulls(names: &[Located<String>], schema: &SchemaRef, notes: &mut Notes<'_>) -> Planned {
    let columns = names.iter().filter_map(|name| notes.column(name, schema)).collect();
    planned(columns, names, false, schema)
}

pub fn drop_empty(names: &[Located<String>], schema: &SchemaRef, notes: &mut Notes<'_>) -> Planned {
    let instead = "For other types there is `drop_nulls`";
    let columns = names.iter().filter_map(|name| notes.text_column(name, schema, "drop_empty", instead)).collect();
    planned(columns, names, true, schema)
}

fn planned(columns: Vec<usize>, names: &[Located<String>], text: bool, schema: &SchemaRef) -> Planned {
    let names = names.iter().map(|name| name.value.clone()).collect();
    Planned { verb: Box::new(Present { columns, names, text }), schema: Arc::clone(schema) }
}
