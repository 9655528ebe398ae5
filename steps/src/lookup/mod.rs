//! The step `lookup`: columns of a table join the rows, one row of the table for each.
//!
//! Steps do no I/O. A table comes with the batch, by the step's name ([`Tables`]): whole, as a [`Snapshot`] that is read
//! beforehand and the same in a replay, or as somebody who is asked once a batch for the keys that it has ([`Ask`]).
//! What it is like ([`crate::Pipeline::plan_with`]) is known before the first record.
//!
//! Invariants:
//! - One row in, one row out, in the same order (`on_missing: drop` leaves rows out). A key with a null in it is equal to
//!   nothing.
//! - Keys are compared in the type that they have in the rows: the table's are cast, once (`comparable` in `verb` says which
//!   can be). One that cannot be cast is equal to nothing.
//! - Nothing is allocated for a single row: keys are compared as arrow's rows (`index`), values are gathered by arrow's
//!   `take`.

mod index;
mod verb;

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
};

use arrow::{
    array::{Array, RecordBatch},
    datatypes::DataType,
};
use tidemill_config::{Duplicates, Lookup as Model};

use crate::columns;

pub(crate) use index::Index;
pub(crate) use verb::{Bound, Joined, Lookup, plan};

/// The tables of a batch's lookups, by the name of the step.
pub type Tables = BTreeMap<String, Table>;

/// A table as a batch sees it.
#[derive(Clone, Debug)]
pub enum Table {
    /// All of it.
    Whole(Arc<Snapshot>),
    /// Rows of it, for the asking.
    Asked(Arc<dyn Ask>),
}

/// Who has the rows of a table by their keys.
pub trait Ask: Send + Sync + Debug {
    /// The rows that have these keys, in any order. `keys` has the table's key columns in the table's types, distinct and
    /// without nulls. What it gives has the columns that the step was planned with. Called once a batch at most, off the
    /// runtime: it may wait.
    fn ask(&self, keys: &RecordBatch) -> Result<RecordBatch, AskError>;
}

/// Why there are no rows.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{cause}")]
pub struct AskError {
    /// The sentence.
    pub cause: String,
    /// Whether it may pass.
    pub transient: bool,
}

/// All rows of a table, and where each key is. It never changes: a newer table is another snapshot.
#[derive(Debug)]
pub struct Snapshot {
    rows: RecordBatch,
    keys: Vec<usize>,
    duplicates: Duplicates,
    /// By the types that keys have in the rows.
    indexes: Mutex<Vec<(Vec<DataType>, Arc<Index>)>>,
}

impl Snapshot {
    /// Takes a table with the columns of [`Model::columns`]. An error where it lacks one, or where a key is in it twice and
    /// the lookup wants none of that.
    pub fn new(rows: RecordBatch, lookup: &Model) -> Result<Self, String> {
        let names = columns::names(rows.schema_ref());
        if let Some(missing) = lookup.columns().iter().find(|column| !names.contains(&column.value.as_str())) {
            return Err(format!("it has no column `{}`{}", missing.value, columns::hint(&missing.value, names)));
        }
        let keys: Vec<usize> =
            lookup.keys.iter().filter_map(|(_, key)| rows.schema_ref().index_of(&key.value).ok()).collect();
        let snapshot = Self { keys, duplicates: lookup.duplicates, indexes: Mutex::default(), rows };
        // In its own types first, which mostly are those of the rows too: a wrong table is found when it is read.
        let kinds: Vec<DataType> =
            snapshot.keys.iter().map(|key| snapshot.rows.column(*key).data_type().clone()).collect();
        snapshot.index(&kinds)?;
        Ok(snapshot)
    }

    /// The rows.
    pub fn rows(&self) -> &RecordBatch {
        &self.rows
    }

    /// Bytes in memory, without the index.
    pub fn bytes(&self) -> usize {
        self.rows.columns().iter().map(|column| column.get_buffer_memory_size()).sum()
    }

    /// Indexes all that `before` has an index of: what would fail with the next batch fails now.
    pub fn index_as(&self, before: &Self) -> Result<(), String> {
        let kinds: Vec<_> = before
            .indexes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(kinds, _)| kinds.clone())
            .collect();
        kinds.iter().try_for_each(|kinds| self.index(kinds).map(drop))
    }

    /// Where each key is, for keys of these types.
    fn index(&self, kinds: &[DataType]) -> Result<Arc<Index>, String> {
        let mut indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = indexes.iter().find(|(known, _)| known == kinds) {
            return Ok(known.clone());
        }
        let index = Arc::new(Index::new(&self.rows, &self.keys, kinds, self.duplicates)?);
        indexes.push((kinds.to_vec(), index.clone()));
        Ok(index)
    }
}
