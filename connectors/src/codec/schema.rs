//! Schemas: from a job's types to Arrow's.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use tidemill_config::model::{self, Type};

/// The Arrow type of a job's type. Timestamps are microseconds, UTC.
pub fn data_type(kind: &Type) -> DataType {
    match kind {
        Type::String => DataType::Utf8,
        Type::Int32 => DataType::Int32,
        Type::Int64 => DataType::Int64,
        Type::Float64 => DataType::Float64,
        Type::Boolean => DataType::Boolean,
        Type::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        Type::Date => DataType::Date32,
        Type::Decimal(precision, scale) => DataType::Decimal128(*precision, *scale),
        Type::Binary => DataType::Binary,
        Type::List(item) => DataType::List(Arc::new(Field::new_list_field(data_type(item), true))),
        Type::Struct(fields) => DataType::Struct(
            fields.iter().map(|(name, kind)| Field::new(name, data_type(kind), true)).collect::<Fields>(),
        ),
    }
}

/// The Arrow schema of a job's columns: every column may be null.
pub fn to_arrow(fields: &[model::Field]) -> SchemaRef {
    let fields: Fields =
        fields.iter().map(|field| Field::new(&field.name, data_type(&field.kind.value), true)).collect();
    Arc::new(Schema::new(fields))
}
