//! Held against fastavro's and Google's bytes, against our own reading, and against a registry that answers what it should.
#![allow(clippy::unwrap_used)]

use arrow::{
    array::{
        ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array, Int32Array,
        Int64Array, ListArray, StringArray, TimestampNanosecondArray, UInt64Array, types::Int32Type,
    },
    datatypes::SchemaRef,
};
use serde_json::{Value as Json, json};
use tidemill_config::model::{At, AvroFraming, Codec as Config, Located, Registry, SchemaFile};

use super::*;
use crate::codec::{
    codec,
    registry::tests::StandIn,
    tests::{as_json, hex, module, of_records, tool},
};

fn in_job(content: &[u8]) -> SchemaFile {
    SchemaFile { path: Located { value: "".into(), at: At::default() }, content: Ok(content.into()) }
}

pub(super) fn avro(schema: Option<&Json>, framing: AvroFraming) -> Config {
    let schema = schema.map(|schema| in_job(schema.to_string().as_bytes()));
    Config::Avro(model::Avro { registry: None, schema, framing })
}

pub(super) fn writer(config: &Config, schema: &SchemaRef) -> Result<Arc<dyn Writer>, String> {
    let records = Records::new(config, "shop.orders-1").map_err(|error| error.to_string())?.unwrap();
    let columns = Columns { fields: schema.fields(), spare: &["spare".to_owned()] };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(records.prepare(columns)).map_err(|error| error.to_string())
}

/// The records of rows, or why they are none.
pub(super) fn write(writer: &dyn Writer, rows: &RecordBatch) -> Vec<Result<Option<Vec<u8>>, String>> {
    // Something is there already: ranges begin behind it.
    let mut out = b"before".to_vec();
    let values = writer.write(rows, &mut out).unwrap();
    assert_eq!(values.len(), rows.num_rows());
    let of = |value| match value {
        Value::At(range) => Ok(Some(out[range].to_vec())),
        Value::Absent => Ok(None),
        Value::Refused(reason, detail) => Err(format!("{reason}: {detail}")),
    };
    values.into_iter().map(of).collect()
}

pub(super) fn all(writer: &dyn Writer, rows: &RecordBatch) -> Vec<Vec<u8>> {
    write(writer, rows).into_iter().map(|value| value.unwrap().unwrap()).collect()
}

pub(super) fn batch<const N: usize>(columns: [(&str, ArrayRef); N]) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, array)| (name, array, true))).unwrap()
}

pub(super) fn bytes_of(record: &Json) -> Vec<Vec<u8>> {
    record.as_array().unwrap().iter().map(hex).collect()
}

/// What fastavro has written, read as rows and written again by the same schema, is the same bytes.
#[test]
fn records_are_written_as_fastavro_writes_them() {
    let Some(python) = module("fastavro") else { return };
    let mut same = 0;
    for seed in ["7", "8"] {
        let cases = tool(&python, include_str!("../tests/avro.py"), &[seed, "200"]);
        for case in cases.as_array().unwrap().iter().filter(|case| case.get("reader").is_none()) {
            // Of which type a value was is not known any more where a column holds texts and the texts of others.
            if case["schema"]["fields"][0]["name"] == "m" {
                continue;
            }
            let config = avro(Some(&case["schema"]), AvroFraming::None);
            let reader = codec(&config);
            let records = bytes_of(&case["records"]);
            let schema = reader.infer(&[]).unwrap();
            let decoded = reader.decoder(&schema, &schema).decode(&of_records(&records));
            assert_eq!(decoded.rejects, []);
            assert_eq!(all(&*writer(&config, &schema).unwrap(), &decoded.rows), records, "{}", case["schema"]);
            same += records.len();
        }
    }
    assert!(same > 7000, "{same} records");
}

/// Every type that a column may have.
fn table() -> RecordBatch {
    let inner: ArrayRef = Arc::new(arrow::array::StructArray::from(batch([
        ("a-b", Arc::new(Int64Array::from(vec![Some(1), None, None])) as ArrayRef),
        ("t", Arc::new(StringArray::from(vec![Some("é"), None, Some("")]))),
    ])));
    batch([
        ("b", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)]))),
        ("i", Arc::new(Int32Array::from(vec![Some(i32::MIN), None, Some(7)]))),
        ("l", Arc::new(Int64Array::from(vec![Some(i64::MAX), None, Some(-1)]))),
        ("u", Arc::new(UInt64Array::from(vec![Some(5), None, Some(0)]))),
        ("f", Arc::new(Float32Array::from(vec![Some(1.5), None, Some(-0.25)]))),
        ("d", Arc::new(Float64Array::from(vec![Some(0.1), None, Some(-2e300)]))),
        ("s", Arc::new(StringArray::from(vec![Some("漢\n"), None, Some("")]))),
        ("y", Arc::new(BinaryArray::from(vec![Some(&b"\0\xff"[..]), None, Some(b"")]))),
        // Before 1970, and with digits below a microsecond.
        ("at", Arc::new(TimestampNanosecondArray::from(vec![Some(-1), None, Some(1_431_857_103_120_000_999)]))),
        ("day", Arc::new(Date32Array::from(vec![Some(-1), None, Some(16_572)]))),
        (
            "n",
            Arc::new(
                Decimal128Array::from(vec![Some(-128), None, Some(99_999)]).with_precision_and_scale(5, 2).unwrap(),
            ),
        ),
        (
            "list",
            Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([
                Some(vec![Some(1), None]),
                None,
                Some(vec![]),
            ])),
        ),
        ("inner", inner),
    ])
}

const READER: &str = r#"
import base64, datetime, decimal, io, json, sys
import fastavro
schema, records = json.loads(sys.argv[1]), json.loads(sys.argv[2])
parsed = fastavro.parse_schema(schema)
def shown(value):
    if isinstance(value, bytes): return base64.b64encode(value).decode()
    if isinstance(value, datetime.datetime): return value.isoformat()
    if isinstance(value, (datetime.date, decimal.Decimal)): return str(value)
    if isinstance(value, dict): return {name: shown(value) for name, value in value.items()}
    if isinstance(value, list): return [shown(value) for value in value]
    return value
rows = []
for record in records:
    body = io.BytesIO(bytes.fromhex(record))
    rows.append(shown(fastavro.schemaless_reader(body, parsed)))
    assert body.read() == b""
print(json.dumps(rows))
"#;

#[test]
fn columns_without_a_schema_have_one_that_fastavro_reads() {
    let rows = table();
    let error = writer(&avro(None, AvroFraming::None), &rows.schema()).err().unwrap();
    assert!(error.contains("column `inner.a-b`: ") && error.contains("rename: { \"a-b\": a_b }"), "{error}");
    let mut columns = rows.columns().to_vec();
    columns[12] = Arc::new(arrow::array::StructArray::from(batch([
        ("a_b", Arc::new(Int64Array::from(vec![Some(1), None, None])) as ArrayRef),
        ("t", Arc::new(StringArray::from(vec![Some("é"), None, Some("")]))),
    ])));
    let rows = RecordBatch::try_from_iter_with_nullable(
        rows.schema().fields().iter().zip(columns).map(|(field, array)| (field.name().clone(), array, true)),
    )
    .unwrap();
    let text = avro::derive::schema("shop.orders-1", rows.schema().fields()).unwrap();
    let schema: Json = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&schema["name"], &schema["fields"][0]),
        (&json!("shop_orders_1"), &json!({"name": "b", "type": ["null", "boolean"], "default": null}))
    );
    let records = all(&*writer(&avro(None, AvroFraming::None), &rows.schema()).unwrap(), &rows);
    // Our own reading.
    let reader = codec(&avro(Some(&schema), AvroFraming::None));
    let columns = reader.infer(&[]).unwrap();
    let decoded = reader.decoder(&columns, &columns).decode(&of_records(&records));
    assert_eq!(decoded.rejects, []);
    let read = as_json(&decoded.rows);
    assert_eq!(
        (&read[0]["at"], &read[0]["inner"], &read[1]["inner"]),
        (&json!("1969-12-31T23:59:59.999999Z"), &json!({"a_b": 1, "t": "é"}), &json!({"a_b": null, "t": null}))
    );
    assert_eq!((&read[2]["n"], &read[0]["n"], &read[2]["list"]), (&json!(999.99), &json!(-1.28), &json!([])));
    // Fastavro's.
    let Some(python) = module("fastavro") else { return };
    let hexed: Vec<String> =
        records.iter().map(|record| record.iter().map(|byte| format!("{byte:02x}")).collect()).collect();
    let shown = tool(&python, READER, &[&text, &json!(hexed).to_string()]);
    let first = json!({
        "b": true, "i": i32::MIN, "l": i64::MAX, "u": 5, "f": 1.5, "d": 0.1, "s": "漢\n", "y": "AP8=",
        "at": "1969-12-31T23:59:59.999999+00:00", "day": "1969-12-31", "n": "-1.28", "list": [1, null],
        "inner": {"a_b": 1, "t": "é"},
    });
    let nothing = json!({
        "b": null, "i": null, "l": null, "u": null, "f": null, "d": null, "s": null, "y": null, "at": null, "day": null,
        "n": null, "list": null, "inner": {"a_b": null, "t": null},
    });
    let last = json!({
        "b": false, "i": 7, "l": -1, "u": 0, "f": -0.25, "d": -2e300, "s": "", "y": "",
        "at": "2015-05-17T10:05:03.120000+00:00", "day": "2015-05-17", "n": "999.99", "list": [],
        "inner": {"a_b": null, "t": ""},
    });
    assert_eq!(shown, json!([first, nothing, last]));
}

pub(super) fn record(fields: &Json) -> Json {
    json!({"type": "record", "name": "R", "fields": fields})
}

#[test]
fn a_schema_that_does_not_fit_is_told_with_the_column_and_both_types() {
    let rows = table();
    let named = |names: &[&str]| {
        let at: Vec<usize> = names.iter().map(|name| rows.schema().index_of(name).unwrap()).collect();
        rows.project(&at).unwrap().schema()
    };
    let optional = |kind: Json| json!(["null", kind]);
    for (columns, fields, wanted) in [
        (&["i"][..], json!([{"name": "i", "type": "string"}]), "column `i` is int32, and string in the schema"),
        (
            &["s"],
            json!([{"name": "s", "type": ["null", "int", "long"]}]),
            "column `s` is string, and null or int or long in the schema",
        ),
        (
            &["n"],
            json!([{"name": "n", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 1}}]),
            "column `n` is decimal(5,2), and decimal(9,1) in the schema",
        ),
        (
            &["list"],
            json!([{"name": "list", "type": {"type": "array", "items": "boolean"}}]),
            "column `list` is int32, and boolean in the schema",
        ),
        (
            &["i", "b"],
            json!([{"name": "i", "type": "int"}]),
            "column `b` (boolean) has no field in the schema: add one, or leave the column out by `drop: [b]`",
        ),
        (
            &["i"],
            json!([{"name": "i", "type": "int"}, {"name": "z", "type": "int"}]),
            "the schema's field `z` has neither a column nor a default",
        ),
        (
            &["inner"],
            json!([{"name": "inner", "type": optional(json!({"type": "record", "name": "I", "fields": [{"name": "t", "type": "string"}]}))}]),
            "in column `inner`: column `a-b` (int64) has no field",
        ),
        (
            &["inner"],
            json!([{"name": "inner", "type": {"type": "map", "values": "long"}}]),
            "column `inner.t` is string, and long in the schema",
        ),
    ] {
        let error = writer(&avro(Some(&record(&fields)), AvroFraming::None), &named(columns)).err().unwrap();
        assert!(error.contains(wanted), "{error}\nand not {wanted}");
    }
    let mut builder =
        arrow::array::MapBuilder::new(None, arrow::array::StringBuilder::new(), arrow::array::StringBuilder::new());
    builder.append(true).unwrap();
    let map = batch([("m", Arc::new(builder.finish()) as ArrayRef)]);
    for schema in [None, Some(record(&json!([{"name": "m", "type": {"type": "map", "values": "string"}}])))] {
        let error = writer(&avro(schema.as_ref(), AvroFraming::None), &map.schema()).err().unwrap();
        assert!(error.contains("column `m` is ") && error.contains("values of that type are not written"), "{error}");
    }
    let error = writer(&avro(Some(&json!("long")), AvroFraming::None), &named(&["l"])).err().unwrap();
    assert!(error.contains("column `l` (int64) has no field"), "{error}");
    let spare = batch([
        ("value", Arc::new(Int64Array::from(vec![-3])) as ArrayRef),
        ("spare", Arc::new(Int64Array::from(vec![1]))),
    ]);
    let value = writer(&avro(Some(&json!("long")), AvroFraming::None), &spare.schema()).unwrap();
    assert_eq!(all(&*value, &spare), [[5]], "a header needs no field");
}

#[test]
fn a_value_that_its_schema_cannot_hold_costs_its_row_alone() {
    let symbols = json!({"type": "enum", "name": "E", "symbols": ["A", "B"]});
    let decimal =
        |precision: usize| json!({"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": 2});
    let uuid = json!({"type": "string", "logicalType": "uuid"});
    let long = |values: Vec<Option<i64>>| Arc::new(Int64Array::from(values)) as ArrayRef;
    let text = |values: Vec<Option<&str>>| Arc::new(StringArray::from(values)) as ArrayRef;
    let good_uuid = "0b7f7d3a-5f8e-4b3c-9d7e-2f1a3c5d7e9f";
    let thin = Arc::new(TimestampNanosecondArray::from(vec![Some(-1), Some(0)])) as ArrayRef;
    let cases: Vec<(ArrayRef, Json, &[u8], &str)> = vec![
        (
            long(vec![Some(i64::from(i32::MAX) + 1), Some(-2)]),
            json!("int"),
            &[3],
            "type: column c: 2147483648 is not an int",
        ),
        (long(vec![None, Some(1)]), json!("long"), &[2], "type: column c: null is not a long"),
        (text(vec![Some("C"), Some("B")]), symbols, &[2], "type: column c: \"C\" is not an enum of A, B"),
        (long(vec![Some(1000), Some(-1)]), decimal(5), &[2, 0x9c], "type: column c: 1000 is not a decimal(5,2)"),
        (text(vec![Some("x"), Some(good_uuid)]), uuid, &[], "type: column c: \"x\" is not a uuid"),
        (
            long(vec![Some((1 << 53) + 1), Some(1)]),
            json!("double"),
            &[0, 0, 0, 0, 0, 0, 0xf0, 0x3f],
            "type: column c: 9007199254740993 is not a double",
        ),
        (
            text(vec![Some("24:00:00"), Some("00:00:01.5")]),
            json!({"type": "int", "logicalType": "time-millis"}),
            &[0xb8, 0x17],
            "type: column c: \"24:00:00\" is not a time-millis",
        ),
        (
            Arc::new(BinaryArray::from(vec![&b"abc"[..], b"de"])),
            json!({"type": "fixed", "name": "F", "size": 2}),
            b"de",
            "type: column c: \"YWJj\" is not a fixed(2)",
        ),
        (
            Arc::new(Float64Array::from(vec![1e39, f64::INFINITY])),
            json!("float"),
            &[0, 0, 0x80, 0x7f],
            "type: column c: 1.0e39 is not a float",
        ),
        (thin, json!({"type": "long", "logicalType": "timestamp-millis"}), &[0], ""),
    ];
    for (array, kind, good, refused) in cases {
        let rows = batch([("c", array)]);
        let schema = record(&json!([{"name": "c", "type": kind}]));
        let written = write(&*writer(&avro(Some(&schema), AvroFraming::None), &rows.schema()).unwrap(), &rows);
        if refused.is_empty() {
            assert_eq!(written[0], Ok(Some(vec![1])), "a millisecond before 1970");
        } else {
            assert_eq!(written[0].as_ref().unwrap_err(), refused);
        }
        let other = written[1].as_ref().unwrap().as_deref().unwrap();
        assert!(
            if good.is_empty() { &other[1..] == good_uuid.as_bytes() } else { other == good },
            "{schema}: {other:?}"
        );
    }
}

#[test]
fn defaults_stand_for_columns_that_are_not_there() {
    let rows = batch([("b", Arc::new(Int64Array::from(vec![Some(1), None])) as ArrayRef)]);
    let schema = record(&json!([
        {"name": "a", "type": "string", "default": "x"},
        {"name": "b", "type": ["long", "null"]},
        {"name": "c", "type": ["null", "int"], "default": null},
    ]));
    let writer = writer(&avro(Some(&schema), AvroFraming::None), &rows.schema()).unwrap();
    assert_eq!(all(&*writer, &rows), [vec![2, b'x', 0, 2, 0], vec![2, b'x', 2, 0]]);
}

#[test]
fn of_a_union_the_type_that_fits_best_is_taken() {
    let rows = batch([
        ("l", Arc::new(Int64Array::from(vec![Some(1), None])) as ArrayRef),
        ("i", Arc::new(Int32Array::from(vec![Some(1), Some(2)]))),
        ("s", Arc::new(StringArray::from(vec![Some("A"), Some("x")]))),
    ]);
    let symbols = json!({"type": "enum", "name": "E", "symbols": ["A"]});
    let schema = record(&json!([
        {"name": "l", "type": ["int", "long", "null"]},
        {"name": "i", "type": ["null", "double", "long"]},
        {"name": "s", "type": [symbols, "string"]},
    ]));
    let writer = writer(&avro(Some(&schema), AvroFraming::None), &rows.schema()).unwrap();
    assert_eq!(all(&*writer, &rows), [vec![2, 2, 4, 2, 2, 2, b'A'], vec![4, 4, 4, 2, 2, b'x']]);
}

#[test]
fn single_objects_are_read_again() {
    let schema = record(&json!([{"name": "n", "type": "long"}]));
    let config = avro(Some(&schema), AvroFraming::SingleObject);
    let rows = batch([("n", Arc::new(Int64Array::from(vec![4, -4])) as ArrayRef)]);
    let records = all(&*writer(&config, &rows.schema()).unwrap(), &rows);
    assert!(records.iter().all(|record| record.starts_with(&[0xc3, 1]) && record.len() == 11));
    let reader = codec(&config);
    let columns = reader.infer(&[]).unwrap();
    let decoded = reader.decoder(&columns, &columns).decode(&of_records(&records));
    assert_eq!((as_json(&decoded.rows), decoded.rejects), (vec![json!({"n": 4}), json!({"n": -4})], vec![]));
}

fn registered(registry: &StandIn, schema: Option<&Json>, register: bool) -> Records {
    let registry = Registry {
        url: registry.url.clone(),
        user: Some("me".into()),
        password: Some("s3cret".into()),
        subject: None,
        register,
    };
    let schema = schema.map(|schema| in_job(format!("{schema:#}").as_bytes()));
    let config = Config::Avro(model::Avro { registry: Some(registry), schema, framing: AvroFraming::Confluent });
    Records::new(&config, "orders").unwrap().unwrap()
}

const LOGIN: &str = "Basic bWU6czNjcmV0";

#[tokio::test]
async fn a_schema_is_registered_and_its_id_begins_each_record() {
    let rows = batch([("n", Arc::new(Int64Array::from(vec![4])) as ArrayRef)]);
    let schema = rows.schema();
    let columns = Columns { fields: schema.fields(), spare: &[] };
    let given = record(&json!([{"name": "n", "type": "long"}]));
    let derived = r#"{"type":"record","name":"orders","fields":[{"name":"n","type":["null","long"],"default":null}]}"#;
    let registry = StandIn::new(|asked, _| match asked.strip_prefix("POST ").unwrap_or(asked) {
        path if path.starts_with("/subjects/orders-value/versions/latest") => (
            200,
            json!({"id": 9, "schema": json!({"type": "record", "name": "L", "fields": [{"name": "n", "type": "long"}]}).to_string()}),
        ),
        path if path.starts_with("/subjects/orders-value/versions") => (200, json!({"id": 0x01_0203})),
        path if path.starts_with("/subjects/orders-value") => (200, json!({"id": 8})),
        _ => (404, json!({"error_code": 40401, "message": "Subject not found"})),
    });
    let body = |schema: &str| json!({ "schema": schema }).to_string();
    let ask = |path: &str, schema: &str| format!("POST {path}{LOGIN} {}", body(schema));
    for (schema, register, asked, record) in [
        (None, true, ask("/subjects/orders-value/versions", derived), vec![0, 0, 1, 2, 3, 2, 8]),
        (Some(&given), true, ask("/subjects/orders-value/versions", &given.to_string()), vec![0, 0, 1, 2, 3, 8]),
        (Some(&given), false, ask("/subjects/orders-value", &given.to_string()), vec![0, 0, 0, 0, 8, 8]),
        (None, false, format!("/subjects/orders-value/versions/latest{LOGIN}"), vec![0, 0, 0, 0, 9, 8]),
    ] {
        let records = registered(&registry, schema, register);
        let writer = records.prepare(columns).await.unwrap();
        assert_eq!(registry.asked(), [asked]);
        assert_eq!(all(&*writer, &rows), [record]);
        assert_eq!(registry.asked(), [""; 0], "writing asks nobody");
        records.check(Some(columns)).await.unwrap();
        let asked = registry.asked().concat();
        assert!(!asked.contains("POST /subjects/orders-value/versions"), "a check registers nothing: {asked}");
    }
}

#[tokio::test]
async fn what_a_registry_refuses_is_told_and_what_may_pass_is_tried_again() {
    let schema = batch([("n", Arc::new(Int64Array::from(vec![4])) as ArrayRef)]).schema();
    let columns = Columns { fields: schema.fields(), spare: &[] };
    let refused =
        json!({"error_code": 409, "message": "Schema being registered is incompatible: READER_FIELD_MISSING"});
    for (answer, register, is_transient, wanted) in [
        ((409, refused), true, false, &["READER_FIELD_MISSING", "way out: ", "another `subject`"][..]),
        (
            (422, json!({"error_code": 42205, "message": "Subject is in read-only mode"})),
            true,
            false,
            &["the registry refuses it", "read-only"],
        ),
        ((401, json!({"error_code": 401, "message": "Unauthorized"})), true, false, &["check `user` and `password`"]),
        (
            (500, json!({"error_code": 50001, "message": "Error in the backend data store"})),
            true,
            true,
            &["Error in the backend"],
        ),
        (
            (404, json!({"error_code": 40401, "message": "Subject not found"})),
            false,
            false,
            &["subject orders-value: Subject not found"],
        ),
        ((404, json!("no registry")), true, true, &["is it the URL of a registry?"]),
    ] {
        let registry = StandIn::new(move |_, _| answer.clone());
        let error = registered(&registry, None, register).prepare(columns).await.err().unwrap();
        assert_eq!(matches!(error, PrepareError::Transient(_)), is_transient, "{error}");
        assert!(wanted.iter().all(|wanted| error.to_string().contains(wanted)), "{error}");
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }
    let given = record(&json!([{"name": "n", "type": "long"}]));
    let registry = StandIn::new(|_, _| (404, json!({"error_code": 40403, "message": "Schema not found"})));
    let error = registered(&registry, Some(&given), false).prepare(columns).await.err().unwrap();
    assert!(matches!(&error, PrepareError::Fatal(why) if why.contains("remove `register: false`")), "{error}");
    registered(&registry, Some(&given), true).check(Some(columns)).await.unwrap();
    let asked = registry.asked().concat();
    assert!(asked.contains("POST /compatibility/subjects/orders-value/versions/latest?verbose=true"), "{asked}");
    for said in [json!({"messages": ["{errorType: MISSING}"]}), json!({"reason": "MISSING at /fields/0"})] {
        let registry = StandIn::new(move |_, _| {
            let mut answer = said.clone();
            answer["is_compatible"] = json!(false);
            (200, answer)
        });
        let error = registered(&registry, None, true).check(Some(columns)).await.err().unwrap();
        assert!(
            matches!(&error, PrepareError::Fatal(why) if why.contains("MISSING") && why.contains("way out")),
            "{error}"
        );
    }
}

pub(super) fn protobuf(descriptors: &[u8], message: &str) -> Config {
    let message = Located { value: message.to_owned(), at: At::default() };
    Config::Protobuf(model::Protobuf { descriptors: in_job(descriptors), message, confluent: false })
}

/// What Google's Protobuf has written, read as rows and written again, is the same bytes.
#[test]
fn messages_are_written_as_google_writes_them() {
    let Some(python) = module("grpc_tools") else { return };
    for seed in ["11", "12"] {
        let cases = tool(&python, include_str!("../tests/protobuf.py"), &[seed, "300"]);
        let config = protobuf(&hex(&cases["descriptors"]), "shop.v1.Outer.Order");
        let reader = codec(&config);
        let schema = reader.infer(&[]).unwrap();
        let decoded = reader.decoder(&schema, &schema).decode(&of_records(&bytes_of(&cases["records"])));
        assert_eq!(decoded.rejects, []);
        let rows = decoded.rows;
        let written = all(&*writer(&config, &rows.schema()).unwrap(), &rows);
        assert_eq!(written.len(), 300);
        for (at, (record, expected)) in written.iter().zip(bytes_of(&cases["written"])).enumerate() {
            assert_eq!(*record, expected, "row {at}");
        }
    }
}

#[test]
fn rows_that_are_no_messages_are_told() {
    let Some(python) = module("grpc_tools") else { return };
    let cases = tool(&python, include_str!("../tests/protobuf.py"), &["13", "1"]);
    let config = protobuf(&hex(&cases["descriptors"]), "shop.v1.Outer.Order");
    let long = |values: Vec<Option<i64>>| Arc::new(Int64Array::from(values)) as ArrayRef;
    let text = |values: Vec<Option<&str>>| Arc::new(StringArray::from(values)) as ArrayRef;
    for (columns, wanted) in [
        (batch([("a", text(vec![None]))]), "column `a` is string, and int32 in the message: cast the column"),
        (batch([("u", long(vec![None]))]), "column `u` is int64, and google.protobuf.Timestamp in the message"),
        (batch([("aa", long(vec![None]))]), "column `aa` (int64) has no field in the schema: add one, or leave"),
        (batch([("o", long(vec![None]))]), "column `o` is int64, and repeated int32 in the message"),
    ] {
        let error = writer(&config, &columns.schema()).err().unwrap();
        assert!(error.contains(wanted), "{error}");
    }
    let rows = batch([
        ("a", long(vec![Some(1 << 31), None, None, None, Some(-1)])),
        ("c", long(vec![None, Some(-1), None, None, Some(1)])),
        ("l", text(vec![None, None, Some("HUGE"), None, Some("LARGE")])),
        ("z1", text(vec![None, None, None, Some("x"), None])),
        ("z2", long(vec![None, None, None, Some(1), Some(2)])),
        ("spare", long(vec![None; 5])),
    ]);
    let refused = [
        "type: column a: 2147483648 is not an int32",
        "type: column c: -1 is not a uint32",
        "type: column l: \"HUGE\" is not a shop.v1.Kind",
        "type: columns z1 and z2 are both set, and a record has one of them (`oneof`)",
    ];
    let written = write(&*writer(&config, &rows.schema()).unwrap(), &rows);
    assert_eq!(written[..4], refused.map(|why| Err(why.to_owned())));
    let minus_one = [8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1];
    assert_eq!(written[4], Ok(Some([&minus_one[..], &[24, 1, 96, 2, 0xd8, 1, 2]].concat())));
}

#[test]
fn a_column_is_written_as_it_is_and_null_is_no_value() {
    let rows = batch([
        ("body", Arc::new(BinaryArray::from(vec![Some(&b"\0\n"[..]), None, Some(b"")])) as ArrayRef),
        ("text", Arc::new(StringArray::from(vec![Some("é"), None, Some("")]))),
        ("n", Arc::new(Int64Array::from(vec![1, 2, 3]))),
    ]);
    let of = |column: &str| writer(&Config::Bytes(column.into()), &rows.schema());
    let written = |column: &str| write(&*of(column).unwrap(), &rows);
    assert_eq!(written("body"), [Ok(Some(vec![0, 10])), Ok(None), Ok(Some(vec![]))]);
    assert_eq!(written("text"), [Ok(Some("é".as_bytes().to_vec())), Ok(None), Ok(Some(vec![]))]);
    assert!(of("n").err().unwrap().contains("the column `n` is int64, and has to be binary or string"));
    assert!(of("bytes").err().unwrap().contains("no column `bytes`; they have body, text, n"));
}
