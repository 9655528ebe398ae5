use arrow::array::{Array, AsArray};
use serde_json::json;

use super::*;

const JSON: model::Codec = model::Codec::Json;

/// One record with one column `v` of a type: its value as JSON, or the reject.
fn value(kind: &str, text: &str) -> Result<Value, (&'static str, String)> {
    let slice = one_record(format!("{{\"v\":{text}}}").as_bytes());
    let decoded = decode(&JSON, &schema(&[("v", kind)]), &slice);
    match decoded.rejects.first() {
        Some(reject) => Err((reject.reason, reject.detail.clone())),
        None => Ok(as_json(&decoded.rows)[0]["v"].clone()),
    }
}

#[test]
fn json_test_suite() {
    let Some(folder) = data("json-testsuite") else { return };
    let empty = schema(&[]);
    let (mut accepted, mut refused, mut either) = (0, 0, 0);
    for entry in std::fs::read_dir(folder.join("test_parsing")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let bytes = std::fs::read(&path).unwrap();
        let slice = one_record(&bytes);
        let decoded = decode(&JSON, &empty, &slice);
        // Every column of every type sees it too.
        let wide =
            schema(&[("a", "string"), ("", "int64"), ("b", "list<struct<c: float64>>"), ("x", "struct<id: string>")]);
        let other = codec(&JSON).decoder(&with_extra(&wide), &wide).decode(&slice);
        let inferred = codec(&JSON).infer(std::slice::from_ref(&slice)).unwrap();
        let outcome = |decoded: &Decoded| decoded.rejects.first().map_or("row", |reject| reject.reason);
        // The same file through framing.
        let (framed, error) = slice_of(&JSON, &bytes);
        let through = codec(&JSON).decoder(&empty, &empty).decode(&framed);
        match name.as_bytes()[0] {
            b'y' => {
                accepted += 1;
                let is_object = bytes.trim_ascii_start().starts_with(b"{");
                assert_eq!(outcome(&decoded), if is_object { "row" } else { "not_an_object" }, "{name}");
                assert!(matches!(outcome(&other), "row" | "not_an_object" | "type"), "{name}: {other:?}");
                assert_eq!(error, None, "{name}");
                assert!(through.rejects.iter().all(|reject| reject.reason == "not_an_object"), "{name}: {through:?}");
                assert!(!is_object || through.rows.num_rows() == 1, "{name}: {through:?}");
            }
            b'n' => {
                refused += 1;
                assert!(matches!(outcome(&decoded), "json" | "utf8"), "{name}: {decoded:?}");
                assert!(matches!(outcome(&other), "json" | "utf8"), "{name}: {other:?}");
                assert!(inferred.fields().is_empty(), "{name}");
                assert!(error.is_some() || through.rows.num_rows() == 0, "{name}: {through:?}");
            }
            _ => {
                either += 1;
                assert_eq!(outcome(&decoded) == "row", matches!(outcome(&other), "row" | "type"), "{name}");
            }
        }
    }
    assert_eq!((accepted, refused, either), (95, 188, 35));
}

#[test]
fn values_fit_their_types_or_are_refused() {
    let cases: &[(&str, &str, Value)] = &[
        ("string", r#""plain""#, json!("plain")),
        ("string", r#""a\"b\\\/\b\f\n\r\t\u00e9\ud83d\ude00""#, json!("a\"b\\/\u{8}\u{c}\n\r\té😀")),
        ("string", r#""half \ud83d!""#, json!("half \u{fffd}!")),
        ("string", r#""\ude00\ud83d\u0041""#, json!("\u{fffd}\u{fffd}A")),
        ("string", "12.50", json!("12.50")),
        ("string", "true", json!("true")),
        ("string", r#"{"k": [1, 2]}"#, json!("{\"k\": [1, 2]}")),
        ("string", "null", json!(null)),
        ("int64", "-9223372036854775808", json!(i64::MIN)),
        ("int64", "1.0", json!(1)),
        ("int64", "12e2", json!(1200)),
        ("int64", r#""42""#, json!(42)),
        ("int32", "2147483647", json!(i32::MAX)),
        ("float64", "1", json!(1.0)),
        ("float64", "-1.5e3", json!(-1500.0)),
        ("float64", r#""2.5""#, json!(2.5)),
        ("boolean", "false", json!(false)),
        ("boolean", r#""True""#, json!(true)),
        ("timestamp", r#""2015-05-17T10:05:03.25+02:00""#, json!("2015-05-17T08:05:03.250Z")),
        ("timestamp", "1431849903001", json!("2015-05-17T08:05:03.001Z")),
        ("timestamp", "1431849903000.5", json!("2015-05-17T08:05:03.000500Z")),
        ("date", r#""2015-05-17""#, json!("2015-05-17")),
        ("decimal(5, 2)", "123.4", json!(123.4)),
        ("decimal(5, 2)", r#""-0.5""#, json!(-0.5)),
        ("binary", r#""aGk=""#, json!("aGk=")),
        ("list<int64>", "[1, null, \"3\"]", json!([1, null, 3])),
        ("list<list<string>>", "[[], null, [\"a\"]]", json!([[], null, ["a"]])),
        ("struct<a: int64, b: string>", r#"{"b": "x", "c": 1}"#, json!({"a": null, "b": "x"})),
        ("struct<a: int64>", r#"{"a": 1, "a": 2}"#, json!({"a": 2})),
    ];
    for (kind, text, expected) in cases {
        assert_eq!(value(kind, text).as_ref(), Ok(expected), "{kind}: {text}");
    }
    let refused: &[(&str, &str, &str)] = &[
        ("int64", "9223372036854775808", "column v: 9223372036854775808 is not an int64"),
        ("int64", "1.5", "column v: 1.5 is not an int64"),
        ("int64", r#""-""#, "column v: \"-\" is not an int64"),
        ("int64", "true", "column v: true is not an int64"),
        ("int32", "2147483648", "column v: 2147483648 is not an int32"),
        ("float64", "1e999", "column v: 1e999 is not a float64"),
        ("boolean", "1", "column v: 1 is not true or false"),
        ("date", "16572", "column v: 16572 is not a date (such as 2015-05-17)"),
        ("date", r#""2015-02-29""#, "column v: \"2015-02-29\" is not a date (such as 2015-05-17)"),
        ("decimal(5, 2)", "1234.5", "column v: 1234.5 is not a decimal(5,2) without rounding"),
        ("decimal(5, 2)", "0.001", "column v: 0.001 is not a decimal(5,2) without rounding"),
        ("list<int64>", "[1, \"x\"]", "column v: \"x\" is not an int64"),
        ("list<int64>", "{}", "column v: {} is not a list"),
        ("struct<a: struct<b: int64>>", r#"{"a": {"b": []}}"#, "column v.a.b: [] is not an int64"),
        ("binary", r#""a""#, "column v: \"a\" is not base64"),
    ];
    for (kind, text, detail) in refused {
        assert_eq!(value(kind, text), Err(("type", (*detail).to_owned())), "{kind}: {text}");
    }
}

#[test]
fn a_record_that_fails_leaves_nothing_behind() {
    let schema = schema(&[
        ("s", "string"),
        ("l", "list<struct<a: int64, b: string>>"),
        ("n", "int64"),
        ("o", "struct<x: list<string>>"),
    ]);
    let good = r#"{"s":"a","l":[{"a":1,"b":"x"},{"b":"y"}],"n":7,"o":{"x":["p","q"]}}"#;
    let bad = [
        r#"{"s":"zzz","l":[{"a":1,"b":"x"},{"a":"no"}],"n":7}"#,
        r#"{"s":"zzz","o":{"x":["p","q",{}"#,
        r#"{"o":{"x":["p"]},"n":1.5}"#,
        r#"{"s":"zzz","l":[{"a":1}],"n":7} x"#,
        r#"{"n":7,"s":"zzz\x"}"#,
        r#"{"n":1.5,"s"}"#,
        "17",
        "",
    ];
    let mut lines = vec![good];
    for line in bad {
        lines.extend([line, good]);
    }
    let (mut records, mut bytes) = (Vec::new(), Vec::new());
    for line in &lines {
        records.push((bytes.len() as u32, (bytes.len() + line.len()) as u32));
        bytes.extend(line.bytes());
    }
    let decoded = decode(&JSON, &schema, &slice(&bytes, records, None));
    let reasons: Vec<_> = decoded.rejects.iter().map(|reject| reject.reason).collect();
    assert_eq!(reasons, ["type", "json", "type", "json", "json", "json", "not_an_object", "json"]);
    let expected = json!({"s": "a", "l": [{"a": 1, "b": "x"}, {"a": null, "b": "y"}], "n": 7, "o": {"x": ["p", "q"]}});
    assert_eq!(as_json(&decoded.rows), vec![expected; bad.len() + 1]);
}

#[test]
fn broken_utf_8_costs_one_record() {
    let (slice, _) = slice_of(&JSON, b"{\"a\":\"1\"}\n{\"a\":\"\xff\"}\n{\"a\":\"3\"}\n");
    let decoded = decode(&JSON, &schema(&[("a", "string")]), &slice);
    assert_eq!(as_json(&decoded.rows), [json!({"a": "1"}), json!({"a": "3"})]);
    assert_eq!((decoded.rejects[0].record, decoded.rejects[0].reason), (1, "utf8"));
    // The slice as a whole is UTF-8, a record that begins inside of a letter is not.
    let split = slice_of(&JSON, "{\"a\":\"é\"}".as_bytes()).0;
    let split = Slice { records: vec![(0, 7), (7, 10)], ..split };
    assert_eq!(
        decode(&JSON, &schema(&[]), &split).rejects.iter().map(|r| r.reason).collect::<Vec<_>>(),
        ["utf8", "utf8"]
    );
}

#[test]
fn keys_may_come_in_any_order_and_any_writing() {
    let schema = schema(&[("a", "int64"), ("b", "string"), ("é", "int64")]);
    let file = "{\"a\":1,\"b\":\"x\",\"é\":5}\n{\"b\":\"y\",\"a\":2}\n{\"\\u0061\":3,\"\\u00e9\":6}\n{ \"a\" : 4 , \"zz\" : [ { } ] , \"b\" : null }\n{}\n{\"a\":1,\"a\":null,\"b\":\"1\",\"\\u0062\":\"2\"}\n{\"a\":1,\"ab\":2,\"b\\\"\":3}\n";
    let (slice, _) = slice_of(&JSON, file.as_bytes());
    let decoded = decode(&JSON, &schema, &slice);
    let rows: Vec<_> =
        as_json(&decoded.rows).iter().map(|row| (row["a"].clone(), row["b"].clone(), row["é"].clone())).collect();
    let null = || json!(null);
    assert_eq!(
        rows,
        [
            (json!(1), json!("x"), json!(5)),
            (json!(2), json!("y"), null()),
            (json!(3), null(), json!(6)),
            (json!(4), null(), null()),
            (null(), null(), null()),
            (null(), json!("2"), null()),
            (json!(1), null(), null()),
        ]
    );
}

#[test]
fn unknown_fields_are_kept_as_they_were_written() {
    let known = schema(&[("a", "int64"), ("b", "string")]);
    let wanted = with_extra(&schema(&[("a", "int64")]));
    let (slice, _) = slice_of(
        &JSON,
        b"{\"a\":1,\"b\":\"x\"}\n{\"new\" : 1.50, \"a\":2,\"n\\u0065w\":{\"k\":[ 1,\"\\u00e9\"]}, \"_extra\":\"mine\"}\n",
    );
    let decoded = codec(&JSON).decoder(&wanted, &known).decode(&slice);
    let extra = decoded.rows.column(1).as_string::<i32>();
    assert!(extra.is_null(0));
    assert_eq!(extra.value(1), r#"{"n\u0065w":{"k":[ 1,"\u00e9"]},"_extra":"mine"}"#);
    // They come back on writing; explicit columns win.
    assert_eq!(as_json(&decoded.rows)[1], json!({"a": 2, "new": {"k": [1, "é"]}, "_extra": "mine"}));
    let renamed =
        arrow::array::RecordBatch::try_new(with_extra(&schema(&[("new", "int64")])), decoded.rows.columns().to_vec())
            .unwrap();
    assert_eq!(as_json(&renamed), [json!({"new": 1}), json!({"new": 2, "_extra": "mine"})]);
}

#[test]
fn unknown_fields_inside_of_columns_are_kept_and_put_back() {
    let pinned = schema(&[("id", "int64"), ("o", "struct<a: int64, l: list<struct<x: int64>>>")]);
    let known = with_extra(&pinned);
    let read = |text: &str| {
        let decoded = codec(&JSON).decoder(&known, &pinned).decode(&one_record(text.as_bytes()));
        assert_eq!(decoded.rejects, [], "{text}");
        decoded.rows
    };
    let extra = |rows: &RecordBatch| {
        let column = rows.column(2).as_string::<i32>();
        column.is_valid(0).then(|| column.value(0).to_owned())
    };
    let rows = read(r#"{"o":{"a":1,"new":{"deep":[1,2.50]},"l":[{"x":1},{"y":2}, null]},"id":7,"late":true}"#);
    assert_eq!(
        extra(&rows).unwrap(),
        r#"{"late":true,"_extra":{"o":{"a":1,"new":{"deep":[1,2.50]},"l":[{"x":1},{"y":2}, null]}}}"#
    );
    let written = as_json(&rows)[0].to_string();
    assert_eq!(
        written,
        r#"{"id":7,"o":{"a":1,"l":[{"x":1},{"x":null,"y":2},null],"new":{"deep":[1,2.5]}},"late":true}"#
    );
    // The last field of a name is the one, with or without unknown fields.
    assert_eq!(extra(&read(r#"{"o":{"b":1},"o":{"a":2}}"#)), None);
    assert_eq!(extra(&read(r#"{"o":{"a":1},"o":{"b":2}}"#)).unwrap(), r#"{"_extra":{"o":{"b":2}}}"#);
    assert_eq!(extra(&read(r#"{"o":{"a":1}}"#)), None);
    // A column that a step dropped does not come back.
    let dropped = rows.project(&[0, 2]).unwrap();
    assert_eq!(as_json(&dropped)[0], json!({"id": 7, "late": true}));
}

#[test]
fn an_extra_that_is_no_object_is_written_as_it_is() {
    let schema = with_extra(&schema(&[]));
    for (text, expected) in
        [("{\"a\":\n1}", json!({"a": 1})), ("{\"a\":1", json!({"_extra": "{\"a\":1"})), ("{}", json!({}))]
    {
        let rows =
            RecordBatch::try_new(schema.clone(), vec![Arc::new(arrow::array::StringArray::from(vec![text]))]).unwrap();
        assert_eq!(as_json(&rows), [expected]);
    }
}

#[test]
fn schemas_are_inferred_as_wide_as_the_values_need() {
    let file = r#"
{"i":1,"f":1,"m":1,"n":null,"b":true,"s":"x","l":[1,2.5],"o":{"x":1,"y":null},"big":99999999999999999999,"e":[],"w":{"a:b":1},"u":{}}
nonsense
{"i":-2,"f":1.5,"m":"x","l":[],"o":{"z":[{"q":true}],"y":"t"},"late":{"d":[[1],["x"]]}}
[1]
{"f":null,"m":{"k":1}}
"#;
    let (slice, _) = slice_of(&JSON, file.as_bytes());
    let schema = codec(&JSON).infer(&[slice]).unwrap();
    assert_eq!(
        types(&schema),
        [
            "i: int64",
            "f: float64",
            "m: string",
            "n: string",
            "b: boolean",
            "s: string",
            "l: list<float64>",
            "o: struct<x: int64, y: string, z: list<struct<q: boolean>>>",
            "big: string",
            "e: list<string>",
            "w: string",
            "u: string",
            "late: struct<d: list<list<string>>>",
        ]
    );
    // A pinned schema is written down and read again.
    for field in schema.fields() {
        let kind = Type::parse(&type_name(field.data_type())).unwrap();
        assert_eq!(&super::super::schema::data_type(&kind), field.data_type());
    }
    let deep = format!("{{\"a\":{}1{}}}\n", "[".repeat(40), "]".repeat(40));
    let (slice, _) = slice_of(&JSON, deep.as_bytes());
    let schema = codec(&JSON).infer(&[slice]).unwrap();
    assert!(Type::parse(&type_name(schema.field(0).data_type())).is_ok());
}

#[test]
fn nesting_has_a_limit() {
    let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    for (depth, expected) in [(127, 0), (128, 0), (129, 1), (100_000, 1)] {
        let text = nested(depth);
        let rejects = decode(&JSON, &schema(&[]), &one_record(text.as_bytes())).rejects;
        assert_eq!(rejects.len(), expected, "{depth}");
    }
}

#[test]
fn more_keys_than_are_remembered() {
    let known = schema(&[("k5000", "int64")]);
    let fields: Vec<_> = (0..6000).map(|n| format!("\"k{n}\":{n}")).collect();
    let text = format!("{{{}}}", fields.join(","));
    let decoded = codec(&JSON).decoder(&with_extra(&known), &known).decode(&one_record(text.as_bytes()));
    let expected: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(as_json(&decoded.rows), [expected]);
}

#[test]
fn the_last_value_of_a_name_is_the_one_whatever_the_first_was() {
    let wanted = schema(&[("a", "int64"), ("o", "struct<b: list<int64>>")]);
    let read = |text: &str| decode(&JSON, &wanted, &one_record(text.as_bytes()));
    for (text, a, o) in [
        (r#"{"a":"x","a":1}"#, json!(1), json!(null)),
        (r#"{"a":{"b":[1,"]"]},"a":"2","o":{"b":[1,"x"]},"o":{"b":[3]}}"#, json!(2), json!({"b": [3]})),
        (r#"{"o":{"b":[1,"x",2],"b":[4]}}"#, json!(null), json!({"b": [4]})),
        (r#"{"a":"x","a":null}"#, json!(null), json!(null)),
    ] {
        let decoded = read(text);
        assert_eq!(decoded.rejects, [], "{text}");
        assert_eq!(as_json(&decoded.rows), [json!({"a": a, "o": o})], "{text}");
    }
    for (text, reason) in [
        (r#"{"a":1,"a":"x"}"#, "type"),
        (r#"{"a":"x","o":{"b":"y"},"a":1}"#, "type"),
        (r#"{"a":"x"} y"#, "json"),
        (r#"{"a":"x",}"#, "json"),
        (r#"{"a":[1,}"#, "json"),
    ] {
        assert_eq!(read(text).rejects[0].reason, reason, "{text}");
    }
}

#[test]
fn a_string_that_is_not_closed_costs_its_record_alone() {
    let array = "[{\"a\":\"1\"},\n{\"a\":\"x},\r\n  {\"a\":\"3\"},\n{\"a\":{\"b\":\"y}}, \n{\"a\":\"4\"}]\n";
    let lines = "{\n\"a\":\"1\"\n}\n{\n\"a\":\"x,\n\"b\":2\n}\n{\n\"a\":\"3\"\n}\n{\"a\":\"y}\n{\"a\":\"4\"}\n";
    for file in [array, lines] {
        let (slice, error) = slice_of(&JSON, file.as_bytes());
        assert_eq!(error, None, "{file}");
        let decoded = decode(&JSON, &schema(&[("a", "string")]), &slice);
        assert_eq!(as_json(&decoded.rows), [json!({"a": "1"}), json!({"a": "3"}), json!({"a": "4"})], "{file}");
        assert_eq!(decoded.rejects.len(), 2, "{file}");
    }
    // In a list an object may follow: where the record ends is not clear, and it goes on to its brackets.
    let (slice, error) = slice_of(&JSON, b"[{\"a\":[\"x,\n{\"b\":1}]},\n{\"a\":2}]");
    assert_eq!((slice.records.len(), error), (2, None));
}

#[test]
fn objects_with_nothing_between_them() {
    for file in [
        "{\"a\":1}{\"a\":2}{\"a\":\"}{\"}",
        "{\"a\":1} {\"a\":2}\n{\"a\":\"}{\"}\n",
        "{\"a\":1}{\"a\":2}\r\n{\"a\":\n\"}{\"}",
    ] {
        let (slice, error) = slice_of(&JSON, file.as_bytes());
        assert_eq!(error, None);
        let rows = as_json(&decode(&JSON, &schema(&[("a", "string")]), &slice).rows);
        assert_eq!(rows, [json!({"a": "1"}), json!({"a": "2"}), json!({"a": "}{"})], "{file}");
    }
    // Lines stay lines: one bad line is one reject.
    let (slice, _) = slice_of(&JSON, b"{\"a\":1}\n{\"a\":2\n{\"a\":3}\n{\"a\":4}{\n");
    assert_eq!(slice.records.len(), 4);
}

#[test]
fn a_records_own_extra_is_kept_beside_ours() {
    let pinned = schema(&[("id", "int64"), ("o", "struct<a: int64>")]);
    let read = |text: &str| {
        let decoded = codec(&JSON).decoder(&with_extra(&pinned), &pinned).decode(&one_record(text.as_bytes()));
        assert_eq!(decoded.rejects, [], "{text}");
        as_json(&decoded.rows)[0].clone()
    };
    for (text, expected) in [
        (r#"{"_extra":"mine","id":1}"#, json!({"id": 1, "o": null, "_extra": "mine"})),
        (r#"{"\u005fextra":{"x":1},"id":1}"#, json!({"id": 1, "o": null, "_extra_2": {"x": 1}})),
        (r#"{"_extra":{"x":1},"_extra_2":3}"#, json!({"id": null, "o": null, "_extra_3": {"x": 1}, "_extra_2": 3})),
        (r#"{"_extra":5,"o":{"a":1,"b":2}}"#, json!({"id": null, "o": {"a": 1, "b": 2}, "_extra_2": 5})),
    ] {
        assert_eq!(read(text), expected, "{text}");
    }
    // It is no column of its own: fields that are unknown have their place.
    let inferred = codec(&JSON).infer(&[one_record(br#"{"_extra":"mine","id":1,"a\u0000b":2}"#)]).unwrap();
    assert_eq!(types(&inferred), ["id: int64"]);
}

#[test]
fn more_fields_than_columns_are_kept_as_extra() {
    let fields: Vec<_> = (0..10_000).map(|n| format!("\"k{n}\":{n}")).collect();
    let text = format!("{{{},\"k9000\":1,\"k9000\":2}}", fields.join(","));
    let slice = one_record(text.as_bytes());
    let pinned = codec(&JSON).infer(std::slice::from_ref(&slice)).unwrap();
    assert_eq!(pinned.fields().len(), 4096);
    let decoded = codec(&JSON).decoder(&with_extra(&pinned), &pinned).decode(&slice);
    let mut out = Vec::new();
    encoder(&JSON, &decoded.rows.schema()).unwrap().encode(&decoded.rows, &mut out).unwrap();
    let written = String::from_utf8(out).unwrap();
    assert_eq!(written.matches("\"k9000\"").count(), 1, "no name is written twice");
    let expected: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(as_json(&decoded.rows), [expected]);
    // One name a record costs no more, and what is inside of columns has a limit too.
    let sparse: Vec<_> =
        (0..40_000).map(|n| format!("{{\"c{n}\":{{\"d{n}\":1}},\"o\":{{\"e{n}\":1}}}}").into_bytes()).collect();
    let pinned = codec(&JSON).infer(&[of_records(&sparse)]).unwrap();
    assert_eq!(pinned.fields().len(), 4096);
    assert_eq!(types(&pinned)[1], "o: string", "an object with more than 1,024 names is a map");
}

#[test]
fn the_id_of_a_schema_is_passed_over() {
    let framed = model::Codec::JsonWith(model::Json { encoding: "utf-8".into(), confluent: true });
    let records = [b"\0\0\0\x01\xff{\"a\":1}".to_vec(), b"{\"a\":2}".to_vec(), b"\0\0\0\0\x07".to_vec()];
    let slice = of_records(&records);
    assert_eq!(types(&codec(&framed).infer(std::slice::from_ref(&slice)).unwrap()), ["a: int64"]);
    let decoded = decode(&framed, &schema(&[("a", "int64")]), &slice);
    assert_eq!(as_json(&decoded.rows), [json!({"a": 1})]);
    assert!(decoded.rejects[0].detail.contains("remove `framing: confluent`"));
    assert_eq!(decoded.rejects[1].reason, "json");
    let decoded = decode(&JSON, &schema(&[("a", "int64")]), &slice);
    assert_eq!((decoded.rejects[0].reason, decoded.rejects.len()), ("json", 2));
    assert!(decoded.rejects[0].detail.contains("write `framing: confluent`"));
}
