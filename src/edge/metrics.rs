//! The metrics page for Prometheus, on a listener of its own.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use http::HeaderMap;
use http::header;
use tokio::net::TcpListener;
use tokio::time::sleep;

use super::hosts;
use super::internal::ACCEPT_RETRY;
use super::internal::InternalServer;
use super::tls::ServerTls;
use crate::app::App;
use crate::telemetry::Metrics;

/// The media type of OpenMetrics.
const MEDIA_TYPE: &str = "application/openmetrics-text";

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The most connections. A scraper keeps one.
const CONNECTIONS_MAX: usize = 64;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

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

    /// Serves the page, without end.
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
        let server = InternalServer::new(router.layer(from_fn_with_state(names, hosts::check)), CONNECTIONS_MAX);
        loop {
            let Ok((stream, peer)) = listener.accept().await else {
                sleep(ACCEPT_RETRY).await;
                continue;
            };
            let (slot, tls) = (server.slot(peer.ip()).await, tls.clone());
            tokio::spawn(async move {
                match tls {
                    None => slot.serve(stream).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream, HANDSHAKE_TIMEOUT).await {
                            slot.serve(stream).await;
                        }
                    }
                }
            });
        }
    }
}

/// Whether the client names OpenMetrics, which has exemplars. The older format, which the page is also valid in without them, has
/// none.
fn accepts_exemplars(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT).iter().any(|value| value.to_str().is_ok_and(|value| value.contains(MEDIA_TYPE)))
}
