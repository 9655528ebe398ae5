//! Permits: what a sink must be shown before it commits. A wrong order does not type-check.
//!
//! The anchor's permit is made from a plan; every other sink's from the anchor's [`Receipt`]. A sink commits a permit by
//! compare-and-swap: where the stored generation is the key's and the stored digest is `expected`, rows, entries and mark
//! are written in one atomic step; where the stored digest already is the mark's, nothing is written and the receipt is
//! the same; every other digest is a conflict; another generation is `Fenced`.

use std::sync::OnceLock;

use crate::{Digest, Entry, Generation, Lane, Mark, Owner, SinkId};

/// The right to write one lane of one sink, as won by a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneKey {
    /// The sink.
    pub sink: SinkId,
    /// The lane.
    pub lane: Lane,
    /// The generation that was claimed.
    pub generation: Generation,
    /// Who claimed it.
    pub owner: Owner,
}

/// The right to commit one plan to one sink.
#[derive(Clone, Debug)]
pub struct Permit {
    key: LaneKey,
    expected: Option<Digest>,
    mark: Mark,
    entries: Vec<Entry>,
    input: OnceLock<Digest>,
}

/// What a sink returns once rows and mark are durable.
#[derive(Debug)]
pub struct Receipt {
    sink: SinkId,
    lane: Lane,
    digest: Digest,
    rejected: u64,
}

impl Permit {
    fn new(key: LaneKey, expected: Option<Digest>, mark: Mark, entries: Vec<Entry>) -> Self {
        Self { key, expected, mark, entries, input: OnceLock::new() }
    }

    /// The permit for the anchor, with the new entries of its logs.
    pub fn anchor(key: LaneKey, expected: Option<Digest>, mark: Mark, entries: Vec<Entry>) -> Self {
        debug_assert_eq!(mark.plan.anchor, key.sink);
        Self::new(key, expected, mark, entries)
    }

    /// The permit for another marked sink: only once the anchor has the same plan.
    pub fn follow(anchor: &Receipt, key: LaneKey, expected: Option<Digest>, mark: Mark) -> Self {
        assert_eq!((&anchor.lane, anchor.digest), (&key.lane, mark.digest), "the anchor commits a plan first");
        Self::new(key, expected, mark, Vec::new())
    }

    /// The permit for a plan that the anchor is known to hold, because its mark was read after the claim: a replay of
    /// the head to a sink that lacks it.
    pub fn replay(anchor: &Mark, key: LaneKey, expected: Option<Digest>) -> Self {
        let mark = anchor.held_by(&key.sink, key.generation, &key.owner);
        Self::new(key, expected, mark, Vec::new())
    }

    /// The permit for a catch-up plan, which belongs to one sink that is behind the head.
    pub fn catch_up(key: LaneKey, expected: Option<Digest>, mark: Mark) -> Self {
        Self::new(key, expected, mark, Vec::new())
    }

    /// The permit for a sink without marks: nothing is compared, nothing is remembered.
    pub fn unmarked(key: LaneKey, mark: Mark) -> Self {
        Self::new(key, None, mark, Vec::new())
    }

    /// The same permit with log entries: for the new anchor of a plan that moves the anchor, which gets all that the logs
    /// hold.
    pub fn carrying(self, entries: Vec<Entry>) -> Self {
        Self { entries, ..self }
    }

    /// Whose right it is.
    pub fn key(&self) -> &LaneKey {
        &self.key
    }
    /// The digest that the sink's mark must have now.
    pub fn expected(&self) -> Option<Digest> {
        self.expected
    }
    /// The mark to write with the rows.
    pub fn mark(&self) -> &Mark {
        &self.mark
    }
    /// The plan's [`Plan::input`](crate::Plan::input), made once: every rejected row names it, and a plan may be long.
    pub fn input(&self) -> Digest {
        *self.input.get_or_init(|| self.mark.plan.input())
    }
    /// Entries to append with the rows (the anchor only).
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

impl Receipt {
    /// The receipt for a permit whose rows and mark are durable. Only a sink's `commit` calls this.
    pub fn written(permit: &Permit) -> Self {
        Self { sink: permit.key.sink.clone(), lane: permit.key.lane.clone(), digest: permit.mark.digest, rejected: 0 }
    }
    /// The same receipt, for a commit in which the sink kept `rejected` rows as rejects instead of writing them.
    pub fn with_rejected(self, rejected: u64) -> Self {
        Self { rejected, ..self }
    }
    /// Rows that the sink kept as rejects in the same commit (see the sink's own table); 0 for a commit that was there
    /// already.
    pub fn rejected(&self) -> u64 {
        self.rejected
    }
    /// The sink.
    pub fn sink(&self) -> &SinkId {
        &self.sink
    }
    /// The digest that the sink now holds.
    pub fn digest(&self) -> Digest {
        self.digest
    }
}
