//! The request that a task handles: its id, and what the request log and the trace say about it.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;

use http::HeaderMap;
use http::Method;
use http::StatusCode;
use tokio::time::Instant;

use super::Exemplar;
use super::Wire;
use super::trace::Span;
use super::trace::SpanKind;
use super::trace::SpanParent;
use super::trace::TraceId;
use super::trace::TraceParent;
use super::trace::Tracer;
use sessiond_core::id::ProjectId;
use sessiond_core::session::origin::network;

tokio::task_local! {
    static CURRENT: CurrentWork;
}

/// What a task works for.
#[derive(Clone, Default)]
struct CurrentWork {
    request_id: Arc<str>,
    record: Option<Arc<RequestRecord>>,
    /// The span of a group of requests, which belongs to none of them alone.
    group: Option<SpanParent>,
}

/// Runs a future as the work for a request.
pub fn handle<F: Future>(
    request_id: Arc<str>,
    record: Option<Arc<RequestRecord>>,
    work: F,
) -> impl Future<Output = F::Output> + use<F> {
    CURRENT.scope(CurrentWork { request_id, record, group: None }, work)
}

/// Runs a future as the work for a group of requests.
pub async fn handle_group<F: Future>(span: SpanParent, work: F) -> F::Output {
    CURRENT.scope(CurrentWork { group: Some(span), ..CurrentWork::default() }, work).await
}

/// The id of the request that this task handles; empty outside of one.
pub fn request_id() -> Arc<str> {
    CURRENT.try_with(|current| Arc::clone(&current.request_id)).unwrap_or_default()
}

/// The record of the request that this task handles; `None` if it is neither logged nor traced.
pub fn current_record() -> Option<Arc<RequestRecord>> {
    CURRENT.try_with(|current| current.record.clone()).ok().flatten()
}

/// The span that this task's work is a part of; `None` if it is not sampled.
pub fn current_span() -> Option<SpanParent> {
    let span = |current: &CurrentWork| match (&current.group, &current.record) {
        (Some(group), _) => Some(group.clone()),
        (None, Some(record)) => record.parent.clone(),
        (None, None) => None,
    };
    CURRENT.try_with(span).ok().flatten()
}

/// Records the project that this task's request concerns.
pub fn note_project(project: &ProjectId) {
    if let Some(record) = current_record() {
        record.facts().project = Some(project.clone());
    }
}

/// Records why this task's request is refused.
pub fn note_reason(reason: &'static str) {
    if let Some(record) = current_record() {
        record.note_reason(reason);
    }
}

/// Which requests are logged and traced.
#[derive(Clone, Default)]
pub struct RequestObserver {
    /// `None` if no request is traced.
    pub tracer: Option<Tracer>,
    /// Whether every request is logged.
    pub logs_requests: bool,
}

impl RequestObserver {
    /// Begins the record of a request; `None` if it is neither logged nor traced. `route` names it until it becomes a
    /// call.
    pub fn begin(
        &self,
        request_id: &Arc<str>,
        method: &Method,
        headers: &HeaderMap,
        wire: Wire,
        route: impl FnOnce() -> Route,
    ) -> Option<Arc<RequestRecord>> {
        if self.tracer.is_none() && !self.logs_requests {
            return None;
        }
        let (caller, route) = (TraceParent::of(headers), route());
        let is_traced = caller.is_some() || !route.is_probe;
        let span = self.tracer.as_ref().filter(|_| is_traced);
        let span = span.and_then(|tracer| tracer.begin(caller, request_id, route.name));
        if span.is_none() && !self.logs_requests {
            return None;
        }
        Some(Arc::new(RequestRecord {
            request_id: Arc::clone(request_id),
            method: method.clone(),
            wire,
            started: Instant::now(),
            trace_id: span.as_ref().map(Span::trace_id).or(caller.map(|caller| caller.trace_id)),
            parent: span.as_ref().map(Span::parent),
            exemplar: span.as_ref().map(Span::exemplar),
            is_logged: self.logs_requests,
            facts: Mutex::new(Facts { span, route: route.name, ..Facts::default() }),
        }))
    }
}

/// A request's route.
#[derive(Clone, Copy)]
pub struct Route {
    /// Its name, of which there are few.
    pub name: &'static str,
    /// Whether it is a health probe, which begins no trace.
    pub is_probe: bool,
}

/// What is known about a request that is logged or traced.
pub struct RequestRecord {
    request_id: Arc<str>,
    method: Method,
    wire: Wire,
    started: Instant,
    trace_id: Option<TraceId>,
    parent: Option<SpanParent>,
    exemplar: Option<Exemplar>,
    is_logged: bool,
    facts: Mutex<Facts>,
}

#[derive(Default)]
struct Facts {
    span: Option<Span>,
    route: &'static str,
    call: Option<CallOutcome>,
    reason: Option<&'static str>,
    project: Option<ProjectId>,
    status: Option<StatusCode>,
    ip: Option<IpAddr>,
}

/// How a call ended.
#[derive(Clone, Copy)]
pub struct CallOutcome {
    /// The RPC: `package.Service/Method`.
    pub rpc: &'static str,
    /// The protocol.
    pub wire: Wire,
    /// The name of the gRPC code.
    pub code: &'static str,
    /// The number of the gRPC code.
    pub code_number: i32,
    /// Whether the server, not the client, is at fault.
    pub is_fault: bool,
}

impl RequestRecord {
    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().expect("no one panics while holding it")
    }

    /// The exemplar of its duration; `None` if it is not sampled.
    pub fn exemplar(&self) -> Option<Exemplar> {
        self.exemplar
    }

    /// Records where it comes from. Only the network is logged.
    pub fn note_ip(&self, ip: Option<IpAddr>) {
        self.facts().ip = ip;
    }

    /// Records why it was refused.
    pub fn note_reason(&self, reason: &'static str) {
        self.facts().reason = Some(reason);
    }

    /// Records how its call ended.
    pub fn note_call(&self, call: CallOutcome) {
        self.facts().call = Some(call);
    }

    /// Records the status of its response.
    pub fn note_status(&self, status: StatusCode) {
        self.facts().status = Some(status);
    }

    /// Ends the record: finishes the span, and writes the log line.
    pub fn finish(&self) {
        let took = self.started.elapsed();
        let Facts { span, route, call, reason, project, status, ip } = std::mem::take(&mut *self.facts());
        let wire = call.map_or(self.wire, |call| call.wire).as_str();
        let name = call.map_or(route, |call| call.rpc);
        if let Some(mut span) = span {
            span.rename(name);
            span.set("sessiond.wire", wire);
            span.set("sessiond.request_id", self.request_id.to_string());
            span.set("http.request.method", known_method(&self.method));
            if let Some(status) = status {
                span.set("http.response.status_code", i64::from(status.as_u16()));
            }
            if let Some(call) = call {
                span.set("rpc.method", call.rpc);
                span.set("rpc.grpc.status_code", i64::from(call.code_number));
            }
            if let Some(reason) = reason {
                span.set("error.type", reason);
            }
            if let Some(project) = &project {
                span.set("sessiond.project", project.to_string());
            }
            if call.is_some_and(|call| call.is_fault) || status.is_some_and(|status| status.is_server_error()) {
                span.fail();
            }
        }
        if self.is_logged {
            tracing::info!(
                target: "sessiond::requests",
                method = known_method(&self.method),
                rpc = name,
                wire,
                // Without one, the client did not wait for the response.
                status = status.map(|status| status.as_u16()),
                code = call.map(|call| call.code),
                reason,
                duration_ms = (took.as_secs_f64() * 1e6).round() / 1e3,
                project = project.as_ref().map(ProjectId::as_str),
                network = ip.map(|ip| tracing::field::display(network(ip))),
                trace_id = self.trace_id.map(tracing::field::display),
                request_id = %self.request_id,
                "request"
            );
        }
    }
}

/// The method, unless the client has made it up.
fn known_method(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "POST", "DELETE", "PATCH", "PUT", "HEAD", "OPTIONS", "CONNECT", "TRACE"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("_OTHER")
}

/// Begins a span for a part of this task's work; `None` if it is not sampled.
pub fn child_span(name: &'static str) -> Option<Span> {
    current_span().map(|parent| parent.child(name, SpanKind::Internal))
}
