//! Held against messages by Google's own implementation; what is broken is a reject, and never a row.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};
use tidemill_config::model::{At, Located, SchemaFile};

use super::*;
use crate::codec::{
    tests::{as_json, as_shown, check, digits, hex, module, of_records, tool, types},
    type_name,
};

fn options(descriptors: &[u8], message: &str, confluent: bool) -> model::Protobuf {
    let path = Located { value: "shop.desc".into(), at: At::default() };
    let message = Located { value: message.to_owned(), at: At::default() };
    model::Protobuf { descriptors: SchemaFile { path, content: Ok(Arc::from(descriptors)) }, message, confluent }
}

fn cases(seed: &str, count: &str) -> Option<Value> {
    let python = module("grpc_tools")?;
    Some(tool(&python, include_str!("../tests/protobuf.py"), &[seed, count]))
}

fn records(cases: &Value) -> Vec<Vec<u8>> {
    cases["records"].as_array().unwrap().iter().map(hex).collect()
}

const ORDER: &str = "shop.v1.Outer.Order";

#[test]
fn messages_of_google_become_the_rows_that_they_say() {
    for seed in ["1", "2"] {
        let Some(cases) = cases(seed, "300") else { return };
        let options = options(&hex(&cases["descriptors"]), ORDER, false);
        let (codec, schema) = (Protobuf::new(&options).unwrap(), columns(&options).unwrap());
        let decoded = codec.decoder(&schema, &schema).decode(&of_records(&records(&cases)));
        assert_eq!(decoded.rejects, []);
        let mut lines = Vec::new();
        crate::codec::encoder(&model::Codec::Json, &schema).unwrap().encode(&decoded.rows, &mut lines).unwrap();
        let lines = String::from_utf8(lines).unwrap();
        let expected = cases["rows"].as_array().unwrap();
        assert_eq!(decoded.records.len(), expected.len());
        for ((row, line), expected) in as_json(&decoded.rows).iter().zip(lines.lines()).zip(expected) {
            assert!(as_shown(row, expected), "is      {row}\nand not {expected}");
            for digits in digits(expected) {
                assert!(line.contains(&digits), "{digits} is not in {line}");
            }
        }
        assert!(types(&schema).contains(&"d: decimal(20,0)".to_owned()));
        let tree = schema.field_with_name("tree").unwrap();
        assert_eq!(type_name(tree.data_type()), "struct<value: int32, children: list<string>>");
    }
}

#[test]
fn framed_messages_say_which_message_they_are() {
    let Some(cases) = cases("3", "5") else { return };
    let options = options(&hex(&cases["descriptors"]), ORDER, true);
    let (codec, schema) = (Protobuf::new(&options).unwrap(), columns(&options).unwrap());
    let bare = records(&cases);
    // The second message inside of the first one: two indexes, 0 and 1, zigzag.
    let framed = |head: &[u8]| bare.iter().map(|record| [head, record].concat()).collect::<Vec<_>>();
    let decoded = codec.decoder(&schema, &schema).decode(&of_records(&framed(&[0, 0, 0, 0, 7, 4, 0, 2])));
    assert_eq!((decoded.records.len(), decoded.rejects), (5, vec![]));
    for (row, expected) in as_json(&decoded.rows).iter().zip(cases["rows"].as_array().unwrap()) {
        assert!(as_shown(row, expected), "is      {row}\nand not {expected}");
    }
    for wrong in
        [&[0, 0, 0, 0, 7, 0][..], &[0, 0, 0, 0, 7, 4, 0, 0], &[1, 0, 0, 0, 7, 4, 0, 2], &[0, 0, 0], &[0; 5], &[]]
    {
        let decoded = codec.decoder(&schema, &schema).decode(&of_records(&[wrong.to_vec()]));
        assert_eq!(decoded.rejects[0].reason, "bad_protobuf", "{wrong:?}");
    }
    let other = codec.decoder(&schema, &schema).decode(&of_records(&framed(&[0, 0, 0, 0, 7, 0])));
    assert_eq!(
        other.rejects[0].detail,
        "it is another message: its indexes are [0], those of shop.v1.Outer.Order are [0, 1]"
    );
}

#[test]
fn columns_may_be_few_and_of_other_types() {
    let Some(cases) = cases("4", "50") else { return };
    let options = options(&hex(&cases["descriptors"]), ORDER, false);
    let codec = Protobuf::new(&options).unwrap();
    let schema = crate::codec::tests::schema(&[
        ("s", "string"),
        ("a", "string"),
        ("absent", "int64"),
        ("t", "list<struct<sku: string>>"),
        ("u", "date"),
    ]);
    let decoded = codec.decoder(&schema, &schema).decode(&of_records(&records(&cases)));
    assert_eq!(decoded.rejects, []);
    for (row, expected) in as_json(&decoded.rows).iter().zip(cases["rows"].as_array().unwrap()) {
        assert_eq!(row["a"], json!(expected["a"].to_string()));
        assert_eq!(row["absent"], Value::Null);
        let skus: Vec<_> = expected["t"].as_array().unwrap().iter().map(|line| json!({"sku": line["sku"]})).collect();
        assert_eq!(row["t"], json!(skus));
        assert_eq!(row["s"].is_null(), expected["s"].is_null());
        assert_eq!(row["u"].as_str(), expected["u"].as_str().map(|time| &time[..10]));
    }
    let schema = crate::codec::tests::schema(&[("j", "int64")]);
    let decoded = codec.decoder(&schema, &schema).decode(&of_records(&records(&cases)));
    assert!(decoded.rejects.iter().all(|reject| reject.detail.starts_with("column j: ")), "{:?}", decoded.rejects);
    assert!(!decoded.rejects.is_empty());
}

#[test]
fn what_is_wrong_with_descriptors_is_told() {
    assert!(columns(&options(b"no descriptors", ORDER, false)).unwrap_err().value.contains("protoc --include_imports"));
    let Some(cases) = cases("5", "1") else { return };
    let descriptors = hex(&cases["descriptors"]);
    let wrong = columns(&options(&descriptors, "shop.v1.Ordre", false)).unwrap_err().value;
    assert_eq!(
        wrong,
        "the descriptor set has no message shop.v1.Ordre\nit has shop.v1.Outer, shop.v1.Outer.Unused, shop.v1.Outer.Order, shop.v1.Line, shop.v1.Node"
    );
    let empty = columns(&options(&descriptors, "shop.v1.Outer.Unused", false)).unwrap_err().value;
    assert_eq!(empty, "message shop.v1.Outer.Unused: it has no fields");
}

#[test]
fn bytes_that_are_wrong_anywhere_are_a_row_or_a_reject() {
    let Some(cases) = cases("6", "20") else { return };
    let options = options(&hex(&cases["descriptors"]), ORDER, false);
    let (codec, schema) = (Protobuf::new(&options).unwrap(), columns(&options).unwrap());
    let good = records(&cases);
    let mut runner = proptest::test_runner::TestRunner::default();
    let change = (0..good.len(), any::<prop::sample::Index>(), any::<u8>(), any::<bool>());
    runner
        .run(&change, |(which, at, byte, is_cut)| {
            let mut record = good[which].clone();
            prop_assume!(!record.is_empty());
            let at = at.index(record.len());
            record[at] = byte;
            if is_cut {
                record.truncate(at);
            }
            let slice = of_records(&[record, good[0].clone()]);
            let decoded = codec.decoder(&schema, &schema).decode(&slice);
            check(&decoded, &slice);
            prop_assert!(decoded.records.contains(&1), "the neighbour is a row");
            prop_assert!(decoded.rejects.iter().all(|reject| reject.reason == "bad_protobuf"));
            Ok(())
        })
        .unwrap();
}
