//! Rows that a sink refused (a constraint of its table), on their way to the dead letters.
//!
//! They cannot be computed again: the sink keeps them, numbered, in the commit that refused them. From there a later batch
//! reads them, as the internal shard `rejects:<sink>`, whose position in the mark says up to which number they are in the
//! dead letters. They bypass the steps. So each is a dead letter once, whatever is killed in between; a replay of the batch
//! reads the same numbers again.
//!
//! The dead letters' own sink may refuse rows too, where its table has a condition. It keeps them like any other sink, and
//! they have nowhere else to go: they are brought to it again, once after each start, as the dead letters that they were.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tidemill_checkpoint::{Lane, Position, Positions, ShardId, SinkId, Span};
use tidemill_connectors::{
    sink::{REJECTS, SinkReject, rejects_shard},
    source::{Budget, RawBatch, RawReject},
};

use super::{DEAD_LETTERS, Job, Role, SinkSlot, lane::LaneError};

/// The rejects of one sink.
pub struct SinkRejects {
    slot: SinkSlot,
    shard: ShardId,
    /// Lanes of which the sink has none that no batch has read. It is asked once after each start, then only where a
    /// commit had some.
    read: Mutex<BTreeSet<Lane>>,
    /// Of the dead letters' own sink: one past what it had when it was first asked. What it refuses again waits for the next
    /// start, so that there is an end to it.
    ends: Mutex<BTreeMap<Lane, u64>>,
}

/// Whether a shard has the rejects of the dead letters' own sink: rows of dead letters.
pub fn are_dead_letters(shard: &ShardId) -> bool {
    sink_of(shard) == Some(DEAD_LETTERS)
}

/// The sink whose rejects a shard is.
pub fn sink_of(shard: &ShardId) -> Option<&str> {
    shard.source().strip_prefix(REJECTS)
}

impl SinkRejects {
    /// Those of a sink; nothing is asked yet.
    pub fn new(slot: &SinkSlot) -> Self {
        Self { slot: slot.clone(), shard: rejects_shard(slot.id()), read: Mutex::default(), ends: Mutex::default() }
    }

    /// The shard.
    pub fn shard(&self) -> &ShardId {
        &self.shard
    }

    /// The sink.
    pub fn sink(&self) -> &SinkId {
        self.slot.id()
    }

    fn read_lanes(&self) -> MutexGuard<'_, BTreeSet<Lane>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A commit had some.
    pub fn came(&self, lane: &Lane) {
        self.read_lanes().remove(lane);
    }

    /// What the next batch reads of them.
    pub async fn plan(
        &self,
        job: &Job,
        lane: &Lane,
        from: &Positions,
        budget: Budget,
    ) -> Result<Option<Span>, LaneError> {
        // Noted before the sink is asked: a commit that has some meanwhile takes it back.
        if !self.read_lanes().insert(lane.clone()) {
            return Ok(None);
        }
        let at = from.get(&self.shard).and_then(Position::as_number).unwrap_or_default();
        let found = self.slot.sink.rejects(lane, at).await.inspect_err(|_| self.came(lane));
        let found = found.map_err(|error| job.sink_failed(&self.slot, &error))?;
        let end = self.end(lane, &found);
        let Some(last) = within(found.iter().filter(|reject| reject.number < end), budget) else { return Ok(None) };
        // Until they are committed, and there may be more.
        self.came(lane);
        Ok(Some(Span { from: Position::number(at), to: Position::number(last + 1) }))
    }

    /// Rejects from this number on are left to the next start.
    fn end(&self, lane: &Lane, found: &[SinkReject]) -> u64 {
        if self.slot.role != Role::DeadLetters {
            return u64::MAX;
        }
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        *ends.entry(lane.clone()).or_insert_with(|| found.last().map_or(0, |last| last.number + 1))
    }

    /// The rejects of a span. One that the sink has not any more is an error.
    pub async fn read(&self, job: &Job, lane: &Lane, span: &Span) -> Result<RawBatch, LaneError> {
        let (from, to) = (span.from.as_number().unwrap_or_default(), span.to.as_number().unwrap_or_default());
        let found = self.slot.sink.rejects(lane, from).await.map_err(|error| job.sink_failed(&self.slot, &error))?;
        let mut batch = RawBatch::default();
        for reject in found.into_iter().take_while(|reject| reject.number < to) {
            let detail = format!("{} (row {} of batch {})", reject.detail, reject.row, reject.seq);
            batch.rejects.push(RawReject {
                shard: self.shard.clone(),
                position: Position::number(reject.number),
                reason: Cow::Owned(reject.reason),
                detail,
                record: Bytes::from(reject.record),
                metadata: Vec::new(),
            });
        }
        let last = batch.rejects.last().and_then(|reject| reject.position.as_number());
        if last.map(|last| last + 1) != Some(to) {
            return Err(LaneError::Stop(format!(
                "lane {lane}: rows that sink {} refused, numbers {from} to {to}, are to go to the dead letters, and it has \
                 them not any more. Way out: `tidemill checkpoint resolve --sink dead-letters --accept-loss`",
                self.slot.name
            )));
        }
        Ok(batch)
    }
}

/// The number of the last reject that a batch has room for; the first one always.
fn within<'r>(found: impl Iterator<Item = &'r SinkReject>, budget: Budget) -> Option<u64> {
    let mut bytes = 0_usize;
    let fits = |reject: &&SinkReject| {
        let is_first = bytes == 0;
        bytes = bytes.saturating_add(reject.record.len().max(1));
        is_first || bytes <= budget.bytes
    };
    found.take(budget.records.max(1)).take_while(fits).last().map(|reject| reject.number)
}
