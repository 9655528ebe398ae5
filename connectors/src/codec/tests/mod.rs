//! Tests of the codecs as a whole: what is framed, decoded and written again, held against other programs' reading.
#![allow(clippy::unwrap_used)]

mod accounts;
mod csv;
mod dialects;
mod framing;
mod fuzz;
mod json;
mod real;
mod round_trip;

use std::{path::PathBuf, process::Command, sync::Arc};

use arrow::datatypes::{Field, Schema, SchemaRef};
use bytes::Bytes;
use serde_json::Value;
use tidemill_checkpoint::ShardId;
use tidemill_config::model::{self, At, Located, Type};

use super::*;
use crate::source::Base;

/// A folder of data that the repository does not hold: `None`, said aloud, where it is absent; a failure in CI.
fn data(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data")).join(name);
    if path.exists() {
        return Some(path);
    }
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{} is absent", path.display());
    eprintln!("skipped: {} is absent", path.display());
    None
}

/// The Python that has a module from `tests/tools.sh`: `None`, said aloud, where there is none; a failure in CI.
pub(super) fn module(name: &str) -> Option<PathBuf> {
    let python = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/python/bin/python3"));
    let imported = Command::new(&python).arg("-c").arg(format!("import {name}")).output();
    if imported.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "the Python module {name} is absent: tests/tools.sh");
    eprintln!("skipped: the Python module {name} is absent: tests/tools.sh");
    None
}

/// What a Python program prints, as JSON.
fn python(program: &str, arguments: &[&str]) -> Value {
    tool(&PathBuf::from("python3"), program, arguments)
}

/// The same, of a Python with modules.
pub(super) fn tool(python: &PathBuf, program: &str, arguments: &[&str]) -> Value {
    let output = Command::new(python).arg("-c").arg(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn csv_options() -> model::Csv {
    model::Csv::default()
}

fn csv_codec() -> model::Codec {
    model::Codec::Csv(csv_options())
}

/// The whole of a file as a slice, and why its rest could not be framed.
fn slice_of(codec: &model::Codec, bytes: &[u8]) -> (Slice, Option<FrameError>) {
    let mut records = Vec::new();
    let framed = framer(codec).frame(0, bytes, true, usize::MAX, &mut records);
    if framed.error.is_none() {
        assert_eq!(framed.consumed, bytes.len(), "a whole file is consumed");
    }
    let header = framed.head(bytes);
    (slice(bytes, records, header), framed.error)
}

fn slice(bytes: &[u8], records: Vec<(u32, u32)>, header: Option<Bytes>) -> Slice {
    Slice {
        shard: ShardId::new("test", ""),
        bytes: Bytes::copy_from_slice(bytes),
        records,
        base: Base::Bytes(0),
        header,
        metadata: Vec::new(),
        columns: Vec::new(),
    }
}

/// Records one after another.
pub(super) fn of_records(records: &[Vec<u8>]) -> Slice {
    let mut end = 0;
    let ranges = records.iter().map(|record| {
        end += record.len() as u32;
        (end - record.len() as u32, end)
    });
    let ranges = ranges.collect();
    slice(&records.concat(), ranges, None)
}

/// Whether a row is what another program says: `{"json": X}` is a text that holds the JSON of X, `{"number": "1.50"}` the
/// decimal with these digits.
pub(super) fn as_shown(value: &Value, expected: &Value) -> bool {
    match (value, expected) {
        (Value::String(text), Value::Object(shown)) => match shown.get("json") {
            Some(inside) => serde_json::from_str(text).is_ok_and(|value: Value| as_shown(&value, inside)),
            None => false,
        },
        (Value::Number(number), Value::Object(shown)) => {
            let digits = shown.get("number").and_then(Value::as_str).and_then(|digits| digits.parse::<f64>().ok());
            digits.zip(number.as_f64()).is_some_and(|(one, other)| (one - other).abs() <= one.abs() * 1e-15)
        }
        (Value::Number(one), Value::Number(other)) => one.as_f64() == other.as_f64(),
        (Value::Object(members), Value::Object(shown)) => {
            members.len() == shown.len()
                && members.iter().all(|(name, value)| shown.get(name).is_some_and(|shown| as_shown(value, shown)))
        }
        (Value::Array(items), Value::Array(shown)) => {
            items.len() == shown.len() && items.iter().zip(shown).all(|(item, shown)| as_shown(item, shown))
        }
        _ => value == expected,
    }
}

/// The digits of all decimals in what another program says: numbers of JSON lose some.
pub(super) fn digits(expected: &Value) -> Vec<String> {
    match expected {
        Value::Object(members) => match members.get("number").and_then(Value::as_str) {
            Some(digits) if members.len() == 1 => vec![digits.to_owned()],
            _ => members.values().flat_map(digits).collect(),
        },
        Value::Array(items) => items.iter().flat_map(digits).collect(),
        _ => Vec::new(),
    }
}

/// The bytes of hexadecimal digits.
pub(super) fn hex(digits: &Value) -> Vec<u8> {
    let digits = digits.as_str().unwrap();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

/// The bytes as one record.
fn one_record(bytes: &[u8]) -> Slice {
    slice(bytes, vec![(0, bytes.len() as u32)], None)
}

pub(super) fn schema(fields: &[(&str, &str)]) -> SchemaRef {
    let field = |(name, kind): &(&str, &str)| model::Field {
        name: (*name).to_owned(),
        kind: Located { value: Type::parse(kind).unwrap(), at: At::default() },
    };
    to_arrow(&fields.iter().map(field).collect::<Vec<_>>())
}

fn with_extra(schema: &SchemaRef) -> SchemaRef {
    let mut fields: Vec<_> = schema.fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(EXTRA, arrow::datatypes::DataType::Utf8, true)));
    Arc::new(Schema::new(fields))
}

fn decode(config: &model::Codec, schema: &SchemaRef, slice: &Slice) -> Decoded {
    let decoded = codec(config).decoder(schema, schema).decode(slice);
    check(&decoded, slice);
    decoded
}

/// What holds for every slice: each record is a row or a reject, in order.
pub(super) fn check(decoded: &Decoded, slice: &Slice) {
    assert_eq!(decoded.rows.num_rows(), decoded.records.len());
    let mut all: Vec<u32> = decoded.records.iter().copied().chain(decoded.rejects.iter().map(|r| r.record)).collect();
    assert!(decoded.records.is_sorted());
    all.sort_unstable();
    assert_eq!(all, (0..slice.records.len() as u32).collect::<Vec<_>>());
}

/// Rows as JSON, by the json encoder.
pub(super) fn as_json(rows: &RecordBatch) -> Vec<Value> {
    let mut out = Vec::new();
    encoder(&model::Codec::Json, &rows.schema()).unwrap().encode(rows, &mut out).unwrap();
    String::from_utf8(out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A whole file with an inferred schema: rows and rejects.
fn read(config: &model::Codec, bytes: &[u8]) -> Decoded {
    let (slice, error) = slice_of(config, bytes);
    assert_eq!(error, None);
    let schema = codec(config).infer(std::slice::from_ref(&slice)).unwrap();
    decode(config, &schema, &slice)
}

pub(super) fn types(schema: &SchemaRef) -> Vec<String> {
    schema.fields().iter().map(|field| format!("{}: {}", field.name(), type_name(field.data_type()))).collect()
}
