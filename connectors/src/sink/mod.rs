//! Sinks: where rows go. One file or folder each.
//!
//! A *marked* sink stores rows and mark in one atomic step and can be the anchor. An *unmarked* one (console, or any with
//! `guarantee: at_least_once`) commits first and remembers nothing.

pub mod blackhole;
mod cell;
mod columns;
pub mod console;
mod dense;
mod durable;
pub mod files;
pub mod kafka;
pub mod ledger;
pub mod mysql;
pub mod postgres;
pub mod sqlite;
mod unmarked;

use std::{any::Any, collections::BTreeMap, sync::Arc};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use async_trait::async_trait;
use tidemill_checkpoint::{
    Digest, Entry, Generation, Held, Lane, LaneKey, LogName, Mark, Owner, Permit, Plan, Receipt, ShardId, SinkId,
};
pub use tidemill_config::Guarantee;

/// What staging a batch may look at.
#[derive(Clone, Debug)]
pub struct StageContext {
    /// The right to write the lane.
    pub key: LaneKey,
    /// The plan without its sinks' part: it may not be final yet.
    pub input: Digest,
    /// The plan's number, clock and spans.
    pub plan: Plan,
    /// The sink gets no rows but is touched: a mark alone.
    pub mark_only: bool,
}

/// Rows made ready, not yet visible to anybody. Dropping it withdraws them.
pub struct Staged {
    /// Rows in it.
    pub rows: u64,
    /// Bytes in it, as they will be written (0 where unknown).
    pub bytes: u64,
    /// What the sink made of them.
    pub data: Box<dyn Any + Send>,
}

impl std::fmt::Debug for Staged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Staged").field("rows", &self.rows).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Staged {
    /// What the sink made of the rows.
    pub(crate) fn unpack<T: 'static>(self) -> Result<T, SinkError> {
        let unpacked = self.data.downcast().map(|data| *data);
        unpacked.map_err(|_| SinkError::Fatal("rows were staged by another sink".into()))
    }
}

/// Commits a group that shares one transaction: what fails as a whole fails for each of its lanes.
pub(crate) async fn commit_as_one<T: 'static, F>(
    group: Vec<(Permit, Staged)>,
    commit: impl FnOnce(Vec<(Permit, T)>) -> F,
) -> Vec<Result<Receipt, SinkError>>
where
    F: Future<Output = Result<Vec<Result<Receipt, SinkError>>, SinkError>>,
{
    let count = group.len();
    let unpacked = group.into_iter().map(|(permit, staged)| Ok((permit, staged.unpack()?)));
    let result = match unpacked.collect::<Result<Vec<_>, SinkError>>() {
        Ok(group) => commit(group).await,
        Err(error) => Err(error),
    };
    result.unwrap_or_else(|error| (0..count).map(|_| Err(error.clone())).collect())
}

/// Who has a lane that was lost.
fn lost_to(held: Generation, mine: Generation) -> String {
    match held {
        Generation(0) => format!("not of generation {mine} any more: it has a new owner, or its mark was deleted"),
        held => format!("owned by a newer generation ({held}; mine is {mine})"),
    }
}

/// What can go wrong in a sink.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SinkError {
    /// It may pass: try again with backoff.
    #[error("{what}: {cause}")]
    Transient {
        /// What was being done, to what.
        what: String,
        /// The cause.
        cause: String,
    },
    /// Another generation owns the lane.
    #[error("lane {lane} of sink {sink} is {}", lost_to(*held, *mine))]
    Fenced {
        /// The sink.
        sink: SinkId,
        /// The lane.
        lane: Lane,
        /// The generation that owns it now, 0 where unknown.
        held: Generation,
        /// The one that tried.
        mine: Generation,
    },
    /// My generation, but a mark that is neither expected nor the plan's.
    #[error("lane {lane} of sink {sink}: its mark is {found:?}, expected {expected:?}")]
    Conflict {
        /// The sink.
        sink: SinkId,
        /// The lane.
        lane: Lane,
        /// The stored digest.
        found: Option<Digest>,
        /// The expected digest.
        expected: Option<Digest>,
    },
    /// The target cannot take these rows as it is (a missing column, a wrong type, no permission); no retry helps.
    #[error("{0}")]
    Fatal(String),
}

impl SinkError {
    /// Whether a retry can help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Transient { .. })
    }
    /// An I/O error that may pass (a full disk is freed, a mount comes back).
    pub fn io(what: impl Into<String>, cause: &std::io::Error) -> Self {
        Self::Transient { what: what.into(), cause: cause.to_string() }
    }
}

/// A row that the sink's target refused, kept by the sink in the commit of its batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkReject {
    /// Its number in the lane's rejects, from 0: what a position in the shard `rejects:<sink>` counts.
    pub number: u64,
    /// The plan's number.
    pub seq: u64,
    /// The plan's input digest.
    pub input: Digest,
    /// The row's index among the rows that the sink was given for the plan.
    pub row: u64,
    /// A short, stable word for metrics: `constraint`, `null_key`.
    pub reason: String,
    /// The target's own sentence.
    pub detail: String,
    /// The row as a JSON object.
    pub record: String,
}

/// What the names of shards begin with that are a sink's rejects; no source can have such a name.
pub const REJECTS: &str = "rejects:";

/// The shard of a sink's rejects: its position in a mark says up to which number they are in the dead letters.
pub fn rejects_shard(sink: &SinkId) -> ShardId {
    ShardId::new(&format!("{REJECTS}{}", sink.name()), "")
}

/// The marks of several lanes.
pub type Marks = BTreeMap<Lane, Held>;

/// Where rows go. `stage` is cancel-safe; `claim` and `commit` run in tasks of their own and are never dropped.
#[async_trait]
pub trait Sink: Send + Sync {
    /// The sink's identity in its job.
    fn id(&self) -> &SinkId;

    /// Whether it keeps marks.
    fn guarantee(&self) -> Guarantee;

    /// Claims and marks of these lanes. Changes nothing, creates nothing.
    async fn peek(&self, lanes: &[Lane]) -> Result<Marks, SinkError>;

    /// Takes the lane where the stored generation is lower than `generation`, else [`SinkError::Fenced`]. Returns the key
    /// and the mark as it is once every older generation is shut out.
    async fn claim(
        &self,
        lane: &Lane,
        generation: Generation,
        owner: &Owner,
    ) -> Result<(LaneKey, Option<Mark>), SinkError>;

    /// Entries of a log, from number `from` on. Asked of the anchor only.
    async fn history(&self, lane: &Lane, log: &LogName, from: u64) -> Result<Vec<Entry>, SinkError>;

    /// Connects and looks whether the sink could work as it is configured (`validate --connect`), with rows of this schema
    /// where it is known. Changes, creates and claims nothing: an error names what is missing (a table, a right, a password
    /// that is wrong) and the way out.
    async fn check(&self, schema: Option<&SchemaRef>) -> Result<(), SinkError> {
        let _ = schema;
        Ok(())
    }

    /// Creates the target or checks it against the schema. Outside any batch.
    async fn prepare(&self, schema: &SchemaRef) -> Result<(), SinkError>;

    /// Makes rows ready to be committed.
    async fn stage(&self, context: &StageContext, rows: &[RecordBatch]) -> Result<Staged, SinkError>;

    /// Commits each permit's rows, entries and mark in one atomic step, by compare-and-swap (see [`Permit`]). One result
    /// per permit, in order; lanes are independent.
    async fn commit(&self, group: Vec<(Permit, Staged)>) -> Vec<Result<Receipt, SinkError>>;

    /// Rows that the target refused, from number `from` on, in order. Sinks that refuse no single row have none.
    async fn rejects(&self, lane: &Lane, from: u64) -> Result<Vec<SinkReject>, SinkError> {
        let _ = (lane, from);
        Ok(Vec::new())
    }

    /// Says that the owner lives: changes [`Held::beat`]. Unsynced, never a part of a mark.
    async fn beat(&self, key: &LaneKey) -> Result<(), SinkError>;

    /// Lets go of a lane by a clean stop. Not an error where the key is fenced already.
    async fn release(&self, key: &LaneKey) -> Result<(), SinkError>;

    /// Forgets marks, claims and logs of the job in this sink (`checkpoint reset --sinks`); rows stay.
    async fn reset(&self) -> Result<(), SinkError>;
}

/// The sink of a job's configuration, under `id` (its name, or [`SinkId::local`] for one that lives in a data dir). Opens
/// no file and connects nowhere: the first call that needs the target does.
pub fn open(id: SinkId, job: &str, kind: &tidemill_config::SinkKind) -> Result<Arc<dyn Sink>, SinkError> {
    use tidemill_config::SinkKind;
    Ok(match kind {
        SinkKind::Console { first } => Arc::new(unmarked::Unmarked(console::Console::open(id, *first))),
        SinkKind::Files(files) => Arc::new(files::Files::open(id, job, files)?),
        SinkKind::Sqlite { path, table, mode, on_new_column } => {
            Arc::new(sqlite::Sqlite::open(id, job, path, table, mode, *on_new_column)?)
        }
        SinkKind::Mysql(database) => unmarked::of(mysql::Mysql::open(id, job, database)?, database.guarantee),
        SinkKind::Postgres(database) => unmarked::of(postgres::Postgres::open(id, job, database)?, database.guarantee),
        SinkKind::Kafka(kafka) => unmarked::of(kafka::Kafka::open(id, job, kafka)?, kafka.guarantee),
        SinkKind::Blackhole => Arc::new(unmarked::Unmarked(blackhole::Blackhole::open(id))),
    })
}

/// Whether a sink can write rows of this schema, as far as that shows without its target: what `validate` says without
/// `--connect`.
pub fn fits(id: &SinkId, kind: &tidemill_config::SinkKind, schema: &SchemaRef) -> Result<(), SinkError> {
    match kind {
        tidemill_config::SinkKind::Kafka(kafka) => kafka::fits(id, kafka, schema),
        _ => Ok(()),
    }
}

/// Runs blocking work off the runtime. A task that panicked is reported, not passed on: other lanes go on.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, SinkError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| SinkError::Fatal(format!("a task of the sink ended: {error}")))
}
