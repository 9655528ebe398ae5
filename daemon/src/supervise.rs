//! All jobs of a daemon: each in a task of its own, so that one that fails never stops another; signals, reload, systemd.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::FutureExt;
use tidemill_checkpoint::Lane;
use tidemill_config as config;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinHandle,
};

use crate::{
    job::{
        Job, Surroundings, digest_of,
        pulse::Pulse,
        runner::{BACKOFF_MAX, Ended, Runner, backoff},
    },
    progress,
    start::JobSources,
    status::{LaneState, Progress, Status},
    systemd,
};

/// Loops that have not moved for so long are dead to the watchdog; the longest thing that a loop awaits is a commit.
const WATCHDOG_PATIENCE: Duration = Duration::from_secs(600);
/// How often `--once` looks whether its jobs are done.
const ENDED_POLL: Duration = Duration::from_millis(10);
/// A second signal means it only after so long.
const INSISTING: Duration = Duration::from_millis(500);
/// A clean stop takes no longer: what holds a job then (a sink that does not answer) is left, and its batch is replayed at
/// the next start. Below the 30 s that Kubernetes gives.
const STOP_LIMIT: Duration = Duration::from_secs(28);

struct Running {
    config: Arc<config::Job>,
    status: Status,
    stop: watch::Sender<bool>,
    pulse: Arc<Pulse>,
    task: JoinHandle<Ended>,
}

/// The jobs of this process.
pub struct Supervisor {
    around: Surroundings,
    jobs: Mutex<BTreeMap<String, Running>>,
    /// Why the daemon is not ready besides what its jobs say, by what it is about: a job that is not there says nothing.
    held: Mutex<BTreeMap<String, &'static str>>,
    /// Jobs that were started once: `--take-over` is spent by a process's start, not by a reload.
    began: Mutex<BTreeSet<String>>,
    draining: AtomicBool,
}

/// What `/ready` calls the daemon itself.
const DAEMON: &str = "(daemon)";

impl Supervisor {
    /// No job runs yet; not ready before [`Supervisor::begun`].
    pub fn new(around: Surroundings) -> Arc<Self> {
        let held = BTreeMap::from([(DAEMON.to_owned(), "starting")]);
        Arc::new(Self {
            around,
            jobs: Mutex::default(),
            held: Mutex::new(held),
            began: Mutex::default(),
            draining: AtomicBool::new(false),
        })
    }

    /// Every job was started once.
    pub fn begun(&self) {
        self.hold(DAEMON, None);
    }

    /// The daemon is not ready for this reason, or not for it any more.
    pub fn hold(&self, about: &str, reason: Option<&'static str>) {
        let mut held = self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match reason {
            Some(reason) => held.insert(about.to_owned(), reason),
            None => held.remove(about),
        };
    }

    /// What jobs need of the daemon.
    pub fn around(&self) -> &Surroundings {
        &self.around
    }

    fn jobs(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Running>> {
        self.jobs.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Starts a job in a task of its own.
    pub fn start(&self, config: Arc<config::Job>) {
        let status = Status::new(&config.name);
        let (stop, stopped) = watch::channel(false);
        let pulse = Pulse::new();
        let first = self.began.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(config.name.clone());
        let around = Surroundings { take_over: self.around.take_over && first, ..self.around.clone() };
        let task = tokio::spawn(run_job(config.clone(), around, status.clone(), pulse.clone(), stopped));
        self.jobs().insert(config.name.clone(), Running { config, status, stop, pulse, task });
    }

    /// Stops a job cleanly and waits for it. Returns its config, where it ran.
    pub async fn stop(&self, name: &str) -> Option<Arc<config::Job>> {
        let running = self.jobs().remove(name)?;
        let _ = running.stop.send(true);
        let _ = running.task.await;
        Some(running.config)
    }

    /// The config of a job that runs here.
    pub fn config(&self, name: &str) -> Option<Arc<config::Job>> {
        self.jobs().get(name).map(|running| running.config.clone())
    }

    /// The progress of every job.
    pub fn progress(&self) -> Vec<Progress> {
        self.jobs().values().map(|running| running.status.snapshot()).collect()
    }

    /// The job whose loop has not moved for longer than anything that it awaits, and for how long; a job that has ended is
    /// not waited for.
    pub fn stuck(&self) -> Option<(String, Duration)> {
        let jobs = self.jobs();
        let running = jobs.iter().filter(|(_, running)| !running.task.is_finished());
        let silent = running.map(|(name, running)| (name.clone(), running.pulse.silent()));
        silent.filter(|(_, silent)| *silent > WATCHDOG_PATIENCE).max_by_key(|(_, silent)| *silent)
    }

    /// Why the daemon is not ready, by job; empty where it is.
    pub fn not_ready(&self) -> BTreeMap<String, String> {
        let mut reasons: BTreeMap<_, _> =
            self.progress().into_iter().filter_map(|p| Some((p.job.clone(), p.not_ready()?))).collect();
        let held = self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        reasons.extend(held.iter().map(|(about, reason)| (about.clone(), (*reason).to_owned())));
        if self.draining.load(Ordering::Relaxed) {
            reasons.insert(DAEMON.into(), "stopping".into());
        }
        reasons
    }

    /// Takes over new, changed and removed jobs. A job whose new file is wrong is not in `jobs` and keeps running.
    pub async fn reload(&self, jobs: Vec<config::Job>, wrong: &[PathBuf]) {
        let names: Vec<_> = jobs.iter().map(|job| job.name.clone()).collect();
        let removed: Vec<_> = self
            .jobs()
            .iter()
            .filter(|(name, running)| !names.contains(name) && !wrong.contains(&running.config.file))
            .map(|(name, _)| name.clone())
            .collect();
        for name in removed {
            tracing::info!(job = name, "removed");
            self.stop(&name).await;
            self.around.metrics.forget(&name);
        }
        for job in jobs {
            let same =
                self.config(&job.name).is_some_and(|old| digest_of(&old) == digest_of(&job) && old.file == job.file);
            if same {
                if self.is_stopped(&job.name) {
                    tracing::info!(job = job.name, "was stopped: started again");
                    self.stop(&job.name).await;
                    self.start(Arc::new(job));
                }
                continue;
            }
            if self.stop(&job.name).await.is_some() {
                tracing::info!(job = job.name, "changed: started anew");
            }
            self.start(Arc::new(job));
        }
    }

    /// Whether a lane of the job waits for an operator.
    fn is_stopped(&self, name: &str) -> bool {
        let jobs = self.jobs();
        let lanes = jobs.get(name).map(|running| running.status.snapshot().lanes);
        lanes.is_some_and(|lanes| lanes.values().any(|state| matches!(state, LaneState::Stopped { .. })))
    }

    /// Stops a job and starts it again, from the text that its file has now. What a wrong text would be is an error, and the
    /// job runs on as it was.
    pub async fn restart(&self, name: &str) -> anyhow::Result<()> {
        let Some(running) = self.config(name) else { anyhow::bail!("the daemon runs no job {name}") };
        let job = JobSources::load_one(&running.file)?;
        anyhow::ensure!(
            job.name == name,
            "{} holds the job {} now: reload the daemon (SIGHUP)",
            running.file.display(),
            job.name
        );
        tracing::info!(job = name, "restarted by `tidemill restart`");
        self.hold(name, Some("restarting"));
        self.stop(name).await;
        self.start(Arc::new(job));
        self.hold(name, None);
        Ok(())
    }

    /// Stops every job cleanly, at the same time.
    pub async fn stop_all(&self) {
        self.draining.store(true, Ordering::Relaxed);
        let all = std::mem::take(&mut *self.jobs());
        for running in all.values() {
            let _ = running.stop.send(true);
        }
        for (name, running) in all {
            if let Err(error) = running.task.await {
                tracing::error!(job = name, %error, "the job's task failed");
            }
        }
    }

    /// Waits until every job has ended by itself (`--once`). Until then they can be seen and stopped.
    async fn ended(&self) -> Vec<(String, Ended)> {
        while !self.jobs().values().all(|running| running.task.is_finished()) {
            tokio::time::sleep(ENDED_POLL).await;
        }
        let all = std::mem::take(&mut *self.jobs());
        let mut ends = Vec::new();
        for (name, running) in all {
            let end =
                running.task.await.unwrap_or_else(|error| Ended::Failed(format!("the job's task failed: {error}")));
            ends.push((name, end));
        }
        ends
    }

    /// Jobs that have not ended yet.
    fn at_work(&self) -> BTreeSet<String> {
        let jobs = self.jobs();
        jobs.iter().filter(|(_, running)| !running.task.is_finished()).map(|(name, _)| name.clone()).collect()
    }

    fn statuses(&self) -> Vec<Status> {
        self.jobs().values().map(|running| running.status.clone()).collect()
    }
}

/// Runs a job to its end. One that cannot be opened, or that failed in the program itself, is tried again with backoff:
/// whatever happens in it, it happens to no other job.
async fn run_job(
    config: Arc<config::Job>,
    around: Surroundings,
    status: Status,
    pulse: Arc<Pulse>,
    stop: watch::Receiver<bool>,
) -> Ended {
    let job = config.name.clone();
    let mut failures = 0;
    loop {
        let begun = Instant::now();
        pulse.moved();
        let attempt =
            tokio::spawn(open_and_run(config.clone(), around.clone(), status.clone(), pulse.clone(), stop.clone()));
        let reason = match attempt.await {
            Ok(Ended::Done) => return Ended::Done,
            Ok(Ended::Failed(reason)) => reason,
            Err(error) => format!("the job failed in the program itself: {error}"),
        };
        around.metrics.job_up.with_label_values(&[&job]).set(0);
        if around.once {
            return Ended::Failed(reason);
        }
        let wait = backoff(if begun.elapsed() > BACKOFF_MAX { 0 } else { failures });
        failures += 1;
        tracing::error!(job, failures, wait_ms = wait.as_millis(), "cannot run: {reason}; tried again");
        status.restart();
        status.lane(Lane::single().as_str(), LaneState::Retrying { reason, failures });
        let mut told = stop.clone();
        tokio::select! {
            _ = told.wait_for(|stop| *stop) => return Ended::Done,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn open_and_run(
    config: Arc<config::Job>,
    around: Surroundings,
    status: Status,
    pulse: Arc<Pulse>,
    stop: watch::Receiver<bool>,
) -> Ended {
    match Job::open(config, around, status.clone()).await {
        Ok(job) => {
            status.restart();
            Runner::new(Arc::new(job), pulse, stop).run().await
        }
        Err(error) => Ended::Failed(format!("{error:#}")),
    }
}

/// How `--once` is shown and judged.
pub struct Once {
    /// Draw a bar.
    pub show_progress: bool,
    /// `--fail-on-rejects`
    pub fail_on_rejects: bool,
}

/// Everything is done, and records were rejected (sysexits.h: `EX_DATAERR`), with `--fail-on-rejects`.
const EXIT_REJECTS: u8 = 65;

/// Where a daemon's jobs come from, for a reload.
pub type Loader = Box<dyn Fn() -> Option<(Vec<config::Job>, Vec<PathBuf>)> + Send + Sync>;

/// Runs until a signal, or with `--once` until every job is done. The exit code: with `--once` a signal leaves work undone,
/// which is a failure.
pub async fn run(supervisor: Arc<Supervisor>, loader: Loader, how: Once) -> anyhow::Result<u8> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    systemd::notify("READY=1\nSTATUS=running");
    let watchdog = tokio::spawn(watchdog(supervisor.clone()));
    let once = supervisor.around.once;
    let (statuses, begun) = (supervisor.statuses(), Instant::now());
    let drawing = (once && how.show_progress).then(|| tokio::spawn(progress::draw(statuses.clone())));
    let waiting = supervisor.clone();
    let mut ended =
        std::pin::pin!(async move { if once { waiting.ended().await } else { std::future::pending().await } });
    let undone = loop {
        tokio::select! {
            ends = &mut ended => break report(ends),
            _ = terminate.recv() => break stop(&supervisor, &mut terminate, &mut interrupt).await,
            _ = interrupt.recv() => break stop(&supervisor, &mut terminate, &mut interrupt).await,
            _ = hangup.recv() => {
                if once {
                    tracing::info!("no reload: --once works off what the jobs were at the start");
                    continue;
                }
                systemd::notify(&format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic_usec()));
                tracing::info!("reloading jobs");
                let wrong = match loader() {
                    Some((jobs, wrong)) => {
                        supervisor.reload(jobs, &wrong).await;
                        wrong.len()
                    }
                    None => 1,
                };
                supervisor.around.metrics.reloaded(wrong == 0);
                // The reload is over either way; whether it went well is in the status and in the metrics.
                systemd::notify(&match wrong {
                    0 => "READY=1\nSTATUS=running".to_owned(),
                    _ => format!("READY=1\nSTATUS=running; {wrong} files were wrong at the last reload, see the log"),
                });
            }
        }
    };
    watchdog.abort();
    if let Some(drawing) = drawing {
        drawing.abort();
        let _ = drawing.await;
    }
    if once {
        progress::conclude(&statuses, &undone, begun);
    }
    let rejected = statuses.iter().any(|status| status.lock().rejected > 0);
    Ok(match (once, undone.is_empty()) {
        (true, false) => 1,
        (true, true) if how.fail_on_rejects && rejected => EXIT_REJECTS,
        _ => 0,
    })
}

fn monotonic_usec() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1_000
}

/// A clean stop; a second signal ends the process at once, which loses nothing either. The jobs that were at work.
async fn stop(
    supervisor: &Supervisor,
    terminate: &mut tokio::signal::unix::Signal,
    interrupt: &mut tokio::signal::unix::Signal,
) -> BTreeSet<String> {
    let at_work = supervisor.at_work();
    systemd::notify("STOPPING=1");
    tracing::info!("stopping: the open batches are finished first");
    let insisted = async {
        // One request may come as two signals, to the process and to its group.
        tokio::time::sleep(INSISTING).await;
        while terminate.recv().now_or_never().is_some() || interrupt.recv().now_or_never().is_some() {}
        tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
    };
    tokio::select! {
        () = supervisor.stop_all() => tracing::info!("stopped"),
        () = tokio::time::sleep(STOP_LIMIT) => tracing::warn!("not stopped within {STOP_LIMIT:?}: ending at once; open batches are replayed at the next start"),
        () = insisted => tracing::warn!("second signal: stopping at once; open batches are replayed at the next start"),
    }
    at_work
}

/// The jobs that failed.
fn report(ends: Vec<(String, Ended)>) -> BTreeSet<String> {
    let failed = ends.into_iter().filter_map(|(job, end)| match end {
        Ended::Failed(reason) => {
            tracing::error!(job, "failed: {reason}");
            Some(job)
        }
        Ended::Done => None,
    });
    failed.collect()
}

/// Fed while every job's loop moves: one that hangs is a reason to begin anew, which loses nothing.
async fn watchdog(supervisor: Arc<Supervisor>) {
    let Some(interval) = systemd::watchdog_interval() else { return };
    loop {
        tokio::time::sleep(interval).await;
        match supervisor.stuck() {
            None => systemd::notify("WATCHDOG=1"),
            Some((job, silent)) => {
                tracing::error!(job, "the batch loop has not moved for {silent:?}: the watchdog is not fed");
            }
        }
    }
}
