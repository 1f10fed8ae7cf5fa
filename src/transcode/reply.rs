//! The service's answer to ours: headers from metadata, JSON from frames, the HTTP status from the call's end.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
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

use super::body::BoxError;
use super::body::ResponseBody;
use super::frame::Deframer;
use super::headers;
use super::layer::Shared;
use super::print::print_field;
use super::print::print_message;
use super::rule::Binding;
use super::status;
use super::status::Failure;
use super::status::Refusal;
use super::stream;
use super::stream::Format;
use super::stream::ReplyStream;
use super::wire;
use super::wire::Malformed;
use super::wire::Raw;

/// What the answer depends on besides the service's own.
#[derive(Debug)]
pub(super) struct Asked {
    pub shared: Arc<Shared>,
    /// The binding, once a route was found.
    pub binding: Option<usize>,
    /// A HEAD gets the headers alone.
    pub is_head: bool,
    pub wants_events: bool,
}

/// Where an answer has got to.
type Answer<B> = Response<ResponseBody<B>>;

impl Asked {
    /// The layer's own no.
    pub(super) fn refuse<B>(&self, refusal: &Refusal) -> Answer<B> {
        self.fail(refusal.answer(&self.shared.error_domain), &[])
    }

    /// OPTIONS, answered here: what the path can do (RFC 9110 §9.3.7).
    pub(super) fn options<B>(&self, mut methods: Vec<Method>) -> Answer<B> {
        methods.push(Method::OPTIONS);
        let mut response = Response::new(ResponseBody::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        response.headers_mut().insert(header::ALLOW, status::allow(&methods));
        response
    }

    /// A call that failed. `metadata` is what the service said besides its status.
    fn fail<B>(&self, failure: Failure, metadata: &[&HeaderMap]) -> Answer<B> {
        let body = failure.body();
        let mut response = self.whole("application/json".parse().ok(), body.into(), failure.headers, metadata);
        *response.status_mut() = failure.status;
        response
    }

    fn whole<B>(
        &self,
        content_type: Option<HeaderValue>,
        body: Bytes,
        mut headers: HeaderMap,
        metadata: &[&HeaderMap],
    ) -> Answer<B> {
        for metadata in metadata {
            headers::from_metadata(metadata, &mut headers);
        }
        headers.extend(content_type.map(|value| (header::CONTENT_TYPE, value)));
        let body = if self.is_head {
            // The headers are GET's, and so is the length, although nothing follows.
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
            Bytes::new()
        } else {
            body
        };
        let mut response = Response::new(ResponseBody::whole(body));
        *response.headers_mut() = headers;
        self.mark(&mut response);
        response
    }

    fn mark<B>(&self, response: &mut Answer<B>) {
        let binding = self.binding.map(|binding| &self.shared.rules.bindings[binding]);
        if let Some(binding) = binding {
            response.extensions_mut().insert(binding.matched.clone());
        }
    }

    /// Turns the service's answer into ours.
    pub(super) async fn reply<B>(self, binding: usize, response: Response<B>) -> Answer<B>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let (parts, body) = response.into_parts();
        let ended = parts.status != StatusCode::OK || parts.headers.contains_key("grpc-status");
        let server_streaming = self.shared.rules.bindings[binding].server_streaming;
        let failure = if ended { Failure::of_call(&self.shared.details(), parts.status, &parts.headers) } else { None };
        let extensions = parts.extensions.clone();
        let mut answer = match failure {
            Some(failure) => self.fail(failure, &[&parts.headers]),
            None if server_streaming => self.stream(binding, parts, body, ended).await,
            None => self.unary(binding, &parts, body).await,
        };
        let ours = std::mem::replace(answer.extensions_mut(), extensions);
        answer.extensions_mut().extend(ours);
        answer
    }

    async fn unary<B>(&self, binding: usize, parts: &response::Parts, body: B) -> Answer<B>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let binding = &self.shared.rules.bindings[binding];
        let mut body = pin!(body);
        let mut deframer = Deframer::default();
        let mut message = None;
        let mut trailers = HeaderMap::new();
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return self.refuse(&Refusal::BadReply("the reply broke off")) };
            match frame.into_data() {
                Ok(data) => deframer.push(data),
                Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
            }
            // Taken as they come, so that no more than one message is ever held.
            loop {
                match deframer.next() {
                    Ok(Some(next)) if message.is_none() => message = Some(next),
                    Ok(Some(_)) => return self.refuse(&Refusal::BadReply("more than one reply to a unary call")),
                    Ok(None) => break,
                    Err(_) => return self.refuse(&Refusal::BadReply("the reply is no gRPC frame")),
                }
            }
        }
        if let Some(failure) = Failure::of_call(&self.shared.details(), parts.status, &trailers) {
            return self.fail(failure, &[&parts.headers, &trailers]);
        }
        let message = match message {
            Some(message) if deframer.end().is_ok() => message,
            _ => return self.refuse(&Refusal::BadReply("no reply to a unary call")),
        };
        let metadata = [&parts.headers, &trailers];
        if binding.raw_reply {
            return match http_body(&self.shared, binding, &message) {
                Ok(raw) => self.whole(Some(raw.content_type), raw.data, HeaderMap::new(), &metadata),
                Err(what) => self.refuse(&Refusal::BadReply(what)),
            };
        }
        let mut json = Vec::with_capacity(message.len() * 2 + 64);
        match print(&self.shared, binding, &message, &mut json) {
            Ok(()) => {
                let json_type = HeaderValue::from_static("application/json");
                self.whole(Some(json_type), json.into(), HeaderMap::new(), &metadata)
            }
            Err(what) => self.refuse(&Refusal::BadReply(what)),
        }
    }

    /// Waits for the first message or the end of the call: until then, the status line may still be an error's.
    async fn stream<B>(&self, index: usize, parts: response::Parts, body: B, ended: bool) -> Answer<B>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let binding = &self.shared.rules.bindings[index];
        let format = match binding.raw_reply {
            true => Format::Raw,
            false if self.wants_events => Format::Events,
            false => Format::Lines,
        };
        let mut content_type = HeaderValue::from_static(format.content_type());
        let mut body = Box::pin(body);
        let mut deframer = Deframer::default();
        let mut trailers = HeaderMap::new();
        let mut open = !ended;
        let first = loop {
            match deframer.next() {
                Ok(Some(message)) => break Some(message),
                Ok(None) if !open => break None,
                Ok(None) => {}
                Err(_) => return self.refuse(&Refusal::BadReply("the reply is no gRPC frame")),
            }
            match body.frame().await.transpose() {
                Ok(Some(frame)) => match frame.into_data() {
                    Ok(data) => deframer.push(data),
                    Err(frame) => {
                        trailers = frame.into_trailers().unwrap_or_default();
                        open = false;
                    }
                },
                Ok(None) => open = false,
                Err(_) => return self.refuse(&Refusal::BadReply("the reply broke off")),
            }
        };
        if !open
            && !ended
            && let Some(failure) = Failure::of_call(&self.shared.details(), parts.status, &trailers)
        {
            return self.fail(failure, &[&parts.headers, &trailers]);
        }
        let first = match first.map(|message| {
            if binding.raw_reply {
                content_type = http_body(&self.shared, binding, &message)?.content_type;
            }
            stream::write(&self.shared, binding, format, &message)
        }) {
            Some(Err(what)) => return self.refuse(&Refusal::BadReply(what)),
            Some(Ok(first)) => Some(first),
            None => None,
        };
        let body = if self.is_head {
            ResponseBody::empty()
        } else {
            let body = open.then_some(body);
            ResponseBody::stream(ReplyStream::new(Arc::clone(&self.shared), index, format, first, deframer, body))
        };
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        // nginx holds back what it proxies unless it is told not to.
        headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
        headers::from_metadata(&parts.headers, headers);
        headers.insert(header::CONTENT_TYPE, content_type);
        self.mark(&mut response);
        response
    }
}

/// Writes what the rule answers with: the message, or one field of it.
pub(super) fn print(shared: &Shared, binding: &Binding, message: &[u8], out: &mut Vec<u8>) -> Result<(), &'static str> {
    let written = match binding.response_body {
        None => print_message(&shared.schema, binding.output, message, out),
        Some(index) => print_field(&shared.schema, binding.output, index, message, out),
    };
    written.map_err(|Malformed| "the reply has no JSON form")
}

/// A `google.api.HttpBody`.
pub(super) struct HttpBody {
    pub content_type: HeaderValue,
    pub data: Bytes,
}

/// Reads the `HttpBody` that a reply is, or has as its response field. An absent one is empty.
pub(super) fn http_body(shared: &Shared, binding: &Binding, message: &Bytes) -> Result<HttpBody, &'static str> {
    let bytes = match binding.response_body {
        None => message.clone(),
        Some(index) => last_bytes(message, shared.schema.message(binding.output).at(index).number)?,
    };
    let content_type = last_bytes(&bytes, 1)?;
    let content_type = if content_type.is_empty() { "application/octet-stream".into() } else { content_type };
    Ok(HttpBody {
        content_type: HeaderValue::from_maybe_shared(content_type)
            .map_err(|_| "the content type is no header value")?,
        data: last_bytes(&bytes, 2)?,
    })
}

/// The last value of a length-delimited field, without copying; empty when there is none.
fn last_bytes(message: &Bytes, wanted: u32) -> Result<Bytes, &'static str> {
    let mut rest: &[u8] = message;
    let mut found = Bytes::new();
    while let Some((number, raw)) = wire::take_field(&mut rest).map_err(|Malformed| "the reply is malformed")? {
        match raw {
            Raw::Delimited(bytes) if number == wanted => found = message.slice_ref(bytes),
            _ => {}
        }
    }
    Ok(found)
}
