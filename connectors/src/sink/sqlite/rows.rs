//! Rows of record batches into a prepared statement; what SQLite refuses becomes a reject.

use std::collections::{HashMap, HashSet};

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

/// A row that was refused: its batch, its index there, and why.
struct Refused {
    at: (usize, usize),
    reason: &'static str,
    detail: String,
    /// Whether it may pass once other rows are there, or gone.
    depends: bool,
}

/// Writes all rows in order; returns those that the table refuses. Foreign keys are checked row by row: what was refused for
/// want of another row is tried again once the rest is written, as often as one passes. Fails only where the batch as a whole
/// cannot go on.
pub(super) fn write(
    connection: &Connection,
    table: &Table,
    permit: &Permit,
    batches: &[RecordBatch],
) -> Result<Vec<SinkReject>, Failure> {
    let rows = |batch: usize| (0..batches[batch].num_rows()).map(move |row| (batch, row));
    let all: Vec<(usize, usize)> = (0..batches.len()).flat_map(rows).collect();
    let mut refused = write_these(connection, table, batches, &all)?;
    let mut left: Vec<(usize, usize)> = refused.iter().filter(|row| row.depends).map(|row| row.at).collect();
    left = last_of_their_keys(table, batches, left);
    while !left.is_empty() {
        let mut now = write_these(connection, table, batches, &left)?;
        let (before, tried) = (left.len(), left);
        left = now.iter().filter(|row| row.depends).map(|row| row.at).collect();
        let done = left.len() == before;
        // The other way round next: a chain of rows whose last one is first is done in one go.
        left.reverse();
        let tried: HashSet<(usize, usize)> = tried.into_iter().collect();
        refused.retain(|row| !tried.contains(&row.at));
        refused.append(&mut now);
        if done {
            break;
        }
    }
    refused.sort_by_key(|row| row.at);
    let plan = &permit.mark().plan;
    let firsts: Vec<usize> =
        batches.iter().scan(0, |before, batch| Some(std::mem::replace(before, *before + batch.num_rows()))).collect();
    let reject = |row: Refused| SinkReject {
        number: 0,
        seq: plan.seq,
        input: permit.input(),
        row: (firsts[row.at.0] + row.at.1) as u64,
        reason: row.reason.into(),
        detail: row.detail,
        record: Json::Object(cell::record(&batches[row.at.0], row.at.1)).to_string(),
    };
    Ok(refused.into_iter().map(reject).collect())
}

/// Those rows that no later row of the same key stands for: the last row of a key has to win. Texts are compared as the most
/// forgiving collation would.
fn last_of_their_keys(table: &Table, batches: &[RecordBatch], rows: Vec<(usize, usize)>) -> Vec<(usize, usize)> {
    if rows.is_empty() || table.key.is_empty() {
        return rows;
    }
    let key_of = |(batch, row): (usize, usize)| {
        let columns = table.key.iter().filter_map(|name| batches[batch].column_by_name(name));
        columns.map(|column| cell::text(column, row).trim_end().to_lowercase()).collect::<Vec<String>>()
    };
    let wanted: HashSet<Vec<String>> = rows.iter().map(|at| key_of(*at)).collect();
    let all = (0..batches.len()).flat_map(|batch| (0..batches[batch].num_rows()).map(move |row| (batch, row)));
    let keys = all.map(|at| (key_of(at), at)).filter(|(key, _)| wanted.contains(key));
    let last: HashMap<Vec<String>, (usize, usize)> = keys.collect();
    rows.into_iter().filter(|at| last.get(&key_of(*at)) == Some(at)).collect()
}

/// Writes these rows, in this order; gives those that the table refuses.
fn write_these(
    connection: &Connection,
    table: &Table,
    batches: &[RecordBatch],
    rows: &[(usize, usize)],
) -> Result<Vec<Refused>, Failure> {
    let mut refused = Vec::new();
    for of_batch in rows.chunk_by(|one, other| one.0 == other.0) {
        let Some(batch) = of_batch.first().map(|(batch, _)| &batches[*batch]) else { continue };
        let columns: Vec<Column<'_>> = batch.columns().iter().map(Column::new).collect();
        let keys: Vec<&ArrayRef> = table.key.iter().filter_map(|key| batch.column_by_name(key)).collect();
        let mut insert = connection.prepare_cached(&table.insert(batch.schema_ref())).doing("writing rows to")?;
        for &at in of_batch {
            if keys.iter().any(|key| key.is_null(at.1)) {
                let detail = "a key column of the upsert is null".to_owned();
                refused.push(Refused { at, reason: "null_key", detail, depends: false });
            } else if let Err(error) = write_row(&mut insert, &columns, at.1) {
                let depends = depends(&error);
                let (reason, detail) = refusal(connection, error)?;
                refused.push(Refused { at, reason, detail, depends });
            }
        }
    }
    Ok(refused)
}

/// Foreign keys, and what a trigger raises.
fn depends(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi::{SQLITE_CONSTRAINT_FOREIGNKEY, SQLITE_CONSTRAINT_TRIGGER};
    let code = error.sqlite_error().map(|error| error.extended_code);
    matches!(code, Some(SQLITE_CONSTRAINT_FOREIGNKEY | SQLITE_CONSTRAINT_TRIGGER))
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
