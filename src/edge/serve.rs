//! The listeners: accepts, bounds and drains connections.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::routing::get;
use http::Request;
use http::header;
use hyper::body::Incoming;
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio::time::interval;
use tokio::time::timeout;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::ServiceExt as _;

use super::OriginError;
use super::linger::Lingering;
use super::stack;
use super::stalled;
use super::stalled::Impatient;
use crate::app::App;
use crate::app::Deliverer;
use crate::app::NotReady;
use crate::app::Sweeper;
use crate::config::Limits;
use crate::config::Listen;
use crate::config::Web;
use crate::device;
use crate::pb::session_service_server::SERVICE_NAME;
use crate::telemetry;
use crate::telemetry::Metrics;

/// The most calls at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;

/// How often an idle HTTP/2 connection is asked whether it is still there, and how long it may take to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// How often the database's health is looked at for `grpc.health.v1`.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address is taken, or not ours.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// An origin is malformed.
    #[error(transparent)]
    Origin(#[from] OriginError),
}

/// A server that has its ports, and does not serve yet.
pub struct Server {
    listener: TcpListener,
    metrics_listener: TcpListener,
    router: Router,
    limits: Limits,
    app: App,
    metrics: Metrics,
    health: HealthReporter,
    ready: watch::Sender<Option<String>>,
    sweeper: Option<Sweeper>,
    deliverer: Option<Deliverer>,
}

impl Server {
    /// Takes the ports and puts the stack together. `beside` makes what is served beside the API, within what every request
    /// passes; it gets the API, which it may hand requests on to.
    ///
    /// # Errors
    ///
    /// When a port is not to be had, or an origin is malformed.
    pub async fn bind(
        app: App,
        listen: &Listen,
        web: &Web,
        limits: Limits,
        metrics: Metrics,
        beside: impl FnOnce(Router) -> Router,
    ) -> Result<Self, BindError> {
        app.feed().set_subscribers_max(limits.subscribers_max);
        let health = HealthReporter::new();
        let (ready, readiness) = watch::channel(Some("starting".to_owned()));
        let router = stack(&app, web, &limits, &metrics, health.clone(), readiness, beside)?;
        let (listener, metrics_listener) = (take(listen.listen).await?, take(listen.metrics_listen).await?);
        let (sweeper, deliverer) = (None, None);
        Ok(Self { listener, metrics_listener, router, limits, app, metrics, health, ready, sweeper, deliverer })
    }

    /// Has the server sweep in the background, for as long as it runs.
    #[must_use]
    pub fn sweeping(self, sweeper: Sweeper) -> Self {
        Self { sweeper: Some(sweeper), ..self }
    }

    /// Has the server tell others in the background which sessions ended, for as long as it runs.
    #[must_use]
    pub fn delivering(self, deliverer: Deliverer) -> Self {
        Self { deliverer: Some(deliverer), ..self }
    }

    /// Where gRPC, grpc-web and REST are answered.
    ///
    /// # Errors
    ///
    /// When the system does not know.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Where the metrics are answered.
    ///
    /// # Errors
    ///
    /// When the system does not know.
    pub fn metrics_addr(&self) -> io::Result<SocketAddr> {
        self.metrics_listener.local_addr()
    }

    /// Serves until told to stop; then accepts no more, and gives what is under way the time that the limits allow.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Self { listener, metrics_listener, router, limits, app, metrics, mut health, ready, sweeper, deliverer } =
            self;
        // On a thread of its own, or the first refresh would wait for it and stop a worker.
        tokio::task::spawn_blocking(device::prepare);
        let tasks = [
            tokio::spawn(serve_metrics(metrics_listener, metrics.clone(), app.clone())),
            tokio::spawn(reload_keys(app.clone())),
            tokio::spawn(flush_usage(app.clone())),
            tokio::spawn(follow_feed(app.clone())),
        ];
        // A step under way when it is stopped is on a task of its own, and comes to its end.
        let sweep = sweeper.map(|sweeper| tokio::spawn(sweeper.run()));
        // A message that is cut off is sent again, under the same id, by whoever runs then.
        let deliver = deliverer.map(|deliverer| tokio::spawn(deliverer.run()));
        let looks = tokio::spawn(watch_health(health.clone(), ready, app.clone(), metrics.clone()));
        let graceful = GracefulShutdown::new();
        tokio::select! {
            () = accept(listener, router, &limits, &graceful) => {}
            () = stop => {}
        }
        // No more looks at the database: one would take the notice back. Then whoever watches is told, and let go.
        looks.abort();
        for service in ["", SERVICE_NAME] {
            health.set_service_status(service, ServingStatus::NotServing).await;
            health.clear_service_status(service).await;
        }
        // Streams have no end of their own: whoever follows goes on at another replica.
        app.feed().close();
        if timeout(limits.shutdown_timeout, graceful.shutdown()).await.is_err() {
            tracing::warn!("some requests did not end in time");
        }
        tasks.iter().chain(&sweep).chain(&deliver).for_each(JoinHandle::abort);
        // What the last seconds brought; nobody waits for it.
        let _ = app.flush_usage().await;
    }
}

async fn take(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError::Listen { address, source })
}

async fn accept(listener: TcpListener, router: Router, limits: &Limits, graceful: &GracefulShutdown) {
    let slots = Arc::new(Semaphore::new(limits.connections_max));
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await.expect("never closed");
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: it passes, and trying at once would only spin.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let connection = graceful.watcher();
        let served = connect(stream, peer, router.clone(), limits, connection);
        tokio::spawn(async move {
            let _slot = slot;
            served.await;
        });
    }
}

/// Serves one connection, HTTP/1.1 or HTTP/2 as it speaks.
fn connect(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    limits: &Limits,
    watcher: hyper_util::server::graceful::Watcher,
) -> impl Future<Output = ()> + Send + 'static {
    // Answers are small and latency is what counts; where this fails they are late, not wrong.
    let _ = stream.set_nodelay(true);
    let spoken = Arc::new(AtomicBool::new(false));
    let speaks = Arc::clone(&spoken);
    let service = router.map_request(move |request: Request<Incoming>| {
        speaks.store(true, Ordering::Relaxed);
        let mut request = request.map(|body| Body::new(Lingering::new(body)));
        request.extensions_mut().insert(ConnectInfo(peer));
        request
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(limits.header_bytes_max);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(limits.header_bytes_max.try_into().unwrap_or(u32::MAX))
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    let header_timeout = limits.header_timeout;
    async move {
        let stream = TokioIo::new(Impatient::new(stream, stalled::PATIENCE));
        let connection = builder.serve_connection(stream, TowerToHyperService::new(service)).into_owned();
        tokio::select! {
            // How a connection ends is the client's business.
            outcome = watcher.watch(connection) => if let Err(error) = outcome {
                tracing::debug!(error, "a connection ended early");
            },
            () = still_silent(&spoken, header_timeout) => tracing::debug!("a connection that asked for nothing was closed"),
        }
    }
}

/// Comes to an end when the client has not sent a request's head in time. hyper counts the time only once it knows which
/// version of HTTP is spoken, and until then a silent client would hold a connection for ever.
async fn still_silent(spoken: &AtomicBool, header_timeout: Duration) {
    tokio::time::sleep(header_timeout).await;
    if spoken.load(Ordering::Relaxed) {
        std::future::pending().await
    }
}

async fn serve_metrics(listener: TcpListener, metrics: Metrics, app: App) {
    const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let page = move || {
        let (connections, idle) = app.pool_size();
        metrics.pool(connections, idle);
        let (entries, subscribers) = app.feed().size();
        metrics.feed(app.feed().age(), entries, subscribers);
        let page = metrics.render();
        async move { ([(header::CONTENT_TYPE, OPENMETRICS)], page) }
    };
    if let Err(error) = axum::serve(listener, Router::new().route("/metrics", get(page))).await {
        tracing::error!(%error, "the metrics are no longer served");
    }
}

async fn follow_feed(app: App) {
    app.feed().run().await;
}

/// Shows in `grpc.health.v1`, `/readyz` and the metrics whether the server is ready, and logs each change.
async fn watch_health(health: HealthReporter, ready: watch::Sender<Option<String>>, app: App, metrics: Metrics) {
    let mut ticks = interval(HEALTH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let found = app.readiness().await;
        for condition in NotReady::CONDITIONS {
            metrics.not_ready(condition, found.iter().any(|reason| reason.condition() == condition));
        }
        let reasons: Vec<String> = found.iter().map(ToString::to_string).collect();
        let reasons = (!reasons.is_empty()).then(|| reasons.join("\n"));
        let status = if found.is_empty() { ServingStatus::Serving } else { ServingStatus::NotServing };
        if ready.send_replace(reasons.clone()) != reasons {
            for reason in &found {
                tracing::warn!(condition = reason.condition(), reason = %telemetry::chain(reason), "not ready");
            }
            if found.is_empty() {
                tracing::info!("ready");
            }
        }
        for service in ["", SERVICE_NAME] {
            health.set_service_status(service, status).await;
        }
    }
}

/// Reads keys and policies again from time to time. What is known stays good while the database is away.
async fn reload_keys(app: App) {
    let mut ticks = interval(crate::app::RELOAD_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = app.keys().reload().await {
            tracing::warn!(error = %error, "cannot read the keys; going on with those that are known");
        }
    }
}

/// Writes down which sessions were used.
async fn flush_usage(app: App) {
    let mut ticks = interval(crate::app::FLUSH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = app.flush_usage().await {
            tracing::debug!(error = %error, "when sessions were last used was not written down");
        }
    }
}
