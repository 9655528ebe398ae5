use serde_json::json;

use super::*;

fn csv(change: impl FnOnce(&mut model::Csv)) -> model::Codec {
    let mut options = csv_options();
    change(&mut options);
    model::Codec::Csv(options)
}

#[test]
fn csv_spectrum() {
    const PYTHON: &str =
        "import csv,json,sys\nprint(json.dumps(list(csv.DictReader(open(sys.argv[1], encoding='utf-8', newline='')))))";
    let Some(folder) = data("csv-spectrum") else { return };
    let mut files = 0;
    for entry in std::fs::read_dir(folder.join("csvs")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let expected = std::fs::read(folder.join("json").join(format!("{name}.json"))).unwrap();
        // A file of one record has it without the list.
        let mut expected = match serde_json::from_slice(&expected).unwrap() {
            Value::Array(records) => records,
            record => vec![record],
        };
        if name == "location_coordinates" {
            // The suite changed the number in the JSON alone.
            expected[0]["Contact Phone Number"] = json!("2095257564");
        }
        let mut bytes = std::fs::read(&path).unwrap();
        assert_eq!(Value::Array(rows_of_texts(&bytes)), python(PYTHON, &[path.to_str().unwrap()]), "{name}");
        if name.ends_with("_crlf") && !bytes.contains(&b'\r') {
            // A checkout may have turned the line ends into the system's.
            bytes = String::from_utf8(bytes).unwrap().replace('\n', "\r\n").into_bytes();
        }
        assert_eq!(rows_of_texts(&bytes), expected, "{name}");
        files += 1;
    }
    assert_eq!(files, 12);
}

/// A file with a header, every column a string.
fn rows_of_texts(bytes: &[u8]) -> Vec<Value> {
    let (slice, error) = slice_of(&csv_codec(), bytes);
    assert_eq!(error, None);
    let inferred = codec(&csv_codec()).infer(std::slice::from_ref(&slice)).unwrap();
    let texts: Vec<_> = inferred.fields().iter().map(|field| (field.name().as_str(), "string")).collect();
    let decoded = decode(&csv_codec(), &schema(&texts), &slice);
    assert_eq!(decoded.rejects, []);
    as_json(&decoded.rows)
}

#[test]
fn types_are_inferred_from_texts() {
    let file = "id,zip,price,ok,note,none,big,zero,\"q\"\n1,0123,1.5,true,x,,1,-0,\"7\"\n-2,1000,2,FALSE,,,99999999999999999999,1,\"8\"\n";
    let rows = read(&csv_codec(), file.as_bytes()).rows;
    assert_eq!(
        types(&rows.schema()),
        [
            "id: int64",
            "zip: string",
            "price: float64",
            "ok: boolean",
            "note: string",
            "none: string",
            "big: string",
            "zero: float64",
            "q: int64"
        ]
    );
    assert_eq!(
        as_json(&rows)[1],
        json!({"id": -2, "zip": "1000", "price": 2.0, "ok": false, "note": null, "none": null,
               "big": "99999999999999999999", "zero": 1.0, "q": 8})
    );
}

#[test]
fn a_bad_record_costs_one_reject() {
    let schema = schema(&[("a", "int64"), ("b", "string")]);
    let file = b"a,b\n1,x\n2\n3,y,z\nfour,x\n5,\"p\"q\n6,\xff\n\"\",\n7,\"end\"\nfour,x,y\n8,\"open";
    let (slice, _) = slice_of(&csv_codec(), file);
    let decoded = decode(&csv_codec(), &schema, &slice);
    assert_eq!(
        as_json(&decoded.rows),
        [json!({"a": 1, "b": "x"}), json!({"a": null, "b": null}), json!({"a": 7, "b": "end"})]
    );
    let rejects: Vec<_> = decoded.rejects.iter().map(|r| (r.record, r.reason, r.detail.as_str())).collect();
    assert_eq!(
        rejects,
        [
            (1, "csv", "the record has 1 field, 2 are expected"),
            (2, "csv", "the record has 3 fields, 2 are expected"),
            (3, "type", "column a: \"four\" is not an int64"),
            (4, "csv", "there is text between a closing quote and the delimiter"),
            (5, "utf8", "at byte 2: the bytes are not UTF-8"),
            (8, "csv", "the record has 3 fields, 2 are expected"),
            (9, "csv", "a quoted field is not closed"),
        ]
    );
}

#[test]
fn columns_go_by_name_where_there_is_a_header() {
    let schema = schema(&[("b", "string"), ("c", "string"), ("a", "int64")]);
    let (slice, _) = slice_of(&csv_codec(), b"a, b ,x\n1,2,3\n");
    assert_eq!(as_json(&decode(&csv_codec(), &schema, &slice).rows), [json!({"b": "2", "c": null, "a": 1})]);
    let decoded = codec(&csv_codec()).decoder(&with_extra(&schema), &schema).decode(&slice);
    assert_eq!(as_json(&decoded.rows), [json!({"b": "2", "c": null, "a": 1, "x": "3"})]);

    let bare = csv(|options| options.header = false);
    let (slice, _) = slice_of(&bare, b"x,y,1\n");
    assert_eq!(as_json(&decode(&bare, &schema, &slice).rows), [json!({"b": "x", "c": "y", "a": 1})]);
    assert_eq!(types(&read(&bare, b"x,1\ny,2\n").rows.schema()), ["column_1: string", "column_2: int64"]);
    assert_eq!(
        types(&read(&csv_codec(), b"a,a,,a_2\n1,2,3,4\n").rows.schema()),
        ["a: int64", "a_2: int64", "column_3: int64", "a_2_2: int64"]
    );
}

#[test]
fn options_are_obeyed() {
    let config = csv(|options| {
        options.delimiter = ";".into();
        options.quote = Some(b'\'');
        options.escape = Some(b'\\');
        options.nulls = vec!["NA".into()];
    });
    let rows = read(&config, b"a;b;c\n'it\\'s; \\\\';NA;\n'NA';1,5;x\n").rows;
    assert_eq!(
        as_json(&rows),
        [json!({"a": "it's; \\", "b": null, "c": ""}), json!({"a": "NA", "b": "1,5", "c": "x"})]
    );
}

#[test]
fn encodings_are_decoded_and_broken_bytes_refused() {
    let cases: &[(&str, &[u8], &str)] = &[
        ("latin1", b"n\nk\xe4se\n", "käse"),
        ("windows-1252", b"n\n\x80\n", "€"),
        ("big5", b"n\n\xa4\xa4\xa4\xe5\n", "中文"),
        // The second byte of a letter is one that means something in ASCII.
        ("shift_jis", b"n\n\"\x95\x5c\"\n", "表"),
    ];
    for (label, file, expected) in cases {
        let config = csv(|options| options.encoding = (*label).into());
        assert_eq!(as_json(&read(&config, file).rows), [json!({ "n": expected })], "{label}");
    }
    let config = csv(|options| options.encoding = "big5".into());
    let decoded = read(&config, b"n\n\xa4\nok\n");
    assert_eq!(as_json(&decoded.rows), [json!({"n": "ok"})]);
    assert_eq!((decoded.rejects[0].record, decoded.rejects[0].reason), (0, "utf8"));
    let config = csv(|options| options.encoding = "iso-2022-jp".into());
    assert!(codec(&config).infer(&[]).is_err());
    assert_eq!(codec(&config).decoder(&schema(&[]), &schema(&[])).decode(&one_record(b"x")).rejects[0].reason, "codec");
}

#[test]
fn quotes_are_written_only_where_they_are_needed() {
    let rows = read(&csv_codec(), b"a,\"b,c\"\nplain,\"\"\n\"x\"\"y\",\n\"l\nm\",z\n").rows;
    let mut encoder = encoder(&csv_codec(), &rows.schema()).unwrap();
    let mut out = encoder.header().unwrap();
    encoder.encode(&rows, &mut out).unwrap();
    assert_eq!(String::from_utf8(out).unwrap(), "a,\"b,c\"\nplain,\"\"\n\"x\"\"y\",\n\"l\nm\",z\n");
}

#[test]
fn real_files_with_other_encodings_and_line_ends() {
    let Some(folder) = data("csv-messytables") else { return };
    let program = "import csv,json,sys\nprint(json.dumps(list(csv.DictReader(open(sys.argv[1], encoding=sys.argv[2], newline='')))))";
    let mut compared = 0;
    for (file, label, python_label) in [
        ("utf-16le_encoded.csv", "utf-16le", "utf-16"),
        ("utf8bom.csv", "utf-8", "utf-8-sig"),
        ("mixedGLB.csv", "windows-1252", "cp1252"),
    ] {
        let path = folder.join(file);
        let expected = python(program, &[path.to_str().unwrap(), python_label]);
        let expected = expected.as_array().unwrap();
        let config = csv(|options| options.encoding = label.into());
        let (slice, _) = slice_of(&config, &std::fs::read(&path).unwrap());
        let names = codec(&config).infer(std::slice::from_ref(&slice)).unwrap();
        let texts: Vec<_> = names.fields().iter().map(|field| (field.name().as_str(), "string")).collect();
        let decoded = decode(&config, &schema(&texts), &slice);
        let rows = as_json(&decoded.rows);
        for (row, record) in rows.iter().zip(&decoded.records) {
            let expected = expected[*record as usize].as_object().unwrap();
            for (name, value) in row.as_object().unwrap() {
                let other = expected.iter().find(|(key, _)| key.trim() == name).map(|(_, value)| value);
                if let Some(other) = other {
                    compared += 1;
                    assert_eq!(
                        value.as_str().unwrap_or_default(),
                        other.as_str().unwrap_or_default(),
                        "{file}: {name}"
                    );
                }
            }
        }
    }
    assert!(compared > 100, "{compared}");
}
