//! Documents and tables made at random, held against other readers of the same bytes.

use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use serde_json::{Map, json};

use super::*;

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1000..1000_i64).prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-1e6..1e6).prop_map(|number: f64| json!((number * 64.0).round() / 64.0)),
        "[a-z\"\\\\\n\u{1}é🌊/]{0,5}".prop_map(Value::from),
    ]
}

fn object(inner: impl Strategy<Value = Value> + 'static) -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[abc]|é\"", inner, 0..4).prop_map(|members| Value::Object(Map::from_iter(members)))
}

fn document() -> impl Strategy<Value = Value> {
    let value = leaf().prop_recursive(4, 24, 4, |inner| {
        prop_oneof![prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from), object(inner)]
    });
    object(value)
}

/// Members that are null may be missing.
fn pruned(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let kept = members.iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(name, value)| (name.clone(), pruned(value))).collect())
        }
        Value::Array(items) => items.iter().map(pruned).collect(),
        other => other.clone(),
    }
}

/// Equal but for whole numbers in a column of others, and for values that a column of texts keeps as their JSON.
fn is_same(theirs: &Value, ours: &Value) -> bool {
    match (theirs, ours) {
        (Value::String(theirs), Value::String(ours)) => theirs == ours,
        (_, Value::String(text)) => serde_json::from_str(text).is_ok_and(|value| is_same(theirs, &pruned(&value))),
        (Value::Object(theirs), Value::Object(ours)) => {
            theirs.len() == ours.len()
                && theirs.iter().all(|(name, value)| ours.get(name).is_some_and(|other| is_same(value, other)))
        }
        (Value::Array(theirs), Value::Array(ours)) => {
            theirs.len() == ours.len() && theirs.iter().zip(ours).all(|(one, other)| is_same(one, other))
        }
        (Value::Number(theirs), Value::Number(ours)) => {
            // Beside broken numbers a whole one is a float64, and 1.0 is a whole one in a column of these; serde_json reads
            // the seventeenth digit of a float64 by chance.
            let is_close = |one: f64, other: f64| (one - other).abs() <= 1e-15 * one.abs();
            theirs == ours
                || (ours.is_f64() || theirs.is_f64())
                    && theirs.as_f64().zip(ours.as_f64()).is_some_and(|(a, b)| is_close(a, b))
        }
        _ => theirs == ours,
    }
}

/// Some of the spellings of a document: white space, escapes.
fn spelled(document: &Value, spelling: u8) -> String {
    match spelling % 3 {
        0 => document.to_string(),
        1 => serde_json::to_string_pretty(document).unwrap(),
        _ => document.to_string().replace('é', "\\u00e9").replace('🌊', "\\ud83c\\udf0a").replace('/', "\\/"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// The schema is pinned from the first documents; whatever the others have in addition comes out with them.
    #[test]
    fn what_goes_in_comes_out(documents in prop::collection::vec((document(), any::<u8>()), 1..6), pinned in 1..4_usize) {
        let texts: Vec<String> = documents.iter().map(|(document, spelling)| spelled(document, *spelling)).collect();
        let slices: Vec<Slice> = texts.iter().map(|text| one_record(text.as_bytes())).collect();
        let json = codec(&model::Codec::Json);
        let schema = json.infer(&slices[..pinned.min(slices.len())]).unwrap();
        for (at, (slice, (document, _))) in slices.iter().zip(&documents).enumerate() {
            let decoded = json.decoder(&with_extra(&schema), &schema).decode(slice);
            check(&decoded, slice);
            if let Some(reject) = decoded.rejects.first() {
                prop_assert!(at >= pinned && reject.reason == "type", "{}: {:?}", texts[at], reject);
                continue;
            }
            let ours = pruned(&as_json(&decoded.rows)[0]);
            prop_assert!(is_same(&pruned(document), &ours), "{}\n{ours}\n{:?}", texts[at], types(&schema));
        }
    }

    /// One byte of a document is changed, taken out or put in: it is JSON to us where it is JSON to serde_json.
    #[test]
    fn a_damaged_document_is_json_to_both_or_to_none(
        document in document(), spelling: u8, place: prop::sample::Index, byte in prop::sample::select(&b"\"\\{}[],:0-.eEtnu \n\x01\xc3"[..]), how in 0..3,
    ) {
        let mut bytes = spelled(&document, spelling).into_bytes();
        let at = place.index(bytes.len());
        match how {
            0 => bytes[at] = byte,
            1 => drop(bytes.remove(at)),
            _ => bytes.insert(at, byte),
        }
        let slice = one_record(&bytes);
        let json = codec(&model::Codec::Json);
        let empty = schema(&[]);
        let ours = json.decoder(&with_extra(&empty), &empty).decode(&slice);
        let reason = ours.rejects.first().map(|reject| reject.reason);
        match serde_json::from_slice::<Value>(&bytes) {
            Ok(Value::Object(members)) => {
                prop_assert_eq!(reason, None, "{}", String::from_utf8_lossy(&bytes));
                prop_assert!(is_same(&pruned(&Value::Object(members)), &pruned(&as_json(&ours.rows)[0])));
            }
            Ok(_) => prop_assert_eq!(reason, Some("not_an_object")),
            // Half of a surrogate pair is U+FFFD to us, and a number may be larger than a double.
            Err(error) if ["out of range", "surrogate", "hex escape"].iter().any(|what| error.to_string().contains(what)) => {}
            Err(error) => prop_assert!(matches!(reason, Some("json" | "utf8")), "{}: {error}", String::from_utf8_lossy(&bytes)),
        }
    }
}

/// Texts of three columns, read by Python's csv in one go. What Python lets pass (text after a closing quote, any number
/// of fields, a quote that is never closed) is a reject here; all else is the same.
#[test]
fn tables_read_as_python_reads_them() {
    const PYTHON: &str = "import csv,io,json,sys\nprint(json.dumps([list(csv.reader(io.StringIO(t, newline=''), delimiter=d, quotechar=q)) for t, d, q in json.load(open(sys.argv[1]))]))";
    let mut runner = TestRunner::deterministic();
    let dialect = prop::sample::select(vec![(",", "\""), (";", "'"), ("\t", "\""), ("|", "'")]);
    let piece =
        prop::sample::select(vec!["a", "é", " ", "\n", "\r\n", "\r", "D", "D", "D", "Q", "QQ", "x", "1", "QDQ"]);
    let cases = (dialect, prop::collection::vec(piece, 0..30));
    let cases: Vec<(String, &str, &str)> = (0..4000)
        .map(|_| {
            let ((delimiter, quote), pieces) = cases.new_tree(&mut runner).unwrap().current();
            (pieces.concat().replace('D', delimiter).replace('Q', quote), delimiter, quote)
        })
        .collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), json!(cases).to_string()).unwrap();
    let theirs = python(PYTHON, &[file.path().to_str().unwrap()]);
    let mut compared = 0;
    for ((text, delimiter, quote), theirs) in cases.iter().zip(theirs.as_array().unwrap()) {
        let (delimiter, quote) = ((*delimiter).to_owned(), Some(quote.as_bytes()[0]));
        let config = model::Codec::Csv(model::Csv { delimiter, quote, header: false, ..csv_options() });
        let (slice, _) = slice_of(&config, text.as_bytes());
        let decoded = decode(&config, &schema(&[("a", "string"), ("b", "string"), ("c", "string")]), &slice);
        let theirs: Vec<&Vec<Value>> = theirs.as_array().unwrap().iter().map(|row| row.as_array().unwrap()).collect();
        let theirs: Vec<&Vec<Value>> = theirs.into_iter().filter(|row| !row.is_empty()).collect();
        assert_eq!(slice.records.len(), theirs.len(), "{text:?}: {theirs:?}");
        for (row, record) in as_json(&decoded.rows).iter().zip(&decoded.records) {
            let ours: Vec<&str> = ["a", "b", "c"].map(|name| row[name].as_str().unwrap_or_default()).to_vec();
            assert_eq!(json!(ours), json!(theirs[*record as usize]), "{text:?}");
            compared += 1;
        }
        for reject in &decoded.rejects {
            let counts = theirs[reject.record as usize].len() != 3 && reject.detail.contains("fields");
            assert!(
                counts || reject.detail.contains("quote") || reject.detail.contains("1 field"),
                "{text:?}: {reject:?}"
            );
        }
    }
    assert!(compared > 500, "{compared}");
}
