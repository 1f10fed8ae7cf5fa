//! Drains request bodies that the handler did not read to their end.

use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::runtime::Handle;
use tokio::time::timeout;

/// The most that is drained of a body, in bytes.
const BYTES_MAX: usize = 64 * 1024;

/// How long to drain it.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// A request's body that is drained, within bounds, after its handler has dropped it.
///
/// A refusal is often sent before the body is read. Once the body is dropped, HTTP/2 resets the stream right after the response
/// (RFC 9113 §8.1). A client must not discard the response for that; curl before version 8 does, and reports a stream error.
pub(super) struct Lingering(Option<Incoming>);

impl Lingering {
    pub(super) const fn new(body: Incoming) -> Self {
        Self(Some(body))
    }
}

impl Body for Lingering {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) {
            self.0 = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        let Some(body) = self.0.take().filter(|body| !body.is_end_stream()) else { return };
        // Without a runtime there is no connection left either.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(timeout(DRAIN_TIMEOUT, discard(body)));
        }
    }
}

async fn discard(mut body: Incoming) {
    let mut left = BYTES_MAX;
    while let Some(Ok(frame)) = body.frame().await {
        // A frame counts even if it is empty.
        let length = frame.data_ref().map_or(0, Bytes::len) + 1;
        match left.checked_sub(length) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}
