//! `cast: { a: int64 }`: another type. A value that has none in the new type is a bad row.

use arrow::{
    array::{Array, ArrayRef, BooleanArray},
    compute::nullif,
    datatypes::{DataType, SchemaRef},
    error::ArrowError,
};
use tidemill_config::{Located, Type};

use super::{Kernel, Notes, Planned, replace, shown};
use crate::{
    columns,
    convert::{self, Failed},
    expression::Bad,
};

#[derive(Debug)]
struct Cast {
    column: String,
    kind: DataType,
}

impl Kernel for Cast {
    fn apply(&self, values: &ArrayRef, bad: &mut Vec<Bad>) -> Result<ArrayRef, ArrowError> {
        let mut failed = Vec::new();
        let cast = convert::convert(values, &self.kind, &mut failed)?;
        if failed.is_empty() {
            return Ok(cast);
        }
        // A list of which one item is wrong is wrong: nobody shall take it for one with a null in it.
        let mut is_wrong = vec![false; values.len()];
        for Failed { row, path, value, expected } in failed {
            is_wrong[row] = true;
            let detail = format!("column `{}{path}`: {} is no {expected}", self.column, shown(&value));
            bad.push(Bad { row: row as u32, reason: "cast", detail });
        }
        nullif(&cast, &BooleanArray::from(is_wrong))
    }
}

pub fn plan(pairs: &[(Located<String>, Located<Type>)], schema: &SchemaRef, notes: &mut Notes<'_>) -> Planned {
    let mut kernels = Vec::new();
    for (name, kind) in pairs {
        let Some(index) = notes.column(name, schema) else { continue };
        let (before, after) = (schema.field(index).data_type(), columns::data_type(&kind.value));
        match convert::is_possible(before, &after) {
            Ok(()) => kernels.push((index, after.clone(), Cast { column: name.value.clone(), kind: after })),
            Err(message) => notes.error(&kind.at, format!("`{}` {message}", name.value)),
        }
    }
    replace(schema, kernels)
}
