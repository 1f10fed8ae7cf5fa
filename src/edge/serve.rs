//! Runs the listeners: accepts, limits and drains connections.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::LazyLock;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use http::HeaderMap;
use http::HeaderValue;
use http::Request;
use http::Response;
use http::StatusCode;
use http::Version;
use http::header;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use hyper_util::server::conn::auto::Builder;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpListener;
use tokio::net::TcpSocket;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio::time::timeout;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::Stack;
use super::activity::OpenBody;
use super::activity::ReceivingRequest;
use super::activity::TrackedStream;
use super::class;
use super::connections::ConnectionSlot;
use super::connections::Connections;
use super::lifetime;
use super::lifetime::Lifetimes;
use super::linger::Lingering;
use super::listener::ListenerService;
use super::metrics::MetricsPage;
use super::parting::DelayedEnd;
use super::readiness::ReadinessWatch;
use super::setting::SettingError;
use super::stack;
use super::stalled;
use super::stalled::StallTimeout;
use super::tls;
use super::tls::ServerTls;
use crate::app::App;
use crate::app::ClientCertificate;
use crate::app::Deliverer;
use crate::app::Supervisor;
use crate::app::Sweeper;
use crate::config::Limits;
use crate::config::Listen;
use crate::config::Web;
use crate::forwarded::Trust;
use crate::pb::session_service_server::SERVICE_NAME;
use crate::rates::Bucket;
use crate::rates::Limiter;
use crate::telemetry::LogLimiter;
use crate::telemetry::Metrics;
use crate::telemetry::request::RequestObserver;
use sessiond_core::clock;
use sessiond_core::session::origin::network;
use tonic_rest_layer::BuildErrors;

/// The most calls at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;

/// How often an HTTP/2 connection is pinged, and how long it may take to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// How many bytes a client may send on one HTTP/2 stream, and on all streams of a connection, before they are read. Small,
/// because they take memory and messages are small.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;

/// The shortest interval between log lines about connections that cannot be accepted.
const ACCEPT_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address is in use, or not local.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A setting is malformed.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The API cannot be answered under the base paths.
    #[error("the API cannot be answered under these base paths")]
    BasePath(#[from] BuildErrors),
}

/// The ports that a server listens on.
pub struct Ports {
    listener: TcpListener,
    metrics_listener: TcpListener,
    proxy_listener: Option<TcpListener>,
}

impl Ports {
    /// Takes the ports.
    ///
    /// # Errors
    ///
    /// Fails if one cannot be bound.
    pub async fn take(listen: &Listen) -> Result<Self, BindError> {
        let (listener, metrics_listener) = (take(listen.listen).await?, take(listen.metrics_listen).await?);
        let proxy_listener = match listen.proxy_listen {
            Some(address) => Some(take(address).await?),
            None => None,
        };
        Ok(Self { listener, metrics_listener, proxy_listener })
    }

    /// The address for gRPC, grpc-web and REST.
    ///
    /// # Errors
    ///
    /// Fails if the system cannot determine the address.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A server that is bound to its ports, but does not serve yet.
pub struct Server {
    ports: Ports,
    stack: Stack,
    trust: Trust,
    limits: Limits,
    app: App,
    metrics: Metrics,
    health: HealthReporter,
    ready: watch::Sender<Option<String>>,
    sweeper: Option<Sweeper>,
    deliverer: Option<Deliverer>,
    tls: Option<ServerTls>,
}

impl Server {
    /// Binds the ports and builds the stack. `beside` returns what to serve beside the API, inside the layers that every request
    /// passes; it gets the API's router, to which it may forward requests.
    ///
    /// # Errors
    ///
    /// Fails if a port cannot be bound, or a setting is invalid.
    pub async fn bind(
        app: App,
        listen: &Listen,
        web: &Web,
        limits: Limits,
        metrics: Metrics,
        beside: impl FnOnce(Router) -> Router,
    ) -> Result<Self, BindError> {
        Self::on(Ports::take(listen).await?, app, web, limits, metrics, beside)
    }

    /// As [`Server::bind`], on ports that are already bound: for callers that must know them in advance.
    ///
    /// # Errors
    ///
    /// Fails if a setting is invalid.
    pub fn on(
        ports: Ports,
        app: App,
        web: &Web,
        limits: Limits,
        metrics: Metrics,
        beside: impl FnOnce(Router) -> Router,
    ) -> Result<Self, BindError> {
        let app = app.with_requests_max(limits.requests_max);
        app.feed().set_subscribers_max(limits.subscribers_max);
        app.feed().set_staleness_max(limits.staleness_max);
        let health = HealthReporter::new();
        let (ready, readiness) = watch::channel(Some("starting".to_owned()));
        let stack = stack(&app, web, &limits, &metrics, health.clone(), readiness, beside)?;
        let trust = Trust::new(web);
        Ok(Self { ports, stack, trust, limits, app, metrics, health, ready, sweeper: None, deliverer: None, tls: None })
    }

    /// Sweeps in the background, as long as the server runs.
    #[must_use]
    pub fn sweeping(self, sweeper: Sweeper) -> Self {
        Self { sweeper: Some(sweeper), ..self }
    }

    /// Delivers to back-channel endpoints in the background, as long as the server runs.
    #[must_use]
    pub fn delivering(self, deliverer: Deliverer) -> Self {
        Self { deliverer: Some(deliverer), ..self }
    }

    /// Logs and traces requests.
    #[must_use]
    pub fn observed_by(self, observer: &RequestObserver) -> Self {
        let Stack { public, proxies } = self.stack;
        let (public, proxies) = (public.observed_by(observer.clone()), proxies.observed_by(observer.clone()));
        Self { stack: Stack { public, proxies }, ..self }
    }

    /// Serves TLS on all listeners.
    #[must_use]
    pub fn with_tls(self, tls: ServerTls) -> Self {
        Self { tls: Some(tls), ..self }
    }

    /// The address for gRPC, grpc-web and REST.
    ///
    /// # Errors
    ///
    /// Fails if the system cannot determine the address.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.ports.local_addr()
    }

    /// The address for proxies, if they have a listener of their own.
    ///
    /// # Errors
    ///
    /// Fails if the system cannot determine the address.
    pub fn proxy_addr(&self) -> io::Result<Option<SocketAddr>> {
        self.ports.proxy_listener.as_ref().map(TcpListener::local_addr).transpose()
    }

    /// The address for metrics.
    ///
    /// # Errors
    ///
    /// Fails if the system cannot determine the address.
    pub fn metrics_addr(&self) -> io::Result<SocketAddr> {
        self.ports.metrics_listener.local_addr()
    }

    /// Serves until `stop` resolves. Then readiness fails, but requests are still answered for the drain delay; after it no
    /// more connections are accepted, and requests in progress get the time that the limits allow.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Self { ports, stack, trust, limits, app, metrics, mut health, ready, sweeper, deliverer, tls } = self;
        let supervisor = Supervisor::new(&metrics);
        let page = MetricsPage::new(ports.metrics_listener, tls.clone(), app.clone(), metrics.clone());
        let page = supervisor.keep("metrics", move || page.clone().serve());
        let readiness = ReadinessWatch::new(app.clone(), metrics.clone(), health.clone(), ready);
        let readiness = supervisor.keep("health", move || readiness.clone().run());
        let reloading = tls.clone().map(|tls| {
            let metrics = metrics.clone();
            supervisor.keep("tls", move || tls.clone().follow(metrics.clone()))
        });
        let jobs = app.spawn_jobs(&supervisor, sweeper, deliverer);

        let (phase, phases) = watch::channel(ServerPhase::Serving);
        let connections =
            Connections::new(limits.connections_max, limits.address_connections_max(), Some(metrics.clone()));
        let (rates, of_front) = (app.rates().clone(), limits.clone());
        let front = Front { connections, trust, rates, tls, metrics, limits: of_front, phases, is_for_proxies: false };
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(ports.listener, stack.public, front.clone()));
        if let Some(listener) = ports.proxy_listener {
            accepting.spawn(accept(listener, stack.proxies, Front { is_for_proxies: true, ..front.clone() }));
        }
        tokio::select! {
            () = stop => {}
            _ = accepting.join_next() => tracing::error!("stopping: an accept loop ended, which is a bug"),
        }
        app.load().drain();
        phase.send_replace(ServerPhase::Draining);
        if !limits.drain_delay.is_zero() {
            tracing::info!(delay = ?limits.drain_delay, "draining: readiness fails, requests are still answered");
            tokio::time::sleep(limits.drain_delay).await;
        }
        // Closes the listeners, so no more connections are accepted.
        accepting.shutdown().await;
        // First, or the next check would revert the status. Then the watches of `grpc.health.v1` are notified, and end.
        readiness.abort();
        for service in ["", SERVICE_NAME] {
            health.set_service_status(service, ServingStatus::NotServing).await;
            health.clear_service_status(service).await;
        }
        // Streams do not end by themselves: subscribers resume at another replica.
        app.feed().close();
        phase.send_replace(ServerPhase::Closing);
        drop(front);
        if timeout(limits.shutdown_timeout, phase.closed()).await.is_err() {
            tracing::warn!("some requests did not finish before the shutdown timeout");
        }
        jobs.stop();
        page.abort();
        if let Some(reloading) = reloading {
            reloading.abort();
        }
        // The uses of the last seconds, and the refused attempts of the last minute. If this fails, they are lost.
        let _ = app.flush_usage().await;
        let _ = app.flush_refused().await;
    }
}

/// How many connections may wait to be accepted. More are dropped: with SYN cookies the client believes that it is connected,
/// and its first request fails. The system has a limit of its own (Linux: `net.core.somaxconn`, 4,096 by default). The default
/// of Rust's libraries is 128, fewer than the clients that reconnect at once after a restart.
const ACCEPT_QUEUE: u32 = 4_096;

/// Async because a listener belongs to a runtime.
async fn take(address: SocketAddr) -> Result<TcpListener, BindError> {
    listen(address).map_err(|source| BindError::Listen { address, source })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restarted server gets its port back at once.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(ACCEPT_QUEUE)
}

/// The phases of the server's lifetime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ServerPhase {
    Serving,
    /// Stopping, but still answering; over HTTP/1.1, each response closes its connection.
    Draining,
    /// Connections close after their open requests.
    Closing,
}

/// What every connection needs. The server has stopped when all receivers of `phases` are dropped.
#[derive(Clone)]
struct Front {
    connections: Connections,
    trust: Trust,
    rates: Limiter,
    tls: Option<ServerTls>,
    metrics: Metrics,
    limits: Limits,
    phases: watch::Receiver<ServerPhase>,
    /// Whether only proxies reach the listener.
    is_for_proxies: bool,
}

async fn accept(listener: TcpListener, service: ListenerService, front: Front) {
    let front = Arc::new(front);
    let mut logged_at = None;
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                front.metrics.connection_refused("accept");
                // Most likely out of file descriptors, which passes; retrying at once would only spin.
                if logged_at.is_none_or(|last: Instant| last.elapsed() >= ACCEPT_LOG_INTERVAL) {
                    logged_at = Some(Instant::now());
                    tracing::warn!(
                        %error,
                        "cannot accept connections (logged every 10 s at most); raise the limit on open files, or lower --connections-max"
                    );
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let is_trusted = front.is_for_proxies || front.trust.has(peer.ip().to_canonical());
        // Before the handshake, which costs the server more than the client.
        if !is_trusted && front.rates.charge(Bucket::Connection(peer.ip())).is_err() {
            front.metrics.connection_refused("rate");
            continue;
        }
        if let Some(slot) = front.connections.slot(peer.ip(), is_trusted).await {
            tokio::spawn(serve_connection(stream, peer, service.clone(), front.clone(), slot));
        }
    }
}

/// Serves one connection: with TLS, after its handshake.
async fn serve_connection(
    stream: TcpStream,
    peer: SocketAddr,
    served: ListenerService,
    front: Arc<Front>,
    slot: ConnectionSlot,
) {
    // Responses are small and latency matters; if this fails they are late, not wrong.
    let _ = stream.set_nodelay(true);
    let Some(tls) = &front.tls else { return serve_stream(stream, peer, None, served, &front, slot).await };
    let time = front.limits.header_timeout;
    // On the heap, which is free again after the handshake.
    let handshake = async {
        match front.is_for_proxies {
            true => Box::pin(tls.accept(stream, time)).await,
            false => Box::pin(tls.accept_client(stream, time)).await,
        }
    };
    let accepted = tokio::select! {
        accepted = handshake => accepted,
        () = slot.activity.evicted() => return,
    };
    match accepted {
        Ok(stream) => {
            let certificate = tls::client_certificate(&stream);
            serve_stream(stream, peer, certificate, served, &front, slot).await;
        }
        Err(error) if tls::is_about_client_certificate(&error) => {
            front.metrics.connection_refused("client_certificate");
            // The client sees no more than an alert.
            if let Some(suppressed) = CERTIFICATE_LOG.admit() {
                let network = network(peer.ip());
                tracing::warn!(%error, %network, suppressed, "client certificate refused (logged every 10 s at most)");
            }
        }
        // Scanners, and clients that do not trust the certificate.
        Err(error) => {
            front.metrics.connection_refused("tls");
            tracing::debug!(%error, %peer, "TLS handshake failed");
        }
    }
}

/// Serves a connection's requests, over HTTP/1.1 or HTTP/2.
///
/// Not async: whatever an async function gets and makes before its first pause stays part of its future, and thousands of
/// connections are idle at any time. So the connection is built first, on the heap, and the future only holds a pointer to it.
fn serve_stream(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    certificate: Option<ClientCertificate>,
    served: ListenerService,
    front: &Arc<Front>,
    slot: ConnectionSlot,
) -> impl Future<Output = ()> + Send + 'static {
    let (asks, of_requests) = (slot.activity.clone(), front.phases.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let (served, phases, certificate) = (served.clone(), of_requests.clone(), certificate.clone());
        let (open, receiving) = asks.begin(request.version());
        let activity = asks.clone();
        // On the heap, because hyper moves it several times.
        Box::pin(async move {
            let is_http1 = request.version() < Version::HTTP_2;
            let is_watch = class::is_watch(request.uri().path());
            let mut request = request.map(|body| Body::new(Lingering::new(body)));
            request.extensions_mut().insert(ConnectInfo(peer));
            // A browser presents its certificate whichever page makes the request (cross-site request forgery).
            if let Some(certificate) = certificate.filter(|_| !is_from_browser(request.headers())) {
                request.extensions_mut().insert(certificate);
            }
            let mut answer = answer(served, request, receiving, phases.clone()).await;
            if is_http1 && *phases.borrow() != ServerPhase::Serving {
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            // A gRPC refusal also has HTTP status 200, and its own status in the headers.
            let is_refused = answer.status() != StatusCode::OK || answer.headers().contains_key("grpc-status");
            let open = (is_watch && !is_refused).then_some(open);
            Ok::<_, Infallible>(answer.map(|body| OpenBody::new(body, open, activity)))
        })
    });
    let mut builder = Builder::new(TokioExecutor::new());
    // The time for a head is limited by `Activity`: hyper's timeout would include the time between two requests.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(front.limits.header_bytes_max);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(front.limits.header_bytes_max.try_into().unwrap_or(u32::MAX))
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    let stream = DelayedEnd::new(StallTimeout::new(stream, stalled::WRITE_TIMEOUT));
    let stream = TrackedStream { stream, activity: slot.activity.clone() };
    let connection = Box::pin(builder.serve_connection(TokioIo::new(stream), service).into_owned());
    let lifetimes = Lifetimes {
        first: front.limits.header_timeout,
        head: front.limits.header_timeout,
        idle: front.limits.idle_timeout,
        age: front.limits.connection_age_max.mul_f64(clock::jitter(0.9, 1.0)),
    };
    let (metrics, mut phases) = (front.metrics.clone(), front.phases.clone());
    async move {
        let closing = async { drop(phases.wait_for(|phase| *phase == ServerPhase::Closing).await) };
        lifetime::keep(connection, &slot.activity, lifetimes, closing, |reason| metrics.connection_closed(reason))
            .await;
    }
}

/// Limits the log lines about refused client certificates.
static CERTIFICATE_LOG: LazyLock<LogLimiter> = LazyLock::new(LogLimiter::default);

/// Whether a page in a browser makes the request: browsers send one of these, and pages cannot remove it.
fn is_from_browser(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ORIGIN) || headers.contains_key("sec-fetch-site")
}

/// Answers a request. One that changes something runs on a task of its own, so it is carried out even if its client
/// disconnects; a read-only one is dropped with its client. `alive` keeps the server from stopping before it has finished.
fn answer(
    served: ListenerService,
    request: Request<Body>,
    receiving: ReceivingRequest,
    alive: watch::Receiver<ServerPhase>,
) -> impl Future<Output = Response<Body>> {
    let is_carried_out = class::is_carried_out(request.method(), request.uri().path());
    // On the heap from the start: it takes kilobytes, and everything between here and the socket moves it.
    let work = Box::pin(async move {
        let _alive = alive;
        served.answer(request, receiving).await
    });
    async move {
        if !is_carried_out {
            return work.await;
        }
        match tokio::spawn(work).await {
            Ok(answer) => answer,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is shutting down.
                Err(_) => pending().await,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many clients as connect at once after a restart. Nobody accepts them yet.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn hundreds_of_connections_wait_to_be_accepted() {
        let listener = take(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("listens");
        let address = listener.local_addr().expect("bound");
        let mut waiting = vec![];
        for _ in 0..400 {
            let connecting = timeout(Duration::from_secs(5), TcpStream::connect(address));
            waiting.push(connecting.await.expect("is queued at once").expect("connects"));
        }
        for _ in waiting {
            timeout(Duration::from_secs(5), listener.accept()).await.expect("was queued").expect("accepts");
        }
    }
}
