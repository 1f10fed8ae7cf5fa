//! What the service does in the background, for as long as it runs.

use tokio::task::JoinHandle;

use super::App;
use super::Deliverer;
use super::Sweeper;
use super::keys::RELOAD_INTERVAL;
use super::supervise::Supervisor;
use super::usage::FLUSH_INTERVAL;
use crate::every::every;
use crate::telemetry::chain;

/// The background jobs of a running service.
pub struct Jobs(Vec<JoinHandle<()>>);

impl Jobs {
    /// Stops them.
    pub fn stop(&self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

impl App {
    /// Starts the background jobs: following the feed, reloading the keys, recording usage and, if asked to, sweeping and
    /// back-channel delivery.
    pub fn spawn_jobs(&self, supervisor: &Supervisor, sweeper: Option<Sweeper>, deliverer: Option<Deliverer>) -> Jobs {
        let mut jobs = vec![
            supervisor.keep("reload_keys", self.job(reload_keys)),
            supervisor.keep("flush_usage", self.job(flush_usage)),
            supervisor.keep("feed", self.job(follow_feed)),
        ];
        // A step in progress when it is stopped has a task of its own, and finishes.
        jobs.extend(sweeper.map(|sweeper| supervisor.keep("sweep", move || sweeper.clone().run())));
        // A message that is cut off is sent again, under the same id, by another replica.
        jobs.extend(deliverer.map(|deliverer| supervisor.keep("deliver", move || deliverer.clone().run())));
        Jobs(jobs)
    }

    /// The same work for the same app, as often as it is started.
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

/// Reloads keys and policies. The known ones stay valid while the database is unavailable.
async fn reload_keys(app: App) {
    every(RELOAD_INTERVAL, || async {
        if let Err(error) = app.keys().reload().await {
            tracing::warn!(error = chain(&error), "cannot reload the keys; the known ones stay in use");
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
