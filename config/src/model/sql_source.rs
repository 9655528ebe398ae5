//! `type: sql` of a source.

use std::{fmt, path::PathBuf, time::Duration};

use crate::{Located, Start};

/// `type: sql`: rows of a database that come in the order of a key.
#[derive(Clone)]
pub struct SqlSource {
    /// Where the database is.
    pub database: SqlDatabase,
    /// What is read.
    pub from: SqlFrom,
    /// One or two columns that only grow.
    pub order_by: Vec<Located<String>>,
    /// How often new rows are asked for (default 5 s).
    pub poll: Duration,
    /// Where the job starts (default earliest).
    pub start: Start,
    /// How far the first column of `order_by` lies in the past before a row is read (default 0).
    pub settle: Duration,
    /// How long the answer to one question may take (default 30 s). A SQLite file is no server, and not waited for so.
    pub timeout: Duration,
    /// A file of certificates (PEM) that the server's must be signed by.
    pub ca: Option<PathBuf>,
}

/// The database that rows come from.
#[derive(Clone)]
pub enum SqlDatabase {
    /// A file of SQLite.
    Sqlite(PathBuf),
    /// The address of a PostgreSQL database, which holds a secret.
    Postgres(String),
    /// The address of a MySQL or MariaDB database, which holds a secret.
    Mysql(String),
}

/// A table or a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SqlFrom {
    /// A table; `schema.table` is allowed.
    Table(String),
    /// A query.
    Query(String),
}

impl fmt::Debug for SqlSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SqlSource { .. }")
    }
}

impl fmt::Debug for SqlDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SqlDatabase { .. }")
    }
}

impl SqlDatabase {
    /// The address as it may be shown.
    pub fn shown(&self) -> String {
        match self {
            Self::Sqlite(path) => path.display().to_string(),
            Self::Postgres(url) | Self::Mysql(url) => crate::redacted(url),
        }
    }
}
