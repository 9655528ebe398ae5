use super::*;

/// Compares two files of JSON lines: equal but for nulls, which may be missing, and for values that were kept as the text
/// of their JSON. Prints how many records are equal, and the first that differs.
const SAME: &str = r#"
import json, sys
def prune(v):
    if isinstance(v, dict): return {k: prune(x) for k, x in v.items() if x is not None}
    if isinstance(v, list): return [prune(x) for x in v]
    return v
def same(a, b):
    if isinstance(b, str) and not isinstance(a, str):
        try: b = prune(json.loads(b))
        except ValueError: return False
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b and isinstance(a, bool) == isinstance(b, bool)
theirs = [prune(json.loads(l)) for l in open(sys.argv[1], encoding='utf-8') if l.strip()] if sys.argv[3] == 'lines' else [prune(json.load(open(sys.argv[1], encoding='utf-8')))]
ours = [prune(json.loads(l)) for l in open(sys.argv[2], encoding='utf-8')]
assert len(theirs) == len(ours), (len(theirs), len(ours))
for a, b in zip(theirs, ours):
    if not same(a, b):
        for k in a.keys() | b.keys():
            if not same(a.get(k), b.get(k)): print(k, a.get(k), b.get(k), file=sys.stderr)
        sys.exit(1)
print(len(ours))
"#;

fn same_as_python_reads_it(path: &std::path::Path, form: &str) -> u64 {
    let (slice, error) = slice_of(&model::Codec::Json, &std::fs::read(path).unwrap());
    assert_eq!(error, None);
    let schema = codec(&model::Codec::Json).infer(std::slice::from_ref(&slice)).unwrap();
    let decoded = decode(&model::Codec::Json, &schema, &slice);
    assert!(decoded.rejects.is_empty(), "{}: {:?}", path.display(), decoded.rejects);
    let mut out = Vec::new();
    encoder(&model::Codec::Json, &schema).unwrap().encode(&decoded.rows, &mut out).unwrap();
    let ours = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ours.path(), out).unwrap();
    python(SAME, &[path.to_str().unwrap(), ours.path().to_str().unwrap(), form]).as_u64().unwrap()
}

#[test]
fn github_events() {
    let Some(folder) = data("github-events") else { return };
    assert_eq!(same_as_python_reads_it(&folder.join("2021-07-21-few-hours.json"), "lines"), 800);
}

#[test]
fn tweets_as_lines_and_as_objects_over_lines() {
    let Some(folder) = data("tweets-v11-stream") else { return };
    assert_eq!(same_as_python_reads_it(&folder.join("lines.json"), "lines"), 72);
    let Some(folder) = data("tweets-v11-extended") else { return };
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        // Some of the files are cut out of a larger one, comma included: no JSON to anybody.
        if bytes.starts_with(b"{\n") && serde_json::from_slice::<Value>(&bytes).is_ok() {
            assert_eq!(same_as_python_reads_it(&path, "whole"), 1);
            files += 1;
        }
    }
    assert!(files > 10, "{files}");
}

#[test]
fn an_array_gives_the_rows_that_its_lines_give() {
    let Some(folder) = data("github-events") else { return };
    let lines = std::fs::read_to_string(folder.join("2021-07-21-few-hours.json")).unwrap();
    let array = format!("[\n{}\n]\n", lines.lines().collect::<Vec<_>>().join(" ,\n"));
    assert_eq!(read(&model::Codec::Json, lines.as_bytes()).rows, read(&model::Codec::Json, array.as_bytes()).rows);
}

/// A CSV file read by Python's csv module, value by value.
#[test]
fn tweets_with_emoji_and_newlines() {
    let Some(folder) = data("tweets-mayweather") else { return };
    let path = folder.join("tweets.csv");
    let program = "import csv,json,sys\ncsv.field_size_limit(1<<30)\nprint(json.dumps(list(csv.DictReader(open(sys.argv[1], encoding='utf-8', newline='')))))";
    let expected = python(program, &[path.to_str().unwrap()]);
    let expected = expected.as_array().unwrap();
    let (slice, _) = slice_of(&csv_codec(), &std::fs::read(&path).unwrap());
    let inferred = codec(&csv_codec()).infer(std::slice::from_ref(&slice)).unwrap();
    assert_eq!(
        types(&inferred),
        [
            "created_at: string",
            "emojis: boolean",
            "id: int64",
            "link: string",
            "retweeted: boolean",
            "screen_name: string",
            "text: string"
        ]
    );
    let texts: Vec<_> = inferred.fields().iter().map(|field| (field.name().as_str(), "string")).collect();
    let decoded = decode(&csv_codec(), &schema(&texts), &slice);
    assert_eq!(decoded.rejects, []);
    let rows = as_json(&decoded.rows);
    assert_eq!(rows.len(), 12_118);
    assert_eq!(&rows, expected);
}

#[test]
fn retail_sums() {
    let Some(folder) = data("retail-by-day") else { return };
    let program = r#"
import csv, json, sys
rows = list(csv.DictReader(open(sys.argv[1], encoding='utf-8', newline='')))
print(json.dumps([len(rows), sum(int(r['Quantity']) for r in rows), round(sum(float(r['UnitPrice']) for r in rows), 6),
    sum(1 for r in rows if r['CustomerID'] == ''), sum(1 for r in rows if r['Description'] == '')]))
"#;
    for day in ["2010-12-01", "2010-12-02", "2010-12-03", "2010-12-05"] {
        let path = folder.join(format!("{day}.csv"));
        let expected = python(program, &[path.to_str().unwrap()]);
        let decoded = read(&csv_codec(), &std::fs::read(&path).unwrap());
        assert_eq!(decoded.rejects, []);
        let rows = as_json(&decoded.rows);
        let quantity: i64 = rows.iter().map(|row| row["Quantity"].as_i64().unwrap()).sum();
        let price: f64 = rows.iter().map(|row| row["UnitPrice"].as_f64().unwrap()).sum();
        let nulls = |name: &str| rows.iter().filter(|row| row[name].is_null()).count();
        let ours = serde_json::json!([
            rows.len(),
            quantity,
            (price * 1e6).round() / 1e6,
            nulls("CustomerID"),
            nulls("Description")
        ]);
        assert_eq!(ours, expected, "{day}");
    }
}
