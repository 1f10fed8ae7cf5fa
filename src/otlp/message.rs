//! The messages of OTLP that are sent and read (opentelemetry-proto 1.x), field by field as in its `.proto` files. Fields that
//! are not used are left out.

use std::time::Duration;

use uuid::Uuid;

use crate::telemetry::trace::FinishedSpan;
use crate::telemetry::trace::SpanId;
use crate::telemetry::trace::SpanKind;
use crate::telemetry::trace::TraceId;
use crate::telemetry::trace::Value;
use sessiond_core::clock;
use sessiond_core::clock::Timestamp;

/// `opentelemetry.proto.collector.trace.v1.ExportTraceServiceRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ExportRequest {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

/// `opentelemetry.proto.collector.trace.v1.ExportTraceServiceResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ExportResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PartialSuccess {
    #[prost(int64, tag = "1")]
    pub(super) rejected_spans: i64,
    #[prost(string, tag = "2")]
    pub(super) error_message: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

/// `opentelemetry.proto.resource.v1.Resource`: what the spans are from.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<InstrumentationScope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct InstrumentationScope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, repeated, tag = "13")]
    links: Vec<Link>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Link {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    #[prost(int32, tag = "3")]
    code: i32,
}

/// `STATUS_CODE_ERROR`.
const ERROR: i32 = 2;

#[derive(Clone, PartialEq, prost::Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AnyValue {
    #[prost(oneof = "any_value::Value", tags = "1, 3")]
    value: Option<any_value::Value>,
}

mod any_value {
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum Value {
        #[prost(string, tag = "1")]
        String(String),
        #[prost(int64, tag = "3")]
        Int(i64),
    }
}

/// The resource of all spans. The attributes that an operator sets take precedence.
pub(super) fn resource(service_name: &str, attributes: &[(String, String)]) -> Resource {
    let own = [
        ("service.name", service_name.to_owned()),
        ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
        // Tells replicas apart; a new one with every start.
        ("service.instance.id", Uuid::from_bytes(clock::random()).to_string()),
    ];
    let own =
        own.into_iter().filter(|(key, _)| *key == "service.name" || !attributes.iter().any(|(set, _)| set == key));
    let own = own.map(|(key, value)| (key.to_owned(), value));
    let set = attributes.iter().filter(|(key, _)| key != "service.name").cloned();
    Resource { attributes: own.chain(set).map(|(key, value)| text(key, value)).collect() }
}

/// The request that sends a batch of spans.
pub(super) fn request(resource: Resource, spans: Vec<FinishedSpan>) -> ExportRequest {
    let scope = InstrumentationScope { name: "sessiond".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
    let scope_spans = ScopeSpans { scope: Some(scope), spans: spans.into_iter().map(span).collect() };
    ExportRequest { resource_spans: vec![ResourceSpans { resource: Some(resource), scope_spans: vec![scope_spans] }] }
}

fn span(finished: FinishedSpan) -> Span {
    let start = nanos(finished.began_at);
    let link =
        |(trace_id, span_id): (TraceId, SpanId)| Link { trace_id: trace_id.to_bytes(), span_id: span_id.to_bytes() };
    Span {
        trace_id: finished.trace_id.to_bytes(),
        span_id: finished.span_id.to_bytes(),
        parent_span_id: finished.parent.map(|parent| parent.to_bytes()).unwrap_or_default(),
        name: finished.name.to_owned(),
        kind: match finished.kind {
            SpanKind::Internal => 1,
            SpanKind::Server => 2,
            SpanKind::Client => 3,
        },
        start_time_unix_nano: start,
        end_time_unix_nano: start.saturating_add(nanos_of(finished.duration)),
        attributes: finished.attributes.into_iter().map(attribute).collect(),
        links: finished.links.into_iter().map(link).collect(),
        status: finished.has_failed.then_some(Status { code: ERROR }),
    }
}

fn nanos(at: Timestamp) -> u64 {
    u64::try_from(at.as_micros()).unwrap_or_default().saturating_mul(1_000)
}

fn nanos_of(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn attribute((key, value): (&'static str, Value)) -> KeyValue {
    match value {
        Value::Text(value) => text(key.to_owned(), value.into_owned()),
        Value::Number(number) => {
            KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(any_value::Value::Int(number)) }) }
        }
    }
}

fn text(key: String, value: String) -> KeyValue {
    KeyValue { key, value: Some(AnyValue { value: Some(any_value::Value::String(value)) }) }
}
