//! A table of MySQL or MariaDB. Rows and mark are one transaction of InnoDB, the only engine that is taken.
//!
//! [`database`] has the connections and what errors mean, [`marks`] Tidemill's own tables, [`table`] the user's, [`rows`]
//! writes batches. Two connections: one commits, the other looks at marks and writes beats beside it. Lanes that commit as
//! a group are one transaction, each in a savepoint: a fenced lane costs the others nothing.
//!
//! The mark's row is updated first and stays locked until the transaction ends, so a claim, which locks it too, sees what
//! every older generation did. A process that is paused in a transaction holds that lock until the server ends its session
//! after 20 idle seconds. A COMMIT whose answer is lost is resolved by locking and reading the mark from a new connection:
//! once the lock is had, the old transaction has ended. Without marks there are the rows alone. A deadlock undoes the whole
//! transaction, which is tried again.
//!
//! Failpoints: `mysql.before-begin`, `mysql.after-mark`, `mysql.after-rows`, `mysql.before-commit`, `mysql.after-commit`,
//! `mysql.claim-before-commit`, `mysql.claim-after-commit`.

pub(crate) mod database;
mod marks;
mod rows;
mod table;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use async_trait::async_trait;
use tidemill_checkpoint::{
    Entry, Generation, Lane, LaneKey, LogName, Mark, Owner, Permit, Receipt, SinkId, failpoint::pass,
};
use tidemill_config::{DatabaseSink, Guarantee, Mode};

use self::{
    database::{Address, Database, Doing, Failure, Session},
    marks::{Scope, owns},
    rows::Rows,
    table::{Members, Table},
};
use super::{Marks, Sink, SinkError, SinkReject, StageContext, Staged, blocking, commit_as_one, unmarked};

/// How often a transaction that lost to another one is begun again before the batch is.
const TRIES: u32 = 5;
/// The pause before that, once more for each try.
const PAUSE: Duration = Duration::from_millis(20);

const DEADLOCK: u16 = 1213;
const DUPLICATE: u16 = 1062;

/// The sink `type: mysql`.
pub struct Mysql {
    database: Database,
    scope: Scope,
    table: Arc<Table>,
    /// As the table was when it was looked at.
    members: Mutex<Arc<Members>>,
    guarantee: Guarantee,
}

impl Mysql {
    /// The sink `id` of `job`. Connects nowhere.
    pub fn open(id: SinkId, job: &str, config: &DatabaseSink) -> Result<Self, SinkError> {
        let (key, delete_when) = match &config.mode {
            Mode::Append => (Vec::new(), None),
            Mode::Upsert { key, delete_when } => (
                key.iter().map(|column| column.value.clone()).collect(),
                delete_when.as_ref().map(|column| column.value.clone()),
            ),
        };
        let address = Address::new(&config.url, config.ca.as_deref()).map_err(SinkError::Fatal)?;
        let table =
            Arc::new(Table { name: config.table.clone(), key, delete_when, on_new_column: config.on_new_column });
        Ok(Self {
            database: Database::new(address),
            scope: Scope { job: job.to_owned(), sink: id },
            table,
            members: Mutex::default(),
            guarantee: config.guarantee,
        })
    }

    fn keeps_marks(&self) -> bool {
        self.guarantee == Guarantee::ExactlyOnce
    }

    /// One try to commit the group. A COMMIT without an answer is resolved, where marks tell.
    async fn try_commit(&self, group: &[(Permit, Rows)]) -> Result<Tried, SinkError> {
        let mut used = self.database.writer().await?;
        let session = used.session();
        let receipts = match self.write_group(session, group).await {
            Ok(receipts) => receipts,
            Err(failure) => {
                let again = failure.code() == Some(DEADLOCK);
                let failure = undo(session, failure).await;
                return lost(used.done(Err(failure)), again);
            }
        };
        match session.run("committing to", "COMMIT").await {
            Ok(_) => {
                let passed = pass("mysql.after-commit").doing("committing to the database");
                used.done(passed).map(|()| Tried::Done(receipts))
            }
            Err(failure) if failure.breaks() && self.keeps_marks() => {
                let error = used.done::<()>(Err(failure)).err();
                self.resolve(group, receipts, error).await.map(Tried::Done)
            }
            Err(failure) => {
                // A cluster (Galera) tells of a conflict only here.
                let again = failure.code() == Some(DEADLOCK);
                let failure = undo(session, failure).await;
                lost(used.done(Err(failure)), again)
            }
        }
    }

    async fn write_group(
        &self,
        session: &mut Session,
        group: &[(Permit, Rows)],
    ) -> Result<Vec<Result<Receipt, SinkError>>, Failure> {
        pass("mysql.before-begin").doing("beginning a transaction")?;
        session.run("beginning a transaction in", "START TRANSACTION").await?;
        let mut receipts = Vec::with_capacity(group.len());
        for (permit, rows) in group {
            receipts.push(self.write_lane(session, permit, rows).await?);
        }
        pass("mysql.before-commit").doing("committing to the database")?;
        Ok(receipts)
    }

    /// One lane in its savepoint. The outer error stops the whole group: the server or the connection, not this lane.
    async fn write_lane(
        &self,
        session: &mut Session,
        permit: &Permit,
        rows: &Rows,
    ) -> Result<Result<Receipt, SinkError>, Failure> {
        session.run("beginning a lane in", "SAVEPOINT lane").await?;
        let error = match self.write(session, permit, rows).await {
            Ok(receipt) => {
                session.run("ending a lane in", "RELEASE SAVEPOINT lane").await?;
                return Ok(Ok(receipt));
            }
            Err(failure) if failure.breaks() || failure.code() == Some(DEADLOCK) => return Err(failure),
            Err(failure) => failure,
        };
        match self.database.address.explain(error) {
            error if error.is_transient() => Err(error.into()),
            error => {
                session.run("undoing a lane in", "ROLLBACK TO SAVEPOINT lane").await?;
                Ok(Err(error))
            }
        }
    }

    async fn write(&self, session: &mut Session, permit: &Permit, rows: &Rows) -> Result<Receipt, Failure> {
        if self.keeps_marks() && !self.scope.swap(session, permit).await? {
            return Ok(Receipt::written(permit));
        }
        pass("mysql.after-mark").doing("writing to the database")?;
        let rejects = rows.write(session, permit).await?;
        let receipt = if self.keeps_marks() {
            self.scope.reject(session, permit, &rejects).await?;
            self.scope.append(session, permit).await?;
            Receipt::written(permit).with_rejected(rejects.len() as u64)
        } else {
            unmarked::receipt(permit, &rejects)?
        };
        pass("mysql.after-rows").doing("writing to the database")?;
        Ok(receipt)
    }

    /// Whether a COMMIT without an answer came to pass: each mark tells, once its lock is had. `cause`: why there was none.
    async fn resolve(
        &self,
        group: &[(Permit, Rows)],
        receipts: Vec<Result<Receipt, SinkError>>,
        cause: Option<SinkError>,
    ) -> Result<Vec<Result<Receipt, SinkError>>, SinkError> {
        let mut used = self.database.writer().await?;
        let session = used.session();
        let looked = self.look_for(session, group, receipts, cause).await;
        let ended = session.run("resolving a commit to", "ROLLBACK").await.map(drop);
        used.done(looked.and_then(|receipts| ended.map(|()| receipts)))
    }

    async fn look_for(
        &self,
        session: &mut Session,
        group: &[(Permit, Rows)],
        receipts: Vec<Result<Receipt, SinkError>>,
        cause: Option<SinkError>,
    ) -> Result<Vec<Result<Receipt, SinkError>>, Failure> {
        session.run("resolving a commit to", "START TRANSACTION").await?;
        let mut found = Vec::with_capacity(receipts.len());
        for ((permit, _), receipt) in group.iter().zip(receipts) {
            let (key, digest) = (permit.key(), permit.mark().digest);
            let held = self.scope.held_for_update(session, &key.lane).await?;
            let there = held.mark.as_ref().is_some_and(|mark| mark.digest == digest);
            found.push(match receipt {
                Ok(receipt) if there => Ok(receipt),
                Ok(_) if !held.claim.as_ref().is_some_and(|claim| owns(claim, key)) => {
                    Err(self.scope.fenced(&key.lane, held.generation(), key.generation))
                }
                Ok(_) => Err(cause.clone().unwrap_or_else(|| SinkError::Transient {
                    what: "committing a batch".into(),
                    cause: "the server did not commit it".into(),
                })),
                Err(error) => Err(error),
            });
        }
        Ok(found)
    }

    async fn commit_group(&self, group: &[(Permit, Rows)]) -> Result<Vec<Result<Receipt, SinkError>>, SinkError> {
        for tries in 1.. {
            match self.try_commit(group).await? {
                Tried::Done(receipts) => return Ok(receipts),
                Tried::Again(error) if tries == TRIES => return Err(error),
                Tried::Again(_) => tokio::time::sleep(PAUSE * tries).await,
            }
        }
        unreachable!("the last try returns")
    }

    async fn claim_lane(&self, key: &LaneKey) -> Result<Option<Mark>, SinkError> {
        let mut used = self.database.writer().await?;
        let made = Scope::make(used.session()).await;
        if let Err(failure) = made {
            return used.done(Err(failure));
        }
        for tries in 1.. {
            match self.try_claim(used.session(), key).await {
                Ok(mark) => {
                    let passed = pass("mysql.claim-after-commit").doing("claiming a lane");
                    return used.done(passed.map(|()| mark));
                }
                Err(failure) => {
                    let again = matches!(failure.code(), Some(DEADLOCK | DUPLICATE)) && tries < TRIES;
                    let failure = undo(used.session(), failure).await;
                    if !again || failure.breaks() {
                        return used.done(Err(failure));
                    }
                }
            }
            tokio::time::sleep(PAUSE * tries).await;
        }
        unreachable!("the last try returns")
    }

    async fn try_claim(&self, session: &mut Session, key: &LaneKey) -> Result<Option<Mark>, Failure> {
        session.run("claiming a lane in", "START TRANSACTION").await?;
        let mark = self.scope.claim(session, &key.lane, key.generation, &key.owner).await?;
        pass("mysql.claim-before-commit").doing("claiming a lane")?;
        session.run("claiming a lane in", "COMMIT").await?;
        Ok(mark)
    }

    async fn looked_at(&self, session: &mut Session, schema: Option<&SchemaRef>) -> Result<(), Failure> {
        if self.keeps_marks() {
            Scope::look(session).await?;
        }
        self.table.look(session, schema.map(AsRef::as_ref)).await
    }

    async fn prepared(&self, session: &mut Session, schema: &SchemaRef) -> Result<(), Failure> {
        let flushed: Option<u64> =
            session.first("looking at the settings of", "SELECT @@innodb_flush_log_at_trx_commit", ()).await?;
        if flushed != Some(1) {
            tracing::warn!(
                database = %self.database.address.shown,
                "innodb_flush_log_at_trx_commit is not 1: a power cut at the server takes back batches that were committed"
            );
        }
        let members = self.table.prepare(session, self.keeps_marks().then_some(&self.scope), schema).await?;
        *self.members.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(members);
        Ok(())
    }
}

/// What became of one try.
enum Tried {
    Done(Vec<Result<Receipt, SinkError>>),
    /// It lost to another transaction, and may be tried again.
    Again(SinkError),
}

/// What follows from a try that failed.
fn lost(tried: Result<Tried, SinkError>, again: bool) -> Result<Tried, SinkError> {
    tried.or_else(|error| if again { Ok(Tried::Again(error)) } else { Err(error) })
}

/// Ends a transaction that failed. Where that fails too, the connection is of no use, and the server does it.
async fn undo(session: &mut Session, failure: Failure) -> Failure {
    if failure.breaks() {
        return failure;
    }
    match session.run("undoing a transaction in", "ROLLBACK").await {
        Ok(_) => failure,
        Err(other) => other,
    }
}

#[async_trait]
impl Sink for Mysql {
    fn id(&self) -> &SinkId {
        &self.scope.sink
    }

    fn guarantee(&self) -> Guarantee {
        self.guarantee
    }

    async fn peek(&self, lanes: &[Lane]) -> Result<Marks, SinkError> {
        let mut used = self.database.reader().await?;
        let mut marks = Marks::new();
        for lane in lanes {
            match self.scope.held(used.session(), lane).await {
                Ok(held) => marks.insert(lane.clone(), held),
                Err(failure) => return used.done(Err(failure)),
            };
        }
        used.done(Ok(marks))
    }

    async fn claim(
        &self,
        lane: &Lane,
        generation: Generation,
        owner: &Owner,
    ) -> Result<(LaneKey, Option<Mark>), SinkError> {
        let key = LaneKey { sink: self.id().clone(), lane: lane.clone(), generation, owner: owner.clone() };
        let mark = self.claim_lane(&key).await?;
        Ok((key, mark))
    }

    async fn history(&self, lane: &Lane, log: &LogName, from: u64) -> Result<Vec<Entry>, SinkError> {
        let mut used = self.database.reader().await?;
        let entries = self.scope.history(used.session(), lane, log, from).await;
        used.done(entries)
    }

    async fn rejects(&self, lane: &Lane, from: u64) -> Result<Vec<SinkReject>, SinkError> {
        let mut used = self.database.reader().await?;
        let rejects = self.scope.rejects(used.session(), lane, from).await;
        used.done(rejects)
    }

    async fn check(&self, schema: Option<&SchemaRef>) -> Result<(), SinkError> {
        let mut used = self.database.reader().await?;
        let looked = self.looked_at(used.session(), schema).await;
        used.done(looked).map_err(|error| self.named(error))
    }

    async fn prepare(&self, schema: &SchemaRef) -> Result<(), SinkError> {
        let mut used = self.database.writer().await?;
        let prepared = self.prepared(used.session(), schema).await;
        used.done(prepared).map_err(|error| self.named(error))
    }

    async fn stage(&self, context: &StageContext, rows: &[RecordBatch]) -> Result<Staged, SinkError> {
        let rows: Vec<RecordBatch> = if context.mark_only { Vec::new() } else { rows.to_vec() };
        let table = self.table.clone();
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let rows = blocking(move || Rows::new(&table, &members, rows)).await?;
        Ok(Staged { rows: rows.count(), bytes: rows.bytes(), data: Box::new(rows) })
    }

    async fn commit(&self, group: Vec<(Permit, Staged)>) -> Vec<Result<Receipt, SinkError>> {
        commit_as_one(group, |group| async move { self.commit_group(&group).await }).await
    }

    async fn beat(&self, key: &LaneKey) -> Result<(), SinkError> {
        let mut used = self.database.reader().await?;
        let beaten = match self.scope.beat(used.session(), key).await {
            Ok(false) => match self.scope.held(used.session(), &key.lane).await {
                Ok(held) => Err(self.scope.fenced(&key.lane, held.generation(), key.generation).into()),
                Err(failure) => Err(failure),
            },
            Ok(true) => Ok(()),
            Err(failure) => Err(failure),
        };
        used.done(beaten)
    }

    async fn release(&self, key: &LaneKey) -> Result<(), SinkError> {
        let mut used = self.database.writer().await?;
        let released = self.scope.release(used.session(), key).await;
        used.done(released)
    }

    async fn reset(&self) -> Result<(), SinkError> {
        let mut used = self.database.writer().await?;
        let reset = self.scope.reset(used.session()).await;
        used.done(reset)
    }
}

impl Mysql {
    /// What is wrong with a table, with the place of the table.
    fn named(&self, error: SinkError) -> SinkError {
        let shown = &self.database.address.shown;
        match error {
            SinkError::Fatal(why) if !why.contains(shown) => SinkError::Fatal(format!("{shown}: {why}")),
            other => other,
        }
    }
}
