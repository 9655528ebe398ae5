//! Nowhere: for benches. Rows are counted and dropped; no marks.

use std::sync::atomic::{AtomicU64, Ordering};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use async_trait::async_trait;
use tidemill_checkpoint::{Entry, Generation, Lane, LaneKey, LogName, Mark, Owner, Permit, Receipt, SinkId};

use super::{Guarantee, Marks, Sink, SinkError, StageContext, Staged, unmarked};

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
impl Sink for Blackhole {
    fn id(&self) -> &SinkId {
        &self.id
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    async fn peek(&self, lanes: &[Lane]) -> Result<Marks, SinkError> {
        Ok(unmarked::peek(lanes))
    }

    async fn claim(
        &self,
        lane: &Lane,
        generation: Generation,
        owner: &Owner,
    ) -> Result<(LaneKey, Option<Mark>), SinkError> {
        Ok(unmarked::claim(&self.id, lane, generation, owner))
    }

    async fn history(&self, _: &Lane, _: &LogName, _: u64) -> Result<Vec<Entry>, SinkError> {
        Ok(Vec::new())
    }

    async fn prepare(&self, _: &SchemaRef) -> Result<(), SinkError> {
        Ok(())
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

    async fn beat(&self, _: &LaneKey) -> Result<(), SinkError> {
        Ok(())
    }

    async fn release(&self, _: &LaneKey) -> Result<(), SinkError> {
        Ok(())
    }

    async fn reset(&self) -> Result<(), SinkError> {
        Ok(())
    }
}
