//! What a step takes: the rows of one node, or of several united by the names of their columns.

use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};

use crate::columns;

/// Nodes united: first all rows of the first, then all of the second.
#[derive(Clone, Debug)]
pub struct Union {
    /// The nodes.
    pub inputs: Vec<usize>,
    /// All their columns, in the order of first appearance; null where a node lacks one.
    pub schema: SchemaRef,
}

/// The schema of several, by name. A name with two types is an error for each.
pub fn unite(parts: &[(&str, &SchemaRef)]) -> Result<SchemaRef, Vec<String>> {
    if let [(_, only)] = parts {
        return Ok(Arc::clone(only));
    }
    let (mut united, mut errors): (Vec<(&str, DataType, &str)>, _) = (Vec::new(), Vec::new());
    for (part, schema) in parts {
        for field in schema.fields() {
            match united.iter().find(|(name, ..)| name == field.name()) {
                None => united.push((field.name(), field.data_type().clone(), part)),
                Some((_, kind, _)) if kind == field.data_type() => {}
                Some((name, kind, first)) => errors.push(format!(
                    "column `{name}` is {} in `{first}` and {} in `{part}`: they cannot be united. Cast one of them before, \
                     or give it one type in the sources' `schema`",
                    columns::type_name(kind),
                    columns::type_name(field.data_type()),
                )),
            }
        }
    }
    match errors.is_empty() {
        true => Ok(columns::schema_of(united.into_iter().map(|(name, kind, _)| (name, kind)))),
        false => Err(errors),
    }
}
