//! `decide()`: from the marks alone, what a runner does next with a lane. Total, pure, and the only place that judges.
//!
//! The table is in `docs/protocol.md`; its rows have their tests in `decide/tests.rs`, in the same order. Words used
//! here: the *head* is the last plan of the lane's anchor; a sink is *listed* where the head names it as joined.

use std::{cmp::Reverse, collections::BTreeMap};

use crate::{
    Digest, Lane, LaneScheme, Mark, PlanKind, Positions, SinkId, Touch,
    position::{Standing, standing},
};

mod stop;
#[cfg(test)]
mod tests;

pub use stop::{Misfit, RestoreProblem, Stop};

/// What is known of one marked sink of the job, read after the claim.
#[derive(Clone, Debug)]
pub struct SinkFacts<'a> {
    /// The sink's mark.
    pub mark: Option<&'a Mark>,
    /// A sink that is new here shall catch up instead of joining at the head.
    pub catch_up: bool,
}

/// Everything that `decide()` may look at.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The sink that an origin would name as the anchor. One of `sinks`, and never a local one.
    pub anchor: &'a SinkId,
    /// The lane scheme of the job as it is written now.
    pub lanes: LaneScheme,
    /// Every marked sink of the job, the local ones of this data dir only. The ledger is one of them where the job has
    /// no other, and where it holds a mark of the lane.
    pub sinks: BTreeMap<SinkId, SinkFacts<'a>>,
    /// The head as the ledger closed it last, where there is a ledger.
    pub closed: Option<&'a Mark>,
    /// The job keeps no state between batches.
    pub stateless: bool,
    /// Every source of the job can be read again from an older position.
    pub rereadable: bool,
}

/// What to do next.
#[derive(Clone, Debug)]
pub enum Decision<'a> {
    /// No sink has a mark: commit the origin to all of them. Where `closed` says that they had one, they were emptied:
    /// say so, and `forget` the lane in the ledger before the origin commits, so that a crash after it does not find a
    /// ledger of another life.
    Origin,
    /// Every sink of the head plan has it: plan the next batch.
    Next {
        /// The head.
        head: &'a Mark,
        /// What each marked sink of the job holds now, the anchor included: all of them join the next plan.
        joined: BTreeMap<SinkId, Option<Digest>>,
        /// Rows and marks went back together (a restored backup): say so, then go on from `head`.
        rewound_from: Option<&'a Mark>,
    },
    /// As [`Decision::Next`], but the anchor changes first: commit the plan of [`crate::next::move_anchor`]. Either the
    /// anchor is gone from the job and the ledger remembers the head, or the anchor is the ledger and the job now has a
    /// sink that keeps marks.
    MoveAnchor {
        /// The head.
        head: &'a Mark,
        /// The new anchor.
        to: SinkId,
        /// What each marked sink of the job holds now, the new anchor included.
        joined: BTreeMap<SinkId, Option<Digest>>,
    },
    /// The head plan is not in these sinks yet: replay it to them.
    Replay {
        /// The head.
        head: &'a Mark,
        /// The sinks, with the digest that each holds.
        sinks: BTreeMap<SinkId, Option<Digest>>,
    },
    /// One sink is behind the head and takes a plan of its own first.
    CatchUp {
        /// The head, which waits.
        head: &'a Mark,
        /// The sink.
        sink: SinkId,
        /// The digest that it holds.
        holds: Option<Digest>,
        /// Where it stands. A shard that is missing here starts at its beginning.
        from: Positions,
    },
    /// Nobody can explain this state: stop, and say the way out.
    Stop(Stop),
}

/// Where the head comes from.
struct Head<'a> {
    mark: &'a Mark,
    /// The sink whose mark it is, known to be at the head; `None` where the ledger alone remembers it.
    holder: Option<SinkId>,
    /// Who commits the next plan first, where the anchor is in the job.
    anchor: SinkId,
}

/// What one sink needs before the lane can go on.
enum Need {
    Nothing(Option<Digest>),
    Replay(Option<Digest>),
    CatchUp(Option<Digest>, Positions),
    Stop(Stop),
}

/// The table of `docs/protocol.md`, for one lane.
pub fn decide<'a>(facts: &Facts<'a>) -> Decision<'a> {
    judge(facts).unwrap_or_else(Decision::Stop)
}

fn judge<'a>(facts: &Facts<'a>) -> Result<Decision<'a>, Stop> {
    let Some(head) = find_head(facts)? else { return Ok(Decision::Origin) };
    let rewound_from = compare_with_closed(facts, &head)?;
    let (mut joined, mut replay, mut behind) = (BTreeMap::new(), BTreeMap::new(), None);
    for (id, sink) in &facts.sinks {
        match need(facts, &head, id, sink) {
            Need::Nothing(holds) => _ = joined.insert(id.clone(), holds),
            Need::Replay(holds) => _ = replay.insert(id.clone(), holds),
            Need::CatchUp(holds, from) => behind = behind.or(Some((id, holds, from))),
            Need::Stop(_) if head.holder.is_none() => return Err(anchor_gone(&head, id, sink)),
            Need::Stop(stop) => return Err(stop),
        }
    }
    let Head { mark: head, holder, anchor } = head;
    if !replay.is_empty() {
        return Ok(Decision::Replay { head, sinks: replay });
    }
    if let Some((sink, holds, from)) = behind {
        return Ok(Decision::CatchUp { head, sink: sink.clone(), holds, from });
    }
    let out_of_ledger = anchor == SinkId::ledger() && *facts.anchor != anchor && joined.contains_key(facts.anchor);
    if holder.is_none() || out_of_ledger {
        return Ok(Decision::MoveAnchor { head, to: facts.anchor.clone(), joined });
    }
    Ok(Decision::Next { head, joined, rewound_from })
}

/// The head of the lane: the anchor's mark, where the anchor is the one that the newest mark names.
fn find_head<'a>(facts: &Facts<'a>) -> Result<Option<Head<'a>>, Stop> {
    let marks = facts.sinks.iter().filter_map(|(id, sink)| Some((id, sink.mark?)));
    // Of marks with the same number, one that names its own sink is an anchor's; a catch-up keeps the head's number.
    let newest = marks.min_by_key(|(id, mark)| (Reverse(mark.plan.seq), mark.anchor() != *id, *id != facts.anchor));
    let Some((newest_id, newest)) = newest else {
        return match facts.closed {
            Some(closed) if !facts.sinks.contains_key(closed.anchor()) => {
                head_of_ledger(facts, closed.anchor(), None).map(Some)
            }
            _ => Ok(None),
        };
    };
    let anchor = newest.anchor();
    let moving = matches!(newest.plan.kind, PlanKind::MoveAnchor { .. });
    match facts.sinks.get(anchor).map(|sink| sink.mark) {
        None => head_of_ledger(facts, anchor, Some(newest)).map(Some),
        // The anchor's place is on its way: the old anchor has the plan, the new one gets it by a replay.
        Some(_) if moving => Ok(Some(Head { mark: newest, holder: Some(newest_id.clone()), anchor: anchor.clone() })),
        Some(Some(mark)) => {
            let head = Head { mark, holder: Some(anchor.clone()), anchor: anchor.clone() };
            // A mark from before the sink became the anchor: it went back further than its place.
            if mark.anchor() != anchor {
                let why = if newest.origin == mark.origin { Misfit::Beyond } else { Misfit::OtherOrigin };
                return Err(gap(&head, newest_id, newest, why));
            }
            Ok(Some(head))
        }
        Some(None) => {
            let (sink, mark) = successor(facts).unwrap_or((newest_id, newest));
            Err(Stop::AnchorEmptied {
                lane: newest.plan.lane.clone(),
                anchor: anchor.clone(),
                sink: sink.clone(),
                stands: mark.positions.clone(),
            })
        }
    }
}

/// The sink that an operator is told to make the anchor: the newest mark that may be one, the dead letters last.
fn successor<'a, 'f>(facts: &'f Facts<'a>) -> Option<(&'f SinkId, &'a Mark)> {
    let marks = facts.sinks.iter().filter_map(|(id, sink)| Some((id, sink.mark?)));
    let candidates = marks.filter(|(id, _)| !id.is_local());
    candidates.max_by_key(|(id, mark)| (mark.plan.seq, id.as_str() != SinkId::DEAD_LETTERS, Reverse(*id)))
}

/// The anchor is gone from the job: the plan that the ledger closed last is the head, if it is the gone anchor's.
fn head_of_ledger<'a>(facts: &Facts<'a>, gone: &SinkId, newest: Option<&Mark>) -> Result<Head<'a>, Stop> {
    let Some(closed) = facts.closed.filter(|closed| closed.anchor() == gone && facts.sinks.contains_key(facts.anchor))
    else {
        return Err(Stop::AnchorGone {
            lane: newest.or(facts.closed).map_or_else(Lane::single, |mark| mark.plan.lane.clone()),
            anchor: gone.clone(),
            closed: facts.closed.map(|closed| closed.positions.clone()),
            sink: successor(facts).map_or_else(|| facts.anchor.clone(), |(id, _)| id.clone()),
            stands: successor(facts).map(|(_, mark)| mark.positions.clone()),
        });
    };
    if let Some((log, _)) = closed.logs.iter().find(|(_, state)| state.next > state.first) {
        return Err(Stop::HistoryGone {
            lane: closed.plan.lane.clone(),
            anchor: gone.clone(),
            log: log.clone(),
            sink: facts.anchor.clone(),
            closed: closed.positions.clone(),
        });
    }
    Ok(Head { mark: closed, holder: None, anchor: facts.anchor.clone() })
}

fn anchor_gone(head: &Head<'_>, sink: &SinkId, facts: &SinkFacts<'_>) -> Stop {
    Stop::AnchorGone {
        lane: head.mark.plan.lane.clone(),
        anchor: head.mark.anchor().clone(),
        closed: Some(head.mark.positions.clone()),
        sink: sink.clone(),
        stands: facts.mark.map(|mark| mark.positions.clone()),
    }
}

/// The last row: the anchor behind the plan that the ledger closed last.
fn compare_with_closed<'a>(facts: &Facts<'a>, head: &Head<'a>) -> Result<Option<&'a Mark>, Stop> {
    let Some(closed) = facts.closed.filter(|closed| closed.digest != head.mark.digest) else { return Ok(None) };
    let problem = if closed.origin != head.mark.origin {
        RestoreProblem::OtherOrigin
    } else if closed.plan.seq < head.mark.plan.seq {
        return Ok(None);
    } else if !facts.stateless {
        RestoreProblem::State
    } else if !facts.rereadable {
        RestoreProblem::Source
    } else {
        return Ok(Some(closed));
    };
    Err(Stop::Restored {
        lane: head.mark.plan.lane.clone(),
        anchor: head.anchor.clone(),
        stands: head.mark.positions.clone(),
        closed: closed.positions.clone(),
        problem,
    })
}

/// What one sink needs.
fn need(facts: &Facts<'_>, head: &Head<'_>, id: &SinkId, sink: &SinkFacts<'_>) -> Need {
    let listed = match head.mark.plan.touches.get(id) {
        Some(Touch::Joined { before, touched }) => Some((*before, *touched)),
        _ => None,
    };
    let holds = sink.mark.map(|mark| mark.digest);
    // By digest before anything else: an operator's jump names a mark that fits nothing as its `before`.
    if listed.is_some_and(|(before, touched)| touched && before == holds && Some(head.mark.digest) != holds) {
        // The ledger remembers a head, but nothing proves it: with its anchor gone there is nothing to replay.
        return if head.holder.is_none() { Need::Stop(anchor_gone(head, id, sink)) } else { Need::Replay(holds) };
    }
    let Some(mark) = sink.mark else {
        return need_of_empty(head, id, sink.catch_up);
    };
    if mark.lanes != facts.lanes {
        return Need::Stop(Stop::Lanes {
            lane: mark.plan.lane.clone(),
            sink: id.clone(),
            marked: mark.lanes,
            job: facts.lanes,
        });
    }
    let stop = |why| Need::Stop(gap(head, id, mark, why));
    if head.holder.as_ref() == Some(id) || (listed.is_some() && head.mark.gives(id) == Some(holds)) {
        return Need::Nothing(holds);
    }
    if mark.origin != head.mark.origin {
        return stop(Misfit::OtherOrigin);
    }
    // A ledger that was the anchor once: what other data dirs did since is not in it, and it has no rows to lack.
    if is_former_ledger(head, id) {
        return Need::Nothing(holds);
    }
    match standing(&mark.positions, &head.mark.positions) {
        // The head came later, under another data dir: there the lane was set back, or went on in a topic that was made
        // again. What that means for this sink, whoever did it was told.
        Standing::Beyond if id.is_local() && listed.is_none() && mark.plan.seq < head.mark.plan.seq => {
            Need::Nothing(holds)
        }
        Standing::Beyond => stop(Misfit::Beyond),
        _ if listed.is_some() => stop(Misfit::Digest),
        Standing::Equal => Need::Nothing(holds),
        // What a local sink lacks is in another data dir: it is whole without it.
        Standing::Behind if id.is_local() => Need::Nothing(holds),
        Standing::Behind => Need::CatchUp(holds, mark.positions.clone()),
    }
}

/// What a sink without a mark needs, where the head has nothing to replay to it.
fn need_of_empty(head: &Head<'_>, id: &SinkId, catch_up: bool) -> Need {
    let told = match head.mark.plan.touches.get(id) {
        // A plan that does not touch a sink without a mark leaves it without one.
        Some(Touch::Joined { before: None, touched: false }) => false,
        _ if is_former_ledger(head, id) => false,
        Some(Touch::Joined { .. }) => {
            return Need::Stop(Stop::Emptied {
                lane: head.mark.plan.lane.clone(),
                sink: id.clone(),
                anchor: head.mark.sink.clone(),
                head: head.mark.positions.clone(),
            });
        }
        // Only an operator's jump lists a sink so: that is how a lane was told to let it catch up.
        Some(Touch::CatchingUp) => true,
        None => catch_up,
    };
    let from = earliest_start(head.mark);
    if told && !id.is_local() && standing(&from, &head.mark.positions) == Standing::Behind {
        return Need::CatchUp(None, from);
    }
    Need::Nothing(None)
}

/// The ledger, where another sink is the anchor.
fn is_former_ledger(head: &Head<'_>, id: &SinkId) -> bool {
    *id == SinkId::ledger() && head.anchor != *id && head.mark.anchor() != id
}

/// Where a sink begins that has nothing: at the origin's start, or at the head where an operator set it back further.
fn earliest_start(head: &Mark) -> Positions {
    let known = head.start.iter().filter_map(|(shard, start)| Some((shard, start.min(head.positions.get(shard)?))));
    known.map(|(shard, from)| (shard.clone(), from.clone())).collect()
}

fn gap(head: &Head<'_>, id: &SinkId, mark: &Mark, why: Misfit) -> Stop {
    Stop::Gap {
        lane: head.mark.plan.lane.clone(),
        sink: id.clone(),
        stands: mark.positions.clone(),
        anchor: head.mark.sink.clone(),
        head: head.mark.positions.clone(),
        why,
    }
}
