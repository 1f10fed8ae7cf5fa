//! The demo's own backend: what any team writes in front of sessiond. It holds the server key, which no browser ever sees,
//! and asks the API as any other service would; a service of its own stands behind the guard.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::time::Duration;

use axum::Extension;
use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::body::to_bytes;
use axum::extract::DefaultBodyLimit;
use axum::extract::Request;
use axum::extract::State;
use axum::middleware::Next;
use axum::middleware::from_fn;
use axum::response::IntoResponse as _;
use axum::response::Response;
use axum::routing::get;
use axum::routing::post;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::Uri;
use http::header;
use http::request::Parts;
use secrecy::ExposeSecret as _;
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;
use sessiond::guard::Guard;
use sessiond::guard::GuardOptions;
use sessiond::guard::Principal;
use tokio::time::timeout;
use tower::ServiceExt as _;

use super::files::Files;
use super::names::PROJECT;
use super::names::USER;

/// The largest request that the demo reads.
const BODY_BYTES_MAX: usize = 1024;

/// How long an answer may take to begin, a slow body included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The device that is the visitor's own shell: `dev.env` has its tokens.
pub(super) const TERMINAL: &str = "terminal";

/// The largest answer of the API that is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// What a device pretends to be. The addresses are for documentation, and nobody's (RFC 5737).
struct Device {
    id: &'static str,
    name: &'static str,
    user_agent: &'static str,
    ip: &'static str,
}

const DEVICES: [Device; 5] = [
    Device {
        id: "phone",
        name: "Phone",
        user_agent: "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/148.0.0.0 Mobile Safari/537.36",
        ip: "203.0.113.7",
    },
    Device {
        id: "laptop",
        name: "Laptop",
        user_agent: "Mozilla/5.0 (X11; Linux x86_64; rv:150.0) Gecko/20100101 Firefox/150.0",
        ip: "198.51.100.24",
    },
    Device {
        id: "tablet",
        name: "Tablet",
        user_agent: "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/26.0 Safari/605.1.15",
        ip: "203.0.113.88",
    },
    Device {
        id: "television",
        name: "Television",
        user_agent: "Mozilla/5.0 (Web0S; Linux/SmartTV) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 Safari/537.36",
        ip: "198.51.100.61",
    },
    Device { id: TERMINAL, name: "Terminal", user_agent: "curl/8.14.1", ip: "192.0.2.130" },
];

/// The backend. Clones are one and the same.
#[derive(Clone)]
pub(super) struct Demo {
    bearer: HeaderValue,
    base_path: Arc<str>,
    /// There once the guard is, which follows the server that it is served by.
    guarded: Arc<OnceLock<Router>>,
    files: Arc<Files>,
    /// What `dev.env` has beside the terminal's tokens; there once the server is.
    env: Arc<OnceLock<Vec<(&'static str, String)>>>,
    /// The answer to the terminal's last sign-in.
    terminal: Arc<Mutex<Option<Value>>>,
}

/// The backend, and the API that it asks.
#[derive(Clone)]
struct Backend {
    demo: Demo,
    api: Router,
}

impl Demo {
    /// Takes the key of the demo project, and the path below which the API is.
    pub(super) fn new(server_key: &SecretString, base_path: &str, files: Arc<Files>) -> Self {
        let bearer = format!("Bearer {}", server_key.expose_secret());
        let mut bearer = HeaderValue::try_from(bearer).expect("a server key is ASCII");
        bearer.set_sensitive(true);
        Self {
            bearer,
            base_path: base_path.into(),
            guarded: Arc::default(),
            files,
            env: Arc::default(),
            terminal: Arc::default(),
        }
    }

    /// The routes. Only our own page may ask, and whoever is no page at all.
    pub(super) fn routes(&self, api: Router) -> Router {
        Router::new()
            .route("/demo/sign-in", post(sign_in))
            .route("/demo/terminal", get(terminal))
            .route("/demo/feed", get(feed))
            .route("/demo/service", get(service))
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .layer(from_fn(in_time))
            .layer(from_fn(same_site))
            .with_state(Backend { demo: self.clone(), api })
    }

    /// What `dev.env` says beside the terminal's tokens. From now on a sign-in on the terminal writes it.
    pub(super) fn keep_env(&self, values: Vec<(&'static str, String)>) {
        self.env.get_or_init(|| values);
    }

    /// Remembers the terminal's new session, here and in `dev.env`.
    fn keep_terminal(&self, grant: Value) -> Result<(), String> {
        let Some(env) = self.env.get() else { return Ok(()) };
        let token = |name: &str| grant[name].as_str().unwrap_or_default().to_owned();
        let tokens =
            [("SESSIOND_ACCESS_TOKEN", token("access_token")), ("SESSIOND_REFRESH_TOKEN", token("refresh_token"))];
        let mut last = self.terminal.lock().unwrap_or_else(PoisonError::into_inner);
        let values: Vec<_> = env.iter().chain(&tokens).map(|(name, value)| (*name, value.as_str())).collect();
        self.files.write_env(&values)?;
        *last = Some(grant);
        Ok(())
    }

    /// Has the guard follow the server at this address: over the wire, as in any other service. Where it cannot, the guarded
    /// service says so, and all else works.
    pub(super) async fn stand_guard(&self, address: SocketAddr, issuer: &str, server_key: SecretString) {
        let options = GuardOptions::new(format!("http://{address}"), PROJECT, issuer, server_key);
        match Guard::connect(options).await {
            Ok(guard) => {
                let guarded = Router::new().route("/demo/service", get(hello)).layer(guard.layer());
                self.guarded.get_or_init(|| guarded);
            }
            Err(error) => tracing::warn!(%error, "the demo has no guarded service"),
        }
    }
}

impl Backend {
    /// Asks the API with the server key, on behalf of the caller.
    async fn ask(self, asked: Parts, method: Method, path: &str, body: Body) -> Response {
        let query = asked.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let path = format!("{}{path}{query}", self.demo.base_path);
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = Uri::try_from(path).expect("our path, and a query that was one");
        // Nothing that a page has set but this: a server key that comes with an origin is refused, rightly.
        if let Some(accept) = asked.headers.get(header::ACCEPT) {
            request.headers_mut().insert(header::ACCEPT, accept.clone());
        }
        request.headers_mut().insert(header::AUTHORIZATION, self.demo.bearer);
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        *request.extensions_mut() = asked.extensions;
        match self.api.oneshot(request).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        }
    }
}

/// Which device to sign in, and whom.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignIn {
    #[serde(default = "demo_user")]
    user_id: String,
    device: String,
}

fn demo_user() -> String {
    USER.to_owned()
}

/// A real backend would look at a password first.
async fn sign_in(State(backend): State<Backend>, asked: Parts, Json(sign_in): Json<SignIn>) -> Response {
    let SignIn { user_id, device } = sign_in;
    let Some(device) = DEVICES.iter().find(|known| known.id == device) else {
        let known = DEVICES.map(|device| device.id).join(", ");
        return (StatusCode::BAD_REQUEST, format!("the devices here are {known}\n")).into_response();
    };
    let session = json!({
        "user_id": user_id,
        "device_name": device.name,
        "user_agent": device.user_agent,
        "ip": device.ip,
        "amr": ["pwd"],
    });
    let demo = backend.demo.clone();
    let answer = backend.ask(asked, Method::POST, "/auth/sessions", session.to_string().into()).await;
    if device.id != TERMINAL || user_id != USER || answer.status() != StatusCode::OK {
        return answer;
    }
    let (head, body) = answer.into_parts();
    let Ok(body) = to_bytes(body, ANSWER_BYTES_MAX).await else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    let kept = serde_json::from_slice(&body).map_err(|error| error.to_string());
    if let Err(error) = kept.and_then(|grant| demo.keep_terminal(grant)) {
        tracing::warn!(error, "the terminal's session is not in dev.env");
        return (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response();
    }
    Response::from_parts(head, body.into())
}

/// The terminal's session, while it lasts; nothing (204) once it has ended. It is no secret from who may sign anyone in.
async fn terminal(State(backend): State<Backend>, asked: Parts) -> Response {
    let last = backend.demo.terminal.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(grant) = last else { return StatusCode::NO_CONTENT.into_response() };
    // Of a refresh token this changes nothing.
    let token = json!({"token": grant["refresh_token"]}).to_string();
    let answer = backend.ask(asked, Method::POST, "/auth/tokens:introspect", token.into()).await;
    if answer.status() != StatusCode::OK {
        return answer;
    }
    let Ok(body) = to_bytes(answer.into_body(), ANSWER_BYTES_MAX).await else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    match serde_json::from_slice::<Value>(&body) {
        Ok(state) if state["active"] == true => Json(grant).into_response(),
        Ok(_) | Err(_) => StatusCode::NO_CONTENT.into_response(),
    }
}

/// What ends in the project, as it does.
async fn feed(State(backend): State<Backend>, asked: Parts) -> Response {
    backend.ask(asked, Method::GET, "/auth/revocations:watch", Body::empty()).await
}

/// A service that lets in who is signed in.
async fn service(State(backend): State<Backend>, request: Request) -> Response {
    let Some(guarded) = backend.demo.guarded.get() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the demo's guard has not begun; the log says why\n").into_response();
    };
    match guarded.clone().oneshot(request).await {
        Ok(answer) => answer,
        Err(never) => match never {},
    }
}

async fn hello(Extension(principal): Extension<Principal>) -> Json<Value> {
    Json(json!({
        "hello": principal.user_id().as_str(),
        "session_id": principal.session_id().to_string(),
    }))
}

/// Cuts off whoever takes too long to ask.
async fn in_time(request: Request, next: Next) -> Response {
    let answer = timeout(ANSWER_TIMEOUT, next.run(request)).await;
    answer.unwrap_or_else(|_| StatusCode::REQUEST_TIMEOUT.into_response())
}

/// Refuses what the page of another site asks for: here is someone who signs in whom they are told to.
async fn same_site(request: Request, next: Next) -> Response {
    if is_foreign(request.headers()) {
        return (StatusCode::FORBIDDEN, "only this server's own page may ask for this\n").into_response();
    }
    next.run(request).await
}

/// Whether a browser says that another site's page asks (Fetch Metadata, `Sec-Fetch-Site`; RFC 6454 §7).
fn is_foreign(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    let crosses = site.is_some_and(|site| site != b"same-origin" && site != b"none");
    // The host was checked before: it is one of ours.
    let host = headers.get(header::HOST).map_or(&[][..], HeaderValue::as_bytes);
    let origin = headers.get(header::ORIGIN).map(HeaderValue::as_bytes);
    crosses || origin.is_some_and(|origin| origin.strip_prefix(b"http://") != Some(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_sites_page_is_known_by_what_its_browser_says() {
        let foreign = |headers: &[(&'static str, &'static str)]| {
            let headers = headers
                .iter()
                .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)));
            is_foreign(&headers.chain([(header::HOST, HeaderValue::from_static("localhost:8080"))]).collect())
        };
        for ours in [
            &[][..],
            &[("sec-fetch-site", "same-origin")],
            &[("sec-fetch-site", "none")],
            &[("origin", "http://localhost:8080")],
        ] {
            assert!(!foreign(ours), "{ours:?}");
        }
        for theirs in [
            &[("sec-fetch-site", "cross-site")][..],
            &[("sec-fetch-site", "same-site")],
            &[("origin", "https://localhost:8080")],
            &[("origin", "http://localhost:3000")],
            &[("origin", "http://evil.example")],
            &[("origin", "null")],
            &[("sec-fetch-site", "same-origin"), ("origin", "http://evil.example")],
        ] {
            assert!(foreign(theirs), "{theirs:?}");
        }
    }
}
