//! Log, metrics (Prometheus format) and traces (OpenTelemetry). None ever contains a token, a key, a digest, a user's id or a
//! full address.

mod log;

/// The request that a task handles.
pub mod request;

/// Distributed traces.
pub mod trace;

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use std::time::UNIX_EPOCH;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::histogram::exponential_buckets;
use prometheus_client::registry::Registry;
use prometheus_client::registry::Unit;
use serde_json::json;
use tokio::time::Instant;
use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::Log;
use crate::config::LogFormat;
pub use request::request_id;
use sessiond_core::clock::Clock;
use sessiond_core::clock::Skew;
use sessiond_core::clock::Timestamp;
use trace::TraceId;

/// The protocol of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wire {
    /// gRPC over HTTP/2.
    Grpc,
    /// grpc-web, for browsers.
    GrpcWeb,
    /// JSON over HTTP.
    Rest,
    /// OAuth 2.0: form requests, JSON responses.
    OAuth,
    /// Stack Auth's API. Its label keeps the name that dashboards know.
    StackAuth,
}

impl Wire {
    /// The name in metrics and the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::GrpcWeb => "grpc-web",
            Self::Rest => "rest",
            Self::OAuth => "oauth",
            Self::StackAuth => "stack-auth",
        }
    }
}

/// The class of a request: each has its own buckets and places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestClass {
    /// Signs out with a presented token.
    SignOut,
    /// Verifies a request for a proxy.
    Verify,
    /// Health and readiness.
    Probe,
    /// Server reflection over gRPC.
    Reflection,
    /// A public document: keys, metadata.
    Public,
    /// Everything else.
    Other,
}

impl RequestClass {
    /// The name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SignOut => "sign_out",
            Self::Verify => "verify",
            Self::Probe => "probe",
            Self::Reflection => "reflection",
            Self::Public => "public",
            Self::Other => "other",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClassLabels {
    class: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    class: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    rpc: &'static str,
    wire: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LatencyLabels {
    rpc: &'static str,
    wire: &'static str,
}

/// The label of an exemplar.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TraceLabels {
    trace_id: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    operation: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BucketLabels {
    bucket: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GroupLabels {
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TaskLabels {
    task: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConditionLabels {
    condition: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FileLabels {
    file: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeliveryLabels {
    kind: &'static str,
    outcome: &'static str,
}

/// The metrics. Cheap to clone; clones share state.
// One pointer: every layer of a request holds the metrics, and a copy of each metric's pointer is some forty atomic additions.
#[derive(Clone)]
pub struct Metrics(Arc<Families>);

struct Families {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    latency: Family<LatencyLabels, HistogramWithExemplars<TraceLabels>>,
    rate_limited: Family<BucketLabels, Counter>,
    under_way: Family<ClassLabels, Gauge>,
    refused: Family<RefusalLabels, Counter>,
    turns_refused: Family<ReasonLabels, Counter>,
    store_refused: Family<ReasonLabels, Counter>,
    group_waiting: Family<GroupLabels, Gauge>,
    http_connections: Gauge,
    connections_refused: Family<ReasonLabels, Counter>,
    connections_closed: Family<ReasonLabels, Counter>,
    operations: Family<OperationLabels, HistogramWithExemplars<TraceLabels>>,
    connections: Gauge,
    connections_idle: Gauge,
    sweep_steps: Family<TaskLabels, Histogram>,
    sweeps_completed: Family<TaskLabels, Gauge>,
    swept: Family<KindLabels, Counter>,
    revocations: Family<ReasonLabels, Counter>,
    feed_lag: Histogram,
    feed_age: Gauge<f64, AtomicU64>,
    feed_entries: Gauge,
    feed_subscribers: Gauge,
    deliveries: Family<DeliveryLabels, Counter>,
    deliveries_pending: Family<KindLabels, Gauge>,
    delivery_attempts: Family<KindLabels, Histogram>,
    not_ready: Family<ConditionLabels, Gauge>,
    certificate_expiry: Gauge,
    tls_files_rejected: Family<FileLabels, Gauge>,
    clock_skew: Gauge<f64, AtomicU64>,
    clock_error: Gauge<f64, AtomicU64>,
    task_restarts: Family<TaskLabels, Counter>,
    log_lines_dropped: Counter,
    spans_exported: Counter,
    spans_dropped: Family<ReasonLabels, Counter>,
    refusals: Family<ReasonLabels, Counter>,
    refusals_said: Mutex<HashMap<&'static str, LogLimiter>>,
    impersonations: Counter,
    repeats_elsewhere: Family<OutcomeLabels, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("sessiond");
        let requests = Family::default();
        registry.register("requests", "Answered requests by RPC, wire and gRPC code", requests.clone());
        let latency = Family::new_with_constructor(traced_durations as fn() -> HistogramWithExemplars<TraceLabels>);
        let help = "Time from the request's head to the answer's";
        registry.register_with_unit("request_duration", help, Unit::Seconds, latency.clone());
        let rate_limited = Family::default();
        registry.register("rate_limited", "Requests refused, by the empty bucket", rate_limited.clone());
        let under_way = Family::default();
        registry.register("requests_under_way", "Requests that hold a place, by class", under_way.clone());
        let refused = Family::default();
        let help = "Requests refused before any work, by class and exhausted resource";
        registry.register("requests_refused", help, refused.clone());
        let turns_refused = Family::default();
        let help = "Operations refused while waiting for others on the same session or user, by reason";
        registry.register("turns_refused", help, turns_refused.clone());
        let store_refused = Family::default();
        let help = "Database operations refused before they got a connection, by reason";
        registry.register("store_refused", help, store_refused.clone());
        let group_waiting = Family::default();
        let help = "Requests that wait for a transaction which they will share, by operation";
        registry.register("group_waiting", help, group_waiting.clone());
        let http_connections = Gauge::default();
        registry.register("connections", "Open client connections", http_connections.clone());
        let connections_refused = Family::default();
        let help = "Client connections closed on arrival, by reason";
        registry.register("connections_refused", help, connections_refused.clone());
        let connections_closed = Family::default();
        let help = "Client connections closed by this server, by reason";
        registry.register("connections_closed", help, connections_closed.clone());
        let operations = Family::new_with_constructor(traced_durations as fn() -> HistogramWithExemplars<TraceLabels>);
        let help = "Time of a database operation, including the wait for a connection";
        registry.register_with_unit("store_operation_duration", help, Unit::Seconds, operations.clone());
        let connections = Gauge::default();
        registry.register("store_connections", "Open connections to the database", connections.clone());
        let connections_idle = Gauge::default();
        registry.register("store_connections_idle", "Idle connections to the database", connections_idle.clone());
        let sweep_steps = Family::new_with_constructor(durations as fn() -> Histogram);
        registry.register_with_unit("sweep_step_duration", "Time of a sweep step", Unit::Seconds, sweep_steps.clone());
        let sweeps_completed = Family::default();
        let help = "Unix time at which any replica last finished a sweep of the table";
        registry.register_with_unit("sweep_completed_timestamp", help, Unit::Seconds, sweeps_completed.clone());
        let swept = Family::default();
        registry.register("swept_rows", "Rows deleted by this replica's sweeps, by kind", swept.clone());
        let revocations = Family::default();
        let help = "Revocations of sessions, users, projects and keys by this replica, by reason";
        registry.register("revocations", help, revocations.clone());
        let feed_lag = durations();
        let help = "Time from a revocation to its publication";
        registry.register_with_unit("feed_lag", help, Unit::Seconds, feed_lag.clone());
        let feed_age = Gauge::default();
        let help = "How old the feed may be; -1 before the first read";
        registry.register_with_unit("feed_age", help, Unit::Seconds, feed_age.clone());
        let feed_entries = Gauge::default();
        registry.register(
            "feed_entries",
            "Revocations in memory, of which tokens may still be unexpired",
            feed_entries.clone(),
        );
        let feed_subscribers = Gauge::default();
        registry.register("feed_subscribers", "Open streams of revocations", feed_subscribers.clone());
        let deliveries = Family::default();
        let help = "Back-channel delivery attempts of this replica, by kind and outcome";
        registry.register("backchannel_attempts", help, deliveries.clone());
        let deliveries_pending = Family::default();
        let help = "Pending back-channel deliveries of all replicas, at most 10000 counted per endpoint";
        registry.register("backchannel_pending", help, deliveries_pending.clone());
        let delivery_attempts = Family::new_with_constructor(durations as fn() -> Histogram);
        let help = "Time of a back-channel delivery attempt, from name resolution to response";
        registry.register_with_unit("backchannel_attempt_duration", help, Unit::Seconds, delivery_attempts.clone());
        let not_ready = Family::default();
        let help = "Whether this condition makes the replica not ready: 1 or 0";
        registry.register("not_ready", help, not_ready.clone());
        let clock_skew = Gauge::default();
        let help = "System clock minus database clock, which is authoritative; negative when behind";
        registry.register_with_unit("clock_skew", help, Unit::Seconds, clock_skew.clone());
        let clock_error = Gauge::default();
        let help = "Bound on the error of this replica's time against the database's; -1 before the first read";
        registry.register_with_unit("clock_error", help, Unit::Seconds, clock_error.clone());
        let task_restarts = Family::default();
        let help = "Restarts of background tasks that ended or panicked, by task";
        registry.register("task_restarts", help, task_restarts.clone());
        let log_lines_dropped = Counter::default();
        let help = "Log lines dropped because standard error was full, closed or not read";
        registry.register("log_lines_dropped", help, log_lines_dropped.clone());
        let spans_exported = Counter::default();
        registry.register("spans_exported", "Spans that the OTLP collector accepted", spans_exported.clone());
        let spans_dropped = Family::default();
        let help = "Spans that were not exported, by reason";
        registry.register("spans_dropped", help, spans_dropped.clone());
        let refusals = Family::default();
        let help = "Refused requests, by reason";
        registry.register("refusals", help, refusals.clone());
        let impersonations = Counter::default();
        let help = "Impersonation sessions created by this replica";
        registry.register("impersonations", help, impersonations.clone());
        let certificate_expiry = Gauge::default();
        let help = "Unix time at which the TLS certificate in use expires; 0 without TLS";
        registry.register_with_unit(
            "tls_certificate_expiry_timestamp",
            help,
            Unit::Seconds,
            certificate_expiry.clone(),
        );
        let tls_files_rejected = Family::default();
        let help = "Whether the TLS files on disk cannot be used, so that the previous ones stay in use: 1 or 0";
        registry.register("tls_files_rejected", help, tls_files_rejected.clone());
        let repeats_elsewhere = Family::default();
        let help = "Refreshes repeated within the grace from another network or user agent, by outcome";
        registry.register("refresh_repeats_elsewhere", help, repeats_elsewhere.clone());
        Self(Arc::new(Families {
            registry,
            requests,
            latency,
            rate_limited,
            under_way,
            refused,
            turns_refused,
            store_refused,
            group_waiting,
            http_connections,
            connections_refused,
            connections_closed,
            operations,
            connections,
            connections_idle,
            sweep_steps,
            sweeps_completed,
            swept,
            revocations,
            feed_lag,
            feed_age,
            feed_entries,
            feed_subscribers,
            deliveries,
            deliveries_pending,
            delivery_attempts,
            not_ready,
            clock_skew,
            clock_error,
            task_restarts,
            log_lines_dropped,
            spans_exported,
            spans_dropped,
            refusals,
            refusals_said: Mutex::default(),
            impersonations,
            certificate_expiry,
            tls_files_rejected,
            repeats_elsewhere,
        }))
    }
}

impl Metrics {
    /// Counts an answered request. Its trace, if it is sampled, becomes the exemplar of its duration.
    pub fn request(
        &self,
        rpc: &'static str,
        wire: Wire,
        code: &'static str,
        took: Duration,
        exemplar: Option<Exemplar>,
    ) {
        let wire = wire.as_str();
        self.0.requests.get_or_create(&RequestLabels { rpc, wire, code }).inc();
        observe(&self.0.latency.get_or_create(&LatencyLabels { rpc, wire }), took, exemplar);
    }

    /// Counts a request refused by an empty bucket of this kind.
    pub fn rate_limited(&self, bucket: &'static str) {
        self.0.rate_limited.get_or_create(&BucketLabels { bucket }).inc();
    }

    /// Records that this many more requests of a class hold a place.
    pub fn requests_under_way(&self, class: RequestClass, more: i64) {
        self.0.under_way.get_or_create(&ClassLabels { class: class.as_str() }).inc_by(more);
    }

    /// Counts a request refused before any work: no `slots`, no share of its `address`, no `bytes`, or no `arrival` of
    /// its message in time.
    pub fn request_refused(&self, class: RequestClass, reason: &'static str) {
        self.0.refused.get_or_create(&RefusalLabels { class: class.as_str(), reason }).inc();
    }

    /// Counts an operation that got no turn: too many wait in the `line`, or its `time` ran out.
    pub fn turn_refused(&self, reason: &'static str) {
        self.0.turns_refused.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Counts a database operation that got no connection: too many wait in the `line`, or too little `time` was left.
    pub fn store_refused(&self, reason: &'static str) {
        self.0.store_refused.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Records that this many more requests wait for a transaction which they will share.
    pub fn group_waiting(&self, operation: &'static str, more: i64) {
        self.0.group_waiting.get_or_create(&GroupLabels { operation }).inc_by(more);
    }

    /// Records that this many more client connections are open.
    pub fn connections_open(&self, more: i64) {
        self.0.http_connections.inc_by(more);
    }

    /// Records when the TLS certificate expires.
    pub fn certificate_expiry(&self, at: Timestamp) {
        self.0.certificate_expiry.set(at.as_seconds());
    }

    /// Records whether a TLS file on disk cannot be used: the `certificate` with its key, or the `client_ca`.
    pub fn tls_file_rejected(&self, file: &'static str, is_rejected: bool) {
        self.0.tls_files_rejected.get_or_create(&FileLabels { file }).set(i64::from(is_rejected));
    }

    /// Counts a connection that was closed on arrival.
    pub fn connection_refused(&self, reason: &'static str) {
        self.0.connections_refused.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Counts a connection that this server closed.
    pub fn connection_closed(&self, reason: &'static str) {
        self.0.connections_closed.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Counts a database operation. Its trace, if it is sampled, becomes the exemplar of its duration.
    pub fn store_operation(&self, operation: &'static str, ok: bool, took: Duration, exemplar: Option<Exemplar>) {
        let labels = OperationLabels { operation, outcome: if ok { "ok" } else { "error" } };
        observe(&self.0.operations.get_or_create(&labels), took, exemplar);
    }

    /// Records the size of the pool.
    pub fn pool(&self, connections: usize, idle: usize) {
        self.0.connections.set(connections.try_into().unwrap_or(i64::MAX));
        self.0.connections_idle.set(idle.try_into().unwrap_or(i64::MAX));
    }

    /// Counts a step of a sweep.
    pub fn sweep_step(&self, task: &'static str, took: Duration) {
        self.0.sweep_steps.get_or_create(&TaskLabels { task }).observe(took.as_secs_f64());
    }

    /// Records when a sweep last finished its table, in seconds since 1970.
    pub fn sweep_completed(&self, task: &'static str, at_seconds: i64) {
        self.0.sweeps_completed.get_or_create(&TaskLabels { task }).set(at_seconds);
    }

    /// Counts rows deleted by a sweep.
    pub fn swept(&self, kind: &'static str, rows: usize) {
        self.0.swept.get_or_create(&KindLabels { kind }).inc_by(rows.try_into().unwrap_or(u64::MAX));
    }

    /// Counts a revocation by this replica.
    pub fn revocation(&self, reason: &'static str) {
        self.0.revocations.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Records the delay from a revocation to its publication.
    pub fn feed_lag(&self, lag: Duration) {
        self.0.feed_lag.observe(lag.as_secs_f64());
    }

    /// Records the state of the feed.
    pub fn feed(&self, age: Option<Duration>, entries: usize, subscribers: usize) {
        self.0.feed_age.set(age.map_or(-1.0, |age| age.as_secs_f64()));
        self.0.feed_entries.set(entries.try_into().unwrap_or(i64::MAX));
        self.0.feed_subscribers.set(subscribers.try_into().unwrap_or(i64::MAX));
    }

    /// Counts a delivery attempt: `delivered`, to be `retried`, or `dead`.
    pub fn delivery(&self, kind: &'static str, outcome: &'static str) {
        self.0.deliveries.get_or_create(&DeliveryLabels { kind, outcome }).inc();
    }

    /// Records how long a receiver took.
    pub fn delivery_attempt(&self, kind: &'static str, took: Duration) {
        self.0.delivery_attempts.get_or_create(&KindLabels { kind }).observe(took.as_secs_f64());
    }

    /// Records how many deliveries are pending.
    pub fn deliveries_pending(&self, kind: &'static str, count: i64) {
        self.0.deliveries_pending.get_or_create(&KindLabels { kind }).set(count);
    }

    /// Records whether a condition prevents readiness.
    pub fn not_ready(&self, condition: &'static str, holds: bool) {
        self.0.not_ready.get_or_create(&ConditionLabels { condition }).set(holds.into());
    }

    /// Records the difference between this machine's clock and the database's; `None` before it is known.
    pub fn clock(&self, skew: Option<Skew>) {
        self.0.clock_skew.set(skew.map_or(0.0, |skew| skew.micros as f64 / 1e6));
        self.0.clock_error.set(skew.map_or(-1.0, |skew| skew.error.as_secs_f64()));
    }

    /// Counts a restart of a background task that ended or panicked.
    pub fn task_restart(&self, task: &'static str) {
        self.0.task_restarts.get_or_create(&TaskLabels { task }).inc();
    }

    /// Counts spans that the OTLP collector accepted.
    pub fn spans_exported(&self, count: usize) {
        self.0.spans_exported.inc_by(count.try_into().unwrap_or(u64::MAX));
    }

    /// Counts spans that were not exported: the `queue` was full, or the collector was `unavailable` or
    /// `rejected` them.
    pub fn spans_dropped(&self, reason: &'static str, count: usize) {
        if count > 0 {
            let count = count.try_into().unwrap_or(u64::MAX);
            self.0.spans_dropped.get_or_create(&ReasonLabels { reason }).inc_by(count);
        }
    }

    /// Counts a refused request by reason.
    pub fn refusal(&self, reason: &'static str) {
        self.0.refusals.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Whether to log a refusal with this reason now: see [`LogLimiter`]. Returns how many were not logged since the last
    /// one.
    pub fn admits_refusal_line(&self, reason: &'static str) -> Option<u64> {
        let last =
            self.0.refusals_said.lock().expect("no one panics while holding it").entry(reason).or_default().clone();
        last.admit()
    }

    /// Counts the creation of an impersonation session.
    pub fn impersonation(&self) {
        self.0.impersonations.inc();
    }

    /// Counts a refresh repeated from elsewhere that was `allowed`, or that `ended` the session.
    pub fn refresh_repeated_elsewhere(&self, outcome: &'static str) {
        self.0.repeats_elsewhere.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// All metrics, in OpenMetrics text format, without exemplars.
    pub fn render(&self) -> String {
        let page = self.render_with_exemplars();
        // Only exemplars have this: no label has a `#`.
        let lines =
            page.split_inclusive('\n').map(|line| line.split_once(" # {").map_or((line, ""), |(line, _)| (line, "\n")));
        lines.flat_map(|(line, end)| [line, end]).collect()
    }

    /// All metrics, in OpenMetrics text format.
    pub fn render_with_exemplars(&self) -> String {
        let dropped = log::Log::present().map_or(0, log::Log::dropped);
        self.0.log_lines_dropped.inner().fetch_max(dropped, std::sync::atomic::Ordering::Relaxed);
        let mut page = String::new();
        text::encode(&mut page, &self.0.registry).expect("a string takes whatever is written to it");
        page
    }
}

/// Limits log lines that strangers can cause: one line per [`LogLimiter::INTERVAL`], and the first at once. Clones share
/// state.
#[derive(Clone, Debug, Default)]
pub struct LogLimiter(Arc<Mutex<LastLine>>);

#[derive(Debug, Default)]
struct LastLine {
    at: Option<Instant>,
    /// How many lines were suppressed since.
    suppressed: u64,
}

impl LogLimiter {
    /// The minimum time between lines.
    pub const INTERVAL: Duration = Duration::from_secs(10);

    /// `Some` to log now, with the number of lines suppressed since the last one.
    pub fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut last = self.0.lock().expect("no one panics while holding it");
        if last.at.is_some_and(|at| now < at + Self::INTERVAL) {
            last.suppressed += 1;
            return None;
        }
        last.at = Some(now);
        Some(std::mem::take(&mut last.suppressed))
    }
}

/// From 0.25 ms to 4 s.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 15))
}

/// The same buckets, each with the trace that was last in it.
fn traced_durations() -> HistogramWithExemplars<TraceLabels> {
    HistogramWithExemplars::new(exponential_buckets(0.000_25, 2.0, 15))
}

/// The trace that a measurement belongs to, and when it began.
#[derive(Clone, Copy, Debug)]
pub struct Exemplar {
    trace_id: TraceId,
    at: Timestamp,
}

fn observe(durations: &HistogramWithExemplars<TraceLabels>, took: Duration, exemplar: Option<Exemplar>) {
    let at = exemplar
        .map(|exemplar| UNIX_EPOCH + Duration::from_micros(exemplar.at.as_micros().try_into().unwrap_or_default()));
    let labels = exemplar.map(|exemplar| TraceLabels { trace_id: exemplar.trace_id.to_string() });
    durations.observe(took.as_secs_f64(), labels, at);
}

/// Why the log cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("`--log {filter}` is not a filter: use a level such as `info`, or `target=level`")]
pub struct FilterError {
    filter: String,
    #[source]
    source: tracing_subscriber::filter::ParseError,
}

/// Whether an event may be logged at all, whatever the operator's filter says. Below `info`, libraries log what they
/// carry: statement parameters, headers, raw bytes. Only our own events are known to hold no secrets. Warnings of h2
/// are caused by its peers, so any stranger could flood the log.
fn may_be_logged(target: &str, level: Level) -> bool {
    let is_of = |name| target.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    match level {
        _ if is_of(OURS) => true,
        _ if is_of("h2") => level == Level::ERROR,
        _ => level <= Level::INFO,
    }
}

/// The first segment of our targets: the crate's name.
const OURS: &str = "sessiond";

/// Sends the log of this process to standard error. Lines that cannot be written are dropped and counted: nothing
/// waits.
///
/// # Errors
///
/// If the filter is malformed.
pub fn init(log: &Log) -> Result<(), FilterError> {
    let source_of = |source| FilterError { filter: log.log.clone(), source };
    let filter = EnvFilter::builder().parse(&log.log).map_err(source_of)?;
    // After the operator's filter, not part of it, so that no directive can undo it.
    let log_of =
        tracing_subscriber::registry().with(filter).with(filter_fn(|line| may_be_logged(line.target(), *line.level())));
    let lines = tracing_subscriber::fmt::layer().with_writer(log::Log::of_process().clone());
    match log.log_format {
        LogFormat::Text => log_of.with(lines.with_target(false).with_ansi(std::io::stderr().is_terminal())).init(),
        LogFormat::Json => log_of.with(lines.json().flatten_event(true)).init(),
    }
    std::panic::set_hook(Box::new(panicked));
    Ok(())
}

/// The default hook writes to standard error itself, and blocks while nobody reads it.
fn panicked(panic: &std::panic::PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let message = panic.payload_as_str().unwrap_or_default();
    tracing::error!(location, thread = thread.name(), request_id = %request_id(), "panicked: {message}");
}

/// Writes a line to standard error, after earlier log lines. Waits at most a second. Works without a log.
pub fn print_line(text: &str) {
    match log::Log::present() {
        Some(log) => {
            log.line(format!("{text}\n").as_bytes());
            log.flush();
        }
        None => drop(writeln!(std::io::stderr(), "{text}")),
    }
}

/// Waits until the log is written, at most a second: for a process about to exit.
pub fn flush() {
    if let Some(log) = log::Log::present() {
        log.flush();
    }
}

/// A JSON log line with the reason of an exit. Works before the log is set up, and in a panic.
pub fn json_line(message: &str) -> String {
    let timestamp = Clock::system().now().to_string();
    json!({"timestamp": timestamp, "level": "ERROR", "message": message, "target": OURS}).to_string()
}

/// Whether the command line or the environment asks for a JSON log: for errors in the command line itself.
pub fn is_json_requested() -> bool {
    let args: Vec<_> = std::env::args_os().collect();
    let by_flag = args.iter().any(|arg| arg == "--log-format=json")
        || args.windows(2).any(|pair| pair[0] == "--log-format" && pair[1] == "json");
    by_flag || std::env::var("SESSIOND_LOG_FORMAT").is_ok_and(|format| format.trim() == "json")
}

/// An error and its causes, on one line. Causes that an outer message already contains are not repeated.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.map(ToString::to_string).fold(error.to_string(), |text, cause| match text.contains(&cause) {
        true => text,
        false => format!("{text}: {cause}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_log_no_secrets_and_strangers_cannot_flood_the_log() {
        for (target, level, is_logged) in [
            ("sessiond", Level::TRACE, true),
            ("sessiond::edge::serve", Level::DEBUG, true),
            ("sessiond_guard", Level::DEBUG, false),
            ("tokio_postgres::query", Level::DEBUG, false),
            ("tokio_postgres", Level::INFO, true),
            ("h2::proto::streams::streams", Level::WARN, false),
            ("h2", Level::ERROR, true),
            ("h2x", Level::WARN, true),
        ] {
            assert_eq!(may_be_logged(target, level), is_logged, "{target} {level}");
        }
    }

    #[test]
    fn only_a_page_with_exemplars_has_traces() {
        let metrics = Metrics::default();
        let (tracer, _finished) = trace::Tracer::new(1.0, metrics.clone());
        let span = tracer.begin(None, &"ab".repeat(16), "a").expect("sampled");
        metrics.request("a", Wire::Grpc, "OK", Duration::from_millis(3), Some(span.exemplar()));
        metrics.request("a", Wire::Grpc, "OK", Duration::from_millis(3), None);
        let (plain, traced) = (metrics.render(), metrics.render_with_exemplars());
        let bucket = "sessiond_request_duration_seconds_bucket{le=\"0.004\",rpc=\"a\",wire=\"grpc\"} 2";
        let exemplar = format!("{bucket} # {{trace_id=\"{}\"}} 0.003 ", "ab".repeat(16));
        assert!(traced.contains(&exemplar), "{traced}");
        assert!(plain.contains(&format!("{bucket}\n")) && !plain.contains("trace_id"), "{plain}");
        assert_eq!(plain.lines().count(), traced.lines().count());
    }

    #[test]
    fn a_line_that_strangers_can_cause_is_logged_once_per_interval() {
        let (limiter, start) = (LogLimiter::default(), Instant::now());
        assert_eq!(limiter.admit_at(start), Some(0));
        for millis in 0..1_000 {
            assert_eq!(limiter.admit_at(start + Duration::from_millis(millis)), None);
        }
        assert_eq!(limiter.clone().admit_at(start + LogLimiter::INTERVAL), Some(1_000));
        assert_eq!(limiter.admit_at(start + LogLimiter::INTERVAL), None);

        let metrics = Metrics::default();
        assert_eq!((metrics.admits_refusal_line("A"), metrics.admits_refusal_line("B")), (Some(0), Some(0)));
        assert_eq!(metrics.clone().admits_refusal_line("A"), None);
    }
}
