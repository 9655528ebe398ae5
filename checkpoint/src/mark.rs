//! Marks: what a sink remembers, atomically with the rows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    Digest, Generation, LaneScheme, LogName, Owner, Plan, PlanKind, Positions, SinkId, Timestamp, Touch,
    plan::{Checks, LogRange},
    position::{Position, SpanError, advance},
};

/// How far a log of the anchor goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogState {
    /// Entries below this number were dropped.
    pub first: u64,
    /// The number of the next entry.
    pub next: u64,
    /// Rolling digest over all entries ever appended.
    pub digest: Digest,
}

/// One entry of a log: kept in the anchor under (lane, log, number).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The log.
    pub log: LogName,
    /// Its number in the log, from 0.
    pub number: u64,
    /// One line of text, as the log's owner writes it. At most [`Entry::MAX_BYTES`].
    pub text: String,
}

impl Entry {
    /// No entry is longer.
    pub const MAX_BYTES: usize = 64 * 1024;
}

/// The last plan that a sink has of a lane, and where that leaves every shard.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mark {
    /// The sink that holds the mark.
    pub sink: SinkId,
    /// The plan.
    pub plan: Plan,
    /// [`Plan::digest`] of `plan`.
    pub digest: Digest,
    /// The lane's positions after the plan: all shards, not only those of its spans.
    pub positions: Positions,
    /// Where the origin started: what a sink that catches up from nothing begins with. A shard that is missing here
    /// appeared later and starts at its beginning.
    #[serde(default)]
    pub start: Positions,
    /// The anchor's logs after the plan.
    pub logs: BTreeMap<LogName, LogState>,
    /// How the job is cut into lanes.
    pub lanes: LaneScheme,
    /// Digest of the lane's origin (seq 0): marks of different origins never fit.
    pub origin: Digest,
    /// The generation that wrote it.
    pub generation: Generation,
    /// Who wrote it.
    pub owner: Owner,
    /// What the sources said of the content before `positions`. A shard without one is believed by its position: older
    /// marks have none, and an operator who set a position is believed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub checks: Checks,
    /// Digest of the steps' state after the plan, where the job has state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Digest>,
    /// Sinks that began later than the lane, and where the lane stood then: what came before is not in them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub since: BTreeMap<SinkId, Positions>,
    /// Of a sink that is being filled with what came before it began: the part that it has already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub had: Option<Had>,
}

/// What a sink that is filled from the beginning has already: once it stands at `from`, it goes on at `to`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Had {
    /// Where the sink began.
    pub from: Positions,
    /// How far it was when it was told to be filled.
    pub to: Positions,
}

impl Had {
    /// Whether a sink that stands at `positions` has all that lies before `from`. A shard that nothing was read of counts.
    pub fn is_reached_by(&self, positions: &Positions) -> bool {
        let is_beginning = |at: &Position| at.as_number() == Some(0) || at.as_pair() == Some((0, 0));
        self.from.iter().all(|(shard, at)| positions.get(shard).map_or_else(|| is_beginning(at), |now| now >= at))
    }
}

impl Mark {
    /// The mark that `sink` gets for an origin plan.
    pub fn origin(sink: &SinkId, plan: Plan, lanes: LaneScheme, generation: Generation, owner: &Owner) -> Self {
        let digest = plan.digest();
        let positions = match &plan.kind {
            PlanKind::Origin { start } => start.clone(),
            _ => Positions::new(),
        };
        let logs = plan.logs.iter().map(|(name, range)| (name.clone(), log_after(range))).collect();
        Self {
            sink: sink.clone(),
            digest,
            start: positions.clone(),
            positions,
            logs,
            lanes,
            origin: digest,
            generation,
            owner: owner.clone(),
            checks: plan.checks.clone(),
            state: None,
            since: BTreeMap::new(),
            had: None,
            plan,
        }
    }

    /// The mark that follows `self` by `plan`, written to `sink`. `self` is the head's mark, or for a catch-up the sink's own.
    pub fn next(&self, sink: &SinkId, plan: Plan, generation: Generation, owner: &Owner) -> Result<Self, SpanError> {
        let positions = match &plan.kind {
            PlanKind::Jump { to, .. } => to.clone(),
            _ => advance(&self.positions, &plan.spans)?,
        };
        let checks = checks_after(Some(self), &positions, &plan);
        let mut logs = self.logs.clone();
        logs.extend(plan.logs.iter().map(|(name, range)| (name.clone(), log_after(range))));
        Ok(Self {
            sink: sink.clone(),
            digest: plan.digest(),
            positions,
            start: self.start.clone(),
            logs,
            lanes: self.lanes,
            origin: self.origin,
            generation,
            owner: owner.clone(),
            checks,
            state: self.state,
            since: self.since_after(&plan),
            had: None,
            plan,
        })
    }

    /// Where sinks began, after a plan: one that held nothing begins with it, and one that was caught up lacks nothing.
    fn since_after(&self, plan: &Plan) -> BTreeMap<SinkId, Positions> {
        let mut since = self.since.clone();
        for (sink, touch) in plan.touches.iter().filter(|(sink, _)| !sink.is_local() && **sink != SinkId::ledger()) {
            match touch {
                Touch::Joined { before: None, touched: true } => {
                    since.insert(sink.clone(), self.positions.clone());
                }
                Touch::Joined { before: Some(_), .. }
                    if matches!(self.plan.touches.get(sink), Some(Touch::CatchingUp)) =>
                {
                    since.remove(sink);
                }
                _ => {}
            }
        }
        since
    }

    /// The same mark as another sink holds it: the head's plan brought to a sink that lacked it.
    pub fn held_by(&self, sink: &SinkId, generation: Generation, owner: &Owner) -> Self {
        Self { sink: sink.clone(), generation, owner: owner.clone(), ..self.clone() }
    }

    /// The sink that commits the next plan first: the plan's anchor, or the one that the plan moves the anchor to.
    pub fn anchor(&self) -> &SinkId {
        match &self.plan.kind {
            PlanKind::MoveAnchor { to } => to,
            _ => &self.plan.anchor,
        }
    }

    /// The sink that has the entries of the logs as this mark counts them: the one that holds the mark. It is the anchor,
    /// but where the anchor's place is on its way: until the new anchor has the plan, the old one has the entries.
    pub fn keeps_logs(&self) -> &SinkId {
        &self.sink
    }

    /// What `sink` holds once it has this mark's plan. `None`: the plan does not list the sink, or as catching up.
    pub fn gives(&self, sink: &SinkId) -> Option<Option<Digest>> {
        match self.plan.touches.get(sink)? {
            Touch::Joined { touched: true, .. } => Some(Some(self.digest)),
            Touch::Joined { before, touched: false } => Some(*before),
            Touch::CatchingUp => None,
        }
    }

    /// The clock of the plan after this one.
    pub fn planned_after(&self, clock: Timestamp) -> Timestamp {
        clock.after(self.plan.planned_at)
    }
}

/// The checks of a mark with these positions, which follows `before` by `plan`.
pub(crate) fn checks_after(before: Option<&Mark>, positions: &Positions, plan: &Plan) -> Checks {
    if matches!(plan.kind, PlanKind::Jump { .. }) {
        return plan.checks.clone();
    }
    let known = before.into_iter().flat_map(|mark| {
        // A check speaks of one position.
        mark.checks.iter().filter(|(shard, _)| positions.get(shard) == mark.positions.get(shard))
    });
    known.chain(&plan.checks).map(|(shard, check)| (shard.clone(), check.clone())).collect()
}

fn log_after(range: &LogRange) -> LogState {
    LogState { first: range.first, next: range.to, digest: range.digest }
}

/// Who holds a lane in a sink: stored beside the mark, changed by claims and releases, never part of a digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The highest generation that ever claimed the lane here.
    pub generation: Generation,
    /// Who claimed it.
    pub owner: Owner,
    /// The owner let go by a clean stop.
    pub released: bool,
}

/// All that a sink tells of a lane without changing anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// The last claim; `None` where the lane was never claimed here.
    pub claim: Option<Claim>,
    /// The mark; `None` where nothing was ever committed.
    pub mark: Option<Mark>,
    /// Changes while the owner is alive; compared for equality only.
    pub beat: u64,
}

impl Held {
    /// The generation to exceed.
    pub fn generation(&self) -> Generation {
        self.claim.as_ref().map_or(Generation::default(), |claim| claim.generation)
    }
}
