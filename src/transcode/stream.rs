//! Server streams: a line, an event or a chunk per message, written as soon as the message is there.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use bytes::Bytes;
use http::HeaderMap;
use http::StatusCode;
use http_body::Body;

use super::body::BoxError;
use super::frame::Deframer;
use super::layer::Shared;
use super::reply;
use super::rule::Binding;
use super::status::Failure;
use super::status::Refusal;

/// How the messages of a stream are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// One JSON value per line. A stream that fails ends with the line `{"error": …}`.
    Lines,
    /// Server-sent events. A stream that fails ends with an event of the type `error`.
    Events,
    /// `google.api.HttpBody`: the data, one piece behind the other. A stream that fails breaks the connection off.
    Raw,
}

impl Format {
    /// The content type, unless the messages themselves name one.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Format::Lines => "application/x-ndjson",
            Format::Events => "text/event-stream",
            Format::Raw => "application/octet-stream",
        }
    }
}

/// The rest of a stream whose first message is known. Dropping it drops the call.
pub(super) struct ReplyStream<B> {
    shared: Arc<Shared>,
    binding: usize,
    format: Format,
    /// The first message, written already: the status line waited for it.
    first: Option<Bytes>,
    deframer: Deframer,
    /// Gone when the call has ended.
    body: Option<Pin<Box<B>>>,
}

impl<B> fmt::Debug for ReplyStream<B> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ReplyStream").field("format", &self.format).finish_non_exhaustive()
    }
}

/// A stream that cannot say how it failed but by breaking off.
#[derive(Debug, thiserror::Error)]
#[error("the stream failed")]
struct BrokenOff;

impl<B> ReplyStream<B> {
    pub(super) fn new(
        shared: Arc<Shared>,
        binding: usize,
        format: Format,
        first: Option<Bytes>,
        deframer: Deframer,
        body: Option<Pin<Box<B>>>,
    ) -> ReplyStream<B> {
        ReplyStream { shared, binding, format, first, deframer, body }
    }

    fn end_with(&mut self, failure: &Failure) -> Poll<Option<Result<Bytes, BoxError>>> {
        self.body = None;
        self.deframer = Deframer::default();
        Poll::Ready(Some(match self.format {
            Format::Lines => Ok([b"{\"error\":", failure.body().as_slice(), b"}\n"].concat().into()),
            Format::Events => Ok([b"event: error\ndata: ", failure.body().as_slice(), b"\n\n"].concat().into()),
            Format::Raw => Err(Box::new(BrokenOff)),
        }))
    }

    fn refuse(&mut self, what: &'static str) -> Poll<Option<Result<Bytes, BoxError>>> {
        let failure = Refusal::BadReply(what).answer(&self.shared.error_domain);
        self.end_with(&failure)
    }
}

impl<B> ReplyStream<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BoxError>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        loop {
            match self.deframer.next() {
                Ok(Some(message)) => {
                    let binding: &Binding = &self.shared.rules.bindings[self.binding];
                    return match write(&self.shared, binding, self.format, &message) {
                        Ok(bytes) => Poll::Ready(Some(Ok(bytes))),
                        Err(what) => self.refuse(what),
                    };
                }
                Ok(None) => {}
                Err(_) => return self.refuse("the reply is no gRPC frame"),
            }
            let Some(body) = &mut self.body else { return Poll::Ready(None) };
            let end = match ready!(body.as_mut().poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.deframer.push(data);
                        continue;
                    }
                    Err(frame) => frame.into_trailers().unwrap_or_default(),
                },
                Some(Err(_)) => return self.refuse("the reply broke off"),
                None => HeaderMap::new(),
            };
            self.body = None;
            return match Failure::of_call(&self.shared.details(), StatusCode::OK, &end) {
                Some(failure) => self.end_with(&failure),
                None if self.deframer.end().is_err() => self.refuse("the reply is cut off"),
                None => Poll::Ready(None),
            };
        }
    }
}

/// The id of the event that a message is written as: the value of the field that the layer was told of. `None` where it is
/// absent or empty, because an empty id would take the last one back, and where it holds what an id cannot (HTML §9.2.6).
fn event_id(shared: &Shared, binding: &Binding, message: &Bytes) -> Option<Bytes> {
    let output = shared.schema.message(binding.output);
    let field = output.at(output.field(shared.event_id_field.as_deref()?)?);
    let id = reply::last_bytes(message, field.number).ok()?;
    (!id.is_empty() && !id.iter().any(|byte| b"\n\r\0".contains(byte))).then_some(id)
}

/// Writes one message, with what sets it apart from the next.
pub(super) fn write(
    shared: &Shared,
    binding: &Binding,
    format: Format,
    message: &Bytes,
) -> Result<Bytes, &'static str> {
    let mut out = Vec::with_capacity(message.len() * 2 + 64);
    match format {
        Format::Raw => return Ok(reply::http_body(shared, binding, message)?.data),
        Format::Lines => {
            reply::print(shared, binding, message, &mut out)?;
            out.push(b'\n');
        }
        Format::Events => {
            if let Some(id) = event_id(shared, binding, message) {
                out.extend_from_slice(&[b"id: ", id.as_ref(), b"\n"].concat());
            }
            // The JSON is one line, so one `data:` holds it.
            out.extend_from_slice(b"data: ");
            reply::print(shared, binding, message, &mut out)?;
            out.extend_from_slice(b"\n\n");
        }
    }
    Ok(out.into())
}
