//! A lookup planned over the columns of its rows and of its table, and applied to slices.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use arrow::{
    array::{Array, ArrayRef, RecordBatch, UInt32Array},
    compute::{cast, concat, filter_record_batch, is_not_null, take},
    datatypes::{DataType, Schema, SchemaRef},
    error::ArrowError,
};
use tidemill_config::{At, Duplicates, Lookup as Model, OnMissing};

use super::{AskError, Index, Table, index};
use crate::{
    Rows, account, columns,
    expression::Bad,
    verbs::{Notes, Output, Verb},
};

/// A planned lookup. It has no table yet: that comes with the batch.
#[derive(Debug)]
pub(crate) struct Lookup {
    /// Columns of the rows, in the order of the table's keys.
    keys: Vec<usize>,
    key_names: Vec<String>,
    /// The table's columns: name and type.
    table_keys: Vec<(String, DataType)>,
    /// The types in which keys are compared: those of the rows.
    kinds: Vec<DataType>,
    /// Columns of the table.
    taken: Vec<String>,
    /// The names that they get.
    given: Vec<String>,
    on_missing: OnMissing,
    duplicates: Duplicates,
    /// The table, for messages.
    table: String,
    /// What the table must be like.
    needed: SchemaRef,
    schema: SchemaRef,
}

/// A lookup with the table of a batch.
#[derive(Debug)]
pub(crate) struct Joined {
    rows: RecordBatch,
    index: Arc<Index>,
    taken: Vec<usize>,
}

/// Whether the table's type can be cast to that of the rows, so that equal values stay equal and others do not become so.
fn comparable(table: &DataType, rows: &DataType) -> bool {
    use DataType as D;
    let is_text = |kind: &DataType| kind == &D::Utf8;
    match (table, rows) {
        (a, b) if a == b => !a.is_nested(),
        (D::Int32 | D::Int64, D::Int32 | D::Int64 | D::Float64) => true,
        (D::Int32 | D::Int64, D::Decimal128(..)) => true,
        (D::Decimal128(_, 0), D::Int32 | D::Int64) => true,
        (D::Decimal128(_, from), D::Decimal128(_, to)) => from <= to,
        (text, D::Int32 | D::Int64 | D::Float64 | D::Boolean | D::Date32) if is_text(text) => true,
        (D::Int32 | D::Int64 | D::Boolean | D::Decimal128(..), text) if is_text(text) => true,
        _ => false,
    }
}

/// Plans a lookup over the columns of its rows and of its table.
pub(crate) fn plan(
    model: &Model,
    at: &At,
    schema: &SchemaRef,
    table: &Schema,
    notes: &mut Notes<'_>,
) -> Option<Lookup> {
    let before = notes.errors.len();
    let place = model.shown();
    let mut keys = Vec::new();
    for (ours, theirs) in &model.keys {
        let (index, field) = (notes.column(ours, schema), column(theirs, table, &place, notes));
        let (Some(index), Some(field)) = (index, field) else { continue };
        let kind = schema.field(index).data_type();
        if !comparable(field.data_type(), kind) {
            notes.error(
                &ours.at,
                format!(
                    "`{}` is {} and `{}` of {place} is {}: they cannot be compared. Cast `{}` by a step before, or give the \
                     table's columns types by `schema`",
                    ours.value,
                    columns::type_name(kind),
                    theirs.value,
                    columns::type_name(field.data_type()),
                    ours.value
                ),
            );
        }
        keys.push((index, ours.value.clone(), (theirs.value.clone(), field.data_type().clone()), kind.clone()));
    }
    let mut fields: Vec<(&str, DataType)> =
        schema.fields().iter().map(|field| (field.name().as_str(), field.data_type().clone())).collect();
    for (theirs, name) in &model.take {
        let Some(field) = column(theirs, table, &place, notes) else { continue };
        if schema.field_with_name(&name.value).is_ok() {
            notes.error(
                &name.at,
                format!(
                    "the rows have a column `{}` already. Give the table's another name: `take: {{ {}: table_{} }}`",
                    name.value, theirs.value, name.value
                ),
            );
            continue;
        }
        fields.push((&name.value, field.data_type().clone()));
    }
    notes.distinct(at, fields.iter().map(|(name, _)| *name));
    let needed = model.columns().into_iter().filter_map(|column| {
        let field = table.field_with_name(&column.value).ok()?;
        Some((column.value.as_str(), field.data_type().clone()))
    });
    let needed = columns::schema_of(needed);
    if notes.errors.len() > before {
        return None;
    }
    Some(Lookup {
        keys: keys.iter().map(|(index, ..)| *index).collect(),
        key_names: keys.iter().map(|(_, name, ..)| name.clone()).collect(),
        table_keys: keys.iter().map(|(_, _, key, _)| key.clone()).collect(),
        kinds: keys.into_iter().map(|(.., kind)| kind).collect(),
        taken: model.take.iter().map(|(column, _)| column.value.clone()).collect(),
        given: model.take.iter().map(|(_, name)| name.value.clone()).collect(),
        on_missing: model.on_missing,
        duplicates: model.duplicates,
        table: place,
        needed,
        schema: columns::schema_of(fields),
    })
}

/// A column of the table.
fn column<'t>(
    name: &tidemill_config::Located<String>,
    table: &'t Schema,
    place: &str,
    notes: &mut Notes<'_>,
) -> Option<&'t arrow::datatypes::Field> {
    let found = table.field_with_name(&name.value).ok();
    if found.is_none() {
        let hint = columns::hint(&name.value, columns::names(table));
        notes.error(&name.at, format!("{place} has no column `{}`{hint}", name.value));
    }
    found
}

impl Lookup {
    /// The schema of the rows with what they get.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// From the columns of the output that somebody wants, the columns of the input that it takes.
    pub fn needs(&self, mut wanted: BTreeSet<String>) -> BTreeSet<String> {
        wanted.retain(|name| !self.given.contains(name));
        wanted.extend(self.key_names.iter().cloned());
        wanted
    }

    /// The lookup with the table of a batch. `chunks` are all its rows, for a table that is asked.
    pub fn join(&self, table: &Table, chunks: &[Rows], nanos: &mut u64) -> Result<Joined, AskError> {
        let fatal = |cause: String| AskError { cause: format!("{}: {cause}", self.table), transient: false };
        let begun = Instant::now();
        let (rows, index) = match table {
            Table::Whole(snapshot) => (snapshot.rows().clone(), snapshot.index(&self.kinds).map_err(fatal)?),
            Table::Asked(asked) => {
                let keys = self.distinct(chunks).map_err(|error| fatal(error.to_string()))?;
                let rows = match keys.num_rows() {
                    0 => RecordBatch::new_empty(Arc::clone(&self.needed)),
                    _ => asked.ask(&keys)?,
                };
                let keys: Vec<usize> =
                    self.table_keys.iter().filter_map(|(key, _)| rows.schema_ref().index_of(key).ok()).collect();
                let index = Index::new(&rows, &keys, &self.kinds, self.duplicates).map_err(fatal)?;
                (rows, Arc::new(index))
            }
        };
        self.check(&rows).map_err(fatal)?;
        let taken = self.taken.iter().filter_map(|name| rows.schema_ref().index_of(name).ok()).collect();
        *nanos += begun.elapsed().as_nanos() as u64;
        Ok(Joined { rows, index, taken })
    }

    /// The table must be what the step was planned for.
    fn check(&self, rows: &RecordBatch) -> Result<(), String> {
        for field in self.needed.fields() {
            let expected = columns::type_name(field.data_type());
            match rows.schema_ref().field_with_name(field.name()) {
                Ok(found) if found.data_type() == field.data_type() => {}
                Ok(found) => {
                    let found = columns::type_name(found.data_type());
                    return Err(format!("its column `{}` is {found}, not {expected}", field.name()));
                }
                Err(_) => return Err(format!("it has no column `{}` any more", field.name())),
            }
        }
        Ok(())
    }

    /// The distinct keys of all rows, as the table has them. What is no such value is in no table.
    fn distinct(&self, chunks: &[Rows]) -> Result<RecordBatch, ArrowError> {
        let mut arrays = Vec::with_capacity(self.keys.len());
        for (index, (_, kind)) in self.keys.iter().zip(&self.table_keys) {
            let parts: Vec<&dyn Array> = chunks.iter().map(|chunk| chunk.batch.column(*index).as_ref()).collect();
            arrays.push(match parts.is_empty() {
                true => arrow::array::new_empty_array(kind),
                false => cast(&concat(&parts)?, kind)?,
            });
        }
        let firsts = index::distinct(&arrays)?;
        let arrays = arrays.iter().map(|array| take(array, &firsts, None)).collect::<Result<Vec<_>, _>>()?;
        let schema = columns::schema_of(self.table_keys.iter().map(|(name, kind)| (name.as_str(), kind.clone())));
        columns::batch_of(&schema, arrays, firsts.len())
    }
}

/// A lookup as a verb, for as long as a batch goes through it.
#[derive(Debug)]
pub(crate) struct Bound<'a> {
    pub lookup: &'a Lookup,
    pub joined: &'a Joined,
}

impl Verb for Bound<'_> {
    fn apply(&self, batch: &RecordBatch, _: Option<&ArrayRef>) -> Result<Output, ArrowError> {
        let keys: Vec<ArrayRef> = self.lookup.keys.iter().map(|index| Arc::clone(batch.column(*index))).collect();
        let found = self.joined.index.find(&keys)?;
        let mut arrays = batch.columns().to_vec();
        account::expect(self.joined.bytes_of(&found))?;
        for column in &self.joined.taken {
            arrays.push(take(self.joined.rows.column(*column), &found, None)?);
        }
        let rows = columns::batch_of(&self.lookup.schema, arrays, batch.num_rows())?;
        match self.lookup.on_missing {
            _ if found.null_count() == 0 => Ok(Output { batch: rows, from: None, bad: Vec::new() }),
            OnMissing::Null => Ok(Output { batch: rows, from: None, bad: Vec::new() }),
            OnMissing::Drop => {
                let kept = is_not_null(&found)?;
                let from = kept.values().set_indices().map(|row| row as u32).collect();
                Ok(Output { batch: filter_record_batch(&rows, &kept)?, from: Some(from), bad: Vec::new() })
            }
            OnMissing::Reject => Ok(Output { bad: self.missing(&keys, &found), batch: rows, from: None }),
        }
    }

    fn needs(&self, wanted: BTreeSet<String>) -> BTreeSet<String> {
        self.lookup.needs(wanted)
    }
}

impl Joined {
    /// The bytes of the table's rows and of their index.
    pub fn bytes(&self) -> u64 {
        2 * account::bytes_of_rows(&self.rows)
    }

    /// The bytes of what these rows of the table give.
    fn bytes_of(&self, found: &UInt32Array) -> u64 {
        let columns = self.taken.iter().map(|column| self.rows.column(*column));
        let texts = columns.filter(|column| !column.data_type().is_primitive());
        let of_column = |column: &ArrayRef| -> u64 {
            found.iter().flatten().map(|row| account::values(column.as_ref(), row as usize, 1)).sum()
        };
        texts.map(of_column).sum()
    }
}

impl Bound<'_> {
    fn missing(&self, keys: &[ArrayRef], found: &UInt32Array) -> Vec<Bad> {
        let missing = (0..found.len()).filter(|row| found.is_null(*row));
        missing
            .map(|row| {
                let names = self.lookup.key_names.iter().map(String::as_str);
                let key = index::shown(names, keys, row);
                Bad { row: row as u32, reason: "lookup", detail: format!("{} has no row for {key}", self.lookup.table) }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where a cast would make two values one, or one value another, types cannot be compared.
    #[test]
    fn what_can_be_compared() {
        let decimal = |scale| DataType::Decimal128(20, scale);
        for (table, rows, expected) in [
            (DataType::Utf8, DataType::Utf8, true),
            (DataType::Utf8, DataType::Int64, true),
            (DataType::Int64, DataType::Utf8, true),
            (DataType::Int64, DataType::Int32, true),
            (DataType::Int32, DataType::Float64, true),
            (DataType::Float64, DataType::Int64, false),
            (DataType::Float64, DataType::Utf8, false),
            (DataType::Boolean, DataType::Int32, false),
            (decimal(0), DataType::Int64, true),
            (decimal(0), DataType::Float64, false),
            (decimal(2), DataType::Int64, false),
            (DataType::Int64, decimal(0), true),
            (decimal(2), decimal(4), true),
            (decimal(4), decimal(2), false),
            (DataType::Date32, DataType::Int32, false),
            (columns::timestamp(), DataType::Utf8, false),
            (columns::timestamp(), columns::timestamp(), true),
        ] {
            assert_eq!(comparable(&table, &rows), expected, "{table} with {rows}");
        }
    }
}
