//! The background jobs of a running service.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::App;
use super::Deliverer;
use super::Sweeper;
use super::keys::RELOAD_INTERVAL;
use super::refused;
use super::supervise::Supervisor;
use super::usage::FLUSH_INTERVAL;
use crate::every::every;
use crate::telemetry::chain;

/// How long a new table may be planned as if it were empty.
const STATISTICS_INTERVAL: Duration = Duration::from_secs(1);

/// How long to wait after statistics could not be gathered: by then autovacuum has come by.
const STATISTICS_RETRY: Duration = Duration::from_secs(60);

/// The background jobs of a running service.
pub struct Jobs(Vec<JoinHandle<()>>);

impl Jobs {
    /// Stops the jobs.
    pub fn stop(&self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

impl App {
    /// Starts the background jobs: following the feed, reloading the keys, recording usage, refreshing the planner's
    /// statistics and, if asked to, sweeping and back-channel delivery.
    pub fn spawn_jobs(&self, supervisor: &Supervisor, sweeper: Option<Sweeper>, deliverer: Option<Deliverer>) -> Jobs {
        let mut jobs = vec![
            supervisor.keep("reload_keys", self.job(reload_keys)),
            supervisor.keep("flush_usage", self.job(flush_usage)),
            supervisor.keep("flush_refused", self.job(flush_refused)),
            supervisor.keep("feed", self.job(follow_feed)),
            supervisor.keep("refresh_statistics", self.job(refresh_statistics)),
        ];
        // A step in progress runs on a task of its own, so it finishes when the sweeper is stopped.
        jobs.extend(sweeper.map(|sweeper| supervisor.keep("sweep", move || sweeper.clone().run())));
        // A message that is cut off is sent again, under the same id, by another replica.
        jobs.extend(deliverer.map(|deliverer| supervisor.keep("deliver", move || deliverer.clone().run())));
        Jobs(jobs)
    }

    /// Adapts a job so that it can be restarted.
    fn job<F>(&self, work: fn(Self) -> F) -> impl Fn() -> F + Send + 'static
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let app = self.clone();
        move || work(app.clone())
    }
}

async fn follow_feed(app: App) {
    app.feed().run().await;
}

/// Reloads keys and policies. The cached ones stay in use while the database is unavailable.
async fn reload_keys(app: App) {
    every(RELOAD_INTERVAL, || async {
        if let Err(error) = app.keys().reload().await {
            tracing::warn!(error = chain(&error), "cannot reload the keys; the cached ones stay in use");
        }
    })
    .await;
}

/// Records when sessions were last used.
async fn flush_usage(app: App) {
    every(FLUSH_INTERVAL, || async {
        if let Err(error) = app.flush_usage().await {
            tracing::debug!(error = chain(&error), "cannot record when sessions were last used");
        }
    })
    .await;
}

/// Keeps the planner's statistics up to date while tables are small.
async fn refresh_statistics(app: App) {
    every(STATISTICS_INTERVAL, || async {
        let is_done = app.store.refresh_statistics().await.unwrap_or_else(|error| {
            tracing::debug!(error = chain(&error), "cannot refresh the planner's statistics");
            false
        });
        if !is_done {
            sleep(STATISTICS_RETRY).await;
        }
    })
    .await;
}

/// Records refused attempts in the audit.
async fn flush_refused(app: App) {
    every(refused::FLUSH_INTERVAL, || async {
        if let Err(error) = app.flush_refused().await {
            tracing::warn!(
                error = chain(&error),
                "cannot record refused attempts in the audit log yet; the counts are kept"
            );
        }
    })
    .await;
}
