//! The batch loop of one job: triggers, lanes that come and go, batch N's commit beside batch N+1's computation, retries
//! with backoff, and a clean stop.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::FuturesUnordered};
use rand::RngExt;
use tidemill_checkpoint::{Decision, Digest, Lane, LaneKey, LaneScheme, LogName, Mark};
use tidemill_config as config;
use tidemill_connectors::source::{History, SourceEvent};
use tokio::sync::watch;

use super::{
    Job,
    batch::{Head, Prepared},
    compile::Pinned,
    lane::{AtOnce, LaneError, Owned, Watch, describe_head, joined_after, stop_text},
    schemas::{Schemas, parse_schema, schema_log},
};
use crate::status::LaneState;

/// The first wait after a failure; doubled up to [`BACKOFF_MAX`], with jitter.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// The longest wait between two tries.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// How long a stop waits for the batch that is being committed.
const STOP_LIMIT: Duration = Duration::from_secs(25);
/// With `asap`, sources are asked again after this time even if none spoke up.
const ASAP_LONGEST_WAIT: Duration = Duration::from_secs(1);

/// How a job's loop ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// Told to stop, or with `--once` everything is done.
    Done,
    /// With `--once`: a lane stopped or could not be had.
    Failed(String),
}

enum Phase {
    /// Not owned: tried at `at`.
    Wanted { at: Instant, how: AtOnce, watch: Option<Watch>, failures: u32 },
    /// Owned and at work.
    Running(Box<Running>),
    /// An operator has to decide.
    Stopped(String),
}

struct Running {
    owned: Arc<Owned>,
    head: Head,
}

/// The loop of one job.
pub struct Runner {
    job: Arc<Job>,
    schemas: Schemas,
    lanes: BTreeMap<Lane, Phase>,
    /// Keys whose beats are sent, shared with the beating task.
    beating: Arc<Mutex<Vec<LaneKey>>>,
    progress: Arc<AtomicU64>,
    begun: Instant,
    ended: Vec<bool>,
    started: bool,
    /// Which lane is the first to prepare its batch.
    turn: usize,
    stop: watch::Receiver<bool>,
}

type Commit = Pin<Box<dyn Future<Output = Vec<(Lane, Result<(), LaneError>)>> + Send>>;

/// What ends a wait.
#[derive(PartialEq, Eq)]
enum Wake {
    Batch,
    Committed,
    Stop,
    Lanes,
}

/// Whether the memory was enough for every lane.
#[derive(PartialEq, Eq)]
enum Room {
    Enough,
    Short,
}

impl Runner {
    /// A loop that has not begun. `stop` turns true when the job shall stop cleanly.
    pub fn new(job: Arc<Job>, stop: watch::Receiver<bool>) -> Self {
        let sources = job.sources.len();
        Self {
            job,
            schemas: Schemas::default(),
            lanes: BTreeMap::new(),
            beating: Arc::default(),
            progress: Arc::default(),
            begun: Instant::now(),
            ended: vec![false; sources],
            started: false,
            turn: 0,
            stop,
        }
    }

    /// Runs until told to stop; with `--once` until everything is worked off.
    pub async fn run(mut self) -> Ended {
        if let Err(error) = self.job.keep_text() {
            tracing::warn!(job = self.job.name(), %error, "the job's text cannot be kept; a batch that is open while the job is edited could not be replayed");
        }
        if self.job.scheme == LaneScheme::Single {
            let how = if self.job.around.take_over { AtOnce::Told } else { AtOnce::Start };
            self.want(Lane::single(), how);
        } else if let Err(error) = self.start_sources().await {
            return Ended::Failed(error.to_string());
        }
        if self.job.around.once {
            self.job.sources.iter().for_each(|source| source.finish());
        }
        let beats = tokio::spawn(beat(self.job.clone(), self.beating.clone(), self.progress.clone(), self.begun));
        let ended = self.work().await;
        beats.abort();
        self.job.status.lock().finished = true;
        ended
    }

    /// Claims a lane, does what `decide()` says until every sink is at the head, and lets go. Where that is, in words.
    pub async fn bring_to_head(job: Arc<Job>, lane: &Lane) -> Result<String, LaneError> {
        let (_keep, stop) = watch::channel(false);
        let runner = Self::new(job, stop);
        let how = if runner.job.around.take_over { AtOnce::Told } else { AtOnce::Start };
        let running = match runner.acquire(lane, how, &mut None).await? {
            Ok(running) => running,
            Err(reason) => return Err(LaneError::Fenced(format!("lane {lane} is {reason}"))),
        };
        runner.release(lane, &running.owned).await;
        Ok(describe_head(&running.head.mark))
    }

    fn want(&mut self, lane: Lane, how: AtOnce) {
        self.job.status.lane(lane.as_str(), LaneState::Starting);
        self.lanes.insert(lane, Phase::Wanted { at: Instant::now(), how, watch: None, failures: 0 });
    }

    async fn start_sources(&mut self) -> Result<(), LaneError> {
        if self.started {
            return Ok(());
        }
        for source in &self.job.sources {
            source.start().await.map_err(|error| LaneError::of_source(source.name(), &error))?;
            if let Some(address) = source.listening() {
                self.job.status.lock().listening.insert(source.name().to_owned(), address.to_string());
            }
        }
        self.started = true;
        Ok(())
    }

    async fn work(&mut self) -> Ended {
        let mut commit: Option<Commit> = None;
        let mut next_tick = Instant::now();
        let mut at_once = false;
        loop {
            moved(&self.progress, self.begun);
            self.acquire_due().await;
            if let Some(ended) = self.finished(commit.is_some()) {
                return ended;
            }
            let due = if at_once { Instant::now() } else { next_tick };
            match self.wait(&mut commit, due).await {
                Wake::Stop => {
                    self.shut_down(commit).await;
                    return Ended::Done;
                }
                Wake::Committed | Wake::Lanes => continue,
                Wake::Batch => {}
            }
            next_tick = self.following_tick(next_tick);
            let (prepared, room) = self.prepare_all().await;
            at_once = room == Room::Short || prepared.iter().any(|prepared| prepared.batch.full);
            self.report_lag();
            if let Some(running) = commit.take() {
                let results = running.await;
                self.settle(results);
            }
            let group = self.still_valid(prepared);
            if !group.is_empty() {
                let job = self.job.clone();
                commit = Some(Box::pin(flatten(tokio::spawn(async move { job.commit(group).await }))));
            }
        }
    }

    /// The next instant of the trigger's grid after now: a late batch does not make the ones after it late.
    fn following_tick(&self, last: Instant) -> Instant {
        match self.job.config.trigger {
            config::Trigger::Asap => Instant::now() + ASAP_LONGEST_WAIT,
            config::Trigger::Every(interval) => {
                let interval = interval.max(Duration::from_millis(1));
                let behind = Instant::now().saturating_duration_since(last).as_nanos() / interval.as_nanos();
                last + interval * u32::try_from(behind + 1).unwrap_or(u32::MAX)
            }
        }
    }

    /// With `--once` the job is done when every source has ended and nothing is open.
    fn finished(&self, committing: bool) -> Option<Ended> {
        if !self.job.around.once || committing {
            return None;
        }
        if let Some(reason) =
            self.lanes.values().find_map(|phase| if let Phase::Stopped(reason) = phase { Some(reason) } else { None })
        {
            return Some(Ended::Failed(reason.clone()));
        }
        let running = self.lanes.values().all(|phase| matches!(phase, Phase::Running(_)));
        (running && !self.lanes.is_empty() && self.ended.iter().all(|ended| *ended)).then_some(Ended::Done)
    }

    /// Waits for the trigger, an event of a source, the running commit, a lane that is due, or a stop.
    async fn wait(&mut self, commit: &mut Option<Commit>, due: Instant) -> Wake {
        let asap = self.job.config.trigger == config::Trigger::Asap;
        let mut seen = self.ended.clone();
        let owns = self.lanes.values().any(|phase| matches!(phase, Phase::Running(_)));
        loop {
            if *self.stop.borrow() {
                return Wake::Stop;
            }
            // `--once` never waits for a trigger: what is there is worked off.
            let hurry = self.job.around.once && owns && self.ended.iter().all(|ended| *ended);
            let lane_due = self
                .lanes
                .values()
                .filter_map(|phase| if let Phase::Wanted { at, .. } = phase { Some(*at) } else { None })
                .min();
            let wake_at = if owns && !hurry { due } else { lane_due.unwrap_or(due) };
            let earliest = lane_due.map_or(wake_at, |at| at.min(wake_at));
            let mut events: FuturesUnordered<_> = self
                .job
                .sources
                .iter()
                .enumerate()
                .filter(|(index, _)| self.started && !seen[*index])
                .map(|(index, source)| async move { (index, source.event().await) })
                .collect();
            let mut stop = self.stop.clone();
            tokio::select! {
                biased;
                _ = stop.changed() => return Wake::Stop,
                results = async { match commit.as_mut() { Some(running) => running.await, None => std::future::pending().await } } => {
                    *commit = None;
                    drop(events);
                    self.settle(results);
                    return Wake::Committed;
                }
                Some((index, event)) = events.next() => {
                    drop(events);
                    seen[index] = true;
                    match event {
                        Ok(SourceEvent::Data) if asap || self.job.around.once => return Wake::Batch,
                        Ok(SourceEvent::Data) => {}
                        Ok(SourceEvent::End) => {
                            self.ended[index] = true;
                            return if commit.is_some() { Wake::Lanes } else { Wake::Batch };
                        }
                        Ok(SourceEvent::Assigned(lanes)) => {
                            lanes.into_iter().for_each(|lane| self.want(lane, AtOnce::Told));
                            return Wake::Lanes;
                        }
                        Ok(SourceEvent::Revoked(lanes, limit)) => {
                            self.let_go(lanes, commit, limit).await;
                            return Wake::Lanes;
                        }
                        Ok(SourceEvent::Lost(lanes)) => {
                            lanes.iter().for_each(|lane| { self.lanes.remove(lane); });
                            return Wake::Lanes;
                        }
                        Err(error) => {
                            let source = self.job.sources[index].name();
                            tracing::warn!(job = self.job.name(), source, %error, "source failed");
                            self.fail_all(&LaneError::of_source(source, &error));
                            return Wake::Lanes;
                        }
                    }
                }
                () = tokio::time::sleep_until(earliest.into()) => {
                    return if owns && Instant::now() >= due { Wake::Batch } else { Wake::Lanes };
                }
            }
        }
    }

    /// Revoked lanes: the running commit is awaited within the limit, then they are released.
    async fn let_go(&mut self, lanes: Vec<Lane>, commit: &mut Option<Commit>, limit: Duration) {
        if let Some(running) = commit.take() {
            match tokio::time::timeout(limit, running).await {
                Ok(results) => self.settle(results),
                Err(_) => tracing::warn!(
                    job = self.job.name(),
                    "a revoked lane's batch is abandoned: its commit took longer than {limit:?}"
                ),
            }
        }
        for lane in lanes {
            if let Some(Phase::Running(running)) = self.lanes.remove(&lane) {
                self.release(&lane, &running.owned).await;
            }
            self.job.status.lane(lane.as_str(), LaneState::Released);
        }
        self.share_keys();
    }

    async fn release(&self, lane: &Lane, owned: &Owned) {
        for (id, key) in &owned.keys {
            if let Some(slot) = self.job.sink(id)
                && let Err(error) = slot.sink.release(key).await
            {
                tracing::warn!(job = self.job.name(), lane = %lane, sink = slot.name, %error, "the lane could not be released; the next owner waits until this one is silent");
            }
        }
    }

    async fn shut_down(&mut self, commit: Option<Commit>) {
        if let Some(running) = commit {
            match tokio::time::timeout(STOP_LIMIT, running).await {
                Ok(results) => self.settle(results),
                Err(_) => tracing::warn!(
                    job = self.job.name(),
                    "the open batch is abandoned: its commit took longer than {STOP_LIMIT:?}; it is replayed at the next start"
                ),
            }
        }
        for (lane, phase) in std::mem::take(&mut self.lanes) {
            if let Phase::Running(running) = phase {
                self.release(&lane, &running.owned).await;
            }
            self.job.status.lane(lane.as_str(), LaneState::Released);
        }
        self.share_keys();
    }

    /// Prepares the next batch of every lane that runs, one after the other, as far as the memory goes. Each time another
    /// lane is the first.
    async fn prepare_all(&mut self) -> (Vec<Prepared>, Room) {
        let mut group = Vec::new();
        let mut failures = Vec::new();
        let mut room = Room::Enough;
        let mut lanes: Vec<Lane> = self.lanes.keys().cloned().collect();
        let turn = self.turn % lanes.len().max(1);
        lanes.rotate_left(turn);
        self.turn = self.turn.wrapping_add(1);
        for lane in lanes {
            let Some(Phase::Running(running)) = self.lanes.get_mut(&lane) else { continue };
            let (memory, bytes) = (&self.job.around.memory, self.job.config.batch.max_bytes);
            // The first may wait for what other jobs hold; the others would wait for the first.
            let lease = if group.is_empty() {
                tokio::select! {
                    lease = memory.lease(bytes) => Some(lease),
                    _ = self.stop.changed() => None,
                }
            } else {
                memory.try_lease(bytes)
            };
            let Some(lease) = lease else {
                room = Room::Short;
                break;
            };
            match self.job.prepare(&lane, &running.owned, &running.head, &self.schemas, lease).await {
                Ok(Some(prepared)) => {
                    running.head = prepared.batch.next.clone();
                    group.push(prepared);
                }
                Ok(None) => {}
                Err(error) => failures.push((lane.clone(), error)),
            }
            moved(&self.progress, self.begun);
        }
        for (lane, error) in failures {
            self.fail(&lane, error);
        }
        (group, room)
    }

    /// Drops what was prepared on a head that did not become true: its lane is not running any more.
    fn still_valid(&self, prepared: Vec<Prepared>) -> Vec<Prepared> {
        prepared
            .into_iter()
            .filter(|prepared| matches!(self.lanes.get(&prepared.batch.lane), Some(Phase::Running(_))))
            .collect()
    }

    fn settle(&mut self, results: Vec<(Lane, Result<(), LaneError>)>) {
        for (lane, result) in results {
            match result {
                Ok(()) => {
                    if self.job.status.lane(lane.as_str(), LaneState::Running) {
                        tracing::info!(job = self.job.name(), lane = %lane, "running again");
                    }
                }
                Err(error) => self.fail(&lane, error),
            }
        }
        moved(&self.progress, self.begun);
    }

    fn fail_all(&mut self, error: &LaneError) {
        for lane in self.lanes.keys().cloned().collect::<Vec<_>>() {
            self.fail(&lane, error.clone());
        }
    }

    /// What a failure makes of a lane. Its keys are dropped: only a claim follows.
    fn fail(&mut self, lane: &Lane, error: LaneError) {
        let failures = match self.lanes.get(lane) {
            Some(Phase::Wanted { failures, .. }) => *failures,
            _ => 0,
        };
        let job = self.job.name().to_owned();
        let (phase, state) = match error {
            LaneError::Transient(reason) => {
                let wait = backoff(failures);
                tracing::warn!(job, lane = %lane, failures = failures + 1, wait_ms = wait.as_millis(), "{reason}; tried again");
                let at = Instant::now() + wait;
                (
                    Phase::Wanted { at, how: AtOnce::Mine, watch: None, failures: failures + 1 },
                    LaneState::Retrying { reason, failures: failures + 1 },
                )
            }
            LaneError::Fenced(reason) => {
                tracing::warn!(job, lane = %lane, "fenced: {reason}");
                (
                    Phase::Wanted {
                        at: Instant::now() + self.peek_interval(),
                        how: AtOnce::No,
                        watch: None,
                        failures: 0,
                    },
                    LaneState::Waiting { reason },
                )
            }
            LaneError::Stop(reason) => {
                tracing::error!(job, lane = %lane, "stopped: {reason}");
                (Phase::Stopped(reason.clone()), LaneState::Stopped { reason })
            }
        };
        self.job.around.metrics.job_up.with_label_values(&[&job]).set(0);
        self.job.status.lane(lane.as_str(), state);
        self.lanes.insert(lane.clone(), phase);
        self.share_keys();
    }

    /// Waits and peeks are in quarters of the time after which a silent owner is taken over.
    fn peek_interval(&self) -> Duration {
        self.job.config.takeover_after / 4
    }

    /// Tries every lane that is wanted and due.
    async fn acquire_due(&mut self) {
        let now = Instant::now();
        let due: Vec<Lane> = self
            .lanes
            .iter()
            .filter(|(_, phase)| matches!(phase, Phase::Wanted { at, .. } if *at <= now))
            .map(|(lane, _)| lane.clone())
            .collect();
        for lane in due {
            let Some(Phase::Wanted { how, mut watch, failures, .. }) = self.lanes.remove(&lane) else { continue };
            match self.acquire(&lane, how, &mut watch).await {
                Ok(Ok(running)) => {
                    tracing::info!(job = self.job.name(), lane = %lane, head = describe_head(&running.head.mark), "lane owned");
                    self.lanes.insert(lane.clone(), Phase::Running(Box::new(running)));
                    self.job.status.lane(lane.as_str(), LaneState::Running);
                    self.job.around.metrics.job_up.with_label_values(&[self.job.name()]).set(1);
                    self.share_keys();
                    if let Err(error) = self.start_sources().await {
                        self.fail(&lane, error);
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
    async fn acquire(
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
        let mut adopted: Option<(Digest, History)> = None;
        loop {
            let closed = self
                .job
                .around
                .ledger
                .closed(self.job.name(), lane)
                .map_err(|error| LaneError::Transient(error.to_string()))?;
            let marks = owned.marks.clone();
            match self.job.decide(&marks, closed.as_ref()) {
                Decision::Origin => {
                    self.job.commit_origin(lane, &owned).await?;
                    self.refresh(lane, &mut owned).await?;
                }
                Decision::Next { head, joined, rewound_from } => {
                    if let Some(before) = rewound_from {
                        tracing::warn!(job = self.job.name(), lane = %lane, was = describe_head(before), now = describe_head(head), "rows and marks went back together (a restored backup?): going on from there");
                    }
                    let history = self.adopted(lane, head, &mut adopted).await?;
                    let pinned = self.pinned(history);
                    let running = Running { head: Head { mark: head.clone(), joined, pinned }, owned: Arc::new(owned) };
                    return Ok(Ok(running));
                }
                Decision::Replay { head, sinks } => {
                    let pinned = self.pinned(self.adopted(lane, head, &mut adopted).await?);
                    self.job.replay(&owned, head, &pinned, &sinks, &self.schemas).await?;
                    self.refresh(lane, &mut owned).await?;
                }
                Decision::CatchUp { head, sink, from, .. } => {
                    let pinned = self.pinned(self.adopted(lane, head, &mut adopted).await?);
                    let own = marks.get(&sink).and_then(Option::as_ref);
                    let head = Head { mark: head.clone(), joined: joined_after(head), pinned };
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
                        return Err(LaneError::Stop(stop_text(lane, &stop)));
                    }
                    return Err(LaneError::Fenced(format!("lane {lane}: another owner claimed it meanwhile")));
                }
            }
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
        let logs: BTreeMap<LogName, &str> =
            self.job.config.sources.iter().map(|source| (schema_log(source), source.name.value.as_str())).collect();
        let entries = history
            .entries
            .iter()
            .filter_map(|entry| Some(((*logs.get(&entry.log)?).to_owned(), parse_schema(&entry.text)?)));
        entries.collect()
    }

    fn share_keys(&self) {
        let keys = self
            .lanes
            .values()
            .filter_map(|phase| if let Phase::Running(running) = phase { Some(&running.owned) } else { None });
        // A beat is a record in the anchor alone.
        let anchors = keys.flat_map(|owned| {
            let anchor = owned.marks.values().flatten().next().map(|mark| mark.anchor().clone());
            owned.keys.values().filter(move |key| anchor.as_ref().is_none_or(|anchor| key.sink == *anchor)).cloned()
        });
        *self.beating.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = anchors.collect();
    }

    fn report_lag(&self) {
        for source in &self.job.sources {
            let mut at = tidemill_checkpoint::Positions::new();
            for phase in self.lanes.values() {
                if let Phase::Running(running) = phase {
                    at.extend(self.job.positions_of(&**source, &running.head.mark.positions));
                }
            }
            let lag = source.lag(&at);
            let (metrics, labels) = (&self.job.around.metrics, [self.job.name(), source.name()]);
            let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
            if let Some(records) = lag.records {
                metrics.source_lag_records.with_label_values(&labels).set(whole(records));
            }
            metrics.source_lag_seconds.with_label_values(&labels).set(lag.oldest.unwrap_or_default().as_secs_f64());
            if let Some(bytes) = lag.spool_bytes {
                metrics.spool_bytes.with_label_values(&labels).set(whole(bytes));
            }
            let shown = crate::status::Lag {
                records: lag.records,
                bytes: lag.bytes,
                seconds: lag.oldest.map(|age| age.as_secs_f64()),
            };
            self.job.status.lock().lag.insert(source.name().to_owned(), shown);
        }
    }
}

/// The loop got on: its beats and the watchdog go on.
fn moved(progress: &AtomicU64, begun: Instant) {
    progress.store(begun.elapsed().as_millis().try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
    crate::supervise::alive();
}

/// Exponential, with half of it random.
fn backoff(failures: u32) -> Duration {
    let full = BACKOFF_MIN.saturating_mul(2_u32.saturating_pow(failures.min(16))).min(BACKOFF_MAX);
    full.mul_f64(rand::rng().random_range(0.5..1.0))
}

async fn flatten(
    task: tokio::task::JoinHandle<Vec<(Lane, Result<(), LaneError>)>>,
) -> Vec<(Lane, Result<(), LaneError>)> {
    task.await.unwrap_or_else(|error| {
        tracing::error!(%error, "the commit panicked");
        Vec::new()
    })
}

/// Says that this owner lives, every quarter of `takeover_after`, for as long as the loop makes progress.
async fn beat(job: Arc<Job>, keys: Arc<Mutex<Vec<LaneKey>>>, progress: Arc<AtomicU64>, begun: Instant) {
    let every = job.config.takeover_after / 4;
    // A batch may take long; a loop that has not moved for so many intervals is not alive.
    let patience = every * 40;
    loop {
        tokio::time::sleep(every).await;
        let silent = begun.elapsed().saturating_sub(Duration::from_millis(progress.load(Ordering::Relaxed)));
        if silent > patience {
            tracing::warn!(job = job.name(), "the batch loop has not moved for {silent:?}: no more beats");
            continue;
        }
        let now = keys.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        for key in now {
            if let Some(slot) = job.sink(&key.sink)
                && let Err(error) = slot.sink.beat(&key).await
            {
                tracing::debug!(job = job.name(), sink = slot.name, %error, "beat failed");
            }
        }
    }
}
