//! What is asked over HTTP, and what is answered.

mod attack;
mod body;
mod classify;
mod health;
mod model;
mod observe;
mod pages;
mod reply;
mod runs;

use std::sync::Arc;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    http::header,
    middleware::{self, Next},
    response::Response,
    routing::get,
};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::{
    Modify, OpenApi,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::app::App;
use reply::Refused;

/// What the description says before the paths.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "talion: a guard in front of a classifier",
        description = "Answers image-classification requests through a restoration network, and says how far restoration \
                       moved the answer."
    ),
    modifiers(&Bearer)
)]
struct Description;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        openapi.components.get_or_insert_default().add_security_scheme("bearer", scheme);
    }
}

/// Everything that the server answers.
pub fn router(app: Arc<App>) -> Router {
    let (api, mut description) = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(classify::classify))
        .routes(routes!(model::model))
        .routes(routes!(model::samples))
        .routes(routes!(model::sample))
        .routes(routes!(attack::attack))
        .routes(routes!(runs::list))
        .routes(routes!(runs::report))
        .routes(routes!(health::metrics))
        .split_for_parts();
    let protected = api.route_layer(middleware::from_fn_with_state(Arc::clone(&app), admit));
    let (open, health) = OpenApiRouter::new()
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .split_for_parts();
    description.merge(health);
    protected
        .merge(open)
        .merge(pages::router())
        .route("/openapi.json", get(move || std::future::ready(axum::Json(description.clone()))))
        .fallback(|| async { Refused::NotFound })
        .method_not_allowed_fallback(|| async { Refused::MethodNotAllowed })
        // bodies are limited where they are read
        .layer(DefaultBodyLimit::disable())
        .layer(CatchPanicLayer::custom(|_| axum::response::IntoResponse::into_response(Refused::Internal)))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), observe::observe))
        .with_state(app)
}

/// Lets only those in who have a token, if there are tokens.
async fn admit(State(app): State<Arc<App>>, request: Request, next: Next) -> Result<Response, Refused> {
    let said = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if app.config.tokens.admit(said) { Ok(next.run(request).await) } else { Err(Refused::Unauthorized) }
}
