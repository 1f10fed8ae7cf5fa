//! The request and response bodies of the layer. They are concrete types, because a boxed trait object would lose `Send`.

use std::pin::Pin;
use std::task::Context;
use std::task::Poll;

use bytes::Bytes;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use pin_project_lite::pin_project;

use crate::error::BoxError;
use crate::stream::ReplyStream;

pin_project! {
    /// The body of a request to the inner service: the client's body, or one gRPC frame.
    #[derive(Debug)]
    pub struct RequestBody<B> {
        #[pin]
        kind: RequestKind<B>,
    }
}

pin_project! {
    #[project = RequestProjection]
    #[derive(Debug)]
    enum RequestKind<B> {
        // The body of a gRPC or grpc-web request, unchanged.
        Passthrough { #[pin] body: B },
        // The message from path, query and JSON. `None` after it is read.
        Frame { frame: Option<Bytes> },
    }
}

impl<B> RequestBody<B> {
    pub(crate) fn passthrough(body: B) -> RequestBody<B> {
        RequestBody { kind: RequestKind::Passthrough { body } }
    }

    pub(crate) fn frame(frame: Bytes) -> RequestBody<B> {
        RequestBody { kind: RequestKind::Frame { frame: Some(frame) } }
    }
}

impl<B: Body<Data = Bytes>> Body for RequestBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().kind.project() {
            RequestProjection::Passthrough { body } => body.poll_frame(cx),
            RequestProjection::Frame { frame } => Poll::Ready(frame.take().map(|frame| Ok(Frame::data(frame)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            RequestKind::Passthrough { body } => body.is_end_stream(),
            RequestKind::Frame { frame } => frame.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            RequestKind::Passthrough { body } => body.size_hint(),
            RequestKind::Frame { frame } => exact_hint(frame),
        }
    }
}

pin_project! {
    /// The body of a response: the inner service's body, or its transcoded form. Dropping it cancels the call.
    #[derive(Debug)]
    pub struct ResponseBody<B> {
        #[pin]
        kind: ResponseKind<B>,
    }
}

pin_project! {
    #[project = ResponseProjection]
    #[derive(Debug)]
    enum ResponseKind<B> {
        // The response to a gRPC or grpc-web request, unchanged.
        Passthrough { #[pin] body: B },
        // A complete body. `None` after it is read.
        Whole { bytes: Option<Bytes> },
        // The messages of a server stream.
        Stream { stream: ReplyStream<B> },
    }
}

impl<B> ResponseBody<B> {
    pub(crate) fn passthrough(body: B) -> ResponseBody<B> {
        ResponseBody { kind: ResponseKind::Passthrough { body } }
    }

    pub(crate) fn whole(bytes: Bytes) -> ResponseBody<B> {
        ResponseBody { kind: ResponseKind::Whole { bytes: Some(bytes).filter(|bytes| !bytes.is_empty()) } }
    }

    pub(crate) fn empty() -> ResponseBody<B> {
        ResponseBody::whole(Bytes::new())
    }

    pub(crate) fn stream(stream: ReplyStream<B>) -> ResponseBody<B> {
        ResponseBody { kind: ResponseKind::Stream { stream } }
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().kind.project() {
            ResponseProjection::Passthrough { body } => body.poll_frame(cx).map_err(Into::into),
            ResponseProjection::Whole { bytes } => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            ResponseProjection::Stream { stream } => stream.poll_next(cx).map(|next| Some(next?.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            ResponseKind::Passthrough { body } => body.is_end_stream(),
            ResponseKind::Whole { bytes } => bytes.is_none(),
            ResponseKind::Stream { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            ResponseKind::Passthrough { body } => body.size_hint(),
            ResponseKind::Whole { bytes } => exact_hint(bytes),
            ResponseKind::Stream { .. } => SizeHint::default(),
        }
    }
}

fn exact_hint(bytes: &Option<Bytes>) -> SizeHint {
    SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
}
