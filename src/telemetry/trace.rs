//! Distributed traces (W3C Trace Context, OpenTelemetry): which requests are sampled, and the spans of those.
//!
//! Nothing is allocated or measured for a request that is not sampled. A finished span goes into a bounded queue, which
//! [`crate::otlp`] empties; if the queue is full, the span is dropped and counted, and nobody waits.
//!
//! A span never has a token, a key, a user's id, a session's id or an address. Its name is a constant, or the name of an RPC.

use std::borrow::Cow;
use std::fmt;
use std::hash::BuildHasher as _;
use std::hash::RandomState;
use std::num::NonZeroU64;
use std::num::NonZeroU128;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::HeaderMap;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Exemplar;
use super::Metrics;
use sessiond_core::clock::Clock;
use sessiond_core::clock::Timestamp;

/// The most finished spans that wait to be exported. Further ones are dropped.
pub const SPANS_MAX: usize = 8_192;

/// The header that carries the caller's span (W3C Trace Context §3.2).
const TRACEPARENT: &str = "traceparent";

/// The length of a `traceparent` of version 0, in bytes.
const TRACEPARENT_LENGTH: usize = 55;

/// The id of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId(NonZeroU128);

/// The id of a span, unique within its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanId(NonZeroU64);

impl TraceId {
    /// Parses 32 lower-case hexadecimal digits that are not all zero.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (high, low) = text.split_at_checked(16)?;
        NonZeroU128::new(u128::from(hex(high)?) << 64 | u128::from(hex(low)?)).map(Self)
    }

    fn new() -> Self {
        let id = u128::from(unpredictable()) << 64 | u128::from(unpredictable());
        Self(NonZeroU128::new(id).unwrap_or(NonZeroU128::MIN))
    }

    /// As OTLP sends it.
    pub fn to_bytes(self) -> Vec<u8> {
        self.0.get().to_be_bytes().to_vec()
    }
}

impl SpanId {
    fn parse(text: &[u8]) -> Option<Self> {
        NonZeroU64::new(hex(text)?).map(Self)
    }

    fn new() -> Self {
        Self(NonZeroU64::new(unpredictable()).unwrap_or(NonZeroU64::MIN))
    }

    /// As OTLP sends it.
    pub fn to_bytes(self) -> Vec<u8> {
        self.0.get().to_be_bytes().to_vec()
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}

/// Parses 16 lower-case hexadecimal digits.
fn hex(text: &[u8]) -> Option<u64> {
    let is_digit = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
    let text =
        std::str::from_utf8(text).ok().filter(|text| text.len() == 16 && text.bytes().all(|byte| is_digit(&byte)))?;
    u64::from_str_radix(text, 16).ok()
}

/// A keyed hash of a number: as unlikely to repeat as random bits, without a system call. An id is no secret.
fn unpredictable() -> u64 {
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    KEY.hash_one(NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The caller's span, from `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace.
    pub trace_id: TraceId,
    /// The caller's span.
    pub span_id: SpanId,
    /// Whether the caller records the trace.
    pub is_sampled: bool,
}

impl TraceParent {
    /// The caller's span; `None` if there is no `traceparent`, more than one, or a malformed one.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => Self::parse(value.as_bytes()),
            (_, _) => None,
        }
    }

    /// Parses `version-trace-parent-flags`. A later version may have more fields, which are ignored (§4.3).
    fn parse(text: &[u8]) -> Option<Self> {
        let (known, more) = text.split_at_checked(TRACEPARENT_LENGTH)?;
        let [version @ .., b'-'] = &known[..3] else { return None };
        let is_version = |two: &[u8]| hex(&[b"00000000000000", two].concat()).filter(|version| *version != 0xff);
        let is_first = is_version(version)? == 0;
        if !more.is_empty() && (is_first || more[0] != b'-') || known[35] != b'-' || known[52] != b'-' {
            return None;
        }
        let flags = hex(&[b"00000000000000", &known[53..]].concat())?;
        Some(Self {
            trace_id: TraceId::parse(&known[3..35])?,
            span_id: SpanId::parse(&known[36..52])?,
            is_sampled: flags & 1 == 1,
        })
    }
}

/// Samples requests, and queues their finished spans. Cheap to clone; clones share the queue.
#[derive(Clone)]
pub struct Tracer(Arc<TracerState>);

struct TracerState {
    queue: mpsc::Sender<FinishedSpan>,
    /// A trace without a caller is sampled if the last 63 bits of its id are below this.
    sampled_below: u64,
    clock: Clock,
    metrics: Metrics,
}

impl Tracer {
    /// A tracer that samples this ratio of the traces that begin here, 0 to 1; and the queue of finished spans.
    pub fn new(ratio: f64, metrics: Metrics) -> (Self, mpsc::Receiver<FinishedSpan>) {
        let (queue, finished) = mpsc::channel(SPANS_MAX);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 2^63")]
        let sampled_below = (ratio.clamp(0.0, 1.0) * (1_u64 << 63) as f64) as u64;
        (Self(Arc::new(TracerState { queue, sampled_below, clock: Clock::system(), metrics })), finished)
    }

    /// Begins the span of a request; `None` if it is not sampled.
    ///
    /// The caller decides, if it has sent its span; otherwise the ratio does, by the trace's id, so that all who use the
    /// same ratio decide alike. `own_id` becomes the trace's id if it has the form of one, so that one id finds both the
    /// trace and the log lines.
    pub fn begin(&self, parent: Option<TraceParent>, own_id: &str, name: &'static str) -> Option<Span> {
        let (trace_id, parent, is_sampled) = match parent {
            Some(parent) => (parent.trace_id, Some(parent.span_id), parent.is_sampled),
            None => {
                let trace_id = TraceId::parse(own_id.as_bytes()).unwrap_or_else(TraceId::new);
                #[expect(clippy::cast_possible_truncation, reason = "the last 64 bits are meant")]
                let last_bits = trace_id.0.get() as u64 >> 1;
                (trace_id, None, last_bits < self.0.sampled_below)
            }
        };
        is_sampled.then(|| Span::new(self.clone(), trace_id, parent, name, SpanKind::Server))
    }
}

/// A span under which others are recorded. Cheap to clone.
#[derive(Clone)]
pub struct SpanParent {
    tracer: Tracer,
    trace_id: TraceId,
    span_id: SpanId,
}

impl SpanParent {
    /// Begins a span below this one.
    pub fn child(&self, name: &'static str, kind: SpanKind) -> Span {
        Span::new(self.tracer.clone(), self.trace_id, Some(self.span_id), name, kind)
    }
}

/// What a span stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// Work within this process.
    Internal,
    /// A request to this server.
    Server,
    /// A request to another one.
    Client,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Text.
    Text(Cow<'static, str>),
    /// A number.
    Number(i64),
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

/// A span that is being recorded. Finished and queued when dropped.
pub struct Span(Option<Box<OpenSpan>>);

struct OpenSpan {
    tracer: Tracer,
    started: Instant,
    /// Its `duration` is set when it is finished.
    span: FinishedSpan,
}

/// A finished span.
#[derive(Clone, Debug)]
pub struct FinishedSpan {
    /// Its trace.
    pub trace_id: TraceId,
    /// Its id.
    pub span_id: SpanId,
    /// The span that it is a part of.
    pub parent: Option<SpanId>,
    /// Its name.
    pub name: &'static str,
    /// What it stands for.
    pub kind: SpanKind,
    /// When it began.
    pub began_at: Timestamp,
    /// How long it took, by the monotonic clock.
    pub duration: Duration,
    /// Names and values.
    pub attributes: Vec<(&'static str, Value)>,
    /// Spans of other traces that it has to do with.
    pub links: Vec<(TraceId, SpanId)>,
    /// Whether it failed through a fault of this server or the database.
    pub has_failed: bool,
}

impl Span {
    fn new(tracer: Tracer, trace_id: TraceId, parent: Option<SpanId>, name: &'static str, kind: SpanKind) -> Self {
        let span = FinishedSpan {
            trace_id,
            span_id: SpanId::new(),
            parent,
            name,
            kind,
            began_at: tracer.0.clock.now(),
            duration: Duration::ZERO,
            attributes: vec![],
            links: vec![],
            has_failed: false,
        };
        Self(Some(Box::new(OpenSpan { tracer, started: Instant::now(), span })))
    }

    fn open(&self) -> &OpenSpan {
        self.0.as_ref().expect("open until it is dropped")
    }

    fn span(&mut self) -> &mut FinishedSpan {
        &mut self.0.as_mut().expect("open until it is dropped").span
    }

    /// The parent of the spans below this one.
    pub fn parent(&self) -> SpanParent {
        let OpenSpan { tracer, span, .. } = self.open();
        SpanParent { tracer: tracer.clone(), trace_id: span.trace_id, span_id: span.span_id }
    }

    /// The trace that it belongs to.
    pub fn trace_id(&self) -> TraceId {
        self.open().span.trace_id
    }

    /// The exemplar of a measurement of the same work.
    pub fn exemplar(&self) -> Exemplar {
        let FinishedSpan { trace_id, began_at: at, .. } = self.open().span;
        Exemplar { trace_id, at }
    }

    /// Renames it.
    pub fn rename(&mut self, name: &'static str) {
        self.span().name = name;
    }

    /// Adds an attribute.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        self.span().attributes.push((name, value.into()));
    }

    /// Links it to a span of another trace.
    pub fn link(&mut self, other: &SpanParent) {
        self.span().links.push((other.trace_id, other.span_id));
    }

    /// Marks it as failed.
    pub fn fail(&mut self) {
        self.span().has_failed = true;
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(open) = self.0.take() else { return };
        let OpenSpan { tracer, started, mut span } = *open;
        span.duration = started.elapsed();
        if tracer.0.queue.try_send(span).is_err() {
            tracer.0.metrics.spans_dropped("queue", 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    /// The examples of the specification, and what it forbids.
    #[test]
    fn a_traceparent_is_read_as_specified() {
        let parsed = |text: &str| TraceParent::parse(text.as_bytes());
        let good = parsed(&format!("00-{TRACE}-00f067aa0ba902b7-01")).expect("the example of the specification");
        assert_eq!(
            (good.trace_id.to_string().as_str(), good.span_id.to_string().as_str()),
            (TRACE, "00f067aa0ba902b7")
        );
        assert!(good.is_sampled);
        for (text, is_sampled) in [
            (format!("00-{TRACE}-00f067aa0ba902b7-00"), false),
            (format!("00-{TRACE}-00f067aa0ba902b7-02"), false),
            (format!("00-{TRACE}-00f067aa0ba902b7-ff"), true),
            (format!("01-{TRACE}-00f067aa0ba902b7-01"), true),
            (format!("cc-{TRACE}-00f067aa0ba902b7-01-what-the-future-will-be-like"), true),
        ] {
            assert_eq!(parsed(&text).map(|parent| parent.is_sampled), Some(is_sampled), "{text}");
        }
        for bad in [
            String::new(),
            "00".to_owned(),
            "é".repeat(40),
            format!("00-{TRACE}-00f067aa0ba902b7"),
            format!("00-{TRACE}-00f067aa0ba902b7-1"),
            format!("00-{TRACE}-00f067aa0ba902b7-01-"),
            format!("00-{TRACE}-00f067aa0ba902b7-01-more"),
            format!("01-{TRACE}-00f067aa0ba902b7-01.more"),
            format!("ff-{TRACE}-00f067aa0ba902b7-01"),
            format!("0x-{TRACE}-00f067aa0ba902b7-01"),
            format!("00-{}-00f067aa0ba902b7-01", TRACE.to_uppercase()),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{TRACE}-+0f067aa0ba902b7-01"),
            format!("00_{TRACE}-00f067aa0ba902b7-01"),
            format!("00-{TRACE}_00f067aa0ba902b7-01"),
            format!("00-{TRACE}-00f067aa0ba902b7_01"),
        ] {
            assert_eq!(parsed(&bad), None, "{bad}");
        }
        let mut headers = HeaderMap::new();
        let value = format!("00-{TRACE}-00f067aa0ba902b7-01");
        headers.append(TRACEPARENT, value.parse().expect("a value"));
        assert!(TraceParent::of(&headers).is_some());
        headers.append(TRACEPARENT, value.parse().expect("a value"));
        assert_eq!(TraceParent::of(&headers), None, "two are ambiguous");
    }

    #[test]
    fn the_caller_decides_about_sampling_and_otherwise_the_ratio() {
        let sampled = |ratio: f64, parent: Option<TraceParent>| {
            let (tracer, _finished) = Tracer::new(ratio, Metrics::default());
            (0..1_000).filter(|_| tracer.begin(parent, "", "a").is_some()).count()
        };
        let parent = TraceParent::parse(format!("00-{TRACE}-00f067aa0ba902b7-01").as_bytes()).expect("a good one");
        assert_eq!((sampled(0.0, None), sampled(1.0, None)), (0, 1_000));
        assert!((30..300).contains(&sampled(0.1, None)), "about a tenth");
        assert_eq!(sampled(0.0, Some(parent)), 1_000);
        assert_eq!(sampled(1.0, Some(TraceParent { is_sampled: false, ..parent })), 0);
        // Services with the same ratio decide alike about the same trace.
        let (tracer, _finished) = Tracer::new(0.5, Metrics::default());
        assert!(tracer.begin(None, &format!("{}{}", "f".repeat(16), "0".repeat(16)), "a").is_some());
        assert!(tracer.begin(None, &"f".repeat(32), "a").is_none());
    }

    #[test]
    fn a_span_is_queued_when_it_ends_and_the_queue_is_bounded() {
        let metrics = Metrics::default();
        let (tracer, mut finished) = Tracer::new(1.0, metrics.clone());
        let mut span = tracer.begin(None, TRACE, "a request").expect("sampled");
        drop(span.parent().child("a statement", SpanKind::Client));
        span.set("wire", "grpc");
        span.rename("another name");
        drop(span);
        let (statement, request) = (finished.try_recv().expect("queued"), finished.try_recv().expect("queued"));
        assert_eq!(
            (request.trace_id.to_string().as_str(), request.name, request.parent),
            (TRACE, "another name", None)
        );
        assert_eq!((statement.trace_id, statement.parent), (request.trace_id, Some(request.span_id)));
        assert_eq!(request.attributes, [("wire", Value::from("grpc"))]);

        (0..SPANS_MAX + 3).for_each(|_| drop(tracer.begin(None, "", "a request")));
        assert!(metrics.render().contains("sessiond_spans_dropped_total{reason=\"queue\"} 3"), "{}", metrics.render());
    }
}
