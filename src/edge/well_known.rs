//! What is no RPC: the public keys, and whether the server is alive and ready.

use axum::Json;
use axum::Router;
use axum::extract::Path;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::get;
use http::HeaderValue;
use http::StatusCode;
use http::header;
use serde_json::json;

use crate::app::App;
use crate::id::ProjectId;
use crate::rpc::status::DOMAIN;
use crate::session::policy::ACCESS_TOKEN_TTL_MAX;
use crate::token::jwks;

/// How long a verifier may keep the keys, in seconds: an hour. A new key is published at least this long before it signs.
pub(super) const JWKS_MAX_AGE: &str = "public, max-age=3600";

/// Whether the database answered when it was last looked at.
pub(super) type Readiness = tokio::sync::watch::Receiver<bool>;

/// The routes, the keys under every base path.
pub(super) fn routes(app: App, ready: Readiness, base_paths: &[String]) -> Router {
    let ready = move || {
        let ready = *ready.borrow();
        async move { readiness(ready) }
    };
    let health = Router::new().route("/healthz", get(alive)).route("/readyz", get(ready));
    let keys = |router: Router<App>, base: &String| {
        let base = base.trim_end_matches('/');
        router
            .route(&format!("{base}/.well-known/jwks.json"), get(all_keys))
            .route(&format!("{base}/projects/{{project_id}}/.well-known/jwks.json"), get(project_keys))
    };
    base_paths.iter().fold(health, keys).with_state(app)
}

/// The process runs. Says nothing of the database: a restart would not mend it.
async fn alive() -> Response {
    probe(StatusCode::OK, "alive")
}

/// Whether the server can do its work: what the last look at the database found. Asking costs the database nothing.
fn readiness(ready: bool) -> Response {
    if ready { probe(StatusCode::OK, "ready") } else { unavailable() }
}

pub(super) fn unavailable() -> Response {
    probe(StatusCode::SERVICE_UNAVAILABLE, "the database is unavailable")
}

fn probe(status: StatusCode, text: &'static str) -> Response {
    (status, [(header::CACHE_CONTROL, "no-store")], text).into_response()
}

async fn all_keys(State(app): State<App>) -> Response {
    let snapshot = app.keys().snapshot();
    cacheable(jwks::of_all(&snapshot.keyring, app.clock().now(), ACCESS_TOKEN_TTL_MAX))
}

async fn project_keys(State(app): State<App>, Path(project): Path<String>) -> Response {
    let Some(project) = ProjectId::parse(&project) else { return no_project() };
    let snapshot = match app.keys().with(|snapshot| snapshot.policy(&project).is_some()).await {
        Ok(snapshot) => snapshot,
        // What is known stays good; that a project is unknown is not known while the database is away.
        Err(_) => return unavailable(),
    };
    match jwks::of_project(&snapshot.keyring, &project, app.clock().now(), ACCESS_TOKEN_TTL_MAX) {
        Some(keys) => cacheable(keys),
        None => no_project(),
    }
}

fn cacheable(keys: jwks::JwkSet) -> Response {
    ([(header::CACHE_CONTROL, HeaderValue::from_static(JWKS_MAX_AGE))], Json(keys)).into_response()
}

pub(super) fn no_project() -> Response {
    let reason = json!({
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "PROJECT_NOT_FOUND",
        "domain": DOMAIN,
        "metadata": {},
    });
    let body = json!({"code": 5, "message": "There is no such project.", "details": [reason]});
    (StatusCode::NOT_FOUND, Json(body)).into_response()
}
