//! What no column type holds, written and read again: maps, records inside of themselves, unions, JSON as a message.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, ListArray, RecordBatch, StringArray, StructArray, types::Int64Type};
use proptest::prelude::*;
use serde_json::{Value as Json, json};
use tidemill_config::model::Codec as Config;

use super::tests::{all, avro, batch, bytes_of, protobuf, record, write, writer};
use crate::codec::{
    codec,
    tests::{as_json, hex, module, of_records, tool},
};

fn texts(values: Vec<Option<&str>>) -> ArrayRef {
    Arc::new(StringArray::from(values))
}

/// The rows that written records are read as.
fn read(config: &Config, records: &[Vec<u8>]) -> Vec<Json> {
    let reader = codec(config);
    let schema = reader.infer(&[]).unwrap();
    let decoded = reader.decoder(&schema, &schema).decode(&of_records(records));
    assert_eq!(decoded.rejects, []);
    as_json(&decoded.rows)
}

fn column(rows: &[Json], name: &str) -> Vec<Json> {
    rows.iter().map(|row| row[name].as_str().map_or(Json::Null, |text| serde_json::from_str(text).unwrap())).collect()
}

/// JSON of some depth; numbers are whole, or have a fraction.
fn any_json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        (-1_000_000_i64..1_000_000).prop_map(|number| json!(number as f64 + 0.5)),
        "[a\"\\\\é漢🎉\n]{0,5}".prop_map(Json::from),
    ];
    leaf.prop_recursive(4, 40, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
            proptest::collection::btree_map("[a-cé]{0,2}", inner, 0..4)
                .prop_map(|members| Json::Object(members.into_iter().collect())),
        ]
    })
}

/// A schema for any JSON: a record inside of itself, whose one field is a union of nearly everything.
fn anything() -> Json {
    let value = json!(["null", "boolean", "long", "double", "string",
        {"type": "array", "items": "Any"}, {"type": "map", "values": "Any"}]);
    json!({"type": "record", "name": "Any", "fields": [{"name": "v", "type": value}]})
}

/// JSON as that schema has it.
fn boxed(value: &Json) -> Json {
    let inside = match value {
        Json::Array(items) => items.iter().map(boxed).collect(),
        Json::Object(members) => {
            Json::Object(members.iter().map(|(name, value)| (name.clone(), boxed(value))).collect())
        }
        value => value.clone(),
    };
    json!({ "v": inside })
}

#[test]
fn any_json_survives_avro_and_protobuf() {
    let inside = json!({"type": "record", "name": "R", "fields": [{"name": "m", "type": {"type": "map", "values": anything()}}]});
    let by_avro = avro(Some(&inside), tidemill_config::model::AvroFraming::None);
    let by_protobuf = module("grpc_tools").map(|python| {
        let made = tool(&python, include_str!("../tests/protobuf.py"), &["21", "1"]);
        protobuf(&hex(&made["descriptors"]), "shop.v1.Outer.Order")
    });
    let mut runner = proptest::test_runner::TestRunner::default();
    runner
        .run(&proptest::collection::vec(any_json(), 1..8), |values| {
            let given: Vec<Json> = values.iter().map(|value| json!({"k": boxed(value)})).collect();
            let written: Vec<String> = given.iter().map(Json::to_string).collect();
            let rows = batch([("m", texts(written.iter().map(|text| Some(&**text)).collect()))]);
            let records = all(&*writer(&by_avro, &rows.schema()).unwrap(), &rows);
            prop_assert_eq!(column(&read(&by_avro, &records), "m"), given);
            let Some(by_protobuf) = &by_protobuf else { return Ok(()) };
            let written: Vec<String> = values.iter().map(Json::to_string).collect();
            let rows = batch([("any", texts(written.iter().map(|text| Some(&**text)).collect()))]);
            let records = all(&*writer(by_protobuf, &rows.schema()).unwrap(), &rows);
            prop_assert_eq!(column(&read(by_protobuf, &records), "any"), values);
            prop_assert_eq!(
                all(&*writer(by_protobuf, &rows.schema()).unwrap(), &rows),
                records,
                "the same bytes again"
            );
            Ok(())
        })
        .unwrap();
}

/// Types whose column is a text, which others than we hardly write: what is written is read as the same text.
#[test]
fn types_that_are_texts_are_read_as_they_were_written() {
    let types = [
        json!({"type": "bytes", "logicalType": "big-decimal"}),
        json!({"type": "bytes", "logicalType": "decimal", "precision": 60, "scale": 4}),
        json!({"type": "fixed", "name": "D", "size": 30, "logicalType": "decimal", "precision": 70, "scale": 4}),
        json!({"type": "fixed", "name": "U", "size": 16, "logicalType": "uuid"}),
        json!({"type": "fixed", "name": "P", "size": 12, "logicalType": "duration"}),
        json!({"type": "long", "logicalType": "time-micros"}),
    ];
    let fields: Vec<Json> = types
        .iter()
        .enumerate()
        .map(|(at, kind)| json!({"name": format!("c{at}"), "type": ["null", kind], "default": null}))
        .collect();
    let config = avro(Some(&record(&json!(fields))), tidemill_config::model::AvroFraming::None);
    let decimal = || (any::<i64>(), 1..9_999_u32).prop_map(|(whole, part)| format!("{whole}.{part:04}"));
    let uuid = any::<u128>().prop_map(|bits| uuid::Uuid::from_u128(bits).to_string());
    let duration = any::<[u32; 3]>().prop_map(|[m, d, ms]| format!("P{m}M{d}DT{}.{:03}S", ms / 1000, ms % 1000));
    let time = (0..24_u8, 0..60_u8, 1..1_000_000_u32)
        .prop_map(|(hour, minute, micros)| format!("{hour:02}:{minute:02}:07.{micros:06}"));
    let mut runner = proptest::test_runner::TestRunner::default();
    runner
        .run(&(decimal(), decimal(), decimal(), uuid, duration, time), |row| {
            let given = [&row.0, &row.1, &row.2, &row.3, &row.4, &row.5];
            let columns = given.iter().enumerate().map(|(at, text)| (format!("c{at}"), texts(vec![Some(text)])));
            let rows = RecordBatch::try_from_iter(columns).unwrap();
            let records = all(&*writer(&config, &rows.schema()).unwrap(), &rows);
            let back = &read(&config, &records)[0];
            for (at, text) in given.iter().enumerate() {
                prop_assert_eq!(back[format!("c{at}")].as_str(), Some(&***text));
            }
            Ok(())
        })
        .unwrap();
    refusals(&config, "c0", &[("x", "type: column c0: \"x\" is not a big-decimal")]);
    refusals(&config, "c1", &[("1.00001", "type: column c1: \"1.00001\" is not a decimal(60,4)")]);
    refusals(&config, "c4", &[("P1D", "type: column c4: \"P1D\" is not a duration")]);
}

#[test]
fn messages_of_proto2_are_written_as_google_writes_them() {
    let Some(python) = module("grpc_tools") else { return };
    let made = tool(&python, include_str!("../tests/proto2.py"), &["22", "200"]);
    let config = protobuf(&hex(&made["descriptors"]), "old.Order");
    let (records, reader) = (bytes_of(&made["records"]), codec(&config));
    let schema = reader.infer(&[]).unwrap();
    let decoded = reader.decoder(&schema, &schema).decode(&of_records(&records));
    assert_eq!(decoded.rejects, []);
    let written = all(&*writer(&config, &schema).unwrap(), &decoded.rows);
    for (at, (record, expected)) in written.iter().zip(&records).enumerate() {
        assert_eq!(record, expected, "row {at}");
    }
    let error = writer(&config, &batch([("id", texts(vec![]))]).schema()).err().unwrap();
    assert!(error.contains("column `id` is string, and int32 in the message"), "{error}");
    let error = writer(&config, &batch([("name", texts(vec![]))]).schema()).err().unwrap();
    assert!(error.contains("the message's field `id` is required, and there is no such column"), "{error}");
    let nulls = batch([
        ("id", Arc::new(Int64Array::from(vec![None, Some(1)])) as ArrayRef),
        ("body", texts(vec![Some(""), Some("")])),
        ("item", {
            let items = StringArray::from(vec![r#"{"orders": {"a": {"id": 1}}}"#]);
            let offsets = arrow::buffer::OffsetBuffer::new(vec![0, 0, 1].into());
            let field = Arc::new(arrow::datatypes::Field::new_list_field(arrow::datatypes::DataType::Utf8, true));
            Arc::new(ListArray::new(field, offsets, Arc::new(items), None))
        }),
    ]);
    let refused = write(&*writer(&config, &nulls.schema()).unwrap(), &nulls);
    assert_eq!(refused[0], Err("type: column id: null is not int32, which is required".into()));
    assert_eq!(refused[1], Err("type: column item.orders.a.body: null is not bytes, which is required".into()));
}

fn structs() -> ArrayRef {
    let members = batch([
        ("ab", Arc::new(Int64Array::from(vec![Some(1), None])) as ArrayRef),
        ("a", Arc::new(Int64Array::from(vec![Some(2), None]))),
    ]);
    Arc::new(StructArray::from(members))
}

#[test]
fn a_struct_is_a_map_of_its_members_that_are_not_null() {
    let rows = batch([("m", structs())]);
    let map = json!([{"name": "m", "type": ["null", {"type": "map", "values": "long"}]}]);
    let config = avro(Some(&record(&map)), tidemill_config::model::AvroFraming::None);
    let written = all(&*writer(&config, &rows.schema()).unwrap(), &rows);
    assert_eq!(written, [vec![2, 4, 4, b'a', b'b', 2, 2, b'a', 4, 0], vec![2, 0]]);
    let map = json!([{"name": "m", "type": {"type": "map", "values": "boolean"}}]);
    let error = writer(&avro(Some(&record(&map)), tidemill_config::model::AvroFraming::None), &rows.schema());
    assert!(error.err().unwrap().contains("column `m.ab` is int64, and boolean in the schema"));
    let Some(python) = module("grpc_tools") else { return };
    let made = tool(&python, include_str!("../tests/protobuf.py"), &["23", "1"]);
    let config = protobuf(&hex(&made["descriptors"]), "shop.v1.Outer.Order");
    let list: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1), None]), None]));
    let rows = batch([("q", structs()), ("y", structs()), ("some", list), ("any", structs())]);
    let records = all(&*writer(&config, &rows.schema()).unwrap(), &rows);
    // In the order of the keys, and not of the columns.
    assert_eq!(records[0][..20], [138, 1, 5, 10, 1, b'a', 16, 2, 138, 1, 6, 10, 2, b'a', b'b', 16, 1, 202, 1, 33][..]);
    let read = read(&config, &records);
    let of = |name: &str| read.iter().map(|row| row[name].as_str().unwrap_or("-")).collect::<Vec<_>>();
    assert_eq!(of("q"), [r#"{"a":2,"ab":1}"#, "{}"]);
    assert_eq!(of("y"), [r#"{"a":2.0,"ab":1.0}"#, "{}"]);
    assert_eq!(of("any"), of("y"));
    assert_eq!(of("some"), ["[1.0,null]", "-"]);
    // A list too may be the text of its JSON.
    let rows = batch([("o", texts(vec![Some("[1, -2]"), None]))]);
    assert_eq!(all(&*writer(&config, &rows.schema()).unwrap(), &rows)[0][..3], [122, 11, 1]);
    refusals(
        &config,
        "o",
        &[
            ("[null]", "type: column o: null is not an int32"),
            ("{}", "type: column o: an object is not a repeated int32"),
        ],
    );
    let strings = batch([("ab", texts(vec![None]))]);
    let rows = batch([("q", Arc::new(StructArray::from(strings)) as ArrayRef)]);
    let error = writer(&config, &rows.schema()).err().unwrap();
    let wanted = "column `q` is struct<ab: string>, and map<string, int64> in the message: cast the column";
    assert!(error.contains(wanted), "{error}");
}

/// What is wrong with one text of a column that has a good one beside it.
fn refusals(config: &Config, column: &str, texts: &[(&str, &str)]) {
    for (text, wanted) in texts {
        let rows = RecordBatch::try_from_iter([(column, self::texts(vec![Some(text)]))]).unwrap();
        let written = write(&*writer(config, &rows.schema()).unwrap(), &rows);
        assert_eq!(written[0].as_ref().err().map(|why| &**why), Some(*wanted), "{text}");
    }
}

#[test]
fn texts_that_are_not_what_the_schema_says_are_told_with_their_place() {
    let schema = |kind: Json| {
        avro(Some(&record(&json!([{"name": "c", "type": kind}]))), tidemill_config::model::AvroFraming::None)
    };
    let map = schema(json!(["null", {"type": "map", "values": "int"}]));
    refusals(
        &map,
        "c",
        &[
            ("a", "type: column c: \"a\" is not JSON: at byte 0: a value is expected"),
            ("[1]", "type: column c: a list is not a map"),
            (r#"{"k": 1.5}"#, "type: column c.k: 1.5 is not an int"),
            (r#"{"k": 3000000000}"#, "type: column c.k: 3000000000 is not an int"),
        ],
    );
    let node = json!({"type": "record", "name": "N", "fields": [
        {"name": "v", "type": "int"}, {"name": "next", "type": ["null", "N"]}, {"name": "d", "type": "string", "default": "x"}]});
    refusals(
        &schema(node),
        "c",
        &[
            (r#"{"v": 1, "next": {"v": "x"}}"#, "type: column c.next.v: \"x\" is not an int"),
            (r#"{"next": null}"#, "type: column c.v: null is not an int"),
            (r#"{"v": 1, "w": true}"#, "type: column c.w: true is not a field of the record in the schema"),
        ],
    );
    let mixed =
        schema(json!(["long", {"type": "enum", "name": "E", "symbols": ["A"]}, {"type": "map", "values": "E"}]));
    refusals(&mixed, "c", &[("B", "type: column c: \"B\" is not a long or enum of A or map of enum of A")]);
    let rows = batch([("c", texts(vec![Some("7"), Some("A"), Some("{\"k\": \"A\"}"), Some("\"A\"")]))]);
    let written = all(&*writer(&mixed, &rows.schema()).unwrap(), &rows);
    assert_eq!(written, [vec![0, 14], vec![2, 0], vec![4, 2, 2, b'k', 0, 0], vec![2, 0]]);
    // Both of a union's types are tried at each of fifty levels: that has an end.
    let twins = json!([{"type": "record", "name": "A", "fields": [{"name": "n", "type": ["int", "A", {"type": "record", "name": "B", "fields": [
        {"name": "n", "type": ["int", "A", "B"]}]}]}]}, "B", {"type": "map", "values": "int"}]);
    let deep = format!("{}true{}", "{\"n\": ".repeat(50), "}".repeat(50));
    let rows = batch([("c", texts(vec![Some(&deep)]))]);
    assert!(write(&*writer(&schema(twins), &rows.schema()).unwrap(), &rows)[0].is_err());
    // Many values that are not of the first type are no such thing.
    let maps = json!({"type": "array", "items": [{"type": "record", "name": "A", "fields": [{"name": "n", "type": "int"}]}, {"type": "map", "values": "int"}]});
    let many = format!("[{}{{}}]", "{},".repeat(20_000));
    let rows = batch([("c", texts(vec![Some(&many)]))]);
    assert_eq!(all(&*writer(&schema(maps), &rows.schema()).unwrap(), &rows)[0].len(), 3 + 2 * 20_001 + 1);
    // Where a text is one of the types, every text is.
    let rows = batch([("c", texts(vec![Some("7")]))]);
    let written = all(&*writer(&schema(json!(["long", "string"])), &rows.schema()).unwrap(), &rows);
    assert_eq!(written, [[2, 2, b'7']]);

    let Some(python) = module("grpc_tools") else { return };
    let made = tool(&python, include_str!("../tests/protobuf.py"), &["24", "1"]);
    let config = protobuf(&hex(&made["descriptors"]), "shop.v1.Outer.Order");
    refusals(&config, "q", &[(r#"{"k": true}"#, "type: column q.k: true is not an int64")]);
    refusals(&config, "r", &[(r#"{"k": {}}"#, "type: column r: \"k\" is not a key of int32")]);
    refusals(&config, "r", &[(r#"{"1": {"skq": "x"}}"#, "type: column r.1.skq: \"x\" is not a field of shop.v1.Line")]);
    refusals(&config, "y", &[("[]", "type: column y: a list is not a google.protobuf.Struct")]);
    let deep = format!("{}1{}", "[".repeat(60), "]".repeat(60));
    let why = "type: column any: a list is not nested so deep that it can be read: at most 100 messages";
    refusals(&config, "any", &[(&deep, why)]);
}
