//! From arguments and files to a running daemon.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    sync::Arc,
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
    control, explain, http,
    job::{JOB_FILE, Surroundings},
    memory::Memory,
    metrics::Metrics,
    progress,
    supervise::{self, Supervisor},
};

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

/// The budget of all jobs under a daemon's file.
pub fn memory(file: Option<&Path>) -> Result<u64, ConfigError> {
    load(file).map(|daemon| daemon.memory)
}

/// `tidemill run`.
pub async fn run(arguments: RunArguments) -> anyhow::Result<u8> {
    let daemon = load(arguments.config.as_deref())?;
    init_logs(daemon.log.json, &daemon.log.level)?;
    let sources = JobSources { files: arguments.jobs.clone(), config: arguments.config.clone(), memory: daemon.memory };
    let jobs = sources.load()?;
    for job in &jobs {
        explain::check(job)?;
        explain::check_memory(job, daemon.memory)?;
    }
    let around = open(Settings {
        data_dir: arguments.data_dir.clone().unwrap_or(daemon.data_dir),
        owner: daemon.owner,
        memory: daemon.memory,
        take_over: arguments.take_over,
        once: arguments.once,
    })?;
    let data_dir = around.data_dir.clone();
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
        serve_http(&supervisor, listener)?;
    }
    supervisor.begun();
    let loader = Box::new(move || sources.reload());
    let code = supervise::run(supervisor.clone(), loader, std::io::stderr().is_terminal()).await;
    let _ = std::fs::remove_file(control::path(&data_dir));
    code
}

async fn listen_http(address: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("HTTP cannot listen on {address}: is another daemon running? Choose another address with --http")
    })
}

fn serve_http(supervisor: &Arc<Supervisor>, listener: TcpListener) -> anyhow::Result<()> {
    tracing::info!(address = %listener.local_addr()?, "HTTP: /metrics, /live, /ready, /jobs");
    let router = http::router(supervisor.clone());
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "HTTP failed");
        }
    });
    Ok(())
}

/// Where jobs come from: files on the command line, else the globs of the daemon's file.
struct JobSources {
    files: Vec<PathBuf>,
    config: Option<PathBuf>,
    /// The budget of this process.
    memory: u64,
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
            let job = config::Job::load(&path, &ProcessEnvironment).map_err(|errors| errors.to_string());
            let job = job.and_then(|job| explain::check(&job).map(|()| job).map_err(|error| error.to_string()));
            let job = job.and_then(|job| {
                explain::check_memory(&job, self.memory).map(|()| job).map_err(|error| error.to_string())
            });
            let job = job.and_then(|job| match jobs.iter().find(|other| other.name == job.name) {
                Some(other) => Err(format!(
                    "{}: a job of the name `{}` is in {} too",
                    path.display(),
                    job.name,
                    other.file.display()
                )),
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
}

/// Opens the data dir: its UUID, its ledger.
pub fn open(settings: Settings) -> anyhow::Result<Surroundings> {
    let Settings { data_dir, owner, memory, take_over, once } = settings;
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
        metrics: Metrics::new()?,
        memory: Memory::new(memory),
    })
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The jobs that a data dir knows, with their files; or the one that is named.
pub fn job_files(data_dir: &Path, job: Option<&str>) -> anyhow::Result<Vec<(String, PathBuf)>> {
    if let Some(file) = job.map(Path::new).filter(|file| file.is_file()) {
        let job = config::Job::load(file, &ProcessEnvironment).map_err(|errors| ConfigError(errors.to_string()))?;
        return Ok(vec![(job.name, file.to_owned())]);
    }
    let entries = std::fs::read_dir(data_dir)
        .with_context(|| format!("{} is no data dir; name it with --data-dir", data_dir.display()))?;
    let mut known = Vec::new();
    for entry in entries.flatten() {
        if let Ok(path) = std::fs::read_to_string(entry.path().join(JOB_FILE)) {
            known.push((entry.file_name().to_string_lossy().into_owned(), PathBuf::from(path)));
        }
    }
    known.sort();
    let Some(job) = job else {
        if known.is_empty() {
            bail!("{} knows no job yet", data_dir.display());
        }
        return Ok(known);
    };
    let names: Vec<_> = known.iter().map(|(name, _)| name.clone()).collect();
    let found = known.into_iter().find(|(name, _)| name == job);
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
        registry.with(fmt::layer().with_target(false).with_ansi(color).with_writer(progress::writer)).try_init()
    };
    done.map_err(|error| anyhow::anyhow!("logs cannot be set up: {error}"))
}
