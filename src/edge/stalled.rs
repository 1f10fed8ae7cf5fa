//! Times out writes to a client that reads nothing. HTTP/2 detects such a client with its pings, but HTTP/1.1 does not.

use std::io;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::time::Sleep;
use tokio::time::sleep;

/// How long a write may make no progress. Longer than a subscriber may leave revocations unread, so that the stream ends before
/// the connection does.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// A stream whose writes fail once one has made no progress for `timeout_after`. A stream with nothing to write does not time out.
pub(super) struct StallTimeout<S> {
    stream: S,
    timeout_after: Duration,
    /// Runs while a write waits. On the heap, because most never do.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> StallTimeout<S> {
    pub(super) const fn new(stream: S, timeout_after: Duration) -> Self {
        Self { stream, timeout_after, waiting: None }
    }

    /// The result of a write, or a timeout.
    fn bounded(&mut self, cx: &mut Context<'_>, wrote: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if wrote.is_ready() {
            self.waiting = None;
            return wrote;
        }
        let timeout_after = self.timeout_after;
        ready!(self.waiting.get_or_insert_with(|| Box::pin(sleep(timeout_after))).as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for StallTimeout<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for StallTimeout<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.bounded(cx, wrote)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        self.bounded(cx, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::io::AsyncWriteExt;
    use tokio::io::duplex;
    use tokio::time::Instant;
    use tokio::time::timeout;

    use super::*;

    const SHORT: Duration = Duration::from_millis(500);
    const LONG: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_client_that_reads_nothing_is_disconnected() {
        let (near, _far) = duplex(4);
        let begun = Instant::now();
        let mut near = StallTimeout::new(near, SHORT);
        let end = timeout(LONG, near.write_all(b"more than fits")).await.expect("ends").expect_err("nobody reads");
        assert_eq!(end.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() >= SHORT);
    }

    /// Any progress restarts the timeout, however long the whole write takes.
    #[tokio::test]
    async fn a_client_that_reads_slowly_is_kept() {
        let (near, mut far) = duplex(1);
        let mut near = StallTimeout::new(near, SHORT);
        let writing = tokio::spawn(async move { near.write_all(b"pieces").await });
        for _ in 0..b"pieces".len() {
            sleep(SHORT / 5).await;
            far.read_u8().await.expect("is there");
        }
        timeout(LONG, writing).await.expect("ends").expect("no panic").expect("all of it went");
    }

    #[tokio::test]
    async fn an_idle_connection_does_not_time_out() {
        let (near, mut far) = duplex(4);
        let mut near = StallTimeout::new(near, SHORT);
        for _ in 0..2 {
            near.write_all(b"beat").await.expect("fits");
            sleep(2 * SHORT).await;
            far.read_exact(&mut [0; 4]).await.expect("is there");
        }
    }
}
