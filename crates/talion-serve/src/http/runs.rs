//! Finished runs, and their reports.

use std::{path::PathBuf, sync::Arc};

use axum::{
    Json,
    extract::{Path, State},
    http::header,
    response::{Html, IntoResponse},
};
use serde::Serialize;
use talion_eval::{RunEntry, RunFolder, html, kept_exhibits, kept_latencies, list_runs, summarise};
use utoipa::ToSchema;

use super::reply::{ErrorBody, Refused};
use crate::app::App;

/// What a report may do in a browser: show itself. It has no scripts.
const REPORT_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'";

/// A run.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum RunBody {
    /// That can be read.
    Kept {
        /// Name of its folder.
        id: String,
        /// Of the evaluation.
        protocol: String,
        /// Data set.
        data: String,
        /// Test images.
        images: usize,
        /// Of all random draws.
        seed: u64,
        /// Share that is finished.
        done: f64,
        /// Seconds since 1970.
        begun: u64,
    },
    /// That cannot be read.
    Damaged {
        /// Name of its folder.
        id: String,
        /// What is wrong.
        error: String,
    },
}

/// Lists the runs that `talion evaluate` keeps.
#[utoipa::path(
    get, path = "/v1/runs", tag = "runs",
    responses((status = 200, body = Vec<RunBody>), (status = 401, body = ErrorBody)), security((), ("bearer" = [])),
)]
pub async fn list(State(app): State<Arc<App>>) -> Result<Json<Vec<RunBody>>, Refused> {
    let folder = app.config.runs.clone();
    let runs = tokio::task::spawn_blocking(move || entries(folder)).await.map_err(|_| Refused::Internal)?;
    Ok(Json(runs.into_iter().filter_map(body).collect()))
}

/// Shows the report of a run.
#[utoipa::path(
    get, path = "/runs/{id}", tag = "runs", params(("id" = String, Path)),
    responses(
        (status = 200, content_type = "text/html", body = String),
        (status = 401, body = ErrorBody), (status = 404, body = ErrorBody),
    ),
    security((), ("bearer" = [])),
)]
pub async fn report(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<impl IntoResponse, Refused> {
    let folder = app.config.runs.clone();
    let page = tokio::task::spawn_blocking(move || {
        // an id is looked up among the runs that are there, and never becomes a path
        let run = entries(folder).into_iter().find(|run| name(run).as_deref() == Some(&id));
        run.map(|run| page(&run))
    });
    match page.await.map_err(|_| Refused::Internal)? {
        None => Err(Refused::NotFound),
        Some(Ok(page)) => Ok(([(header::CONTENT_SECURITY_POLICY, REPORT_POLICY)], Html(page))),
        Some(Err(error)) => {
            tracing::warn!(%error, "a run has no report");
            Err(Refused::Unprocessable("this run cannot be read; `talion runs list` says why".into()))
        }
    }
}

fn page(run: &RunEntry) -> talion_core::Result<String> {
    let summary =
        summarise(&RunFolder::read(&run.path)?, kept_latencies(&run.path)?, kept_exhibits(&run.path)?)?;
    html(std::slice::from_ref(&summary))
}

/// Before the first evaluation there is no folder, and no run.
fn entries(folder: PathBuf) -> Vec<RunEntry> {
    list_runs(&folder).unwrap_or_default()
}

fn name(run: &RunEntry) -> Option<String> {
    Some(run.path.file_name()?.to_str()?.to_owned())
}

fn body(run: RunEntry) -> Option<RunBody> {
    let id = name(&run)?;
    Some(match run.state {
        Ok(state) => {
            let config = &state.header.config;
            RunBody::Kept {
                id,
                protocol: config.protocol.to_string(),
                data: config.data.clone(),
                images: config.samples,
                seed: config.seed,
                done: state.progress.share(),
                begun: state.header.environment.begun,
            }
        }
        // the whole error has a path of this machine in it
        Err(_) => RunBody::Damaged { id, error: "cannot be read; `talion runs list` says why".into() },
    })
}
