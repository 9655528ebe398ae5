//! A SQLite table. Rows and mark are one transaction; all sinks of a file in this process share one connection.
//!
//! The journal is WAL with `synchronous = FULL`: one sync a commit (counted over 100 commits: WAL 109 syncs in all,
//! DELETE 404, TRUNCATE and PERSIST 505). [`marks`] has Tidemill's own tables, [`table`] the
//! user's, [`rows`] writes batches, [`database`] the connection and what errors mean. Lanes that commit as a group are
//! one transaction, each in a savepoint: a fenced lane costs the others nothing.
//!
//! A beat is a row of its own written with `synchronous = NORMAL` (no sync in WAL, and a checkpoint that it may cause
//! stays safe), and only while no commit runs: a running commit holds SQLite's only write lock, so nobody can claim
//! meanwhile, and the commit itself is the next sign of life. A process stopped by SIGSTOP inside a transaction holds
//! that lock too: others wait, and nothing is lost.
//!
//! Failpoints: `sqlite.before-begin`, `sqlite.after-mark`, `sqlite.after-rows`, `sqlite.before-commit`,
//! `sqlite.after-commit`, `sqlite.claim-before-commit`, `sqlite.claim-after-commit`.

mod database;
mod marks;
mod rows;
mod table;

use std::{path::Path, sync::Arc};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use async_trait::async_trait;
use rusqlite::{Connection, TransactionBehavior};
use tidemill_checkpoint::{
    Entry, Generation, Lane, LaneKey, LogName, Mark, Owner, Permit, Receipt, SinkId, failpoint::pass,
};
use tidemill_config::{Mode, OnNewColumn};

use self::{
    database::{Database, Doing, Failure},
    marks::Scope,
    table::Table,
};
use super::{Guarantee, Marks, Sink, SinkError, SinkReject, StageContext, Staged, blocking, commit_as_one};

/// The sink `type: sqlite`.
pub struct Sqlite {
    inner: Arc<Inner>,
}

struct Inner {
    database: Arc<Database>,
    scope: Scope,
    table: Table,
}

impl Sqlite {
    /// The sink `id` of `job`: rows go to `table` of the database file `path`. Opens and creates nothing.
    pub fn open(
        id: SinkId,
        job: &str,
        path: &Path,
        table: &str,
        mode: &Mode,
        on_new_column: OnNewColumn,
    ) -> Result<Self, SinkError> {
        let key = match mode {
            Mode::Append => Vec::new(),
            Mode::Upsert { key, .. } => key.iter().map(|column| column.value.clone()).collect(),
        };
        let table = Table { name: table.to_owned(), key, on_new_column };
        let scope = Scope { job: job.to_owned(), sink: id };
        Ok(Self { inner: Arc::new(Inner { database: Database::shared(path)?, scope, table }) })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, SinkError> + Send + 'static,
    ) -> Result<T, SinkError> {
        let inner = self.inner.clone();
        blocking(move || work(&inner)).await?
    }
}

/// Runs `work` in a transaction that holds the write lock from its start, so that nothing read in it can change.
fn writing<T>(connection: &mut Connection, work: impl FnOnce(&Connection) -> Result<T, Failure>) -> Result<T, Failure> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).doing("locking")?;
    let result = work(&transaction)?;
    transaction.commit().doing("committing to")?;
    Ok(result)
}

impl Inner {
    /// What is wrong with a table, with its file.
    fn named(&self, error: SinkError) -> SinkError {
        match error {
            SinkError::Fatal(why) => SinkError::Fatal(format!("{}: {why}", self.database.path().display())),
            other => other,
        }
    }

    fn commit(&self, group: &[(Permit, Vec<RecordBatch>)]) -> Result<Vec<Result<Receipt, SinkError>>, SinkError> {
        self.database.with(|connection| {
            pass("sqlite.before-begin").doing("locking the database")?;
            let receipts = writing(connection, |connection| {
                let receipts = group.iter().map(|(permit, rows)| self.commit_lane(connection, permit, rows)).collect();
                pass("sqlite.before-commit").doing("committing to the database")?;
                receipts
            })?;
            pass("sqlite.after-commit").doing("committing to the database")?;
            Ok(receipts)
        })
    }

    /// One lane in its savepoint. The outer error stops the whole group: SQLite or the disk, not this lane.
    fn commit_lane(
        &self,
        connection: &Connection,
        permit: &Permit,
        rows: &[RecordBatch],
    ) -> Result<Result<Receipt, SinkError>, Failure> {
        connection.execute_batch("SAVEPOINT lane").doing("beginning a lane in")?;
        match self.write(connection, permit, rows) {
            Ok(receipt) => {
                connection.execute_batch("RELEASE lane").doing("ending a lane in")?;
                Ok(Ok(receipt))
            }
            Err(Failure::Sink(error)) if !error.is_transient() && !connection.is_autocommit() => {
                connection.execute_batch("ROLLBACK TO lane; RELEASE lane").doing("undoing a lane in")?;
                Ok(Err(error))
            }
            Err(failure) => Err(failure),
        }
    }

    fn write(&self, connection: &Connection, permit: &Permit, batches: &[RecordBatch]) -> Result<Receipt, Failure> {
        if !self.scope.swap(connection, permit)? {
            return Ok(Receipt::written(permit));
        }
        pass("sqlite.after-mark").doing("writing to the database")?;
        let rejects = rows::write(connection, &self.table, permit, batches)?;
        self.scope.reject(connection, permit, &rejects)?;
        self.scope.append(connection, permit)?;
        pass("sqlite.after-rows").doing("writing to the database")?;
        Ok(Receipt::written(permit).with_rejected(rejects.len() as u64))
    }

    fn claim(&self, lane: &Lane, generation: Generation, owner: &Owner) -> Result<Option<Mark>, SinkError> {
        self.database.with(|connection| {
            let mark = writing(connection, |connection| {
                let mark = self.scope.claim(connection, lane, generation, owner)?;
                pass("sqlite.claim-before-commit").doing("claiming a lane")?;
                Ok(mark)
            })?;
            pass("sqlite.claim-after-commit").doing("claiming a lane")?;
            Ok(mark)
        })
    }

    fn beat(&self, key: &LaneKey) -> Result<(), SinkError> {
        let beaten = self.database.with_idle(|connection| {
            let unsynced = "PRAGMA synchronous = NORMAL";
            connection.execute_batch(unsynced).doing("writing a beat to")?;
            let beaten = self.scope.beat(connection, key);
            connection.execute_batch("PRAGMA synchronous = FULL").doing("writing a beat to")?;
            beaten.doing("writing a beat to")
        });
        match beaten {
            Some(Ok(false)) => {
                let held = self.database.read(|connection| self.scope.held(connection, &key.lane))?.unwrap_or_default();
                Err(self.scope.fenced(&key.lane, held.generation(), key.generation))
            }
            Some(Err(error)) => Err(error),
            Some(Ok(true)) | None => Ok(()),
        }
    }
}

#[async_trait]
impl Sink for Sqlite {
    fn id(&self) -> &SinkId {
        &self.inner.scope.sink
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    async fn peek(&self, lanes: &[Lane]) -> Result<Marks, SinkError> {
        let lanes = lanes.to_vec();
        self.run(move |inner| {
            let held = |connection: &Connection| {
                lanes.iter().map(|lane| Ok((lane.clone(), inner.scope.held(connection, lane)?))).collect()
            };
            let nothing = || lanes.iter().map(|lane| (lane.clone(), Default::default())).collect();
            Ok(inner.database.read(held)?.unwrap_or_else(nothing))
        })
        .await
    }

    async fn claim(
        &self,
        lane: &Lane,
        generation: Generation,
        owner: &Owner,
    ) -> Result<(LaneKey, Option<Mark>), SinkError> {
        let key = LaneKey { sink: self.id().clone(), lane: lane.clone(), generation, owner: owner.clone() };
        self.run(move |inner| Ok((key.clone(), inner.claim(&key.lane, key.generation, &key.owner)?))).await
    }

    async fn history(&self, lane: &Lane, log: &LogName, from: u64) -> Result<Vec<Entry>, SinkError> {
        let (lane, log) = (lane.clone(), log.clone());
        self.run(move |inner| {
            let entries = inner.database.read(|connection| inner.scope.history(connection, &lane, &log, from))?;
            Ok(entries.unwrap_or_default())
        })
        .await
    }

    async fn rejects(&self, lane: &Lane, from: u64) -> Result<Vec<SinkReject>, SinkError> {
        let lane = lane.clone();
        self.run(move |inner| {
            let rejects = inner.database.read(|connection| inner.scope.rejects(connection, &lane, from))?;
            Ok(rejects.unwrap_or_default())
        })
        .await
    }

    async fn prepare(&self, schema: &SchemaRef) -> Result<(), SinkError> {
        let schema = schema.clone();
        self.run(move |inner| {
            inner
                .database
                .with(|connection| {
                    writing(connection, |connection| inner.table.prepare(connection, &inner.scope, &schema))
                })
                .map_err(|error| inner.named(error))
        })
        .await
    }

    async fn check(&self, schema: Option<&SchemaRef>) -> Result<(), SinkError> {
        let schema = schema.cloned();
        self.run(move |inner| {
            if let Some(schema) = &schema {
                inner.table.names(schema).map_err(|error| inner.named(error))?;
            }
            let look = |connection: &Connection| {
                // A file that is no database is told with the first page that is read.
                connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
                Ok(schema.as_ref().map(|schema| inner.table.look(connection, schema, true)))
            };
            match inner.database.read(look)?.flatten() {
                Some(Err(Failure::Sink(error))) => Err(inner.named(error)),
                Some(Err(failure)) => Err(inner.database.explain(failure)),
                _ => Ok(()),
            }
        })
        .await
    }

    async fn stage(&self, context: &StageContext, rows: &[RecordBatch]) -> Result<Staged, SinkError> {
        let rows: Vec<RecordBatch> = if context.mark_only { Vec::new() } else { rows.to_vec() };
        let count = rows.iter().map(|batch| batch.num_rows() as u64).sum();
        Ok(Staged { rows: count, bytes: 0, data: Box::new(rows) })
    }

    async fn commit(&self, group: Vec<(Permit, Staged)>) -> Vec<Result<Receipt, SinkError>> {
        commit_as_one(group, |group: Vec<_>| self.run(move |inner| inner.commit(&group))).await
    }

    async fn beat(&self, key: &LaneKey) -> Result<(), SinkError> {
        let key = key.clone();
        self.run(move |inner| inner.beat(&key)).await
    }

    async fn release(&self, key: &LaneKey) -> Result<(), SinkError> {
        let key = key.clone();
        self.run(move |inner| {
            inner.database.with(|connection| inner.scope.release(connection, &key).doing("releasing a lane in"))
        })
        .await
    }

    async fn reset(&self) -> Result<(), SinkError> {
        self.run(|inner| {
            if !inner.database.path().exists() {
                return Ok(());
            }
            inner.database.with(|connection| {
                writing(connection, |connection| inner.scope.reset(connection).doing("forgetting the marks in"))
            })
        })
        .await
    }
}
