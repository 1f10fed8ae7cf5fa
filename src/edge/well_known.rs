//! What is no RPC: the public keys, and whether the server is alive and ready.

use axum::Router;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::get;
use http::StatusCode;
use http::header;

use super::jwks;
use crate::app::App;

/// Whether the database answered when it was last looked at.
pub(super) type Readiness = tokio::sync::watch::Receiver<bool>;

/// The routes, the keys under every base path.
pub(super) fn routes(app: App, ready: Readiness, base_paths: &[String]) -> Router {
    let ready = move || {
        let ready = *ready.borrow();
        async move { readiness(ready) }
    };
    let health = Router::new().route("/healthz", get(alive)).route("/readyz", get(ready));
    health.merge(jwks::routes(app, base_paths))
}

/// The process runs. Says nothing of the database: a restart would not mend it.
async fn alive() -> Response {
    probe(StatusCode::OK, "alive")
}

/// Whether the server can do its work: what the last look at the database found. Asking costs the database nothing.
fn readiness(ready: bool) -> Response {
    if ready { probe(StatusCode::OK, "ready") } else { unavailable() }
}

/// The database does not answer.
pub(super) fn unavailable() -> Response {
    probe(StatusCode::SERVICE_UNAVAILABLE, "the database is unavailable")
}

fn probe(status: StatusCode, text: &'static str) -> Response {
    (status, [(header::CACHE_CONTROL, "no-store")], text).into_response()
}
