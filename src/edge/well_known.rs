//! Endpoints that are not RPCs: the public keys, liveness and readiness.

use axum::Router;
use axum::response::Response;
use axum::routing::get;
use http::StatusCode;

use super::jwks;
use super::plain::text;
use crate::app::App;
use crate::config::Web;

/// The result of the last readiness check: `None` if the server is ready, otherwise a line for each reason.
pub(super) type Readiness = tokio::sync::watch::Receiver<Option<String>>;

/// The routes, the keys under every base path.
pub(super) fn routes(app: App, ready: Readiness, web: &Web) -> Router {
    health(ready).merge(jwks::routes(app, web))
}

/// The routes for liveness and readiness.
pub(super) fn health(ready: Readiness) -> Router {
    let ready = move || {
        let reasons = ready.borrow().clone();
        async move { readiness(reasons) }
    };
    Router::new().route("/healthz", get(alive)).route("/readyz", get(ready))
}

/// The process runs. Independent of the database, which a restart would not repair.
async fn alive() -> Response {
    text(StatusCode::OK, "alive")
}

/// Whether the server is ready, as of the last check: a request causes no database query.
fn readiness(reasons: Option<String>) -> Response {
    match reasons {
        None => text(StatusCode::OK, "ready"),
        Some(reasons) => text(StatusCode::SERVICE_UNAVAILABLE, reasons),
    }
}
