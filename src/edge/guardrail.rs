//! Keeps one request from harming others: limits the requests in progress, applies a deadline, and catches panics. Each
//! answers with a gRPC status, which every wire renders in its own way.

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
use http::Method;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::Status;
use tower::Layer;
use tower::Service;

use super::class;
use super::grpc::GrpcRequest;
use super::grpc::GrpcResponse;
use crate::app::Load;
use crate::rpc::status;
use crate::telemetry;
use crate::telemetry::Metrics;
use crate::telemetry::RequestClass;
use tonic_rest_layer::grpc_timeout;

/// Applies [`Guardrail`].
#[derive(Clone)]
pub(super) struct GuardrailLayer {
    slots: Arc<RequestSlots>,
    deadline: Duration,
    metrics: Metrics,
}

/// Slots for requests in progress. Verifications, sign-outs and other requests never use each other's slots.
struct RequestSlots {
    sign_outs: Arc<Semaphore>,
    verifications: Arc<Semaphore>,
    probes: Arc<Semaphore>,
    reflection: Arc<Semaphore>,
    others: Arc<Semaphore>,
    load: Load,
}

/// The most reflection streams that begin at once. How many are open is limited at admission.
const REFLECTION_MAX: usize = 32;

/// The most probes at once.
const PROBES_MAX: usize = 256;

impl GuardrailLayer {
    /// Admits `requests_max` requests at a time, and in addition as many sign-outs and as many verifications; each for at most
    /// `deadline`.
    pub(super) fn new(requests_max: usize, deadline: Duration, load: Load, metrics: Metrics) -> Self {
        let slots = |max| Arc::new(Semaphore::new(max));
        let slots = RequestSlots {
            sign_outs: slots(requests_max),
            verifications: slots(requests_max),
            probes: slots(PROBES_MAX),
            reflection: slots(REFLECTION_MAX.min(requests_max)),
            others: slots(requests_max),
            load,
        };
        Self { slots: Arc::new(slots), deadline, metrics }
    }

    /// Begins a call within a slot, the deadline that the caller has asked for, and ours.
    ///
    /// # Errors
    ///
    /// The status to answer with, if there is no slot, or if the call panics before there is a future.
    pub(super) fn begin<F: Future>(
        &self,
        class: RequestClass,
        asked: Option<Duration>,
        call: impl FnOnce() -> F,
    ) -> Result<GuardedCall<F>, Status> {
        let slot = self.enter(class).ok_or_else(status::overloaded)?;
        let deadline = asked.map_or(self.deadline, |asked| asked.min(self.deadline));
        let call = std::panic::catch_unwind(AssertUnwindSafe(call)).map_err(|_| panicked())?;
        Ok(GuardedCall { slot, deadline, call })
    }

    fn enter(&self, class: RequestClass) -> Option<RequestSlot> {
        let slots = match class {
            RequestClass::SignOut => &self.slots.sign_outs,
            RequestClass::Verify => &self.slots.verifications,
            RequestClass::Probe => &self.slots.probes,
            RequestClass::Reflection => &self.slots.reflection,
            RequestClass::Public | RequestClass::Other => &self.slots.others,
        };
        let Ok(permit) = Arc::clone(slots).try_acquire_owned() else {
            self.metrics.request_refused(class, "slots");
            self.slots.load.refused_for_slots();
            return None;
        };
        self.metrics.requests_under_way(class, 1);
        Some(RequestSlot { _permit: permit, class, metrics: self.metrics.clone() })
    }
}

/// A call in progress.
pub(super) struct GuardedCall<F> {
    slot: RequestSlot,
    deadline: Duration,
    call: F,
}

impl<F: Future> GuardedCall<F> {
    /// Waits for the result.
    ///
    /// # Errors
    ///
    /// The status to answer with, if the deadline passes or the call panics.
    pub(super) async fn finish(self) -> Result<F::Output, Status> {
        let Self { slot: _slot, deadline, call } = self;
        match timeout(deadline, AssertUnwindSafe(call).catch_unwind()).await {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(_)) => Err(panicked()),
            Err(_) => Err(status::late()),
        }
    }
}

/// A request's slot. Released when dropped.
struct RequestSlot {
    _permit: OwnedSemaphorePermit,
    class: RequestClass,
    metrics: Metrics,
}

impl Drop for RequestSlot {
    fn drop(&mut self) {
        self.metrics.requests_under_way(self.class, -1);
    }
}

impl<S> Layer<S> for GuardrailLayer {
    type Service = Guardrail<S>;

    fn layer(&self, inner: S) -> Guardrail<S> {
        Guardrail { inner, limits: self.clone() }
    }
}

/// Limits, times out and isolates calls.
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
        let class = class::of(&Method::POST, request.uri().path());
        let asked = grpc_timeout(request.headers());
        let begun = self.limits.begin(class, asked, || self.inner.call(request));
        Box::pin(async move {
            let finished = match begun {
                Ok(call) => call.finish().await,
                Err(status) => Err(status),
            };
            match finished {
                Ok(Ok(response)) if is_undecodable(response.headers()) => Ok(status::undecodable().into_http()),
                Ok(response) => response,
                Err(status) => Ok(status.into_http()),
            }
        })
    }
}

/// Whether tonic could not decode the request. It reports an internal error or out of range without details; ours have details.
fn is_undecodable(headers: &HeaderMap) -> bool {
    let code = headers.get("grpc-status").map(HeaderValue::as_bytes);
    matches!(code, Some(b"13" | b"11")) && !headers.contains_key("grpc-status-details-bin")
}

fn panicked() -> Status {
    // The panic hook has written its message to standard error.
    tracing::error!(request_id = %telemetry::request_id(), "a handler panicked");
    status::internal()
}
