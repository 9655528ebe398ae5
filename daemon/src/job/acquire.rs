//! How a lane is had: peek, wait or claim, then what `decide()` says, until every sink is at the head.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt;
use rand::RngExt;
use tidemill_checkpoint::{Decision, Digest, Lane, LaneScheme, Mark, SinkId};
use tidemill_connectors::source::History;

use super::{
    batch::Head,
    compile::Pinned,
    lane::{AtOnce, LaneError, Owned, Watch, describe_head, joined_after},
    runner::{Phase, Runner, Running},
    schemas::{parse_schema, source_of_log},
    window::Window,
};
use crate::status::LaneState;

/// Lanes that are claimed at a time.
const CLAIMS: usize = 8;

impl Runner {
    /// Waits and peeks are in quarters of the time after which a silent owner is taken over.
    pub(super) fn peek_interval(&self) -> Duration {
        self.job.config.takeover_after / 4
    }

    /// Tries every lane that is wanted and due.
    pub(super) async fn acquire_due(&mut self) {
        let now = Instant::now();
        let due: Vec<Lane> = self
            .lanes
            .iter()
            .filter(|(_, phase)| matches!(phase, Phase::Wanted { at, .. } if *at <= now))
            .map(|(lane, _)| lane.clone())
            .collect();
        let mut tries = Vec::new();
        for lane in due {
            let Some(Phase::Wanted { how, watch, failures, .. }) = self.lanes.remove(&lane) else { continue };
            tries.push((lane, how, watch, failures));
        }
        // A hundred lanes that come at once are not claimed one after the other.
        let this = &*self;
        let tried: Vec<_> = futures::stream::iter(tries)
            .map(|(lane, how, mut watch, failures)| async move {
                let result = this.acquire(&lane, how, &mut watch).await;
                (lane, how, watch, failures, result)
            })
            .buffer_unordered(CLAIMS)
            .collect()
            .await;
        for (lane, how, watch, failures, result) in tried {
            match result {
                Ok(Ok(running)) => {
                    let mark = &running.head.mark;
                    // Positions of many partitions fill a screen: they are in `/jobs/JOB` and `checkpoint show`.
                    tracing::debug!(job = self.job.name(), lane = %lane, head = describe_head(mark), "lane owned");
                    // A job with one lane need not know the word.
                    let named = (self.job.scheme == LaneScheme::Partition).then(|| tracing::field::display(&lane));
                    match mark.plan.seq {
                        0 => {
                            tracing::info!(job = self.job.name(), lane = named, "running: nothing was processed before")
                        }
                        seq => {
                            tracing::info!(job = self.job.name(), lane = named, "running: goes on after batch {seq}")
                        }
                    }
                    let running = Running { failures, ..running };
                    self.lanes.insert(lane.clone(), Phase::Running(Box::new(running)));
                    // What was planned and not committed is planned again: no source is at its end.
                    self.ended.fill(false);
                    // Ready is who listens: not before.
                    match self.start_sources().await {
                        Ok(()) => {
                            if failures == 0 {
                                self.job.status.lane(lane.as_str(), LaneState::Running);
                            }
                            self.lanes_changed();
                        }
                        Err(error) => self.fail(&lane, error),
                    }
                }
                Ok(Err(reason)) => {
                    if self.job.status.lane(lane.as_str(), LaneState::Waiting { reason: reason.clone() }) {
                        tracing::info!(job = self.job.name(), lane = %lane, "waiting: {reason}");
                    }
                    // The event that allowed a claim at once is spent.
                    let how = if how == AtOnce::Mine { AtOnce::Mine } else { AtOnce::No };
                    self.lanes.insert(
                        lane,
                        Phase::Wanted { at: Instant::now() + self.peek_interval(), how, watch, failures },
                    );
                    self.stop_sources().await;
                }
                Err(error) => {
                    self.lanes.insert(lane.clone(), Phase::Wanted { at: now, how, watch, failures });
                    let keep_start = how == AtOnce::Start || how == AtOnce::Told;
                    self.fail(&lane, error);
                    if let Some(Phase::Wanted { how: later, .. }) = self.lanes.get_mut(&lane)
                        && keep_start
                        && *later == AtOnce::Mine
                    {
                        // Nothing was claimed yet perhaps: the event is not spent by a failure that may pass.
                        *later = how;
                    }
                }
            }
        }
    }

    /// Peeks, claims, and does what `decide()` says until the lane is at its head. `Ok(Err(reason))`: another owner has it.
    pub(super) async fn acquire(
        &self,
        lane: &Lane,
        how: AtOnce,
        watch: &mut Option<Watch>,
    ) -> Result<Result<Running, String>, LaneError> {
        let held = self.job.peek(lane).await?;
        let jitter = rand::rng().random_range(0.0..0.25);
        let patience = self.job.config.takeover_after.mul_f64(1.0 + jitter);
        if let Err(reason) = self.job.may_claim(&held, how, watch, patience) {
            return Ok(Err(reason));
        }
        let mut owned = self.job.claim(lane, &held).await?;
        // Its beats are sent while it is brought to its head, which may take long.
        owned.beaten().cloned().into_iter().for_each(|key| self.pulse.add(key));
        let mut adopted: Option<(Digest, History)> = None;
        loop {
            if *self.stop.borrow() {
                self.release(lane, &owned).await;
                return Err(LaneError::Transient(format!("lane {lane}: told to stop")));
            }
            self.pulse.moved();
            let closed = self
                .job
                .around
                .ledger
                .closed(self.job.name(), lane)
                .map_err(|error| LaneError::Transient(error.to_string()))?;
            let marks = owned.marks.clone();
            match self.job.decide(&marks, closed.as_ref()) {
                Decision::Origin => {
                    self.job.begun_alike().await?;
                    // A ledger of another life would be taken for a restored backup after a crash.
                    if let Some(closed) = closed.filter(|_| !owned.keys.contains_key(&SinkId::ledger())) {
                        tracing::warn!(job = self.job.name(), lane = %lane, was = describe_head(&closed), "no sink has a mark any more: they were emptied. The lane begins anew");
                        let forgotten = self.job.around.ledger.forget(self.job.name(), Some(lane));
                        forgotten.map_err(|error| LaneError::Transient(error.to_string()))?;
                    }
                    self.job.commit_origin(lane, &owned).await?;
                    self.refresh(lane, &mut owned).await?;
                }
                Decision::Next { head, joined, rewound_from } => {
                    if let Some(before) = rewound_from {
                        tracing::warn!(job = self.job.name(), lane = %lane, was = describe_head(before), now = describe_head(head), "rows and marks went back together (a restored backup?): going on from there");
                    }
                    self.greet_new_sinks(lane, head, &joined);
                    let history = self.adopted(lane, head, &mut adopted).await?;
                    let pinned = self.pinned(history);
                    self.job.lookups.uses(&head.plan);
                    let head = Head { mark: head.clone(), joined, pinned, window: Window::load(&self.job, lane) };
                    return Ok(Ok(Running {
                        head,
                        owned: Arc::new(owned),
                        failures: 0,
                        since: Instant::now(),
                        tried: false,
                    }));
                }
                Decision::Replay { head, sinks } => {
                    self.job.lookups.uses(&head.plan);
                    let pinned = self.pinned(self.adopted(lane, head, &mut adopted).await?);
                    self.job.replay(&owned, head, &pinned, &sinks, &self.schemas).await?;
                    self.refresh(lane, &mut owned).await?;
                }
                Decision::CatchUp { head, sink, from, .. } => {
                    self.job.lookups.uses(&head.plan);
                    let pinned = self.pinned(self.adopted(lane, head, &mut adopted).await?);
                    let own = marks.get(&sink).and_then(Option::as_ref);
                    let window = Window::default();
                    let head = Head { mark: head.clone(), joined: joined_after(head), pinned, window };
                    tracing::info!(job = self.job.name(), lane = %lane, sink = %sink, from = super::describe(&from), "catching up");
                    self.job.catch_up(&owned, &head, &sink, own, &from, &self.schemas).await?;
                    self.refresh(lane, &mut owned).await?;
                }
                Decision::MoveAnchor { head, to, joined } => {
                    self.job.move_anchor(lane, &owned, head, &to, &joined).await?;
                    self.refresh(lane, &mut owned).await?;
                }
                Decision::Stop(stop) => {
                    if self.job.still_owned(lane, &owned).await? {
                        return Err(LaneError::Stop(stop.to_string()));
                    }
                    return Err(LaneError::Fenced(format!("lane {lane}: another owner claimed it meanwhile")));
                }
            }
        }
    }

    /// A sink that the head does not know begins with the next batch: where that is, and how it gets what came before.
    fn greet_new_sinks(&self, lane: &Lane, head: &Mark, joined: &BTreeMap<SinkId, Option<Digest>>) {
        let is_new = |(id, holds): &(&SinkId, &Option<Digest>)| {
            holds.is_none() && !id.is_local() && **id != SinkId::ledger() && !head.plan.touches.contains_key(*id)
        };
        let begun = head.start != head.positions;
        for (id, _) in joined.iter().filter(is_new).filter(|_| begun) {
            let name = self.job.sink(id).map_or_else(|| id.name(), |slot| &slot.name);
            let command = lane.in_commands(&format!("`tidemill checkpoint resolve --sink {name} --catch-up`"));
            tracing::warn!(
                job = self.job.name(),
                lane = %lane,
                sink = name,
                "this sink is new: it begins after batch {}, at {}, and has nothing of what came before. To fill it with that too: {}",
                head.plan.seq,
                super::describe(&head.positions),
                self.job.around.in_commands(self.job.name(), &command)
            );
        }
    }

    async fn adopted<'h>(
        &self,
        lane: &Lane,
        head: &Mark,
        kept: &'h mut Option<(Digest, History)>,
    ) -> Result<&'h History, LaneError> {
        if kept.as_ref().is_none_or(|(digest, _)| *digest != head.digest) {
            let history = self.job.history(lane, head).await?;
            self.job.adopt(lane, &head.positions, &history).await?;
            *kept = Some((head.digest, history));
        }
        Ok(&kept.as_ref().expect("set just above").1)
    }

    /// Reads the marks once more under the same claims.
    async fn refresh(&self, lane: &Lane, owned: &mut Owned) -> Result<(), LaneError> {
        let held = self.job.peek(lane).await?;
        for (id, now) in held {
            let mine = owned.keys.get(&id).map(|key| key.generation);
            if mine.is_some_and(|generation| now.generation() != generation) {
                return Err(LaneError::Fenced(format!(
                    "lane {lane}: sink {id} was claimed by another owner meanwhile"
                )));
            }
            owned.marks.insert(id, now.mark);
        }
        Ok(())
    }

    /// The pinned schemas in the anchor's logs: the last entry of each.
    fn pinned(&self, history: &History) -> Pinned {
        let entries = history.entries.iter();
        entries.filter_map(|entry| Some((source_of_log(&entry.log)?.to_owned(), parse_schema(&entry.text)?))).collect()
    }
}
