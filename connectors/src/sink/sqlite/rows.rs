//! Rows of record batches into a prepared statement; what SQLite refuses becomes a reject.

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
        StringViewArray,
    },
    datatypes::{DataType, Date32Type, Float32Type, Int8Type, Int16Type, TimeUnit, UInt8Type, UInt16Type, UInt32Type},
};
use rusqlite::{
    Connection, ErrorCode, Statement,
    types::{ToSqlOutput, Value, ValueRef},
};
use serde_json::Value as Json;
use tidemill_checkpoint::Permit;

use super::{
    database::{Doing, Failure},
    table::Table,
};
use crate::sink::{SinkError, SinkReject, cell};

/// A column, looked up once per batch instead of once per cell.
enum Column<'a> {
    Text(&'a StringArray),
    View(&'a StringViewArray),
    Int32(&'a Int32Array),
    Int64(&'a Int64Array),
    Float64(&'a Float64Array),
    Boolean(&'a BooleanArray),
    Time(&'a ArrayRef, TimeUnit),
    Other(&'a ArrayRef),
}

impl<'a> Column<'a> {
    fn new(array: &'a ArrayRef) -> Self {
        match array.data_type() {
            DataType::Utf8 => Self::Text(array.as_string()),
            DataType::Utf8View => Self::View(array.as_string_view()),
            DataType::Int32 => Self::Int32(array.as_primitive()),
            DataType::Int64 => Self::Int64(array.as_primitive()),
            DataType::Float64 => Self::Float64(array.as_primitive()),
            DataType::Boolean => Self::Boolean(array.as_boolean()),
            DataType::Timestamp(unit, _) => Self::Time(array, *unit),
            _ => Self::Other(array),
        }
    }

    fn value(&self, row: usize) -> ToSqlOutput<'a> {
        let text = |text: &'a str| ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes()));
        match self {
            Self::Text(array) if array.is_valid(row) => text(array.value(row)),
            Self::View(array) if array.is_valid(row) => text(array.value(row)),
            Self::Int32(array) if array.is_valid(row) => ToSqlOutput::Owned(Value::Integer(array.value(row).into())),
            Self::Int64(array) if array.is_valid(row) => ToSqlOutput::Owned(Value::Integer(array.value(row))),
            Self::Float64(array) if array.is_valid(row) => ToSqlOutput::Owned(Value::Real(array.value(row))),
            Self::Boolean(array) if array.is_valid(row) => ToSqlOutput::Owned(Value::Integer(array.value(row).into())),
            Self::Time(array, unit) if array.is_valid(row) => {
                let text = cell::timestamp_text(array, row, *unit).unwrap_or_else(|| cell::text(array, row));
                ToSqlOutput::Owned(Value::Text(text))
            }
            Self::Other(array) if array.is_valid(row) => other(array, row),
            _ => ToSqlOutput::Owned(Value::Null),
        }
    }
}

fn other(array: &ArrayRef, row: usize) -> ToSqlOutput<'_> {
    ToSqlOutput::Owned(match array.data_type() {
        DataType::LargeUtf8 => {
            return ToSqlOutput::Borrowed(ValueRef::Text(array.as_string::<i64>().value(row).as_bytes()));
        }
        DataType::Binary => return ToSqlOutput::Borrowed(ValueRef::Blob(array.as_binary::<i32>().value(row))),
        DataType::LargeBinary => return ToSqlOutput::Borrowed(ValueRef::Blob(array.as_binary::<i64>().value(row))),
        DataType::BinaryView => return ToSqlOutput::Borrowed(ValueRef::Blob(array.as_binary_view().value(row))),
        DataType::Float32 => Value::Real(array.as_primitive::<Float32Type>().value(row).into()),
        DataType::Int8 => Value::Integer(array.as_primitive::<Int8Type>().value(row).into()),
        DataType::Int16 => Value::Integer(array.as_primitive::<Int16Type>().value(row).into()),
        DataType::UInt8 => Value::Integer(array.as_primitive::<UInt8Type>().value(row).into()),
        DataType::UInt16 => Value::Integer(array.as_primitive::<UInt16Type>().value(row).into()),
        DataType::UInt32 => Value::Integer(array.as_primitive::<UInt32Type>().value(row).into()),
        DataType::Date32 => {
            let days = array.as_primitive::<Date32Type>().value(row);
            Value::Text(cell::date_text(days).unwrap_or_else(|| cell::text(array, row)))
        }
        _ => Value::Text(cell::text(array, row)),
    })
}

/// Writes all rows in order; returns those that the table refuses. Fails only where the batch as a whole cannot go on.
pub(super) fn write(
    connection: &Connection,
    table: &Table,
    permit: &Permit,
    batches: &[RecordBatch],
) -> Result<Vec<SinkReject>, Failure> {
    let mut rejects = Vec::new();
    let mut before = 0;
    for batch in batches.iter().filter(|batch| batch.num_rows() > 0) {
        let columns: Vec<Column<'_>> = batch.columns().iter().map(Column::new).collect();
        let keys: Vec<&ArrayRef> = table.key.iter().filter_map(|key| batch.column_by_name(key)).collect();
        let mut insert = connection.prepare_cached(&table.insert(batch.schema_ref())).doing("writing rows to")?;
        for row in 0..batch.num_rows() {
            let refusal = if keys.iter().any(|key| key.is_null(row)) {
                Some(("null_key", "a key column of the upsert is null".to_owned()))
            } else {
                match write_row(&mut insert, &columns, row) {
                    Ok(()) => None,
                    Err(error) => Some(refusal(connection, error)?),
                }
            };
            if let Some((reason, detail)) = refusal {
                let plan = &permit.mark().plan;
                let record = Json::Object(cell::record(batch, row)).to_string();
                let row = before + row as u64;
                rejects.push(SinkReject {
                    number: 0,
                    seq: plan.seq,
                    input: permit.input(),
                    row,
                    reason: reason.into(),
                    detail,
                    record,
                });
            }
        }
        before += batch.num_rows() as u64;
    }
    Ok(rejects)
}

fn write_row(insert: &mut Statement<'_>, columns: &[Column<'_>], row: usize) -> rusqlite::Result<()> {
    for (index, column) in columns.iter().enumerate() {
        insert.raw_bind_parameter(index + 1, column.value(row))?;
    }
    insert.raw_execute().map(drop)
}

/// A statement that fails has changed nothing, and the transaction goes on: so one refused row costs one reject. A
/// trigger that rolls the whole transaction back has taken the mark with it, and the batch fails.
fn refusal(connection: &Connection, error: rusqlite::Error) -> Result<(&'static str, String), Failure> {
    let reason = match error.sqlite_error_code() {
        Some(ErrorCode::ConstraintViolation) => "constraint",
        Some(ErrorCode::TypeMismatch) => "type",
        Some(ErrorCode::TooBig) => "too_big",
        _ => return Err(error).doing("writing rows to"),
    };
    if connection.is_autocommit() {
        return Err(Failure::Sink(SinkError::Fatal(format!(
            "a trigger of the table rolls back whole batches ({error}): let it RAISE(ABORT, ...)"
        ))));
    }
    Ok((reason, error.to_string()))
}
