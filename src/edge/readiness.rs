//! Checks whether the server is ready, and publishes the result in `grpc.health.v1`, `/readyz` and the metrics.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::app::App;
use crate::app::NotReady;
use crate::every::ticks;
use crate::pb::session_service_server::SERVICE_NAME;
use crate::telemetry;
use crate::telemetry::Metrics;
use sessiond_core::clock::Skew;

/// How often readiness is checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How far this machine's clock may differ from the database's before a warning is logged.
const SKEW_WARNED: Duration = Duration::from_secs(1);

/// How often the warning is repeated.
const SKEW_INTERVAL: Duration = Duration::from_secs(10 * 60);

/// Watches one server.
#[derive(Clone)]
pub(super) struct ReadinessWatch {
    app: App,
    metrics: Metrics,
    health: HealthReporter,
    ready: watch::Sender<Option<String>>,
}

impl ReadinessWatch {
    pub(super) const fn new(
        app: App,
        metrics: Metrics,
        health: HealthReporter,
        ready: watch::Sender<Option<String>>,
    ) -> Self {
        Self { app, metrics, health, ready }
    }

    /// Watches, and logs each change. Does not return.
    pub(super) async fn run(self) {
        let Self { app, metrics, health, ready } = self;
        let mut ticks = ticks(CHECK_INTERVAL);
        let mut skew_logged = None;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = app.load().changed() => {}
            }
            let found = app.readiness().await;
            report_skew(app.clock().skew(), &mut skew_logged, &metrics);
            for condition in NotReady::CONDITIONS {
                metrics.not_ready(condition, found.iter().any(|reason| reason.condition() == condition));
            }
            let reasons: Vec<String> = found.iter().map(ToString::to_string).collect();
            let reasons = (!reasons.is_empty()).then(|| reasons.join("\n"));
            let status = if found.is_empty() { ServingStatus::Serving } else { ServingStatus::NotServing };
            if ready.send_replace(reasons.clone()) != reasons {
                for reason in &found {
                    let (condition, text) = (reason.condition(), telemetry::chain(reason));
                    match reason {
                        // As expected at the start, and at the end.
                        NotReady::FeedUnread | NotReady::Draining => {
                            tracing::info!(condition, reason = %text, "not ready");
                        }
                        _ => tracing::warn!(condition, reason = %text, "not ready"),
                    }
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
}

/// Records the difference between this machine's clock and the database's, and warns repeatedly while it is too large.
fn report_skew(skew: Option<Skew>, logged: &mut Option<Instant>, metrics: &Metrics) {
    metrics.clock(skew);
    let Some(skew) = skew else { return };
    let apart = Duration::from_micros(skew.micros.unsigned_abs());
    if apart <= SKEW_WARNED {
        if logged.take().is_some() {
            tracing::info!("this machine's clock agrees with the database's again");
        }
    } else if logged.is_none_or(|logged| logged.elapsed() >= SKEW_INTERVAL) {
        *logged = Some(Instant::now());
        let ahead_ms = skew.micros / 1_000;
        tracing::warn!(ahead_ms, "this machine's clock differs from the database's; sessions follow the database's");
    }
}
