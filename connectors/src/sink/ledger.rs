//! The ledger as the anchor of a job whose sinks keep no marks: marks and logs, no rows.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use async_trait::async_trait;
use tidemill_checkpoint::{
    Entry, Generation, Lane, LaneKey, Ledger, LogName, Mark, Owner, Permit, Receipt, SinkId, ledger::Error,
};

use super::{Guarantee, Marks, Sink, SinkError, StageContext, Staged, blocking, unmarked};

/// The sink [`SinkId::ledger`] over a [`Ledger`], for one job.
pub struct LedgerSink {
    id: SinkId,
    job: String,
    ledger: Arc<dyn Ledger>,
    /// A ledger is open in one process only, so nobody else can see beats: they are counted here.
    beats: AtomicU64,
}

impl LedgerSink {
    /// The anchor of `job` in `ledger`.
    pub fn open(job: &str, ledger: Arc<dyn Ledger>) -> Self {
        Self { id: SinkId::ledger(), job: job.to_owned(), ledger, beats: AtomicU64::new(0) }
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Ledger, &str) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, SinkError> {
        let (ledger, job, id) = (self.ledger.clone(), self.job.clone(), self.id.clone());
        blocking(move || work(&*ledger, &job)).await?.map_err(|error| explain(&id, error))
    }
}

fn explain(sink: &SinkId, error: Error) -> SinkError {
    let sink = sink.clone();
    match error {
        Error::Fenced { lane, held, mine } => SinkError::Fenced { sink, lane, held, mine },
        Error::Conflict { lane, found, expected } => SinkError::Conflict { sink, lane, found, expected },
        Error::Io { what, cause } => SinkError::Transient { what, cause },
        other => SinkError::Fatal(other.to_string()),
    }
}

#[async_trait]
impl Sink for LedgerSink {
    fn id(&self) -> &SinkId {
        &self.id
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    async fn peek(&self, lanes: &[Lane]) -> Result<Marks, SinkError> {
        let lanes = lanes.to_vec();
        let beat = self.beats.load(Ordering::Relaxed);
        let held = move |ledger: &dyn Ledger, job: &str| {
            let held = |lane: Lane| {
                let mut held = ledger.held(job, &lane)?;
                held.beat = held.beat.wrapping_add(beat);
                Ok((lane, held))
            };
            lanes.into_iter().map(held).collect()
        };
        self.run(held).await
    }

    async fn claim(
        &self,
        lane: &Lane,
        generation: Generation,
        owner: &Owner,
    ) -> Result<(LaneKey, Option<Mark>), SinkError> {
        let (lane, owner) = (lane.clone(), owner.clone());
        self.run(move |ledger, job| ledger.claim(job, &lane, generation, &owner)).await
    }

    async fn history(&self, lane: &Lane, log: &LogName, from: u64) -> Result<Vec<Entry>, SinkError> {
        let (lane, log) = (lane.clone(), log.clone());
        self.run(move |ledger, job| ledger.entries(job, &lane, &log, from)).await
    }

    async fn prepare(&self, _: &SchemaRef) -> Result<(), SinkError> {
        Ok(())
    }

    async fn stage(&self, _: &StageContext, rows: &[RecordBatch]) -> Result<Staged, SinkError> {
        match unmarked::count(rows) {
            0 => Ok(Staged { rows: 0, bytes: 0, data: Box::new(()) }),
            rows => Err(SinkError::Fatal(format!("the ledger holds marks, not rows, and was given {rows}"))),
        }
    }

    async fn commit(&self, group: Vec<(Permit, Staged)>) -> Vec<Result<Receipt, SinkError>> {
        let count = group.len();
        let (id, permits) = (self.id.clone(), group.into_iter().map(|(permit, _)| permit).collect::<Vec<_>>());
        let commit = move |ledger: &dyn Ledger, job: &str| {
            let commit = |permit: &Permit| ledger.commit(job, permit).map_err(|error| explain(&id, error));
            Ok(permits.iter().map(commit).collect())
        };
        self.run(commit).await.unwrap_or_else(|error| (0..count).map(|_| Err(error.clone())).collect())
    }

    async fn beat(&self, _: &LaneKey) -> Result<(), SinkError> {
        self.beats.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn release(&self, key: &LaneKey) -> Result<(), SinkError> {
        let key = key.clone();
        self.run(move |ledger, job| ledger.release(job, &key)).await
    }

    async fn reset(&self) -> Result<(), SinkError> {
        self.run(|ledger, job| ledger.forget(job, None)).await
    }
}
