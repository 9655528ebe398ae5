//! From arguments and files to a running daemon.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail};
use tidemill_checkpoint::{Ledger, Owner, ledger::sled::SledLedger};
use tidemill_config::{self as config, ProcessEnvironment};
use uuid::Uuid;

use crate::{
    ConfigError,
    checkpoint::{self, Request},
    cli::RunArguments,
    control, explain, http,
    job::{JOB_FILE, Surroundings},
    metrics::Metrics,
    supervise::{self, Supervisor},
};

/// The data dir where nobody says otherwise.
pub const DATA_DIR: &str = "tidemill-data";
/// Where HTTP listens where nobody says otherwise.
pub const HTTP: &str = "127.0.0.1:9720";

/// `tidemill run`.
pub async fn run(arguments: RunArguments) -> anyhow::Result<u8> {
    let daemon = match &arguments.config {
        Some(file) => {
            Some(config::Daemon::load(file, &ProcessEnvironment).map_err(|errors| ConfigError(errors.to_string()))?)
        }
        None => None,
    };
    let log = daemon.as_ref().map(|daemon| daemon.log.clone());
    init_logs(log.as_ref().is_some_and(|log| log.json), log.as_ref().map_or("info", |log| &log.level))?;
    let sources = JobSources { files: arguments.jobs.clone(), config: arguments.config.clone() };
    let jobs = sources.load()?;
    for job in &jobs {
        explain::check(job)?;
    }
    let data_dir = arguments
        .data_dir
        .clone()
        .or_else(|| daemon.as_ref().map(|d| d.data_dir.clone()))
        .unwrap_or_else(|| DATA_DIR.into());
    let owner_name = daemon.as_ref().and_then(|d| d.owner.clone());
    let around = open(&data_dir, owner_name, arguments.take_over, arguments.once)?;
    let supervisor = Supervisor::new(around);
    let address = arguments
        .http
        .clone()
        .or_else(|| (!arguments.once).then(|| daemon.as_ref().map_or_else(|| HTTP.to_owned(), |d| d.http.clone())));
    if let Some(address) = address {
        serve_http(&supervisor, &address).await?;
    }
    if let Err(error) = control::serve(supervisor.clone(), &data_dir) {
        tracing::warn!("no control socket: {error:#}; `tidemill checkpoint` cannot reach this daemon");
    }
    for job in jobs {
        supervisor.start(Arc::new(job));
    }
    let loader = Box::new(move || sources.reload());
    let code = supervise::run(supervisor.clone(), loader, std::io::stderr().is_terminal()).await;
    let _ = std::fs::remove_file(control::path(&data_dir));
    code
}

async fn serve_http(supervisor: &Arc<Supervisor>, address: &str) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await.with_context(|| {
        format!("HTTP cannot listen on {address}: is another daemon running? Choose another address with --http")
    })?;
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
}

impl JobSources {
    fn paths(&self) -> anyhow::Result<Vec<PathBuf>> {
        if !self.files.is_empty() {
            return Ok(self.files.clone());
        }
        let Some(file) = &self.config else {
            bail!("no job: name one (`tidemill run JOB.yaml`), or a daemon's file with --config")
        };
        let daemon =
            config::Daemon::load(file, &ProcessEnvironment).map_err(|errors| ConfigError(errors.to_string()))?;
        daemon.job_files().map_err(|errors| ConfigError(errors.to_string()).into())
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
        let mut jobs = Vec::new();
        let mut wrong = Vec::new();
        for path in paths {
            let job = config::Job::load(&path, &ProcessEnvironment).map_err(|errors| errors.to_string());
            match job.and_then(|job| explain::check(&job).map(|()| job).map_err(|error| error.to_string())) {
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

/// Opens the data dir: its UUID, its ledger.
pub fn open(data_dir: &Path, owner: Option<String>, take_over: bool, once: bool) -> anyhow::Result<Surroundings> {
    let opened = SledLedger::open(data_dir)?;
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
        data_dir: data_dir.to_owned(),
        owner,
        take_over,
        once,
        metrics: Metrics::new()?,
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
    let around = open(data_dir, None, request.take_over, false)?;
    checkpoint::execute(request, Arc::new(job), &around).await
}

fn init_logs(json: bool, level: &str) -> anyhow::Result<()> {
    use tracing_subscriber::{EnvFilter, fmt, prelude::*};
    let directives = std::env::var("TIDEMILL_LOG").unwrap_or_else(|_| level.to_owned());
    let filter =
        EnvFilter::try_new(&directives).map_err(|error| ConfigError(format!("log level {directives:?}: {error}")))?;
    let registry = tracing_subscriber::registry().with(filter);
    let color = std::io::stderr().is_terminal();
    let done = if json {
        registry.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).try_init()
    } else {
        registry.with(fmt::layer().with_target(false).with_ansi(color).with_writer(std::io::stderr)).try_init()
    };
    done.map_err(|error| anyhow::anyhow!("logs cannot be set up: {error}"))
}
