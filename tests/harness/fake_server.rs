//! A fake sessiond, scripted by the test, over a real socket: for behaviour that the real one never shows, or only in a
//! serious failure.

use std::{
    collections::VecDeque,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, UNIX_EPOCH},
};

use axum::{
    Router,
    body::Body,
    extract::State,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{StreamExt as _, stream::unfold};
use http::StatusCode;
use http_body::Frame;
use http_body_util::StreamBody;
use prost::Message as _;
use serde_json::json;
use sessiond::pb::{
    Heartbeat, Revocation, RevocationBatch, SnapshotBegin, SnapshotComplete, WatchRevocationsRequest,
    WatchRevocationsResponse, revocation::Ended, watch_revocations_response::Event,
};
use sessiond_core::clock::{Clock, Timestamp};
use tokio::sync::mpsc;

use super::{ISSUER, PROJECT, serve_http};

/// See the module.
pub struct FakeServer {
    pub addr: SocketAddr,
    settings: Arc<Mutex<Settings>>,
    streams: tokio::sync::Mutex<mpsc::UnboundedReceiver<Stream>>,
}

struct Settings {
    /// The metadata document.
    metadata: String,
    /// The times in the next responses, in order; the right time afterwards.
    dates: VecDeque<Timestamp>,
    knows_key: bool,
    jwks: Option<String>,
    max_age_seconds: u64,
    jwks_fetches: usize,
    streams: mpsc::UnboundedSender<Stream>,
}

/// A stream that a guard has opened.
pub struct Stream {
    /// The cursor that it sent.
    pub cursor: String,
    /// The kinds of revocations that it understands.
    pub accepts: Vec<String>,
    /// How many it can hold.
    pub max_entries: i32,
    messages: mpsc::UnboundedSender<WatchRevocationsResponse>,
}

impl FakeServer {
    /// With the issuer, the project and the key that a guard expects, and these keys.
    pub async fn with(jwks: impl Into<String>) -> Self {
        let (sender, streams) = mpsc::unbounded_channel();
        let settings = Arc::new(Mutex::new(Settings {
            metadata: json!({"issuer": format!("{ISSUER}/projects/{PROJECT}")}).to_string(),
            dates: VecDeque::new(),
            knows_key: true,
            jwks: Some(jwks.into()),
            max_age_seconds: 3_600,
            jwks_fetches: 0,
            streams: sender,
        }));
        let router = Router::new()
            .route("/.well-known/oauth-authorization-server/{*issuer}", get(metadata))
            .route("/oauth2/introspect", post(introspect))
            .route("/projects/demo/.well-known/jwks.json", get(jwks_json))
            .route("/sessiond.v1.SessionService/WatchRevocations", post(watch))
            .with_state(Arc::clone(&settings));
        Self { addr: serve_http(router).await, settings, streams: tokio::sync::Mutex::new(streams) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Sets the published keys; `None` for an outage.
    pub fn publish(&self, jwks: Option<String>, max_age_seconds: u64) {
        let mut settings = self.settings.lock().expect("no panic");
        (settings.jwks, settings.max_age_seconds) = (jwks, max_age_seconds);
    }

    /// Sets the issuer of tokens.
    pub fn issue_as(&self, issuer: &str) {
        self.set_metadata(&json!({"issuer": issuer}).to_string());
    }

    /// Sets the metadata document.
    pub fn set_metadata(&self, metadata: &str) {
        self.settings.lock().expect("no panic").metadata = metadata.to_owned();
    }

    /// Sets the `Date` of the next key response.
    pub fn date_next(&self, date: Timestamp) {
        self.settings.lock().expect("no panic").dates.push_back(date);
    }

    /// How often the keys were fetched.
    pub fn jwks_fetches(&self) -> usize {
        self.settings.lock().expect("no panic").jwks_fetches
    }

    /// The next stream that a guard opens.
    pub async fn stream(&self) -> Stream {
        let next = async { self.streams.lock().await.recv().await };
        let next = tokio::time::timeout(std::time::Duration::from_secs(20), next).await;
        next.expect("a guard comes").expect("the stage stands")
    }
}

impl Stream {
    pub fn send(&self, event: Event, cursor: Option<&str>) {
        let message = WatchRevocationsResponse { event: Some(event), cursor: cursor.map(str::to_owned) };
        // The guard may have disconnected.
        let _ = self.messages.send(message);
    }

    pub fn snapshot(&self, sessions: &[&str], cursor: &str) {
        self.send(Event::SnapshotBegin(SnapshotBegin::default()), None);
        self.ended(sessions);
        self.send(Event::SnapshotComplete(SnapshotComplete {}), Some(cursor));
    }

    pub fn ended(&self, sessions: &[&str]) {
        let ended = |id: &&str| Revocation {
            ended: Some(Ended::SessionId((*id).to_owned())),
            retain_seconds: 600,
            ..Revocation::default()
        };
        let revocations = sessions.iter().map(ended).collect();
        self.send(Event::Revocations(RevocationBatch { revocations }), None);
    }

    /// Sends one revocation, to be kept for ten minutes.
    pub fn revocation(&self, ended: Option<Ended>) {
        let revocation = Revocation { ended, retain_seconds: 600, ..Revocation::default() };
        self.send(Event::Revocations(RevocationBatch { revocations: vec![revocation] }), None);
    }

    pub fn heartbeat(&self, age_ms: i32) {
        self.send(Event::Heartbeat(Heartbeat { age_ms, stream_age_ms: None }), None);
    }

    /// Sends heartbeats of this age every half second, until the guard disconnects.
    pub async fn beat(&self, age_ms: i32) {
        while !self.messages.is_closed() {
            self.heartbeat(age_ms);
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        }
    }
}

type Shared = State<Arc<Mutex<Settings>>>;

async fn metadata(State(settings): Shared) -> Response {
    ([("content-type", "application/json")], settings.lock().expect("no panic").metadata.clone()).into_response()
}

async fn introspect(State(settings): Shared) -> Response {
    match settings.lock().expect("no panic").knows_key {
        true => axum::Json(json!({"active": false})).into_response(),
        false => StatusCode::UNAUTHORIZED.into_response(),
    }
}

async fn jwks_json(State(settings): Shared) -> Response {
    let mut settings = settings.lock().expect("no panic");
    settings.jwks_fetches += 1;
    let max_age = format!("public, max-age={}", settings.max_age_seconds);
    match settings.jwks.clone() {
        Some(jwks) => {
            let date = settings.dates.pop_front().unwrap_or_else(|| Clock::system().now());
            let date = UNIX_EPOCH + Duration::from_secs(date.as_seconds().try_into().expect("after 1970"));
            ([("cache-control", max_age), ("date", httpdate::fmt_http_date(date))], jwks).into_response()
        }
        None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

async fn watch(State(settings): Shared, body: Bytes) -> Response {
    let request = WatchRevocationsRequest::decode(&body[5..]).expect("a request");
    let (messages, responses) = mpsc::unbounded_channel::<WatchRevocationsResponse>();
    let WatchRevocationsRequest { cursor, accepts, max_entries } = request;
    let stream = Stream { cursor, accepts, max_entries, messages };
    let _ = settings.lock().expect("no panic").streams.send(stream);
    let frames = unfold(responses, |mut responses| async move {
        let message = responses.recv().await?.encode_to_vec();
        let mut frame = BytesMut::new();
        frame.put_u8(0);
        frame.put_u32(message.len().try_into().expect("short"));
        frame.put_slice(&message);
        Some((frame.freeze(), responses))
    });
    let trailers =
        http::HeaderMap::from_iter([("grpc-status".parse().expect("a name"), "14".parse().expect("a value"))]);
    let frames = frames.map(Frame::data).chain(futures_util::stream::iter([Frame::trailers(trailers)]));
    let body = Body::new(StreamBody::new(frames.map(Ok::<_, Infallible>)));
    Response::builder().header("content-type", "application/grpc").body(body).expect("a response")
}
