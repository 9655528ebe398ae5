//! Golden tests: every folder of `tests/golden/` is one. To add one, add a folder; `tests/golden/README.md` says how.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};
use tidemill_tests::{
    Folder, Rows, Run,
    oracle::{files, read_text},
    root,
};

#[test]
fn every_golden_case_gives_what_it_expects() {
    let mut cases: Vec<PathBuf> =
        fs::read_dir(root().join("tests/golden")).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.retain(|path| path.is_dir());
    cases.sort();
    assert!(!cases.is_empty());
    let wrong: Vec<String> = cases.iter().filter_map(|case| run(case).err()).collect();
    assert!(wrong.is_empty(), "{} of {} cases failed:\n\n{}", wrong.len(), cases.len(), wrong.join("\n\n"));
}

fn run(case: &Path) -> Result<(), String> {
    let name = case.file_name().unwrap().to_string_lossy().into_owned();
    let folder = Folder::new();
    folder.copy(&case.join("input"), "input");
    folder.copy(&case.join("job.yaml"), "job.yaml");
    let mut daemon = Run::new(&folder).job_file(folder.join("job.yaml")).once();
    let status = daemon.wait();
    if status.code() != Some(0) {
        return Err(format!("{name}: {status}\n{}{}", daemon.stdout(), daemon.stderr()));
    }
    let expected = files(&case.join("expected"));
    let mut checked = BTreeSet::new();
    for file in &expected {
        let target = folder.join(file.parent().unwrap().strip_prefix(case.join("expected")).unwrap());
        let outcome = match file.file_name().unwrap().to_str().unwrap() {
            "contains.json" => contains(&target, file, &mut checked),
            other if other.ends_with(".query") => query(&target, file),
            _ => same_lines(&target, file, &mut checked),
        };
        outcome.map_err(|e| format!("{name}: {}: {e}", file.strip_prefix(case).unwrap().display()))?;
    }
    // What a sink wrote beyond what is expected (a partition too many) is wrong too.
    let sinks: BTreeSet<PathBuf> = checked.iter().filter_map(|path| top(path, &folder)).collect();
    let strays: Vec<_> = sinks.iter().flat_map(|sink| files(sink)).filter(|path| !checked.contains(path)).collect();
    if strays.is_empty() { Ok(()) } else { Err(format!("{name}: files that are not expected: {strays:?}")) }
}

/// The folder below the case's own that a file lies in.
fn top(path: &Path, folder: &Folder) -> Option<PathBuf> {
    let first = path.strip_prefix(folder.path()).ok()?.components().next()?;
    Some(folder.join(first.as_os_str()))
}

/// The files that a sink wrote into exactly this folder.
fn written(target: &Path, checked: &mut BTreeSet<PathBuf>) -> Vec<PathBuf> {
    let found: Vec<PathBuf> = files(target).into_iter().filter(|path| path.parent() == Some(target)).collect();
    checked.extend(found.iter().cloned());
    found
}

/// The lines, byte for byte; in order, where they lie in one file. Every CSV file has the header.
fn same_lines(target: &Path, expected: &Path, checked: &mut BTreeSet<PathBuf>) -> Result<(), String> {
    let found: Vec<String> = written(target, checked).iter().map(|path| read_text(path)).collect();
    let text = read_text(expected);
    let header = expected.extension().is_some_and(|ending| ending == "csv");
    let mut wanted: Vec<&str> = text.lines().collect();
    let mut lines: Vec<&str> = Vec::new();
    for content in &found {
        if !content.is_empty() && !content.ends_with('\n') {
            return Err("a file does not end in a line break".to_owned());
        }
        let mut rest = content.lines();
        if header && rest.next() != wanted.first().copied() {
            return Err(format!("expected the header {:?} in every file, found {content:?}", wanted.first()));
        }
        lines.extend(rest);
    }
    if header && !wanted.is_empty() {
        wanted.remove(0);
    }
    if found.len() > 1 {
        wanted.sort_unstable();
        lines.sort_unstable();
    }
    if lines == wanted {
        return Ok(());
    }
    Err(format!("expected\n  {}\nfound, in {} files\n  {}", wanted.join("\n  "), found.len(), lines.join("\n  ")))
}

/// Each row holds the fields of one expected row, and perhaps more: for positions and times that differ from run to run.
fn contains(target: &Path, expected: &Path, checked: &mut BTreeSet<PathBuf>) -> Result<(), String> {
    let mut rows: Vec<Map<String, Value>> =
        written(target, checked).iter().flat_map(|path| Rows::file(path).0).collect();
    for wanted in Rows::file(expected).0 {
        let holds = |row: &Map<String, Value>| wanted.iter().all(|(name, value)| row.get(name) == Some(value));
        let Some(at) = rows.iter().position(holds) else {
            return Err(format!("no row holds {}; left are {rows:#?}", Value::Object(wanted)));
        };
        rows.remove(at);
    }
    if rows.is_empty() { Ok(()) } else { Err(format!("rows that are not expected: {rows:#?}")) }
}

/// `NAME.query` is for the database NAME: its first line is the query, the rest are the rows, as JSON, in order.
fn query(target: &Path, expected: &Path) -> Result<(), String> {
    let text = read_text(expected);
    let (query, rows) = text.split_once('\n').ok_or("the first line is the query, the rest are rows")?;
    let database = target.join(expected.file_stem().unwrap());
    let found = Rows::try_sqlite(&database, query).map_err(|e| e.to_string())?;
    let wanted = Rows::json(rows);
    if found == wanted { Ok(()) } else { Err(format!("expected {:#?}\nfound {:#?}", wanted.0, found.0)) }
}
