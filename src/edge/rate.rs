//! Asks the bucket of the client's address before anything is done for it. The answer is a gRPC status, which every wire
//! renders in its own way. A service that turns out to be genuine has a bucket of its own, and the address its token back.

use std::convert::Infallible;
use std::future::Ready;
use std::future::ready;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::task::Context;
use std::task::Poll;

use futures_util::future::Either;
use tokio::task::futures::TaskLocalFuture;
use tower::Layer;
use tower::Service;

use super::GrpcRequest;
use super::GrpcResponse;
use crate::rates;
use crate::rates::Limiter;
use crate::rates::Of;
use crate::rpc::status;
use crate::session::Origin;

/// Probes and proxies ask often, and from one address for many. Probes cost nothing; what a proxy's strangers may cost is
/// said in `app/verify.rs`.
const FREE: [&str; 2] = ["/grpc.health.v1.Health/", "/envoy.service.auth.v3.Authorization/"];

const SIGN_OUT: &str = "/sessiond.v1.SessionService/RevokeCurrent";

/// See the module.
#[derive(Clone)]
pub(super) struct RateLayer(Limiter);

impl RateLayer {
    /// Asks these buckets.
    pub(super) const fn new(rates: Limiter) -> Self {
        Self(rates)
    }
}

impl<S> Layer<S> for RateLayer {
    type Service = Rated<S>;

    fn layer(&self, inner: S) -> Rated<S> {
        Rated { inner, rates: self.0.clone() }
    }
}

/// See the module.
#[derive(Clone)]
pub(super) struct Rated<S> {
    inner: S,
    rates: Limiter,
}

impl<S> Service<GrpcRequest> for Rated<S>
where
    S: Service<GrpcRequest, Response = GrpcResponse, Error = Infallible>,
{
    type Response = GrpcResponse;
    type Error = Infallible;
    type Future = Either<TaskLocalFuture<Option<IpAddr>, S::Future>, Ready<Result<GrpcResponse, Infallible>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: GrpcRequest) -> Self::Future {
        // Whoever comes from nowhere shares a bucket with all who do: no way around it.
        let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let ip = request.extensions().get::<Origin>().and_then(|origin| origin.ip).unwrap_or(nowhere);
        let room = match request.uri().path() {
            path if FREE.iter().any(|free| path.starts_with(free)) => Ok(None),
            SIGN_OUT => self.rates.take(Of::SignOut(ip)).map(|()| None),
            _ => self.rates.take(Of::Address(ip)).map(|()| Some(ip)),
        };
        match room {
            Ok(paid_by) => Either::Left(rates::paid_by(paid_by, self.inner.call(request))),
            Err(empty) => Either::Right(ready(Ok(status::refused(empty.into()).into_http()))),
        }
    }
}
