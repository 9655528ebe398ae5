//! Steps: what happens to the rows of a batch between sources and sinks. Verbs, one file each; DataFusion is named here only.
//!
//! A [`Pipeline`] is planned once per job and schema: every step's output schema is known before the first record, and a
//! wrong column name is a configuration error. Applying it is a pure function of the rows and of [`BatchContext`].

use arrow::{array::RecordBatch, datatypes::SchemaRef};

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
    /// The number of its raw record in the batch.
    pub origin: u32,
    /// The step's name.
    pub step: String,
    /// A short, stable word for metrics: `cast`, `parse_timestamp`, `expression`.
    pub reason: &'static str,
    /// The sentence: column, value, what was expected.
    pub detail: String,
}

/// The schema that a source or step gives, by its name.
pub type Schemas = std::collections::BTreeMap<String, SchemaRef>;
