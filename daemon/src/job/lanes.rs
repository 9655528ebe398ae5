//! The lanes of a running job: what failures, passed failures, other owners and the source's own moves make of them.

use std::time::{Duration, Instant};

use tidemill_checkpoint::{Lane, LaneKey};
use tidemill_connectors::source::SourceEvent;

use super::{
    lane::{AtOnce, LaneError, Owned},
    runner::{Commit, Phase, Runner, Running, backoff, unless_stopped},
};
use crate::status::LaneState;

impl Runner {
    /// Lanes that are owned again after a failure and have yet to get on.
    pub(super) fn retrying(&self) -> impl Iterator<Item = (&Lane, &Running)> {
        let running = self.lanes.iter().filter_map(|(lane, phase)| match phase {
            Phase::Running(running) => Some((lane, &**running)),
            _ => None,
        });
        running.filter(|(_, running)| running.failures > 0)
    }

    /// Whether a lane is tried again, or has yet to get on after that.
    pub(super) fn is_failing(&self) -> bool {
        let fails = |phase: &Phase| matches!(phase, Phase::Wanted { failures, .. } if *failures > 0);
        self.retrying().next().is_some() || self.lanes.values().any(fails)
    }

    /// Lanes that have nothing to do and do not fail any more get on.
    pub(super) fn note_quiet(&mut self) {
        let quiet = self.retrying().filter(|(_, running)| running.is_quiet());
        for lane in quiet.map(|(lane, _)| lane.clone()).collect::<Vec<_>>() {
            self.got_on(&lane);
        }
    }

    /// A batch is closed, or there is nothing to do: what failed before has passed, but where a source says that it has not.
    pub(super) fn got_on(&mut self, lane: &Lane) {
        if self.job.sources.iter().any(|source| source.fault().is_some()) {
            return;
        }
        let Some(Phase::Running(running)) = self.lanes.get_mut(lane) else { return };
        running.failures = 0;
        if self.job.status.lane(lane.as_str(), LaneState::Running) {
            tracing::info!(job = self.job.name(), lane = %lane, "running again");
        }
        self.lanes_changed();
    }

    /// A beat was refused: where the lane is still held by that key, it is not any more.
    pub(super) fn refuse(&mut self, key: &LaneKey) {
        let Some(Phase::Running(running)) = self.lanes.get(&key.lane) else { return };
        if running.owned.keys.get(&key.sink) == Some(key) {
            let reason =
                format!("lane {}: sink {} is owned by a newer generation than {}", key.lane, key.sink, key.generation);
            self.fail(&key.lane, LaneError::Fenced(reason));
        }
    }

    /// A source failed: every lane that it works for.
    pub(super) fn fail_all(&mut self, error: &LaneError) {
        let running = self.lanes.iter().filter(|(_, phase)| matches!(phase, Phase::Running(_)));
        for lane in running.map(|(lane, _)| lane.clone()).collect::<Vec<_>>() {
            self.fail(&lane, error.clone());
        }
    }

    /// What a failure makes of a lane. Its keys are dropped: only a claim follows.
    pub(super) fn fail(&mut self, lane: &Lane, error: LaneError) {
        let (failures, watch) = match self.lanes.remove(lane) {
            Some(Phase::Wanted { failures, watch, .. }) => (failures, watch),
            Some(Phase::Running(running)) => (running.failures, None),
            // An operator has to decide: a late failure changes nothing.
            Some(stopped @ Phase::Stopped(_)) => {
                self.lanes.insert(lane.clone(), stopped);
                return;
            }
            // It went elsewhere meanwhile.
            None => return,
        };
        let job = self.job.name();
        let named = |text: &str| self.job.around.in_commands(job, &lane.in_commands(text));
        let (phase, state) = match error {
            LaneError::Transient(reason) => {
                let reason = named(&reason);
                let (wait, failures) = (backoff(failures), failures + 1);
                tracing::warn!(job, lane = %lane, failures, wait_ms = wait.as_millis(), "{reason}; tried again");
                let at = Instant::now() + wait;
                (Phase::Wanted { at, how: AtOnce::Mine, watch, failures }, LaneState::Retrying { reason, failures })
            }
            LaneError::Fenced(reason) => {
                tracing::warn!(job, lane = %lane, "fenced: {reason}");
                let at = Instant::now() + self.peek_interval();
                (Phase::Wanted { at, how: AtOnce::No, watch: None, failures: 0 }, LaneState::Waiting { reason })
            }
            error @ (LaneError::Stop(_) | LaneError::Lost { .. }) => {
                let reason = named(&error.to_string());
                tracing::error!(job, lane = %lane, "stopped: {reason}");
                (Phase::Stopped(reason.clone()), LaneState::Stopped { reason })
            }
        };
        self.job.status.lane(lane.as_str(), state);
        self.lanes.insert(lane.clone(), phase);
        self.lanes_changed();
    }

    /// Tells of the lanes that are owned: whose beats are sent, whether the job is up.
    pub(super) fn lanes_changed(&self) {
        let up = !self.lanes.is_empty()
            && self.lanes.values().all(|phase| matches!(phase, Phase::Running(running) if running.failures == 0));
        self.job.around.metrics.job_up.with_label_values(&[self.job.name()]).set(up.into());
        let mut counts = [0; 4];
        for phase in self.lanes.values() {
            // In the order of `metrics::LANE_STATES`.
            counts[match phase {
                Phase::Running(running) if running.failures == 0 => 0,
                Phase::Wanted { failures: 0, .. } => 1,
                Phase::Running(_) | Phase::Wanted { .. } => 2,
                Phase::Stopped(_) => 3,
            }] += 1;
        }
        self.job.around.metrics.lanes(self.job.name(), counts);
        let running = self.lanes.values().filter_map(|phase| match phase {
            Phase::Running(running) => running.owned.beaten(),
            _ => None,
        });
        self.pulse.set(running.cloned());
    }

    /// Lanes come and go.
    pub(super) async fn lanes_move(&mut self, event: SourceEvent, commit: &mut Option<Commit>) {
        match event {
            SourceEvent::Assigned(lanes) => {
                // A commit of an earlier turn with the lane is over first, so that its end is not taken for this one's.
                if let Some(mut running) = commit.take() {
                    match unless_stopped(self.stop.clone(), &mut running).await {
                        Some(results) => self.settle(results),
                        None => *commit = Some(running),
                    }
                }
                lanes.into_iter().for_each(|lane| self.want(lane, AtOnce::Told));
            }
            SourceEvent::Revoked(lanes, limit) => self.let_go(lanes, commit, limit).await,
            SourceEvent::Lost(lanes) => {
                for lane in lanes {
                    self.lanes.remove(&lane);
                    self.job.status.lane(lane.as_str(), LaneState::Released);
                }
                self.lanes_changed();
            }
            SourceEvent::Data | SourceEvent::End => {}
        }
    }

    /// Revoked lanes: the running commit is awaited within the limit, then they are released.
    pub(super) async fn let_go(&mut self, lanes: Vec<Lane>, commit: &mut Option<Commit>, limit: Duration) {
        let mut abandoned = None;
        if let Some(running) = commit.take() {
            match tokio::time::timeout(limit, running).await {
                Ok(results) => self.settle(results),
                Err(_) => {
                    let reason = format!("a revoked lane's batch is abandoned: its commit took longer than {limit:?}");
                    tracing::warn!(job = self.job.name(), "{reason}");
                    abandoned = Some(reason);
                }
            }
        }
        for lane in lanes {
            if let Some(Phase::Running(running)) = self.lanes.remove(&lane) {
                self.release(&lane, &running.owned).await;
            }
            for source in &self.job.sources {
                source.let_go(&lane).await;
            }
            self.job.status.lane(lane.as_str(), LaneState::Released);
        }
        if let Some(reason) = abandoned {
            // The other lanes of that commit stand on a head that may not come true: they are claimed anew.
            self.fail_all(&LaneError::Transient(reason));
        }
        self.lanes_changed();
    }

    pub(super) async fn release(&self, lane: &Lane, owned: &Owned) {
        for (id, key) in &owned.keys {
            if let Some(slot) = self.job.sink(id)
                && let Err(error) = slot.sink.release(key).await
            {
                tracing::warn!(job = self.job.name(), lane = %lane, sink = slot.name, %error, "the lane could not be released; the next owner waits until this one is silent");
            }
        }
    }
}
