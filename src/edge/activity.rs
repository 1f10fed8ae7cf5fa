//! What one connection is doing: whether it has asked for anything yet, how many requests are open, and since when none is.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;

use bytes::Bytes;
use http::Version;
use http_body::Frame;
use http_body::SizeHint;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a connection may take to close once it was asked to and has nothing open.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long a connection may be kept, and idle.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lifetimes {
    /// From a request's first byte to the end of its head; on a new connection, from the beginning.
    pub(super) head: Duration,
    /// Without a request.
    pub(super) idle: Duration,
    /// At all; busy ones end after what is open.
    pub(super) age: Duration,
}

/// What is to become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionFate {
    /// It goes on; look again at this moment.
    GoesOn(Instant),
    /// It is asked to end, for this reason.
    Ends(&'static str),
    /// It is cut off, for this reason.
    CutOff(&'static str),
}

/// See the module. Cheap to clone; clones share state.
#[derive(Clone)]
pub(super) struct Activity(Arc<ActivityRecord>);

struct ActivityRecord {
    born: Instant,
    state: Mutex<ActivityState>,
    /// Rings when the connection has to make room.
    gives_way: Notify,
}

struct ActivityState {
    open: usize,
    /// Since when none is open.
    idle_since: Instant,
    version: Option<Version>,
    /// When the first byte since then came.
    first_byte: Option<Instant>,
    /// Since when it is on its way out.
    leaving: Option<Instant>,
}

impl Activity {
    pub(super) fn new() -> Self {
        let born = Instant::now();
        let state = ActivityState { open: 0, idle_since: born, version: None, first_byte: None, leaving: None };
        Self(Arc::new(ActivityRecord { born, state: Mutex::new(state), gives_way: Notify::new() }))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, ActivityState> {
        self.0.state.lock().expect("no one panics while holding it")
    }

    /// Notes a request, which is open until what is returned is dropped.
    pub(super) fn begin(&self, version: Version) -> Open {
        let mut state = self.state();
        state.open += 1;
        state.version = Some(version);
        state.first_byte = None;
        drop(state);
        Open(self.clone())
    }

    /// How long nothing has been open; `None` while something is, or it is on its way out.
    pub(super) fn idle_for(&self, now: Instant) -> Option<Duration> {
        let state = self.state();
        // A head that is under way is a request that has begun.
        let is_idle = state.open == 0 && state.leaving.is_none() && !state.is_in_head();
        is_idle.then(|| now.saturating_duration_since(state.idle_since))
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.state().leaving.is_some()
    }

    /// Notes that it is asked to end.
    pub(super) fn leave(&self) {
        self.state().leaving.get_or_insert_with(Instant::now);
    }

    /// Asks it to make room for another.
    pub(super) fn give_way(&self) {
        self.leave();
        self.0.gives_way.notify_one();
    }

    /// Resolves when it has to make room for another.
    pub(super) async fn gives_way(&self) {
        self.0.gives_way.notified().await;
    }

    /// What is to become of it at this moment.
    pub(super) fn judge(&self, now: Instant, lifetimes: Lifetimes) -> ConnectionFate {
        let state = self.state();
        if let Some(leaving) = state.leaving {
            return match state.open {
                // A stream of HTTP/2 may outlive what the connection was asked to do, and does no harm.
                0 if now >= leaving.max(state.idle_since) + FAREWELL => ConnectionFate::CutOff("farewell"),
                _ => ConnectionFate::GoesOn(now + FAREWELL),
            };
        }
        if state.version.is_none() {
            let until = self.0.born + lifetimes.head;
            return if now >= until { ConnectionFate::CutOff("silent") } else { ConnectionFate::GoesOn(until) };
        }
        let old = self.0.born + lifetimes.age;
        if now >= old {
            return ConnectionFate::Ends("age");
        }
        if state.open > 0 {
            return ConnectionFate::GoesOn(old.min(now + lifetimes.head));
        }
        if let Some(first_byte) = state.first_byte.filter(|_| state.is_in_head()) {
            let until = first_byte + lifetimes.head;
            return if now >= until { ConnectionFate::CutOff("head") } else { ConnectionFate::GoesOn(until.min(old)) };
        }
        let until = state.idle_since + lifetimes.idle;
        if now >= until {
            ConnectionFate::Ends("idle")
        } else {
            ConnectionFate::GoesOn(until.min(old).min(now + lifetimes.head))
        }
    }

    fn read(&self) {
        let mut state = self.state();
        if state.open == 0 && state.first_byte.is_none() {
            state.first_byte = Some(Instant::now());
        }
    }
}

impl ActivityState {
    /// Whether part of a request's head has come. Of HTTP/2 that is not known: pings are bytes too.
    fn is_in_head(&self) -> bool {
        self.open == 0 && self.first_byte.is_some() && self.version.is_some_and(|version| version < Version::HTTP_2)
    }
}

/// A request that is open.
///
/// Over HTTP/2 it counts until its answer's head, and only a stream of revocations to its end. Otherwise a client that opens a
/// public stream, or reads nothing of an answer, could keep the connection busy without end.
pub(super) struct Open(Activity);

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.open -= 1;
        if state.open == 0 {
            state.idle_since = Instant::now();
            state.first_byte = None;
        }
    }
}

/// An answer's body, which keeps its request open to the end.
pub(super) struct OpenBody {
    pub(super) body: axum::body::Body,
    pub(super) open: Option<Open>,
}

impl http_body::Body for OpenBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none() {
            self.open = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection that notes when something is read from it.
pub(super) struct Noted<S> {
    pub(super) stream: S,
    pub(super) activity: Activity,
}

impl<S: AsyncRead + Unpin> AsyncRead for Noted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        if buffer.filled().len() > before {
            self.activity.read();
        }
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
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
    use super::*;

    const LIFETIMES: Lifetimes =
        Lifetimes { head: Duration::from_secs(10), idle: Duration::from_secs(75), age: Duration::from_secs(3_600) };

    fn after(seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds)
    }

    #[tokio::test]
    async fn an_idle_connection_outlives_its_clients_minute_and_a_slow_head_does_not() {
        let activity = Activity::new();
        assert_eq!(activity.judge(after(10), LIFETIMES), ConnectionFate::CutOff("silent"));
        drop(activity.begin(Version::HTTP_11));
        assert!(
            matches!(activity.judge(after(74), LIFETIMES), ConnectionFate::GoesOn(_)),
            "idle for longer than a head may take"
        );
        assert_eq!(activity.judge(after(75), LIFETIMES), ConnectionFate::Ends("idle"));
        activity.read();
        assert!(matches!(activity.judge(after(9), LIFETIMES), ConnectionFate::GoesOn(_)));
        assert_eq!(activity.judge(after(10), LIFETIMES), ConnectionFate::CutOff("head"));
        assert_eq!(activity.idle_for(after(70)), None, "a request that has begun makes room for nobody");
    }

    #[tokio::test]
    async fn pings_keep_no_connection_and_an_open_stream_does() {
        let activity = Activity::new();
        let open = activity.begin(Version::HTTP_2);
        assert!(matches!(activity.judge(after(1_000), LIFETIMES), ConnectionFate::GoesOn(_)));
        assert_eq!(activity.judge(after(3_600), LIFETIMES), ConnectionFate::Ends("age"));
        drop(open);
        activity.read();
        assert_eq!(activity.judge(after(75), LIFETIMES), ConnectionFate::Ends("idle"));
    }
}
