//! `cast: { a: int64 }`: another type. A value that has none in the new type is a bad row.

use arrow::{
    array::{Array, ArrayRef},
    compute::{CastOptions, can_cast_types, cast_with_options},
    datatypes::{DataType, SchemaRef},
    error::ArrowError,
    util::display::{ArrayFormatter, FormatOptions},
};
use tidemill_config::{Located, Type};

use super::{Kernel, Notes, Planned, replace, shown};
use crate::{columns, expression::Bad};

#[derive(Debug)]
struct Cast {
    column: String,
    kind: DataType,
}

impl Kernel for Cast {
    fn apply(&self, values: &ArrayRef, bad: &mut Vec<Bad>) -> Result<ArrayRef, ArrowError> {
        // The safe cast gives null for what cannot be cast: the rows are those that were not null before.
        let cast = cast_with_options(values, &self.kind, &CastOptions { safe: true, ..CastOptions::default() })?;
        if cast.null_count() > values.null_count() {
            let display = ArrayFormatter::try_new(values, &FormatOptions::default())?;
            for row in 0..values.len() {
                if cast.is_null(row) && values.is_valid(row) {
                    let value = shown(&display.value(row).to_string());
                    let detail = format!("column `{}`: {value} is no {}", self.column, columns::type_name(&self.kind));
                    bad.push(Bad { row: row as u32, reason: "cast", detail });
                }
            }
        }
        Ok(cast)
    }
}

pub fn plan(pairs: &[(Located<String>, Located<Type>)], schema: &SchemaRef, notes: &mut Notes<'_>) -> Planned {
    let mut kernels = Vec::new();
    for (name, kind) in pairs {
        let Some(index) = notes.column(name, schema) else { continue };
        let (before, after) = (schema.field(index).data_type(), columns::data_type(&kind.value));
        if can_cast_types(before, &after) {
            kernels.push((index, after.clone(), Cast { column: name.value.clone(), kind: after }));
        } else {
            let (before, after) = (columns::type_name(before), columns::type_name(&after));
            notes.error(&kind.at, format!("`{}` is {before}, which cannot be cast to {after}", name.value));
        }
    }
    replace(schema, kernels)
}
