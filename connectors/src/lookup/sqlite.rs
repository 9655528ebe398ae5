//! SQLite: opened read-only for each read, so that a file that was replaced is seen.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use arrow::datatypes::DataType;
use async_trait::async_trait;
use rusqlite::{Connection, OpenFlags, Statement, params_from_iter, types::Value, types::ValueRef};

use super::{
    LookupError, Unanswered,
    cells::Cells,
    sql::{Described, Keys, Server},
};
use crate::source::sql::may_pass;

/// Variables of one statement; SQLite takes 32,766.
const MAX_VARIABLES: usize = 1_000;

pub(super) struct Sqlite {
    path: PathBuf,
    limit: Duration,
}

impl Sqlite {
    pub(super) fn new(path: &Path, limit: Duration) -> Self {
        Self { path: path.to_owned(), limit }
    }

    /// Runs `work` on a connection, off the runtime.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Unanswered> + Send + 'static,
    ) -> Result<T, Unanswered> {
        let (path, limit) = (self.path.clone(), self.limit);
        let done = tokio::task::spawn_blocking(move || {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let opened = Connection::open_with_flags(&path, flags).and_then(|connection| {
                connection.busy_timeout(limit)?;
                Ok(connection)
            });
            work(&opened.map_err(|error| failed(format!("opening {}", path.display()), &error))?)
        });
        done.await.map_err(|error| LookupError::of("SQLite", error))?
    }
}

fn failed(what: impl std::fmt::Display, error: &rusqlite::Error) -> Unanswered {
    Unanswered { cause: LookupError::of(what, error), transient: may_pass(error) }
}

/// The type that a declaration tells (as of SQLite's own rules of affinity).
fn declared(text: Option<&str>) -> Option<DataType> {
    let text = text?.to_ascii_uppercase();
    let has = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
    Some(match () {
        () if has(&["BOOL"]) => DataType::Boolean,
        () if has(&["INT"]) => DataType::Int64,
        () if has(&["CHAR", "CLOB", "TEXT", "DATE", "TIME"]) => DataType::Utf8,
        () if has(&["BLOB"]) => DataType::Binary,
        () if has(&["REAL", "FLOA", "DOUB", "NUM", "DEC"]) => DataType::Float64,
        () => return None,
    })
}

/// The type of values of both.
fn both(seen: Option<DataType>, value: &ValueRef<'_>) -> Option<DataType> {
    let kind = match value {
        ValueRef::Null => return seen,
        ValueRef::Integer(_) => DataType::Int64,
        ValueRef::Real(_) => DataType::Float64,
        ValueRef::Text(_) => DataType::Utf8,
        ValueRef::Blob(_) => DataType::Binary,
    };
    Some(match (seen, kind) {
        (None, kind) => kind,
        (Some(seen), kind) if seen == kind => kind,
        (Some(DataType::Int64 | DataType::Float64), DataType::Int64 | DataType::Float64) => DataType::Float64,
        _ => DataType::Utf8,
    })
}

/// All rows of a statement that is ready.
fn pour(
    statement: &mut Statement<'_>,
    values: Vec<Value>,
    cells: &mut Cells,
) -> Result<Vec<Option<DataType>>, Unanswered> {
    let mut seen = vec![None; statement.column_count()];
    let why = |error: rusqlite::Error| failed("reading", &error);
    let mut rows = statement.query(params_from_iter(values)).map_err(why)?;
    let mut text = String::new();
    while let Some(row) = rows.next().map_err(why)? {
        for (column, seen) in seen.iter_mut().enumerate() {
            let value = row.get_ref(column).map_err(why)?;
            *seen = both(seen.take(), &value);
            text.clear();
            // Writing to a text cannot fail.
            let bytes = match value {
                ValueRef::Null => None,
                ValueRef::Integer(number) => {
                    let _ = write!(text, "{number}");
                    Some(text.as_bytes())
                }
                ValueRef::Real(number) => {
                    let _ = write!(text, "{number}");
                    Some(text.as_bytes())
                }
                ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(bytes),
            };
            cells.push(column, bytes)?;
        }
    }
    Ok(seen)
}

fn prepared<'c>(connection: &'c Connection, statement: &str) -> Result<Statement<'c>, Unanswered> {
    connection.prepare(statement).map_err(|error| failed("its query", &error))
}

#[async_trait]
impl Server for Sqlite {
    fn quoted(&self, name: &str) -> String {
        format!("\"{}\"", name.replace('"', "\"\""))
    }

    fn at_once(&self) -> usize {
        MAX_VARIABLES
    }

    async fn describe(&self, statement: &str) -> Result<Vec<Described>, Unanswered> {
        let statement = statement.to_owned();
        self.with(move |connection| {
            let prepared = prepared(connection, &statement)?;
            let columns = prepared.columns().into_iter().map(|column| Described {
                name: column.name().to_owned(),
                kind: declared(column.decl_type()),
                native: Some(column.decl_type().unwrap_or_default().to_owned()),
                given: None,
                is_number: false,
            });
            Ok(columns.collect())
        })
        .await
    }

    async fn all(
        &self,
        statement: &str,
        _: &[Described],
        cells: &mut Cells,
    ) -> Result<Vec<Option<DataType>>, Unanswered> {
        let (statement, mut filled) = (statement.to_owned(), cells.take());
        let (done, filled) = self
            .with(move |connection| {
                let seen = pour(&mut prepared(connection, &statement)?, Vec::new(), &mut filled)?;
                Ok((seen, filled))
            })
            .await?;
        *cells = filled;
        Ok(done)
    }

    async fn some(
        &self,
        statement: &str,
        _: &[Described],
        keys: &Keys<'_>,
        cells: &mut Cells,
    ) -> Result<u64, Unanswered> {
        let names: Vec<_> = keys.described.iter().map(|key| self.quoted(&key.name)).collect();
        let (count, width) = (keys.count(), names.len());
        let row = format!("({})", vec!["?"; width].join(", "));
        let sql = format!("{statement} WHERE ({}) IN (VALUES {})", names.join(", "), vec![row; count].join(", "));
        let values: Vec<Value> = keys.values()?;
        let mut filled = cells.take();
        *cells = self
            .with(move |connection| {
                pour(&mut prepared(connection, &sql)?, values, &mut filled)?;
                Ok(filled)
            })
            .await?;
        Ok(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_have_types() {
        for (text, expected) in [
            (Some("BIGINT UNSIGNED"), Some(DataType::Int64)),
            (Some("varchar(10)"), Some(DataType::Utf8)),
            (Some("DATETIME"), Some(DataType::Utf8)),
            (Some("decimal(10,2)"), Some(DataType::Float64)),
            (Some("BOOLEAN"), Some(DataType::Boolean)),
            (Some("BLOB"), Some(DataType::Binary)),
            (Some("ANY"), None),
            (None, None),
        ] {
            assert_eq!(declared(text), expected, "{text:?}");
        }
    }
}
