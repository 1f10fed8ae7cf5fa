//! Background tasks, and what becomes of one that ends or panics: it is counted, logged, and started again. None of them has
//! an end of its own, so an end is a bug; without it the feed, the keys or readiness would stand still unnoticed.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener;
use futures_util::FutureExt as _;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio::time::sleep;

use crate::backoff::Backoff;
use crate::clock;
use crate::telemetry::Metrics;

/// How long to wait before a task is started again.
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));

/// A task that ran longer than this has recovered: the next wait is the shortest.
const RECOVERED: Duration = Duration::from_secs(60);

/// Starts background tasks, and starts them again.
pub(super) struct Supervisor {
    metrics: Metrics,
}

impl Supervisor {
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self { metrics: metrics.clone() }
    }

    /// Runs the work until the handle is aborted, and again whenever it ends or panics.
    pub(super) fn keep<F>(&self, task: &'static str, mut work: impl FnMut() -> F + Send + 'static) -> JoinHandle<()>
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
                let wait = retry.next(clock::dice());
                let how = if ended.is_err() { "panicked" } else { "ended" };
                tracing::error!(task, "background task {how}: starting it again in {wait:?}");
                sleep(wait).await;
            }
        })
    }
}

/// A listener that outlives the task that accepts from it.
pub(super) struct Shared(pub(super) Arc<TcpListener>);

impl Listener for Shared {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.0.accept().await {
                Ok(accepted) => return accepted,
                // Out of file descriptors, most likely: it passes.
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::sync::atomic::Ordering;

    use super::*;

    #[tokio::test]
    async fn a_background_task_that_panics_or_ends_is_started_again_and_counted() {
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
