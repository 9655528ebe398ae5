//! What sinks without marks answer: nothing is held, every claim succeeds.
//!
//! [`Unmarked`] makes one of what only [`Writes`] (the console), and of a sink that can do without marks (`guarantee:
//! at_least_once`): it is asked to write, and for nothing else. What such a sink is told of its guarantee when it is opened
//! says that its rows come without a mark.

use std::sync::Arc;

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use async_trait::async_trait;
use tidemill_checkpoint::{Entry, Generation, Held, Lane, LaneKey, LogName, Mark, Owner, Permit, Receipt, SinkId};

use super::{Guarantee, Marks, Sink, SinkError, SinkReject, StageContext, Staged};

/// Characters of a refused row in a message.
const SHOWN: usize = 200;

pub(super) fn count(rows: &[RecordBatch]) -> u64 {
    rows.iter().map(|batch| batch.num_rows() as u64).sum()
}

/// The receipt of a batch without a mark. A sink that keeps none has no place for rows that its target refuses either: they
/// must not vanish, so that the batch fails.
pub(super) fn receipt(permit: &Permit, rejects: &[SinkReject]) -> Result<Receipt, SinkError> {
    refused(rejects, "nothing of the batch was written").map_or_else(|| Ok(Receipt::written(permit)), Err)
}

/// The error of rows that the target refuses; `written`: what became of the others.
pub(super) fn refused(rejects: &[SinkReject], written: &str) -> Option<SinkError> {
    let SinkReject { seq, row, detail, record, .. } = rejects.first()?;
    let (rows, first) = match rejects.len() {
        1 => ("a row".to_owned(), "it is"),
        more => (format!("{more} rows"), "the first is"),
    };
    let mut shown: String = record.chars().take(SHOWN).collect();
    if shown.len() < record.len() {
        shown.push('…');
    }
    Some(SinkError::Fatal(format!(
        "batch {seq} has {rows} that the target refuses: {detail}: {first} row {row}, {shown}: {written}: change the \
         target, leave such rows out by the step `filter`, or write `guarantee: exactly_once`, with which they go to the \
         dead letters"
    )))
}

/// Where rows go, for somebody who asks for nothing else.
#[async_trait]
pub(super) trait Writes: Send + Sync {
    /// See [`Sink::id`].
    fn id(&self) -> &SinkId;

    /// See [`Sink::check`].
    async fn check(&self, _schema: Option<&SchemaRef>) -> Result<(), SinkError> {
        Ok(())
    }

    /// See [`Sink::prepare`].
    async fn prepare(&self, _schema: &SchemaRef) -> Result<(), SinkError> {
        Ok(())
    }

    /// See [`Sink::stage`].
    async fn stage(&self, context: &StageContext, rows: &[RecordBatch]) -> Result<Staged, SinkError>;

    /// See [`Sink::commit`]: rows alone.
    async fn commit(&self, group: Vec<(Permit, Staged)>) -> Vec<Result<Receipt, SinkError>>;
}

#[async_trait]
impl<S: Sink> Writes for S {
    fn id(&self) -> &SinkId {
        Sink::id(self)
    }

    async fn check(&self, schema: Option<&SchemaRef>) -> Result<(), SinkError> {
        Sink::check(self, schema).await
    }

    async fn prepare(&self, schema: &SchemaRef) -> Result<(), SinkError> {
        Sink::prepare(self, schema).await
    }

    async fn stage(&self, context: &StageContext, rows: &[RecordBatch]) -> Result<Staged, SinkError> {
        Sink::stage(self, context, rows).await
    }

    async fn commit(&self, group: Vec<(Permit, Staged)>) -> Vec<Result<Receipt, SinkError>> {
        Sink::commit(self, group).await
    }
}

/// A sink that only writes.
pub(super) struct Unmarked<W>(pub(super) W);

/// The sink as its guarantee has it.
pub(super) fn of<S: Sink + 'static>(sink: S, guarantee: Guarantee) -> Arc<dyn Sink> {
    match guarantee {
        Guarantee::ExactlyOnce => Arc::new(sink),
        Guarantee::AtLeastOnce => Arc::new(Unmarked(sink)),
    }
}

#[async_trait]
impl<W: Writes> Sink for Unmarked<W> {
    fn id(&self) -> &SinkId {
        self.0.id()
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    async fn peek(&self, lanes: &[Lane]) -> Result<Marks, SinkError> {
        Ok(lanes.iter().map(|lane| (lane.clone(), Held::default())).collect())
    }

    async fn claim(
        &self,
        lane: &Lane,
        generation: Generation,
        owner: &Owner,
    ) -> Result<(LaneKey, Option<Mark>), SinkError> {
        let key = LaneKey { sink: self.0.id().clone(), lane: lane.clone(), generation, owner: owner.clone() };
        Ok((key, None))
    }

    async fn history(&self, _: &Lane, _: &LogName, _: u64) -> Result<Vec<Entry>, SinkError> {
        Ok(Vec::new())
    }

    async fn check(&self, schema: Option<&SchemaRef>) -> Result<(), SinkError> {
        self.0.check(schema).await
    }

    async fn prepare(&self, schema: &SchemaRef) -> Result<(), SinkError> {
        self.0.prepare(schema).await
    }

    async fn stage(&self, context: &StageContext, rows: &[RecordBatch]) -> Result<Staged, SinkError> {
        self.0.stage(context, rows).await
    }

    async fn commit(&self, group: Vec<(Permit, Staged)>) -> Vec<Result<Receipt, SinkError>> {
        self.0.commit(group).await
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
