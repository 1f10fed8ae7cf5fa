//! The tower layer: what a request goes through, in order.

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

/// Answers HTTP and JSON for a gRPC service, by the `google.api.http` rules of its descriptors.
///
/// Cheap to clone. See the [crate](crate) for an example, and for where in a stack it belongs.
#[derive(Debug, Clone)]
pub struct RestLayer {
    pub(crate) transcoder: Arc<Transcoder>,
}

impl RestLayer {
    /// The faults of the rules that [`skip_faulty_rules`](crate::RestLayerBuilder::skip_faulty_rules) left out, in the order of
    /// the set. Empty without it.
    pub fn skipped_rules(&self) -> &[BuildError] {
        &self.transcoder.rules.skipped
    }

    /// Whether a rule answers this method at this path, for whatever stands in front of the layer.
    pub fn has_route(&self, method: &Method, path: &str) -> bool {
        matches!(self.transcoder.rules.router.find(method, path), RouteMatch::Route { .. })
    }
}

impl<S> Layer<S> for RestLayer {
    type Service = RestService<S>;

    /// Puts the layer around a service.
    ///
    /// # Panics
    ///
    /// If the service is a single route of an axum router, which is what `Router::layer` passes: a request with a path of its
    /// own would reach no gRPC method there. Put the layer around the whole router instead, and serve
    /// `axum::Router::new().fallback_service(layer.layer(router))`.
    fn layer(&self, inner: S) -> RestService<S> {
        // The name is all that tells: axum has no trait for it, and depending on axum for an assertion is too much.
        assert!(
            !type_name::<S>().contains("axum::routing::route::Route"),
            "Router::layer puts a RestLayer around each route, and a REST path has none. Put it around the router, and serve \
             Router::new().fallback_service(layer.layer(router))"
        );
        RestService { inner, transcoder: Arc::clone(&self.transcoder) }
    }
}

/// The service that [`RestLayer`] makes.
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
            // Nothing to wait for, so nothing to keep: no box, and no second handle on the service.
            return match call_parts(&self.transcoder, binding, &path, parts, &[]) {
                Ok((parts, frame)) => {
                    let discard = (!body.is_end_stream()).then(|| Discard::new(body, self.transcoder.body_bytes_max));
                    let call = self.inner.call(Request::from_parts(parts, RequestBody::frame(frame)));
                    ResponseFuture::calling(call, context, discard)
                }
                Err(refusal) => ResponseFuture::ready(context.refuse(&refusal)),
            };
        }
        // The one that is ready must be the one that is called.
        let next = self.inner.clone();
        let inner = mem::replace(&mut self.inner, next);
        ResponseFuture::reading(read(inner, context, path, parts, body))
    }
}
