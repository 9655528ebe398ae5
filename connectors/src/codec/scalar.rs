//! Single values of formats that know types, into columns that may have another: what Avro and Protobuf share. Where types
//! differ, a value goes by its text, with the rules that a JSON number or text has.

use super::{
    column::{Column, Data},
    names::base64,
    time::{Stamps, write_date},
    values::{decimal, number, quoted},
};

/// Microseconds of a second.
const MICROS: i64 = 1_000_000;
const DAY_MICROS: i64 = 86_400 * MICROS;

/// A value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scalar<'a> {
    Boolean(bool),
    Integer(i64),
    Single(f32),
    Double(f64),
    Text(&'a str),
    Binary(&'a [u8]),
    /// Microseconds since the epoch, UTC.
    Stamp(i64),
    /// Days since the epoch.
    Date(i32),
    /// `value / 10^scale`.
    Decimal(i128, i8),
}

/// Appends the value to a column; false, and nothing is appended, where it does not fit the column's type.
pub(super) fn put(column: &mut Column, value: &Scalar<'_>) -> bool {
    match (value, &mut column.data) {
        (Scalar::Boolean(value), Data::Boolean(values)) => values.push(*value),
        (Scalar::Integer(value), Data::Int64(values)) => values.push(*value),
        (Scalar::Integer(value), Data::Int32(values)) => match i32::try_from(*value) {
            Ok(value) => values.push(value),
            Err(_) => return false,
        },
        #[allow(clippy::cast_precision_loss)] // Avro promotes so, and JSON numbers are read so
        (Scalar::Integer(value), Data::Float64(values)) => values.push(*value as f64),
        (Scalar::Single(value), Data::Float64(values)) => values.push(f64::from(*value)),
        (Scalar::Double(value), Data::Float64(values)) => values.push(*value),
        (Scalar::Text(value), Data::Text(_)) => return column.text(value.as_bytes()),
        (Scalar::Text(value), Data::Binary(values)) => {
            values.bytes.extend_from_slice(value.as_bytes());
            values.end();
        }
        (Scalar::Binary(value), Data::Binary(values)) => {
            values.bytes.extend_from_slice(value);
            values.end();
        }
        (Scalar::Binary(value), Data::Text(_)) => return std::str::from_utf8(value).is_ok() && column.text(value),
        (Scalar::Stamp(value), Data::Timestamp(values, _)) => values.push(*value),
        (Scalar::Stamp(value), Data::Date(values)) => match i32::try_from(value.div_euclid(DAY_MICROS)) {
            Ok(day) => values.push(day),
            Err(_) => return false,
        },
        (Scalar::Date(value), Data::Date(values)) => values.push(*value),
        (Scalar::Date(value), Data::Timestamp(values, _)) => match i64::from(*value).checked_mul(DAY_MICROS) {
            Some(stamp) => values.push(stamp),
            None => return false,
        },
        (Scalar::Decimal(value, scale), Data::Decimal(values, precision, wanted))
            if scale == wanted && value.unsigned_abs() < 10_u128.pow(u32::from(*precision)) =>
        {
            values.push(*value);
        }
        _ => return by_text(column, value),
    }
    column.some();
    true
}

#[cold]
fn by_text(column: &mut Column, value: &Scalar<'_>) -> bool {
    let mut out = Vec::new();
    text(value, &mut out);
    match value {
        Scalar::Boolean(_) | Scalar::Stamp(_) | Scalar::Date(_) => column.text(&out),
        Scalar::Integer(_) | Scalar::Single(_) | Scalar::Double(_) | Scalar::Decimal(..) => column.number(&out),
        Scalar::Text(_) => column.parse(&out),
        Scalar::Binary(_) => false,
    }
}

/// Appends the value as a text column has it.
pub(super) fn text(value: &Scalar<'_>, out: &mut Vec<u8>) {
    match value {
        Scalar::Boolean(value) => out.extend_from_slice(if *value { b"true" } else { b"false" }),
        Scalar::Integer(value) => number(*value, out),
        // Its exact value, as the column of the same value has it.
        Scalar::Single(value) => number(f64::from(*value), out),
        Scalar::Double(value) => number(*value, out),
        Scalar::Text(value) => out.extend_from_slice(value.as_bytes()),
        Scalar::Binary(value) => out.extend_from_slice(base64(value).as_bytes()),
        Scalar::Stamp(value) => Stamps::default().write(*value, MICROS, out),
        Scalar::Date(value) => write_date(i64::from(*value), out),
        Scalar::Decimal(value, scale) => decimal(*value, *scale, out),
    }
}

/// Appends the value as JSON, as the json codec writes its type.
pub(super) fn json(value: &Scalar<'_>, out: &mut Vec<u8>) {
    match value {
        Scalar::Text(value) => quoted(value.as_bytes(), out),
        Scalar::Single(value) if !value.is_finite() => out.extend_from_slice(b"null"),
        Scalar::Double(value) if !value.is_finite() => out.extend_from_slice(b"null"),
        Scalar::Binary(_) | Scalar::Stamp(_) | Scalar::Date(_) => {
            out.push(b'"');
            text(value, out);
            out.push(b'"');
        }
        _ => text(value, out),
    }
}

/// The value as a message shows it.
pub(super) fn shown(value: &Scalar<'_>) -> String {
    let mut out = Vec::new();
    json(value, &mut out);
    super::rows::shown(&out)
}
