//! The shared PostgreSQL as the suites of sinks see it: a schema for each folder.

use std::{fs, path::Path, sync::OnceLock};

use tidemill_checkpoint::Digest;
use tidemill_config::{At, DatabaseSink, Guarantee, Located, Mode, OnNewColumn};

use super::services::{self, Postgres};

/// The shared server; `None`: there is none, and the test is skipped.
pub fn server() -> Option<&'static Postgres> {
    static SERVER: OnceLock<Option<Postgres>> = OnceLock::new();
    SERVER.get_or_init(services::postgres).as_ref()
}

fn running() -> &'static Postgres {
    server().expect("the test was to be skipped")
}

/// The name of a folder's schema.
pub fn schema(dir: &Path) -> String {
    let digest = Digest::of(dir.as_os_str().as_encoded_bytes()).to_string();
    format!("sink_{}", &digest[..16])
}

/// The URL that works in it. It is made at the first time.
pub fn url(dir: &Path) -> String {
    let made = dir.join("schema");
    if let Ok(url) = fs::read_to_string(&made) {
        return url;
    }
    let url = running().schema(&schema(dir));
    fs::write(made, &url).unwrap();
    url
}

/// Takes a folder's schema away, where it has one.
pub fn forget(dir: &Path) {
    if dir.join("schema").exists() {
        running().psql(&format!("SET client_min_messages = error; DROP SCHEMA IF EXISTS {} CASCADE", schema(dir)));
    }
}

/// The names of all relations in it.
pub fn relations(dir: &Path) -> Vec<String> {
    let sql = "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace";
    running().psql_at(&url(dir), sql).lines().map(str::to_owned).collect()
}

/// The column `n` of the table `rows`.
pub fn numbers(dir: &Path) -> Vec<i64> {
    if !relations(dir).iter().any(|name| name == "rows") {
        return Vec::new();
    }
    running().psql_at(&url(dir), "SELECT n FROM rows").lines().map(|line| line.parse().unwrap()).collect()
}

/// A sink's configuration. No key: append.
pub fn config(url: &str, table: &str, key: &[&str], delete_when: Option<&str>) -> DatabaseSink {
    let at = |name: &str| Located { value: name.to_owned(), at: At::default() };
    let mode = match key {
        [] => Mode::Append,
        key => Mode::Upsert { key: key.iter().map(|name| at(name)).collect(), delete_when: delete_when.map(at) },
    };
    let guarantee = Guarantee::ExactlyOnce;
    DatabaseSink { url: url.into(), table: table.into(), mode, guarantee, ca: None, on_new_column: OnNewColumn::Fail }
}
