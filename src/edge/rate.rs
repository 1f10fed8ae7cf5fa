//! Answers requests that admission control refused (see [`super::admission`]), where every call is counted. And makes the
//! charged address known to the call, so that it is refunded if the caller is a genuine service with a bucket of its own.

use std::convert::Infallible;
use std::future::Ready;
use std::future::ready;
use std::net::IpAddr;
use std::task::Context;
use std::task::Poll;

use futures_util::future::Either;
use tokio::task::futures::TaskLocalFuture;
use tower::Layer;
use tower::Service;

use super::admission::EarlyRefusal;
use super::admission::PaidBy;
use super::grpc::GrpcRequest;
use super::grpc::GrpcResponse;
use crate::rates;

/// Applies [`Rated`].
#[derive(Clone)]
pub(super) struct RateLayer;

impl<S> Layer<S> for RateLayer {
    type Service = Rated<S>;

    fn layer(&self, inner: S) -> Rated<S> {
        Rated { inner }
    }
}

/// Answers refused requests.
#[derive(Clone)]
pub(super) struct Rated<S> {
    inner: S,
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
        if let Some(status) = EarlyRefusal::of(request.extensions()) {
            return Either::Right(ready(Ok(status.into_http())));
        }
        let paid_by = request.extensions().get::<PaidBy>().map(|PaidBy(ip)| *ip);
        Either::Left(rates::paid_by(paid_by, self.inner.call(request)))
    }
}
