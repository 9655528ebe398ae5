//! Held against fastavro's writing and reading; what is broken is a reject, and never a row.
#![allow(clippy::unwrap_used)]

use arrow::datatypes::Fields;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::codec::{
    scalar::{self, Scalar},
    tests::{as_json, as_shown, digits, hex, module, of_records, tool},
};

fn parsed(schema: &Value) -> Arc<Schema> {
    Arc::new(Schema::parse(&schema.to_string(), &[]).unwrap())
}

/// Records without framing, by the schema that wrote them and perhaps another to read them by.
fn decode(writer: &Arc<Schema>, reader: Option<&Arc<Schema>>, records: &[Vec<u8>]) -> Decoded {
    let columns = reader.unwrap_or(writer).columns().unwrap();
    decode_as(writer, reader, columns.fields(), records)
}

fn decode_as(writer: &Arc<Schema>, reader: Option<&Arc<Schema>>, fields: &Fields, records: &[Vec<u8>]) -> Decoded {
    let rows = Rows::new(writer, reader, fields);
    let schema = Arc::new(arrow::datatypes::Schema::new(fields.clone()));
    rows::binary(&schema, &of_records(records), |record, columns, row| rows.append(record, 0, columns, row))
}

#[test]
fn records_of_fastavro_become_the_rows_that_it_says() {
    let Some(python) = module("fastavro") else { return };
    for seed in ["1", "2", "3"] {
        let cases = tool(&python, include_str!("../tests/avro.py"), &[seed, "60"]);
        let (mut rows, mut rejects) = (0, 0);
        for case in cases.as_array().unwrap() {
            let (writer, reader) = (parsed(&case["schema"]), case.get("reader").map(parsed));
            let records: Vec<_> = case["records"].as_array().unwrap().iter().map(hex).collect();
            let decoded = decode(&writer, reader.as_ref(), &records);
            let expected = case["rows"].as_array().unwrap();
            let good: Vec<_> = expected.iter().filter(|row| !row.is_null()).collect();
            assert_eq!(decoded.rejects.len(), expected.len() - good.len(), "{case}: {:?}", decoded.rejects);
            let mut lines = Vec::new();
            let mut encoder = crate::codec::encoder(&model::Codec::Json, &decoded.rows.schema()).unwrap();
            encoder.encode(&decoded.rows, &mut lines).unwrap();
            let lines = String::from_utf8(lines).unwrap();
            for ((row, line), expected) in as_json(&decoded.rows).iter().zip(lines.lines()).zip(good) {
                assert!(as_shown(row, expected), "{}\nis      {row}\nand not {expected}", case["schema"]);
                for digits in digits(expected) {
                    assert!(line.contains(&digits), "{digits} is not in {line}");
                }
            }
            rows += decoded.records.len();
            rejects += decoded.rejects.len();
        }
        assert!(rows > 1000 && rejects >= 2, "{rows} rows, {rejects} rejects");
    }
}

/// Several events in one topic: the text of one does not tell which it is, its name does, where the job asks for it.
#[test]
fn a_column_tells_which_record_of_a_union_it_was() {
    let event = |name: &str| json!({"type": "record", "name": name, "namespace": "shop", "fields": [{"name": "id", "type": "int"}]});
    let writer = parsed(&json!(["null", event("Made"), event("Paid"), "string"]));
    let text = |name: &str| arrow::datatypes::Field::new(name, arrow::datatypes::DataType::Utf8, true);
    // A null, Made { id: 7 }, Paid { id: -1 }, a text, and a branch that there is not.
    let records: Vec<Vec<u8>> = vec![vec![0], vec![2, 14], vec![4, 1], vec![6, 2, b'x'], vec![8]];
    let decoded = decode_as(&writer, None, &Fields::from(vec![text("record"), text("value")]), &records);
    let rows: Vec<Value> = as_json(&decoded.rows);
    assert_eq!(
        rows,
        [
            json!({"record": null, "value": null}),
            json!({"record": "shop.Made", "value": "{\"id\":7}"}),
            json!({"record": "shop.Paid", "value": "{\"id\":-1}"}),
            json!({"record": null, "value": "x"}),
        ]
    );
    assert_eq!(decoded.rejects.iter().map(|bad| bad.record).collect::<Vec<_>>(), [4]);
    // Nobody who does not ask gets it.
    let columns = writer.columns().unwrap();
    assert_eq!(columns.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>(), ["value"]);
}

fn order() -> Arc<Schema> {
    parsed(&json!({"type": "record", "name": "Order", "namespace": "shop", "fields": [
        {"name": "id", "type": "long"},
        {"name": "note", "type": ["null", "string"]},
        {"name": "lines", "type": {"type": "array", "items": {"type": "record", "name": "Line", "fields": [
            {"name": "sku", "type": "string"}, {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}}]}}},
        {"name": "tags", "type": {"type": "map", "values": "int"}},
        {"name": "last", "type": ["null", "Line"]}]}))
}

/// An order with everything in it.
fn an_order() -> Vec<u8> {
    let mut record = vec![0x54, 2, 6];
    record.extend(b"new");
    record.extend([2, 4, b'a', b'b', 4, 0x01, 0x00, 0]); // one line: "ab", 2.56
    record.extend([2, 2, b'k', 14, 0]); // {"k": 7}
    record.extend([2, 2, b'c', 2, 0xff]); // last: "c", -0.01
    record
}

#[test]
fn a_record_that_is_cut_off_is_a_reject_wherever_that_is() {
    let (schema, whole) = (order(), an_order());
    let decoded = decode(&schema, None, std::slice::from_ref(&whole));
    assert_eq!(decoded.rejects, []);
    let lines = json!([{"sku": "ab", "price": 2.56}]);
    let row = &as_json(&decoded.rows)[0];
    assert_eq!((&row["id"], &row["note"], &row["lines"]), (&json!(42), &json!("new"), &lines));
    assert_eq!((&row["tags"], &row["last"]), (&json!(r#"{"k":7}"#), &json!({"sku": "c", "price": -0.01})));
    let cut: Vec<_> = (0..whole.len()).map(|end| whole[..end].to_vec()).collect();
    let decoded = decode(&schema, None, &cut);
    assert_eq!((decoded.records.len(), decoded.rejects.len()), (0, cut.len()));
    assert!(decoded.rejects.iter().all(|reject| reject.reason == "bad_avro"));
    let longer = [&whole[..], &[0]].concat();
    assert!(decode(&schema, None, &[longer]).rejects[0].detail.contains("goes on after its value"));
}

#[test]
fn bad_records_cost_themselves() {
    let (schema, whole) = (order(), an_order());
    let decoded = decode(&schema, None, &[whole.clone(), b"nonsense".to_vec(), whole.clone()]);
    assert_eq!((decoded.records, decoded.rejects.len()), (vec![0, 2], 1));
    assert_eq!(decoded.rows.num_rows(), 2);
}

#[test]
fn columns_that_are_not_used_are_passed_over() {
    let schema = order();
    let all = schema.columns().unwrap();
    for used in [vec![], vec![0], vec![4], vec![3, 1]] {
        let fields: Fields = used.iter().map(|at| all.field(*at).clone()).collect();
        let decoded = decode_as(&schema, None, &fields, &[an_order(), an_order()]);
        assert_eq!((decoded.rows.num_rows(), decoded.rejects.len()), (2, 0), "{used:?}");
        let whole = as_json(&decode(&schema, None, &[an_order()]).rows);
        for field in &fields {
            assert_eq!(as_json(&decoded.rows)[1][field.name()], whole[0][field.name()]);
        }
    }
}

#[test]
fn counts_and_depths_are_bounded() {
    let nulls = parsed(
        &json!({"type": "record", "name": "R", "fields": [{"name": "n", "type": {"type": "array", "items": "null"}}]}),
    );
    let huge = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0];
    let negative = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0, 0];
    let decoded = decode(&nulls, None, &[huge.to_vec(), negative.to_vec(), vec![2, 0]]);
    assert_eq!((decoded.records, decoded.rejects.len()), (vec![2], 2));
    let list = parsed(&json!({"type": "record", "name": "L", "fields": [{"name": "next", "type": ["null", "L"]}]}));
    let deep = vec![2; 1 << 20];
    let decoded = decode(&list, None, &[deep.clone(), vec![2, 2, 0]]);
    assert_eq!((decoded.records, &*decoded.rejects[0].detail), (vec![1], "at byte 129: values are nested too deep"));
    assert_eq!(decode_as(&list, None, &Fields::empty(), &[deep]).rejects.len(), 1, "nor where nobody looks");
    let within = parsed(&json!({"type": "record", "name": "E", "fields": [{"name": "e", "type": "E"}]}));
    assert_eq!(decode(&within, None, &[vec![]]).rejects.len(), 1, "a record that must hold itself");
}

#[test]
fn columns_may_have_other_types_than_the_records() {
    let schema = parsed(&json!({"type": "record", "name": "R", "fields": [
        {"name": "i", "type": "int"}, {"name": "s", "type": "string"}, {"name": "t", "type": {"type": "long", "logicalType": "timestamp-millis"}}]}));
    let records = [vec![84, 4, b'1', b'2', 0xd0, 0x0f], vec![84, 4, b'n', b'o', 0]];
    let as_given =
        |kinds: &[(&str, &str)]| decode_as(&schema, None, crate::codec::tests::schema(kinds).fields(), &records);
    let decoded = as_given(&[("i", "string"), ("s", "int64"), ("t", "string")]);
    assert_eq!(as_json(&decoded.rows), [json!({"i": "42", "s": 12, "t": "1970-01-01T00:00:01Z"})]);
    assert_eq!(decoded.rejects[0].detail, "column s: \"no\" is not an int64");
    let decoded = as_given(&[("t", "date"), ("i", "decimal(5,2)"), ("absent", "string")]);
    assert_eq!(as_json(&decoded.rows)[0], json!({"t": "1970-01-01", "i": 42.0, "absent": null}));
    assert_eq!(as_given(&[("i", "list<int32>")]).rejects.len(), 2);
}

#[test]
fn single_objects_carry_the_fingerprint_of_their_schema() {
    let text = json!({"type": "record", "name": "R", "fields": [{"name": "a", "type": "int"}]}).to_string();
    let file = SchemaFile {
        path: model::Located { value: "r.avsc".into(), at: model::At::default() },
        content: Ok(Arc::from(text.as_bytes())),
    };
    let options = model::Avro { registry: None, schema: Some(file), framing: AvroFraming::SingleObject };
    let codec = Avro::new(&options).unwrap();
    let schema = codec.infer(&[]).unwrap();
    let fingerprint = apache_avro::Schema::parse_str(&text).unwrap().fingerprint::<apache_avro::rabin::Rabin>().bytes;
    let good = [&[0xc3, 0x01][..], &fingerprint, &[2]].concat();
    let mut other = good.clone();
    other[5] ^= 1;
    let slice = of_records(&[good, other, vec![2], vec![0xc3, 0x01, 9]]);
    let decoded = codec.decoder(&schema, &schema).decode(&slice);
    assert_eq!(decoded.records, [0]);
    let reasons: Vec<_> = decoded.rejects.iter().map(|reject| reject.reason).collect();
    assert_eq!(reasons, ["unknown_schema", "bad_avro", "bad_avro"]);
}

#[test]
fn decimals_are_as_long_as_their_column() {
    let mut column = crate::codec::column::Column::new(&arrow::datatypes::DataType::Decimal128(4, 2), 4);
    assert!(scalar::put(&mut column, &Scalar::Decimal(9999, 2)));
    assert!(!scalar::put(&mut column, &Scalar::Decimal(10_000, 2)));
    assert!(scalar::put(&mut column, &Scalar::Decimal(12, 0)));
    assert!(!scalar::put(&mut column, &Scalar::Decimal(12_345, 3)), "it would be rounded");
    assert_eq!(column.len(), 2);
}

proptest! {
    /// Bytes that are wrong anywhere are a row or a reject, and no panic.
    #[test]
    fn no_bytes_panic(at in 0_usize..40, byte: u8, noise in proptest::collection::vec(any::<u8>(), 0..40)) {
        let (schema, mut changed) = (order(), an_order());
        let place = at % changed.len();
        changed[place] = byte;
        let slice = of_records(&[changed.clone(), noise.clone()]);
        crate::codec::tests::check(&decode(&schema, None, &[changed.clone(), noise.clone()]), &slice);
        let skipped = decode_as(&schema, None, &Fields::empty(), &[changed, noise]);
        crate::codec::tests::check(&skipped, &slice);
    }
}
