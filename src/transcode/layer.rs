//! The tower layer: what a request goes through, in order.

use std::fmt;
use std::future::Future;
use std::future::poll_fn;
use std::mem;
use std::pin::Pin;
use std::pin::pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;

use bytes::Bytes;
use bytes::BytesMut;
use http::HeaderMap;
use http::Method;
use http::Request;
use http::Response;
use http::Uri;
use http::Version;
use http::header;
use http::request;
use http::uri::PathAndQuery;
use http_body::Body as HttpBody;
use http_body_util::BodyExt;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use super::bind;
use super::bind::Content;
use super::body::BoxError;
use super::body::RequestBody;
use super::body::ResponseBody;
use super::deadline;
use super::descriptors;
use super::frame;
use super::headers;
use super::reply::Answer;
use super::reply::Asked;
use super::reply::Opening;
use super::reply::Reply;
use super::reply::Unary;
use super::route::Outcome;
use super::route::Path;
use super::rule;
use super::rule::Binding;
use super::rule::Body;
use super::rule::BuildError;
use super::rule::BuildErrors;
use super::rule::RuleError;
use super::rule::Rules;
use super::rule::Selection;
use super::schema::Schema;
use super::status::Details;
use super::status::Refusal;
use super::violation::Violation;

/// Bodies up to this size are read unless the builder says otherwise: 1 MiB.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// No builder can ask for more: a frame's length has four bytes, and a message can take more of them than its JSON. 1 GiB.
const BODY_BYTES_CEILING: usize = 1024 * 1024 * 1024;

/// How many members and elements a body may have unless the builder says otherwise.
const BODY_ELEMENTS_MAX: usize = 65_536;

/// How long a body may take to arrive unless the builder says otherwise.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

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
    body_elements_max: usize,
    body_timeout: Duration,
    pub error_domain: String,
    pub event_id_field: Option<String>,
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

    /// The faults of the rules that [`RestLayerBuilder::skip_faulty_rules`] left out, in the order of the set. Empty
    /// without it.
    pub fn skipped_rules(&self) -> &[BuildError] {
        &self.shared.rules.skipped
    }

    /// Whether a rule answers this method at this path: what else asks before the layer does need not guess.
    pub fn has_route(&self, method: &Method, path: &str) -> bool {
        matches!(self.shared.rules.router.find(method, path), Outcome::Route { .. })
    }

    /// Starts from the defaults: base path `/`, every service of the set, bodies of at most 1 MiB and 65,536 members and
    /// elements that arrive within 10 seconds, every query parameter a field, errors in the domain `transcode`.
    pub fn builder() -> RestLayerBuilder {
        RestLayerBuilder {
            selection: Selection::default(),
            ignored: Vec::new(),
            field_bounds: Vec::new(),
            snake_case_masks: false,
            body_bytes_max: BODY_BYTES_MAX,
            body_elements_max: BODY_ELEMENTS_MAX,
            body_timeout: BODY_TIMEOUT,
            error_domain: "transcode".to_owned(),
            event_id_field: None,
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
    selection: Selection,
    ignored: Vec<String>,
    field_bounds: Vec<(String, usize)>,
    snake_case_masks: bool,
    body_bytes_max: usize,
    body_elements_max: usize,
    body_timeout: Duration,
    error_domain: String,
    event_id_field: Option<String>,
}

impl RestLayerBuilder {
    /// Answers under this path: `/`, or literal segments such as `/api/v1`. May be given several times, and then the
    /// same templates answer under each.
    #[must_use]
    pub fn base_path(mut self, path: impl Into<String>) -> RestLayerBuilder {
        self.selection.base_paths.push(path.into());
        self
    }

    /// Makes routes for this service, by its full name, and for no other. May be given several times. Default: all
    /// services of the set.
    ///
    /// A set holds the services of the files that it imports too. The layer cannot know which of them stand behind it,
    /// and a route to one that does not is answered with 501; so name yours: tonic's `NamedService::NAME` is the full name.
    #[must_use]
    pub fn service(mut self, full_name: impl Into<String>) -> RestLayerBuilder {
        self.selection.services.push(full_name.into());
        self
    }

    /// Leaves out rules that cannot work, instead of failing the build: client streams, templates that break the grammar,
    /// of two rules with the same method and shape the second. [`RestLayer::skipped_rules`] tells which. The build still
    /// fails when no rule is left.
    #[must_use]
    pub fn skip_faulty_rules(mut self) -> RestLayerBuilder {
        self.selection.skips_faulty = true;
        self
    }

    /// Refuses request bodies of more bytes than this, with 413. Default: 1,048,576 (1 MiB); more than 1 GiB is 1 GiB.
    #[must_use]
    pub fn max_body_bytes(mut self, bytes: usize) -> RestLayerBuilder {
        self.body_bytes_max = bytes.min(BODY_BYTES_CEILING);
        self
    }

    /// Refuses JSON bodies with more members, elements and map entries than this in all, with 400. Default: 65,536.
    ///
    /// An empty message costs three bytes of JSON and hundreds of memory, so the size of a body alone is no bound.
    #[must_use]
    pub fn max_body_elements(mut self, elements: usize) -> RestLayerBuilder {
        self.body_elements_max = elements;
        self
    }

    /// Refuses bodies in which this repeated field or map, by its full name (`package.Message.field`), has more elements
    /// than this, with 400, as soon as the first beyond it is met. Default: no bound but that of the body.
    #[must_use]
    pub fn max_field_elements(mut self, full_name: impl Into<String>, elements: usize) -> RestLayerBuilder {
        self.field_bounds.push((full_name.into(), elements));
        self
    }

    /// Reads the paths of a FieldMask in the names of the proto too (`device_name`), which is how replies spell fields.
    /// Default: in lowerCamelCase alone, as ProtoJSON has it.
    #[must_use]
    pub fn snake_case_field_masks(mut self) -> RestLayerBuilder {
        self.snake_case_masks = true;
        self
    }

    /// Refuses request bodies that take longer than this to arrive, with 408. Default: 10 seconds. A smaller
    /// `grpc-timeout` of the request counts instead, and what the body used of it is gone for the call.
    ///
    /// The service behind the layer is asked only when the body is there, so no deadline of its own covers the wait.
    #[must_use]
    pub fn body_timeout(mut self, timeout: Duration) -> RestLayerBuilder {
        self.body_timeout = timeout;
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

    /// Writes this string field of a stream's messages as the `id:` of its server-sent event too, where a message has one:
    /// what a browser's `EventSource` sends back as `Last-Event-ID`. Default: events have no id.
    #[must_use]
    pub fn event_id_field(mut self, name: impl Into<String>) -> RestLayerBuilder {
        self.event_id_field = Some(name.into());
        self
    }

    /// Builds the layer from an encoded `google.protobuf.FileDescriptorSet`; see [`RestLayer::new`].
    ///
    /// # Errors
    ///
    /// With every rule that cannot work, every base path, and every name that the set does not have.
    pub fn build(self, descriptor_set: &[u8]) -> Result<RestLayer, BuildErrors> {
        let pool = descriptors::decode(descriptor_set)?;
        let google_rpc = descriptors::decode(GOOGLE_RPC)?;
        let mut schema = Schema::new(&pool);
        schema.snake_case_masks = self.snake_case_masks;
        let unknown = self.field_bounds.into_iter().filter(|(name, most)| !schema.bound_elements(name, *most));
        let unknown: Vec<_> = unknown.map(|(name, _)| BuildError::of_set(RuleError::UnknownList(name))).collect();
        if !unknown.is_empty() {
            return Err(BuildErrors(unknown));
        }
        let rules = rule::read(&pool, &schema, &self.selection)?;
        let shared = Shared {
            schema,
            google_rpc: Schema::new(&google_rpc),
            rules,
            ignored: self.ignored,
            body_bytes_max: self.body_bytes_max,
            body_elements_max: self.body_elements_max,
            body_timeout: self.body_timeout,
            error_domain: self.error_domain,
            event_id_field: self.event_id_field,
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
    type Future = ResponseFuture<S::Future, B, RB, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if headers::is_grpc(request.headers()) {
            let call = self.inner.call(request.map(RequestBody::untouched));
            return ResponseFuture { state: State::Untouched { call } };
        }
        let (parts, body) = request.into_parts();
        let mut asked = Asked::new(&self.shared, &parts.method);
        let path = match self.shared.rules.router.find(&parts.method, parts.uri.path()) {
            Outcome::Route { route, path } => {
                let (binding, base) = self.shared.rules.routes[route];
                asked.matched(binding, &parts.headers);
                path.with_base(base)
            }
            Outcome::OtherMethods(methods) if parts.method == Method::OPTIONS => {
                return ResponseFuture::answered(asked.options(methods));
            }
            Outcome::OtherMethods(methods) => {
                return ResponseFuture::answered(asked.refuse(&Refusal::MethodNotAllowed(methods)));
            }
            Outcome::Unknown => return ResponseFuture::answered(asked.refuse(&Refusal::RouteNotFound)),
        };
        let binding = asked.binding();
        if deadline::is_malformed(&parts.headers) {
            let expected = "expected at most eight digits and one of H, M, S, m, u, n";
            let violation = Violation::new("grpc-timeout", expected);
            return ResponseFuture::answered(asked.refuse(&Refusal::Schema(vec![violation])));
        }
        if let Err(refusal) = check_content(&self.shared, binding, &parts.headers, &body) {
            return ResponseFuture::answered(asked.refuse(&refusal));
        }
        if binding.body == Body::None || body.is_end_stream() {
            // Nothing to wait for, so nothing to keep: no box, and no second handle on the service.
            return match call_parts(&self.shared, binding, &path, parts, &[]) {
                Ok((parts, frame)) => {
                    let unread = (!body.is_end_stream()).then(|| Unread::new(body, self.shared.body_bytes_max));
                    let call = self.inner.call(Request::from_parts(parts, RequestBody::frame(frame)));
                    ResponseFuture { state: State::Calling { call, asked: Some(asked), unread } }
                }
                Err(refusal) => ResponseFuture::answered(asked.refuse(&refusal)),
            };
        }
        // The one that is ready must be the one that is called.
        let next = self.inner.clone();
        let inner = mem::replace(&mut self.inner, next);
        ResponseFuture { state: State::Reading { reading: Box::pin(read(inner, asked, path, parts, body)) } }
    }
}

/// What comes after a body was read.
enum Next<F, RB> {
    Call { call: F, asked: Asked },
    Answer(Box<Answer<RB>>),
}

/// A body on its way.
type Reading<F, RB, E> = Pin<Box<dyn Future<Output = Result<Next<F, RB>, E>> + Send>>;

pin_project! {
    /// The answer to come. Dropping it drops the call.
    pub struct ResponseFuture<F, B, RB, E> {
        #[pin]
        state: State<F, B, RB, E>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F, B, RB, E> {
        // A gRPC or grpc-web call, not ours.
        Untouched { #[pin] call: F },
        // An answer of the layer's own.
        Answered { answer: Option<Answer<RB>> },
        // The body is not there yet, as a whole.
        Reading { reading: Reading<F, RB, E> },
        // The service has the call.
        Calling { #[pin] call: F, asked: Option<Asked>, unread: Option<Unread<B>> },
        // The service answers with one message.
        Gathering { #[pin] reply: Unary<RB> },
        // The service answers with a stream; its first message decides.
        Opening { reply: Opening<RB> },
    }
}

impl<F, B, RB, E> ResponseFuture<F, B, RB, E> {
    fn answered(answer: Answer<RB>) -> ResponseFuture<F, B, RB, E> {
        ResponseFuture { state: State::Answered { answer: Some(answer) } }
    }
}

impl<F, B, RB, E> Future for ResponseFuture<F, B, RB, E>
where
    F: Future<Output = Result<Response<RB>, E>>,
    B: HttpBody<Data = Bytes>,
    RB: HttpBody<Data = Bytes> + Send + 'static,
    RB::Error: Into<BoxError>,
{
    type Output = Result<Response<ResponseBody<RB>>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        const OVER: &str = "a future is not polled after its end";
        loop {
            let next = match self.as_mut().project().state.project() {
                StateProjection::Untouched { call } => {
                    let response = ready!(call.poll(cx))?;
                    return Poll::Ready(Ok(response.map(ResponseBody::untouched)));
                }
                StateProjection::Answered { answer } => return Poll::Ready(Ok(answer.take().expect(OVER))),
                StateProjection::Reading { reading } => match ready!(reading.as_mut().poll(cx))? {
                    Next::Call { call, asked } => State::Calling { call, asked: Some(asked), unread: None },
                    Next::Answer(answer) => return Poll::Ready(Ok(*answer)),
                },
                StateProjection::Calling { call, asked, unread } => {
                    if unread.as_mut().is_some_and(|unread| unread.poll(cx).is_ready()) {
                        *unread = None;
                    }
                    let response = ready!(call.poll(cx))?;
                    match asked.take().expect(OVER).reply(response) {
                        Reply::Answer(answer) => return Poll::Ready(Ok(answer)),
                        Reply::Unary(reply) => State::Gathering { reply },
                        Reply::Stream(reply) => State::Opening { reply },
                    }
                }
                StateProjection::Gathering { reply } => return reply.poll(cx).map(Ok),
                StateProjection::Opening { reply } => return reply.as_mut().poll(cx).map(Ok),
            };
            self.as_mut().project().state.set(next);
        }
    }
}

impl<F, B, RB, E> fmt::Debug for ResponseFuture<F, B, RB, E> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

/// Refuses what the headers alone condemn, before any of the body is read.
fn check_content<B>(shared: &Shared, binding: &Binding, headers: &HeaderMap, body: &B) -> Result<(), Refusal>
where
    B: HttpBody,
{
    if binding.body == Body::None {
        return Ok(());
    }
    if !headers::is_unencoded(headers) {
        return Err(Refusal::ContentEncoding);
    }
    let announced = body.size_hint().lower();
    // A type that is not JSON is refused on an empty body too: a page of another origin can send one without asking.
    if !binding.raw_body && (announced > 0 || headers.contains_key(header::CONTENT_TYPE)) && !headers::is_json(headers)
    {
        return Err(Refusal::UnsupportedMediaType);
    }
    if announced > shared.body_bytes_max as u64 {
        return Err(Refusal::BodyTooLarge(shared.body_bytes_max));
    }
    Ok(())
}

/// Reads the body, then makes the call.
///
/// The service is ready when this starts. Where the body is there at once, as nearly always, that is the one that is
/// called; where it has to be waited for, readiness is given back, since it may stand for a slot that others need.
async fn read<S, B, RB>(
    mut inner: S,
    asked: Asked,
    path: Path,
    mut parts: request::Parts,
    body: B,
) -> Result<Next<S::Future, RB>, S::Error>
where
    S: Service<Request<RequestBody<B>>, Response = Response<RB>> + Clone,
    B: HttpBody<Data = Bytes>,
{
    let shared = Arc::clone(&asked.shared);
    let mut collecting = pin!(collect(body, shared.body_bytes_max));
    let at_once = poll_fn(|cx| match collecting.as_mut().poll(cx) {
        Poll::Ready(body) => Poll::Ready(Some(body)),
        Poll::Pending => Poll::Ready(None),
    });
    let body = match at_once.await {
        Some(body) => body,
        None => {
            inner = inner.clone();
            let since = Instant::now();
            let asked_for = deadline::grpc_timeout(&parts.headers);
            let limit = asked_for.map_or(shared.body_timeout, |asked_for| asked_for.min(shared.body_timeout));
            let body = tokio::time::timeout(limit, collecting).await.unwrap_or(Err(Refusal::BodyTooSlow));
            if let Some(asked_for) = asked_for
                && body.is_ok()
            {
                deadline::write(&mut parts.headers, asked_for.saturating_sub(since.elapsed()));
            }
            if body.is_ok() {
                poll_fn(|cx| inner.poll_ready(cx)).await?;
            }
            body
        }
    };
    let prepared = body.and_then(|body| call_parts(&shared, asked.binding(), &path, parts, &body));
    Ok(match prepared {
        Ok((parts, frame)) => {
            Next::Call { call: inner.call(Request::from_parts(parts, RequestBody::frame(frame))), asked }
        }
        Err(refusal) => Next::Answer(Box::new(asked.refuse(&refusal))),
    })
}

/// Puts a body together, within the limit.
async fn collect<B: HttpBody<Data = Bytes>>(body: B, limit: usize) -> Result<Bytes, Refusal> {
    let mut body = pin!(body);
    let mut first = Bytes::new();
    let mut more = BytesMut::new();
    while !body.is_end_stream()
        && let Some(frame) = body.frame().await
    {
        let Ok(data) = frame.map_err(|_| Refusal::BodyUnreadable)?.into_data() else { continue };
        if data.len() > limit - first.len().max(more.len()) {
            return Err(Refusal::BodyTooLarge(limit));
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

/// A body that its rule has no place for. It is thrown away as it comes, beside the call, so that the connection can go
/// on; the call does not wait for it, and what is beyond the limit is not read at all.
struct Unread<B> {
    body: Pin<Box<B>>,
    left: usize,
}

impl<B: HttpBody<Data = Bytes>> Unread<B> {
    fn new(body: B, limit: usize) -> Unread<B> {
        Unread { body: Box::pin(body), left: limit }
    }

    /// Ready when there is nothing more to read, or nothing more that will be.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(Ok(frame)) = ready!(self.body.as_mut().poll_frame(cx)) {
            // A frame counts even if it is empty.
            let length = frame.data_ref().map_or(0, Bytes::len) + 1;
            match self.left.checked_sub(length) {
                Some(left) => self.left = left,
                None => break,
            }
        }
        Poll::Ready(())
    }
}

/// Turns the request's head and body into the call's head and frame.
fn call_parts(
    shared: &Shared,
    binding: &Binding,
    path: &Path,
    mut parts: request::Parts,
    body: &[u8],
) -> Result<(request::Parts, Bytes), Refusal> {
    let content = if binding.body == Body::None {
        Content::None
    } else if binding.raw_body {
        let content_type = parts.headers.get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
        Content::Raw { content_type, data: body }
    } else if body.is_empty() {
        Content::None
    } else if headers::is_json(&parts.headers) {
        Content::Json(body)
    } else {
        return Err(Refusal::UnsupportedMediaType);
    };
    let says_nothing = matches!(content, Content::None) && binding.variables.is_empty() && parts.uri.query().is_none();
    let frame = if says_nothing {
        frame::EMPTY
    } else {
        let mut frame = Vec::with_capacity(frame::HEAD + body.len() + 64);
        frame.extend_from_slice(&[0; frame::HEAD]);
        let limits = bind::Limits { ignored: &shared.ignored, elements_max: shared.body_elements_max };
        bind::bind(&shared.schema, binding, path, &parts.uri, limits, content, &mut frame).map_err(Refusal::Schema)?;
        frame::finish(frame)
    };
    parts.uri = call_uri(parts.uri, &binding.matched.grpc_path);
    parts.method = Method::POST;
    // tonic-web passes on nothing else that is not grpc-web.
    parts.version = Version::HTTP_2;
    headers::to_metadata(&mut parts.headers);
    parts.extensions.insert(binding.matched.clone());
    Ok((parts, frame))
}

/// The method's URI, on the authority that the client addressed.
fn call_uri(uri: Uri, grpc_path: &PathAndQuery) -> Uri {
    let mut call = uri.into_parts();
    call.path_and_query = Some(grpc_path.clone());
    if call.scheme.is_none() || call.authority.is_none() {
        (call.scheme, call.authority) = (None, None);
    }
    Uri::from_parts(call).unwrap_or_else(|_| Uri::from(grpc_path.clone()))
}
