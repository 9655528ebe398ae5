//! Files that other programs write: dialects of CSV, encodings, what is not text at all, and what a file's head says.

use serde_json::json;

use super::*;

fn csv(change: impl FnOnce(&mut model::Csv)) -> model::Codec {
    let mut options = csv_options();
    change(&mut options);
    model::Codec::Csv(options)
}

fn rows(config: &model::Codec, file: impl AsRef<[u8]>) -> Vec<Value> {
    let decoded = read(config, file.as_ref());
    assert_eq!(decoded.rejects, []);
    as_json(&decoded.rows)
}

/// Why a whole file is a reject.
fn refusal(config: &model::Codec, file: impl AsRef<[u8]>) -> String {
    let (slice, error) = slice_of(config, file.as_ref());
    assert_eq!(slice.records, [], "nothing of it is a record");
    let error = error.unwrap();
    assert!(error.start <= 3, "but for a mark all of it is the reject's");
    error.detail
}

fn utf16(text: &str, little: bool) -> Vec<u8> {
    text.encode_utf16().flat_map(|unit| if little { unit.to_le_bytes() } else { unit.to_be_bytes() }).collect()
}

fn encoded(text: &str, label: &str) -> Vec<u8> {
    encoding_rs::Encoding::for_label(label.as_bytes()).unwrap().encode(text).0.into_owned()
}

#[test]
fn a_header_that_cannot_be_one_is_the_reject_of_its_file() {
    let file = "id,\"name\n1,x\n2,y\n";
    assert!(refusal(&csv_codec(), file).contains("a quoted field is not closed"));
    assert!(refusal(&csv_codec(), "id,\"na\"me,x\n1,2,3\n").contains("between a closing quote and the delimiter"));
    assert!(refusal(&csv_codec(), b"id,na\xffme\n1,x\n").contains("its header is not UTF-8"));
    assert!(refusal(&csv_codec(), utf16("id,name\n1,x\n", true)).contains("is it UTF-16?"));
    let long = [b"id,\"".as_slice(), &b"x\n".repeat(400_000)].concat();
    assert!(refusal(&csv_codec(), long).contains("no header is found"));
    let named = |label: &str| csv(|options| options.encoding = label.into());
    assert!(refusal(&named("utf-16le"), "id,name\n1,x\n").contains("is it really UTF-16LE?"));
    assert!(refusal(&named("utf-16be"), utf16("id,name\n1,x\n", true)).contains("is it really UTF-16BE?"));
    // A header alone, with or without a line end, is one that parses: a day without rows.
    for file in ["id,name\n", "id,name", "", "\n\n"] {
        let (slice, error) = slice_of(&csv_codec(), file.as_bytes());
        assert_eq!((slice.records.len(), error), (0, None), "{file:?}");
    }
    let (_, error) = slice_of(&named("utf-16le"), &utf16("id,name", true));
    assert_eq!(error, None);
}

#[test]
fn a_mark_decides_the_encoding() {
    let expected = [json!({"id": 1, "name": "é"}), json!({"id": 2, "name": "表"})];
    let text = "\u{feff}id,name\r\n1,é\r\n2,表\r\n";
    for label in ["utf-8", "utf-16", "utf-16le", "utf-16be", "windows-1252", "shift_jis"] {
        let config = csv(|options| options.encoding = label.into());
        for file in [text.as_bytes().to_vec(), utf16(text, true), utf16(text, false)] {
            assert_eq!(rows(&config, &file), expected, "{label}");
        }
    }
    let lines = "\u{feff}{\"a\":\"é\"}\n{\"a\":\"{[表\"}\n";
    let array = "\u{feff}[{\"a\":\"é\"},\n {\"a\":\"{[表\"}]";
    for config in
        [model::Codec::Json, model::Codec::JsonWith(model::Json { encoding: "shift_jis".into(), confluent: false })]
    {
        for (text, little) in [(lines, true), (lines, false), (array, true), (array, false)] {
            assert_eq!(rows(&config, utf16(text, little)), [json!({"a": "é"}), json!({"a": "{[表"})]);
        }
    }
    for config in [model::Codec::Text, model::Codec::TextIn("windows-1252".into())] {
        for file in [utf16("\u{feff}ä\r\nਊ上\n", true), utf16("\u{feff}ä\r\nਊ上\n", false), "\u{feff}ä\nਊ上".into()]
        {
            assert_eq!(rows(&config, &file), [json!({"text": "ä"}), json!({"text": "ਊ上"})]);
        }
    }
}

#[test]
fn text_and_json_have_encodings_too() {
    let text = model::Codec::TextIn("windows-1252".into());
    assert_eq!(rows(&text, b"caf\xe9\r\n\x80 5\n"), [json!({"text": "café"}), json!({"text": "€ 5"})]);
    // The second byte of a character may be a quote's, a bracket's, a backslash's.
    for label in ["shift_jis", "big5", "gb18030", "euc-kr", "euc-jp", "utf-16be"] {
        let text = if label == "euc-kr" { "똠 한" } else { "能 表" };
        let json = model::Codec::JsonWith(model::Json { encoding: label.into(), confluent: false });
        for file in
            [format!("{{\"a\":\"{text}\"}}\n{{\"a\":\"x\"}}\n"), format!("[{{\"a\":\"{text}\"}}, {{\"a\":\"x\"}}]")]
        {
            let file = if label == "utf-16be" { utf16(&file, false) } else { encoded(&file, label) };
            assert_eq!(rows(&json, &file), [json!({"a": text}), json!({"a": "x"})], "{label}");
        }
    }
    for config in [
        model::Codec::TextIn("iso-2022-jp".into()),
        model::Codec::JsonWith(model::Json { encoding: "iso-2022-jp".into(), confluent: false }),
    ] {
        assert!(
            codec(&config).decoder(&schema(&[]), &schema(&[])).decode(&one_record(b"x")).rejects[0].reason == "codec"
        );
    }
    let slice = one_record(b"caf\xe9");
    assert_eq!(codec(&text).text(&slice, 0).as_deref(), Some("café"), "a dead letter holds the decoded text");
    assert_eq!(codec(&model::Codec::Text).text(&slice, 0), None);
}

#[test]
fn second_bytes_of_characters_are_no_delimiters() {
    let config = csv(|options| (options.encoding, options.escape) = ("shift_jis".into(), Some(b'\\')));
    let file = encoded("id,name,z\n1,\"ソ\",9\n2,\"能\",8\n3,\"x\\\"\",7\n", "shift_jis");
    assert_eq!(
        rows(&config, file),
        [
            json!({"id": 1, "name": "ソ", "z": 9}),
            json!({"id": 2, "name": "能", "z": 8}),
            json!({"id": 3, "name": "x\"", "z": 7})
        ]
    );
    let config = csv(|options| (options.encoding, options.delimiter) = ("shift_jis".into(), "|".into()));
    let file = encoded("id|name\n1|ポ\"x\n2|y\n3|z\n4|\"w\"\n", "shift_jis");
    assert_eq!(rows(&config, file).len(), 4);
    // Of Big5, GB18030 (four bytes, with digits in them) and EUC-KR.
    for (label, text) in [("big5", "功"), ("gb18030", "\u{20b9f}"), ("gb18030", "乗"), ("euc-kr", "똠")] {
        for delimiter in ["\\", "|", "^", "~", "0", "b"] {
            let config = csv(|options| {
                (options.encoding, options.delimiter, options.header) = (label.into(), delimiter.into(), false);
            });
            let file = encoded(&format!("{text}\"{delimiter}\"x\ny\"\n{text}{delimiter}z\n"), label);
            let expected = [
                json!({"column_1": format!("{text}\""), "column_2": "x\ny"}),
                json!({"column_1": text, "column_2": "z"}),
            ];
            assert_eq!(rows(&config, file), expected, "{label} {delimiter}");
        }
    }
}

#[test]
fn files_that_are_not_text_are_refused_whole() {
    let tar = [&[b'a'; 257][..], b"ustar\0", &[0; 300]].concat();
    let cases: &[(&[u8], &str)] = &[
        (b"BZh91AY&SY\x12\x34", "a bzip2 archive"),
        (b"\xfd7zXZ\0\0\x04", "an xz archive"),
        (b"PK\x03\x04\x14\0", "a zip archive"),
        (b"\x1f\x8b\x08\0", "a gzip archive"),
        (b"\x28\xb5\x2f\xfd\x24", "a Zstandard archive"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (&tar, "a tar archive"),
        (b"PAR1\x15\x04", "a Parquet file"),
        (b"Obj\x01\x04\x14avro.codec", "an Avro container file"),
        (b"SQLite format 3\0", "a SQLite database"),
    ];
    for (file, name) in cases {
        for config in [csv_codec(), model::Codec::Json, model::Codec::Text] {
            let why = refusal(&config, file);
            assert!(why.contains(name) && why.contains("exclude"), "{why}");
        }
    }
    for text in ["PAR1 ok\n", "ORC\n", "BZh\n", "PK\n", "Obj\n"] {
        assert_eq!(rows(&model::Codec::Text, text), [json!({"text": text.trim_end()})]);
    }
}

#[test]
fn quotes_may_be_characters_like_others() {
    let config = csv(|options| (options.delimiter, options.quote) = ("\t".into(), None));
    let file = "id\tname\n1\t\"open\n2\t5\" nail\n3\t\"a\"\"b\"\n";
    assert_eq!(
        rows(&config, file),
        [
            json!({"id": 1, "name": "\"open"}),
            json!({"id": 2, "name": "5\" nail"}),
            json!({"id": 3, "name": "\"a\"\"b\""})
        ]
    );
}

#[test]
fn lines_before_the_header_and_comments_are_left_out() {
    let config = csv(|options| (options.skip, options.comment) = (2, Some("#".into())));
    let file = "Report \"2024\r\n\n# made by x\n\nid,name\n1,#a\n# \"not a record\n\"#2\",b\n#";
    assert_eq!(rows(&config, file), [json!({"id": "1", "name": "#a"}), json!({"id": "#2", "name": "b"})]);
    assert!(refusal(&config, "one line").contains("`skip: 2`"));
    assert!(refusal(&config, "one\ntwo\n").contains("no header"));
    let bare = csv(|options| (options.skip, options.header) = (1, false));
    assert_eq!(rows(&bare, "title\n1,x\n"), [json!({"column_1": 1, "column_2": "x"})]);
}

#[test]
fn a_line_of_a_spreadsheet_names_the_delimiter() {
    let expected = [json!({"id": 1, "name": "a,b"}), json!({"id": 2, "name": "c;\nd"})];
    for file in ["sep=;\nid;name\n1;a,b\n2;\"c;\nd\"\n", "SEP=;\r\nid;name\r\n1;a,b\r\n2;\"c;\nd\"\r\n"] {
        assert_eq!(rows(&csv_codec(), file), expected);
        assert_eq!(rows(&csv_codec(), utf16(&format!("\u{feff}{file}"), true)), expected);
    }
    let bare = csv(|options| options.header = false);
    assert_eq!(rows(&bare, "sep=\t\n1\tx\n"), [json!({"column_1": 1, "column_2": "x"})]);
    assert_eq!(rows(&csv_codec(), "sep=a\n1\n"), [json!({"sep=a": 1})], "no delimiter");
}

#[test]
fn delimiters_of_several_characters() {
    let config = csv(|options| options.delimiter = "||".into());
    // What stands before the first of them is no delimiter: the rules of the decoder and of the framer are the same.
    let file = "a||b||c\n1||\"x||\ny\"||2\n|||\"z||w||v\n3||||4\n";
    let (slice, _) = slice_of(&config, file.as_bytes());
    assert_eq!(slice.records.len(), 3);
    let decoded = decode(&config, &schema(&[("a", "string"), ("b", "string"), ("c", "string")]), &slice);
    assert_eq!(
        as_json(&decoded.rows),
        [json!({"a": "1", "b": "x||\ny", "c": "2"}), json!({"a": "3", "b": null, "c": "4"})]
    );
    let mut encoder = encoder(&config, &decoded.rows.schema()).unwrap();
    let mut out = encoder.header().unwrap();
    encoder.encode(&decoded.rows, &mut out).unwrap();
    assert_eq!(String::from_utf8(out).unwrap(), "a||b||c\n1||\"x||\ny\"||2\n3||||4\n");
}

#[test]
fn a_quote_that_is_not_closed_costs_its_line_alone() {
    let file = b"a,b\n1,x\n2,\"open\n3,y\n4,\"z\"\n";
    let config = csv(|options| options.multiline = false);
    let (slice, _) = slice_of(&config, file);
    let decoded = decode(&config, &schema(&[("a", "int64"), ("b", "string")]), &slice);
    assert_eq!(as_json(&decoded.rows).len(), 3);
    assert_eq!((decoded.rejects.len(), decoded.rejects[0].record), (1, 1));
}

#[test]
fn records_may_have_fewer_fields_or_more() {
    use model::{ExtraFields::*, MissingFields};
    let schema = schema(&[("a", "int64"), ("b", "string")]);
    let file = b"a,b\n1,x\n2\n3,y,z,\"w\"\nfour\n";
    let read = |missing, extra| {
        let config = csv(|options| (options.missing_fields, options.extra_fields) = (missing, extra));
        let (slice, _) = slice_of(&config, file);
        let decoded = codec(&config).decoder(&with_extra(&schema), &schema).decode(&slice);
        check(&decoded, &slice);
        (as_json(&decoded.rows), decoded.rejects.len())
    };
    let (one, two) = (json!({"a": 1, "b": "x"}), json!({"a": 2, "b": null}));
    assert_eq!(read(MissingFields::Reject, Reject), (vec![one.clone()], 3));
    assert_eq!(read(MissingFields::Null, Ignore), (vec![one.clone(), two.clone(), json!({"a": 3, "b": "y"})], 1));
    let kept = json!({"a": 3, "b": "y", "column_3": "z", "column_4": "w"});
    assert_eq!(read(MissingFields::Null, Keep), (vec![one, two, kept], 1));
    let config = csv(|options| options.missing_fields = MissingFields::Null);
    assert_eq!(types(&super::read(&config, b"a,b\n1\n2,3\n").rows.schema()), ["a: int64", "b: int64"]);
}

#[test]
fn numbers_have_other_marks() {
    let config = csv(|options| {
        (options.delimiter, options.decimal, options.thousands) = (";".into(), b',', Some('.'));
    });
    let file = "id;price;text;big\n1;1.234,50;1.5;12.345\n2;-0,5;x;7\n";
    let read = super::read(&config, file.as_bytes());
    assert_eq!(types(&read.rows.schema()), ["id: int64", "price: float64", "text: string", "big: int64"]);
    assert_eq!(as_json(&read.rows)[0], json!({"id": 1, "price": 1234.5, "text": "1.5", "big": 12345}));
    let (slice, _) = slice_of(&config, b"a;b\n1.000,25;12\n1.5;1\n");
    let decoded = decode(&config, &schema(&[("a", "decimal(9,2)"), ("b", "int32")]), &slice);
    assert_eq!(as_json(&decoded.rows).len(), 1);
    assert!(
        decoded.rejects[0].detail.contains("column a: \"1.5\""),
        "a point between groups of other lengths is no number"
    );
}

#[test]
fn a_header_without_any_column_of_the_schema_rejects_the_file() {
    let wanted = || vec!["id".to_owned(), "amount".into()];
    let config = csv(|options| (options.delimiter, options.expected) = (";".into(), wanted()));
    let why = refusal(&config, "id,amount\n1,2\n");
    assert!(why.contains("has none of the columns `id`, `amount`") && why.contains("\";\""), "{why}");
    assert!(refusal(&config, "1;2\n3;4\n").contains("header: false"));
    let (slice, error) = slice_of(&config, b"id;betrag\n1;2\n");
    assert_eq!((slice.records.len(), error), (1, None), "one of them is enough");
    // With a pinned schema only the decoder knows: each record is a reject that holds the header.
    let (slice, _) = slice_of(&csv_codec(), b"7;x\n8;y\n9;z\n");
    let known = schema(&[("id", "int64"), ("amount", "int64")]);
    let decoded = codec(&csv_codec()).decoder(&with_extra(&known), &known).decode(&slice);
    check(&decoded, &slice);
    assert_eq!(decoded.rejects.len(), 2);
    assert!(decoded.rejects[0].detail.contains("\"7;x\""), "{}", decoded.rejects[0].detail);
}

#[test]
fn nul_bytes_before_a_line_are_no_part_of_it() {
    let file = [&[0; 3000][..], b"{\"a\":1}\n", &[0; 20], b"{\"a\":2}\n", &[0; 7]].concat();
    assert_eq!(rows(&model::Codec::Json, &file), [json!({"a": 1}), json!({"a": 2})]);
    assert_eq!(rows(&model::Codec::Text, b"\0\0one\ntwo\n\0\0\0"), [json!({"text": "one"}), json!({"text": "two"})]);
    assert_eq!(rows(&model::Codec::Text, b"a\0b\n"), [json!({"text": "a\0b"})]);
    assert_eq!(rows(&model::Codec::Json, b"\0\0[{\"a\":1}]"), [json!({"a": 1})]);
}

#[test]
fn a_mark_before_a_record_of_a_connection_is_skipped() {
    let bare = csv(|options| options.header = false);
    let decoded = decode(&bare, &schema(&[("a", "int64"), ("b", "string")]), &one_record("\u{feff}1,x".as_bytes()));
    assert_eq!(as_json(&decoded.rows), [json!({"a": 1, "b": "x"})]);
    let decoded = decode(&model::Codec::Json, &schema(&[("a", "int64")]), &one_record("\u{feff} {\"a\":1}".as_bytes()));
    assert_eq!(as_json(&decoded.rows), [json!({"a": 1})]);
}
