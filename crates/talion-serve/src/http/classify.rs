//! `POST /v1/classify`: images in, answers with and without the defence out.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Extension, Json,
    extract::{Query, Request, State},
    http::HeaderMap,
};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use utoipa::{IntoParams, ToSchema};

use super::{
    body,
    observe::RequestId,
    reply::{ErrorBody, Refused},
};
use crate::{
    app::{App, SuspicionFacts},
    guard::{Verdict, Wants},
    pixels::{data_url, signed},
    playground::likeliest,
    prepare::Prepared,
    queue::{self, Job},
};

/// What is wanted beside the answers.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ClassifyQuery {
    /// Also the restored image, as a PNG in a `data:` URL.
    #[serde(default)]
    restored: bool,
    /// Also the gradient map, likewise; grey is zero.
    #[serde(default)]
    map: bool,
}

/// Answers to all images of a request, in its order.
#[derive(Debug, Serialize, ToSchema)]
pub struct Classified {
    /// Data set and architecture.
    model: String,
    /// As in the header `x-request-id`.
    request_id: String,
    /// One for each image.
    results: Vec<Classification>,
}

/// What the guard says of one image.
#[derive(Debug, Serialize, ToSchema)]
pub struct Classification {
    /// With the defence: what to act on.
    #[serde(flatten)]
    defended: Opinion,
    /// Without the defence.
    bare: Opinion,
    /// How far restoration moved the prediction; absent without a calibration.
    suspicion: Option<SuspicionFacts>,
    /// The largest change that restoration made to a value, of 1.
    largest_change: f32,
    /// Width and height, if the image had to be resized.
    #[serde(skip_serializing_if = "Option::is_none")]
    resized_from: Option<[u32; 2]>,
    /// PNG as a `data:` URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    restored: Option<String>,
    /// PNG as a `data:` URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    gradient_map: Option<String>,
}

/// A classifier's answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct Opinion {
    /// The likeliest class.
    label: usize,
    /// Its name.
    name: String,
    /// Its probability.
    confidence: f32,
    /// Of all classes.
    probabilities: Vec<f32>,
}

/// Classifies images through the defence.
///
/// The body is one PNG, JPEG or WebP file; or an NPY array or a JSON tensor of shape `[H, W]`, `[C, H, W]` or `[N, C, H, W]` with
/// values in `[0, 1]` (bytes in NPY: 0 to 255); or `{"images": [BASE64, ...]}`; or a form with several files.
#[utoipa::path(
    post,
    path = "/v1/classify",
    tag = "guard",
    params(
        ClassifyQuery,
        ("x-timeout-ms" = Option<u64>, Header, description = "Deadline, if shorter than the server's"),
    ),
    request_body(
        content(
            (Vec<u8> = "image/png"),
            (Vec<u8> = "image/jpeg"),
            (Vec<u8> = "image/webp"),
            (Vec<u8> = "application/octet-stream"),
            (Vec<u8> = "application/x-npy"),
            (Vec<u8> = "multipart/form-data"),
            (serde_json::Value = "application/json"),
        ),
    ),
    responses(
        (status = 200, body = Classified),
        (status = 400, description = "Damaged", body = ErrorBody),
        (status = 401, description = "No token", body = ErrorBody),
        (status = 408, description = "Body too slow", body = ErrorBody),
        (status = 413, description = "Too many bytes, pixels or images", body = ErrorBody),
        (status = 415, description = "Not a kind that is read", body = ErrorBody),
        (status = 422, description = "Not an image for this classifier", body = ErrorBody),
        (status = 429, description = "Too much waits already; see Retry-After", body = ErrorBody),
        (status = 500, description = "The networks failed", body = ErrorBody),
        (status = 503, description = "Stopping", body = ErrorBody),
        (status = 504, description = "Deadline passed", body = ErrorBody),
    ),
    security((), ("bearer" = [])),
)]
pub async fn classify(
    State(app): State<Arc<App>>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    query: Result<Query<ClassifyQuery>, axum::extract::rejection::QueryRejection>,
    request: Request,
) -> Result<Json<Classified>, Refused> {
    let Query(query) = query.map_err(|error| Refused::Malformed(error.body_text()))?;
    let patience = patience(request.headers(), app.config.deadline)?;
    let body = body::read(&app, request).await?;
    let deadline = Instant::now() + patience;
    let images = tokio::time::timeout_at(deadline.into(), body.images(&app))
        .await
        .map_err(|_| Refused::Deadline)??;
    let wants = Wants { restored: query.restored, map: query.map };
    let verdicts = judged(&app, &images, wants, deadline).await?;
    let sizes: Vec<_> = images.iter().map(|image| image.resized_from).collect();
    let writer = Arc::clone(&app);
    let results = tokio::task::spawn_blocking(move || {
        let pairs = verdicts.into_iter().zip(sizes);
        pairs.map(|(verdict, size)| classification(&writer, verdict, size)).collect::<Result<Vec<_>, _>>()
    });
    let results = results.await.map_err(|_| Refused::Internal)?.map_err(|_| Refused::Internal)?;
    Ok(Json(Classified { model: app.facts.name.clone(), request_id, results }))
}

/// Has the networks judge `images`.
async fn judged(
    app: &App,
    images: &[Prepared],
    wants: Wants,
    deadline: Instant,
) -> Result<Vec<Verdict>, Refused> {
    let (answer, receiver) = oneshot::channel();
    let values = images.iter().flat_map(|image| &image.values).copied().collect();
    let job = Job { values, count: images.len(), wants, deadline, answer };
    app.queue.push(job).map_err(|refused| match refused {
        queue::Refused::Full => Refused::Busy { retry_after: app.queue.retry_after() },
        queue::Refused::Closed => Refused::Unavailable,
    })?;
    match tokio::time::timeout_at(deadline.into(), receiver).await {
        Ok(Ok(answer)) => Ok(answer?),
        // the worker is gone, which it is only at the very end
        Ok(Err(_)) => Err(Refused::Unavailable),
        Err(_) => Err(Refused::Deadline),
    }
}

fn classification(
    app: &App,
    verdict: Verdict,
    resized_from: Option<[u32; 2]>,
) -> talion_core::Result<Classification> {
    let shape = app.facts.input;
    let suspicion = SuspicionFacts::new(app.yardstick.as_ref(), verdict.score);
    if suspicion.is_some_and(|suspicion| suspicion.flagged) {
        app.metrics.flagged();
    }
    Ok(Classification {
        defended: opinion(app, verdict.defended),
        bare: opinion(app, verdict.bare),
        suspicion,
        largest_change: verdict.largest_change,
        resized_from,
        restored: verdict.restored.map(|values| data_url(&values, shape)).transpose()?,
        gradient_map: verdict.map.map(|values| data_url(&signed(&values), shape)).transpose()?,
    })
}

fn opinion(app: &App, probabilities: Vec<f32>) -> Opinion {
    let label = likeliest(&probabilities);
    let confidence = probabilities.get(label).copied().unwrap_or_default();
    Opinion { label, name: app.facts.class_name(label), confidence, probabilities }
}

/// How long the client will wait, at most as long as the server lets it.
fn patience(headers: &HeaderMap, most: Duration) -> Result<Duration, Refused> {
    let Some(value) = headers.get("x-timeout-ms") else { return Ok(most) };
    let milliseconds: Option<u64> = value.to_str().ok().and_then(|text| text.parse().ok());
    match milliseconds {
        Some(milliseconds) if milliseconds > 0 => Ok(Duration::from_millis(milliseconds).min(most)),
        _ => Err(Refused::Malformed("x-timeout-ms has to be a whole number above 0".into())),
    }
}
