//! Tests of the codecs as a whole: what is framed, decoded and written again, held against other programs' reading.
#![allow(clippy::unwrap_used)]

mod csv;
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

/// What a Python program prints, as JSON.
fn python(program: &str, arguments: &[&str]) -> Value {
    let output = Command::new("python3").arg("-c").arg(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn csv_options() -> model::Csv {
    model::Csv { delimiter: b',', header: true, quote: b'"', escape: None, nulls: Vec::new(), encoding: "utf-8".into() }
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
    let header = framed.header.map(|range| Bytes::copy_from_slice(&bytes[range]));
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

/// The bytes as one record.
fn one_record(bytes: &[u8]) -> Slice {
    slice(bytes, vec![(0, bytes.len() as u32)], None)
}

fn schema(fields: &[(&str, &str)]) -> SchemaRef {
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
fn check(decoded: &Decoded, slice: &Slice) {
    assert_eq!(decoded.rows.num_rows(), decoded.records.len());
    let mut all: Vec<u32> = decoded.records.iter().copied().chain(decoded.rejects.iter().map(|r| r.record)).collect();
    assert!(decoded.records.is_sorted());
    all.sort_unstable();
    assert_eq!(all, (0..slice.records.len() as u32).collect::<Vec<_>>());
}

/// Rows as JSON, by the json encoder.
fn as_json(rows: &RecordBatch) -> Vec<Value> {
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

fn types(schema: &SchemaRef) -> Vec<String> {
    schema.fields().iter().map(|field| format!("{}: {}", field.name(), type_name(field.data_type()))).collect()
}
