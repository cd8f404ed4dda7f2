//! Whether the server lives, takes work, and how it fares.

use std::sync::Arc;

use axum::{extract::State, http::header, response::IntoResponse};

use super::reply::{ErrorBody, Refused};
use crate::app::App;

/// Answers as long as the process does.
#[utoipa::path(get, path = "/healthz", tag = "operation", responses((status = 200, body = String)))]
pub async fn healthz() -> &'static str {
    "ok"
}

/// Answers 200 while work is taken in, 503 when the server is stopping.
#[utoipa::path(
    get, path = "/readyz", tag = "operation",
    responses((status = 200, body = String), (status = 503, body = ErrorBody)),
)]
pub async fn readyz(State(app): State<Arc<App>>) -> Result<&'static str, Refused> {
    if app.is_ready() { Ok("ready") } else { Err(Refused::Unavailable) }
}

/// Counters and histograms for Prometheus.
#[utoipa::path(
    get, path = "/metrics", tag = "operation",
    responses((status = 200, content_type = "application/openmetrics-text", body = String), (status = 401, body = ErrorBody)),
    security((), ("bearer" = [])),
)]
pub async fn metrics(State(app): State<Arc<App>>) -> Result<impl IntoResponse, Refused> {
    let text = app.metrics.text(app.queue.images()).map_err(|_| Refused::Internal)?;
    Ok(([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text))
}
