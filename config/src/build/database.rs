//! Sinks that write to a table of a database server.

use std::path::Path;

use serde::Deserialize;
use serde_yaml::Value;

use super::{Built, options, text, texts};
use crate::{DatabaseSink, Guarantee, Mode, OnNewColumn, paths::absolute, tree::Entry};

#[derive(Deserialize)]
struct Options {
    url: String,
    table: String,
    mode: String,
    guarantee: Guarantee,
    ca: Option<String>,
    on_new_column: OnNewColumn,
}

/// A database sink's options; the keys of all kinds are the same.
pub(super) fn sink(entry: &Entry, value: &Value, path: &str, folder: &Path) -> Built<DatabaseSink> {
    let given: Options = options(value, path)?;
    let mode = mode(&given.mode, entry, path);
    Ok(DatabaseSink {
        url: given.url,
        table: given.table,
        mode,
        guarantee: given.guarantee,
        ca: given.ca.map(|ca| absolute(&folder.join(ca))),
        on_new_column: given.on_new_column,
    })
}

/// `mode:`, with the keys that belong to it.
pub(super) fn mode(word: &str, entry: &Entry, path: &str) -> Mode {
    match word {
        "upsert" => Mode::Upsert {
            key: texts(entry.value.get("key"), path),
            delete_when: text(&entry.value, "delete_when", path),
        },
        _ => Mode::Append,
    }
}
