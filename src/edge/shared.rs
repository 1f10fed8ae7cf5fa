//! A service that is cheap to clone.
//!
//! axum clones the service inside a layer for each request, and cloning a layer clones all layers inside it: with ten layers,
//! that is fifty allocations. A [`SharedService`] between them stops that.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;

use tower::Service;
use tower::ServiceExt as _;
use tower::util::BoxCloneSyncService;
use tower::util::Oneshot;

/// Cheap to clone; clones share the service. Each call is made on a copy of its own.
pub(super) struct SharedService<R, A>(Arc<BoxCloneSyncService<R, A, Infallible>>);

impl<R, A> SharedService<R, A> {
    pub(super) fn new<S>(service: S) -> Self
    where
        S: Service<R, Response = A, Error = Infallible> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        Self(Arc::new(BoxCloneSyncService::new(service)))
    }
}

impl<R, A> Clone for SharedService<R, A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<R, A> Service<R> for SharedService<R, A> {
    type Response = A;
    type Error = Infallible;
    type Future = Oneshot<BoxCloneSyncService<R, A, Infallible>, R>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // The copy that the call is made on waits until it is ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        BoxCloneSyncService::clone(&self.0).oneshot(request)
    }
}
