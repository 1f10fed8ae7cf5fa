//! Serves a few paths to clients of the same installation, within bounds: the metrics page and the sidecar.

use std::net::IpAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::Request;
use http::StatusCode;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use hyper_util::server::conn::auto::Builder;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::sync::watch;
use tokio::time::timeout;
use tower::ServiceExt as _;

use super::activity::TrackedStream;
use super::connections::ConnectionSlot;
use super::connections::Connections;
use super::lifetime;
use super::lifetime::Lifetimes;
use super::plain::text;
use super::stalled;
use super::stalled::StallTimeout;

/// The largest head of a request, in bytes: the largest access token must fit, and cookies beside it.
pub(super) const HEAD_BYTES_MAX: usize = 64 * 1024;

/// A connection may be idle for longer than proxies keep theirs (60 s is common), also before its first request, and is not closed
/// for its age.
const LIFETIMES: Lifetimes = Lifetimes {
    first: Duration::from_secs(75),
    head: Duration::from_secs(10),
    idle: Duration::from_secs(75),
    age: Duration::from_secs(30 * 24 * 60 * 60),
};

/// How long a request may take after its head.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait after a connection could not be accepted, usually for want of file descriptors.
pub(super) const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// The most requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 1_024;

/// Serves a router.
pub(super) struct InternalServer {
    router: Router,
    connections: Connections,
    closing: watch::Sender<bool>,
}

impl InternalServer {
    /// With this many connections at once. Idle ones make room for new ones.
    pub(super) fn new(router: Router, connections_max: usize) -> Self {
        let connections = Connections::new(connections_max, connections_max, None);
        Self { router, connections, closing: watch::Sender::new(false) }
    }

    /// Waits until there is room for a connection from this address.
    pub(super) async fn slot(&self, ip: IpAddr) -> Slot {
        let slot = self.connections.slot(ip, true).await.expect("no address has a share");
        Slot { router: self.router.clone(), closing: self.closing.subscribe(), slot }
    }

    /// Closes the connections, each after the requests in progress, and waits for their ends.
    pub(super) async fn close(self) {
        self.closing.send_replace(true);
        self.closing.closed().await;
    }
}

/// The slot of a connection. Released when dropped.
pub(super) struct Slot {
    router: Router,
    closing: watch::Receiver<bool>,
    slot: ConnectionSlot,
}

impl Slot {
    /// Serves a connection's requests, over HTTP/1.1 or HTTP/2.
    pub(super) async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let activity = &self.slot.activity;
        let service = service_fn({
            let (router, activity) = (self.router.clone(), activity.clone());
            move |request: Request<Incoming>| {
                let (open, receiving) = activity.begin(request.version());
                // Whatever is missing has its time too.
                receiving.received();
                let answer = timeout(REQUEST_TIMEOUT, router.clone().oneshot(request.map(Body::new)));
                async move {
                    let answer = answer.await;
                    drop(open);
                    answer.unwrap_or_else(|_| Ok(text(StatusCode::SERVICE_UNAVAILABLE, "the request took too long")))
                }
            }
        });
        let mut builder = Builder::new(TokioExecutor::new());
        // The time for a head is limited by `Activity`: hyper's timeout would include the time between two requests.
        builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(HEAD_BYTES_MAX);
        let head_bytes_max = HEAD_BYTES_MAX.try_into().unwrap_or(u32::MAX);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_header_list_size(head_bytes_max)
            .max_concurrent_streams(STREAMS_MAX);
        let stream = StallTimeout::new(stream, stalled::WRITE_TIMEOUT);
        let stream = TrackedStream { stream, activity: activity.clone() };
        let connection = Box::pin(builder.serve_connection(TokioIo::new(stream), service).into_owned());
        let report = |reason| tracing::debug!(reason, "connection closed");
        lifetime::keep(connection, activity, LIFETIMES, closing(self.closing.clone()), report).await;
    }
}

async fn closing(mut closing: watch::Receiver<bool>) {
    // It fails if the server is gone.
    let _ = closing.wait_for(|is_closing| *is_closing).await;
}
