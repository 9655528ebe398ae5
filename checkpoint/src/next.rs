//! The next plan of a lane, as a value: what a decision becomes once the sources have proposed what to read.
//!
//! Start with [`Draft`]: it holds what does not depend on the sinks, so that a batch can be computed before the sinks
//! that it touches are known. [`Draft::input`] is the plan's `input` then already.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    Digest, Entry, Generation, Had, Lane, LaneKey, LaneScheme, LogName, LogState, Mark, Owner, Permit, Plan, PlanKind,
    Positions, Receipt, SinkId, Spans, Timestamp, Touch,
    mark::checks_after,
    plan::{Checks, LogRange},
    position::{SpanError, Standing, advance, standing},
};

#[cfg(test)]
mod tests;

/// What a plan holds besides the lane's past and its sinks.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// What is read.
    pub spans: Spans,
    /// New entries of the anchor's logs, without numbers.
    pub entries: BTreeMap<LogName, Vec<String>>,
    /// What the sources say of the content before the end of each span.
    pub checks: Checks,
    /// Entries below these numbers are dropped.
    pub prune: BTreeMap<LogName, u64>,
    /// The machine's clock; the plan's is never behind its parent's.
    pub clock: Timestamp,
    /// But where an operator sets it: then the plan has this clock, and those after it go on from there.
    pub sets_clock: bool,
    /// Digest of the job's text.
    pub job: Option<Digest>,
    /// Digests of pinned schemas, lookups and models.
    pub versions: BTreeMap<String, Digest>,
}

/// Who writes.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// The generation that was claimed.
    pub generation: Generation,
    /// Who claimed it.
    pub owner: &'a Owner,
}

/// A plan that is complete, with the mark and the log entries that the sink which commits it first gets.
#[derive(Clone, Debug)]
pub struct Step {
    /// The mark of the sink that commits first; it holds the plan.
    pub mark: Mark,
    /// The new log entries, for the anchor's permit.
    pub entries: Vec<Entry>,
}

/// Why a plan cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The spans do not continue the lane.
    #[error(transparent)]
    Span(#[from] SpanError),
    /// A catch-up would pass the head.
    #[error("a catch-up of {sink} would pass the head: cut its spans at the head's positions")]
    PastHead {
        /// The sink.
        sink: SinkId,
    },
    /// A log would be cut beyond its end.
    #[error("log {log}: entries below {first} cannot be dropped, the log ends at {next}")]
    Prune {
        /// The log.
        log: LogName,
        /// The number asked for.
        first: u64,
        /// The end of the log.
        next: u64,
    },
    /// The sink cannot take part: nothing is known of what it holds.
    #[error("{sink} cannot be the anchor: it is not among the sinks of the plan")]
    NoSuchSink {
        /// The sink.
        sink: SinkId,
    },
}

/// A batch before its sinks are known.
#[derive(Clone, Debug)]
pub struct Draft {
    plan: Plan,
    entries: Vec<Entry>,
}

impl Draft {
    /// The batch that follows `head`.
    pub fn batch(head: &Mark, anchor: &SinkId, content: Content) -> Result<Self, Error> {
        advance(&head.positions, &content.spans)?;
        Self::new(head, PlanKind::Batch, anchor, content)
    }

    fn new(head: &Mark, kind: PlanKind, anchor: &SinkId, content: Content) -> Result<Self, Error> {
        let (logs, entries) = append(&head.logs, content.entries, content.prune)?;
        let plan = Plan {
            lane: head.plan.lane.clone(),
            kind,
            seq: head.plan.seq + 1,
            parent: Some(head.digest),
            spans: content.spans,
            planned_at: if content.sets_clock { content.clock } else { head.planned_after(content.clock) },
            job: content.job.unwrap_or(head.plan.job),
            versions: content.versions,
            logs,
            anchor: anchor.clone(),
            touches: BTreeMap::new(),
            checks: content.checks,
        };
        Ok(Self { plan, entries })
    }

    /// The final plan's [`Plan::input`].
    pub fn input(&self) -> Digest {
        self.plan.input()
    }

    /// The plan as far as it is known: all but what it is to each sink.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The plan for these sinks: `joined` is what each holds, `with_rows` which of them get rows. The anchor is always
    /// touched, and so is a sink that has no mark yet.
    pub fn finish(
        mut self,
        head: &Mark,
        joined: &BTreeMap<SinkId, Option<Digest>>,
        with_rows: &BTreeSet<SinkId>,
        writer: Writer<'_>,
    ) -> Result<Step, Error> {
        let anchor = self.plan.anchor.clone();
        if !joined.contains_key(&anchor) {
            return Err(Error::NoSuchSink { sink: anchor });
        }
        self.plan.touches = joined
            .iter()
            .map(|(sink, before)| {
                let touched = *sink == anchor || before.is_none() || with_rows.contains(sink);
                (sink.clone(), Touch::Joined { before: *before, touched })
            })
            .collect();
        let mark = head.next(&anchor, self.plan, writer.generation, writer.owner)?;
        Ok(Step { mark, entries: self.entries })
    }
}

/// The origin: seq 0, committed to every sink. It may bring the first entries of logs; it reads nothing.
pub fn origin<'a>(
    lane: &Lane,
    lanes: LaneScheme,
    anchor: &SinkId,
    sinks: impl IntoIterator<Item = &'a SinkId>,
    start: Positions,
    content: Content,
    writer: Writer<'_>,
) -> Result<Step, Error> {
    let all = Touch::Joined { before: None, touched: true };
    let touches: BTreeMap<_, _> = sinks.into_iter().map(|sink| (sink.clone(), all.clone())).collect();
    if !touches.contains_key(anchor) {
        return Err(Error::NoSuchSink { sink: anchor.clone() });
    }
    let (logs, entries) = append(&BTreeMap::new(), content.entries, content.prune)?;
    let plan = Plan {
        lane: lane.clone(),
        kind: PlanKind::Origin { start },
        seq: 0,
        parent: None,
        spans: Spans::new(),
        planned_at: content.clock,
        job: content.job.unwrap_or_else(|| Digest::of(b"")),
        versions: content.versions,
        logs,
        anchor: anchor.clone(),
        touches,
        checks: content.checks,
    };
    Ok(Step { mark: Mark::origin(anchor, plan, lanes, writer.generation, writer.owner), entries })
}

/// A catch-up plan of one sink, as [`crate::Decision::CatchUp`] asks for: `own` is the sink's mark, `from` where it
/// stands. Its spans end at the head's positions at the latest; the content's logs are not its own and are left out.
pub fn catch_up(
    head: &Mark,
    own: Option<&Mark>,
    sink: &SinkId,
    from: &Positions,
    content: Content,
    writer: Writer<'_>,
) -> Result<Step, Error> {
    let positions = advance(from, &content.spans)?;
    if standing(&positions, &head.positions) == Standing::Beyond {
        return Err(Error::PastHead { sink: sink.clone() });
    }
    let before = own.map(|mark| mark.digest);
    let plan = Plan {
        lane: head.plan.lane.clone(),
        kind: PlanKind::CatchUp { sink: sink.clone() },
        seq: head.plan.seq,
        // From nothing on, the origin: so that the plans of two lives are never one.
        parent: before.or(Some(head.origin)),
        spans: content.spans,
        planned_at: own.map_or(content.clock, |mark| mark.planned_after(content.clock)),
        job: content.job.unwrap_or(head.plan.job),
        versions: content.versions,
        logs: BTreeMap::new(),
        anchor: head.anchor().clone(),
        touches: BTreeMap::from([(sink.clone(), Touch::Joined { before, touched: true })]),
        checks: content.checks,
    };
    let digest = plan.digest();
    let (positions, had) = match own.and_then(|mark| mark.had.clone()) {
        Some(had) if had.is_reached_by(&positions) => (had.to, None),
        had => (positions, had),
    };
    let checks = checks_after(own, &positions, &plan);
    // When sinks began is the head's to know: of one plan there is one mark, whichever head it was made beside.
    let since = BTreeMap::new();
    let held = head.held_by(sink, writer.generation, writer.owner);
    let mark = Mark { digest, positions, checks, plan, had, since, ..held };
    Ok(Step { mark, entries: Vec::new() })
}

/// The plan by which a sink that is at the head, and began later than the lane, is set back to the lane's beginning, to be
/// filled by catch-up plans up to where it began: a catch-up without records. `None`: it lacks nothing that is known.
///
/// Committed to the sink alone and before the head lists it as catching up: a crash in between leaves a sink that is behind the
/// head, a stop whose command (`--catch-up`) goes on.
pub fn fill(
    head: &Mark,
    own: &Mark,
    sink: &SinkId,
    content: Content,
    writer: Writer<'_>,
) -> Result<Option<Step>, Error> {
    let Some(since) = head.since.get(sink) else { return Ok(None) };
    let mut start = head.positions.clone();
    for (shard, began) in since {
        // A shard that the lane's beginning does not know is read from its own.
        match head.start.get(shard) {
            Some(first) => start.insert(shard.clone(), first.min(began).clone()),
            None => start.remove(shard),
        };
    }
    let had = Had { from: since.clone(), to: head.positions.clone() };
    if had.is_reached_by(&start) {
        return Ok(None);
    }
    let content = Content { spans: Spans::new(), ..content };
    let base = Mark { had: Some(had), ..own.clone() };
    catch_up(head, Some(&base), sink, &start, content, writer).map(Some)
}

/// What an operator's jump does with one sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is at the head afterwards, whatever it holds now.
    Join(Option<Digest>),
    /// It is left out, and catches up with the head.
    CatchUp,
    /// It is not touched, and the new head counts on what the old one counted on: what was wrong with it still is.
    Stay(Option<Digest>),
}

/// An operator's jump (`resolve`, `rewind`): from the mark `base`, which becomes the head's parent, to the positions
/// `to`. `base` is the head's mark, or with `resolve --anchor S` that of S. `newest` is the highest seq of any sink, so
/// that no older mark passes for a newer one.
#[expect(clippy::too_many_arguments, reason = "a jump is all that an operator may set, and is made in one place")]
pub fn jump(
    base: &Mark,
    newest: u64,
    anchor: &SinkId,
    places: &BTreeMap<SinkId, Place>,
    to: Positions,
    reason: &str,
    content: Content,
    writer: Writer<'_>,
) -> Result<Step, Error> {
    let kind = PlanKind::Jump { to, reason: reason.to_owned() };
    let mut draft = Draft::new(base, kind, anchor, content)?;
    draft.plan.spans = Spans::new();
    draft.plan.seq = draft.plan.seq.max(newest + 1);
    draft.plan.versions.clone_from(&base.plan.versions);
    let (mut joined, mut others) = (BTreeMap::new(), BTreeMap::new());
    for (sink, place) in places {
        match place {
            Place::Join(holds) => _ = joined.insert(sink.clone(), *holds),
            Place::CatchUp => _ = others.insert(sink.clone(), Touch::CatchingUp),
            Place::Stay(before) => {
                others.insert(sink.clone(), Touch::Joined { before: *before, touched: false });
            }
        }
    }
    let everyone = joined.keys().cloned().collect();
    let Step { mut mark, entries } = draft.finish(base, &joined, &everyone, writer)?;
    mark.plan.touches.extend(others);
    mark.digest = mark.plan.digest();
    Ok(Step { mark, entries })
}

/// The plan that moves the anchor's place to `to`: the old anchor commits it first, then the new one with all entries
/// of the logs ([`Permit::carrying`]). An old anchor that is gone from the job is not among `joined`: then the new one
/// commits first.
pub fn move_anchor(
    head: &Mark,
    to: &SinkId,
    joined: &BTreeMap<SinkId, Option<Digest>>,
    content: Content,
    writer: Writer<'_>,
) -> Result<Step, Error> {
    if !joined.contains_key(to) {
        return Err(Error::NoSuchSink { sink: to.clone() });
    }
    let versions = head.plan.versions.clone();
    let content = Content { spans: Spans::new(), checks: Checks::new(), versions, ..content };
    let draft = Draft::new(
        head,
        PlanKind::MoveAnchor { to: to.clone() },
        if joined.contains_key(head.anchor()) { head.anchor() } else { to },
        content,
    )?;
    draft.finish(head, joined, &BTreeSet::from([to.clone()]), writer)
}

impl Step {
    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.mark.plan
    }

    /// The sinks that follow the one which commits first.
    pub fn followers(&self) -> impl Iterator<Item = &SinkId> {
        let plan = self.plan();
        plan.touches.keys().filter(|sink| **sink != self.mark.sink && plan.touches(sink))
    }

    /// The digest that `sink` must hold for this plan.
    pub fn before(&self, sink: &SinkId) -> Option<Digest> {
        match self.plan().touches.get(sink) {
            Some(Touch::Joined { before, .. }) => *before,
            _ => None,
        }
    }

    /// The permit of the sink that commits first: the anchor, or the one sink of a catch-up.
    pub fn first(&self, key: LaneKey) -> Permit {
        let expected = self.before(&key.sink);
        match self.plan().kind {
            PlanKind::CatchUp { .. } => Permit::catch_up(key, expected, self.mark.clone()),
            _ => Permit::anchor(key, expected, self.mark.clone(), self.entries.clone()),
        }
    }

    /// The permit of another sink, once the anchor has the plan.
    pub fn follow(&self, anchor: &Receipt, key: LaneKey) -> Permit {
        let (expected, mark) = (self.before(&key.sink), self.mark.held_by(&key.sink, key.generation, &key.owner));
        Permit::follow(anchor, key, expected, mark)
    }
}

type Appended = (BTreeMap<LogName, LogRange>, Vec<Entry>);

/// Numbers new entries after those that the head's logs have.
fn append(
    known: &BTreeMap<LogName, LogState>,
    new: BTreeMap<LogName, Vec<String>>,
    prune: BTreeMap<LogName, u64>,
) -> Result<Appended, Error> {
    let names: BTreeSet<_> =
        new.iter().filter(|(_, texts)| !texts.is_empty()).map(|(log, _)| log).chain(prune.keys()).collect();
    let (mut logs, mut entries) = (BTreeMap::new(), Vec::new());
    for log in names {
        let state = known.get(log);
        let (from, first) = state.map_or((0, 0), |state| (state.next, state.first));
        let mut digest = state.map_or_else(|| Digest::of(log.as_str().as_bytes()), |state| state.digest);
        let mut number = from;
        for text in new.get(log).into_iter().flatten() {
            digest = digest.then(text.as_bytes());
            entries.push(Entry { log: log.clone(), number, text: text.clone() });
            number += 1;
        }
        let first = prune.get(log).map_or(first, |below| first.max(*below));
        if first > number {
            return Err(Error::Prune { log: log.clone(), first, next: number });
        }
        logs.insert(log.clone(), LogRange { from, to: number, digest, first });
    }
    Ok((logs, entries))
}
