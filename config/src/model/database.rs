//! Sinks that write to a table of a database server.

use std::{fmt, path::PathBuf};

use crate::{Guarantee, Located};

/// `type: postgres` and its like: a table of a database server.
#[derive(Clone)]
pub struct DatabaseSink {
    /// The address, with user, password and database. Holds a secret: show it by [`redacted`] only.
    pub url: String,
    /// The table; `schema.table` is allowed.
    pub table: String,
    /// How rows are written.
    pub mode: Mode,
    /// Whether marks are kept beside the rows.
    pub guarantee: Guarantee,
    /// A file of certificates (PEM) that the server's must be signed by; `None`: those that the system trusts.
    pub ca: Option<PathBuf>,
    /// What is done where the rows have a column that the table lacks.
    pub on_new_column: OnNewColumn,
}

/// `on_new_column:` of a sink that writes to a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnNewColumn {
    /// The job stops, and names the statement that adds it.
    #[default]
    Fail,
    /// The sink adds it, before the first batch that has it.
    Add,
}

impl fmt::Debug for DatabaseSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DatabaseSink { .. }")
    }
}

/// `mode:` of a database sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Insert.
    Append,
    /// Insert or replace by key; the last row per key in batch order wins.
    Upsert {
        /// The columns that tell rows apart.
        key: Vec<Located<String>>,
        /// A boolean column: rows where it is true delete their key. It is not stored.
        delete_when: Option<Located<String>>,
    },
}

/// An address as it may be shown: without its password and its options (`postgres://user@host:5432/shop`).
pub fn redacted(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return "***".into() };
    let (rest, behind) = rest.split_at(rest.find(['?', '#']).unwrap_or(rest.len()));
    // So may one hold `?` and `#`: nobody knows then where it ends. An option has its `=` before an `@`.
    if behind.split('=').next().is_some_and(|name| name.contains('@')) {
        let user = rest.split([':', '@']).next().unwrap_or_default();
        return format!("{scheme}://{user}@***");
    }
    // A password that was not encoded may hold `@` and `/`: the host begins after the last `@`.
    match rest.rsplit_once('@') {
        None => format!("{scheme}://{rest}"),
        Some((login, host)) => {
            let user = login.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}@{host}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_what_is_secret() {
        for (url, shown) in [
            ("postgres://me:pw@h:5432/db", "postgres://me@h:5432/db"),
            ("postgres://me:p@w/x@h/db?password=pw&sslmode=require", "postgres://me@h/db"),
            ("postgres://me@h/db", "postgres://me@h/db"),
            ("postgres://h/db", "postgres://h/db"),
            ("postgres://me:p@w/x#y@h/db", "postgres://me@***"),
            ("postgres://me:p@w/x?y@h/db", "postgres://me@***"),
            ("postgres://me:pw@h/db?application_name=a@b", "postgres://me@h/db"),
            ("host=h password=pw", "***"),
        ] {
            assert_eq!(redacted(url), shown);
        }
    }
}
