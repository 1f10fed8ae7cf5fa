//! Restarts background tasks. None of them should ever end, so one that ends or panics has a bug: it is counted, logged, and
//! restarted. Otherwise the feed, the keys or readiness would stop unnoticed.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio::time::sleep;

use crate::telemetry::Metrics;
use sessiond_core::backoff::Backoff;
use sessiond_core::clock;

/// How long to wait before a task is restarted.
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));

/// A task that ran longer than this has recovered: the next wait is the shortest.
const RECOVERED: Duration = Duration::from_secs(60);

/// Starts background tasks, and restarts them.
pub struct Supervisor {
    metrics: Metrics,
}

impl Supervisor {
    /// Counts restarts in these metrics.
    pub fn new(metrics: &Metrics) -> Self {
        Self { metrics: metrics.clone() }
    }

    /// Runs the work until the handle is aborted, and again whenever it ends or panics.
    pub fn keep<F>(&self, task: &'static str, mut work: impl FnMut() -> F + Send + 'static) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let metrics = self.metrics.clone();
        tokio::spawn(async move {
            let mut retry = RETRY;
            loop {
                let started = Instant::now();
                // The call itself may panic too, before there is a future.
                let ended = AssertUnwindSafe(async { work().await }).catch_unwind().await;
                metrics.task_restart(task);
                if started.elapsed() > RECOVERED {
                    retry.reset();
                }
                let wait = retry.next(clock::random_u32());
                let how = if ended.is_err() { "panicked" } else { "ended" };
                tracing::error!(task, "background task {how}: restarting it in {wait:?}");
                sleep(wait).await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;
    use std::sync::atomic::Ordering;

    use super::*;

    #[tokio::test]
    async fn a_background_task_that_panics_or_ends_is_restarted_and_counted() {
        let (metrics, runs) = (Metrics::default(), Arc::new(AtomicU32::new(0)));
        let counted = Arc::clone(&runs);
        let task = Supervisor::new(&metrics).keep("feed", move || {
            let run = counted.fetch_add(1, Ordering::Relaxed);
            assert!(run != 1, "the call itself panics");
            async move {
                assert!(run != 0, "the future panics");
                if run > 2 {
                    std::future::pending().await
                }
            }
        });
        while runs.load(Ordering::Relaxed) < 4 {
            sleep(Duration::from_millis(10)).await;
        }
        task.abort();
        let page = metrics.render();
        assert!(page.contains("sessiond_task_restarts_total{task=\"feed\"} 3"), "{page}");
    }
}
