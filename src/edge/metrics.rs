//! The metrics page for Prometheus, on a listener of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use axum::serve::Listener;
use http::HeaderMap;
use http::header;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::server::TlsStream;

use super::hosts;
use super::tls::ServerTls;
use crate::app::App;
use crate::telemetry::Metrics;

/// The media type of OpenMetrics.
const MEDIA_TYPE: &str = "application/openmetrics-text";

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The page, and where it is served.
#[derive(Clone)]
pub(super) struct MetricsPage {
    listener: Arc<TcpListener>,
    tls: Option<ServerTls>,
    app: App,
    metrics: Metrics,
}

impl MetricsPage {
    pub(super) fn new(listener: TcpListener, tls: Option<ServerTls>, app: App, metrics: Metrics) -> Self {
        Self { listener: Arc::new(listener), tls, app, metrics }
    }

    /// Serves the page. Returns only if that fails.
    pub(super) async fn serve(self) {
        let Self { listener, tls, app, metrics } = self;
        let page = move |headers: HeaderMap| {
            let (connections, idle) = app.pool_size();
            metrics.pool(connections, idle);
            let (entries, subscribers) = app.feed().size();
            metrics.feed(app.feed().age(), entries, subscribers);
            let page = if accepts_exemplars(&headers) { metrics.render_with_exemplars() } else { metrics.render() };
            async move { ([(header::CONTENT_TYPE, OPENMETRICS)], page) }
        };
        let router = Router::new().route("/metrics", get(page));
        // On loopback there is no proxy in front of it, so any other host name comes from a page that resolved it to this
        // address (DNS rebinding).
        let is_loopback = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
        let names = if is_loopback { hosts::Allowed::Loopback } else { hosts::Allowed::new(&[]) };
        let router = router.layer(from_fn_with_state(names, hosts::check));
        let listener = SharedListener(listener);
        let outcome = match tls {
            None => axum::serve(listener, router).await,
            Some(tls) => axum::serve(TlsListener { listener, tls, handshakes: JoinSet::new() }, router).await,
        };
        if let Err(error) = outcome {
            tracing::error!(%error, "the metrics are no longer served");
        }
    }
}

/// Whether the client names OpenMetrics, which has exemplars. The older format, which the page is also valid in without them, has
/// none.
fn accepts_exemplars(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT).iter().any(|value| value.to_str().is_ok_and(|value| value.contains(MEDIA_TYPE)))
}

/// A listener that outlives the task that accepts from it.
struct SharedListener(Arc<TcpListener>);

impl Listener for SharedListener {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.0.accept().await {
                Ok(accepted) => return accepted,
                // Most likely out of file descriptors, which passes.
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// A listener whose connections speak TLS.
struct TlsListener {
    listener: SharedListener,
    tls: ServerTls,
    /// Handshakes in progress, so that a slow client delays no other.
    handshakes: JoinSet<Option<(TlsStream<TcpStream>, SocketAddr)>>,
}

/// How long a handshake may take, and how many there may be at once; further connections wait.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const HANDSHAKES_MAX: usize = 64;

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            tokio::select! {
                Some(ended) = self.handshakes.join_next() => {
                    if let Ok(Some(accepted)) = ended {
                        return accepted;
                    }
                }
                (stream, peer) = self.listener.accept(), if self.handshakes.len() < HANDSHAKES_MAX => {
                    let tls = self.tls.clone();
                    self.handshakes.spawn(async move { Some((tls.accept(stream, HANDSHAKE_TIMEOUT).await.ok()?, peer)) });
                }
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}
