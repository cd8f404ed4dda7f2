//! `POST /v1/attack`: an attack to watch, as server-sent events.

use std::{convert::Infallible, sync::Arc};

use axum::{
    extract::{Request, State},
    response::sse::{self, KeepAlive, Sse},
};
use serde::Deserialize;
use talion_core::Budget;
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use utoipa::ToSchema;

use super::{
    body,
    reply::{ErrorBody, Refused},
};
use crate::{
    app::App,
    decode,
    playground::{Event, LabelFrom, Wish},
    prepare::prepare,
};

/// What to attack, and how.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttackBody {
    /// One of the test images; or `image`.
    sample: Option<u64>,
    /// Base64 of a PNG, JPEG or WebP file; or `sample`.
    image: Option<String>,
    /// By name, such as `pgd-20`; `talion attacks` lists all.
    attack: String,
    /// Size of the change, on the scale of values in `[0, 1]`, such as `8/255`.
    epsilon: String,
    /// `linf`, `l2`, `l1` or `l0`.
    #[serde(default = "linf")]
    norm: String,
    /// Of the attack's random draws.
    #[serde(default = "first")]
    seed: u64,
    /// The true class, if it is not the sample's.
    label: Option<usize>,
}

fn linf() -> String {
    "linf".into()
}

fn first() -> u64 {
    1
}

/// Attacks an image while you watch: first the bare classifier, then through the defence with exact gradients.
///
/// Events: `begin`, `step` and `end` for each of the two targets, `done`; or `failed`.
#[utoipa::path(
    post, path = "/v1/attack", tag = "playground", request_body = AttackBody,
    responses(
        (status = 200, content_type = "text/event-stream", body = String),
        (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 404, description = "No such sample, or attacks are switched off", body = ErrorBody),
        (status = 413, body = ErrorBody), (status = 415, body = ErrorBody), (status = 422, body = ErrorBody),
        (status = 429, description = "Others are watching", body = ErrorBody),
        (status = 503, body = ErrorBody),
    ),
    security((), ("bearer" = [])),
)]
pub async fn attack(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, Refused> {
    let playground = app.playground.as_ref().ok_or(Refused::NotFound)?;
    let held = body::read(&app, request).await?;
    if !held.is_json() {
        return Err(Refused::Unsupported("an attack is asked for in application/json".into()));
    }
    let asked: AttackBody =
        serde_json::from_slice(&held.bytes).map_err(|error| Refused::Malformed(error.to_string()))?;
    drop(held);
    let events = playground.watch(wish(&app, asked).await?)?;
    let running = app.metrics.attack();
    let events = ReceiverStream::new(events).map(move |event| {
        // counted until the stream is dropped
        let _ = &running;
        Ok(told(&event))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

fn told(event: &Event) -> sse::Event {
    let data = serde_json::to_string(event).unwrap_or_else(|_| "null".into());
    sse::Event::default().event(event.name()).data(data)
}

/// Checks what is asked for.
async fn wish(app: &Arc<App>, asked: AttackBody) -> Result<Wish, Refused> {
    let wrong = |error: talion_core::Error| Refused::Unprocessable(error.to_string());
    let norm = asked.norm.to_ascii_lowercase();
    // the epsilon's own text is looked at, so that `l2:1` is no way round `norm`
    if asked.epsilon.contains(':') {
        return Err(Refused::Unprocessable(
            "epsilon is a number, such as 8/255; the norm stands in `norm`".into(),
        ));
    }
    let budget: Budget = format!("{norm}:{}", asked.epsilon).parse().map_err(wrong)?;
    let attack = asked.attack.parse().map_err(wrong)?;
    let (image, id, label) = match (asked.sample, asked.image) {
        (Some(id), None) => {
            let sample = app.samples.iter().find(|sample| sample.id == id).ok_or(Refused::NotFound)?;
            (sample.values.clone(), id, Some((sample.label, LabelFrom::Sample)))
        }
        (None, Some(file)) => (dropped(app, file).await?, 0, None),
        _ => return Err(Refused::Malformed("name either `sample` or `image`".into())),
    };
    let label = asked.label.map(|label| (label, LabelFrom::Request)).or(label);
    if label.is_some_and(|(label, _)| label >= app.facts.classes) {
        return Err(Refused::Unprocessable(format!("label has to be below {}", app.facts.classes)));
    }
    let wish = Wish { image, id, label, attack, budget, seed: asked.seed };
    wish.check().map_err(wrong)?;
    Ok(wish)
}

/// An image that a visitor brought.
async fn dropped(app: &Arc<App>, file: String) -> Result<Vec<f32>, Refused> {
    let (limits, shape) = (body::limits(app), app.facts.input);
    let prepared = body::decoded(app, move || prepare(decode::base64_file(&file, &limits)?, shape));
    Ok(prepared.await?.values)
}
