//! Bodies: so many bytes, in so much time, of all requests together so much.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes, to_bytes},
    extract::{FromRequest, Multipart, Request},
    http::{Extensions, HeaderMap, header},
};
use http_body_util::LengthLimitError;
use tokio::sync::OwnedSemaphorePermit;

use super::reply::Refused;
use crate::{
    app::App,
    decode,
    prepare::{Prepared, prepare},
};

/// A body, and the room that it takes until it is dropped.
pub struct Held {
    pub bytes: Bytes,
    content_type: String,
    /// What the layers said of the request; that forms are not limited once more is among it.
    extensions: Extensions,
    _room: OwnedSemaphorePermit,
}

/// Reads a body within the limits.
///
/// # Errors
/// If it is too large, comes too slowly or is cut off, or if too much is being read already.
pub async fn read(app: &App, request: Request) -> Result<Held, Refused> {
    if !app.is_open() {
        return Err(Refused::Unavailable);
    }
    let limit = app.config.limits.max_body;
    let declared = content_length(request.headers());
    if declared.is_some_and(|length| length > limit as u64) {
        return Err(Refused::TooLarge(format!("the body has more than {limit} bytes")));
    }
    // as it is: the boundary of a form is case-sensitive
    let content_type = text(request.headers(), header::CONTENT_TYPE).to_owned();
    let extensions = request.extensions().clone();
    // without a length it may become as long as the limit
    let kibibytes = declared.map_or(limit, |length| length as usize).div_ceil(1024).max(1) as u32;
    let room = Arc::clone(&app.room)
        .try_acquire_many_owned(kibibytes)
        .map_err(|_| Refused::Busy { retry_after: app.queue.retry_after() })?;
    let read = tokio::time::timeout(app.config.body_timeout, to_bytes(request.into_body(), limit)).await;
    match read {
        Ok(Ok(bytes)) => Ok(Held { bytes, content_type, extensions, _room: room }),
        Ok(Err(error)) if is_limit(&error) => {
            Err(Refused::TooLarge(format!("the body has more than {limit} bytes")))
        }
        Ok(Err(_)) => {
            Err(Refused::Malformed("the body ends before its time, or is not what its headers say".into()))
        }
        Err(_) => Err(Refused::Slow),
    }
}

impl Held {
    /// Whether the client says that this is JSON.
    pub fn is_json(&self) -> bool {
        self.kind() == "application/json"
    }

    fn kind(&self) -> String {
        self.content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
    }

    /// The images in it, as the networks take them. The room that the body takes is given back when they are made.
    ///
    /// # Errors
    /// If there is none, or one cannot be decoded within the limits or is not for these networks.
    pub async fn images(self, app: &Arc<App>) -> Result<Vec<Prepared>, Refused> {
        let (limits, shape) = (limits(app), app.facts.input);
        let files = if self.kind() == "multipart/form-data" { Some(self.files(app).await?) } else { None };
        decoded(app, move || {
            let pictures = match files {
                Some(files) => decode::files(files.iter().map(AsRef::as_ref), &limits)?,
                None => decode::pictures(&self.bytes, self.is_json(), &limits)?,
            };
            pictures.into_iter().map(|picture| prepare(picture, shape)).collect()
        })
        .await
    }

    /// The files of a form.
    async fn files(&self, app: &App) -> Result<Vec<Bytes>, Refused> {
        let mut form = Request::builder()
            .header(header::CONTENT_TYPE, &self.content_type)
            .body(Body::from(self.bytes.clone()))
            .map_err(|_| Refused::Malformed("the form's content type cannot be read".into()))?;
        let wrong =
            |error: &dyn std::fmt::Display| Refused::Malformed(format!("the form cannot be read: {error}"));
        *form.extensions_mut() = self.extensions.clone();
        let mut form = Multipart::from_request(form, &()).await.map_err(|error| wrong(&error))?;
        let mut files = Vec::new();
        while let Some(field) = form.next_field().await.map_err(|error| wrong(&error))? {
            if files.len() == app.config.limits.max_images {
                let most = app.config.limits.max_images;
                return Err(Refused::TooLarge(format!(
                    "a request may have {most} images, and this one has more"
                )));
            }
            files.push(field.bytes().await.map_err(|error| wrong(&error))?);
        }
        Ok(files)
    }
}

/// The limits of a request's images.
pub fn limits(app: &App) -> decode::Limits {
    let limits = app.config.limits;
    decode::Limits {
        max_pixels: limits.max_pixels,
        max_total_pixels: limits.max_pixels.saturating_mul(2),
        max_images: limits.max_images,
        max_bytes: limits.max_body,
    }
}

/// Runs a decoder on a thread where it may take its time; no more at once than there are processors.
///
/// # Errors
/// As the decoder.
pub async fn decoded<T: Send + 'static>(
    app: &App,
    decoder: impl FnOnce() -> Result<T, decode::Problem> + Send + 'static,
) -> Result<T, Refused> {
    let permit = Arc::clone(&app.decoders).acquire_owned().await.map_err(|_| Refused::Unavailable)?;
    let result = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        decoder()
    });
    Ok(result.await.map_err(|_| Refused::Malformed("the image made its decoder fail".into()))??)
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> &str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Whether reading ended at the limit; everything else that can be wrong with a body comes through the same type.
fn is_limit(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<LengthLimitError>())
}
