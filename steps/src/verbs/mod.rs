//! The row-wise verbs. A verb is planned once over the schema of its input ([`plan`]) and then applied to slices
//! ([`Verb::apply`]). It keeps the order of rows, says from which input row each output row comes, and names the rows that
//! it could not process; what becomes of those (`on_error`) is not its business.
//!
//! To add a verb: its file here, one arm in [`plan`], one variant in the job's model, one page in `docs/steps.md`.

mod add;
mod cast;
mod filter;
mod parse_timestamp;
mod shape;
mod split;
mod text;
mod timestamps;

use std::{collections::BTreeSet, fmt::Debug, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch},
    datatypes::{DataType, SchemaRef},
    error::ArrowError,
};
use tidemill_config::{At, Located, Verb as Model};

use crate::{
    PlanError, columns,
    expression::{Bad, Expression},
};

pub use filter::Filter;

/// Formats and zone of `parse_timestamp`: what is wrong with them goes to `notes`.
pub fn check_formats(formats: &[Located<String>], zone: Option<&Located<String>>, notes: &mut Notes<'_>) {
    let _ = parse_timestamp::check(formats, zone, notes);
}

/// What a verb makes of a slice.
#[derive(Debug)]
pub struct Output {
    /// The rows. Rows that could not be processed are in it, with null in the column that could not be made.
    pub batch: RecordBatch,
    /// For each row the index of the input row that it comes from, ascending; `None`: row for row.
    pub from: Option<Vec<u32>>,
    /// Rows of the input that could not be processed.
    pub bad: Vec<Bad>,
}

/// A planned, row-wise transformation.
pub trait Verb: Send + Sync + Debug {
    /// Transforms a slice. `keys` tells its rows apart, where [`Verb::is_seeded`].
    fn apply(&self, batch: &RecordBatch, keys: Option<&ArrayRef>) -> Result<Output, ArrowError>;

    /// From the columns of the output that somebody wants, the columns of the input that it takes to make them.
    fn needs(&self, wanted: BTreeSet<String>) -> BTreeSet<String>;

    /// Whether rows need keys, for `random()` and `uuid()`.
    fn is_seeded(&self) -> bool {
        false
    }
}

/// A verb and the schema that it gives.
#[derive(Debug)]
pub struct Planned {
    /// The verb.
    pub verb: Box<dyn Verb>,
    /// Its output.
    pub schema: SchemaRef,
}

/// What planning a step collects.
pub struct Notes<'a> {
    /// All errors so far.
    pub errors: &'a mut Vec<PlanError>,
    /// Calls of `random()` and `uuid()` so far.
    pub calls: &'a mut u64,
    /// The step, for messages.
    pub step: &'a str,
    /// Columns that nobody needs are left out of the input: a `drop` of one of them is no error.
    pub pruned: bool,
}

impl Notes<'_> {
    /// An error at a place.
    pub fn error(&mut self, at: &At, message: impl std::fmt::Display) {
        self.errors.push(PlanError { at: Some(at.clone()), message: format!("step {}: {message}", self.step) });
    }

    /// The index of a column; an error with the nearest name where there is none.
    pub fn column(&mut self, name: &Located<String>, schema: &SchemaRef) -> Option<usize> {
        let found = schema.index_of(&name.value).ok();
        if found.is_none() {
            self.error(
                &name.at,
                format!("no column `{}`{}", name.value, columns::hint(&name.value, columns::names(schema))),
            );
        }
        found
    }

    /// The index of a text column.
    pub fn text_column(
        &mut self,
        name: &Located<String>,
        schema: &SchemaRef,
        verb: &str,
        instead: &str,
    ) -> Option<usize> {
        let index = self.column(name, schema)?;
        match schema.field(index).data_type() {
            DataType::Utf8 => Some(index),
            kind => {
                let kind = columns::type_name(kind);
                self.error(&name.at, format!("`{}` is {kind}: `{verb}` takes a string. {instead}", name.value));
                None
            }
        }
    }

    /// An expression over `schema`.
    pub fn expression(&mut self, text: &Located<String>, schema: &SchemaRef) -> Option<Expression> {
        match Expression::plan(&text.value, schema, self.calls) {
            Ok(expression) => Some(expression),
            Err(message) => {
                self.error(&text.at, format!("`{}`: {message}", text.value));
                None
            }
        }
    }

    /// An expression that is true or not.
    pub fn condition(&mut self, text: &Located<String>, schema: &SchemaRef) -> Option<Expression> {
        let expression = self.expression(text, schema)?;
        if expression.kind() == &DataType::Boolean {
            return Some(expression);
        }
        let kind = columns::type_name(expression.kind());
        self.error(
            &text.at,
            format!("`{}` gives {kind}, a condition gives boolean. Compare it with something", text.value),
        );
        None
    }

    /// Says so where two columns of a list have one name.
    pub fn distinct<'n>(&mut self, at: &At, names: impl IntoIterator<Item = &'n str>) {
        let mut seen = BTreeSet::new();
        for name in names {
            if !seen.insert(name) {
                self.error(at, format!("two columns would be named `{name}`. Rename or drop one of them"));
            }
        }
    }
}

/// Plans a row-wise verb; `None` for `sql`, which is not one, and for `lookup`, which needs a table. Errors go to `notes`; planning goes on with what is right.
pub fn plan(model: &Model, at: &At, schema: &SchemaRef, notes: &mut Notes<'_>) -> Option<Planned> {
    Some(match model {
        Model::Select(names) => shape::select(names, at, schema, notes),
        Model::Drop(names) => shape::drop(names, schema, notes),
        Model::Rename(pairs) => shape::rename(pairs, at, schema, notes),
        Model::Cast(pairs) => cast::plan(pairs, schema, notes),
        Model::Trim(names) => text::plan(text::Change::Trim, names, schema, notes),
        Model::Lowercase(names) => text::plan(text::Change::Lower, names, schema, notes),
        Model::Uppercase(names) => text::plan(text::Change::Upper, names, schema, notes),
        Model::Split { column, by, into } if into.is_empty() => split::rows(column, by, at, schema, notes),
        Model::Split { column, by, into } => split::columns(column, by, into, at, schema, notes),
        Model::Filter(text) => filter::condition(text, schema, notes),
        Model::Add(pairs) => add::plan(pairs, schema, notes),
        Model::ParseTimestamp { column, formats, zone } => {
            parse_timestamp::plan(column, formats, zone.as_ref(), schema, notes)
        }
        Model::DropEmpty(names) => filter::drop_empty(names, schema, notes),
        Model::DropNulls(names) => filter::drop_nulls(names, schema, notes),
        Model::Sql(_) | Model::Lookup(_) => return None,
    })
}

/// A kernel of one column: new values, and the rows that have none. It gets the column and where to tell bad rows.
trait Kernel: Send + Sync + Debug {
    fn apply(&self, values: &ArrayRef, bad: &mut Vec<Bad>) -> Result<ArrayRef, ArrowError>;
}

/// Some columns replaced by what a kernel makes of them, the others as they are.
#[derive(Debug)]
struct Replace<K> {
    kernels: Vec<(usize, K)>,
    names: Vec<String>,
    schema: SchemaRef,
}

impl<K: Kernel> Verb for Replace<K> {
    fn apply(&self, batch: &RecordBatch, _: Option<&ArrayRef>) -> Result<Output, ArrowError> {
        let (mut arrays, mut bad) = (batch.columns().to_vec(), Vec::new());
        for (index, kernel) in &self.kernels {
            arrays[*index] = kernel.apply(&arrays[*index], &mut bad)?;
        }
        let batch = columns::batch_of(&self.schema, arrays, batch.num_rows())?;
        Ok(Output { batch, from: None, bad })
    }
    fn needs(&self, mut wanted: BTreeSet<String>) -> BTreeSet<String> {
        wanted.extend(self.names.iter().cloned());
        wanted
    }
}

/// The plan of a verb that replaces columns, each by a type and a kernel.
fn replace<K: Kernel + 'static>(schema: &SchemaRef, kernels: Vec<(usize, DataType, K)>) -> Planned {
    let mut kinds: Vec<DataType> = schema.fields().iter().map(|field| field.data_type().clone()).collect();
    for (index, kind, _) in &kernels {
        kinds[*index] = kind.clone();
    }
    let schema = columns::schema_of(columns::names(schema).into_iter().zip(kinds));
    let names = kernels.iter().map(|(index, ..)| schema.field(*index).name().clone()).collect();
    let kernels = kernels.into_iter().map(|(index, _, kernel)| (index, kernel)).collect();
    Planned { verb: Box::new(Replace { kernels, names, schema: Arc::clone(&schema) }), schema }
}

/// At most this much of a value is shown in a message.
const SHOWN: usize = 60;

/// A value as a message shows it.
pub(crate) fn shown(value: &str) -> String {
    match value.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}...", &value[..end]),
        None => format!("{value:?}"),
    }
}
