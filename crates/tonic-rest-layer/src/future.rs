//! The response future: reads the body, calls the service, and renders its reply.

use std::fmt;
use std::future::Future;
use std::future::poll_fn;
use std::pin::Pin;
use std::pin::pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use bytes::Bytes;
use http::Request;
use http::Response;
use http::request;
use http_body::Body as HttpBody;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_service::Service;

use crate::body::RequestBody;
use crate::body::ResponseBody;
use crate::call::call_parts;
use crate::content::Discard;
use crate::content::collect;
use crate::deadline;
use crate::error::BoxError;
use crate::reply::OpeningStream;
use crate::reply::Reply;
use crate::reply::ReplyContext;
use crate::reply::RestResponse;
use crate::reply::UnaryReply;
use crate::route::Path;
use crate::status::Refusal;

/// What follows after the body has been read.
pub(crate) enum Next<F, RB> {
    Call { call: F, context: ReplyContext },
    Response(Box<RestResponse<RB>>),
}

/// Reads the body and starts the call.
type Reading<F, RB, E> = Pin<Box<dyn Future<Output = Result<Next<F, RB>, E>> + Send>>;

pin_project! {
    /// The response future of [`RestService`](crate::RestService). Dropping it cancels the call.
    pub struct ResponseFuture<F, B, RB, E> {
        #[pin]
        state: State<F, B, RB, E>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F, B, RB, E> {
        // A gRPC or grpc-web call, or one that falls through.
        Passthrough { #[pin] call: F },
        // A response of the layer itself.
        Ready { answer: Option<RestResponse<RB>> },
        // Waiting for the rest of the body.
        ReadingBody { reading: Reading<F, RB, E> },
        // Waiting for the service.
        Calling { #[pin] call: F, context: Option<ReplyContext>, discard: Option<Discard<B>> },
        // Waiting for the one message of a unary reply.
        CollectingReply { #[pin] reply: UnaryReply<RB> },
        // Waiting for the first message of a stream.
        OpeningStream { reply: OpeningStream<RB> },
    }
}

impl<F, B, RB, E> ResponseFuture<F, B, RB, E> {
    /// A call that is passed on unchanged.
    pub(crate) fn passthrough(call: F) -> ResponseFuture<F, B, RB, E> {
        ResponseFuture { state: State::Passthrough { call } }
    }

    /// A response of the layer itself.
    pub(crate) fn ready(answer: RestResponse<RB>) -> ResponseFuture<F, B, RB, E> {
        ResponseFuture { state: State::Ready { answer: Some(answer) } }
    }

    /// A call without a body to read.
    pub(crate) fn calling(call: F, context: ReplyContext, discard: Option<Discard<B>>) -> ResponseFuture<F, B, RB, E> {
        ResponseFuture { state: State::Calling { call, context: Some(context), discard } }
    }

    /// A call that first reads its body.
    pub(crate) fn reading(
        reading: impl Future<Output = Result<Next<F, RB>, E>> + Send + 'static,
    ) -> ResponseFuture<F, B, RB, E> {
        ResponseFuture { state: State::ReadingBody { reading: Box::pin(reading) } }
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
        const COMPLETED: &str = "`ResponseFuture` polled after completion";
        loop {
            let next = match self.as_mut().project().state.project() {
                StateProjection::Passthrough { call } => {
                    let response = ready!(call.poll(cx))?;
                    return Poll::Ready(Ok(response.map(ResponseBody::passthrough)));
                }
                StateProjection::Ready { answer } => return Poll::Ready(Ok(answer.take().expect(COMPLETED))),
                StateProjection::ReadingBody { reading } => match ready!(reading.as_mut().poll(cx))? {
                    Next::Call { call, context } => State::Calling { call, context: Some(context), discard: None },
                    Next::Response(answer) => return Poll::Ready(Ok(*answer)),
                },
                StateProjection::Calling { call, context, discard } => {
                    if discard.as_mut().is_some_and(|discard| discard.poll(cx).is_ready()) {
                        *discard = None;
                    }
                    let response = ready!(call.poll(cx))?;
                    match context.take().expect(COMPLETED).reply(response) {
                        Reply::Response(answer) => return Poll::Ready(Ok(answer)),
                        Reply::Unary(reply) => State::CollectingReply { reply },
                        Reply::Stream(reply) => State::OpeningStream { reply },
                    }
                }
                StateProjection::CollectingReply { reply } => return reply.poll(cx).map(Ok),
                StateProjection::OpeningStream { reply } => return reply.as_mut().poll(cx).map(Ok),
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

/// Reads the body, then calls the service.
///
/// `inner` is ready. If the body is available immediately, as usual, `inner` is called. Otherwise it is replaced by a clone that
/// becomes ready after the body has arrived, because readiness may reserve capacity, such as a permit of a concurrency limit.
pub(crate) async fn read<S, B, RB>(
    mut inner: S,
    context: ReplyContext,
    path: Path,
    mut parts: request::Parts,
    body: B,
) -> Result<Next<S::Future, RB>, S::Error>
where
    S: Service<Request<RequestBody<B>>, Response = Response<RB>> + Clone,
    B: HttpBody<Data = Bytes>,
{
    let transcoder = Arc::clone(&context.transcoder);
    let mut collecting = pin!(collect(body, transcoder.body_bytes_max));
    let available = poll_fn(|cx| match collecting.as_mut().poll(cx) {
        Poll::Ready(body) => Poll::Ready(Some(body)),
        Poll::Pending => Poll::Ready(None),
    });
    let body = match available.await {
        Some(body) => body,
        None => {
            inner = inner.clone();
            let since = Instant::now();
            let timeout = deadline::grpc_timeout(&parts.headers);
            let limit = timeout.map_or(transcoder.body_timeout, |timeout| timeout.min(transcoder.body_timeout));
            let body = tokio::time::timeout(limit, collecting).await.unwrap_or(Err(Refusal::BodyTooSlow));
            if let Some(timeout) = timeout
                && body.is_ok()
            {
                deadline::write(&mut parts.headers, timeout.saturating_sub(since.elapsed()));
            }
            if body.is_ok() {
                poll_fn(|cx| inner.poll_ready(cx)).await?;
            }
            body
        }
    };
    let prepared = body.and_then(|body| call_parts(&transcoder, context.binding(), &path, parts, &body));
    Ok(match prepared {
        Ok((parts, frame)) => {
            Next::Call { call: inner.call(Request::from_parts(parts, RequestBody::frame(frame))), context }
        }
        Err(refusal) => Next::Response(Box::new(context.refuse(&refusal))),
    })
}
