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
use serde_json::json;

use crate::{
    checkpoint::{self, Operation, Request},
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
    let router = Router::new().route("/checkpoint", post(operate)).with_state(supervisor);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the control socket failed");
        }
    });
    Ok(())
}

async fn operate(State(supervisor): State<Arc<Supervisor>>, Json(request): Json<Request>) -> impl IntoResponse {
    let Some(config) = supervisor.config(&request.job) else {
        let known: Vec<_> = supervisor.progress().into_iter().map(|progress| progress.job).collect();
        let error = format!("the daemon runs no job {}; it runs {}", request.job, known.join(", "));
        return (StatusCode::NOT_FOUND, Json(json!({ "error": error })));
    };
    // In a task of its own: a client that goes away in between does not leave the job stopped.
    let operation = tokio::spawn(async move {
        let looks_only = request.operation == Operation::Show;
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

/// Sends a request to the daemon that has this data dir. `None`: none answers there.
pub fn send(data_dir: &Path, request: &Request) -> anyhow::Result<Option<serde_json::Value>> {
    let Ok(mut stream) = UnixStream::connect(path(data_dir)) else { return Ok(None) };
    let body = serde_json::to_string(request)?;
    write!(
        stream,
        "POST /checkpoint HTTP/1.1\r\nhost: tidemill\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("reading the daemon's answer")?;
    let (_, body) = answer.split_once("\r\n\r\n").context("the daemon's answer is no HTTP")?;
    let value: serde_json::Value = serde_json::from_str(body).with_context(|| format!("the daemon answered {body}"))?;
    match value.get("error").and_then(|error| error.as_str()) {
        Some(error) => anyhow::bail!("{error}"),
        None => Ok(Some(value)),
    }
}
