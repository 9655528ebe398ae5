//! Tables that lookups join: files and databases, read whole or asked for keys.
//!
//! [`open`] gives the [`LookupTable`] of a step. With `mode: snapshot` it is read whole ([`LookupTable::read`]), and what was
//! read is kept under its digest ([`store::Store`]), which plans name; with `mode: query` it is asked for the keys of a
//! batch ([`LookupTable::ask`]), through a bounded cache ([`cache`]).
//!
//! Invariants:
//! - Nothing is written to a table, and connections are read-only where the database can do that.
//! - What is read is bounded by `max_bytes`, what is waited for by `timeout`.
//! - An error says what was done to which table, and never holds a password.
//!
//! Start with [`LookupTable`]; then `file`, `sql` (what PostgreSQL, MySQL and SQLite share) and `redis`.

mod cache;
mod cells;
mod file;
mod mysql;
mod postgres;
mod redis;
mod sql;
mod sqlite;
pub mod store;

use std::{sync::Arc, time::Duration};

use arrow::{
    array::{ArrayRef, AsArray, RecordBatch},
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType},
    util::display::{ArrayFormatter, FormatOptions},
};
use async_trait::async_trait;
use tidemill_checkpoint::ShardId;
use tidemill_config::{Database, DatabaseAddress, Lookup, LookupMode, LookupTable as Where};

use crate::{
    codec::to_arrow,
    sink::SinkError,
    source::{Base, Slice},
};

/// Why a table cannot be read or asked: what was being done, to what, and why it failed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct LookupError(pub String);

impl LookupError {
    fn of(what: impl std::fmt::Display, cause: impl std::fmt::Display) -> Self {
        Self(format!("{what}: {cause}"))
    }
}

/// Why there are no rows for keys. A table that is read as a whole is waited for in any case.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{cause}")]
pub struct Unanswered {
    /// The sentence.
    pub cause: LookupError,
    /// Whether it may pass: the connection, an overload, a lock.
    pub transient: bool,
}

impl From<LookupError> for Unanswered {
    fn from(cause: LookupError) -> Self {
        Self { cause, transient: false }
    }
}

impl From<SinkError> for Unanswered {
    fn from(error: SinkError) -> Self {
        Self { cause: LookupError(error.to_string()), transient: error.is_transient() }
    }
}

impl From<Unanswered> for LookupError {
    fn from(error: Unanswered) -> Self {
        error.cause
    }
}

impl Unanswered {
    /// The same, told of a table.
    fn of(self, what: &str) -> Self {
        Self { cause: LookupError::of(what, self.cause), ..self }
    }
}

/// A table of a lookup. All of it is cancel-safe.
#[async_trait]
pub trait LookupTable: Send + Sync {
    /// Its columns, those that the lookup needs at least.
    async fn schema(&self) -> Result<SchemaRef, LookupError>;

    /// Its columns, and whether it can be reached: what `validate --connect` asks.
    async fn check(&self) -> Result<SchemaRef, LookupError> {
        self.schema().await
    }

    /// All rows, of the columns that the lookup needs and the table has. Columns of `known` have its types, whatever the
    /// values suggest now.
    async fn read(&self, known: Option<&SchemaRef>) -> Result<RecordBatch, LookupError>;

    /// Whether [`LookupTable::read`] could give something else than it did last. Cheap; true where nobody can tell.
    fn may_have_changed(&self) -> bool {
        true
    }

    /// The rows of these keys, which are distinct, without nulls, and in the types of the table's key columns. The columns
    /// are those that the lookup needs. `Asked` counts what that took.
    async fn ask(&self, keys: &RecordBatch) -> Result<Asked, Unanswered>;
}

/// Rows for keys.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The rows, in any order.
    pub rows: RecordBatch,
    /// Queries that the database got; 0 where the cache had all keys.
    pub queries: u64,
}

/// The table of a lookup. Reads nothing and connects to nothing.
pub fn open(lookup: &Lookup) -> Result<Arc<dyn LookupTable>, LookupError> {
    let table: Arc<dyn LookupTable> = match &lookup.table {
        Where::File { path, codec } => Arc::new(file::FileTable::new(path, codec, lookup)),
        Where::Redis { database, key, value } => Arc::new(redis::RedisTable::new(database, key, *value, lookup)?),
        Where::Sql { database, rows } => Arc::new(sql::SqlTable::new(server(database, lookup.timeout)?, rows, lookup)),
    };
    let table: Arc<dyn LookupTable> = Arc::new(Patient { table, limit: lookup.timeout, what: lookup.shown() });
    Ok(match lookup.mode {
        LookupMode::Query { entries, ttl } if entries > 0 => Arc::new(cache::Cached::new(table, lookup, entries, ttl)),
        _ => table,
    })
}

/// The columns of a lookup's table as far as they are known without a database: given by the job, or in a file, which is
/// read. `None`: only the database knows, or the file is not there yet. Blocks.
pub fn known_schema(lookup: &Lookup) -> Result<Option<SchemaRef>, LookupError> {
    match &lookup.table {
        Where::File { path, .. } if !path.exists() => Ok(lookup.schema.as_deref().map(to_arrow)),
        Where::File { path, codec } => file::FileTable::new(path, codec, lookup).look().map(Some),
        Where::Redis { database, key, value } => {
            redis::RedisTable::new(database, key, *value, lookup).map(|table| Some(table.whole()))
        }
        Where::Sql { .. } => Ok(lookup.schema.as_deref().map(to_arrow)),
    }
}

/// What stands in for a table that nobody has looked at: columns without a type are texts.
pub fn stand_in(lookup: &Lookup) -> SchemaRef {
    let given = lookup.schema.as_deref().map(to_arrow);
    let field = |name: String| {
        let kind = given.as_ref().and_then(|schema| schema.field_with_name(&name).ok()).map(|field| field.data_type());
        Field::new(&name, kind.cloned().unwrap_or(TEXT), true)
    };
    Arc::new(Schema::new(names(lookup).into_iter().map(field).collect::<Vec<_>>()))
}

fn server(database: &Database, limit: Duration) -> Result<Box<dyn sql::Server>, LookupError> {
    Ok(match &database.address {
        DatabaseAddress::Sqlite(path) => Box::new(sqlite::Sqlite::new(path, limit)),
        DatabaseAddress::Postgres(url) => Box::new(postgres::Postgres::new(url, database.ca.as_deref(), limit)?),
        DatabaseAddress::Mysql(url) => Box::new(mysql::Mysql::new(url, database.ca.as_deref())?),
        DatabaseAddress::Redis(_) => return Err(LookupError::of(&database.name, "Redis has no SQL")),
    })
}

/// A table that is not waited for longer than the lookup says.
struct Patient {
    table: Arc<dyn LookupTable>,
    limit: Duration,
    what: String,
}

impl Patient {
    async fn wait<T, E: From<Unanswered>>(&self, work: impl Future<Output = Result<T, E>> + Send) -> Result<T, E> {
        tokio::time::timeout(self.limit, work).await.unwrap_or_else(|_| {
            let why = format!("no answer in {:?}: a longer `timeout` waits longer", self.limit);
            Err(Unanswered { cause: LookupError::of(&self.what, why), transient: true }.into())
        })
    }
}

#[async_trait]
impl LookupTable for Patient {
    async fn schema(&self) -> Result<SchemaRef, LookupError> {
        self.wait(self.table.schema()).await
    }
    async fn check(&self) -> Result<SchemaRef, LookupError> {
        self.wait(self.table.check()).await
    }
    async fn read(&self, known: Option<&SchemaRef>) -> Result<RecordBatch, LookupError> {
        self.wait(self.table.read(known)).await
    }
    fn may_have_changed(&self) -> bool {
        self.table.may_have_changed()
    }
    async fn ask(&self, keys: &RecordBatch) -> Result<Asked, Unanswered> {
        self.wait(self.table.ask(keys)).await
    }
}

/// The largest table that a snapshot may have.
fn max_bytes(lookup: &Lookup) -> u64 {
    match lookup.mode {
        LookupMode::Snapshot { max_bytes, .. } => max_bytes,
        // Bounded by the keys of a batch.
        LookupMode::Query { .. } => u64::MAX,
    }
}

fn too_large(what: &str, max_bytes: u64) -> LookupError {
    LookupError::of(
        what,
        format!(
            "it has more than `max_bytes` ({max_bytes} bytes), of which a quarter of the daemon's `memory` is the most. Raise it, \
             take fewer rows, or ask a database by `mode: query`"
        ),
    )
}

fn no_column(what: impl std::fmt::Display, name: &str, all: &[&str]) -> LookupError {
    LookupError::of(what, format!("it has no column `{name}`. There are: {}", all.join(", ")))
}

/// The names that a lookup needs of its table.
fn names(lookup: &Lookup) -> Vec<String> {
    lookup.columns().into_iter().map(|column| column.value.clone()).collect()
}

/// A column's values as texts; null stays null.
fn texts(column: &ArrayRef) -> Result<Vec<Option<String>>, LookupError> {
    let options = FormatOptions::default().with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.6f"));
    // In UTC, as sessions are: the name of a zone is nothing that arrow knows here.
    let plain: ArrayRef = match column.data_type() {
        DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => {
            Arc::new(column.as_primitive::<TimestampMicrosecondType>().clone().with_timezone_opt(None::<Arc<str>>))
        }
        _ => column.clone(),
    };
    let display = ArrayFormatter::try_new(&plain, &options).map_err(|error| LookupError::of("its keys", error))?;
    Ok((0..column.len()).map(|row| column.is_valid(row).then(|| display.value(row).to_string())).collect())
}

/// Records for a codec.
fn slice(bytes: Vec<u8>, records: Vec<(u32, u32)>, header: Option<Vec<u8>>) -> Slice {
    let shard = ShardId::new("lookup", "table");
    Slice {
        shard,
        bytes: bytes.into(),
        records,
        base: Base::Bytes(0),
        header: header.map(Into::into),
        metadata: Vec::new(),
        columns: Vec::new(),
    }
}

/// The type of a column whose values are texts.
const TEXT: DataType = DataType::Utf8;
