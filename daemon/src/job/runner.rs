//! The batch loop of one job: triggers, lanes that come and go, batch N's commit beside batch N+1's computation, retries
//! with backoff, and a clean stop. How a lane is had, [`super::acquire`] says.
//!
//! The loop never sleeps longer than [`LONGEST_WAIT`], whatever the trigger: its owner's beats and the watchdog live from
//! its movement. It never spins either: what woke it for nothing is not asked again before [`EMPTY_PAUSE_MIN`].

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::FuturesUnordered};
use rand::RngExt;
use tidemill_checkpoint::{Lane, LaneKey, LaneScheme};
use tidemill_config as config;
use tidemill_connectors::source::{Lag, SourceEvent};
use tokio::sync::{mpsc, watch};

use super::{
    Job,
    batch::{Head, Prepared},
    lane::{AtOnce, LaneError, Owned, Watch, describe_head},
    load::Load,
    pulse::Pulse,
    schemas::Schemas,
};
use crate::status::LaneState;

/// The first wait after a failure; doubled up to [`BACKOFF_MAX`], with jitter.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// The longest wait between two tries.
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// How long a stop waits for the batch that is being committed.
const STOP_LIMIT: Duration = Duration::from_secs(25);
/// The loop moves at least this often: it shows that it lives, reports what waits, and hears of lanes that come and go.
/// With `asap` sources are asked again then, even if none spoke up.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// A source that spoke up and had nothing to plan is not listened to for so long; doubled each time up to
/// [`EMPTY_PAUSE_MAX`]. Once is nothing: word of what the last plan took already, or half a record.
const EMPTY_PAUSE_MIN: Duration = Duration::from_millis(1);
const EMPTY_PAUSE_MAX: Duration = Duration::from_millis(50);
/// A lane that failed has to be without a failure for at least so long, unless it closes a batch.
const QUIET: Duration = Duration::from_secs(2);

/// How a job's loop ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// Told to stop, or with `--once` everything is done.
    Done,
    /// With `--once`: a lane stopped or could not be had.
    Failed(String),
}

pub(super) enum Phase {
    /// Not owned: tried at `at`.
    Wanted { at: Instant, how: AtOnce, watch: Option<Watch>, failures: u32 },
    /// Owned and at work.
    Running(Box<Running>),
    /// An operator has to decide.
    Stopped(String),
}

pub(super) struct Running {
    pub(super) owned: Arc<Owned>,
    pub(super) head: Head,
    /// Failures in a row before this claim. The lane counts as retrying until it gets on: a claim proves little, where a
    /// disk is full it succeeds again and again.
    pub(super) failures: u32,
    /// When it was claimed.
    pub(super) since: Instant,
    /// A batch was tried since then.
    pub(super) tried: bool,
}

impl Running {
    /// Nothing failed any more for as long as a failure was waited for.
    pub(super) fn is_quiet(&self) -> bool {
        self.tried && self.since.elapsed() >= QUIET.max(longest_backoff(self.failures))
    }
}

/// A source that is not listened to for a while.
#[derive(Clone, Copy)]
struct Deaf {
    until: Instant,
    /// Its errors in a row.
    failures: u32,
    /// How often in a row it spoke up and had nothing to plan.
    empty: u32,
}

impl Deaf {
    /// It spoke up, and there was nothing to plan.
    fn for_nothing(&mut self) {
        self.until = Instant::now() + doubled(EMPTY_PAUSE_MIN, self.empty).min(EMPTY_PAUSE_MAX);
        self.empty = self.empty.saturating_add(1);
    }
}

/// The loop of one job.
pub struct Runner {
    pub(super) job: Arc<Job>,
    pub(super) schemas: Schemas,
    pub(super) lanes: BTreeMap<Lane, Phase>,
    pub(super) pulse: Arc<Pulse>,
    /// Sources that have nothing more to give (`--once`).
    pub(super) ended: Vec<bool>,
    started: bool,
    /// Which lane is the first to prepare its batch.
    turn: usize,
    /// `--once`: since when no lane gets on.
    stuck: Option<Instant>,
    /// What the last source that failed said.
    fault: Option<String>,
    /// By source.
    deaf: Vec<Deaf>,
    pub(super) load: Load,
    /// Keys whose beat was refused: another owner has the lane, also where this one has nothing to commit.
    refused: mpsc::Receiver<LaneKey>,
    refuse: mpsc::Sender<LaneKey>,
    pub(super) stop: watch::Receiver<bool>,
}

pub(super) type Commit = Pin<Box<dyn Future<Output = Vec<(Lane, Result<(), LaneError>)>> + Send>>;

/// What ends a wait.
#[derive(PartialEq, Eq)]
enum Wake {
    /// The trigger is due.
    Batch,
    /// This source has something.
    Data(usize),
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
    pub fn new(job: Arc<Job>, pulse: Arc<Pulse>, stop: watch::Receiver<bool>) -> Self {
        let sources = job.sources.len();
        let asap = job.config.trigger == config::Trigger::Asap;
        let (refuse, refused) = mpsc::channel(1);
        Self {
            job,
            schemas: Schemas::default(),
            lanes: BTreeMap::new(),
            pulse,
            ended: vec![false; sources],
            started: false,
            turn: 0,
            stuck: None,
            fault: None,
            deaf: vec![Deaf { until: Instant::now(), failures: 0, empty: 0 }; sources],
            load: Load::new(asap),
            refused,
            refuse,
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
        self.job.lookups.start();
        let beats = tokio::spawn(self.pulse.clone().beat(self.job.clone(), self.refuse.clone()));
        let _beats = AbortOnDrop(beats.abort_handle());
        let ended = self.work().await;
        self.job.account.finish();
        self.job.status.lock().finished = true;
        ended
    }

    /// Claims a lane, does what `decide()` says until every sink is at the head, and lets go. Where that is, in words.
    pub async fn bring_to_head(job: Arc<Job>, lane: &Lane) -> Result<String, LaneError> {
        let (_keep, stop) = watch::channel(false);
        let runner = Self::new(job, Pulse::new(), stop);
        let how = if runner.job.around.take_over { AtOnce::Told } else { AtOnce::Start };
        let running = match runner.acquire(lane, how, &mut None).await? {
            Ok(running) => running,
            Err(reason) => return Err(LaneError::Fenced(format!("lane {lane} is {reason}"))),
        };
        runner.release(lane, &running.owned).await;
        Ok(describe_head(&running.head.mark))
    }

    pub(super) fn want(&mut self, lane: Lane, how: AtOnce) {
        self.job.status.lane(lane.as_str(), LaneState::Starting);
        self.lanes.insert(lane, Phase::Wanted { at: Instant::now(), how, watch: None, failures: 0 });
    }

    pub(super) async fn start_sources(&mut self) -> Result<(), LaneError> {
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

    /// A runner that owns nothing, and waits for another owner, receives nothing.
    pub(super) async fn stop_sources(&mut self) {
        let owns = self.lanes.values().any(|phase| matches!(phase, Phase::Running(_)));
        if self.job.scheme == LaneScheme::Single && self.started && !owns {
            for source in &self.job.sources {
                source.stop().await;
            }
            self.job.status.lock().listening.clear();
            self.started = false;
        }
    }

    async fn work(&mut self) -> Ended {
        let mut commit: Option<Commit> = None;
        let mut next_tick = Instant::now();
        let mut at_once = false;
        loop {
            self.pulse.moved();
            self.acquire_due().await;
            // What a sink refused of the last batches belongs to the work of `--once`.
            let ended = self.finished(commit.is_some());
            let refused = ended == Some(Ended::Done) && self.has_refused().await;
            if let Some(ended) = ended.filter(|_| !refused) {
                // Whoever comes next need not wait until this owner is silent.
                self.shut_down(None).await;
                return ended;
            }
            if commit.is_none() {
                self.note_quiet();
            }
            // A batch that failed is due, whatever the trigger says.
            let retries = self.retrying().any(|(_, running)| !running.tried);
            let due = if at_once || retries { Instant::now() } else { next_tick };
            let (began, is_idle) = (Instant::now(), commit.is_none());
            let wake = if refused { Wake::Batch } else { self.wait(&mut commit, due).await };
            if is_idle {
                self.load.waited(began.elapsed());
            }
            self.tell_load();
            self.job.account.tick();
            match wake {
                Wake::Stop => return self.shut_down(commit).await,
                Wake::Committed | Wake::Lanes => {
                    self.report_lag();
                    continue;
                }
                Wake::Batch | Wake::Data(_) => {}
            }
            next_tick = self.following_tick(next_tick);
            let stop = self.stop.clone();
            // A stop drops what is only prepared: nothing of it is in a sink.
            let Some((prepared, room)) = unless_stopped(stop.clone(), self.prepare_all()).await else {
                return self.shut_down(commit).await;
            };
            at_once = room == Room::Short || prepared.iter().any(|prepared| prepared.batch.full);
            if let Wake::Data(source) = wake {
                let deaf = &mut self.deaf[source];
                if prepared.is_empty() { deaf.for_nothing() } else { deaf.empty = 0 }
            }
            if let Some(mut running) = commit.take() {
                let Some(results) = unless_stopped(stop, &mut running).await else {
                    return self.shut_down(Some(running)).await;
                };
                self.settle(results);
            }
            let group = self.still_valid(prepared);
            if !group.is_empty() {
                self.load.batch();
                let lanes = group.iter().map(|prepared| prepared.batch.lane.clone()).collect();
                let job = self.job.clone();
                commit = Some(Box::pin(settled(lanes, tokio::spawn(async move { job.commit(group).await }))));
            }
            self.report_lag();
        }
    }

    /// Whether a sink refused rows that are not in the dead letters yet.
    async fn has_refused(&self) -> bool {
        for (lane, phase) in &self.lanes {
            if let Phase::Running(running) = phase
                && self.job.has_refused(lane, &running.head.mark.positions).await
            {
                return true;
            }
        }
        false
    }

    /// The next instant of the trigger's grid after now: a late batch does not make the ones after it late.
    fn following_tick(&self, last: Instant) -> Instant {
        match self.job.config.trigger {
            config::Trigger::Asap => Instant::now() + LONGEST_WAIT,
            config::Trigger::Every(interval) => {
                let interval = interval.max(Duration::from_millis(1));
                let behind = Instant::now().saturating_duration_since(last).as_nanos() / interval.as_nanos();
                last + interval * u32::try_from(behind + 1).unwrap_or(u32::MAX)
            }
        }
    }

    /// With `--once`: what keeps the job from getting on, where that has been so for as long as it may.
    fn gives_up(&mut self) -> Option<Ended> {
        let limit = self.job.around.once_limit;
        let gave_up = |why: String| Some(Ended::Failed(format!("gave up after {limit:?} (--timeout): {why}")));
        for source in &self.job.sources {
            if let Some(server) = source.unreachable().filter(|server| server.since.elapsed() >= limit) {
                return gave_up(format!("source {}: {}", source.name(), server.why));
            }
        }
        let works = |phase: &Phase| matches!(phase, Phase::Running(running) if running.failures == 0);
        if !self.lanes.is_empty() && self.lanes.values().all(works) {
            (self.stuck, self.fault) = (None, None);
            return None;
        }
        let since = *self.stuck.get_or_insert_with(Instant::now);
        if since.elapsed() < limit {
            return None;
        }
        let said = self.job.status.snapshot();
        let of_lane = said.lanes.values().find_map(|state| match state {
            LaneState::Waiting { reason } | LaneState::Retrying { reason, .. } => Some(reason.clone()),
            _ => None,
        });
        gave_up(of_lane.or(self.fault.clone()).unwrap_or_else(|| "no lane could be worked on".to_owned()))
    }

    /// With `--once` the job is done when every source has ended and nothing is open.
    fn finished(&mut self, committing: bool) -> Option<Ended> {
        if !self.job.around.once || committing {
            return None;
        }
        if let Some(reason) =
            self.lanes.values().find_map(|phase| if let Phase::Stopped(reason) = phase { Some(reason) } else { None })
        {
            return Some(Ended::Failed(reason.clone()));
        }
        if let Some(ended) = self.gives_up() {
            return Some(ended);
        }
        let running = self.lanes.values().all(|phase| matches!(phase, Phase::Running(_)));
        (running && !self.lanes.is_empty() && self.ended.iter().all(|ended| *ended)).then_some(Ended::Done)
    }

    /// Waits for the trigger, an event of a source, the running commit, a lane that is due, or a stop; never longer than
    /// [`LONGEST_WAIT`].
    async fn wait(&mut self, commit: &mut Option<Commit>, due: Instant) -> Wake {
        let mut seen = self.ended.clone();
        let once = self.job.around.once;
        let owns = self.lanes.values().any(|phase| matches!(phase, Phase::Running(_)));
        // `--once` waits for no trigger when all is read: what is left is the commit, or a lane.
        let batch_due = (owns && !(once && self.ended.iter().all(|ended| *ended))).then_some(due);
        let lane_due = self.lanes.values().filter_map(|phase| match phase {
            Phase::Wanted { at, .. } => Some(*at),
            _ => None,
        });
        let longest = Instant::now() + LONGEST_WAIT;
        let wake_at = lane_due.chain(batch_due).min().map_or(longest, |at| at.min(longest));
        // Records are of use to an owner only; a runner that owns nothing hears of lanes. Beside a commit a batch is prepared
        // where the last one was full: one with the first record that comes would wait with it, and keep the next ones waiting.
        // With `--once` what is there already waits for no trigger; what a peer still sends does.
        let asap = self.job.config.trigger == config::Trigger::Asap;
        let is_due = |idle: bool, complete: bool| owns && ((once && (asap || complete)) || (asap && idle));
        let mut stop = self.stop.clone();
        loop {
            if *stop.borrow_and_update() {
                return Wake::Stop;
            }
            let mut events: FuturesUnordered<_> = self
                .job
                .sources
                .iter()
                .enumerate()
                .filter(|(index, _)| self.started && !seen[*index])
                .map(|(index, source)| {
                    let until = self.deaf[index].until;
                    async move {
                        if until > Instant::now() {
                            tokio::time::sleep_until(until.into()).await;
                        }
                        (index, source.event().await)
                    }
                })
                .collect();
            tokio::select! {
                biased;
                _ = stop.changed() => return Wake::Stop,
                results = async { match commit.as_mut() { Some(running) => running.await, None => std::future::pending().await } } => {
                    *commit = None;
                    drop(events);
                    self.settle(results);
                    return Wake::Committed;
                }
                Some(key) = self.refused.recv() => {
                    drop(events);
                    self.refuse(&key);
                    return Wake::Lanes;
                }
                Some((index, event)) = events.next() => {
                    drop(events);
                    seen[index] = true;
                    if event.is_ok() {
                        self.deaf[index].failures = 0;
                    }
                    match event {
                        Ok(SourceEvent::Data) if is_due(commit.is_none(), self.job.sources[index].is_complete()) => {
                            return Wake::Data(index);
                        }
                        Ok(SourceEvent::Data) => {}
                        Ok(SourceEvent::End) => {
                            self.ended[index] = true;
                            return if commit.is_some() { Wake::Lanes } else { Wake::Batch };
                        }
                        Ok(event) => {
                            self.lanes_move(event, commit).await;
                            return Wake::Lanes;
                        }
                        Err(error) => {
                            let source = self.job.sources[index].name().to_owned();
                            self.fault = Some(format!("source {source}: {error}"));
                            // Else it is said of the lanes that it fails.
                            if !owns {
                                tracing::warn!(job = self.job.name(), source, %error, "source failed");
                            }
                            let deaf = &mut self.deaf[index];
                            deaf.until = Instant::now() + backoff(deaf.failures);
                            deaf.failures += 1;
                            if owns {
                                // A lane is not claimed again under a commit of its own.
                                if let Some(mut running) = commit.take() {
                                    match unless_stopped(self.stop.clone(), &mut running).await {
                                        Some(results) => self.settle(results),
                                        None => {
                                            *commit = Some(running);
                                            return Wake::Stop;
                                        }
                                    }
                                }
                                self.fail_all(&LaneError::of_source(&source, &error));
                                return Wake::Lanes;
                            }
                        }
                    }
                }
                () = tokio::time::sleep_until(wake_at.into()) => {
                    return if batch_due.is_some_and(|due| due <= Instant::now()) { Wake::Batch } else { Wake::Lanes };
                }
            }
        }
    }

    async fn shut_down(&mut self, commit: Option<Commit>) -> Ended {
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
        // Who waits for this daemon's part (a consumer group) need not wait until it is missed.
        for source in &self.job.sources {
            source.stop().await;
        }
        self.lanes_changed();
        Ended::Done
    }

    /// Prepares the next batch of every lane that runs, as many at a time as there are cores and as far as the memory goes.
    /// Each time another lane is the first.
    async fn prepare_all(&mut self) -> (Vec<Prepared>, Room) {
        let Self { job, schemas, lanes, pulse, .. } = self;
        let mut group: Vec<Prepared> = Vec::new();
        let mut failures = Vec::new();
        let mut room = Room::Enough;
        let mut waiting: VecDeque<Lane> = lanes.keys().cloned().collect();
        waiting.rotate_left(self.turn % waiting.len().max(1));
        self.turn = self.turn.wrapping_add(1);
        let mut preparing = FuturesUnordered::new();
        loop {
            while preparing.len() < cores()
                && let Some(lane) = waiting.front()
            {
                let Some(Phase::Running(running)) = lanes.get_mut(lane) else {
                    waiting.pop_front();
                    continue;
                };
                let (memory, bytes) = (&job.around.memory, job.config.batch.max_bytes);
                // The first may wait for what other jobs hold; the others would wait for the first.
                let is_first = group.is_empty() && preparing.is_empty();
                let lease = if is_first { Some(memory.lease(bytes).await) } else { memory.try_lease(bytes) };
                let Some(lease) = lease else { break };
                running.tried = true;
                let (lane, owned, head) = (lane.clone(), running.owned.clone(), running.head.clone());
                waiting.pop_front();
                let (job, schemas) = (&*job, &*schemas);
                preparing.push(async move {
                    let prepared = job.prepare(&lane, &owned, &head, schemas, lease).await;
                    (lane, prepared)
                });
            }
            let Some((lane, prepared)) = preparing.next().await else {
                if !waiting.is_empty() {
                    room = Room::Short;
                }
                break;
            };
            match prepared {
                Ok(Some(prepared)) => {
                    if let Some(Phase::Running(running)) = lanes.get_mut(&lane) {
                        running.head = prepared.batch.next.clone();
                    }
                    group.push(prepared);
                }
                Ok(None) => {}
                Err(error) => failures.push((lane, error)),
            }
            pulse.moved();
        }
        drop(preparing);
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

    pub(super) fn settle(&mut self, results: Vec<(Lane, Result<(), LaneError>)>) {
        for (lane, result) in results {
            match result {
                Ok(()) => self.got_on(&lane),
                Err(error) => self.fail(&lane, error),
            }
        }
        self.pulse.moved();
    }

    fn report_lag(&self) {
        let stands = self.lanes.iter().map(|(lane, phase)| match phase {
            Phase::Running(running) => running.head.mark.positions.clone(),
            // A lane that does not run stands where it was closed last, if it was.
            _ => self.job.status.positions(lane),
        });
        let stands: Vec<_> = stands.collect();
        let all_known = !stands.is_empty() && stands.iter().all(|positions| !positions.is_empty());
        let all_run = self.lanes.values().all(|phase| matches!(phase, Phase::Running(_)));
        for source in &self.job.sources {
            let mut at = tidemill_checkpoint::Positions::new();
            // Where one lane stands is not known, nor is what all of them lack.
            for positions in stands.iter().filter(|_| all_known) {
                at.extend(self.job.positions_of(&**source, positions));
            }
            // What a plan took that was not committed counts for nothing, where the source does not look at positions.
            let is_known = all_known && all_run || source.lag_counts_from_positions();
            let lag = source.lag(&at);
            let lag = if is_known { lag } else { Lag { spool_bytes: lag.spool_bytes, ..Lag::default() } };
            let (metrics, labels) = (&self.job.around.metrics, [self.job.name(), source.name()]);
            let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
            metrics.lag(labels, lag.records.map(whole), lag.oldest.map(|age| age.as_secs_f64()));
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

/// How many lanes are prepared at a time.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The longest wait after so many failures.
fn longest_backoff(failures: u32) -> Duration {
    doubled(BACKOFF_MIN, failures).min(BACKOFF_MAX)
}

/// Twice as long for each time.
fn doubled(first: Duration, times: u32) -> Duration {
    first.saturating_mul(1 << times.min(16))
}

/// Exponential, with half of it random.
pub fn backoff(failures: u32) -> Duration {
    longest_backoff(failures).mul_f64(rand::rng().random_range(0.5..1.0))
}

/// The work's result, or `None` once the job shall stop: the work is dropped then.
pub(super) async fn unless_stopped<T>(mut stop: watch::Receiver<bool>, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => None,
        done = work => Some(done),
    }
}

/// A commit's results. Where it panicked nobody knows what it did: only claims follow.
async fn settled(
    lanes: Vec<Lane>,
    task: tokio::task::JoinHandle<Vec<(Lane, Result<(), LaneError>)>>,
) -> Vec<(Lane, Result<(), LaneError>)> {
    task.await.unwrap_or_else(|error| {
        let failed = LaneError::Transient(format!("the commit failed in the program itself: {error}"));
        lanes.into_iter().map(|lane| (lane, Err(failed.clone()))).collect()
    })
}

/// Ends a task with its owner, whichever way that one ends.
struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
