//! What a run wrote, held against a folder of expectations: `tests/golden/README.md` has the form.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use crate::{
    Daemon, Folder, Rows,
    oracle::{files, read_text},
};

/// Whether a run ended as `expected` says, and wrote what it says.
///
/// # Errors
/// The first difference, for a person.
pub fn check(folder: &Folder, expected: &Path, daemon: &mut Daemon) -> Result<(), String> {
    let status = daemon.wait();
    let said = format!("{status}\n{}{}", daemon.stdout(), daemon.stderr());
    let fails = expected.join("fails.txt");
    if status.code() != Some(i32::from(fails.exists())) {
        return Err(said);
    }
    let mut checked = BTreeSet::new();
    for file in files(expected) {
        let target = folder.join(file.parent().and_then(|above| above.strip_prefix(expected).ok()).unwrap());
        let outcome = match file.file_name().and_then(|name| name.to_str()).unwrap() {
            "fails.txt" => says(&said, &file),
            "contains.json" => contains(&target, &file, &mut checked),
            other if other.ends_with(".query") => query(&target, &file, &mut checked),
            _ => same_lines(&target, &file, &mut checked),
        };
        outcome.map_err(|e| format!("{}: {e}", file.strip_prefix(expected).unwrap().display()))?;
    }
    // What a sink wrote beyond what is expected (a partition too many) is wrong too.
    let sinks: BTreeSet<PathBuf> = checked.iter().filter_map(|path| top(path, folder)).collect();
    let strays: Vec<_> = sinks.iter().flat_map(|sink| files(sink)).filter(|path| !checked.contains(path)).collect();
    if strays.is_empty() { Ok(()) } else { Err(format!("files that are not expected: {strays:?}")) }
}

/// Every line of `fails.txt` is in what the daemon said.
fn says(said: &str, expected: &Path) -> Result<(), String> {
    match read_text(expected).lines().find(|line| !said.contains(line)) {
        Some(line) => Err(format!("{line:?} was not said, but\n{said}")),
        None => Ok(()),
    }
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
fn query(target: &Path, expected: &Path, checked: &mut BTreeSet<PathBuf>) -> Result<(), String> {
    let text = read_text(expected);
    let (query, rows) = text.split_once('\n').ok_or("the first line is the query, the rest are rows")?;
    let database = target.join(expected.file_stem().unwrap());
    checked.extend(["", "-wal", "-shm"].map(|part| PathBuf::from(format!("{}{part}", database.display()))));
    let found = Rows::try_sqlite(&database, query).map_err(|e| e.to_string())?;
    let wanted = Rows::json(rows);
    if found == wanted { Ok(()) } else { Err(format!("expected {:#?}\nfound {:#?}", wanted.0, found.0)) }
}
