//! The tower layer: the steps of a request, in order.

use std::any::type_name;
use std::mem;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;

use bytes::Bytes;
use http::Method;
use http::Request;
use http::Response;
use http_body::Body as HttpBody;
use tower_layer::Layer;
use tower_service::Service;

use crate::binding::Body;
use crate::body::RequestBody;
use crate::body::ResponseBody;
use crate::call::call_parts;
use crate::content::Discard;
use crate::content::check_content;
use crate::deadline;
use crate::error::BoxError;
use crate::error::BuildError;
use crate::future::ResponseFuture;
use crate::future::read;
use crate::headers;
use crate::reply::ReplyContext;
use crate::route::RouteMatch;
use crate::status::Refusal;
use crate::transcoder::Transcoder;
use crate::violation::Violation;

/// A tower layer that serves REST and JSON for a gRPC service, from the `google.api.http` rules of its descriptors.
///
/// Cheap to clone; clones share the rules. See the [crate documentation](crate) for an example and for its position in the stack.
#[derive(Debug, Clone)]
pub struct RestLayer {
    pub(crate) transcoder: Arc<Transcoder>,
}

impl RestLayer {
    /// Returns the errors of the rules that were skipped because of
    /// [`skip_faulty_rules`](crate::RestLayerBuilder::skip_faulty_rules), in the order of the set. Empty without that option.
    pub fn skipped_rules(&self) -> &[BuildError] {
        &self.transcoder.rules.skipped
    }

    /// Returns whether a rule matches this method and path. For layers and proxies in front of this one.
    pub fn has_route(&self, method: &Method, path: &str) -> bool {
        matches!(self.transcoder.rules.router.find(method, path), RouteMatch::Route { .. })
    }
}

impl<S> Layer<S> for RestLayer {
    type Service = RestService<S>;

    /// Wraps a service.
    ///
    /// # Panics
    ///
    /// Panics if the service is a single route of an axum router, as with `Router::layer`: axum routes before the layer there, so no
    /// REST path would reach it. Wrap the whole router instead: `axum::Router::new().fallback_service(layer.layer(router))`.
    fn layer(&self, inner: S) -> RestService<S> {
        // By name, because the crate does not depend on axum.
        assert!(
            !type_name::<S>().contains("axum::routing::route::Route"),
            "Router::layer wraps each route in a RestLayer, where no REST path reaches it. Wrap the router instead: \
             Router::new().fallback_service(layer.layer(router))"
        );
        RestService { inner, transcoder: Arc::clone(&self.transcoder) }
    }
}

/// The service that [`RestLayer`] returns.
#[derive(Debug, Clone)]
pub struct RestService<S> {
    inner: S,
    transcoder: Arc<Transcoder>,
}

impl<S, B, RB> Service<Request<B>> for RestService<S>
where
    S: Service<Request<RequestBody<B>>, Response = Response<RB>> + Clone + Send + 'static,
    S::Future: Send,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
    RB: HttpBody<Data = Bytes> + Send + 'static,
    RB::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody<RB>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, B, RB, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if headers::is_grpc(request.headers()) {
            let call = self.inner.call(request.map(RequestBody::passthrough));
            return ResponseFuture::passthrough(call);
        }
        let (parts, body) = request.into_parts();
        let mut context = ReplyContext::new(&self.transcoder, &parts.method);
        let path = match self.transcoder.rules.router.find(&parts.method, parts.uri.path()) {
            RouteMatch::Route { route, path } => {
                let (binding, base) = self.transcoder.rules.routes[route];
                context.matched(binding, &parts.headers);
                path.with_base(base)
            }
            RouteMatch::OtherMethods(methods) if parts.method == Method::OPTIONS => {
                return ResponseFuture::ready(context.options(methods));
            }
            RouteMatch::OtherMethods(methods) => {
                return ResponseFuture::ready(context.refuse(&Refusal::MethodNotAllowed(methods)));
            }
            RouteMatch::Unknown if self.transcoder.falls_through => {
                let request = Request::from_parts(parts, RequestBody::passthrough(body));
                return ResponseFuture::passthrough(self.inner.call(request));
            }
            RouteMatch::Unknown => return ResponseFuture::ready(context.refuse(&Refusal::RouteNotFound)),
        };
        let binding = context.binding();
        if deadline::is_malformed(&parts.headers) {
            let expected = "expected at most eight digits and one of H, M, S, m, u, n";
            let violation = Violation::new("grpc-timeout", expected);
            return ResponseFuture::ready(context.refuse(&Refusal::Schema(vec![violation])));
        }
        if let Err(refusal) = check_content(&self.transcoder, binding, &parts.headers, &body) {
            return ResponseFuture::ready(context.refuse(&refusal));
        }
        if binding.body == Body::None || body.is_end_stream() {
            // No body to wait for, so no boxed future and no clone of the service.
            return match call_parts(&self.transcoder, binding, &path, parts, &[]) {
                Ok((parts, frame)) => {
                    let discard = (!body.is_end_stream()).then(|| Discard::new(body, self.transcoder.body_bytes_max));
                    let call = self.inner.call(Request::from_parts(parts, RequestBody::frame(frame)));
                    ResponseFuture::calling(call, context, discard)
                }
                Err(refusal) => ResponseFuture::ready(context.refuse(&refusal)),
            };
        }
        // `self.inner` is ready, its clone is not (tower, "Be careful when cloning inner services").
        let next = self.inner.clone();
        let inner = mem::replace(&mut self.inner, next);
        ResponseFuture::reading(read(inner, context, path, parts, body))
    }
}
