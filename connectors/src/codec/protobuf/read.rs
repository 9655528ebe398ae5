//! Fields of messages into columns.

use std::borrow::Cow;

use arrow::datatypes::{DataType, Fields};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage as _, Value};

use super::{
    columns::{Known, known},
    json,
};
use crate::codec::{
    column::{Column, Data, complete},
    rows::Bad,
    scalar::{self, Scalar},
};

/// A field that has a column.
pub(super) struct Field {
    descriptor: FieldDescriptor,
    at: usize,
    kind: Kind,
    plan: Plan,
}

/// How its value gets there.
enum Plan {
    Single,
    /// The text of its JSON.
    Json,
    List(Box<Plan>),
    Message(Vec<Field>),
}

/// The fields of a message that these columns name.
pub(super) fn fields(message: &MessageDescriptor, columns: &Fields) -> Vec<Field> {
    let with_column = |(at, column): (usize, &arrow::datatypes::FieldRef)| {
        let descriptor = message.get_field_by_name(column.name())?;
        let plan = if descriptor.is_map() {
            Plan::Json
        } else {
            match (descriptor.is_list(), column.data_type()) {
                (true, DataType::List(item)) => Plan::List(Box::new(plan(&descriptor.kind(), item.data_type()))),
                (true, _) => Plan::Json,
                (false, kind) => plan(&descriptor.kind(), kind),
            }
        };
        Some(Field { kind: descriptor.kind(), descriptor, at, plan })
    };
    columns.iter().enumerate().filter_map(with_column).collect()
}

fn plan(kind: &Kind, column: &DataType) -> Plan {
    let Kind::Message(message) = kind else { return Plan::Single };
    match (known(message), column) {
        (Some(Known::Timestamp | Known::Wrapper | Known::Duration), _) => Plan::Single,
        (None, DataType::Struct(columns)) => Plan::Message(fields(message, columns)),
        _ => Plan::Json,
    }
}

/// One message as one row of `columns`; those that get nothing are left for [`complete`].
pub(super) fn message(fields: &[Field], message: &DynamicMessage, columns: &mut [Column]) -> Result<(), Bad> {
    for field in fields {
        let Some(column) = columns.get_mut(field.at) else { continue };
        // A field without presence that is not there has its default.
        if field.descriptor.supports_presence() && !message.has_field(&field.descriptor) {
            column.null();
            continue;
        }
        let value = message.get_field(&field.descriptor);
        field.plan.read(&field.kind, &value, column).map_err(|bad| bad.inside(field.descriptor.name()))?;
    }
    Ok(())
}

impl Plan {
    fn read(&self, kind: &Kind, value: &Value, column: &mut Column) -> Result<(), Bad> {
        match (self, value) {
            (Self::List(plan), Value::List(items)) => {
                let Data::List { offsets, item: inner, .. } = &mut column.data else {
                    return Err(json_for(kind, value, column));
                };
                for item in items {
                    plan.read(kind, item, inner)?;
                }
                offsets.push(inner.len() as i32);
                column.some();
                Ok(())
            }
            (Self::Message(fields), Value::Message(inner)) => {
                let row = column.len();
                let Data::Struct { columns, .. } = &mut column.data else { return Err(json_for(kind, value, column)) };
                message(fields, inner, columns)?;
                complete(columns, row);
                column.some();
                Ok(())
            }
            (Self::Single, _) => single(kind, value, |value| match value {
                Some(value) if scalar::put(column, &value) => Ok(()),
                Some(value) => Err(mismatch(column, scalar::shown(&value))),
                None => {
                    column.null();
                    Ok(())
                }
            }),
            _ => {
                let Data::Text(values) = &mut column.data else { return Err(json_for(kind, value, column)) };
                json::value(kind, value, &mut values.bytes)?;
                values.end();
                column.some();
                Ok(())
            }
        }
    }
}

/// A value of a column that it does not fit.
#[cold]
fn json_for(kind: &Kind, value: &Value, column: &Column) -> Bad {
    let mut out = Vec::new();
    match json::value(kind, value, &mut out) {
        Ok(()) => mismatch(column, crate::codec::rows::shown(&out)),
        Err(bad) => bad,
    }
}

#[cold]
fn mismatch(column: &Column, value: String) -> Bad {
    Bad::Type { column: String::new(), value, expected: column.expected() }
}

/// Gives a value that is no list, map or message of its own to `then`; `None`: it is null.
pub(super) fn single<T>(
    kind: &Kind,
    value: &Value,
    then: impl FnOnce(Option<Scalar<'_>>) -> Result<T, Bad>,
) -> Result<T, Bad> {
    let scalar = match value {
        Value::Bool(value) => Scalar::Boolean(*value),
        Value::I32(value) => Scalar::Integer(i64::from(*value)),
        Value::I64(value) => Scalar::Integer(*value),
        Value::U32(value) => Scalar::Integer(i64::from(*value)),
        Value::U64(value) => Scalar::Decimal(i128::from(*value), 0),
        Value::F32(value) => Scalar::Single(*value),
        Value::F64(value) => Scalar::Double(*value),
        Value::String(value) => Scalar::Text(value),
        Value::Bytes(value) => Scalar::Binary(value),
        Value::EnumNumber(number) => return then(Some(Scalar::Text(&symbol(kind, *number)))),
        Value::Message(message) => match (known(&message.descriptor()), message.descriptor().get_field(1)) {
            (Some(Known::Timestamp), _) => Scalar::Stamp(stamp(message)?),
            (Some(Known::Duration), _) => return then(Some(Scalar::Text(&duration(message)))),
            // Where it holds nothing it holds the default: the wrapper itself is there.
            (Some(Known::Wrapper), Some(field)) => return single(&field.kind(), &message.get_field(&field), then),
            _ => return then(None),
        },
        Value::List(_) | Value::Map(_) => return then(None),
    };
    then(Some(scalar))
}

/// The name of an enum's number; its digits where the descriptor is older than the record.
fn symbol(kind: &Kind, number: i32) -> Cow<'static, str> {
    let name = kind.as_enum().and_then(|kind| kind.get_value(number)).map(|value| value.name().to_owned());
    name.unwrap_or_else(|| number.to_string()).into()
}

fn parts(message: &DynamicMessage) -> (i64, i64) {
    let part = |number| message.get_field_by_number(number);
    let seconds = part(1).and_then(|value| value.as_i64()).unwrap_or_default();
    (seconds, part(2).and_then(|value| value.as_i32()).map_or(0, i64::from))
}

/// Microseconds; what is smaller is cut off.
fn stamp(message: &DynamicMessage) -> Result<i64, Bad> {
    let (seconds, nanos) = parts(message);
    seconds.checked_mul(1_000_000).and_then(|micros| micros.checked_add(nanos.div_euclid(1_000))).ok_or_else(|| {
        Bad::Other("bad_protobuf", format!("a timestamp of {seconds} seconds is beyond the year 294247"))
    })
}

/// As Protobuf's own JSON has it: `1.5s`.
pub(super) fn duration(message: &DynamicMessage) -> String {
    let (seconds, nanos) = parts(message);
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    let fraction = format!("{:09}", nanos.unsigned_abs());
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{}{point}{fraction}s", seconds.unsigned_abs())
}
