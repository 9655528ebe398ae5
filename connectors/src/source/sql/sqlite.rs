//! Rows of a SQLite file. It is opened for each question and never changed.

use std::path::PathBuf;

use async_trait::async_trait;
use rusqlite::{Connection, OpenFlags, types::ValueRef};
use tidemill_checkpoint::position::KeyPart;

use super::{
    Database, Page,
    page::{Cell, Names, Row},
    select::{Key, Kind, Range, Select},
};
use crate::{codec::base64, source::SourceError};

/// How long a question waits for a writer's lock.
const BUSY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

pub(super) struct Sqlite {
    pub(super) path: PathBuf,
    pub(super) select: Select,
}

impl Sqlite {
    async fn ask<T: Default + Send + 'static>(
        &self,
        sql: String,
        mut take: impl FnMut(&Select, &rusqlite::Row<'_>, &Names, &mut T) -> Result<bool, Stop> + Send + 'static,
    ) -> Result<T, SourceError> {
        let (path, select) = (self.path.clone(), self.select.clone());
        let asked = tokio::task::spawn_blocking(move || -> Result<T, SourceError> {
            let what = || format!("reading {}", path.display());
            let explain = |stop: Stop| match stop {
                Stop::Sqlite(error) => sqlite_error(what(), &error),
                Stop::Value(why) => SourceError::Fatal(format!("{}: {why}", path.display())),
            };
            if !path.exists() {
                return Err(SourceError::Transient { what: what(), cause: "there is no such file".into() });
            }
            let mut read = || -> Result<T, Stop> {
                let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
                let connection = Connection::open_with_flags(&path, flags)?;
                connection.busy_timeout(BUSY_TIMEOUT)?;
                connection.pragma_update(None, "query_only", true)?;
                let mut statement = connection.prepare(&sql)?;
                let columns = statement.column_count() - select.order.len();
                let names: Vec<String> =
                    statement.column_names().into_iter().take(columns).map(str::to_owned).collect();
                let names = Names::new(names.iter().map(String::as_str));
                let mut rows = statement.query([])?;
                let mut found = T::default();
                while let Some(row) = rows.next()? {
                    if !take(&select, row, &names, &mut found)? {
                        break;
                    }
                }
                Ok(found)
            };
            read().map_err(explain)
        });
        asked.await.map_err(|error| SourceError::Fatal(format!("a task of the source ended: {error}")))?
    }

    fn sql(&self, sql: Result<String, String>) -> Result<String, SourceError> {
        sql.map_err(|why| SourceError::Fatal(format!("{}: {why}", self.path.display())))
    }
}

/// What ends a question.
enum Stop {
    Sqlite(rusqlite::Error),
    Value(String),
}

impl From<rusqlite::Error> for Stop {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// Whether an error of a reader is a matter of time.
pub(crate) fn may_pass(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode as Code;
    matches!(
        error.sqlite_error_code(),
        Some(Code::DatabaseBusy | Code::DatabaseLocked | Code::SystemIoFailure | Code::CannotOpen)
    )
}

fn sqlite_error(what: String, error: &rusqlite::Error) -> SourceError {
    if may_pass(error) {
        return SourceError::Transient { what, cause: error.to_string() };
    }
    SourceError::Fatal(format!("{what}: {error}: correct `table`, `query` or `order_by`"))
}

/// The key of a row, whose columns come behind the others.
fn key(select: &Select, row: &rusqlite::Row<'_>, begin: usize) -> Result<Key, Stop> {
    let part = |(index, (name, _)): (usize, &(String, Kind))| match row.get_ref(begin + index)? {
        ValueRef::Integer(number) if number >= 0 => Ok(KeyPart::Number(number.unsigned_abs().into())),
        // With a replacement in it the position would be another one than the row's.
        ValueRef::Text(text) => match str::from_utf8(text) {
            Ok(text) => Ok(KeyPart::Text(text.to_owned())),
            Err(_) => Err(Stop::Value(format!(
                "column `{name}` of `order_by` has a text that is not UTF-8: correct it, or leave it out by a `query`"
            ))),
        },
        other => Err(Stop::Value(format!(
            "column `{name}` of `order_by` has a value that is {}: it holds whole numbers from 0, or texts",
            match other {
                ValueRef::Integer(_) => "below 0",
                _ => "neither",
            }
        ))),
    };
    select.order.iter().enumerate().map(part).collect()
}

fn row(select: &Select, row: &rusqlite::Row<'_>, names: &Names) -> Result<Row, Stop> {
    let count = names.len();
    let mut texts: Vec<Option<(bool, String)>> = Vec::with_capacity(count);
    for index in 0..count {
        texts.push(match row.get_ref(index)? {
            ValueRef::Null => None,
            ValueRef::Integer(number) => Some((true, number.to_string())),
            ValueRef::Real(number) => Some((number.is_finite(), format!("{number:?}"))),
            ValueRef::Text(text) => Some((false, String::from_utf8_lossy(text).into_owned())),
            ValueRef::Blob(bytes) => Some((false, base64(bytes))),
        });
    }
    let cells = texts.iter().map(|text| match text {
        None => Cell::Null,
        Some((true, raw)) => Cell::Raw(raw.as_bytes()),
        Some((false, text)) => Cell::Text(text),
    });
    Ok(Row { key: key(select, row, count)?, json: names.object(cells) })
}

#[async_trait]
impl Database for Sqlite {
    async fn rows(&self, range: &Range) -> Result<Page, SourceError> {
        let sql = self.sql(self.select.rows(&format!("r.*, {}", self.select.keys()), range))?;
        let range = range.clone();
        self.ask(sql, move |select, found, names, page: &mut Page| Ok(page.push(row(select, found, names)?, &range)))
            .await
    }

    async fn last(&self) -> Result<Option<Key>, SourceError> {
        let sql = self.sql(self.select.last())?;
        self.ask(sql, |select, row, _, last| {
            *last = Some(key(select, row, 0)?);
            Ok(true)
        })
        .await
    }
}
