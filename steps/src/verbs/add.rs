//! `add: { name: EXPR }`: new columns, and columns replaced. Each expression sees the columns before it.

use std::{collections::BTreeSet, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch},
    datatypes::{DataType, SchemaRef},
    error::ArrowError,
};
use tidemill_config::Located;

use super::{Notes, Output, Planned, Verb};
use crate::{columns, expression::Expression};

#[derive(Debug)]
struct Add {
    /// In order: the column's name, its expression, and the schema after it.
    columns: Vec<(String, Expression, SchemaRef)>,
}

impl Verb for Add {
    fn apply(&self, batch: &RecordBatch, keys: Option<&ArrayRef>) -> Result<Output, ArrowError> {
        let (mut batch, mut bad) = (batch.clone(), Vec::new());
        for (name, expression, schema) in &self.columns {
            let values = expression.evaluate(&batch, keys, &mut bad)?;
            let mut arrays = batch.columns().to_vec();
            match batch.schema_ref().index_of(name) {
                Ok(index) => arrays[index] = values,
                Err(_) => arrays.push(values),
            }
            batch = columns::batch_of(schema, arrays, batch.num_rows())?;
        }
        Ok(Output { batch, from: None, bad })
    }
    fn needs(&self, mut wanted: BTreeSet<String>) -> BTreeSet<String> {
        // A column that is replaced is needed too: it gives the new one its place.
        for (_, expression, _) in &self.columns {
            wanted.extend(expression.columns().iter().cloned());
        }
        wanted
    }
    fn is_seeded(&self) -> bool {
        self.columns.iter().any(|(_, expression, _)| expression.is_seeded())
    }
}

pub fn plan(pairs: &[(Located<String>, Located<String>)], schema: &SchemaRef, notes: &mut Notes<'_>) -> Planned {
    let (mut schema, mut added) = (Arc::clone(schema), Vec::new());
    for (name, text) in pairs {
        let expression = notes.expression(text, &schema);
        // Where the expression is wrong, what comes later is still checked as if it were text.
        let kind = expression.as_ref().map_or(DataType::Utf8, |expression| expression.kind().clone());
        schema = with_column(&schema, &name.value, kind);
        added.extend(expression.map(|expression| (name.value.clone(), expression, Arc::clone(&schema))));
    }
    Planned { verb: Box::new(Add { columns: added }), schema }
}

/// The schema with a column replaced in its place, or added at the end.
pub fn with_column(schema: &SchemaRef, name: &str, kind: DataType) -> SchemaRef {
    let mut columns: Vec<(&str, DataType)> =
        schema.fields().iter().map(|field| (field.name().as_str(), field.data_type().clone())).collect();
    match columns.iter_mut().find(|(known, _)| *known == name) {
        Some(column) => column.1 = kind,
        None => columns.push((name, kind)),
    }
    columns::schema_of(columns)
}
