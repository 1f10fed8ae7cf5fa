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
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::Code;
use tonic::Status;
use tower::Layer;
use tower::Service;

use super::GrpcRequest;
use super::GrpcResponse;
use crate::rpc::status;
use crate::telemetry;

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
        let deadline = asked(request.headers()).map_or(self.limits.deadline, |asked| asked.min(self.limits.deadline));
        // The call itself may panic too, before there is a future.
        let call = std::panic::catch_unwind(AssertUnwindSafe(|| self.inner.call(request)));
        Box::pin(async move {
            let _slot = slot;
            let Ok(call) = call else { return Ok(panicked()) };
            match timeout(deadline, AssertUnwindSafe(call).catch_unwind()).await {
                Ok(Ok(Ok(response))) => Ok(reasoned(response)),
                Ok(Err(_)) => Ok(panicked()),
                Err(_) => Ok(status::late().into_http()),
            }
        })
    }
}

/// tonic refuses a message that is too large by itself, and gives no reason; every answer of ours has one.
fn reasoned(response: GrpcResponse) -> GrpcResponse {
    match Status::from_header_map(response.headers()) {
        Some(refusal) if refusal.code() == Code::OutOfRange && refusal.details().is_empty() => {
            status::too_large().into_http()
        }
        _ => response,
    }
}

fn panicked() -> GrpcResponse {
    // What it said is on standard error, by the panic hook.
    tracing::error!(request_id = %telemetry::request_id(), "a handler panicked");
    status::internal().into_http()
}

/// What `grpc-timeout` asks for: at most eight digits and a unit (gRPC over HTTP/2, "Requests"). Malformed is absent.
fn asked(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3_600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &'static str) -> Option<Duration> {
        asked(&HeaderMap::from_iter([(
            http::HeaderName::from_static("grpc-timeout"),
            http::HeaderValue::from_static(value),
        )]))
    }

    #[test]
    fn a_timeout_is_eight_digits_and_a_unit() {
        assert_eq!(read("50m"), Some(Duration::from_millis(50)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3_600)));
        for malformed in ["", "m", "50", "-5m", "123456789m", "5x", "5 m"] {
            assert_eq!(read(malformed), None, "{malformed:?}");
        }
    }
}
