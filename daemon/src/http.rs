//! HTTP: `/metrics`, `/live`, `/ready`, `/jobs`, `/jobs/NAME`.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;

use crate::supervise::Supervisor;

/// The routes over a daemon's jobs.
pub fn router(supervisor: Arc<Supervisor>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics))
        .route("/live", get(live))
        .route("/ready", get(ready))
        .route("/jobs", get(jobs))
        .route("/jobs/{name}", get(job))
        .with_state(supervisor)
}

async fn index() -> impl IntoResponse {
    Json(
        json!({ "tidemill": env!("CARGO_PKG_VERSION"), "see": ["/metrics", "/live", "/ready", "/jobs", "/jobs/NAME"] }),
    )
}

async fn metrics(State(supervisor): State<Arc<Supervisor>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], supervisor.around().metrics.render())
}

async fn live(State(supervisor): State<Arc<Supervisor>>) -> Response {
    match supervisor.stuck() {
        None => Json(json!({ "live": true })).into_response(),
        Some((job, silent)) => {
            let reason = format!("the batch loop of job {job} has not moved for {} s", silent.as_secs());
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "live": false, "reason": reason }))).into_response()
        }
    }
}

async fn ready(State(supervisor): State<Arc<Supervisor>>) -> Response {
    let reasons = supervisor.not_ready();
    let code = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(json!({ "ready": reasons.is_empty(), "reasons": reasons }))).into_response()
}

async fn jobs(State(supervisor): State<Arc<Supervisor>>) -> impl IntoResponse {
    Json(json!({ "jobs": supervisor.progress() }))
}

async fn job(State(supervisor): State<Arc<Supervisor>>, Path(name): Path<String>) -> Response {
    let mut all = supervisor.progress();
    match all.iter().position(|progress| progress.job == name) {
        Some(index) => Json(all.swap_remove(index)).into_response(),
        None => {
            let known: Vec<_> = all.into_iter().map(|progress| progress.job).collect();
            (StatusCode::NOT_FOUND, Json(json!({ "error": format!("no job is named {name}"), "jobs": known })))
                .into_response()
        }
    }
}
