//! A PostgreSQL table. Rows and mark are one transaction, durable once COMMIT is answered (`synchronous_commit = on`). Without
//! marks the rows are: then only what writes them is used.
//!
//! [`marks`] has Tidemill's own tables, which lie in the schema of the user's table; [`table`] looks at that one and makes
//! it; [`encode`] and [`numeric`] write Arrow arrays as binary COPY, [`rows`] sends them and finds the rows that the server
//! refuses; [`commit`] is the transaction of a group of lanes, [`session`] a connection with what is known of the database,
//! [`database`] how one is made, [`failure`] what errors mean, [`check`] what `validate --connect` looks at.
//!
//! Two connections: one writes, the other reads and beats, so that a long commit keeps no beat back. The mark is swapped
//! before the rows: its row's lock keeps every other owner out until the transaction ends. A claim waits for that lock, so
//! that it sees the last mark; one that waits for a transaction whose client says nothing has the server end it
//! ([`Postgres::end_stragglers`]), also in mid-COPY, where PostgreSQL's own timeouts do not reach. In between,
//! `idle_in_transaction_session_timeout` does.
//!
//! Failpoints: `postgres.before-begin`, `postgres.after-mark`, `postgres.in-copy`, `postgres.after-rows`,
//! `postgres.before-commit`, `postgres.after-commit`, `postgres.claim-before-commit`, `postgres.claim-after-commit`.

mod check;
mod commit;
pub(crate) mod database;
mod encode;
pub(crate) mod failure;
mod marks;
mod numeric;
mod one_by_one;
mod rows;
mod session;
mod spelled;
mod table;

use std::{pin::pin, time::Duration};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use async_trait::async_trait;
use tidemill_checkpoint::{
    Entry, Generation, Lane, LaneKey, LogName, Mark, Owner, Permit, Receipt, SinkId, failpoint::pass,
};
use tidemill_config::{DatabaseSink, Guarantee, Mode};
use tokio::{sync::Mutex, time::timeout};

use self::{
    database::Server,
    failure::{Doing, Failure},
    marks::Scope,
    session::{Session, begin},
    table::Table,
};
use super::{Marks, Sink, SinkError, SinkReject, StageContext, Staged, commit_as_one};

/// How long a claim waits for the transaction of an older owner before it has a silent one ended.
const PATIENCE: Duration = Duration::from_secs(5);

/// The sink `type: postgres`.
pub struct Postgres {
    server: Server,
    scope: Scope,
    table: Table,
    guarantee: Guarantee,
    writer: Mutex<Option<Session>>,
    reader: Mutex<Option<Session>>,
}

impl Postgres {
    /// The sink `id` of `job`. Connects nowhere.
    pub fn open(id: SinkId, job: &str, config: &DatabaseSink) -> Result<Self, SinkError> {
        let (key, delete_when) = match &config.mode {
            Mode::Append => (Vec::new(), None),
            Mode::Upsert { key, delete_when } => {
                (key.iter().map(|column| column.value.clone()).collect(), delete_when.as_ref().map(|c| c.value.clone()))
            }
        };
        Ok(Self {
            server: Server::new(&config.url, config.ca.as_deref(), &format!("tidemill {job}/{}", id.name()))?,
            scope: Scope { job: job.to_owned(), sink: id },
            table: Table::new(&config.table, key, delete_when, config.on_new_column),
            guarantee: config.guarantee,
            writer: Mutex::default(),
            reader: Mutex::default(),
        })
    }

    /// What keeps marks, and remembers the table with them.
    fn marks(&self) -> Option<&Scope> {
        (self.guarantee == Guarantee::ExactlyOnce).then_some(&self.scope)
    }

    async fn try_claim(
        &self,
        session: &mut Session,
        lane: &Lane,
        generation: Generation,
        owner: &Owner,
    ) -> Result<Option<Mark>, Failure> {
        let (doing, pid) = ("claiming a lane in", session.pid);
        let Session { connection, place, .. } = session;
        Scope::create(connection, place).await?;
        connection.client.batch_execute(&begin()).await.doing(doing)?;
        let mark = {
            let mut claim = pin!(self.scope.claim(connection, place, lane, generation, owner));
            match timeout(PATIENCE, &mut claim).await {
                Ok(mark) => mark?,
                Err(_) => {
                    self.end_stragglers(pid).await;
                    claim.await?
                }
            }
        };
        pass("postgres.claim-before-commit").doing(doing)?;
        connection.client.batch_execute("COMMIT").await.doing(doing)?;
        pass("postgres.claim-after-commit").doing(doing)?;
        Ok(mark)
    }

    /// Ends sessions of this sink of this job that hold what the session `pid` waits for, and wait for their client: it was
    /// stopped, or is cut off. Nobody else's session is touched.
    async fn end_stragglers(&self, pid: i32) {
        let sql = "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE pid = ANY(pg_blocking_pids($1)) AND wait_event = 'ClientRead'
                AND application_name = current_setting('application_name')";
        let mut slot = self.reader.lock().await;
        let ended = async {
            let session = self.take(&mut slot).await?;
            let rows = session.connection.client.query(sql, &[&pid]).await.doing("ending a silent session of");
            self.settle(&mut slot, session, rows).await
        };
        match ended.await {
            Ok(rows) => rows.iter().for_each(|row| {
                let (pid, ended): (i32, bool) = (row.get(0), row.get(1));
                tracing::warn!(sink = %self.scope.sink, pid, ended, "a session of an older owner holds the lane and says nothing: the server was told to end it");
            }),
            Err(error) => tracing::warn!(sink = %self.scope.sink, %error, "a claim waits for another session"),
        }
    }
}

/// Runs a piece of work with the session of a slot: `session` in it is one, the value is a `Result<_, Failure>`.
macro_rules! with {
    ($self:ident.$slot:ident, $session:ident, $work:expr) => {{
        let mut slot = $self.$slot.lock().await;
        let mut $session = $self.take(&mut slot).await?;
        let result = $work.await;
        $self.settle(&mut slot, $session, result).await
    }};
}

#[async_trait]
impl Sink for Postgres {
    fn id(&self) -> &SinkId {
        &self.scope.sink
    }

    fn guarantee(&self) -> Guarantee {
        self.guarantee
    }

    async fn peek(&self, lanes: &[Lane]) -> Result<Marks, SinkError> {
        with!(self.reader, session, self.scope.held(&mut session.connection, &session.place, lanes))
    }

    async fn claim(
        &self,
        lane: &Lane,
        generation: Generation,
        owner: &Owner,
    ) -> Result<(LaneKey, Option<Mark>), SinkError> {
        let mark = with!(self.writer, session, self.try_claim(&mut session, lane, generation, owner))?;
        let key = LaneKey { sink: self.id().clone(), lane: lane.clone(), generation, owner: owner.clone() };
        Ok((key, mark))
    }

    async fn history(&self, lane: &Lane, log: &LogName, from: u64) -> Result<Vec<Entry>, SinkError> {
        with!(self.reader, session, self.scope.history(&mut session.connection, &session.place, lane, log, from))
    }

    async fn rejects(&self, lane: &Lane, from: u64) -> Result<Vec<SinkReject>, SinkError> {
        with!(self.reader, session, self.scope.rejects(&mut session.connection, &session.place, lane, from))
    }

    async fn check(&self, schema: Option<&SchemaRef>) -> Result<(), SinkError> {
        with!(self.reader, session, self.look_around(&mut session, schema))
    }

    async fn prepare(&self, schema: &SchemaRef) -> Result<(), SinkError> {
        with!(self.writer, session, session.ready(&self.table, schema, true, self.marks())).map(drop)
    }

    async fn stage(&self, context: &StageContext, rows: &[RecordBatch]) -> Result<Staged, SinkError> {
        let rows: Vec<RecordBatch> = if context.mark_only { Vec::new() } else { rows.to_vec() };
        let count = rows.iter().map(|batch| batch.num_rows() as u64).sum();
        Ok(Staged { rows: count, bytes: 0, data: Box::new(rows) })
    }

    async fn commit(&self, group: Vec<(Permit, Staged)>) -> Vec<Result<Receipt, SinkError>> {
        commit_as_one(group, |group| async move { self.commit_lanes(&group).await }).await
    }

    async fn beat(&self, key: &LaneKey) -> Result<(), SinkError> {
        let beaten = with!(self.reader, session, async {
            let (doing, Session { connection, place, .. }) = ("writing a beat to", &mut session);
            // A beat is no part of any mark: it may be lost with the server.
            let begin = "BEGIN; SET LOCAL synchronous_commit = off";
            connection.client.batch_execute(begin).await.doing(doing)?;
            let beaten = self.scope.beat(connection, place, key).await?;
            connection.client.batch_execute("COMMIT").await.doing(doing)?;
            if beaten {
                return Ok(None);
            }
            let held = self.scope.held(connection, place, std::slice::from_ref(&key.lane)).await?;
            Ok(Some(held.get(&key.lane).map(tidemill_checkpoint::Held::generation).unwrap_or_default()))
        })?;
        beaten.map_or(Ok(()), |held| Err(self.scope.fenced(&key.lane, held, key.generation)))
    }

    async fn release(&self, key: &LaneKey) -> Result<(), SinkError> {
        with!(self.writer, session, self.scope.release(&mut session.connection, &session.place, key))
    }

    async fn reset(&self) -> Result<(), SinkError> {
        with!(self.writer, session, async {
            let doing = "forgetting the marks in";
            session.connection.client.batch_execute(&begin()).await.doing(doing)?;
            self.scope.reset(&mut session.connection, &session.place).await?;
            session.connection.client.batch_execute("COMMIT").await.doing(doing)
        })
    }
}
