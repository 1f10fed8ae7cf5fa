//! Server streams: writes a line, an event or a chunk for each message, as soon as it arrives.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::StatusCode;
use http_body::Body;
use tokio::time::Instant;
use tokio::time::Sleep;

use crate::binding::Binding;
use crate::error::BoxError;
use crate::frame::Deframer;
use crate::render::Format;
use crate::render::HEARTBEAT;
use crate::render::write;
use crate::status::Refusal;
use crate::status::RestError;
use crate::transcoder::Transcoder;

/// The body of a stream. Dropping it cancels the call.
pub(crate) struct ReplyStream<B> {
    transcoder: Arc<Transcoder>,
    binding: usize,
    format: Format,
    /// The rendered first message, which was read before the status line was sent.
    first: Option<Bytes>,
    deframer: Deframer,
    /// `None` after the call has ended.
    body: Option<Pin<Box<B>>>,
    heartbeat: Option<Heartbeat>,
}

/// A timer for comments on an idle stream.
struct Heartbeat {
    period: Duration,
    next: Pin<Box<Sleep>>,
}

impl Heartbeat {
    fn new(period: Duration) -> Heartbeat {
        Heartbeat { period, next: Box::pin(tokio::time::sleep(period)) }
    }

    /// Restarts the period.
    fn reset(&mut self) {
        self.next.as_mut().reset(Instant::now() + self.period);
    }

    /// Ready after each period without a message.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.next.as_mut().poll(cx));
        self.reset();
        Poll::Ready(())
    }
}

impl<B> fmt::Debug for ReplyStream<B> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ReplyStream").field("format", &self.format).finish_non_exhaustive()
    }
}

/// Aborts the connection, because the data of an `HttpBody` stream cannot contain an error.
#[derive(Debug, thiserror::Error)]
#[error("the stream failed")]
struct StreamAborted;

impl<B> ReplyStream<B> {
    pub(crate) fn new(
        transcoder: Arc<Transcoder>,
        binding: usize,
        format: Format,
        first: Option<Bytes>,
        deframer: Deframer,
        body: Option<Pin<Box<B>>>,
    ) -> ReplyStream<B> {
        let heartbeat = transcoder.event_heartbeat.filter(|_| format == Format::Events).map(Heartbeat::new);
        ReplyStream { transcoder, binding, format, first, deframer, body, heartbeat }
    }

    fn end_with_error(&mut self, failure: &RestError) -> Poll<Option<Result<Bytes, BoxError>>> {
        self.body = None;
        self.deframer = Deframer::default();
        let body = self.transcoder.hooks.error_body(failure);
        Poll::Ready(Some(match self.format {
            Format::Lines => Ok([b"{\"error\":", body.as_slice(), b"}\n"].concat().into()),
            Format::Events => Ok([b"event: error\ndata: ", body.as_slice(), b"\n\n"].concat().into()),
            Format::Raw => Err(Box::new(StreamAborted)),
        }))
    }

    fn refuse(&mut self, reason: &'static str) -> Poll<Option<Result<Bytes, BoxError>>> {
        let failure = self.transcoder.refuse(&Refusal::BadReply(reason));
        self.end_with_error(&failure)
    }
}

impl<B> ReplyStream<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BoxError>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        loop {
            match self.deframer.next() {
                Ok(Some(message)) => {
                    let binding: &Binding = &self.transcoder.rules.bindings[self.binding];
                    return match write(&self.transcoder, binding, self.format, &message) {
                        Ok(bytes) => {
                            self.heartbeat.iter_mut().for_each(Heartbeat::reset);
                            Poll::Ready(Some(Ok(bytes)))
                        }
                        Err(reason) => self.refuse(reason),
                    };
                }
                Ok(None) => {}
                Err(_) => return self.refuse("the reply is not a gRPC frame"),
            }
            let Some(body) = &mut self.body else { return Poll::Ready(None) };
            let Poll::Ready(frame) = body.as_mut().poll_frame(cx) else {
                let Some(heartbeat) = &mut self.heartbeat else { return Poll::Pending };
                return heartbeat.poll(cx).map(|()| Some(Ok(HEARTBEAT)));
            };
            let end = match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.deframer.push(data);
                        continue;
                    }
                    Err(frame) => frame.into_trailers().unwrap_or_default(),
                },
                Some(Err(_)) => return self.refuse("the reply was aborted"),
                None => HeaderMap::new(),
            };
            self.body = None;
            return match RestError::from_call_end(&self.transcoder.details(), StatusCode::OK, &end) {
                Some(failure) => self.end_with_error(&failure),
                None if self.deframer.end().is_err() => self.refuse("the reply is incomplete"),
                None => Poll::Ready(None),
            };
        }
    }
}
