//! A connection with what is known of the database: where the tables are, and what rows of each schema become.

use std::{sync::Arc, time::Duration};

use arrow::datatypes::SchemaRef;

use super::{
    Postgres,
    database::Connection,
    failure::{Doing, Failure},
    marks::Scope,
    rows::Writer,
    table::{Table, Target, same_columns},
};
use crate::sink::SinkError;

/// A statement that takes longer is given up by the server: it is below the limit that the batch loop has for a commit.
const STATEMENT_LIMIT: Duration = Duration::from_secs(240);
/// So long another transaction may hold what this one needs.
const LOCK_LIMIT: Duration = Duration::from_secs(60);
/// A session that says nothing in mid-transaction for so long is ended by the server: the process was stopped, or its
/// machine is gone, and what it holds others wait for.
const IDLE_LIMIT: Duration = Duration::from_secs(15);

/// The beginning of a transaction that is durable once it is committed, whatever the server's settings are, and that holds
/// nothing for ever. Constraints are checked with their statement, so that the row that breaks one can be found.
pub(super) fn begin() -> String {
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = on; SET LOCAL statement_timeout = {}; \
         SET LOCAL lock_timeout = {}; SET LOCAL idle_in_transaction_session_timeout = {}; SET CONSTRAINTS ALL IMMEDIATE",
        STATEMENT_LIMIT.as_millis(),
        LOCK_LIMIT.as_millis(),
        IDLE_LIMIT.as_millis()
    )
}

/// A target and the statements that write to it.
pub(super) struct Ready {
    pub(super) target: Target,
    pub(super) writer: Writer,
}

/// A connection with what is known of the database.
pub(super) struct Session {
    pub(super) connection: Connection,
    /// The schema of all tables.
    pub(super) place: String,
    /// The server's process.
    pub(super) pid: i32,
    ready: Vec<Arc<Ready>>,
    /// Temporary tables made so far.
    temporaries: u32,
}

impl Session {
    async fn open(sink: &Postgres) -> Result<Self, Failure> {
        let connection = sink.server.connect().await?;
        let place = sink.table.place(&connection).await?;
        let pid = connection.client.query_one("SELECT pg_backend_pid()", &[]).await.doing("setting up a session in")?;
        Ok(Self { connection, place, pid: pid.get(0), ready: Vec::new(), temporaries: 0 })
    }

    /// What rows of a schema become. Looked at once, outside of any batch. `create`: the table is made where it is absent,
    /// unless it was there before by the marks: the rows that it had would be missing without a word.
    pub(super) async fn ready(
        &mut self,
        table: &Table,
        schema: &SchemaRef,
        create: bool,
        marks: Option<&Scope>,
    ) -> Result<Arc<Ready>, Failure> {
        if let Some(ready) = self.ready.iter().find(|ready| same_columns(&ready.target.schema, schema)) {
            return Ok(ready.clone());
        }
        if create {
            table.add(&self.connection, &self.place, schema).await?;
        }
        let mut target = table.look(&self.connection, &self.place, schema, false).await?;
        if create {
            let was_there = match marks {
                Some(scope) if target.is_none() => scope.remembers(&self.connection, &self.place, &table.name).await?,
                _ => false,
            };
            if target.is_none() && !was_there {
                table.create(&mut self.connection, &self.place, schema).await?;
                target = table.look(&self.connection, &self.place, schema, false).await?;
            }
            if let (Some(scope), Some(_)) = (marks, &target) {
                scope.remember(&self.connection, &self.place, &table.name).await?;
            }
        }
        let target = target.ok_or_else(|| table.gone(&self.place, schema))?;
        self.temporaries += 1;
        let writer = Writer::new(&target, &format!("tidemill_rows_{}", self.temporaries));
        if let Some(setup) = &writer.setup {
            self.connection.client.batch_execute(setup).await.doing("making the temporary table of an upsert in")?;
        }
        let ready = Arc::new(Ready { target, writer });
        self.ready.push(ready.clone());
        Ok(ready)
    }
}

impl Postgres {
    /// The session in a slot, taken out of it: one whose work is cut off in its middle is dropped with it, and closed. A
    /// new one where there is none, or the server has ended it.
    pub(super) async fn take(&self, slot: &mut Option<Session>) -> Result<Session, SinkError> {
        match slot.take().filter(|session| !session.connection.is_closed()) {
            Some(session) => Ok(session),
            None => Session::open(self).await.map_err(|failure| failure.explain(&self.server)),
        }
    }

    /// Puts a session back where it can be used further, and says what an error means.
    pub(super) async fn settle<T>(
        &self,
        slot: &mut Option<Session>,
        session: Session,
        result: Result<T, Failure>,
    ) -> Result<T, SinkError> {
        let failure = match result {
            Ok(value) => {
                *slot = Some(session);
                return Ok(value);
            }
            Err(failure) => failure,
        };
        // What was looked at is looked at again in a new session.
        let fit = failure.keeps_session() && !failure.is_change();
        if fit && session.connection.client.batch_execute("ROLLBACK").await.is_ok() {
            *slot = Some(session);
            return Err(failure.explain(&self.server));
        }
        Err(failure.explain_with(&self.server, session.connection.last_words()))
    }
}
