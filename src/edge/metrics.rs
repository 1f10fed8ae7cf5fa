//! The metrics page for Prometheus, on a listener of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use axum::serve::Listener;
use http::header;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::hosts;
use crate::app::App;
use crate::telemetry::Metrics;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The page, and where it is served.
#[derive(Clone)]
pub(super) struct MetricsPage {
    listener: Arc<TcpListener>,
    app: App,
    metrics: Metrics,
}

impl MetricsPage {
    pub(super) fn new(listener: TcpListener, app: App, metrics: Metrics) -> Self {
        Self { listener: Arc::new(listener), app, metrics }
    }

    /// Serves the page. Returns only if that fails.
    pub(super) async fn serve(self) {
        let Self { listener, app, metrics } = self;
        let page = move || {
            let (connections, idle) = app.pool_size();
            metrics.pool(connections, idle);
            let (entries, subscribers) = app.feed().size();
            metrics.feed(app.feed().age(), entries, subscribers);
            let page = metrics.render();
            async move { ([(header::CONTENT_TYPE, OPENMETRICS)], page) }
        };
        let router = Router::new().route("/metrics", get(page));
        // On loopback there is no proxy in front of it, so any other host name comes from a page that resolved it to this
        // address (DNS rebinding).
        let is_loopback = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
        let names = if is_loopback { hosts::Allowed::Loopback } else { hosts::Allowed::new(&[]) };
        let router = router.layer(from_fn_with_state(names, hosts::check));
        if let Err(error) = axum::serve(SharedListener(listener), router).await {
            tracing::error!(%error, "the metrics are no longer served");
        }
    }
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
