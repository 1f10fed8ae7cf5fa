//! Delays the end of a connection. A client may send a request and disconnect at once, and hyper and h2 discard a request that
//! they have read but not dispatched when they read the end of the stream, or cannot write. A received request is carried out,
//! so the delay gives them the time to dispatch it.

use std::io;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::time::Instant;
use tokio::time::Sleep;
use tokio::time::sleep;

/// How long the end of the stream is withheld from the reader.
const DELAY: Duration = Duration::from_millis(100);

/// A stream whose end is delayed.
pub(super) struct DelayedEnd<S> {
    stream: S,
    /// The end that was read, and when it is passed on. On the heap, because a connection has only one.
    end: Option<(Pin<Box<Sleep>>, Option<io::Error>)>,
    /// Since when writes fail, because the client has disconnected.
    gone_since: Option<Instant>,
}

impl<S> DelayedEnd<S> {
    pub(super) const fn new(stream: S) -> Self {
        Self { stream, end: None, gone_since: None }
    }

    /// The result of a write of `length` bytes. For [`DELAY`] after the client has disconnected, writes appear to succeed: its
    /// request may still have to be read.
    fn delayed(&mut self, wrote: io::Result<usize>, length: usize) -> io::Result<usize> {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
        match wrote {
            Err(error)
                if matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected)
                    && self.gone_since.get_or_insert_with(Instant::now).elapsed() < DELAY =>
            {
                Ok(length)
            }
            wrote => wrote,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for DelayedEnd<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.end.is_none() {
            let before = buffer.filled().len();
            let room = buffer.remaining() > 0;
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
            if read.is_ok() && (buffer.filled().len() > before || !room) {
                return Poll::Ready(Ok(()));
            }
            self.end = Some((Box::pin(sleep(DELAY)), read.err()));
        }
        let Some((delay, error)) = &mut self.end else { return Poll::Ready(Ok(())) };
        ready!(delay.as_mut().poll(cx));
        Poll::Ready(error.take().map_or(Ok(()), Err))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for DelayedEnd<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        Poll::Ready(self.delayed(wrote, bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, pieces));
        Poll::Ready(self.delayed(wrote, pieces.iter().map(|piece| piece.len()).sum()))
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
    use tokio::io::AsyncReadExt as _;
    use tokio::io::AsyncWriteExt as _;
    use tokio::io::duplex;

    use super::*;

    #[tokio::test]
    async fn the_end_is_delayed_and_data_before_it_is_not() {
        let (near, mut far) = duplex(64);
        far.write_all(b"request").await.expect("fits");
        drop(far);
        let mut near = DelayedEnd::new(near);
        let (begun, mut read) = (Instant::now(), [0; 16]);
        assert_eq!(near.read(&mut read).await.expect("is there"), 7);
        assert!(begun.elapsed() < DELAY);
        near.write_all(b"to nobody").await.expect("for a moment it seems to go");
        for _ in 0..2 {
            assert_eq!(near.read(&mut read).await.expect("an end"), 0);
            assert!(begun.elapsed() >= DELAY);
        }
        assert!(near.write_all(b"to nobody").await.is_err());
    }
}
