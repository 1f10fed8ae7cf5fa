//! What keeps one request from harming others: a bound on those under way, a deadline, and a net for panics. Each answers
//! with a gRPC status, which every wire renders in its own way.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::HeaderMap;
use http::HeaderValue;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tower::Layer;
use tower::Service;

use super::GrpcRequest;
use super::GrpcResponse;
use crate::rpc::status;
use crate::telemetry;
use crate::transcode::grpc_timeout;

/// See the module.
#[derive(Clone)]
pub(super) struct GuardrailLayer {
    slots: Arc<Semaphore>,
    deadline: Duration,
}

impl GuardrailLayer {
    /// Lets `requests_max` in at a time, each for `deadline` at most.
    pub(super) fn new(requests_max: usize, deadline: Duration) -> Self {
        Self { slots: Arc::new(Semaphore::new(requests_max)), deadline }
    }
}

impl<S> Layer<S> for GuardrailLayer {
    type Service = Guardrail<S>;

    fn layer(&self, inner: S) -> Guardrail<S> {
        Guardrail { inner, limits: self.clone() }
    }
}

/// See the module.
#[derive(Clone)]
pub(super) struct Guardrail<S> {
    inner: S,
    limits: GuardrailLayer,
}

impl<S> Service<GrpcRequest> for Guardrail<S>
where
    S: Service<GrpcRequest, Response = GrpcResponse, Error = Infallible> + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = GrpcResponse;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<GrpcResponse, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: GrpcRequest) -> Self::Future {
        let Ok(slot) = Arc::clone(&self.limits.slots).try_acquire_owned() else {
            return Box::pin(async { Ok(status::overloaded().into_http()) });
        };
        let deadline =
            grpc_timeout(request.headers()).map_or(self.limits.deadline, |asked| asked.min(self.limits.deadline));
        // The call itself may panic too, before there is a future.
        let call = std::panic::catch_unwind(AssertUnwindSafe(|| self.inner.call(request)));
        Box::pin(async move {
            let _slot = slot;
            let Ok(call) = call else { return Ok(panicked()) };
            match timeout(deadline, AssertUnwindSafe(call).catch_unwind()).await {
                Ok(Ok(Ok(response))) if is_undecodable(response.headers()) => Ok(status::undecodable().into_http()),
                Ok(Ok(response)) => response,
                Ok(Err(_)) => Ok(panicked()),
                Err(_) => Ok(status::late().into_http()),
            }
        })
    }
}

/// Whether tonic could not read the request. It calls that an internal error or out of range, without details; ours have them.
fn is_undecodable(headers: &HeaderMap) -> bool {
    let code = headers.get("grpc-status").map(HeaderValue::as_bytes);
    matches!(code, Some(b"13" | b"11")) && !headers.contains_key("grpc-status-details-bin")
}

fn panicked() -> GrpcResponse {
    // What it said is on standard error, by the panic hook.
    tracing::error!(request_id = %telemetry::request_id(), "a handler panicked");
    status::internal().into_http()
}
