//! Steps: what happens to the rows of a batch between sources and sinks. Verbs, one file each; DataFusion is named here only.
//!
//! A [`Pipeline`] is planned once per job and schema: every step's output schema is known before the first record, and a
//! wrong column name is a configuration error. Applying it is a pure function of the rows and of [`BatchContext`]: the
//! same rows, cut into chunks in any way, give the same rows and the same rejects in the same order.
//!
//! Invariants:
//! - Every column between steps has one of the job's types ([`columns::job_type`]) and may be null.
//! - Row-wise steps keep the order of rows and know for each row which raw record it came from. They run over slices of
//!   at most [`SLICE_ROWS`] rows, several slices in parallel.
//! - A query that needs all rows (`GROUP BY`, joins, sorting) gathers them; what it gives comes from no single record.
//!
//! - What rows take of memory is on the batch's [`account`]: one that outgrows it is an error of the whole batch.
//! - Steps do no I/O: tables of lookups come with the batch ([`lookup`]).
//!
//! Start with [`pipeline`] (planning: names, schemas, columns needed), then `run` (applying), then any file of `verbs`.

use arrow::{array::RecordBatch, datatypes::SchemaRef};

use account::Outgrown;

pub mod account;
mod bounded;
pub mod columns;
mod expression;
mod functions;
mod input;
pub mod lookup;
pub mod pipeline;
mod query;
mod run;
mod verbs;

pub use bounded::MAX_VALUE_BYTES;
pub use pipeline::{Pipeline, PlanError};
pub use run::{Applied, StepStats};

/// Row-wise steps run over slices of at most this many rows: small enough that a slice stays in the cache from step to
/// step (measured: a text function over 65,536 rows costs five times as much a row as over a hundred).
pub const SLICE_ROWS: usize = 4096;

/// And over slices of at most so many bytes, but for single rows that have more: what a step makes of a slice is measured
/// when it is there.
pub(crate) const SLICE_BYTES: u64 = 1 << 20;

/// Rows, each with the number of the raw record that it came from.
#[derive(Clone, Debug)]
pub struct Rows {
    /// The rows.
    pub batch: RecordBatch,
    /// For each row the number of its raw record in the batch; [`Rows::NONE`] where it comes from no single record (an
    /// aggregate).
    pub origin: Vec<u32>,
}

impl Rows {
    /// The origin of a row that comes from no single record.
    pub const NONE: u32 = u32::MAX;
}

/// The only clock and the only chance that a batch has.
#[derive(Clone, Copy, Debug)]
pub struct BatchContext {
    /// Milliseconds since the epoch: `now()` and `current_*` read it.
    pub planned_at: i64,
    /// The seed of `random()` and `uuid()`: from the plan's input digest.
    pub seed: u64,
}

/// A row that a step could not process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// The number of its raw record in the batch; [`Rows::NONE`] where it comes from no single record.
    pub origin: u32,
    /// The step's name (the sink's, where its `where` failed).
    pub step: String,
    /// A short, stable word for metrics: `cast`, `parse_timestamp`, `expression`.
    pub reason: &'static str,
    /// The sentence: column, value, what was expected.
    pub detail: String,
}

/// Why a batch cannot be processed. The same rows fail again: no retry helps, the job or the rows must change; but where the
/// table of a lookup could not be asked.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum StepError {
    /// A row failed in a step that says `on_error: fail`.
    #[error("step {}: {}: {}. It says `on_error: fail`; with `reject` the row would go to the dead letters", .0.step, .0.reason, .0.detail)]
    Row(Reject),
    /// A query failed and no single row is to blame.
    #[error(
        "step {step}: the query failed and no single row is to blame: {cause}. Change the query, or keep such rows out by a step before it"
    )]
    Query {
        /// The step.
        step: String,
        /// What the query engine says.
        cause: String,
    },
    /// The rows that came in are not those that the pipeline was planned for.
    #[error("source {source_name}: {what}. The pipeline must be planned again for this schema")]
    Input {
        /// The source.
        source_name: String,
        /// What is different.
        what: String,
    },
    /// The table of a lookup cannot be used.
    #[error("step {step}: {cause}")]
    Table {
        /// The step.
        step: String,
        /// What is wrong with it.
        cause: String,
        /// Whether it may pass: another try can help.
        transient: bool,
    },
    /// The rows take more memory than the batch may have: with fewer records it may work.
    #[error("step {step}: {outgrown}")]
    Outgrown {
        /// The step.
        step: String,
        /// How much, as far as it came.
        outgrown: Outgrown,
    },
    /// A kernel failed where none can: a defect of Tidemill.
    #[error("step {step}: {cause}. This is a defect of Tidemill, please report it")]
    Defect {
        /// The step.
        step: String,
        /// What the kernel says.
        cause: String,
    },
}

/// The schema that a source or step gives, by its name.
pub type Schemas = std::collections::BTreeMap<String, SchemaRef>;
