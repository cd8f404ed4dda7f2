//! The pages, which are a part of the program: they need no other place and no network.

use std::sync::Arc;

use axum::{
    Router,
    http::{HeaderName, header},
    response::IntoResponse,
    routing::get,
};

use crate::app::App;

/// Only what comes from here may run, and nobody may frame it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// As [`POLICY`], and styles inside the page: a report that is shown in a frame has some, and is under the policy of its frame.
const RUNS_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
     img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

type Page = ([(HeaderName, &'static str); 4], &'static str);

/// The pages and what they are made of.
pub fn router() -> Router<Arc<App>> {
    const HTML: &str = "text/html; charset=utf-8";
    const SCRIPT: &str = "text/javascript; charset=utf-8";
    let files: [(&str, &str, &str); 12] = [
        ("/", HTML, include_str!("../../assets/index.html")),
        ("/runs", HTML, include_str!("../../assets/runs.html")),
        ("/assets/api.js", SCRIPT, include_str!("../../assets/api.js")),
        ("/assets/app.js", SCRIPT, include_str!("../../assets/app.js")),
        ("/assets/draw.js", SCRIPT, include_str!("../../assets/draw.js")),
        ("/assets/facts.js", SCRIPT, include_str!("../../assets/facts.js")),
        ("/assets/runs.js", SCRIPT, include_str!("../../assets/runs.js")),
        ("/assets/stream.js", SCRIPT, include_str!("../../assets/stream.js")),
        ("/assets/target.js", SCRIPT, include_str!("../../assets/target.js")),
        ("/assets/words.js", SCRIPT, include_str!("../../assets/words.js")),
        ("/assets/style.css", "text/css; charset=utf-8", include_str!("../../assets/style.css")),
        ("/assets/icon.svg", "image/svg+xml", include_str!("../../assets/icon.svg")),
    ];
    let add = |router: Router<Arc<App>>, (path, kind, text): (&str, &'static str, &'static str)| {
        let policy = if path == "/runs" { RUNS_POLICY } else { POLICY };
        router.route(path, get(move || std::future::ready(page(kind, policy, text).into_response())))
    };
    files.into_iter().fold(Router::new(), add)
}

fn page(kind: &'static str, policy: &'static str, text: &'static str) -> Page {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::REFERRER_POLICY, "no-referrer"),
        // the program may be another after a restart
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text)
}
