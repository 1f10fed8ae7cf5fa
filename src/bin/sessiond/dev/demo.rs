//! The demo's own backend, as a team would write it for sessiond. It holds the server key, which no browser sees, and
//! calls the API as any other service would. A guarded service stands beside it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::RwLock;
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
use sessiond::app::App;
use sessiond_core::id::ProjectId;
use sessiond_core::session::Policy;
use sessiond_core::session::policy::COOKIE_GRACE_MIN;
use sessiond_core::session::policy::CookieScope;
use sessiond_guard::Guard;
use sessiond_guard::GuardOptions;
use sessiond_guard::Principal;
use tokio::time::timeout;
use tower::ServiceExt as _;

use super::files::Files;
use super::names::PROJECT;
use super::names::USER;

/// The largest request that the demo reads.
const BODY_BYTES_MAX: usize = 1024;

/// How long a response may take to begin, including a slow request body.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The device that stands for the visitor's own shell: `dev.env` has its tokens.
pub(super) const TERMINAL: &str = "terminal";

/// The largest response of the API that is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// A pretend device. The addresses are reserved for documentation (RFC 5737).
struct DemoDevice {
    id: &'static str,
    name: &'static str,
    user_agent: &'static str,
    ip: &'static str,
}

const DEVICES: [DemoDevice; 5] = [
    DemoDevice {
        id: "phone",
        name: "Phone",
        user_agent: "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/148.0.0.0 Mobile Safari/537.36",
        ip: "203.0.113.7",
    },
    DemoDevice {
        id: "laptop",
        name: "Laptop",
        user_agent: "Mozilla/5.0 (X11; Linux x86_64; rv:150.0) Gecko/20100101 Firefox/150.0",
        ip: "198.51.100.24",
    },
    DemoDevice {
        id: "tablet",
        name: "Tablet",
        user_agent: "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/26.0 Safari/605.1.15",
        ip: "203.0.113.88",
    },
    DemoDevice {
        id: "television",
        name: "Television",
        user_agent: "Mozilla/5.0 (Web0S; Linux/SmartTV) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 Safari/537.36",
        ip: "198.51.100.61",
    },
    DemoDevice { id: TERMINAL, name: "Terminal", user_agent: "curl/8.14.1", ip: "192.0.2.130" },
];

/// The backend. Cheap to clone; clones share state.
#[derive(Clone)]
pub(super) struct Demo {
    bearer: HeaderValue,
    base_path: Arc<str>,
    /// There while the guard is connected to this server.
    guarded: Arc<RwLock<Option<Router>>>,
    files: Arc<Files>,
    /// Turns cookie mode on.
    app: App,
    /// Variables of `dev.env` other than the terminal's tokens. Set once the server runs.
    env: Arc<OnceLock<Vec<(&'static str, String)>>>,
    /// The response to the terminal's last sign-in.
    terminal: Arc<Mutex<Option<Value>>>,
}

/// The backend, and the API that it calls.
#[derive(Clone)]
struct DemoBackend {
    demo: Demo,
    api: Router,
}

impl Demo {
    /// Takes the demo project's key, and the base path of the API.
    pub(super) fn new(server_key: &SecretString, base_path: &str, files: Arc<Files>, app: App) -> Self {
        let bearer = format!("Bearer {}", server_key.expose_secret());
        let mut bearer = HeaderValue::try_from(bearer).expect("a server key is ASCII");
        bearer.set_sensitive(true);
        Self {
            bearer,
            base_path: base_path.into(),
            guarded: Arc::default(),
            files,
            app,
            env: Arc::default(),
            terminal: Arc::default(),
        }
    }

    /// The routes. Accepts requests only from our own page, and from clients other than browsers.
    pub(super) fn routes(&self, api: Router) -> Router {
        Router::new()
            .route("/demo/sign-in", post(sign_in))
            .route("/demo/terminal", get(terminal))
            .route("/demo/feed", get(feed))
            .route("/demo/service", get(service))
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .layer(from_fn(in_time))
            .layer(from_fn(same_site))
            .with_state(DemoBackend { demo: self.clone(), api })
    }

    /// Sets the variables of `dev.env`. From now on a sign-in on the terminal writes the file.
    pub(super) fn keep_env(&self, values: Vec<(&'static str, String)>) {
        self.env.get_or_init(|| values);
    }

    /// Stores the terminal's new session, here and in `dev.env`.
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

    /// Turns the project's cookie mode on, unless it is.
    async fn use_cookies(&self) -> Result<(), String> {
        let project = ProjectId::parse(PROJECT).expect("a good name");
        if self.app.cookie_policy(&project).await.map_err(|error| error.to_string())?.is_some() {
            return Ok(());
        }
        let turn_on = |policy: &mut Policy| {
            policy.cookies.scope = CookieScope::Host;
            policy.refresh_grace = policy.refresh_grace.max(COOKIE_GRACE_MIN);
        };
        self.app.project_update(project, turn_on).await.map_err(|error| error.to_string())?;
        self.app.keys().reload().await.map_err(|error| error.to_string())?;
        Ok(())
    }

    /// Connects the guard to the server at this address, over the network as in any other service. If that fails, the
    /// guarded service says so, and everything else works.
    pub(super) async fn connect_guard(&self, address: SocketAddr, issuer: &str, server_key: SecretString) {
        let options = GuardOptions::new(format!("http://{address}"), PROJECT, issuer, server_key);
        match Guard::connect(options).await {
            Ok(guard) => {
                let guarded = Router::new().route("/demo/service", get(hello)).layer(guard.layer());
                *self.guarded.write().expect("no one panics while holding it") = Some(guarded);
            }
            Err(error) => tracing::warn!(%error, "the demo's guarded service is unavailable"),
        }
    }

    /// Ends the guard, which would complain that the server goes away.
    pub(super) fn disconnect_guard(&self) {
        self.guarded.write().expect("no one panics while holding it").take();
    }
}

impl DemoBackend {
    /// Calls the API with the server key, on behalf of the caller.
    async fn ask(self, asked: Parts, method: Method, path: &str, body: Body) -> Response {
        let query = asked.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let path = format!("{}{path}{query}", self.demo.base_path);
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = Uri::try_from(path).expect("our path, and a query that was one");
        // No other header of the page: a server key together with an `Origin` is refused.
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

/// The device and user to sign in.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DemoSignIn {
    #[serde(default = "demo_user")]
    user_id: String,
    device: String,
    /// Whether the tokens are for the browser's cookies, and not for the page.
    #[serde(default)]
    cookies: bool,
}

fn demo_user() -> String {
    USER.to_owned()
}

/// A real backend would check a password first.
async fn sign_in(State(backend): State<DemoBackend>, asked: Parts, Json(sign_in): Json<DemoSignIn>) -> Response {
    let DemoSignIn { user_id, device, cookies } = sign_in;
    let Some(device) = DEVICES.iter().find(|known| known.id == device) else {
        let known = DEVICES.map(|device| device.id).join(", ");
        return (StatusCode::BAD_REQUEST, format!("the devices here are {known}\n")).into_response();
    };
    let mut session = json!({
        "user_id": user_id,
        "device_name": device.name,
        "user_agent": device.user_agent,
        "ip": device.ip,
        "amr": ["pwd"],
    });
    let demo = backend.demo.clone();
    if cookies {
        if let Err(error) = demo.use_cookies().await {
            return (StatusCode::INTERNAL_SERVER_ERROR, format!("the project cannot use cookies: {error}\n"))
                .into_response();
        }
        session["cookies"] = json!({});
        return in_cookies(backend.ask(asked, Method::POST, "/auth/sessions", session.to_string().into()).await).await;
    }
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
        tracing::warn!(error, "cannot write the terminal's session to dev.env");
        return (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response();
    }
    Response::from_parts(head, body.into())
}

/// Turns the response to a sign-in into one that sets the cookies. Its body has no token: only the session, and what the cookies are,
/// without their values.
async fn in_cookies(answer: Response) -> Response {
    if answer.status() != StatusCode::OK {
        return answer;
    }
    let Ok(body) = to_bytes(answer.into_body(), ANSWER_BYTES_MAX).await else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    let Ok(grant) = serde_json::from_slice::<Value>(&body) else { return StatusCode::BAD_GATEWAY.into_response() };
    let values = grant["set_cookies"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let described: Vec<_> = values
        .clone()
        .filter_map(|cookie| {
            let (pair, attributes) = cookie.split_once("; ")?;
            Some(format!("{}; {attributes}", pair.split('=').next()?))
        })
        .collect();
    let mut response = Json(json!({"session": grant["session"], "cookies": described})).into_response();
    for mut value in values.filter_map(|cookie| HeaderValue::from_str(cookie).ok()) {
        value.set_sensitive(true);
        response.headers_mut().append(header::SET_COOKIE, value);
    }
    response
}

/// The terminal's session while it is live, else 204. Not a secret: the caller may sign in any user anyway.
async fn terminal(State(backend): State<DemoBackend>, asked: Parts) -> Response {
    let last = backend.demo.terminal.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(grant) = last else { return StatusCode::NO_CONTENT.into_response() };
    // Introspection does not rotate a refresh token.
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

/// The project's revocations, live.
async fn feed(State(backend): State<DemoBackend>, asked: Parts) -> Response {
    backend.ask(asked, Method::GET, "/auth/revocations:watch", Body::empty()).await
}

/// A service behind the guard.
async fn service(State(backend): State<DemoBackend>, request: Request) -> Response {
    let guarded = backend.demo.guarded.read().expect("no one panics while holding it").clone();
    let Some(guarded) = guarded else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the demo's guard has not started; see the log\n").into_response();
    };
    match guarded.oneshot(request).await {
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

/// Times out slow requests.
async fn in_time(request: Request, next: Next) -> Response {
    let answer = timeout(ANSWER_TIMEOUT, next.run(request)).await;
    answer.unwrap_or_else(|_| StatusCode::REQUEST_TIMEOUT.into_response())
}

/// Refuses requests from pages of other sites: this backend signs in anyone it is asked to.
async fn same_site(request: Request, next: Next) -> Response {
    if is_foreign(request.headers()) {
        return (StatusCode::FORBIDDEN, "only this server's own page may call this\n").into_response();
    }
    next.run(request).await
}

/// Whether the browser says that the request comes from another site (Fetch Metadata, `Sec-Fetch-Site`; RFC 6454 §7).
fn is_foreign(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    let crosses = site.is_some_and(|site| site != b"same-origin" && site != b"none");
    // The host was checked before: it is ours.
    let host = headers.get(header::HOST).map_or(&[][..], HeaderValue::as_bytes);
    let origin = headers.get(header::ORIGIN).map(HeaderValue::as_bytes);
    crosses || origin.is_some_and(|origin| origin.strip_prefix(b"http://") != Some(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_from_pages_of_other_sites_are_recognised() {
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
