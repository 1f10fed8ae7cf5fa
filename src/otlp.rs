//! Sends finished spans to an OpenTelemetry collector (OTLP 1.x, over gRPC or HTTP).
//!
//! One task sends one batch at a time. A collector that is away, slow, or answers nonsense delays only this task: the queue
//! of spans is bounded, and what does not fit is dropped and counted.
//!
//! `opentelemetry-otlp` (0.33.1, tracing in beta) is not used: its `export` succeeds even if the collector rejects spans or answers
//! nonsense, so `sessiond_spans_dropped_total` could not be true. The SDK's processor blocks a thread for each export, and tells how
//! many spans it dropped only in a line of its log at shutdown.

mod collector;
mod message;

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio::time::timeout;
use tokio::time::timeout_at;

use collector::Collector;
use collector::Export;
use message::resource;

use crate::config::OtlpProtocol;
use crate::config::Tracing;
use crate::telemetry::LogLimiter;
use crate::telemetry::Metrics;
use crate::telemetry::trace::FinishedSpan;
use crate::telemetry::trace::Tracer;
use sessiond_core::backoff::Backoff;
use sessiond_core::clock;

/// The most spans in a batch.
const BATCH_MAX: usize = 512;

/// How long a batch may wait for more spans.
const BATCH_DELAY: Duration = Duration::from_secs(1);

/// How long the collector may take to answer.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a batch is sent before it is dropped.
const ATTEMPTS_MAX: u32 = 4;

/// How long to wait before a batch is sent again.
const RETRY: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(5));

/// The longest wait that a collector may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// How long the server's exit may be delayed by the last spans.
const FLUSH_MAX: Duration = Duration::from_secs(2);

/// Why traces cannot be sent with these settings. Does not repeat the headers, which may hold a secret.
#[derive(Debug, thiserror::Error)]
pub enum OtlpError {
    /// The headers are malformed.
    #[error("malformed OTLP headers: expected `name=value`, separated by commas")]
    Headers,
    /// The certificate file is unusable.
    #[error("cannot read the certificates in {} (--otlp-ca-file)", .0.display())]
    Certificates(PathBuf),
    /// TLS cannot be set up.
    #[error("cannot set up TLS for the OTLP collector")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The export of traces.
pub struct Traces {
    tracer: Tracer,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Traces {
    /// Starts the export; `None` if no collector is set. `headers` are sent with every request, as `name=value` separated
    /// by commas. Must be called within a Tokio runtime.
    ///
    /// # Errors
    ///
    /// Fails if the settings are unusable. Does not fail if the collector is unavailable.
    pub fn start(
        settings: &Tracing,
        headers: Option<&SecretString>,
        metrics: &Metrics,
    ) -> Result<Option<Self>, OtlpError> {
        let Some(endpoint) = &settings.otlp_endpoint else { return Ok(None) };
        let collector = Collector::new(endpoint, settings, headers)?;
        let (tracer, finished) = Tracer::new(settings.trace_ratio, metrics.clone());
        let (stop, stopped) = watch::channel(false);
        let exporter = Exporter {
            collector,
            resource: resource(&settings.otlp_service_name, &settings.otlp_resource_attributes),
            finished,
            stopped,
            metrics: metrics.clone(),
            log: LogLimiter::default(),
        };
        let protocol = match settings.otlp_protocol {
            OtlpProtocol::Grpc => "grpc",
            OtlpProtocol::Http => "http/protobuf",
        };
        tracing::info!(%endpoint, protocol, ratio = settings.trace_ratio, "tracing requests");
        Ok(Some(Self { tracer, stop, task: tokio::spawn(exporter.run()) }))
    }

    /// Samples requests and queues their spans.
    pub const fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    /// Sends the spans that are left. Waits 2 s at most.
    pub async fn stop(self) {
        let Self { tracer, stop, mut task } = self;
        stop.send_replace(true);
        drop(tracer);
        if timeout(FLUSH_MAX, &mut task).await.is_err() {
            task.abort();
            tracing::warn!("the last spans were not exported: the OTLP collector did not answer in time");
        }
    }
}

/// Sends spans, batch by batch.
struct Exporter {
    collector: Collector,
    resource: message::Resource,
    finished: mpsc::Receiver<FinishedSpan>,
    stopped: watch::Receiver<bool>,
    metrics: Metrics,
    log: LogLimiter,
}

impl Exporter {
    async fn run(mut self) {
        while let Some(batch) = self.gather().await {
            let count = batch.len();
            self.export(message::request(self.resource.clone(), batch), count).await;
        }
    }

    /// The next batch; `None` after the last one.
    async fn gather(&mut self) -> Option<Vec<FinishedSpan>> {
        let mut batch = vec![];
        let mut until = None::<Instant>;
        while batch.len() < BATCH_MAX {
            let room = BATCH_MAX - batch.len();
            let is_stopped = *self.stopped.borrow();
            if is_stopped {
                // Spans that end from now on are counted as dropped.
                self.finished.close();
            }
            let more = self.finished.recv_many(&mut batch, room);
            let received = tokio::select! {
                biased;
                // Begins again, to close the queue. Without a sender, the server is being dropped.
                changed = self.stopped.changed(), if !is_stopped => match changed {
                    Ok(()) => continue,
                    Err(_) => return None,
                },
                received = async {
                    match until {
                        Some(until) => timeout_at(until, more).await.unwrap_or(0),
                        None => more.await,
                    }
                } => received,
            };
            if received == 0 {
                break;
            }
            until.get_or_insert(Instant::now() + BATCH_DELAY);
        }
        (!batch.is_empty()).then_some(batch)
    }

    /// Sends a batch, again if the collector may accept it later.
    async fn export(&mut self, request: message::ExportRequest, count: usize) {
        let mut retry = RETRY;
        for attempt in 1.. {
            let outcome = timeout(EXPORT_TIMEOUT, self.collector.export(&request)).await;
            let outcome = outcome.unwrap_or_else(|_| Export::Unavailable {
                why: format!("no answer within {EXPORT_TIMEOUT:?}"),
                retry_after: None,
            });
            let (why, retry_after) = match outcome {
                Export::Accepted { rejected, why } => {
                    let rejected = rejected.min(count);
                    self.metrics.spans_exported(count - rejected);
                    if rejected > 0 {
                        self.dropped("rejected", rejected, &why);
                    }
                    return;
                }
                Export::Refused { why } => return self.dropped("rejected", count, &why),
                Export::Unavailable { why, retry_after } => (why, retry_after),
            };
            if attempt >= ATTEMPTS_MAX || *self.stopped.borrow() {
                return self.dropped("unavailable", count, &why);
            }
            let wait = retry.next(clock::random_u32());
            let wait = retry_after.map_or(wait, |asked| asked.clamp(wait, RETRY_AFTER_MAX));
            // At the shutdown, the last attempt is made at once.
            let _ = timeout(wait, self.stopped.wait_for(|stopped| *stopped)).await;
        }
    }

    fn dropped(&self, reason: &'static str, count: usize, why: &str) {
        self.metrics.spans_dropped(reason, count);
        if let Some(suppressed) = self.log.admit() {
            tracing::warn!(
                count,
                reason,
                error = why,
                suppressed,
                "spans dropped: the OTLP collector did not accept them (logged every 10 s at most)"
            );
        }
    }
}

/// Text of the collector, made safe for the log: bounded, and with control characters escaped.
fn legible(text: &str) -> String {
    const BYTES_MAX: usize = 200;
    let text = &text[..text.floor_char_boundary(BYTES_MAX)];
    text.chars()
        .flat_map(|letter| if letter.is_control() { letter.escape_default().collect() } else { vec![letter] })
        .collect()
}
