//! What the guard is, and the test images that come with it.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::header,
    response::IntoResponse,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::reply::{ErrorBody, Refused};
use crate::{
    app::App,
    guard::ModelFacts,
    pixels::png,
    playground::{BUDGETS, OFFERED},
};

/// What the guard is.
#[derive(Serialize, ToSchema)]
pub struct ModelBody {
    #[serde(flatten)]
    facts: ModelFacts,
    /// What suspicion is measured against; absent if nothing was calibrated.
    calibration: Option<CalibrationBody>,
    limits: LimitsBody,
    /// Attacks that may be watched; absent if none may.
    playground: Option<PlaygroundBody>,
}

/// What suspicion is measured against.
#[derive(Serialize, ToSchema)]
pub struct CalibrationBody {
    /// Share of clean images that may be flagged.
    false_alarm_rate: f64,
    /// Scores above this are flagged.
    threshold: f64,
    /// Validation images that it was calibrated on.
    clean_images: usize,
    /// What was measured with it on test images: false alarms, and the detection curve of each attack.
    #[schema(value_type = Option<Object>)]
    measured: Option<talion_eval::MeasuredDetection>,
}

/// How much one request may ask for.
#[derive(Serialize, ToSchema)]
pub struct LimitsBody {
    max_body_bytes: usize,
    max_pixels: u64,
    max_images: usize,
    deadline_ms: u64,
    max_batch: usize,
    queue: usize,
}

/// Attacks that may be watched.
#[derive(Serialize, ToSchema)]
pub struct PlaygroundBody {
    attacks: Vec<OfferedAttack>,
    budgets: Vec<&'static str>,
}

/// An attack that the page offers; `/v1/attack` takes others, too.
#[derive(Serialize, ToSchema)]
pub struct OfferedAttack {
    name: &'static str,
    title: &'static str,
}

/// Says what the guard is: networks, calibration, limits.
#[utoipa::path(
    get, path = "/v1/model", tag = "guard",
    responses((status = 200, body = ModelBody), (status = 401, body = ErrorBody)), security((), ("bearer" = [])),
)]
pub async fn model(State(app): State<Arc<App>>) -> Json<ModelBody> {
    let config = &app.config;
    Json(ModelBody {
        facts: app.facts.clone(),
        calibration: app.yardstick.as_ref().map(|yardstick| CalibrationBody {
            false_alarm_rate: yardstick.rate,
            threshold: yardstick.calibration.threshold(yardstick.rate).unwrap_or(f64::MAX),
            clean_images: yardstick.calibration.clean_images,
            measured: yardstick.calibration.measured.clone(),
        }),
        limits: LimitsBody {
            max_body_bytes: config.limits.max_body,
            max_pixels: config.limits.max_pixels,
            max_images: config.limits.max_images,
            deadline_ms: config.deadline.as_millis() as u64,
            max_batch: config.max_batch,
            queue: config.queue,
        },
        playground: app.playground.as_ref().map(|_| PlaygroundBody {
            attacks: OFFERED.iter().map(|&(name, title)| OfferedAttack { name, title }).collect(),
            budgets: BUDGETS.to_vec(),
        }),
    })
}

/// A test image that visitors may pick.
#[derive(Serialize, ToSchema)]
pub struct SampleBody {
    id: u64,
    label: usize,
    name: String,
    /// Where its PNG is.
    image: String,
}

/// Lists the test images that come with the guard.
#[utoipa::path(
    get, path = "/v1/samples", tag = "playground",
    responses((status = 200, body = Vec<SampleBody>), (status = 401, body = ErrorBody)), security((), ("bearer" = [])),
)]
pub async fn samples(State(app): State<Arc<App>>) -> Json<Vec<SampleBody>> {
    let body = |sample: &crate::app::Sample| SampleBody {
        id: sample.id,
        label: sample.label,
        name: app.facts.class_name(sample.label),
        image: format!("/v1/samples/{}", sample.id),
    };
    Json(app.samples.iter().map(body).collect())
}

/// Shows one of the test images.
#[utoipa::path(
    get, path = "/v1/samples/{id}", tag = "playground", params(("id" = u64, Path)),
    responses(
        (status = 200, content_type = "image/png", body = Vec<u8>),
        (status = 401, body = ErrorBody), (status = 404, body = ErrorBody),
    ),
    security((), ("bearer" = [])),
)]
pub async fn sample(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<impl IntoResponse, Refused> {
    let id: u64 = id.parse().map_err(|_| Refused::NotFound)?;
    let sample = app.samples.iter().find(|sample| sample.id == id).ok_or(Refused::NotFound)?;
    let file = png(&sample.values, app.facts.input).map_err(|_| Refused::Internal)?;
    let headers = [(header::CONTENT_TYPE, "image/png"), (header::CACHE_CONTROL, "private, max-age=3600")];
    Ok((headers, file))
}
