//! The activity of one connection: whether it has sent a request yet, how many requests are open, and since when the server
//! has waited for its client.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
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

use super::lifetime::Lifetimes;

/// How long a client may take to read one piece of a response. hyper keeps what was handed over; on HTTP/2 a client can leave it
/// there without ceasing to answer pings. Only the response is given up: a proxy has many clients on one connection.
const UNREAD_MAX: Duration = Duration::from_secs(30);

/// How many bytes are handed over at once: no more than one piece of a response is kept for a client that reads nothing.
const PIECE: usize = 16 * 1024;

/// How many requests may start the wait from zero until one is received: clients cancel some.
const BEGINNINGS: u8 = 3;

/// How long a connection may take to close after the shutdown request, once no request is open.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What to do with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionFate {
    /// Keep it; check again at this time.
    Keep(Instant),
    /// Shut it down gracefully, for this reason.
    Close(&'static str),
    /// Abort it, for this reason.
    Abort(&'static str),
}

/// The activity of one connection. Cheap to clone; clones share state.
#[derive(Clone)]
pub(super) struct Activity(Arc<ActivityRecord>);

struct ActivityRecord {
    born: Instant,
    state: Mutex<ActivityState>,
    /// Notified when the connection must make room for another.
    evicted: Notify,
    /// How many of its address's connections are shutting down.
    leaving: Arc<AtomicUsize>,
}

struct ActivityState {
    open: usize,
    /// How many of the open requests were received completely.
    received: usize,
    /// Since when there is none of those.
    waiting_since: Instant,
    /// How many more requests start the wait from zero: a few after each that was received. A client that only begins requests would
    /// otherwise never count as waiting.
    beginnings: u8,
    /// Since when no request is open.
    idle_since: Instant,
    version: Option<Version>,
    /// What waits for the client to read it, by an arbitrary number: the first has waited longest.
    unread: BTreeMap<u64, WaitingRest>,
    unread_next: u64,
    /// When the last of it was read.
    read_at: Option<Instant>,
    /// When the first byte since then was received.
    first_byte: Option<Instant>,
    /// Since when it is shutting down.
    leaving: Option<Instant>,
    /// Whether it ends without a graceful shutdown.
    is_aborted: bool,
}

impl Activity {
    /// The activity of a connection that has just been accepted. `leaving` counts the connections of its address that are shutting
    /// down.
    pub(super) fn new(leaving: Arc<AtomicUsize>) -> Self {
        let born = Instant::now();
        let state = ActivityState {
            open: 0,
            received: 0,
            waiting_since: born,
            beginnings: BEGINNINGS,
            idle_since: born,
            version: None,
            unread: BTreeMap::new(),
            unread_next: 0,
            read_at: None,
            first_byte: None,
            leaving: None,
            is_aborted: false,
        };
        Self(Arc::new(ActivityRecord { born, state: Mutex::new(state), evicted: Notify::new(), leaving }))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, ActivityState> {
        self.0.state.lock().expect("no one panics while holding it")
    }

    /// Records a request. It is open until the first value is dropped. One that begins long after the shutdown request does not
    /// count: a client may never acknowledge it, and must not keep the connection open by further requests.
    pub(super) fn begin(&self, version: Version) -> (OpenRequest, ReceivingRequest) {
        self.begin_at(version, Instant::now())
    }

    fn begin_at(&self, version: Version, now: Instant) -> (OpenRequest, ReceivingRequest) {
        let mut state = self.state();
        state.version = Some(version);
        state.first_byte = None;
        let is_late = state.leaving.is_some_and(|leaving| now >= leaving + CLOSE_TIMEOUT);
        if !is_late {
            if state.open == 0 && state.beginnings > 0 {
                state.beginnings -= 1;
                state.waiting_since = now;
            }
            state.open += 1;
        }
        drop(state);
        let phase = Arc::new(AtomicU8::new(if is_late { CLOSED } else { RECEIVING }));
        let receiving = ReceivingRequest { activity: self.clone(), phase: Arc::clone(&phase) };
        (OpenRequest { activity: self.clone(), phase }, receiving)
    }

    /// Whether and how long the server has waited for the client; `None` while a request is in progress, or while the
    /// connection is shutting down.
    pub(super) fn wait(&self, now: Instant) -> Option<Wait> {
        let state = self.state();
        if state.leaving.is_some() || state.received > 0 {
            return None;
        }
        // A head that is partly received is a request that has begun.
        let is_idle = state.open == 0 && !state.is_in_head();
        let since = state.first_byte.filter(|_| state.is_in_head()).unwrap_or(state.waiting_since);
        Some(Wait { is_idle, time: now.saturating_duration_since(since) })
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.state().leaving.is_some()
    }

    /// Since when it has been shutting down without an open request; `None` otherwise, or if it is aborted already.
    pub(super) fn lingers_since(&self) -> Option<Instant> {
        let state = self.state();
        state.leaving.filter(|_| state.open == 0 && !state.is_aborted)
    }

    /// Whether it ends without a graceful shutdown.
    pub(super) fn is_aborted(&self) -> bool {
        self.state().is_aborted
    }

    /// Marks it as shutting down.
    pub(super) fn leave(&self) {
        self.note_leaving(&mut self.state());
    }

    fn note_leaving(&self, state: &mut ActivityState) {
        if state.leaving.is_none() {
            state.leaving = Some(Instant::now());
            self.0.leaving.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Asks it to make room for another: gracefully, unless that would wait for a request whose beginning was received. Decided
    /// now, because a request that arrives from here on is answered.
    pub(super) fn evict(&self) {
        let mut state = self.state();
        state.is_aborted = state.is_receiving();
        self.note_leaving(&mut state);
        drop(state);
        self.0.evicted.notify_one();
    }

    /// Ends it now.
    pub(super) fn abort(&self) {
        self.state().is_aborted = true;
        self.0.evicted.notify_one();
    }

    /// Resolves when it must make room for another.
    pub(super) async fn evicted(&self) {
        self.0.evicted.notified().await;
    }

    /// Decides what to do with the connection now.
    pub(super) fn evaluate(&self, now: Instant, lifetimes: Lifetimes) -> ConnectionFate {
        let mut state = self.state();
        while let Some(oldest) = state.unread.first_entry()
            && now >= oldest.get().since + UNREAD_MAX
        {
            oldest.remove().rest.give_up();
        }
        if let Some(leaving) = state.leaving {
            // What began in time may take as long as it needs. An uncounted stream ends here.
            if state.open > 0 {
                return ConnectionFate::Keep(now + CLOSE_TIMEOUT);
            }
            let farewell = leaving.max(state.idle_since) + CLOSE_TIMEOUT;
            // What the client reads of a response may take longer, but not without end.
            let reading = match state.read_at {
                _ if !state.unread.is_empty() => leaving + UNREAD_MAX,
                Some(read_at) => (read_at + CLOSE_TIMEOUT).min(leaving + UNREAD_MAX),
                None => farewell,
            };
            let until = farewell.max(reading);
            // What is unread may be read at any time.
            let wake = until.min(now + CLOSE_TIMEOUT);
            return if now >= until { ConnectionFate::Abort("farewell") } else { ConnectionFate::Keep(wake) };
        }
        if state.version.is_none() {
            let until = self.0.born + lifetimes.first;
            return if now >= until { ConnectionFate::Abort("silent") } else { ConnectionFate::Keep(until) };
        }
        let old = self.0.born + lifetimes.age;
        if now >= old {
            return ConnectionFate::Close("age");
        }
        if state.open > 0 || !state.unread.is_empty() {
            return ConnectionFate::Keep(old.min(now + lifetimes.head));
        }
        if let Some(first_byte) = state.first_byte.filter(|_| state.is_in_head()) {
            let until = first_byte + lifetimes.head;
            return if now >= until { ConnectionFate::Abort("head") } else { ConnectionFate::Keep(until.min(old)) };
        }
        let until = state.idle_since + lifetimes.idle;
        if now >= until {
            ConnectionFate::Close("idle")
        } else {
            ConnectionFate::Keep(until.min(old).min(now + lifetimes.head))
        }
    }

    /// Records that the rest of a frame waits for the client to read it, until the value is dropped.
    fn begin_unread(&self, bytes: Bytes) -> UnreadRest {
        let rest = SharedRest(Arc::new(Mutex::new(Some(bytes))));
        let mut state = self.state();
        let number = state.unread_next;
        state.unread_next += 1;
        state.unread.insert(number, WaitingRest { since: Instant::now(), rest: rest.clone() });
        drop(state);
        UnreadRest { activity: self.clone(), number, rest }
    }

    fn read(&self) {
        let mut state = self.state();
        if state.open == 0 && state.first_byte.is_none() {
            state.first_byte = Some(Instant::now());
        }
    }
}

impl ActivityState {
    /// Whether a graceful shutdown would wait for the client: nothing was received yet, or a request in part.
    fn is_receiving(&self) -> bool {
        self.version.is_none() || self.is_in_head() || self.open > 0 && self.received == 0
    }

    /// Whether part of a request's head was received. Unknown for HTTP/2, where pings are bytes too.
    fn is_in_head(&self) -> bool {
        // A client that has not read a response may have sent the next request already.
        self.open == 0
            && self.unread.is_empty()
            && self.first_byte.is_some()
            && self.version.is_some_and(|version| version < Version::HTTP_2)
    }
}

/// An open request.
///
/// It counts until the response's head, and only a stream of revocations counts to its end. Otherwise a client that opens a public
/// stream, or does not read a response, could keep the connection busy without end.
pub(super) struct OpenRequest {
    activity: Activity,
    /// One of the next three. Changed only under the lock of the activity's state.
    phase: Arc<AtomicU8>,
}

const RECEIVING: u8 = 0;
const RECEIVED: u8 = 1;
const CLOSED: u8 = 2;

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let mut state = self.activity.state();
        let phase = self.phase.swap(CLOSED, Ordering::Relaxed);
        if phase == CLOSED {
            return;
        }
        state.open -= 1;
        if phase == RECEIVED {
            state.received -= 1;
            if state.received == 0 {
                state.waiting_since = Instant::now();
            }
        }
        if state.open == 0 {
            state.idle_since = Instant::now();
            state.first_byte = None;
        }
    }
}

/// A request that is still being received. Until it says otherwise, the server waits for the client.
pub(super) struct ReceivingRequest {
    activity: Activity,
    phase: Arc<AtomicU8>,
}

impl ReceivingRequest {
    /// Records that it was received completely, or that no more of it is awaited.
    pub(super) fn received(self) {
        let mut state = self.activity.state();
        // The client may be gone, and with it the open request.
        if self.phase.load(Ordering::Relaxed) == RECEIVING {
            self.phase.store(RECEIVED, Ordering::Relaxed);
            state.received += 1;
            state.beginnings = BEGINNINGS;
        }
    }
}

/// How long the server has waited for a client. The greatest is closed first when another connection needs room: an idle one,
/// which is a convenience, before one with a request that is still being received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Wait {
    pub(super) is_idle: bool,
    pub(super) time: Duration,
}

/// A response's body, which keeps its request open until it ends, and is handed over piece by piece.
pub(super) struct OpenBody {
    body: axum::body::Body,
    open: Option<OpenRequest>,
    activity: Activity,
    /// The rest of a frame.
    rest: Option<UnreadRest>,
}

impl OpenBody {
    /// With the request that it keeps open, if any.
    pub(super) const fn new(body: axum::body::Body, open: Option<OpenRequest>, activity: Activity) -> Self {
        Self { body, open, activity, rest: None }
    }

    /// The next piece of a frame; the rest waits.
    fn piece(&mut self, mut bytes: Bytes) -> Frame<Bytes> {
        let piece = bytes.split_to(PIECE.min(bytes.len()));
        self.rest = (!bytes.is_empty()).then(|| self.activity.begin_unread(bytes));
        Frame::data(piece)
    }
}

/// The rest of a frame, until it is given up.
#[derive(Clone)]
struct SharedRest(Arc<Mutex<Option<Bytes>>>);

impl SharedRest {
    fn get(&self) -> Option<Bytes> {
        self.0.lock().expect("no one panics while holding it").clone()
    }

    fn give_up(&self) {
        *self.0.lock().expect("no one panics while holding it") = None;
    }
}

/// The rest of a frame, and since when it has waited.
struct WaitingRest {
    since: Instant,
    rest: SharedRest,
}

/// The rest of a frame that waits for the client to read it.
struct UnreadRest {
    activity: Activity,
    number: u64,
    rest: SharedRest,
}

impl Drop for UnreadRest {
    fn drop(&mut self) {
        let mut state = self.activity.state();
        state.unread.remove(&self.number);
        if state.unread.is_empty() {
            state.read_at = Some(Instant::now());
            // What had come by then is the next request's, whose time begins now.
            state.first_byte = state.first_byte.and(state.read_at);
        }
    }
}

impl http_body::Body for OpenBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Some(unread) = self.rest.take() {
            let late = || axum::Error::new(io::Error::from(io::ErrorKind::TimedOut));
            return Poll::Ready(Some(unread.rest.get().map(|rest| self.piece(rest)).ok_or_else(late)));
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        match frame {
            None => self.open = None,
            Some(Ok(frame)) if frame.data_ref().is_some_and(|data| data.len() > PIECE) => {
                let data = frame.into_data().unwrap_or_default();
                return Poll::Ready(Some(Ok(self.piece(data))));
            }
            Some(_) => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let hint = self.body.size_hint();
        let rest = self.rest.as_ref().and_then(|unread| unread.rest.get()).map_or(0, |rest| rest.len() as u64);
        match hint.exact() {
            Some(exact) => SizeHint::with_exact(exact + rest),
            None => hint,
        }
    }
}

/// A stream that records when bytes are read from it.
pub(super) struct TrackedStream<S> {
    pub(super) stream: S,
    pub(super) activity: Activity,
}

impl<S: AsyncRead + Unpin> AsyncRead for TrackedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        if buffer.filled().len() > before {
            self.activity.read();
        }
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TrackedStream<S> {
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
    use http_body::Body as _;
    use http_body_util::BodyExt as _;

    use super::*;

    const LIFETIMES: Lifetimes =
        Lifetimes { first: HEAD, head: HEAD, idle: Duration::from_secs(75), age: Duration::from_secs(3_600) };
    const HEAD: Duration = Duration::from_secs(10);

    fn after(seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds)
    }

    /// The only connection of its address.
    fn alone() -> Activity {
        Activity::new(Arc::default())
    }

    #[tokio::test]
    async fn an_idle_connection_is_kept_for_75_s_and_a_slow_head_for_10_s() {
        let activity = alone();
        assert_eq!(activity.evaluate(after(10), LIFETIMES), ConnectionFate::Abort("silent"));
        drop(activity.begin(Version::HTTP_11));
        assert!(
            matches!(activity.evaluate(after(74), LIFETIMES), ConnectionFate::Keep(_)),
            "idle for longer than a head may take"
        );
        assert_eq!(activity.evaluate(after(75), LIFETIMES), ConnectionFate::Close("idle"));
        activity.read();
        assert!(matches!(activity.evaluate(after(9), LIFETIMES), ConnectionFate::Keep(_)));
        assert_eq!(activity.evaluate(after(10), LIFETIMES), ConnectionFate::Abort("head"));
    }

    #[tokio::test]
    async fn an_idle_connection_makes_room_before_one_that_still_sends_and_a_busy_one_never_does() {
        let (idle, heads, bodies, busy, mixed) = (alone(), alone(), alone(), alone(), alone());
        for activity in [&idle, &heads] {
            drop(activity.begin(Version::HTTP_11));
        }
        heads.read();
        let _open = bodies.begin(Version::HTTP_11);
        let (_open_too, receiving) = busy.begin(Version::HTTP_11);
        receiving.received();
        // Over HTTP/2: one request was received, another was not.
        let (_answered, receiving) = mixed.begin(Version::HTTP_2);
        let _open_as_well = mixed.begin(Version::HTTP_2);
        receiving.received();

        let now = after(5);
        let is_idle = |activity: &Activity| activity.wait(now).map(|wait| wait.is_idle);
        assert_eq!([&idle, &heads, &bodies].map(is_idle), [Some(true), Some(false), Some(false)]);
        assert_eq!([&busy, &mixed].map(|activity| activity.wait(now)), [None, None]);
        assert!(idle.wait(now) > bodies.wait(after(9)), "however long it has been sending");
        assert_eq!(
            [&idle, &heads, &bodies, &busy, &mixed].map(|activity| activity.state().is_receiving()),
            [false, true, true, false, false]
        );
        assert!(alone().state().is_receiving(), "a connection without a request");
        // Decided when it has to make room: a request that arrives afterwards is answered.
        let late = alone();
        drop(late.begin(Version::HTTP_2));
        late.evict();
        let _arriving = late.begin(Version::HTTP_2);
        assert!(!late.is_aborted());
        bodies.evict();
        assert!(bodies.is_aborted());
    }

    #[tokio::test]
    async fn requests_that_never_arrive_do_not_make_a_connection_busy() {
        let activity = alone();
        let begun = Instant::now();
        for _ in 0..10 {
            // Abandoned, in either order.
            let (open, receiving) = activity.begin(Version::HTTP_2);
            drop((receiving, open));
            let (open, receiving) = activity.begin(Version::HTTP_2);
            drop(open);
            receiving.received();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(activity.wait(Instant::now()).is_some_and(|wait| wait.time >= Duration::from_millis(50)));
        let (answered, receiving) = activity.begin(Version::HTTP_2);
        receiving.received();
        assert_eq!(activity.wait(Instant::now()), None);
        drop(answered);
        assert!(activity.wait(Instant::now()).is_some_and(|wait| wait.time < begun.elapsed()), "from now on");
    }

    #[tokio::test]
    async fn a_request_on_a_kept_connection_is_not_awaited_since_the_last_one() {
        let activity = alone();
        for seconds in [30, 60] {
            let now = after(seconds);
            let (open, receiving) = activity.begin_at(Version::HTTP_11, now);
            assert_eq!(activity.wait(now).map(|wait| wait.time), Some(Duration::ZERO));
            receiving.received();
            drop(open);
        }
    }

    #[tokio::test]
    async fn a_connection_that_is_leaving_waits_only_for_what_began_in_time() {
        let activity = alone();
        let (open, _receiving) = activity.begin(Version::HTTP_2);
        activity.leave();
        let _late = activity.begin_at(Version::HTTP_2, after(60));
        assert!(matches!(activity.evaluate(after(60), LIFETIMES), ConnectionFate::Keep(_)));
        drop(open);
        let _later = activity.begin_at(Version::HTTP_2, after(61));
        assert_eq!(activity.evaluate(after(61), LIFETIMES), ConnectionFate::Abort("farewell"));
    }

    #[tokio::test]
    async fn a_large_frame_is_handed_over_in_pieces_and_must_be_read_in_time() {
        let (activity, frame) = (alone(), vec![7; 2 * PIECE + 1]);
        drop(activity.begin(Version::HTTP_2));
        let mut body = OpenBody::new(frame.clone().into(), None, activity.clone());
        assert_eq!(body.size_hint().exact(), Some(frame.len() as u64));
        let mut read = vec![];
        for length in [PIECE, PIECE, 1] {
            let piece = body.frame().await.expect("is there").expect("is whole").into_data().expect("data");
            assert_eq!(piece.len(), length);
            read.extend_from_slice(&piece);
            assert_eq!(body.size_hint().exact(), Some((frame.len() - read.len()) as u64));
            activity.evaluate(after(29), LIFETIMES);
        }
        assert_eq!(read, frame);
        assert!(body.is_end_stream() && body.frame().await.is_none());
        let mut late = OpenBody::new(frame.into(), None, activity.clone());
        late.frame().await.expect("is there").expect("is whole");
        let fate = activity.evaluate(after(31), LIFETIMES);
        assert!(matches!(fate, ConnectionFate::Keep(_)), "others may use the connection: {fate:?}");
        assert!(activity.state().unread.is_empty() && !late.is_end_stream());
        late.frame().await.expect("an end").expect_err("it was given up");
        // Small ones are not held up.
        let mut small = OpenBody::new(vec![7; PIECE].into(), None, activity.clone());
        small.frame().await.expect("is there").expect("is whole");
        assert!(activity.state().unread.is_empty());
    }

    #[tokio::test]
    async fn a_response_that_is_being_read_keeps_a_leaving_connection_for_a_while() {
        let activity = alone();
        drop(activity.begin(Version::HTTP_11));
        let mut body = OpenBody::new(vec![7; 2 * PIECE].into(), None, activity.clone());
        body.frame().await.expect("is there").expect("is whole");
        activity.read();
        assert!(!activity.state().is_in_head(), "it may have sent the next request already");
        activity.evict();
        assert!(!activity.is_aborted());
        assert!(matches!(activity.evaluate(after(20), LIFETIMES), ConnectionFate::Keep(_)));
        body.frame().await.expect("is there").expect("is whole");
        assert!(
            matches!(activity.evaluate(after(1), LIFETIMES), ConnectionFate::Keep(_)),
            "the last piece is on its way"
        );
        assert_eq!(activity.evaluate(after(3), LIFETIMES), ConnectionFate::Abort("farewell"));
        // Without end, a client could keep it by reading further responses.
        activity.begin_unread(Bytes::new()).rest.give_up();
        assert_eq!(activity.evaluate(after(31), LIFETIMES), ConnectionFate::Abort("farewell"));
    }

    #[tokio::test]
    async fn an_open_stream_keeps_a_connection_and_pings_do_not() {
        let activity = alone();
        let open = activity.begin(Version::HTTP_2);
        assert!(matches!(activity.evaluate(after(1_000), LIFETIMES), ConnectionFate::Keep(_)));
        assert_eq!(activity.evaluate(after(3_600), LIFETIMES), ConnectionFate::Close("age"));
        drop(open);
        activity.read();
        assert_eq!(activity.evaluate(after(75), LIFETIMES), ConnectionFate::Close("idle"));
    }
}
