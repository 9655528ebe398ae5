//! Real data through the real binary, held against what Python's csv and json and SQLite make of the same files. What is
//! odd about a data set is in its `SOURCE.md`; its files are read in place.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tidemill_tests::{
    Daemon, Folder, Rows, Run,
    needs::{data, output, python_with},
    oracle, root,
};

/// Python's part: `tests/reference.py`.
fn reference(arguments: &[&str]) -> Option<String> {
    let python = python_with("sqlite3")?;
    Some(output(std::process::Command::new(python).arg(root().join("tests/reference.py")).args(arguments)))
}

/// The rows that Python's csv reads: texts, or null.
fn python_csv(folder: &Folder, files: &[PathBuf], [delimiter, encoding, null]: [&str; 3]) -> Option<Rows> {
    let out = folder.join("reference.json");
    let mut arguments = vec!["csv", out.to_str().unwrap(), delimiter, encoding, null];
    arguments.extend(files.iter().map(|file| file.to_str().unwrap()));
    reference(&arguments)?;
    Some(Rows::file(&out))
}

/// A job over the files of a folder whose names begin like this.
fn job(path: &Path, include: &str, source: &str, rest: &str) -> String {
    format!(
        "job: real\nsources:\n  in: {{ type: directory, path: \"{}\", include: [\"{include}\"], settle: 10ms, {source} }}\n{rest}\n",
        path.display()
    )
}

const SINKS: &str =
    "sinks:\n  out: { type: files, path: out, codec: json }\ndead_letters: { type: files, path: dead, codec: json }";

fn run(folder: &Folder, job: &str) -> Daemon {
    let mut daemon = Run::new(folder).job(job).once();
    daemon.expect_success();
    daemon
}

/// The same number to the last digit but one: this side's JSON reader rounds the seventeenth.
fn is_close(one: &Value, other: &Value) -> bool {
    let number = |value: &Value| value.as_str().map_or_else(|| value.as_f64(), |text| text.parse().ok());
    number(one).zip(number(other)).is_some_and(|(one, other)| (one - other).abs() <= 1e-15 * one.abs())
}

fn files_in(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut files = oracle::files(folder);
    files.retain(|path| path.to_str().unwrap().ends_with(ending));
    files
}

#[test]
fn retail_by_day_typed_and_in_a_table() {
    let Some(data) = data("retail-by-day") else { return };
    let folder = Folder::new();
    let files = files_in(&data, ".csv");
    let Some(mut expected) = python_csv(&folder, &files, [",", "utf-8", ""]) else { return };
    let source = "codec: csv, schema: { InvoiceNo: string, StockCode: string, Description: string, Quantity: int32, \
                  InvoiceDate: timestamp, UnitPrice: float64, CustomerID: float64, Country: string }";
    let sinks = format!(
        "batch: {{ max_records: 1500 }}\nsinks:\n  db: {{ type: sqlite, path: out.db, table: sales }}\n  {}",
        SINKS.strip_prefix("sinks:\n  ").unwrap()
    );
    run(&folder, &job(&data, "*.csv", source, &sinks));
    // Python's values in the types of the job; four headers, and no field with a line break.
    assert_eq!(expected.len(), 3108 + 2109 + 2202 + 2725);
    for row in &mut expected.0 {
        for name in ["Quantity", "UnitPrice", "CustomerID"] {
            if let Some(text) = row[name].as_str().map(str::to_owned) {
                row[name] = if name == "Quantity" {
                    Value::from(text.parse::<i64>().unwrap())
                } else {
                    Value::from(text.parse::<f64>().unwrap())
                };
            }
        }
        row["InvoiceDate"] = (row["InvoiceDate"].as_str().unwrap().replace(' ', "T") + "Z").into();
    }
    Rows::files(&folder.join("out")).assert_same(&expected, "the files");
    assert!(Rows::files(&folder.join("dead")).is_empty());
    // The same questions to our table and to one that SQLite was given by Python.
    let query = "SELECT Country, count(*) AS n, sum(CAST(Quantity AS INTEGER)) AS pieces, round(sum(CAST(UnitPrice AS REAL) * Quantity), 2) AS \
                 worth, count(CustomerID) AS known, count(Description) AS described, min(StockCode) AS least FROM sales GROUP BY 1 ORDER BY 1";
    let mut arguments = vec!["sql", query, "sales"];
    arguments.extend(files.iter().map(|file| file.to_str().unwrap()));
    let theirs = Rows::json(&reference(&arguments).unwrap());
    assert!(theirs.len() > 10);
    assert_eq!(Rows::sqlite(&folder.join("out.db"), query), theirs);
}

#[test]
fn flights_with_na_for_null() {
    let Some(data) = data("flights-nyc13") else { return };
    for (include, count) in
        [("flights-*.csv", 842 + 943 + 914), ("weather.csv", 211), ("planes.csv", 3322), ("airports.csv", 1458)]
    {
        let folder = Folder::new();
        let prefix = include.trim_end_matches("*.csv");
        let mut files = files_in(&data, ".csv");
        files.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with(prefix));
        let Some(expected) = python_csv(&folder, &files, [",", "utf-8", "NA"]) else { return };
        assert_eq!(expected.len(), count, "{include}");
        let source = "codec: { type: csv, nulls: [\"\", NA] }";
        run(&folder, &job(&data, include, source, SINKS));
        let found = Rows::files(&folder.join("out"));
        assert!(Rows::files(&folder.join("dead")).is_empty(), "{include}");
        // What was inferred as a number is compared as one.
        for (ours, theirs) in found.0.iter().zip(&expected.0) {
            assert!(ours.keys().eq(theirs.keys()), "{include}");
            for (name, value) in ours {
                let is_same = if value.is_number() { is_close(value, &theirs[name]) } else { *value == theirs[name] };
                assert!(is_same, "{include}, {name}: {value} and {}", theirs[name]);
            }
        }
        assert_eq!(found.len(), count);
    }
}

#[test]
fn a_sensor_s_readings_by_an_aggregate_of_each_batch() {
    let Some(data) = data("iot-nab") else { return };
    let folder = Folder::new();
    let files = files_in(&data, ".csv");
    let steps = "steps:\n  - name: all\n    parse_timestamp: { column: timestamp, format: \"%Y-%m-%d %H:%M:%S\" }\n  \
                 - sql: SELECT _file, count(*) AS n, min(value) AS least, max(value) AS most FROM batch GROUP BY _file\n";
    let source = "codec: csv, schema: { timestamp: string, value: float64 }, metadata: [file]";
    let sinks = "sinks:\n  db: { type: sqlite, path: out.db, table: readings, from: all }\n  sums: { type: files, path: out, codec: json }";
    run(&folder, &job(&data, "*.csv", source, &format!("{steps}{sinks}")));
    let query = |text: &str| {
        format!(
            "SELECT count(*) AS n, round(min({text}), 6) AS least, round(max({text}), 6) AS most, \
             min(timestamp) AS first FROM readings"
        )
    };
    for file in &files {
        let name = file.file_name().unwrap().to_str().unwrap();
        let Some(theirs) = reference(&["sql", &query("CAST(value AS REAL)"), "readings", file.to_str().unwrap()])
        else {
            return;
        };
        let mut theirs = Rows::json(&theirs);
        theirs.0[0]["first"] = (theirs.0[0]["first"].as_str().unwrap().replace(' ', "T") + "Z").into();
        let ours = Rows::sqlite(&folder.join("out.db"), &format!("{} WHERE _file = '{name}'", query("value")));
        assert_eq!(ours, theirs, "{name}");
        let sums = Rows::files(&folder.join("out"));
        let sum = sums.0.iter().find(|row| row["_file"] == name).unwrap();
        assert_eq!(sum["n"], theirs.0[0]["n"], "{name}");
        for column in ["least", "most"] {
            let difference = sum[column].as_f64().unwrap() - theirs.0[0][column].as_f64().unwrap();
            assert!(difference.abs() < 1e-6, "{name}: {column}");
        }
    }
    let count = Rows::sqlite(&folder.join("out.db"), "SELECT count(*) AS n FROM readings");
    assert_eq!(count.column("n"), [(7267 + 22695 + 1127).to_string()]);
}

#[test]
fn syslog_lines_are_texts() {
    let Some(data) = data("syslog-auth") else { return };
    let folder = Folder::new();
    run(&folder, &job(&data, "auth.log", "codec: text", SINKS));
    let text = std::fs::read_to_string(data.join("auth.log")).unwrap();
    let found = Rows::files(&folder.join("out"));
    assert_eq!(found.len(), 7121);
    assert_eq!(
        found.column("text"),
        text.split_terminator('\n').map(|line| line.trim_end_matches('\r')).collect::<Vec<_>>()
    );
}

/// With one batch all fields are known at once; with small ones the later ones come after the schema was pinned.
#[test]
fn github_events_come_out_as_they_went_in_however_they_are_batched() {
    let Some(data) = data("github-events") else { return };
    let (folder, theirs) = (Folder::new(), data.join("2021-07-21-few-hours.json"));
    for records in [1_000_000, 50] {
        let out = format!("out-{records}");
        let sinks = format!(
            "batch: {{ max_records: {records} }}\nsinks:\n  out: {{ type: files, path: {out}, codec: json, roll: {{ bytes: 1GiB, after: 1h }} }}\n\
             dead_letters: {{ type: files, path: dead-{records}, codec: json }}"
        );
        let job = job(&data, "*.json", "codec: json", &sinks);
        Run::new(&folder).job(&job).data_dir(format!("data-{records}")).once().expect_success();
        let dead = Rows::files(&folder.join(format!("dead-{records}")));
        assert!(dead.is_empty(), "{:?}", dead.select(&["reason", "detail"]).0.first());
        let files = oracle::files(&folder.join(out));
        assert_eq!(files.len(), 1);
        assert_eq!(Rows::file(&files[0]).len(), 800);
        let Some(_) = reference(&["same", theirs.to_str().unwrap(), files[0].to_str().unwrap()]) else { return };
    }
}

#[test]
fn csv_spectrum() {
    let Some(data) = data("csv-spectrum") else { return };
    let files = files_in(&data.join("csvs"), ".csv");
    assert_eq!(files.len(), 12);
    for file in files {
        let folder = Folder::new();
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let Some(expected) = python_csv(&folder, std::slice::from_ref(&file), [",", "utf-8", ""]) else { return };
        let steps = "codec: csv, metadata: [position]";
        run(&folder, &job(&data.join("csvs"), &name, steps, &format!("steps:\n  - drop: [_position]\n{SINKS}")));
        let found = Rows::files(&folder.join("out"));
        let text = |value: &Value| match value {
            Value::Null => Value::Null,
            Value::String(text) if text.is_empty() => Value::Null,
            Value::String(text) => text.clone().into(),
            other => other.to_string().into(),
        };
        let found = Rows(
            found
                .0
                .into_iter()
                .map(|row| row.iter().map(|(name, value)| (name.clone(), text(value))).collect())
                .collect(),
        );
        assert_eq!(found, expected, "{name}");
        assert!(Rows::files(&folder.join("dead")).is_empty(), "{name}");
    }
}

/// Files as people leave them: with the right options they are read, with the wrong ones they are rejects or other texts,
/// and the job ends well in either case.
#[test]
fn messy_tables() {
    let Some(data) = data("csv-messytables") else { return };
    for (name, delimiter, encoding, python_encoding) in [
        ("simple.ssv", ";", "utf-8", "utf-8"),
        ("simple.psv", "|", "utf-8", "utf-8"),
        ("utf-16le_encoded.csv", ",", "utf-16le", "utf-16"),
        ("utf8bom.csv", ",", "utf-8", "utf-8-sig"),
        ("null.csv", ",", "utf-8", "utf-8"),
        ("complex.csv", ",", "utf-8", "utf-8"),
        ("begrotingsanalyse-2011.csv", ",", "windows-1252", "cp1252"),
    ] {
        let folder = Folder::new();
        let Some(expected) = python_csv(&folder, &[data.join(name)], [delimiter, python_encoding, ""]) else { return };
        let source = format!("codec: {{ type: csv, delimiter: \"{delimiter}\", encoding: {encoding} }}");
        run(&folder, &job(&data, name, &source, SINKS));
        let (found, dead) = (Rows::files(&folder.join("out")), Rows::files(&folder.join("dead")));
        // Python takes any number of fields, and forgets empty lines.
        assert_eq!(
            found.len() + dead.len(),
            expected.len(),
            "{name}: {:?}",
            dead.select(&["reason", "detail"]).0.first()
        );
        assert!(dead.0.iter().all(|reject| reject["reason"] == "csv"), "{name}");
    }
    for file in oracle::files(&data) {
        let folder = Folder::new();
        let name = file.file_name().unwrap().to_str().unwrap();
        run(&folder, &job(&data, name, "codec: csv", SINKS));
        let dead = Rows::files(&folder.join("dead"));
        let reasons = ["csv", "utf8", "type"];
        assert!(dead.0.iter().all(|reject| reasons.contains(&reject["reason"].as_str().unwrap())), "{name}");
        if ["characters.csv", "spanish_chars.csv"].contains(&name) {
            // A record, or all of the file where its header is not.
            let is_told = |reject: &serde_json::Map<String, Value>| {
                reject["reason"] == "utf8" || reject["detail"].as_str().is_some_and(|detail| detail.contains("UTF-8"))
            };
            assert!(dead.0.iter().any(is_told), "{name} is not in UTF-8: {:?}", dead.0.first());
        }
    }
}

#[test]
fn json_test_suite() {
    let Some(data) = data("json-testsuite/test_parsing") else { return };
    let folder = Folder::new();
    let source = "codec: json, schema: { a: string, b: string }, metadata: [file]";
    run(&folder, &job(&data, "*.json", source, &format!("steps:\n  - select: [_file]\n{SINKS}")));
    let rows = Rows::files(&folder.join("out")).column("_file");
    let dead = Rows::files(&folder.join("dead"));
    let files = oracle::files(&data);
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let of = |kind: &str| files.iter().filter(|path| name(path).starts_with(kind)).collect::<Vec<_>>();
    assert_eq!((of("y_").len(), of("n_").len(), of("i_").len()), (95, 188, 35));
    assert!(rows.iter().all(|name| !name.starts_with("n_")), "{rows:?}");
    for file in of("y_") {
        let text = std::fs::read_to_string(file).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        // A file that is an array is the array of its records.
        let objects = value
            .as_array()
            .map_or(usize::from(value.is_object()), |items| items.iter().filter(|item| item.is_object()).count());
        let found = rows.iter().filter(|row| **row == name(file)).count();
        assert_eq!(found, objects, "{}: {text}", name(file));
    }
    let reasons: Vec<String> = dead.column("reason");
    assert!(reasons.iter().all(|reason| ["json", "utf8", "not_an_object"].contains(&reason.as_str())), "{reasons:?}");
}
