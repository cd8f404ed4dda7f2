//! Around every request: an id, a line in the log, a count, and the body of every error.

use std::{sync::Arc, time::Instant};

use axum::{
    Json,
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use uuid::Uuid;

use super::reply::{ErrorBody, Refused};
use crate::app::App;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id that is taken over from a client.
const LONGEST_ID: usize = 64;

/// The id of a request: the client's, or one of ours.
#[derive(Clone, Debug)]
pub struct RequestId(pub String);

/// Gives the request an id, has it answered, writes a line in the log, counts it.
pub async fn observe(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let id =
        request.headers().get(&REQUEST_ID).and_then(accepted).unwrap_or_else(|| Uuid::now_v7().to_string());
    request.extensions_mut().insert(RequestId(id.clone()));
    let method = request.method().clone();
    // never the path itself: it would make as many counters as there are paths
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let mut response = next.run(request).await;
    let refused = response.extensions_mut().remove::<Refused>();
    if let Some(refused) = &refused {
        let mut body = Json(ErrorBody::new(refused, &id)).into_response();
        *body.status_mut() = response.status();
        for (name, value) in response.headers() {
            // the length of the empty body is not that of this one
            if name != header::CONTENT_LENGTH && name != header::CONTENT_TYPE {
                body.headers_mut().append(name, value.clone());
            }
        }
        response = body;
    }
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, value);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    let (status, took) = (response.status().as_u16(), begun.elapsed());
    app.metrics.request(&route, status, took);
    let milliseconds = took.as_secs_f64() * 1e3;
    tracing::info!(request_id = %id, %method, %route, status, milliseconds, "answered");
    response
}

/// A client's id that can be written into headers, logs and JSON as it is.
fn accepted(value: &HeaderValue) -> Option<String> {
    let text = value.to_str().ok()?;
    let sane = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    ((1..=LONGEST_ID).contains(&text.len()) && text.bytes().all(sane)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_that_harm_nowhere_are_taken_over() {
        let taken = |text: &str| accepted(&HeaderValue::from_bytes(text.as_bytes()).unwrap());
        assert_eq!(taken("a-B_3.x"), Some("a-B_3.x".into()));
        for wrong in ["", "a b", "a\"b", "ä", "a/b", "{}", &"x".repeat(65)] {
            assert_eq!(taken(wrong), None, "{wrong}");
        }
    }
}
