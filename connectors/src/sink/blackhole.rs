//! Nowhere: for benches. Rows are counted and dropped; no marks.

use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::RecordBatch;
use async_trait::async_trait;
use tidemill_checkpoint::{Permit, Receipt, SinkId};

use super::{
    SinkError, StageContext, Staged,
    unmarked::{self, Writes},
};

/// The sink `type: blackhole`.
#[derive(Debug)]
pub struct Blackhole {
    id: SinkId,
    rows: AtomicU64,
    batches: AtomicU64,
}

impl Blackhole {
    /// The sink `id`.
    pub fn open(id: SinkId) -> Self {
        Self { id, rows: AtomicU64::new(0), batches: AtomicU64::new(0) }
    }
    /// Rows of all commits since the start of the process.
    pub fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }
    /// Commits since the start of the process.
    pub fn batches(&self) -> u64 {
        self.batches.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Writes for Blackhole {
    fn id(&self) -> &SinkId {
        &self.id
    }

    async fn stage(&self, _: &StageContext, rows: &[RecordBatch]) -> Result<Staged, SinkError> {
        Ok(Staged { rows: unmarked::count(rows), bytes: 0, data: Box::new(()) })
    }

    async fn commit(&self, group: Vec<(Permit, Staged)>) -> Vec<Result<Receipt, SinkError>> {
        let count = |(permit, staged): &(Permit, Staged)| {
            self.rows.fetch_add(staged.rows, Ordering::Relaxed);
            self.batches.fetch_add(1, Ordering::Relaxed);
            Ok(Receipt::written(permit))
        };
        group.iter().map(count).collect()
    }
}
