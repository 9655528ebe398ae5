//! `select`, `drop`, `rename`: which columns there are, in which order, under which name.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, RecordBatch},
    datatypes::SchemaRef,
    error::ArrowError,
};
use tidemill_config::{At, Located};

use super::{Notes, Output, Planned, Verb};
use crate::columns;

/// Columns of the input, by index, under the names of a schema.
#[derive(Debug)]
struct Shape {
    /// For each column of the output its index in the input.
    indices: Vec<usize>,
    /// For each column of the output its name in the input.
    before: Vec<String>,
    schema: SchemaRef,
}

impl Verb for Shape {
    fn apply(&self, batch: &RecordBatch, _: Option<&ArrayRef>) -> Result<Output, ArrowError> {
        let arrays = self.indices.iter().map(|index| Arc::clone(batch.column(*index))).collect();
        Ok(Output { batch: columns::batch_of(&self.schema, arrays, batch.num_rows())?, from: None, bad: Vec::new() })
    }
    fn needs(&self, wanted: BTreeSet<String>) -> BTreeSet<String> {
        let before = columns::names(&self.schema).into_iter().zip(&self.before);
        before.filter(|(name, _)| wanted.contains(*name)).map(|(_, before)| before.clone()).collect()
    }
}

fn shape(indices: Vec<usize>, names: Vec<String>, schema: &SchemaRef) -> Planned {
    let before = indices.iter().map(|index| schema.field(*index).name().clone()).collect();
    let kinds = indices.iter().map(|index| schema.field(*index).data_type().clone());
    let schema = columns::schema_of(names.iter().map(String::as_str).zip(kinds));
    Planned { verb: Box::new(Shape { indices, before, schema: Arc::clone(&schema) }), schema }
}

/// `select: [a, b]`. Of an input that lacks columns that nobody needs, it keeps the others.
pub fn select(names: &[Located<String>], at: &At, schema: &SchemaRef, notes: &mut Notes<'_>) -> Planned {
    notes.distinct(at, names.iter().map(|name| name.value.as_str()));
    let found = |name: &Located<String>, notes: &mut Notes<'_>| match notes.pruned {
        true => schema.index_of(&name.value).ok(),
        false => notes.column(name, schema),
    };
    let indices: Vec<usize> = names.iter().filter_map(|name| found(name, notes)).collect();
    let names = indices.iter().map(|index| schema.field(*index).name().clone()).collect();
    shape(indices, names, schema)
}

/// `drop: [a]`.
pub fn drop(names: &[Located<String>], schema: &SchemaRef, notes: &mut Notes<'_>) -> Planned {
    if !notes.pruned {
        for name in names {
            notes.column(name, schema);
        }
    }
    let indices: Vec<usize> = (0..schema.fields().len())
        .filter(|index| !names.iter().any(|name| name.value == *schema.field(*index).name()))
        .collect();
    let names = indices.iter().map(|index| schema.field(*index).name().clone()).collect();
    shape(indices, names, schema)
}

/// `rename: { old: new }`, all at once: `{ a: b, b: a }` swaps.
pub fn rename(
    pairs: &[(Located<String>, Located<String>)],
    at: &At,
    schema: &SchemaRef,
    notes: &mut Notes<'_>,
) -> Planned {
    let mut new: BTreeMap<&str, &str> = BTreeMap::new();
    for (old, name) in pairs {
        if notes.pruned || notes.column(old, schema).is_some() {
            new.insert(&old.value, &name.value);
        }
    }
    let names: Vec<String> =
        columns::names(schema).into_iter().map(|name| (*new.get(name).unwrap_or(&name)).to_owned()).collect();
    notes.distinct(at, names.iter().map(String::as_str));
    shape((0..names.len()).collect(), names, schema)
}
