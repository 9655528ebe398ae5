//! Who owns a lane: peek, wait or claim, then what `decide()` says of the marks that the claim returned.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures::future::join_all;
use tidemill_checkpoint::{
    Decision, Digest, Entry, Facts, Generation, Held, Lane, LaneKey, LaneScheme, LogName, Mark, Positions, SinkId,
    Stop, decide, decide::SinkFacts,
};
use tidemill_connectors::{SinkError, SourceError, source::History};

use super::{Job, SinkSlot, describe};

/// Why a lane does not go on.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LaneError {
    /// Tried again with backoff.
    #[error("{0}")]
    Transient(String),
    /// Another owner has it: wait until it is silent.
    #[error("{0}")]
    Fenced(String),
    /// An operator has to decide.
    #[error("{0}")]
    Stop(String),
    /// The same: a source cannot read again what a plan or a mark speaks of. The way out is the source's own; who wanted
    /// to read may know a better one.
    #[error("{what}. {way_out}")]
    Lost {
        /// What is gone.
        what: String,
        /// The way out.
        way_out: String,
    },
}

impl LaneError {
    /// What a sink's error means to the lane. `Conflict` under one's own generation is looked at again by a new claim.
    pub fn of_sink(sink: &SinkId, error: &SinkError) -> Self {
        match error {
            SinkError::Fenced { .. } => Self::Fenced(error.to_string()),
            SinkError::Transient { .. } | SinkError::Conflict { .. } => {
                Self::Transient(format!("sink {}: {error}", sink.name()))
            }
            SinkError::Fatal(text) => Self::Stop(format!("sink {}: {text}", sink.name())),
        }
    }
    /// What a source's error means to the lane.
    pub fn of_source(source: &str, error: &SourceError) -> Self {
        let named = format!("source {source}: ");
        let name = |text: String| if text.starts_with(&named) { text } else { named.clone() + &text };
        match error {
            SourceError::Transient { .. } => Self::Transient(name(error.to_string())),
            SourceError::Fatal(text) => Self::Stop(name(text.clone())),
            SourceError::Lost { shard, what, way_out } => {
                Self::Lost { what: name(format!("shard {shard}: {what}")), way_out: way_out.clone() }
            }
        }
    }
}

/// Why a lane may be claimed at once. Each is spent by one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtOnce {
    /// The process has just started: at once where the owner is this daemon.
    Start,
    /// `--take-over`, or the group assigned the lane.
    Told,
    /// My own claim is still the newest; something failed that may pass.
    Mine,
    /// Nothing: the owner must be silent first.
    No,
}

/// Watches marks and beats of a lane that another owner holds, on its own monotonic clock.
#[derive(Debug)]
pub struct Watch {
    last: Vec<(SinkId, Held)>,
    since: Instant,
}

/// What all marked sinks hold for a lane.
pub type HeldBy = BTreeMap<SinkId, Held>;

/// What a lane is once it is claimed.
pub struct Owned {
    /// The right to write each marked sink.
    pub keys: BTreeMap<SinkId, LaneKey>,
    /// The marks, as the claims returned them.
    pub marks: BTreeMap<SinkId, Option<Mark>>,
}

/// The anchor that the newest mark names: another mark may be of a time when another sink had its place. Of marks with one
/// number, an anchor's own is the newer one: a catch-up keeps the head's number.
fn anchor_of<'a>(marks: impl Iterator<Item = (&'a SinkId, &'a Mark)>) -> Option<&'a SinkId> {
    marks.max_by_key(|(id, mark)| (mark.plan.seq, mark.anchor() == *id)).map(|(_, mark)| mark.anchor())
}

/// The anchor that these marks name, where there is any.
pub fn anchor_of_all(marks: &BTreeMap<SinkId, Option<Mark>>) -> Option<&SinkId> {
    anchor_of(marks.iter().filter_map(|(id, mark)| Some((id, mark.as_ref()?))))
}

impl Owned {
    /// The key whose beats are sent: a beat is a record in the anchor alone.
    pub fn beaten(&self) -> Option<&LaneKey> {
        self.anchor().and_then(|anchor| self.keys.get(anchor)).or_else(|| self.keys.values().next())
    }

    /// The anchor, where any sink has a mark.
    pub fn anchor(&self) -> Option<&SinkId> {
        anchor_of_all(&self.marks)
    }
}

impl Job {
    /// What a sink's error means to the lane; one that is tried again is counted.
    pub(super) fn sink_failed(&self, slot: &SinkSlot, error: &SinkError) -> LaneError {
        let meaning = LaneError::of_sink(slot.id(), error);
        if matches!(meaning, LaneError::Transient(_)) {
            self.around.metrics.sink_retries.with_label_values(&[self.name(), &slot.name]).inc();
        }
        meaning
    }

    /// Looks at a lane in every marked sink; changes nothing.
    pub async fn peek(&self, lane: &Lane) -> Result<HeldBy, LaneError> {
        let lanes = std::slice::from_ref(lane);
        let slots: Vec<_> = self.marked().collect();
        let answers = join_all(slots.iter().map(|slot| slot.sink.peek(lanes))).await;
        let mut held = HeldBy::new();
        for (slot, answer) in slots.iter().zip(answers) {
            let mut marks = answer.map_err(|error| self.sink_failed(slot, &error))?;
            held.insert(slot.id().clone(), marks.remove(lane).unwrap_or_default());
        }
        Ok(held)
    }

    /// Whether the lane may be claimed now; else who holds it. `watch` remembers what it saw last.
    pub fn may_claim(
        &self,
        held: &HeldBy,
        at_once: AtOnce,
        watch: &mut Option<Watch>,
        patience: Duration,
    ) -> Result<(), String> {
        let newest = held.values().filter_map(|h| h.claim.as_ref()).max_by_key(|claim| claim.generation);
        let Some(claim) = newest else { return Ok(()) };
        let me = &self.around.owner;
        let mine = match at_once {
            AtOnce::Told => true,
            AtOnce::Start => {
                claim.owner.is_same_daemon(me) || (self.around.owner_is_explicit && claim.owner.name == me.name)
            }
            // A claim of this very process shuts nobody out but itself.
            AtOnce::Mine | AtOnce::No => claim.owner.instance == me.instance,
        };
        if mine || claim.released {
            return Ok(());
        }
        let now: Vec<_> = held.iter().map(|(id, h)| (id.clone(), h.clone())).collect();
        match watch {
            Some(seen) if seen.last == now => {
                if seen.since.elapsed() >= patience {
                    return Ok(());
                }
            }
            _ => *watch = Some(Watch { last: now, since: Instant::now() }),
        }
        // The patience itself differs from look to look; the reason must not, where nothing has changed.
        Err(format!(
            "owned by {}; taken over once it has been silent for {:?}, or at once with --take-over",
            claim.owner, self.config.takeover_after
        ))
    }

    /// Claims the lane in every marked sink: the anchor first, the others in order of id.
    pub async fn claim(&self, lane: &Lane, held: &HeldBy) -> Result<Owned, LaneError> {
        let highest = held.values().map(Held::generation).max().unwrap_or_default();
        self.claim_as(lane, held, highest.next()).await
    }

    async fn claim_as(&self, lane: &Lane, held: &HeldBy, generation: Generation) -> Result<Owned, LaneError> {
        let marks = held.iter().filter_map(|(id, held)| Some((id, held.mark.as_ref()?)));
        let anchor = anchor_of(marks).unwrap_or(&self.anchor).clone();
        let mut slots: Vec<_> = self.marked().collect();
        slots.sort_by_key(|slot| (*slot.id() != anchor, slot.id().clone()));
        let mut owned = Owned { keys: BTreeMap::new(), marks: BTreeMap::new() };
        for slot in slots {
            let (sink, lane, owner, id) =
                (slot.sink.clone(), lane.clone(), self.around.owner.clone(), slot.id().clone());
            // A claim is never dropped half-way: it runs in a task of its own.
            let claimed = tokio::spawn(async move { sink.claim(&lane, generation, &owner).await }).await;
            let (key, mark) = claimed
                .map_err(|error| LaneError::Transient(format!("sink {}: the claim panicked: {error}", id.name())))?
                .map_err(|error| self.sink_failed(slot, &error))?;
            owned.keys.insert(id.clone(), key);
            owned.marks.insert(id, mark);
        }
        Ok(owned)
    }

    /// That the job was not begun with another `lanes:`. Its lanes had other names then, so one that has no mark would begin
    /// at `start:` beside what is there.
    pub async fn begun_alike(&self) -> Result<(), LaneError> {
        let known = self.around.ledger.lanes().map_err(|error| LaneError::Transient(error.to_string()))?;
        let is_otherwise = |lane: &Lane| (*lane == Lane::single()) == (self.scheme == LaneScheme::Partition);
        for (_, other) in known.iter().filter(|(job, lane)| job == self.name() && is_otherwise(lane)) {
            let held = self.peek(other).await?;
            let mut marks = held.into_iter().filter_map(|(sink, held)| Some((sink, held.mark?)));
            if let Some((sink, mark)) = marks.find(|(_, mark)| mark.lanes != self.scheme) {
                let stop = Stop::Lanes { lane: other.clone(), sink, marked: mark.lanes, job: self.scheme };
                return Err(LaneError::Stop(stop.to_string()));
            }
        }
        Ok(())
    }

    /// What `decide()` says of a lane's marks.
    pub fn decide<'a>(&'a self, marks: &'a BTreeMap<SinkId, Option<Mark>>, closed: Option<&'a Mark>) -> Decision<'a> {
        let facts = |(id, mark): (&SinkId, &'a Option<Mark>)| {
            (id.clone(), SinkFacts { mark: mark.as_ref(), catch_up: self.catch_up.contains(id) })
        };
        let sinks = marks.iter().map(facts).collect();
        decide(&Facts {
            anchor: &self.anchor,
            lanes: self.scheme,
            sinks,
            closed,
            stateless: true,
            rereadable: self.rereadable(),
        })
    }

    /// Whether every claim of the lane is still this one: asked before something unexplained is called a gap.
    pub async fn still_owned(&self, lane: &Lane, owned: &Owned) -> Result<bool, LaneError> {
        let held = self.peek(lane).await?;
        Ok(owned.keys.iter().all(|(id, key)| held.get(id).is_some_and(|h| h.generation() == key.generation)))
    }

    /// The logs as far as the head says they go, out of the sink that holds it: while the anchor's place is on its way,
    /// the new anchor has none of them yet.
    pub async fn history(&self, lane: &Lane, head: &Mark) -> Result<History, LaneError> {
        let Some(anchor) = self.sink(head.keeps_logs()) else {
            return Err(LaneError::Stop(format!(
                "lane {lane}: the anchor {} is not a sink of this job any more",
                head.keeps_logs()
            )));
        };
        let mut history = History { states: head.logs.clone(), checks: head.checks.clone(), entries: Vec::new() };
        for (log, state) in &head.logs {
            let entries =
                anchor.sink.history(lane, log, state.first).await.map_err(|error| self.sink_failed(anchor, &error))?;
            history.entries.extend(checked(lane, log, state.first, state.next, entries)?);
        }
        Ok(history)
    }

    /// Puts every source at a head.
    pub async fn adopt(&self, lane: &Lane, positions: &Positions, history: &History) -> Result<(), LaneError> {
        // What waits is counted from here, also where the lane goes no further.
        self.status.lock().positions.insert(lane.to_string(), positions.clone());
        for source in &self.sources {
            let at = self.positions_of(&**source, positions);
            let adopted =
                source.adopt(lane, &at, history).await.map_err(|error| LaneError::of_source(source.name(), &error))?;
            for warning in adopted.warnings {
                let warning = self.around.in_commands(self.name(), &lane.in_commands(&warning));
                tracing::warn!(job = self.name(), lane = %lane, source = source.name(), "{warning}");
            }
        }
        Ok(())
    }
}

/// The entries of a log below the head's `next`: all of them, or a stop.
fn checked(lane: &Lane, log: &LogName, first: u64, next: u64, entries: Vec<Entry>) -> Result<Vec<Entry>, LaneError> {
    let entries: Vec<_> = entries.into_iter().filter(|entry| entry.number < next).collect();
    let complete = entries.iter().map(|entry| entry.number).eq(first..next);
    if complete {
        return Ok(entries);
    }
    Err(LaneError::Stop(format!(
        "lane {lane}: the anchor's log {log} should have the entries {first} to {next}, but has {} of them: the anchor is damaged. \
         Way out: restore it from a backup, or `tidemill checkpoint reset --sinks`",
        entries.len()
    )))
}

/// One line about a head, for logs.
pub fn describe_head(head: &Mark) -> String {
    format!("batch {} ({}), {}", head.plan.seq, head.digest.short(), describe(&head.positions))
}

/// The digests that sinks hold after a plan, of those that it lists as joined.
pub fn joined_after(head: &Mark) -> BTreeMap<SinkId, Option<Digest>> {
    head.plan.touches.keys().filter_map(|sink| head.gives(sink).map(|digest| (sink.clone(), digest))).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use tidemill_checkpoint::{
        Owner,
        next::{self, Content, Draft, Writer},
    };
    use uuid::Uuid;

    use super::*;

    /// `a` was the anchor, then `b`: what `a` holds of that time, or of a later plan, names the one or the other.
    #[test]
    fn the_anchor_is_that_of_the_newest_mark() {
        let owner = Owner { name: "host".into(), data_dir: Uuid::nil(), instance: Uuid::nil() };
        let writer = || Writer { generation: Generation(1), owner: &owner };
        let (a, b, lane) = (SinkId::new("a"), SinkId::new("b"), Lane::single());
        let sinks = [a.clone(), b.clone()];
        let content = Content::default;
        let origin =
            next::origin(&lane, LaneScheme::Single, &a, &sinks, Positions::new(), content(), writer()).unwrap();
        let origin = origin.mark;
        let joined = sinks.iter().map(|id| (id.clone(), Some(origin.digest))).collect();
        let moved = next::move_anchor(&origin, &b, &joined, content(), writer()).unwrap().mark;
        let moved = moved.held_by(&b, Generation(1), &owner);
        let joined = BTreeMap::from([(a.clone(), Some(origin.digest)), (b.clone(), Some(moved.digest))]);
        let draft = Draft::batch(&moved, &b, content()).unwrap();
        let later = draft.finish(&moved, &joined, &BTreeSet::from([b.clone()]), writer()).unwrap().mark;
        for (held_by_a, held_by_b, anchor) in [
            (None, None, None),
            (Some(&origin), Some(&origin), Some(&a)),
            (Some(&origin), Some(&moved), Some(&b)),
            (Some(&moved), Some(&origin), Some(&b)),
            (Some(&origin), Some(&later), Some(&b)),
        ] {
            let marks = [(&a, held_by_a), (&b, held_by_b)];
            assert_eq!(anchor_of(marks.into_iter().filter_map(|(id, mark)| Some((id, mark?)))), anchor);
        }
    }
}
