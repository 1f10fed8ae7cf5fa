//! Turns gRPC replies into HTTP responses: metadata into headers, frames into JSON, the gRPC status into the HTTP status.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use bytes::Bytes;
use http::Extensions;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::Response;
use http::StatusCode;
use http::header;
use http::response;
use http_body::Body;
use http_body_util::BodyExt;
use pin_project_lite::pin_project;

use crate::binding::Binding;
use crate::body::ResponseBody;
use crate::error::BoxError;
use crate::frame::Deframer;
use crate::headers;
use crate::hooks::Hook;
use crate::render::Format;
use crate::render::HEARTBEAT;
use crate::render::http_body;
use crate::render::print;
use crate::render::write;
use crate::status;
use crate::status::Refusal;
use crate::status::RestError;
use crate::stream::ReplyStream;
use crate::transcoder::Transcoder;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What a response depends on, other than the reply.
#[derive(Debug)]
pub(crate) struct ReplyContext {
    pub transcoder: Arc<Transcoder>,
    /// The index of the binding. `None` until a route is found.
    binding: Option<usize>,
    /// The response to HEAD has headers only.
    is_head: bool,
    wants_events: bool,
}

/// An HTTP response of the layer.
pub(crate) type RestResponse<B> = Response<ResponseBody<B>>;

/// Resolves when the first message of a stream is available, or the call has ended.
pub(crate) type OpeningStream<B> = Pin<Box<dyn Future<Output = RestResponse<B>> + Send>>;

/// A response, or a future of it.
pub(crate) enum Reply<B> {
    Response(RestResponse<B>),
    Unary(UnaryReply<B>),
    Stream(OpeningStream<B>),
}

/// The metadata and the extensions of a reply.
#[derive(Debug, Default)]
struct ReplyMetadata {
    headers: HeaderMap,
    trailers: HeaderMap,
    extensions: Extensions,
}

impl ReplyMetadata {
    /// Drops the metadata, for a response of the layer itself.
    fn without_headers(self) -> ReplyMetadata {
        ReplyMetadata { extensions: self.extensions, ..ReplyMetadata::default() }
    }
}

impl ReplyContext {
    pub(crate) fn new(transcoder: &Arc<Transcoder>, method: &Method) -> ReplyContext {
        ReplyContext {
            transcoder: Arc::clone(transcoder),
            binding: None,
            is_head: *method == Method::HEAD,
            wants_events: false,
        }
    }

    /// Sets the binding of the matched route.
    pub(crate) fn matched(&mut self, binding: usize, headers: &HeaderMap) {
        self.binding = Some(binding);
        self.wants_events = self.binding().server_streaming && headers::wants_events(headers);
    }

    /// The binding of the matched route. Before there is one, the first binding.
    pub(crate) fn binding(&self) -> &Binding {
        &self.transcoder.rules.bindings[self.binding.unwrap_or_default()]
    }

    /// A refusal of the layer.
    pub(crate) fn refuse<B>(&self, refusal: &Refusal) -> RestResponse<B> {
        self.refuse_after(refusal, ReplyMetadata::default())
    }

    /// The response to OPTIONS: the methods of the path (RFC 9110 §9.3.7).
    pub(crate) fn options<B>(&self, mut methods: Vec<Method>) -> RestResponse<B> {
        methods.push(Method::OPTIONS);
        let mut response = Response::new(ResponseBody::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        response.headers_mut().insert(header::ALLOW, status::allow(&methods));
        response
    }

    fn bad_reply<B>(&self, reason: &'static str, metadata: ReplyMetadata) -> RestResponse<B> {
        self.refuse_after(&Refusal::BadReply(reason), metadata.without_headers())
    }

    fn refuse_after<B>(&self, refusal: &Refusal, metadata: ReplyMetadata) -> RestResponse<B> {
        self.fail(self.transcoder.refuse(refusal), metadata)
    }

    /// The response of a failed call.
    fn fail<B>(&self, failure: RestError, metadata: ReplyMetadata) -> RestResponse<B> {
        let hooks = &self.transcoder.hooks;
        let mut answer =
            self.full_response(hooks.error_content_type.clone(), hooks.error_body(&failure).into(), metadata);
        *answer.status_mut() = failure.status;
        for (name, value) in failure.headers.iter() {
            // Headers of the service have precedence.
            answer.headers_mut().entry(name).or_insert_with(|| value.clone());
        }
        answer
    }

    fn full_response<B>(&self, content_type: HeaderValue, body: Bytes, metadata: ReplyMetadata) -> RestResponse<B> {
        let ReplyMetadata { mut headers, trailers, extensions } = metadata;
        headers::from_metadata(&mut headers, &trailers);
        headers.insert(header::CONTENT_TYPE, content_type);
        let body = if self.is_head {
            // HEAD has the same headers as GET, including the length.
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
            Bytes::new()
        } else {
            body
        };
        self.response(ResponseBody::whole(body), headers, extensions)
    }

    /// Applies the `on_success` hook to a successful response.
    fn apply_success_hook<B>(&self, answer: RestResponse<B>) -> RestResponse<B> {
        let Some(Hook(hook)) = &self.transcoder.hooks.success else { return answer };
        let (mut parts, mut body) = answer.into_parts();
        hook(&self.binding().matched, &mut parts);
        // Responses with these statuses have no content (RFC 9110 §6.4.1, §15.3.6).
        if matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED) {
            parts.headers.remove(header::CONTENT_TYPE);
            parts.headers.remove(header::CONTENT_LENGTH);
            body = ResponseBody::empty();
        }
        Response::from_parts(parts, body)
    }

    fn response<B>(&self, body: ResponseBody<B>, headers: HeaderMap, mut extensions: Extensions) -> RestResponse<B> {
        if self.binding.is_some() {
            extensions.insert(self.binding().matched.clone());
        }
        let mut response = Response::new(body);
        *response.headers_mut() = headers;
        *response.extensions_mut() = extensions;
        response
    }

    /// Turns the service's response into the layer's.
    pub(crate) fn reply<B>(self, response: Response<B>) -> Reply<B>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (parts, body) = response.into_parts();
        let response::Parts { status, headers, extensions, .. } = parts;
        let metadata = ReplyMetadata { headers, trailers: HeaderMap::new(), extensions };
        let ended = status != StatusCode::OK || metadata.headers.contains_key(status::GRPC_STATUS);
        let streams = self.binding().server_streaming;
        if ended && let Some(failure) = RestError::from_call_end(&self.transcoder.details(), status, &metadata.headers)
        {
            return Reply::Response(self.fail(failure, metadata));
        }
        match (streams, ended) {
            (true, _) if self.is_head || ended => {
                Reply::Response(self.stream_response(None, None, Deframer::default(), None, metadata))
            }
            (true, _) => Reply::Stream(Box::pin(self.open_stream(metadata, body))),
            (false, true) => Reply::Response(self.bad_reply("no reply to a unary call", metadata)),
            (false, false) => {
                Reply::Unary(UnaryReply { context: self, body, metadata, deframer: Deframer::default(), message: None })
            }
        }
    }

    /// The response of a unary call that has ended.
    fn unary_response<B>(&self, message: Option<Bytes>, whole: bool, mut metadata: ReplyMetadata) -> RestResponse<B> {
        if let Some(failure) = RestError::from_call_end(&self.transcoder.details(), StatusCode::OK, &metadata.trailers)
        {
            return self.fail(failure, metadata);
        }
        let Some(message) = message.filter(|_| whole) else {
            return self.bad_reply("no reply to a unary call", metadata);
        };
        let binding = self.binding();
        if binding.raw_reply {
            return match http_body(&self.transcoder, binding, &message) {
                Ok(raw) => self.apply_success_hook(self.full_response(raw.content_type, raw.data, metadata)),
                Err(reason) => self.bad_reply(reason, metadata),
            };
        }
        let mut json = Vec::with_capacity(message.len() * 2 + 64);
        match print(&self.transcoder, binding, &message, &mut json) {
            Ok(()) => self.apply_success_hook(self.full_response(JSON, json.into(), mem::take(&mut metadata))),
            Err(reason) => self.bad_reply(reason, metadata),
        }
    }

    /// Waits for the first message or the end of the call, because until then the HTTP status can still be that of an error.
    async fn open_stream<B>(self, mut metadata: ReplyMetadata, body: B) -> RestResponse<B>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let mut body = Box::pin(body);
        let mut deframer = Deframer::default();
        let mut open = true;
        let heartbeat = self.transcoder.event_heartbeat.filter(|_| self.format() == Format::Events);
        let first = loop {
            match deframer.next() {
                Ok(Some(message)) => break Some(message),
                Ok(None) if !open => break None,
                Ok(None) => {}
                Err(_) => return self.bad_reply("the reply is not a gRPC frame", metadata),
            }
            let frame = match heartbeat {
                None => body.frame().await,
                Some(period) => match tokio::time::timeout(period, body.frame()).await {
                    Ok(frame) => frame,
                    // Starts the stream with status 200, so that no proxy closes the connection as idle.
                    Err(_) => return self.stream_response(None, Some(HEARTBEAT), deframer, Some(body), metadata),
                },
            };
            match frame.transpose() {
                Ok(Some(frame)) => match frame.into_data() {
                    Ok(data) => deframer.push(data),
                    Err(frame) => {
                        metadata.trailers = frame.into_trailers().unwrap_or_default();
                        open = false;
                    }
                },
                Ok(None) => open = false,
                Err(_) => return self.bad_reply("the reply was aborted", metadata),
            }
        };
        if !open
            && let Some(failure) =
                RestError::from_call_end(&self.transcoder.details(), StatusCode::OK, &metadata.trailers)
        {
            return self.fail(failure, metadata);
        }
        if first.is_none() && deframer.end().is_err() {
            return self.bad_reply("the reply is incomplete", metadata);
        }
        let (binding, format) = (self.binding(), self.format());
        let written = first.map(|message| {
            let content_type = match format {
                Format::Raw => Some(http_body(&self.transcoder, binding, &message)?.content_type),
                Format::Lines | Format::Events => None,
            };
            Ok((content_type, write(&self.transcoder, binding, format, &message)?))
        });
        match written.transpose() {
            Ok(written) => {
                let (content_type, first) = written.unzip();
                self.stream_response(content_type.flatten(), first, deframer, open.then_some(body), metadata)
            }
            Err(reason) => self.bad_reply(reason, metadata),
        }
    }

    fn format(&self) -> Format {
        match self.binding().raw_reply {
            true => Format::Raw,
            false if self.wants_events => Format::Events,
            false => Format::Lines,
        }
    }

    /// The response of a stream. `content_type` is that of the first message, for which HEAD does not wait.
    fn stream_response<B>(
        &self,
        content_type: Option<HeaderValue>,
        first: Option<Bytes>,
        deframer: Deframer,
        body: Option<Pin<Box<B>>>,
        metadata: ReplyMetadata,
    ) -> RestResponse<B> {
        let format = self.format();
        let ReplyMetadata { mut headers, extensions, .. } = metadata;
        headers::from_metadata(&mut headers, &HeaderMap::new());
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache"));
        // nginx buffers proxied responses unless this header disables it.
        headers.entry(HeaderName::from_static("x-accel-buffering")).or_insert(HeaderValue::from_static("no"));
        match content_type {
            Some(content_type) => headers.insert(header::CONTENT_TYPE, content_type),
            // Only the first message has it, and HEAD does not wait for one.
            None if self.is_head && format == Format::Raw => headers.remove(header::CONTENT_TYPE),
            None => headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(format.content_type())),
        };
        if format != Format::Raw {
            // `Accept` selects the format (RFC 9110 §12.5.5).
            headers.append(header::VARY, HeaderValue::from_name(header::ACCEPT));
        }
        let body = if self.is_head {
            ResponseBody::empty()
        } else {
            let binding = self.binding.unwrap_or_default();
            ResponseBody::stream(ReplyStream::new(Arc::clone(&self.transcoder), binding, format, first, deframer, body))
        };
        self.apply_success_hook(self.response(body, headers, extensions))
    }
}

pin_project! {
    /// Collects the one message of a unary reply.
    pub(crate) struct UnaryReply<B> {
        context: ReplyContext,
        #[pin]
        body: B,
        metadata: ReplyMetadata,
        deframer: Deframer,
        message: Option<Bytes>,
    }
}

impl<B> Future for UnaryReply<B>
where
    B: Body<Data = Bytes>,
{
    type Output = RestResponse<B>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<RestResponse<B>> {
        let mut this = self.project();
        loop {
            let frame = match ready!(this.body.as_mut().poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(_)) => {
                    return Poll::Ready(this.context.bad_reply("the reply was aborted", mem::take(this.metadata)));
                }
                None => break,
            };
            match frame.into_data() {
                Ok(data) => this.deframer.push(data),
                Err(frame) => {
                    this.metadata.trailers = frame.into_trailers().unwrap_or_default();
                    break;
                }
            }
            // Checked for each chunk, so that at most one message is held.
            loop {
                let reason = match this.deframer.next() {
                    Ok(Some(next)) if this.message.is_none() => {
                        *this.message = Some(next);
                        continue;
                    }
                    Ok(Some(_)) => "more than one reply to a unary call",
                    Ok(None) => break,
                    Err(_) => "the reply is not a gRPC frame",
                };
                return Poll::Ready(this.context.bad_reply(reason, mem::take(this.metadata)));
            }
        }
        let whole = this.deframer.end().is_ok();
        Poll::Ready(this.context.unary_response(this.message.take(), whole, mem::take(this.metadata)))
    }
}
