//! The 10,000 lines of a real web log through directory -> steps -> files and SQLite, against rows that Python computes
//! from the same lines.

#![allow(clippy::unwrap_used)]

use std::{path::Path, time::Duration};

use tidemill_tests::{
    Folder, Rows, Run,
    needs::{data, python_script, python_with},
    root,
};

/// What job W writes, and what a table that is made from its rows holds: a database has no booleans.
const COLUMNS: [&str; 14] = [
    "ip",
    "ident",
    "user",
    "time",
    "request",
    "response",
    "bytes",
    "referrer",
    "agent",
    "status_class",
    "is_bot",
    "method",
    "path",
    "protocol",
];

/// The job of the bench with a database beside its files, and small batches.
fn job(records: usize) -> String {
    let text = std::fs::read_to_string(root().join("tests/bench/w.yaml")).unwrap();
    text.replace("trigger: asap", &format!("trigger: asap\nbatch: {{ max_records: {records} }}"))
        + "  db: { type: sqlite, path: hits.db, table: hits }\n"
}

fn run(folder: &Folder, records: usize) -> Run {
    let run = Run::new(folder).job(&job(records)).limit(Duration::from_secs(240));
    run.env("W_INPUT", folder.join("in")).env("W_OUTPUT", folder.join("out"))
}

/// Python's rows for the lines, and how many lines there are.
fn expected(python: &Path, folder: &Folder, lines: &Path) -> Rows {
    let out = folder.join("expected.json");
    python_script(python, "tests/weblog.py", &[Path::new("expect"), lines, &out]);
    Rows::file(&out)
}

fn check(folder: &Folder, expected: &Rows) {
    Rows::files(&folder.join("out")).select(&COLUMNS).assert_same(&expected.select(&COLUMNS), "the files");
    let mut stored = expected.select(&COLUMNS);
    for row in &mut stored.0 {
        row["is_bot"] = i64::from(row["is_bot"] == true).into();
    }
    let found = Rows::sqlite(&folder.join("hits.db"), "SELECT * FROM hits");
    found.select(&COLUMNS).assert_same(&stored, "the table");
}

#[test]
fn ten_thousand_lines_give_the_rows_that_python_computes() {
    let (Some(log), Some(python)) = (data("weblog-apache/apache_logs"), python_with("json")) else { return };
    let folder = Folder::new();
    let lines = folder.write("in/access.json", "");
    python_script(&python, "tests/weblog.py", &[Path::new("parse"), &log, &lines]);
    let expected = expected(&python, &folder, &lines);
    assert_eq!(expected.len(), 9997, "10,000 lines, 3 of them with status 500");
    run(&folder, 1500).once().expect_success();
    check(&folder, &expected);
}

#[test]
fn made_up_lines_with_every_oddity_give_the_rows_that_python_computes() {
    let Some(python) = python_with("json") else { return };
    let folder = Folder::new();
    let lines = folder.write("in/access.json", "");
    python_script(&python, "tests/weblog.py", &[Path::new("generate"), &lines, Path::new("3000")]);
    let expected = expected(&python, &folder, &lines);
    assert!(expected.len() < 2900 && expected.len() > 2500, "{}", expected.len());
    run(&folder, 700).once().expect_success();
    check(&folder, &expected);
}
