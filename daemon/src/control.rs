//! The control socket: `control.sock` in the data dir, by which the command line reaches a running daemon. HTTP over a
//! Unix socket; only the data dir's owner can connect (mode 0600).

use std::{
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use axum::{Json, Router, extract::State, http::StatusCode, response::IntoResponse, routing::post};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    checkpoint::{self, Request},
    supervise::Supervisor,
};

/// The socket of a data dir.
pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("control.sock")
}

/// Serves the control socket until the process ends.
pub fn serve(supervisor: Arc<Supervisor>, data_dir: &Path) -> anyhow::Result<()> {
    let path = path(data_dir);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", path.display()));
        }
        _ => {}
    }
    let listener = tokio::net::UnixListener::bind(&path).with_context(|| format!("listening on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    let router =
        Router::new().route("/checkpoint", post(operate)).route("/restart", post(restart)).with_state(supervisor);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the control socket failed");
        }
    });
    Ok(())
}

async fn operate(State(supervisor): State<Arc<Supervisor>>, Json(request): Json<Request>) -> impl IntoResponse {
    let Some(config) = supervisor.config(&request.job) else {
        return (StatusCode::NOT_FOUND, Json(json!({ "error": not_run(&supervisor, &request.job) })));
    };
    if let Some(named) = request.file.as_ref().filter(|named| !is_same_file(named, &config.file)) {
        let error = format!(
            "the daemon that has this data dir runs job {} from {}, not from {}: leave out --job, or stop the daemon first",
            request.job,
            config.file.display(),
            named.display()
        );
        return (StatusCode::CONFLICT, Json(json!({ "error": error })));
    }
    // In a task of its own: a client that goes away in between does not leave the job stopped.
    let operation = tokio::spawn(async move {
        let looks_only = request.looks_only();
        if !looks_only {
            supervisor.hold(&request.job, Some("stopped for `tidemill checkpoint`"));
            supervisor.stop(&request.job).await;
        }
        let result = checkpoint::execute(&request, config.clone(), supervisor.around()).await;
        if !looks_only {
            supervisor.start(config);
            supervisor.hold(&request.job, None);
        }
        result
    });
    match operation.await.unwrap_or_else(|error| Err(error.into())) {
        Ok(answer) => (StatusCode::OK, Json(answer)),
        Err(error) => (StatusCode::CONFLICT, Json(json!({ "error": format!("{error:#}") }))),
    }
}

/// A job to restart.
#[derive(Serialize, Deserialize)]
struct Restart {
    job: String,
}

async fn restart(State(supervisor): State<Arc<Supervisor>>, Json(request): Json<Restart>) -> impl IntoResponse {
    if supervisor.config(&request.job).is_none() {
        return (StatusCode::NOT_FOUND, Json(json!({ "error": not_run(&supervisor, &request.job) })));
    }
    // In a task of its own, as above.
    let restarting = tokio::spawn(async move { supervisor.restart(&request.job).await.map(|()| request.job) });
    match restarting.await.unwrap_or_else(|error| Err(error.into())) {
        Ok(job) => (StatusCode::OK, Json(json!({ "done": format!("job {job} was started again") }))),
        Err(error) => (StatusCode::CONFLICT, Json(json!({ "error": format!("{error:#}") }))),
    }
}

fn not_run(supervisor: &Supervisor, job: &str) -> String {
    let known: Vec<_> = supervisor.progress().into_iter().map(|progress| progress.job).collect();
    format!("the daemon runs no job {job}; it runs {}", known.join(", "))
}

/// Asks the daemon that has this data dir to start a job again.
pub fn send_restart(data_dir: &Path, job: &str) -> anyhow::Result<Answer> {
    exchange(data_dir, "/restart", &serde_json::to_string(&Restart { job: job.to_owned() })?)
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// What a daemon answers.
pub enum Answer {
    /// No daemon has the data dir.
    NoDaemon,
    /// The one that has it does not run the job: a sentence.
    NotRun(String),
    /// It did what was asked.
    Done(serde_json::Value),
}

/// Sends an operator's request to the daemon that has this data dir.
pub fn send(data_dir: &Path, request: &Request) -> anyhow::Result<Answer> {
    exchange(data_dir, "/checkpoint", &serde_json::to_string(request)?)
}

fn exchange(data_dir: &Path, to: &str, body: &str) -> anyhow::Result<Answer> {
    let Ok(mut stream) = UnixStream::connect(path(data_dir)) else { return Ok(Answer::NoDaemon) };
    write!(
        stream,
        "POST {to} HTTP/1.1\r\nhost: tidemill\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("reading the daemon's answer")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the daemon's answer is no HTTP")?;
    let value: serde_json::Value = serde_json::from_str(body).with_context(|| format!("the daemon answered {body}"))?;
    match value.get("error").and_then(|error| error.as_str()) {
        Some(error) if head.split(' ').nth(1) == Some("404") => Ok(Answer::NotRun(error.to_owned())),
        Some(error) => anyhow::bail!("{error}"),
        None => Ok(Answer::Done(value)),
    }
}
