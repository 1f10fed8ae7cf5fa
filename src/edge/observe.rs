//! Counts every call by RPC, wire and code. A unary call's code is in its trailers, so the body is watched to its end.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::Extensions;
use http::HeaderMap;
use http_body::Frame;
use http_body::SizeHint;
use tokio::time::Instant;
use tonic::Code;
use tonic::Status;
use tonic::body::Body;
use tower::Layer;
use tower::Service;

use super::grpc::GrpcRequest;
use super::grpc::GrpcResponse;
use super::message;
use crate::rpc::status;
use crate::rpc::status::reason_of;
use crate::telemetry;
use crate::telemetry::Metrics;
use crate::telemetry::Wire;
use crate::telemetry::request;
use crate::telemetry::request::CallOutcome;
use crate::telemetry::request::RequestRecord;
use sessiond_core::session::Origin;

/// Applies [`Observe`].
#[derive(Clone)]
pub(super) struct ObserveLayer {
    metrics: Metrics,
}

impl ObserveLayer {
    /// Counts into these metrics.
    pub(super) fn new(metrics: Metrics) -> Self {
        // Now, not with the first request.
        message::prepare();
        Self { metrics }
    }

    /// Begins to observe the call of a path.
    pub(super) fn begin(&self, path: &str, extensions: &Extensions) -> ObservedCall {
        ObservedCall {
            // All unknown paths are counted as one, or a client could create an unbounded number of labels.
            rpc: message::known_path(path).unwrap_or("unknown").trim_start_matches('/'),
            wire: *extensions.get().unwrap_or(&Wire::Grpc),
            started: Instant::now(),
            metrics: self.metrics.clone(),
            code: None,
            ip: extensions.get::<Origin>().and_then(|origin| origin.ip),
            record: request::current_record(),
        }
    }
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Observe<S> {
        Observe { inner, layer: self.clone() }
    }
}

/// Counts calls.
#[derive(Clone)]
pub(super) struct Observe<S> {
    inner: S,
    layer: ObserveLayer,
}

impl<S> Service<GrpcRequest> for Observe<S>
where
    S: Service<GrpcRequest, Response = GrpcResponse, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = GrpcResponse;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<GrpcResponse, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: GrpcRequest) -> Self::Future {
        let call = self.layer.begin(request.uri().path(), request.extensions());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = answer.await?;
            Ok(call.watch(response))
        })
    }
}

/// A call in progress. Counted once, when it is dropped with its body.
pub(super) struct ObservedCall {
    rpc: &'static str,
    wire: Wire,
    started: Instant,
    metrics: Metrics,
    code: Option<Code>,
    /// Where it came from.
    ip: Option<IpAddr>,
    /// `None` if the request is neither logged nor traced.
    record: Option<Arc<RequestRecord>>,
}

impl ObservedCall {
    fn watch(mut self, response: GrpcResponse) -> GrpcResponse {
        self.note(response.headers());
        response.map(|body| Body::new(Watched { body, call: self }))
    }

    /// Ends the call with a status; `None` for success.
    pub(super) fn end(mut self, failure: Option<&Status>) {
        match failure {
            Some(status) => self.note_status(status),
            None => self.code = Some(Code::Ok),
        }
    }

    fn note(&mut self, headers: &HeaderMap) {
        if let Some(status) = Status::from_header_map(headers) {
            self.note_status(&status);
        }
    }

    fn note_status(&mut self, status: &Status) {
        self.code = Some(status.code());
        if let Some(reason) = reason_of(status) {
            status::note(&self.metrics, reason, self.ip);
            if let Some(record) = &self.record {
                record.note_reason(reason.name());
            }
        }
    }
}

impl Drop for ObservedCall {
    fn drop(&mut self) {
        // Without a code, the client did not wait for the end.
        let code = self.code.unwrap_or(Code::Cancelled);
        let took = self.started.elapsed();
        let exemplar = self.record.as_ref().and_then(|record| record.exemplar());
        self.metrics.request(self.rpc, self.wire, name(code), took, exemplar);
        if let Some(record) = &self.record {
            let (code, code_number, is_fault) = (name(code), code as i32, is_fault(code));
            record.note_call(CallOutcome { rpc: self.rpc, wire: self.wire, code, code_number, is_fault });
        }
        let (rpc, wire, code, took_ms) = (self.rpc, self.wire.as_str(), name(code), took.as_secs_f64() * 1e3);
        tracing::debug!(rpc, wire, code, took_ms, request_id = %telemetry::request_id(), "answered");
    }
}

/// A body with the call it belongs to.
struct Watched {
    body: Body,
    call: ObservedCall,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(trailers) = frame.trailers_ref()
        {
            self.call.note(trailers);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Whether the server, not the client, is at fault (OpenTelemetry's semantic conventions for gRPC servers).
const fn is_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// The code as `google.rpc.Code` spells it.
const fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
