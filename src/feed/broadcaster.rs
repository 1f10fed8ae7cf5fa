//! The revocations that are known, and their broadcast to subscribers.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::broadcast;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio::time::timeout;

use super::backlog;
use super::backlog::Backlog;
use super::backlog::EntryKey;
use super::cursor::Cursor;
use super::cursor::WRITERS_MAX;
use super::limits::LEEWAY;
use super::limits::STALENESS_MAX;
use super::position::Beat;
use super::position::Discontinuity;
use super::position::Position;
use super::subscriber_slots::SubscriberSlots;
use crate::store::Extent;
use crate::store::FeedReading;
use crate::store::FeedWriters;
use crate::store::PublishedRevocation;
use crate::store::WriterId;
use crate::telemetry::LogLimiter;
use crate::telemetry::Metrics;
use sessiond_core::clock::Clock;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::session::policy::ACCESS_TOKEN_TTL_MAX;
use sessiond_core::session::revoked::RevocationTarget;
use sessiond_core::session::revoked::RevokedSet;
use sessiond_core::session::revoked::ceil_seconds;

/// The most broadcasts that wait for a subscriber; one that is further behind is disconnected. Each holds a batch, so this is
/// some seconds' worth at any rate of sign-outs.
const BROADCASTS_MAX: usize = 1_024;

/// The most revocations that are read or expired in one go: a fraction of a millisecond's work under the lock.
pub(super) const PAGE: usize = 1_000;

/// Why a subscription begins with a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotReason {
    /// No cursor was given.
    NoCursor,
    /// The cursor is older than any access token.
    CursorTooOld,
    /// The cursor is of another database, of another history of this one, or of another project.
    CursorOfAnotherDatabase,
}

/// A revocation, and for how long to retain it.
#[derive(Clone, Debug)]
pub(super) struct Retained {
    pub(super) revocation: Arc<PublishedRevocation>,
    /// On the monotonic clock.
    until: Duration,
}

impl Retained {
    /// For how long from now on; zero once it is over.
    pub(super) const fn remaining(&self, now: Duration) -> Duration {
        self.until.saturating_sub(now)
    }
}

/// What is sent to every subscription.
#[derive(Clone, Debug)]
pub(super) enum Broadcast {
    /// New revocations.
    Revocations(Arc<[Retained]>),
    /// Every revocation up to this cursor was broadcast.
    Reached(Cursor),
    /// The feed is alive, and complete as of this moment.
    Heartbeat(Instant),
    /// The database has another history now, or this replica stops: subscribe again.
    Interrupted,
}

/// Holds the known revocations, and broadcasts new ones.
pub(super) struct Broadcaster {
    clock: Clock,
    metrics: Metrics,
    revoked: RevokedSet,
    state: Mutex<FeedState>,
    slots: SubscriberSlots,
    read_at: ReadAt,
    /// In milliseconds.
    staleness_max: AtomicU64,
    broadcasts: broadcast::Sender<Broadcast>,
    /// Notified when this replica has revoked something, so that it rings the other replicas' doorbells.
    pub(super) to_ring: Notify,
    /// Notified when there may be something to read.
    pub(super) to_read: Notify,
    /// Notified when something waits to be published.
    pub(super) to_publish: Notify,
    /// How many readings are complete.
    readings: watch::Sender<u64>,
}

#[derive(Default)]
struct FeedState {
    /// Every revocation that is still retained, in the order in which a resumed subscription needs them.
    backlog: Backlog,
    /// Revocations that are not published yet.
    pending: Vec<Retained>,
    /// How far the database was read.
    position: Option<Position>,
    /// How many histories there were before.
    histories: u64,
    /// This replica's last committed beats, and when each began.
    beats: VecDeque<(Beat, Instant)>,
    is_closed: bool,
}

impl FeedState {
    /// The cursor of a position. It names only writers with retained entries, and if those are too many, the ones with the
    /// most: the others have nothing, or the least, to send again.
    fn cursor(&self, position: &Position, at: Timestamp) -> Cursor {
        let numbers =
            self.backlog.writers().filter_map(|(writer, count)| Some((count, writer, position.number(writer)?)));
        let mut numbers: Vec<_> = numbers.collect();
        if numbers.len() > WRITERS_MAX {
            numbers.sort_unstable_by_key(|(count, writer, _)| (Reverse(*count), *writer));
            numbers.truncate(WRITERS_MAX);
        }
        let numbers = numbers.into_iter().map(|(_, writer, number)| (writer, number)).collect();
        Cursor { origin: position.origin(), at, numbers: Arc::new(numbers) }
    }
}

/// The moment as of which the feed is complete; unset before the first complete reading. Read for every token, so without a
/// lock.
struct ReadAt {
    start: Instant,
    /// Microseconds since `start`, plus one; 0 if unset.
    micros: AtomicU64,
}

impl ReadAt {
    fn get(&self) -> Option<Instant> {
        let micros = self.micros.load(Ordering::Acquire).checked_sub(1)?;
        Some(self.start + Duration::from_micros(micros))
    }

    fn set(&self, at: Option<Instant>) {
        let micros =
            |at: Instant| at.saturating_duration_since(self.start).as_micros().try_into().unwrap_or(u64::MAX - 1);
        self.micros.store(at.map_or(0, |at| micros(at) + 1), Ordering::Release);
    }
}

/// Limits the log lines about cursors that are ahead.
static CURSOR_LOG: LazyLock<LogLimiter> = LazyLock::new(LogLimiter::default);

/// How far one replica may be ahead of another, with clocks that differ, before a warning is logged about its cursors.
const LEAD_MAX: Duration = Duration::from_secs(30);

/// How long [`Broadcaster::catch_up`] waits.
const CATCH_UP_MAX: Duration = Duration::from_secs(1);

/// How many beats to keep: half a minute's worth.
const BEATS_MAX: usize = 64;

/// Whether the database continues what was read before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Continuity {
    /// It does, or nothing was read before.
    Continued,
    /// See [`Discontinuity::AnotherHistory`].
    AnotherHistory,
    /// See [`Discontinuity::WentBack`].
    WentBack,
}

impl Broadcaster {
    pub(super) fn new(clock: Clock, metrics: Metrics) -> Self {
        Self {
            clock,
            metrics,
            revoked: RevokedSet::default(),
            state: Mutex::default(),
            slots: SubscriberSlots::default(),
            read_at: ReadAt { start: Instant::now(), micros: AtomicU64::new(0) },
            staleness_max: AtomicU64::new(millis(STALENESS_MAX)),
            broadcasts: broadcast::Sender::new(BROADCASTS_MAX),
            to_ring: Notify::new(),
            to_read: Notify::new(),
            readings: watch::Sender::new(0),
            to_publish: Notify::new(),
        }
    }

    pub(super) const fn revoked(&self) -> &RevokedSet {
        &self.revoked
    }

    pub(super) const fn clock(&self) -> &Clock {
        &self.clock
    }

    fn state(&self) -> MutexGuard<'_, FeedState> {
        // The task that panicked is restarted, and reads everything that matters again.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes what this replica has revoked itself.
    pub(super) fn publish(&self, revocations: Vec<PublishedRevocation>) {
        revocations.iter().for_each(|revocation| self.metrics.revocation(revocation.reason.as_str()));
        self.insert(&mut self.state(), revocations, self.clock.now());
        self.to_ring.notify_one();
    }

    /// See [`super::Feed::note_ended`].
    pub(super) fn note_ended(&self, project: &ProjectId, id: SessionId) {
        let until = self.clock.elapsed() + ACCESS_TOKEN_TTL_MAX + LEEWAY;
        // Not published from here: its place in the feed is unknown, and the next reading publishes it.
        self.revoked.insert(project, &RevocationTarget::Session { id, is_impersonation: false }, until);
    }

    /// See [`super::Feed::catch_up`].
    pub(super) async fn catch_up(&self) {
        let mut readings = self.readings.subscribe();
        // One may be in progress that began before this call.
        let enough = readings.borrow_and_update().wrapping_add(2);
        let caught_up = async {
            while *readings.borrow_and_update() < enough {
                self.to_read.notify_one();
                if readings.changed().await.is_err() {
                    return;
                }
            }
        };
        // On a timeout, the age of the feed shows that it is stale.
        let _ = timeout(CATCH_UP_MAX, caught_up).await;
    }

    /// Checks whether the database still has what was read. If so, forgets writers that were swept; if not, forgets everything
    /// and ends every subscription.
    pub(super) fn check_continuity(&self, found: &FeedWriters) -> Continuity {
        let mut state = self.state();
        let Some(known) = &mut state.position else { return Continuity::Continued };
        let continuity = match known.check(found) {
            Ok(()) => {
                known.forget_swept(found);
                return Continuity::Continued;
            }
            Err(Discontinuity::AnotherHistory) => Continuity::AnotherHistory,
            Err(Discontinuity::WentBack) => Continuity::WentBack,
        };
        let timeline = known.origin().timeline;
        tracing::warn!(timeline, "the database has another history or timeline: the feed starts again");
        (state.position, state.histories) = (None, state.histories + 1);
        state.backlog.clear();
        state.pending.clear();
        state.beats.clear();
        // A revocation of the abandoned history may not exist in this one. Until this one is read completely, the feed does not
        // answer.
        self.read_at.set(None);
        self.revoked.clear();
        let _ = self.broadcasts.send(Broadcast::Interrupted);
        continuity
    }

    /// The last number that was read of each writer; `None` before the backlog was read.
    pub(super) fn numbers(&self) -> Option<BTreeMap<WriterId, u32>> {
        self.state().position.as_ref().map(Position::numbers)
    }

    /// Inserts a page of the backlog.
    pub(super) fn insert_backlog(&self, revocations: Vec<PublishedRevocation>, now: Timestamp) {
        self.insert_read(&mut self.state(), revocations, now);
    }

    /// Starts at a position: the backlog before it is complete.
    pub(super) fn start_at(&self, position: Position) {
        self.state().position = Some(position);
    }

    /// Inserts what was committed since the previous reading.
    ///
    /// # Errors
    ///
    /// If the reading does not continue the previous one: the feed has to start again.
    pub(super) fn advance(&self, reading: FeedReading) -> Result<(), Discontinuity> {
        let mut state = self.state();
        state.position.as_mut().ok_or(Discontinuity::AnotherHistory)?.advance(&reading)?;
        self.insert_read(&mut state, reading.revocations, reading.present.at.min(self.clock.now()));
        // The reading shows everything that was committed before the newest of our beats that it shows.
        let position = state.position.as_ref();
        let is_shown = |beat: &Beat| position.is_some_and(|position| position.shows(beat));
        let shown = state.beats.iter().rev().find(|(beat, _)| is_shown(beat));
        if let Some((_, at)) = shown {
            self.read_at.set(self.read_at.get().max(Some(*at)));
        }
        if reading.extent == Extent::Whole {
            self.readings.send_modify(|readings| *readings += 1);
        }
        Ok(())
    }

    /// Records a committed beat, and when it began.
    pub(super) fn note_beat(&self, beat: Beat, began: Instant) {
        let beats = &mut self.state().beats;
        beats.push_back((beat, began));
        if beats.len() > BEATS_MAX {
            beats.pop_front();
        }
    }

    /// Inserts what was read, except revocations whose tokens have all expired. `now` is the earlier of the two clocks' times.
    fn insert_read(&self, state: &mut FeedState, mut revocations: Vec<PublishedRevocation>, now: Timestamp) {
        revocations.retain(|revocation| now < revocation.access_expires_at + LEEWAY);
        self.insert(state, revocations, now);
    }

    fn insert(&self, state: &mut FeedState, revocations: Vec<PublishedRevocation>, now: Timestamp) {
        if revocations.is_empty() {
            return;
        }
        let elapsed = self.clock.elapsed();
        for revocation in revocations {
            let until = elapsed + retention(&revocation, now);
            let place = backlog::place_of(&revocation);
            // Already known, because this replica revoked it: the longer retention wins. A second makes no difference.
            let known = state.backlog.until(place).map(|known| Duration::from_secs(known.into()));
            if known.is_some_and(|known| until <= known + Duration::from_secs(1)) {
                continue;
            }
            self.revoked.insert(&revocation.project, &revocation.ended, until);
            state.backlog.insert(&revocation, ceil_seconds(until));
            // Without a position there are no subscriptions.
            if state.position.is_some() {
                let revocation = Arc::new(PublishedRevocation { place, ..revocation });
                state.pending.push(Retained { revocation, until });
            }
        }
        self.to_publish.notify_one();
    }

    /// Broadcasts what waits to be published.
    pub(super) fn publish_pending(&self) {
        // Under the lock, so that a new subscription finds each revocation in the backlog or in its receiver.
        let mut state = self.state();
        let pending = std::mem::take(&mut state.pending);
        if pending.is_empty() {
            return;
        }
        let now = self.clock.now();
        pending.iter().for_each(|retained| self.metrics.feed_lag(now.since(retained.revocation.at)));
        // After an outage there may be many, and a message has to stay small.
        for batch in pending.chunks(PAGE) {
            let _ = self.broadcasts.send(Broadcast::Revocations(batch.into()));
        }
    }

    /// Broadcasts that the feed is alive, how far it has got, and as of when it is complete.
    pub(super) fn heartbeat(&self) {
        let state = self.state();
        let (Some(position), Some(read_at)) = (&state.position, self.read_at.get()) else { return };
        let cursor = state.cursor(position, self.clock.now());
        // What is pending may be up to the cursor.
        if state.pending.is_empty() {
            let _ = self.broadcasts.send(Broadcast::Reached(cursor));
        }
        let _ = self.broadcasts.send(Broadcast::Heartbeat(read_at));
    }

    /// The moment as of which the feed is complete; `None` before the first complete reading.
    pub(super) fn read_at(&self) -> Option<Instant> {
        self.read_at.get()
    }

    /// How long ago the feed was complete; `None` before the first complete reading.
    pub(super) fn age(&self) -> Option<Duration> {
        self.read_at().map(|at| at.elapsed())
    }

    /// Forgets the revocations whose tokens have all expired, a few at a time.
    pub(super) fn forget_expired(&self) {
        let now = self.clock.elapsed();
        self.revoked.forget(now);
        let (now, mut from) = (u32::try_from(now.as_secs()).unwrap_or(u32::MAX), None);
        loop {
            let next = self.state().backlog.forget_some(from, now);
            if next.is_none() {
                return;
            }
            from = next;
        }
    }

    /// How many revocations are known.
    pub(super) fn len(&self) -> usize {
        self.state().backlog.len()
    }

    /// How many revocations of a project are known.
    pub(super) fn len_of(&self, project: &ProjectId) -> usize {
        self.state().backlog.len_of(project)
    }

    pub(super) fn set_staleness_max(&self, staleness_max: Duration) {
        self.staleness_max.store(millis(staleness_max), Ordering::Relaxed);
    }

    pub(super) fn staleness_max(&self) -> Duration {
        Duration::from_millis(self.staleness_max.load(Ordering::Relaxed))
    }

    pub(super) const fn slots(&self) -> &SubscriberSlots {
        &self.slots
    }

    /// Subscribes: receives every broadcast from now on, from the cursor if it is usable. `None` before the first complete
    /// reading, and after [`Broadcaster::close`].
    pub(super) fn receive(&self, cursor: Option<Cursor>) -> Option<Receiver> {
        let state = self.state();
        let (position, read_at) = (state.position.as_ref().filter(|_| !state.is_closed)?, self.read_at.get()?);
        let now = self.clock.now();
        let snapshot = match &cursor {
            None => Some(SnapshotReason::NoCursor),
            Some(cursor) if cursor.origin != position.origin() => Some(SnapshotReason::CursorOfAnotherDatabase),
            Some(cursor) if cursor.is_too_old(now) => Some(SnapshotReason::CursorTooOld),
            Some(cursor) if position.is_behind(&cursor.numbers) => {
                // From another replica that has read a little more, or from commits that the database has lost since.
                // Anyone may make one up.
                if cursor.at + LEAD_MAX < now
                    && let Some(suppressed) = CURSOR_LOG.admit()
                {
                    tracing::warn!(
                        suppressed,
                        "a subscriber's cursor is ahead of the database, so it gets a snapshot: were data files restored \
                         without `sessiond restored`? (logged every 10 s at most)"
                    );
                }
                Some(SnapshotReason::CursorOfAnotherDatabase)
            }
            Some(_) => None,
        };
        let resumed = cursor.filter(|_| snapshot.is_none());
        let reached = state.cursor(position, now);
        let broadcasts = self.broadcasts.subscribe();
        Some(Receiver { broadcasts, snapshot, resumed, reached, read_at, history: state.histories })
    }

    /// The next page of the backlog of a project, in order, after a key, without what the resumed cursor covers; and where to
    /// continue, if there may be more. `None` if its history was abandoned meanwhile.
    pub(super) fn page(
        &self,
        project: &ProjectId,
        history: u64,
        resumed: Option<&Cursor>,
        after: Option<EntryKey>,
    ) -> Option<(Vec<Retained>, Option<EntryKey>)> {
        let state = self.state();
        if state.histories != history || state.is_closed {
            return None;
        }
        let sent = |writer| resumed.map_or(0, |cursor| cursor.number(writer));
        let (page, next) = state.backlog.page(project, after, sent, PAGE);
        let retained = |(revocation, until): (PublishedRevocation, u32)| Retained {
            revocation: Arc::new(revocation),
            until: Duration::from_secs(until.into()),
        };
        Some((page.into_iter().map(retained).collect(), next))
    }

    /// Ends every subscription, and admits no more.
    pub(super) fn close(&self) {
        self.state().is_closed = true;
        let _ = self.broadcasts.send(Broadcast::Interrupted);
    }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}

/// How long to retain a revocation, from now on: at most the longest lifetime of a token, whatever the clocks say, and at least
/// the default one, in case the replica that revoked and the database share a wrong clock.
fn retention(revocation: &PublishedRevocation, now: Timestamp) -> Duration {
    revocation.access_expires_at.since(now).clamp(RETENTION_MIN, ACCESS_TOKEN_TTL_MAX) + LEEWAY
}

/// How long a token lives unless a project says otherwise.
const RETENTION_MIN: Duration = Duration::from_secs(10 * 60);

/// A subscription's end of the broadcast, and where its backlog begins.
pub(super) struct Receiver {
    pub(super) broadcasts: broadcast::Receiver<Broadcast>,
    /// Why a snapshot comes first; `None` if the cursor is usable.
    pub(super) snapshot: Option<SnapshotReason>,
    /// The cursor, if it is usable.
    pub(super) resumed: Option<Cursor>,
    /// Everything up to this cursor is known.
    pub(super) reached: Cursor,
    /// As of when the known revocations are complete.
    pub(super) read_at: Instant,
    /// The history that it belongs to.
    pub(super) history: u64,
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::store::FeedPlace;
    use sessiond_core::clock;
    use sessiond_core::id::Bucket;
    use sessiond_core::id::UserId;
    use sessiond_core::session::RevokeReason;

    const NAME: &str = "feed::broadcaster::tests::a_revocation_takes_150_bytes_at_most";
    const MEASURE: &str = "SESSIOND_TEST_MEASURE";

    /// This process's resident memory, in bytes.
    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
    }

    /// Ten thousand revocations a second for a quarter of an hour must fit in 1.5 GB. `FEED_ENTRIES=1000000` measures more of them.
    #[test]
    fn a_revocation_takes_150_bytes_at_most() {
        if let Ok(users) = std::env::var(MEASURE) {
            return measure(&users);
        }
        for users in ["uuid", "text"] {
            // In a process of its own, because other tests use memory too.
            let mut own = Command::new(std::env::current_exe().expect("a path"));
            own.args(["--exact", NAME, "--nocapture"]).env(MEASURE, users);
            let output = own.output().expect("runs");
            let output = String::from_utf8_lossy(&output.stdout);
            let bytes =
                output.lines().find_map(|line| line.strip_prefix("bytes: ")).unwrap_or_else(|| panic!("{output}"));
            println!("{users}: {bytes} bytes each");
            assert!(bytes.parse::<usize>().expect("a number") <= 150, "{users}: {bytes}");
        }
    }

    fn measure(users: &str) {
        let count = std::env::var("FEED_ENTRIES").ok().and_then(|text| text.parse().ok()).unwrap_or(200_000_u64);
        let (broadcaster, now) = (Broadcaster::new(Clock::system(), Metrics::default()), Clock::system().now());
        let project = ProjectId::parse("shop").expect("a name");
        let revocation = |at: u64| PublishedRevocation {
            place: FeedPlace {
                writer: WriterId::from_number(at % 64 + 1),
                seq: u32::try_from(at / 64 + 1).expect("few"),
                id: clock::new_uuid(),
            },
            project: project.clone(),
            ended: RevocationTarget::Session {
                id: clock::new_session_id(now, Bucket::from_number(1)),
                is_impersonation: false,
            },
            user: UserId::parse(&match users {
                "uuid" => clock::new_uuid().to_string(),
                _ => format!("somebody-{at}@example.org"),
            }),
            at: now,
            reason: RevokeReason::SignedOut,
            access_expires_at: now + Duration::from_secs(600),
        };
        let insert = |page: u64| {
            broadcaster.insert_backlog((0..1_000).map(|at| revocation(page * 1_000 + at)).collect(), now);
        };
        // The first page also brings code into memory, which does not grow with the entries.
        insert(0);
        broadcaster.forget_expired();
        let before = resident();
        (1..count / 1_000).for_each(insert);
        broadcaster.forget_expired();
        assert_eq!(u64::try_from(broadcaster.len()), Ok(count));
        println!("\nbytes: {}", (resident() - before) / usize::try_from(count - 1_000).expect("small"));
    }
}
