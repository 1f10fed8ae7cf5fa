//! The public keys, for services that verify tokens by themselves (RFC 7517). They change rarely and are requested often,
//! by anyone. So each document is built when it is first requested after a change, and a client that has the current one gets a 304.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::RwLock;

use axum::Router;
use axum::extract::Path;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::HeaderMap;
use http::StatusCode;
use http::header;

use super::answer::answer;
use super::plain::unavailable;
use crate::app::App;
use crate::app::Snapshot;
use crate::config::Web;
use crate::rpc::status;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::session::Refusal;
use sessiond_core::session::policy::ACCESS_TOKEN_TTL_MAX;
use sessiond_core::token;
use sessiond_core::token::jwks;
use sessiond_core::token::jwks::JwkSet;

/// The routes, under every base path. The document of all projects is opt-in: it grows with them, and reveals how many there
/// are.
pub(super) fn routes(app: App, web: &Web) -> Router {
    let keys = |router: Router<JwksState>, base: &String| {
        let base = base.trim_end_matches('/');
        let router = match web.jwks_of_all_projects {
            true => router.route(&format!("{base}/.well-known/jwks.json"), get(all_keys)),
            false => router,
        };
        router.route(&format!("{base}/projects/{{project_id}}/.well-known/jwks.json"), get(project_keys))
    };
    web.base_paths.iter().fold(Router::new(), keys).with_state(JwksState { app, documents: Arc::default() })
}

#[derive(Clone)]
struct JwksState {
    app: App,
    documents: Arc<RwLock<Option<Arc<Documents>>>>,
}

/// The documents that were requested, built from one snapshot of the keys.
struct Documents {
    snapshot: Arc<Snapshot>,
    /// The period in which they are correct: a retired key expires by itself.
    from: Timestamp,
    until: Option<Timestamp>,
    all: OnceLock<JwksDocument>,
    projects: Mutex<HashMap<ProjectId, JwksDocument>>,
}

/// A JWK set as it is sent, and its entity tag (RFC 9110 §8.8.3).
#[derive(Clone)]
struct JwksDocument {
    text: Bytes,
    tag: String,
}

async fn all_keys(State(keys): State<JwksState>, headers: HeaderMap) -> Response {
    keys.documents(keys.app.keys().snapshot()).all().answer(&headers)
}

async fn project_keys(State(keys): State<JwksState>, Path(project): Path<String>, headers: HeaderMap) -> Response {
    let Some(project) = ProjectId::parse(&project) else { return no_project() };
    let snapshot = match keys.app.keys().find(&project, |snapshot| snapshot.policy(&project).is_some()).await {
        Ok(snapshot) => snapshot,
        // Cached projects are still answered; whether another project exists is unknown while the database is unavailable.
        Err(_) => return unavailable(),
    };
    match keys.documents(snapshot).of(&project) {
        Some(document) => document.answer(&headers),
        None => no_project(),
    }
}

impl JwksState {
    /// The documents of this snapshot now.
    fn documents(&self, snapshot: Arc<Snapshot>) -> Arc<Documents> {
        let now = self.app.clock().now();
        let last = self.documents.read().expect("no one panics while holding it").clone();
        if let Some(last) = last.filter(|last| Arc::ptr_eq(&last.snapshot, &snapshot) && last.are_good_at(now)) {
            return last;
        }
        let mut current = self.documents.write().expect("no one panics while holding it");
        // Another caller may have been here since.
        if let Some(last) =
            current.as_ref().filter(|last| Arc::ptr_eq(&last.snapshot, &snapshot) && last.are_good_at(now))
        {
            return Arc::clone(last);
        }
        Arc::clone(current.insert(Arc::new(Documents::new(snapshot, now))))
    }
}

impl Documents {
    fn new(snapshot: Arc<Snapshot>, now: Timestamp) -> Self {
        let until = jwks::next_change(&snapshot.keyring, now, ACCESS_TOKEN_TTL_MAX);
        Self { from: now, until, all: OnceLock::new(), projects: Mutex::default(), snapshot }
    }

    fn all(&self) -> &JwksDocument {
        let all = || JwksDocument::new(&jwks::of_all(&self.snapshot.keyring, self.from, ACCESS_TOKEN_TTL_MAX));
        self.all.get_or_init(all)
    }

    /// The document of a project; `None` if it has no key.
    fn of(&self, project: &ProjectId) -> Option<JwksDocument> {
        let mut projects = self.projects.lock().expect("no one panics while holding it");
        if let Some(document) = projects.get(project) {
            return Some(document.clone());
        }
        let set = jwks::of_project(&self.snapshot.keyring, project, self.from, ACCESS_TOKEN_TTL_MAX)?;
        Some(projects.entry(project.clone()).or_insert(JwksDocument::new(&set)).clone())
    }

    fn are_good_at(&self, now: Timestamp) -> bool {
        self.from <= now && self.until.is_none_or(|until| now < until)
    }
}

impl JwksDocument {
    fn new(set: &JwkSet) -> Self {
        let text = serde_json::to_vec(set).expect("strings in a struct are JSON");
        let tag = format!("\"{}\"", URL_SAFE_NO_PAD.encode(token::fingerprint(&text)));
        Self { text: text.into(), tag }
    }

    fn answer(&self, asked: &HeaderMap) -> Response {
        let headers = [(header::CACHE_CONTROL, cache_control()), (header::ETAG, self.tag.clone())];
        if self.is_known_to(asked) {
            return (StatusCode::NOT_MODIFIED, headers).into_response();
        }
        (headers, [(header::CONTENT_TYPE, "application/json")], self.text.clone()).into_response()
    }

    /// Whether the caller has this document: `If-None-Match`, compared weakly (RFC 9110 §13.1.2).
    fn is_known_to(&self, asked: &HeaderMap) -> bool {
        let values = asked.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        let mut tags = values.flat_map(|value| value.split(',')).map(str::trim);
        tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == self.tag)
    }
}

/// How long a verifier may keep the keys. A new key is published at least this long before it signs.
pub(super) fn cache_control() -> String {
    format!("public, max-age={}", jwks::MAX_AGE.as_secs())
}

pub(super) fn no_project() -> Response {
    answer(&status::refused(Refusal::ProjectNotFound))
}
