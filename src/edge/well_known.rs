//! What is no RPC: the public keys, and whether the server is alive and ready.

use axum::Router;
use axum::response::Response;
use axum::routing::get;
use http::StatusCode;

use super::jwks;
use super::plain::text;
use crate::app::App;
use crate::config::Web;

/// What the last look at the server's conditions found: `None` when it is ready, otherwise a line for each reason.
pub(super) type Readiness = tokio::sync::watch::Receiver<Option<String>>;

/// The routes, the keys under every base path.
pub(super) fn routes(app: App, ready: Readiness, web: &Web) -> Router {
    health(ready).merge(jwks::routes(app, web))
}

/// Whether the server is alive and ready.
pub(super) fn health(ready: Readiness) -> Router {
    let ready = move || {
        let reasons = ready.borrow().clone();
        async move { readiness(reasons) }
    };
    Router::new().route("/healthz", get(alive)).route("/readyz", get(ready))
}

/// The process runs. Says nothing of the database: a restart would not mend it.
async fn alive() -> Response {
    text(StatusCode::OK, "alive")
}

/// Whether the server can do its work, as of the last look: asking costs the database nothing.
fn readiness(reasons: Option<String>) -> Response {
    match reasons {
        None => text(StatusCode::OK, "ready"),
        Some(reasons) => text(StatusCode::SERVICE_UNAVAILABLE, reasons),
    }
}
