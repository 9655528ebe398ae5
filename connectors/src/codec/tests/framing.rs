use proptest::prelude::*;

use super::{super::frame::UTF8_BOM, *};

fn texts(config: &model::Codec, bytes: &[u8]) -> Vec<String> {
    let (slice, _) = slice_of(config, bytes);
    (0..slice.records.len()).map(|index| String::from_utf8_lossy(slice.record(index)).into_owned()).collect()
}

#[test]
fn lines_end_with_a_line_feed_or_the_file() {
    let text = model::Codec::Text;
    assert_eq!(texts(&text, b"a\nb\r\n\nc"), ["a", "b", "", "c"]);
    assert_eq!(texts(&text, b"\xef\xbb\xbfa\n"), ["a"]);
    assert_eq!(texts(&text, b"a\rb\n"), ["a\rb"]);
    assert!(texts(&text, b"").is_empty());
}

#[test]
fn json_files_are_lines_an_array_or_objects_over_lines() {
    let json = model::Codec::Json;
    let cases: &[(&str, &[&str])] = &[
        ("{\"a\":1}\n\n  \n{\"a\":2}", &["{\"a\":1}", "{\"a\":2}"]),
        ("\u{feff}{\"a\":1}\n", &["{\"a\":1}"]),
        ("[]", &[]),
        (" [ ] \n", &[]),
        ("[{\"a\":\"],[\"}, {\"a\":[1,2]} ,3]\n", &["{\"a\":\"],[\"}", "{\"a\":[1,2]}", "3"]),
        ("[\"\\\\\", \"\\\"\" ]", &["\"\\\\\"", "\"\\\"\""]),
        ("[1,,2,]", &["1", "", "2", ""]),
        ("{\n  \"a\": \"}\"\n}\n{\n\"a\": {}}{}\n", &["{\n  \"a\": \"}\"\n}", "{\n\"a\": {}}", "{}"]),
        ("{\n}\nnonsense\n{}", &["{\n}", "nonsense", "{}"]),
        ("{ \"a\":\n1}\n", &["{ \"a\":", "1}"]),
        ("{\n", &["{"]),
    ];
    for (file, expected) in cases {
        assert_eq!(texts(&json, file.as_bytes()), *expected, "{file}");
    }
}

#[test]
fn an_array_that_breaks_off_costs_one_reject() {
    let cases: &[(&str, usize, &str)] = &[
        ("[1,2", 1, "not closed"),
        ("[1,", 1, "not closed"),
        ("[1", 0, "not closed"),
        ("[", 0, "not closed"),
        ("[1] {}", 1, "after the array"),
        ("[\"a]", 0, "not closed"),
        ("[,1]", 0, "expected"),
    ];
    for (file, records, expected) in cases {
        let (slice, error) = slice_of(&model::Codec::Json, file.as_bytes());
        assert_eq!(slice.records.len(), *records, "{file}");
        assert!(error.unwrap().detail.contains(expected), "{file}");
    }
}

#[test]
fn csv_records_end_outside_of_quotes() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("a,b\n1,2\r\n3,4\r5,6", "a,b", &["1,2", "3,4", "5,6"]),
        ("a,b\n\"x\ny\",\"\"\"\r\n\"\n\n3,4\n", "a,b", &["\"x\ny\",\"\"\"\r\n\"", "3,4"]),
        ("\u{feff}\"a\nb\",c\nx\"y,z\n", "\"a\nb\",c", &["x\"y,z"]),
        ("\n\na,b\n", "a,b", &[]),
        // One column: an empty line is an empty field.
        ("a\n1\n\n2\n", "a", &["1", "", "2"]),
        ("a,b\n1,\"open\n2,3", "a,b", &["1,\"open\n2,3"]),
    ];
    for (file, header, expected) in cases {
        let (slice, _) = slice_of(&csv_codec(), file.as_bytes());
        assert_eq!(slice.header.as_deref(), Some(header.as_bytes()), "{file}");
        assert_eq!(texts(&csv_codec(), file.as_bytes()), *expected, "{file}");
    }
    let escaped = model::Codec::Csv(model::Csv { escape: Some(b'\\'), ..csv_options() });
    assert_eq!(texts(&escaped, b"a,b\n\"x\\\"\n\",1\n2,3\n"), ["\"x\\\"\n\",1", "2,3"]);
}

#[test]
fn utf_16_is_framed_by_units() {
    let config = model::Codec::Csv(model::Csv { encoding: "utf-16le".into(), ..csv_options() });
    // U+0A0D and U+220A have the bytes of line ends, and are none.
    let text = "a,b\r\n\u{a0d}\u{220a},\"x\ny\"\n1,2";
    let bytes: Vec<u8> = [0xfeff].into_iter().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    let rows = read(&config, &bytes).rows;
    assert_eq!(
        as_json(&rows),
        [serde_json::json!({"a": "\u{a0d}\u{220a}", "b": "x\ny"}), serde_json::json!({"a": "1", "b": "2"})]
    );
}

/// The `\r` that ends a header is half of a `\r\n` or not; at a border behind it, it is not, whatever follows.
#[test]
fn framing_goes_on_behind_a_header_that_a_carriage_return_ends() {
    for encoding in ["utf-8", "utf-16le", "utf-16be"] {
        let config = model::Codec::Csv(model::Csv { encoding: encoding.into(), ..csv_options() });
        let file: Vec<u8> = match encoding {
            "utf-8" => b"a\r\r1\r".to_vec(),
            "utf-16le" => "a\r\r1\r".encode_utf16().flat_map(u16::to_le_bytes).collect(),
            _ => "a\r\r1\r".encode_utf16().flat_map(u16::to_be_bytes).collect(),
        };
        let once = in_chunks(&config, &file, &[file.len()], usize::MAX, false);
        assert_eq!(once.records.len(), 2, "{encoding}: an empty field and 1");
        assert_eq!(in_chunks(&config, &file, &[1], 1, true).records, once.records, "{encoding}");
    }
}

/// What a framer finds in a file that comes in chunks of these sizes, at most `records` a call, at absolute offsets.
/// With `restart`, every call is by a framer that has only seen the beginning.
fn in_chunks(config: &model::Codec, file: &[u8], sizes: &[usize], records: usize, restart: bool) -> Found {
    let mut found = Found::default();
    let mut current = framer(config);
    let (mut at, mut available, mut turn) = (0, 0, 0);
    loop {
        if restart && at > 0 {
            current = framer(config);
            current.frame(0, &file[..at], false, 0, &mut Vec::new());
        }
        let mut out = Vec::new();
        let at_end = available == file.len();
        let framed = current.frame(at as u64, &file[at..available], at_end, records, &mut out);
        assert!(out.len() <= records);
        assert!(out.is_empty() || framed.consumed > 0, "a record is consumed");
        found.records.extend(out.iter().map(|(start, end)| (at + *start as usize, at + *end as usize)));
        if !framed.header.is_empty() {
            assert!(found.header.is_empty(), "a header is found once");
            found.header = framed.header.iter().map(|range| (at + range.start, at + range.end)).collect();
        }
        if let Some(error) = framed.error {
            found.error = Some((at + error.start, error.detail));
            return found;
        }
        at += framed.consumed;
        if at == file.len() && at_end {
            return found;
        }
        if out.is_empty() {
            assert!(!at_end || framed.consumed > 0, "at the end something is consumed");
            available = (available + sizes[turn % sizes.len()]).min(file.len());
            turn += 1;
        }
    }
}

#[derive(Debug, Default, PartialEq)]
struct Found {
    records: Vec<(usize, usize)>,
    header: Vec<(usize, usize)>,
    error: Option<(usize, String)>,
}

fn any_codec() -> impl Strategy<Value = model::Codec> {
    let csv = |encoding: &str, escape, header| {
        model::Codec::Csv(model::Csv { encoding: encoding.into(), escape, header, ..csv_options() })
    };
    prop_oneof![
        Just(model::Codec::Text),
        Just(model::Codec::Json),
        Just(csv("utf-8", None, true)),
        Just(csv("utf-8", None, false)),
        Just(csv("utf-8", Some(b'\\'), true)),
        Just(csv("utf-16le", None, true)),
        Just(csv("utf-16be", None, false)),
        Just(csv("shift_jis", Some(b'\\'), true)),
        Just(model::Codec::Csv(model::Csv { delimiter: ",\\".into(), ..csv_options() })),
        Just(model::Codec::Csv(model::Csv { multiline: false, comment: Some("a\"".into()), skip: 1, ..csv_options() })),
        Just(model::Codec::Csv(model::Csv { quote: None, delimiter: "\\,,".into(), header: false, ..csv_options() })),
        Just(model::Codec::TextIn("utf-16be".into())),
        Just(model::Codec::JsonWith(model::Json { encoding: "utf-16le".into(), confluent: false })),
        Just(model::Codec::JsonWith(model::Json { encoding: "gb18030".into(), confluent: false })),
    ]
}

/// Files made of the bytes that framing looks at.
fn any_file() -> impl Strategy<Value = Vec<u8>> {
    const PARTS: [&[u8]; 20] = [
        b"\n",
        b"\r",
        b"\r\n",
        b"\"",
        b"\\",
        b",",
        b"[",
        b"]",
        b"{",
        b"}",
        b" ",
        b"a",
        b"\0",
        b"{\n",
        UTF8_BOM,
        b"\xff\xfe",
        b"\x81",
        b"\x81\\",
        b"\"\n{\"",
        b"},\n",
    ];
    const BEGINNINGS: [&[u8]; 9] =
        [b"", b"[", b"{\n", b"\n [", b"{}{", b"sep=;\r\n", b"\xff\xfe", b"\xfe\xff\0[\0{\0\"", UTF8_BOM];
    let parts = prop::collection::vec(prop::sample::select(&PARTS[..]), 0..40);
    (prop::sample::select(&BEGINNINGS[..]), parts).prop_map(|(begin, parts)| [&[begin], &parts[..]].concat().concat())
}

proptest! {
    // What goes wrong does so where a few units meet: one file of some ten thousand.
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn chunks_do_not_matter(
        config in any_codec(),
        file in any_file(),
        sizes in prop::collection::vec(1..7_usize, 1..6),
        records in 1..4_usize,
    ) {
        let once = in_chunks(&config, &file, &[file.len().max(1)], usize::MAX, false);
        prop_assert_eq!(&in_chunks(&config, &file, &sizes, records, false), &once);
        prop_assert_eq!(&in_chunks(&config, &file, &[file.len().max(1)], records, false), &once);
    }

    /// From any border on, a framer that has seen the beginning finds what the first one found.
    #[test]
    fn framing_goes_on_at_any_border(
        config in any_codec(),
        file in any_file(),
        sizes in prop::collection::vec(1..7_usize, 1..6),
        records in 1..4_usize,
    ) {
        let mut once = in_chunks(&config, &file, &[file.len().max(1)], usize::MAX, false);
        let mut again = in_chunks(&config, &file, &sizes, records, true);
        once.header.clear();
        again.header.clear();
        prop_assert_eq!(again, once);
    }
}
