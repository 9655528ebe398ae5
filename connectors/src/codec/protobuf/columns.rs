//! The columns of a message.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field as Column, Fields, Schema, SchemaRef, TimeUnit};
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

use crate::codec::json::MAX_COLUMNS;

/// Messages that mean more than their fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Timestamp,
    Duration,
    /// A scalar that may be absent: the field `value`.
    Wrapper,
    /// JSON as a message.
    Struct,
    Value,
    ListValue,
}

/// What is known of a message by its name.
pub(super) fn known(message: &MessageDescriptor) -> Option<Known> {
    Some(match message.full_name().strip_prefix("google.protobuf.")? {
        "Timestamp" => Known::Timestamp,
        "Duration" => Known::Duration,
        "Struct" => Known::Struct,
        "Value" => Known::Value,
        "ListValue" => Known::ListValue,
        "DoubleValue" | "FloatValue" | "Int64Value" | "UInt64Value" | "Int32Value" | "UInt32Value" | "BoolValue"
        | "StringValue" | "BytesValue" => Known::Wrapper,
        _ => return None,
    })
}

/// A column for each field.
pub(super) fn of_message(message: &MessageDescriptor) -> Result<SchemaRef, String> {
    let fields = fields(message, &mut vec![message.clone()], &mut 0)?;
    if fields.is_empty() {
        return Err("it has no fields".into());
    }
    Ok(Arc::new(Schema::new(fields)))
}

fn fields(
    message: &MessageDescriptor,
    inside: &mut Vec<MessageDescriptor>,
    made: &mut usize,
) -> Result<Fields, String> {
    *made += message.fields().len();
    if *made > MAX_COLUMNS {
        return Err(format!("it has more than {MAX_COLUMNS} fields: name the columns by `schema`"));
    }
    let columns = message.fields().map(|field| Ok(Column::new(field.name(), kind(&field, inside, made)?, true)));
    columns.collect()
}

fn kind(field: &FieldDescriptor, inside: &mut Vec<MessageDescriptor>, made: &mut usize) -> Result<DataType, String> {
    if field.is_map() {
        return Ok(DataType::Utf8);
    }
    let kind = of_kind(&field.kind(), inside, made)?;
    Ok(if field.is_list() { DataType::List(Arc::new(Column::new_list_field(kind, true))) } else { kind })
}

fn of_kind(kind: &Kind, inside: &mut Vec<MessageDescriptor>, made: &mut usize) -> Result<DataType, String> {
    Ok(match kind {
        Kind::Bool => DataType::Boolean,
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => DataType::Int32,
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 | Kind::Uint32 | Kind::Fixed32 => DataType::Int64,
        // Twenty digits: no integer column holds them all.
        Kind::Uint64 | Kind::Fixed64 => DataType::Decimal128(20, 0),
        Kind::Float | Kind::Double => DataType::Float64,
        Kind::Bytes => DataType::Binary,
        Kind::String | Kind::Enum(_) => DataType::Utf8,
        Kind::Message(message) => match known(message) {
            Some(Known::Timestamp) => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Some(Known::Wrapper) => match message.get_field(1) {
                Some(value) => of_kind(&value.kind(), inside, made)?,
                None => DataType::Utf8,
            },
            Some(_) => DataType::Utf8,
            // A message inside of itself has no end, and one without fields no columns.
            None if inside.contains(message) || message.fields().len() == 0 => DataType::Utf8,
            None => {
                inside.push(message.clone());
                let fields = fields(message, inside, made);
                inside.pop();
                DataType::Struct(fields?)
            }
        },
    })
}
