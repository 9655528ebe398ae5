//! The step `lookup`: a table whose columns join the rows, and the databases that tables are in.

use std::{fmt, path::PathBuf, time::Duration};

use crate::{Codec, Field, Job, Located, OnLost, Step, Verb, redacted};

/// The step `lookup`.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// Where the table is.
    pub table: LookupTable,
    /// What must be equal: columns of the rows, each with its column of the table.
    pub keys: Vec<(Located<String>, Located<String>)>,
    /// Columns of the table, each with the name that it gets in the rows.
    pub take: Vec<(Located<String>, Located<String>)>,
    /// What becomes of a row that the table has nothing for (default null).
    pub on_missing: OnMissing,
    /// What to do where the table has a key twice (default fail).
    pub duplicates: Duplicates,
    /// Types of the table's columns, where the job gives them.
    pub schema: Option<Vec<Field>>,
    /// How the table is read.
    pub mode: LookupMode,
    /// What a replay does without the table of its batch; `None` is the default, [`Job::on_lost_table`].
    pub on_lost_table: Option<OnLost>,
    /// Longer no database is waited for (default 30 s).
    pub timeout: Duration,
}

impl Lookup {
    /// The columns of the table that the step needs, keys first, each once.
    pub fn columns(&self) -> Vec<&Located<String>> {
        let mut columns: Vec<&Located<String>> = Vec::new();
        for column in self.keys.iter().map(|(_, key)| key).chain(self.take.iter().map(|(column, _)| column)) {
            if !columns.iter().any(|known| known.value == column.value) {
                columns.push(column);
            }
        }
        columns
    }

    /// The table as a message may show it: its file, or its name in its database.
    pub fn shown(&self) -> String {
        match &self.table {
            LookupTable::File { path, .. } => path.display().to_string(),
            LookupTable::Sql { database, rows: SqlRows::Table(table) } => {
                format!("table {table} of database {}", database.name)
            }
            LookupTable::Sql { database, rows: SqlRows::Query(_) } => format!("a query of database {}", database.name),
            LookupTable::Redis { database, key, .. } => format!("keys {key} of database {}", database.name),
        }
    }
}

impl Job {
    /// What a replay does that has not the table which the batch used in this step. Where the job does not say, it goes on
    /// with the table of now if lanes move between machines, and a row could not be in one sink for the table of then, and
    /// by the table of now be left out of another or be a dead letter as well.
    pub fn on_lost_table(&self, step: &Step, lookup: &Lookup, lanes_move: bool) -> OnLost {
        let after = self.steps.iter().skip_while(|other| other.name != step.name);
        let rejects =
            |step: &Step| matches!(&step.verb, Verb::Lookup(lookup) if lookup.on_missing == OnMissing::Reject);
        let leaves_out = |step: &Step| match &step.verb {
            Verb::Lookup(lookup) => lookup.on_missing != OnMissing::Null,
            Verb::Split { into, .. } => into.is_empty(),
            Verb::Filter(_) | Verb::DropEmpty(_) | Verb::DropNulls(_) | Verb::Sql(_) => true,
            _ => false,
        };
        let chosen = self.sinks.iter().any(|sink| sink.filter.is_some());
        let differs = after.clone().any(rejects) || (self.sinks.len() > 1 && (chosen || after.clone().any(leaves_out)));
        lookup.on_lost_table.unwrap_or(if lanes_move && !differs { OnLost::Continue } else { OnLost::Stop })
    }
}

/// Where a table is.
#[derive(Clone, Debug)]
pub enum LookupTable {
    /// A file.
    File {
        /// Resolved against the job file's folder.
        path: PathBuf,
        /// Given, or by the file's ending.
        codec: Codec,
    },
    /// A database that speaks SQL.
    Sql {
        /// The database.
        database: Database,
        /// Its rows.
        rows: SqlRows,
    },
    /// Redis: a key for each row.
    Redis {
        /// The database.
        database: Database,
        /// The key, with columns of the rows in braces: `user:{id}`.
        key: String,
        /// What is stored under it.
        value: RedisValue,
    },
}

/// Rows of a database that speaks SQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SqlRows {
    /// All of a table.
    Table(String),
    /// Those of a query.
    Query(String),
}

/// `value:` of a Redis lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedisValue {
    /// A hash, whose fields are the columns.
    Hash,
    /// The text of a JSON object, whose fields are the columns.
    Json,
    /// A text: the one column `value`.
    Text,
}

/// `on_missing:`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnMissing {
    /// The row goes on with nulls.
    Null,
    /// The row becomes a dead letter.
    Reject,
    /// The row is left out.
    Drop,
}

/// `duplicates:`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duplicates {
    /// The table is wrong.
    Fail,
    /// The first row of a key counts.
    First,
    /// The last one.
    Last,
}

/// `mode:` of a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupMode {
    /// The whole table is read, and kept under its digest, which plans name.
    Snapshot {
        /// How often it is looked for a newer one (default 1 s for files, 60 s for databases).
        refresh: Duration,
        /// A larger table is refused (default 256 MiB).
        max_bytes: u64,
    },
    /// The database is asked for each batch's keys.
    Query {
        /// Keys whose rows are remembered (default 100,000).
        entries: usize,
        /// For how long (default 60 s).
        ttl: Duration,
    },
}

/// A database of the top-level `databases:`. Its address holds a secret: show it by [`Database::shown`] only.
#[derive(Clone, PartialEq, Eq)]
pub struct Database {
    /// Its name in the job.
    pub name: String,
    /// What it is and where.
    pub address: DatabaseAddress,
    /// A file of certificates (PEM) that the server's must be signed by; `None`: those that the system trusts.
    pub ca: Option<PathBuf>,
}

/// What a database is and where.
#[derive(Clone, PartialEq, Eq)]
pub enum DatabaseAddress {
    /// A SQLite file.
    Sqlite(PathBuf),
    /// `postgres://`
    Postgres(String),
    /// `mysql://`
    Mysql(String),
    /// `redis://` or `rediss://`
    Redis(String),
}

impl Database {
    /// The address without what is secret.
    pub fn shown(&self) -> String {
        match &self.address {
            DatabaseAddress::Sqlite(path) => path.display().to_string(),
            DatabaseAddress::Postgres(url) | DatabaseAddress::Mysql(url) | DatabaseAddress::Redis(url) => redacted(url),
        }
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Database {:?}", self.name)
    }
}
