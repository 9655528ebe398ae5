//! Plans: what one batch reads, fixed before it is read, and named by a digest.
//!
//! `input` is the hash of everything that decides the batch's rows; it seeds randomness and names state, rejects and
//! files. `digest` is the hash of `input` and of what each sink held before and whether the plan touches it; marks hold
//! it. Both hash the plan's canonical JSON (struct field order, ordered maps).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    Digest, Lane, LogName, SinkId, Spans, Timestamp,
    position::{Positions, ShardId},
};

/// What sources say of the content that lies before a position, by shard: two copies of a shard that parted have the same
/// positions, and other checks. Text, as the source writes it.
pub type Checks = BTreeMap<ShardId, String>;

/// What kind of step a plan is in a lane's life.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlanKind {
    /// Seq 0: where each shard starts, resolved once.
    Origin {
        /// The resolved start of each shard that was known then.
        start: Positions,
    },
    /// A batch of records, or a tick without spans.
    Batch,
    /// A batch for one sink that is behind the head; stored in that sink's mark alone.
    CatchUp {
        /// The sink.
        sink: SinkId,
    },
    /// The anchor's place goes to another sink. Without spans; the old anchor commits it first, then the new one, which
    /// gets the logs' entries with it; from then on the new one commits first.
    MoveAnchor {
        /// The new anchor.
        to: SinkId,
    },
    /// Positions set by an operator (`checkpoint resolve`, `rewind`), without rows.
    Jump {
        /// Where each shard stands afterwards.
        to: Positions,
        /// What the operator said.
        reason: String,
    },
}

/// What a plan is to one marked sink of the job.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Touch {
    /// The sink takes part: it held `before`, and gets this plan's digest if it is touched, else keeps `before`.
    Joined {
        /// The digest of the sink's mark before this plan; `None` where it had no mark.
        before: Option<Digest>,
        /// Whether the plan writes to the sink (rows, or a mark alone).
        touched: bool,
    },
    /// The sink is behind and is not part of this plan.
    CatchingUp,
}

/// New entries of a log that a plan brings: numbers `[from, to)`, and the log's rolling digest after them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogRange {
    /// The number of the first new entry.
    pub from: u64,
    /// One past the number of the last new entry.
    pub to: u64,
    /// The log's rolling digest after the last new entry.
    pub digest: Digest,
    /// Entries below this number are dropped ("drop <= n"); 0 drops none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub first: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// What one batch of one lane reads and whom it touches.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Plan {
    /// The lane.
    pub lane: Lane,
    /// What kind of plan.
    pub kind: PlanKind,
    /// Its number in the lane: 0 is the origin. A catch-up plan keeps the head's number.
    pub seq: u64,
    /// The plan before it: the head's digest; for a catch-up the sink's own, or the origin's where it has none.
    pub parent: Option<Digest>,
    /// What is read.
    pub spans: Spans,
    /// The only clock that the batch sees.
    pub planned_at: Timestamp,
    /// Digest of the job's text that gave this plan.
    pub job: Digest,
    /// Digests of pinned schemas by source, of lookups and models by step.
    pub versions: BTreeMap<String, Digest>,
    /// New entries of the anchor's logs.
    pub logs: BTreeMap<LogName, LogRange>,
    /// The sink that commits first.
    pub anchor: SinkId,
    /// Every marked sink of the job. The anchor is always joined and touched.
    pub touches: BTreeMap<SinkId, Touch>,
    /// The content before the end of each span, of sources that can say. Older plans have none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub checks: Checks,
}

impl Plan {
    /// The hash of what decides the batch's rows: all but the sinks.
    pub fn input(&self) -> Digest {
        let content = (
            &self.lane,
            &self.kind,
            self.seq,
            &self.parent,
            &self.spans,
            self.planned_at,
            &self.job,
            &self.versions,
            &self.logs,
        );
        // Plans without checks have the digest that they always had: marks of older versions hold it.
        if self.checks.is_empty() { Digest::of_json(&content) } else { Digest::of_json(&(content, &self.checks)) }
    }

    /// The plan's name: the hash of [`Plan::input`], the anchor, and what each sink held and whether it is touched.
    pub fn digest(&self) -> Digest {
        Digest::of_json(&(self.input(), &self.anchor, &self.touches))
    }

    /// What `sink` holds once it has this plan: the plan's digest where touched, else what it held.
    /// `None`: the plan does not list the sink, or lists it as catching up.
    pub fn after(&self, sink: &SinkId) -> Option<Option<Digest>> {
        match self.touches.get(sink)? {
            Touch::Joined { touched: true, .. } => Some(Some(self.digest())),
            Touch::Joined { before, touched: false } => Some(*before),
            Touch::CatchingUp => None,
        }
    }

    /// Whether the plan writes to `sink`.
    pub fn touches(&self, sink: &SinkId) -> bool {
        matches!(self.touches.get(sink), Some(Touch::Joined { touched: true, .. }))
    }
}
