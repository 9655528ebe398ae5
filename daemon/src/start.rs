//! From arguments and files to a running daemon.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use tidemill_checkpoint::{Ledger, Owner, ledger::sled::SledLedger};
use tidemill_config::{self as config, ProcessEnvironment};
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::{
    ConfigError,
    checkpoint::{self, Request},
    cli::RunArguments,
    clock::Clock,
    control, explain, http,
    job::{JOB_FILE, JOB_PLACE, Surroundings, quoted},
    log_lines,
    memory::Memory,
    metrics::Metrics,
    progress, serve,
    supervise::{self, Supervisor},
};

/// How long `--once` waits for a server that cannot be reached, where nobody says otherwise.
pub const ONCE_LIMIT: Duration = Duration::from_secs(5 * 60);

/// The data dir where nobody says otherwise.
pub const DATA_DIR: &str = "tidemill-data";

/// The daemon's own file; all defaults where there is none.
fn load(file: Option<&Path>) -> Result<config::Daemon, ConfigError> {
    match file {
        Some(file) => config::Daemon::load(file, &ProcessEnvironment),
        None => config::Daemon::parse("", Path::new("tidemill.yaml"), &ProcessEnvironment),
    }
    .map_err(|errors| ConfigError(errors.to_string()))
}

/// `tidemill run`.
pub async fn run(arguments: RunArguments) -> anyhow::Result<u8> {
    let daemon = load(arguments.config.as_deref())?;
    init_logs(daemon.log.json, &daemon.log.level)?;
    raise_descriptor_limit();
    let sources = JobSources { files: arguments.jobs.clone(), config: arguments.config.clone() };
    let jobs = sources.load()?;
    for job in &jobs {
        explain::check(job)?;
    }
    // The control socket is bound under the path as it was given: a socket's path may have 107 bytes, and an absolute
    // one could have more.
    let data_dir = arguments.data_dir.clone().unwrap_or(daemon.data_dir);
    let around = open(Settings {
        data_dir: data_dir.clone(),
        owner: daemon.owner,
        memory: daemon.memory,
        take_over: arguments.take_over,
        once: arguments.once,
        once_limit: arguments.timeout,
    })?;
    tracing::info!(data_dir = %around.data_dir.display(), "data dir");
    let supervisor = Supervisor::new(around);
    let address = arguments.http.clone().or_else(|| (!arguments.once).then_some(daemon.http));
    let listener = match &address {
        Some(address) => Some(listen_http(address).await?),
        None => None,
    };
    if let Err(error) = control::serve(supervisor.clone(), &data_dir) {
        tracing::warn!("no control socket: {error:#}; `tidemill checkpoint` cannot reach this daemon");
    }
    for job in jobs {
        supervisor.start(Arc::new(job));
    }
    // Not before there are jobs: a daemon that has none would call itself ready.
    if let Some(listener) = listener {
        serve_http(&supervisor, listener, &daemon.http_hosts)?;
    }
    supervisor.begun();
    let loader = Box::new(move || sources.reload());
    let how =
        supervise::Once { show_progress: std::io::stderr().is_terminal(), fail_on_rejects: arguments.fail_on_rejects };
    let code = supervise::run(supervisor.clone(), loader, how).await;
    let _ = std::fs::remove_file(control::path(&data_dir));
    code
}

/// The soft limit of open files is made for programs of another age (1,024): up to the hard limit it is this process's own
/// choice. Sockets, HTTP and sinks bound themselves.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const WANTED: u64 = 65_536;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.unwrap_or(u64::MAX).min(WANTED);
    if current.is_some_and(|current| current < wanted)
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum })
    {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

async fn listen_http(address: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("HTTP cannot listen on {address}: is another daemon running? Choose another address with --http")
    })
}

fn serve_http(supervisor: &Arc<Supervisor>, listener: TcpListener, hosts: &[String]) -> anyhow::Result<()> {
    tracing::info!(address = %listener.local_addr()?, "HTTP: /metrics, /live, /ready, /jobs");
    let hosts = serve::Hosts::new(&host_name(), hosts);
    tokio::spawn(serve::serve(listener, http::router(supervisor.clone()), hosts));
    Ok(())
}

/// Where jobs come from: files on the command line, else the globs of the daemon's file.
pub struct JobSources {
    files: Vec<PathBuf>,
    config: Option<PathBuf>,
}

impl JobSources {
    fn paths(&self) -> anyhow::Result<Vec<PathBuf>> {
        if !self.files.is_empty() {
            return Ok(self.files.clone());
        }
        let Some(file) = &self.config else {
            bail!("no job: name one (`tidemill run JOB.yaml`), or a daemon's file with --config")
        };
        load(Some(file))?.job_files().map_err(|errors| ConfigError(errors.to_string()).into())
    }

    /// All jobs, or the errors of all that are wrong.
    fn load(&self) -> anyhow::Result<Vec<config::Job>> {
        config::Job::load_all(&self.paths()?, &ProcessEnvironment)
            .map_err(|errors| ConfigError(errors.to_string()).into())
    }

    /// One job once more, from the file that it has.
    pub fn load_one(file: &Path) -> anyhow::Result<config::Job> {
        let job = config::Job::load(file, &ProcessEnvironment).map_err(|errors| ConfigError(errors.to_string()))?;
        explain::check(&job)?;
        Ok(job)
    }

    /// For a reload: the jobs that are right, and the files that are not. `None`: the list of jobs itself cannot be had.
    fn reload(&self) -> Option<(Vec<config::Job>, Vec<PathBuf>)> {
        let paths = match self.paths() {
            Ok(paths) => paths,
            Err(error) => {
                tracing::error!("reload: {error:#}; all jobs run on as they were");
                return None;
            }
        };
        let mut jobs: Vec<config::Job> = Vec::new();
        let mut wrong = Vec::new();
        for path in paths {
            let job = explain::load(&path).map_err(|error| error.to_string());
            let job = job.and_then(|job| explain::check(&job).map(|()| job).map_err(|error| error.to_string()));
            let job = job.and_then(|job| match jobs.iter().find(|other| other.name == job.name) {
                Some(other) => Err(format!(
                    "{}: a job of the name `{}` is in {} too",
                    path.display(),
                    job.name,
                    other.file.display()
                )),
                None => Ok(job),
            });
            let job = job.and_then(|job| match jobs.iter().find_map(|other| job.shares_group(other)) {
                Some(error) => Err(error.to_string()),
                None => Ok(job),
            });
            match job {
                Ok(job) => jobs.push(job),
                Err(error) => {
                    tracing::error!("reload: the old version of this job runs on:\n{error}");
                    wrong.push(path);
                }
            }
        }
        Some((jobs, wrong))
    }
}

/// What a daemon is told beside its jobs.
pub struct Settings {
    /// Ledger, spools and dead letters.
    pub data_dir: PathBuf,
    /// The owner's name, where it was set by hand.
    pub owner: Option<String>,
    /// The byte budget of all jobs.
    pub memory: u64,
    /// `--take-over`.
    pub take_over: bool,
    /// `--once`.
    pub once: bool,
    /// `--timeout`.
    pub once_limit: Duration,
}

/// Opens the data dir: its UUID, its ledger.
pub fn open(settings: Settings) -> anyhow::Result<Surroundings> {
    let Settings { data_dir, owner, memory, take_over, once, once_limit } = settings;
    let data_dir = config::paths::resolve(&data_dir);
    let opened = SledLedger::open(&data_dir)?;
    for warning in &opened.warnings {
        tracing::warn!("{warning}");
    }
    let ledger: Arc<dyn Ledger> = Arc::new(opened.ledger);
    let owner_is_explicit = owner.is_some();
    let name = owner.unwrap_or_else(host_name);
    let owner = Owner { name, data_dir: ledger.data_dir_id(), instance: Uuid::new_v4() };
    Ok(Surroundings {
        owner_is_explicit,
        ledger,
        data_dir,
        owner,
        take_over,
        once,
        once_limit,
        metrics: Metrics::new()?,
        memory: Memory::new(memory),
        clock: Clock::start(),
    })
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// A job that a data dir knows.
pub struct KnownJob {
    /// Its name.
    pub name: String,
    /// Its file: as it was named on the command line, or as the job ran last.
    pub file: PathBuf,
    /// Who says so.
    pub told: Told,
}

/// How it is known which file a job has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// The operator named it.
    Named,
    /// The job ran last with this file, in this very data dir.
    Here,
    /// The same, of an older version that did not write down in which data dir.
    Long,
    /// The job ran with this file in a data dir at another place: this one was moved, or is a copy.
    Elsewhere(PathBuf),
}

impl KnownJob {
    /// The job's file, where it is certain that it belongs to this data dir. A file that a moved or copied data dir names
    /// may be the one of the original, whose sinks are not meant.
    pub fn certain_file(&self, data_dir: &Path, looks_only: bool) -> anyhow::Result<&Path> {
        let here = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_owned());
        let why = match &self.told {
            Told::Named | Told::Here => return Ok(&self.file),
            Told::Long if looks_only => return Ok(&self.file),
            Told::Long => format!("nothing in {} says that its job {} has", here.display(), self.name),
            Told::Elsewhere(before) => format!(
                "{} was moved or copied: its job {} ran last in {}, with",
                here.display(),
                self.name,
                before.display()
            ),
        };
        let beside = match &self.told {
            Told::Elsewhere(before) => moved_along(&self.file, before, &here),
            _ => Some(self.file.clone()).filter(|file| file.is_file()),
        };
        let file = beside.map_or_else(|| "FILE".to_owned(), |file| quoted(&file.display().to_string()));
        bail!(
            "{why} the job file {}, and the sinks of that file are perhaps not those that you mean. Name the file of the job \
             that belongs to this data dir: --job {file}",
            self.file.display()
        )
    }
}

/// Where a job's file is now, if it was moved or copied together with the data dir.
fn moved_along(file: &Path, before: &Path, here: &Path) -> Option<PathBuf> {
    let (mut old, mut new) = (before.parent()?, here.parent()?);
    loop {
        if let Ok(rest) = file.strip_prefix(old) {
            return Some(new.join(rest)).filter(|moved| moved != file && moved.is_file());
        }
        // Only as far up as both have the same names.
        if old.file_name() != new.file_name() {
            return None;
        }
        (old, new) = (old.parent()?, new.parent()?);
    }
}

/// The jobs that a data dir knows.
pub fn known_jobs(data_dir: &Path) -> std::io::Result<Vec<KnownJob>> {
    let here = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_owned());
    let mut known = Vec::new();
    for entry in std::fs::read_dir(data_dir)?.flatten() {
        let Ok(file) = std::fs::read_to_string(entry.path().join(JOB_FILE)) else { continue };
        let told = match std::fs::read_to_string(entry.path().join(JOB_PLACE)) {
            Ok(place) if Path::new(&place) == here => Told::Here,
            Ok(place) => Told::Elsewhere(place.into()),
            Err(_) => Told::Long,
        };
        known.push(KnownJob { name: entry.file_name().to_string_lossy().into_owned(), file: file.into(), told });
    }
    known.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(known)
}

/// The jobs that a data dir knows; or the one that is named, by its name or its file.
pub fn named_jobs(data_dir: &Path, job: Option<&str>) -> anyhow::Result<Vec<KnownJob>> {
    if let Some(file) = job.map(Path::new).filter(|file| file.is_file()) {
        let job = config::Job::load(file, &ProcessEnvironment).map_err(|errors| ConfigError(errors.to_string()))?;
        return Ok(vec![KnownJob { name: job.name, file: file.to_owned(), told: Told::Named }]);
    }
    let known = known_jobs(data_dir)
        .with_context(|| format!("there is no data dir {} here; name yours with --data-dir", data_dir.display()))?;
    let Some(job) = job else {
        if known.is_empty() {
            bail!("{} knows no job yet", data_dir.display());
        }
        return Ok(known);
    };
    let names: Vec<_> = known.iter().map(|job| job.name.clone()).collect();
    let found = known.into_iter().find(|known| known.name == job);
    found
        .map(|found| vec![found])
        .with_context(|| format!("{} knows no job {job}; it knows {}", data_dir.display(), names.join(", ")))
}

/// An operation where no daemon has the data dir.
pub async fn execute_here(data_dir: &Path, request: &Request, file: &Path) -> anyhow::Result<serde_json::Value> {
    let job = config::Job::load(file, &ProcessEnvironment).map_err(|errors| ConfigError(errors.to_string()))?;
    let around = open(Settings {
        data_dir: data_dir.to_owned(),
        owner: None,
        memory: load(None)?.memory,
        take_over: request.take_over,
        once: false,
        once_limit: ONCE_LIMIT,
    })?;
    checkpoint::execute(request, Arc::new(job), &around).await
}

/// Logs go to stderr, at `level` where `TIDEMILL_LOG` does not say otherwise.
pub fn init_logs(json: bool, level: &str) -> anyhow::Result<()> {
    use tracing_subscriber::{EnvFilter, fmt, prelude::*};
    let directives = std::env::var("TIDEMILL_LOG").unwrap_or_else(|_| level.to_owned());
    let filter =
        EnvFilter::try_new(&directives).map_err(|error| ConfigError(format!("log level {directives:?}: {error}")))?;
    let registry = tracing_subscriber::registry().with(filter);
    let color = std::io::stderr().is_terminal();
    let done = if json {
        registry.with(fmt::layer().json().flatten_event(true).with_writer(progress::writer)).try_init()
    } else {
        registry
            .with(
                fmt::layer()
                    .with_target(false)
                    .with_ansi(color)
                    .fmt_fields(log_lines::fields())
                    .with_writer(progress::writer),
            )
            .try_init()
    };
    done.map_err(|error| anyhow::anyhow!("logs cannot be set up: {error}"))
}
