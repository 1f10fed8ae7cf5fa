//! The tower layer: what a request goes through, in order.

use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::pin::pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use bytes::Bytes;
use bytes::BytesMut;
use http::HeaderMap;
use http::Method;
use http::Request;
use http::Response;
use http::Uri;
use http::Version;
use http::uri::PathAndQuery;
use http_body::Body as HttpBody;
use http_body_util::BodyExt;
use pin_project_lite::pin_project;
use prost_reflect::DescriptorPool;
use tower_layer::Layer;
use tower_service::Service;

use super::bind;
use super::bind::Content;
use super::body::BoxError;
use super::body::RequestBody;
use super::body::ResponseBody;
use super::frame;
use super::headers;
use super::reply::Asked;
use super::route::Outcome;
use super::route::Path;
use super::rule;
use super::rule::Binding;
use super::rule::Body;
use super::rule::BuildError;
use super::rule::BuildErrors;
use super::rule::Rules;
use super::schema::Schema;
use super::status::Details;
use super::status::Refusal;

/// Bodies up to this size are read unless the builder says otherwise: 1 MiB.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// What an error can carry, whatever service stands behind the layer.
pub(super) const GOOGLE_RPC: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/google_rpc.bin"));

/// Answers HTTP and JSON for a gRPC service, by the `google.api.http` rules of its descriptors.
///
/// Cheap to clone. See the [module](super) for an example, and for where in a stack it belongs.
#[derive(Debug, Clone)]
pub struct RestLayer {
    shared: Arc<Shared>,
}

/// What every request reads and none changes.
#[derive(Debug)]
pub(super) struct Shared {
    pub schema: Schema,
    google_rpc: Schema,
    pub rules: Rules,
    ignored: Vec<String>,
    body_bytes_max: usize,
    pub error_domain: String,
}

impl Shared {
    pub(super) fn details(&self) -> Details<'_> {
        Details { google_rpc: &self.google_rpc, service: &self.schema }
    }
}

/// Which method and which rule a request was matched to. An extension of the request that the service gets and of the
/// response that the client gets, so that metrics and logs can name the route without its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matched {
    /// `/package.Service/Method`.
    pub grpc_path: PathAndQuery,
    /// The path template as the rule has it, without a base path.
    pub template: Arc<str>,
}

impl RestLayer {
    /// Takes all annotated services of an encoded `google.protobuf.FileDescriptorSet`, with the defaults of
    /// [`RestLayer::builder`].
    ///
    /// The bytes must be as the compiler wrote them, imports included: tools that decode and re-encode a set drop the
    /// rules if they do not know them.
    ///
    /// # Errors
    ///
    /// With every rule that cannot work.
    pub fn new(descriptor_set: &[u8]) -> Result<RestLayer, BuildErrors> {
        RestLayer::builder().build(descriptor_set)
    }

    /// Starts from the defaults: base path `/`, bodies of at most 1 MiB, every query parameter a field, errors in the
    /// domain `transcode`.
    pub fn builder() -> RestLayerBuilder {
        RestLayerBuilder {
            base_paths: Vec::new(),
            ignored: Vec::new(),
            body_bytes_max: BODY_BYTES_MAX,
            error_domain: "transcode".to_owned(),
        }
    }
}

impl<S> Layer<S> for RestLayer {
    type Service = RestService<S>;

    fn layer(&self, inner: S) -> RestService<S> {
        RestService { inner, shared: Arc::clone(&self.shared) }
    }
}

/// Collects what a [`RestLayer`] can be told.
#[derive(Debug, Clone)]
pub struct RestLayerBuilder {
    base_paths: Vec<String>,
    ignored: Vec<String>,
    body_bytes_max: usize,
    error_domain: String,
}

impl RestLayerBuilder {
    /// Answers under this path: `/`, or literal segments such as `/api/v1`. May be given several times, and then the
    /// same templates answer under each.
    #[must_use]
    pub fn base_path(mut self, path: impl Into<String>) -> RestLayerBuilder {
        self.base_paths.push(path.into());
        self
    }

    /// Refuses request bodies of more bytes than this, with 413. Default: 1,048,576 (1 MiB).
    #[must_use]
    pub fn max_body_bytes(mut self, bytes: usize) -> RestLayerBuilder {
        self.body_bytes_max = bytes;
        self
    }

    /// Passes over a query parameter of this name, instead of refusing it as unknown. It names no field any more.
    #[must_use]
    pub fn ignore_query_parameter(mut self, name: impl Into<String>) -> RestLayerBuilder {
        self.ignored.push(name.into());
        self
    }

    /// Sets the `ErrorInfo.domain` of the layer's own errors. Default: `transcode`.
    #[must_use]
    pub fn error_domain(mut self, domain: impl Into<String>) -> RestLayerBuilder {
        self.error_domain = domain.into();
        self
    }

    /// Builds the layer from an encoded `google.protobuf.FileDescriptorSet`; see [`RestLayer::new`].
    ///
    /// # Errors
    ///
    /// With every rule that cannot work, and every base path.
    pub fn build(self, descriptor_set: &[u8]) -> Result<RestLayer, BuildErrors> {
        let pool = DescriptorPool::decode(descriptor_set).map_err(BuildError::of_descriptors)?;
        let google_rpc = DescriptorPool::decode(GOOGLE_RPC).map_err(BuildError::of_descriptors)?;
        let schema = Schema::new(&pool);
        let rules = rule::read(&pool, &schema, &self.base_paths)?;
        let shared = Shared {
            schema,
            google_rpc: Schema::new(&google_rpc),
            rules,
            ignored: self.ignored,
            body_bytes_max: self.body_bytes_max,
            error_domain: self.error_domain,
        };
        Ok(RestLayer { shared: Arc::new(shared) })
    }
}

/// The service that [`RestLayer`] makes.
#[derive(Debug, Clone)]
pub struct RestService<S> {
    inner: S,
    shared: Arc<Shared>,
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
    type Future = ResponseFuture<S::Future, RB, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if headers::is_grpc(request.headers()) {
            let call = self.inner.call(request.map(RequestBody::untouched));
            return ResponseFuture { kind: FutureKind::Untouched { call } };
        }
        // The one that is ready must be the one that is called.
        let next = self.inner.clone();
        let inner = mem::replace(&mut self.inner, next);
        let call = Box::pin(transcode(Arc::clone(&self.shared), inner, request));
        ResponseFuture { kind: FutureKind::Transcoded { call } }
    }
}

/// A boxed call through the layer.
type Transcoded<RB, E> = Pin<Box<dyn Future<Output = Result<Response<ResponseBody<RB>>, E>> + Send>>;

pin_project! {
    /// The answer to come. Dropping it drops the call.
    pub struct ResponseFuture<F, RB, E> {
        #[pin]
        kind: FutureKind<F, RB, E>,
    }
}

pin_project! {
    #[project = FutureProjection]
    enum FutureKind<F, RB, E> {
        // A gRPC or grpc-web call, not ours.
        Untouched { #[pin] call: F },
        // A call that we translate.
        Transcoded { call: Transcoded<RB, E> },
    }
}

impl<F, RB, E> Future for ResponseFuture<F, RB, E>
where
    F: Future<Output = Result<Response<RB>, E>>,
{
    type Output = Result<Response<ResponseBody<RB>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().kind.project() {
            FutureProjection::Untouched { call } => {
                let response = ready!(call.poll(cx))?;
                Poll::Ready(Ok(response.map(ResponseBody::untouched)))
            }
            FutureProjection::Transcoded { call } => call.as_mut().poll(cx),
        }
    }
}

impl<F, RB, E> fmt::Debug for ResponseFuture<F, RB, E> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

/// Match, read, bind, call, reply.
async fn transcode<S, B, RB>(
    shared: Arc<Shared>,
    mut inner: S,
    request: Request<B>,
) -> Result<Response<ResponseBody<RB>>, S::Error>
where
    S: Service<Request<RequestBody<B>>, Response = Response<RB>>,
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
    RB: HttpBody<Data = Bytes>,
    RB::Error: Into<BoxError>,
{
    let (mut parts, body) = request.into_parts();
    let mut asked = Asked {
        shared: Arc::clone(&shared),
        binding: None,
        is_head: parts.method == Method::HEAD,
        wants_events: headers::wants_events(&parts.headers),
    };
    let (index, path) = match shared.rules.router.find(&parts.method, parts.uri.path()) {
        Outcome::Route { route, path } => {
            let (binding, base) = shared.rules.routes[route];
            (binding, path.with_base(base))
        }
        Outcome::OtherMethods(methods) if parts.method == Method::OPTIONS => return Ok(asked.options(methods)),
        Outcome::OtherMethods(methods) => return Ok(asked.refuse(&Refusal::MethodNotAllowed(methods))),
        Outcome::Unknown => return Ok(asked.refuse(&Refusal::RouteNotFound)),
    };
    asked.binding = Some(index);
    let binding = &shared.rules.bindings[index];
    let frame = match read_body(&shared, binding, &parts.headers, body).await {
        Ok(body) => make_frame(&shared, binding, &path, &parts.uri, &parts.headers, &body),
        Err(refusal) => Err(refusal),
    };
    let frame = match frame {
        Ok(frame) => frame,
        Err(refusal) => return Ok(asked.refuse(&refusal)),
    };

    parts.uri = call_uri(&parts.uri, &binding.matched.grpc_path);
    parts.method = Method::POST;
    // tonic-web passes on nothing else that is not grpc-web.
    parts.version = Version::HTTP_2;
    headers::to_metadata(&mut parts.headers);
    parts.extensions.insert(binding.matched.clone());
    let response = inner.call(Request::from_parts(parts, RequestBody::frame(frame))).await?;
    Ok(asked.reply(index, response).await)
}

/// Reads the body, within the limit. A rule that has no place for one gets it read all the same and thrown away, so
/// that the connection can go on.
async fn read_body<B>(shared: &Shared, binding: &Binding, headers: &HeaderMap, body: B) -> Result<Bytes, Refusal>
where
    B: HttpBody<Data = Bytes>,
{
    let wanted = binding.body != Body::None;
    if wanted && !headers::is_unencoded(headers) {
        return Err(Refusal::UnsupportedMediaType("a body without a content encoding"));
    }
    let limit = shared.body_bytes_max;
    if body.size_hint().lower() > limit as u64 {
        return Err(Refusal::BodyTooLarge(limit));
    }
    let mut body = pin!(body);
    let mut length = 0_usize;
    let mut first = Bytes::new();
    let mut more = BytesMut::new();
    while !body.is_end_stream()
        && let Some(frame) = body.frame().await
    {
        let Ok(data) = frame.map_err(|_| Refusal::BodyUnreadable)?.into_data() else { continue };
        length = length.saturating_add(data.len());
        if length > limit {
            return Err(Refusal::BodyTooLarge(limit));
        }
        if !wanted {
            continue;
        }
        if first.is_empty() {
            first = data;
        } else {
            if more.is_empty() {
                more.extend_from_slice(&first);
            }
            more.extend_from_slice(&data);
        }
    }
    Ok(if more.is_empty() { first } else { more.freeze() })
}

fn make_frame(
    shared: &Shared,
    binding: &Binding,
    path: &Path<'_>,
    uri: &Uri,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Bytes, Refusal> {
    let content = if bind::takes_raw_body(&shared.schema, binding) {
        let content_type = headers.get(http::header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
        Content::Raw { content_type, data: body }
    } else if body.is_empty() {
        Content::None
    } else if headers::is_json(headers) {
        Content::Json(body)
    } else {
        return Err(Refusal::UnsupportedMediaType("application/json"));
    };
    let mut frame = Vec::with_capacity(frame::HEAD + body.len() + 64);
    frame.extend_from_slice(&[0; frame::HEAD]);
    bind::bind(&shared.schema, binding, path, uri.query().unwrap_or_default(), &shared.ignored, content, &mut frame)
        .map_err(Refusal::Schema)?;
    Ok(frame::finish(frame))
}

/// The method's URI, on the authority that the client addressed.
fn call_uri(uri: &Uri, grpc_path: &PathAndQuery) -> Uri {
    let mut call = http::uri::Parts::default();
    if let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) {
        call.scheme = Some(scheme.clone());
        call.authority = Some(authority.clone());
    }
    call.path_and_query = Some(grpc_path.clone());
    Uri::from_parts(call).unwrap_or_else(|_| Uri::from(grpc_path.clone()))
}
