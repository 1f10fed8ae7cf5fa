//! What is known of what has ended, and who is told of it.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::hash::Hash;
use std::ops::Bound;
use std::sync::Arc;
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
use uuid::Uuid;

use super::LEEWAY;
use super::STALENESS_MAX;
use super::SUBSCRIBERS_MAX;
use super::cursor::Cursor;
use super::ledger;
use super::ledger::Ledger;
use super::position::Beat;
use super::position::Break;
use super::position::Position;
use crate::clock::Clock;
use crate::clock::Timestamp;
use crate::id::ProjectId;
use crate::id::SessionId;
use crate::id::UserId;
use crate::session::policy::ACCESS_TOKEN_TTL_MAX;
use crate::session::revoked::Ended;
use crate::session::revoked::RevokedSet;
use crate::session::revoked::seconds_up;
use crate::store::Newest;
use crate::store::News;
use crate::store::Place;
use crate::store::Reading;
use crate::store::Unseen;
use crate::telemetry::Metrics;

/// The most updates that wait for a subscriber; one that is further behind is cut off. Updates are batches, so that this is
/// some seconds' worth at any rate of sign-outs.
const UPDATES_MAX: usize = 1_024;

/// The most entries that are handed out or forgotten in one go: a fraction of a millisecond's work under the lock.
pub(super) const PAGE: usize = 1_000;

/// Why a snapshot comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// No cursor was given.
    NoCursor,
    /// The cursor is older than any access token.
    CursorTooOld,
    /// The cursor is of another database, of another history of this one, or of another project.
    CursorOfAnotherDatabase,
}

/// What has ended, and for how long to remember it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) news: Arc<News>,
    /// On the clock that only goes forward.
    until: Duration,
}

impl Entry {
    /// For how long from now on.
    pub(super) const fn remaining(&self, now: Duration) -> Duration {
        self.until.saturating_sub(now)
    }
}

/// What every subscriber is told.
#[derive(Clone, Debug)]
pub(super) enum Update {
    /// This has ended.
    Ended(Arc<[Entry]>),
    /// All is told up to here.
    Moved(Cursor),
    /// The stream is alive, and its news is of then or later.
    Heartbeat(Instant),
    /// The database tells another history now, or this replica stops: begin anew.
    Interrupted,
}

/// See the module.
pub(super) struct Hub {
    clock: Clock,
    metrics: Metrics,
    revoked: RevokedSet,
    state: Mutex<State>,
    read_at: ReadAt,
    /// In milliseconds.
    staleness_max: AtomicU64,
    updates: broadcast::Sender<Update>,
    /// Rung when this replica has ended something, for the other replicas to hear of.
    pub(super) bell: Notify,
    /// Rung when there may be something to read.
    pub(super) rung: Notify,
    /// Rung when something waits to be told.
    pub(super) pending: Notify,
    /// How many readings were taken in.
    readings: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    /// What still matters, in the order in which a resumed stream wants it.
    entries: Ledger,
    /// What was ended and not yet told.
    pending: Vec<Entry>,
    /// How far the database was read.
    position: Option<Position>,
    /// How many histories there were before.
    histories: u64,
    /// This replica's last signs of life that were committed, and when each was about to be.
    beats: VecDeque<(Beat, Instant)>,
    seats: Seats,
    is_closed: bool,
}

/// As of when everything is known; of no moment before the first complete reading. Asked with every token, so without a lock.
struct ReadAt {
    start: Instant,
    /// Microseconds since then, and one more; 0 for no moment.
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

/// How far one replica may be ahead of another, with clocks that differ, before its cursors look like those of a lost future.
const LEAD_MAX: Duration = Duration::from_secs(30);

/// How long [`Hub::catch_up`] waits.
const CATCH_UP_MAX: Duration = Duration::from_secs(1);

/// So many signs of life are remembered: half a minute's.
const BEATS_MAX: usize = 64;

/// What the database turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It continues what was read, or nothing was read before.
    Continued,
    /// See [`Break::AnotherHistory`].
    AnotherHistory,
    /// See [`Break::WentBack`].
    WentBack,
}

impl Hub {
    pub(super) fn new(clock: Clock, metrics: Metrics) -> Self {
        Self {
            clock,
            metrics,
            revoked: RevokedSet::default(),
            state: Mutex::default(),
            read_at: ReadAt { start: Instant::now(), micros: AtomicU64::new(0) },
            staleness_max: AtomicU64::new(millis(STALENESS_MAX)),
            updates: broadcast::Sender::new(UPDATES_MAX),
            bell: Notify::new(),
            rung: Notify::new(),
            readings: watch::Sender::new(0),
            pending: Notify::new(),
        }
    }

    pub(super) const fn revoked(&self) -> &RevokedSet {
        &self.revoked
    }

    pub(super) const fn clock(&self) -> &Clock {
        &self.clock
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The task that panicked is started again, and reads everything that matters once more.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what this replica has ended itself.
    pub(super) fn tell(&self, news: Vec<News>) {
        news.iter().for_each(|news| self.metrics.revocation(news.reason.as_str()));
        self.take_in(&mut self.state(), news, self.clock.now());
        self.bell.notify_one();
    }

    /// See [`super::Feed::note_ended`].
    pub(super) fn note_ended(&self, project: &ProjectId, id: SessionId) {
        let until = self.clock.elapsed() + ACCESS_TOKEN_TTL_MAX + LEEWAY;
        // Not published from here: where it stands in the feed is not known, and the reading tells of it.
        self.revoked.insert(project, &Ended::Session { id, is_impersonation: false }, until);
    }

    /// See [`super::Feed::catch_up`].
    pub(super) async fn catch_up(&self) {
        let mut readings = self.readings.subscribe();
        // One may be under way, and have begun before this call.
        let enough = readings.borrow_and_update().wrapping_add(2);
        let caught_up = async {
            while *readings.borrow_and_update() < enough {
                self.rung.notify_one();
                if readings.changed().await.is_err() {
                    return;
                }
            }
        };
        // Without an answer, the age of the feed says that it is old.
        let _ = timeout(CATCH_UP_MAX, caught_up).await;
    }

    /// Notes where the database stands, before its past is read. Where that does not continue what was read before, all of
    /// that is forgotten, and everyone sent away who listens to it.
    pub(super) fn found(&self, present: &Reading) -> Found {
        let mut state = self.state();
        let Some(known) = &state.position else { return Found::Continued };
        let found = match known.after(present) {
            Ok(_) => return Found::Continued,
            Err(Break::AnotherHistory) => Found::AnotherHistory,
            Err(Break::WentBack) => Found::WentBack,
        };
        let timeline = known.origin().timeline;
        tracing::warn!(timeline, "the database has changed hands: the feed begins anew");
        (state.position, state.histories) = (None, state.histories + 1);
        state.entries.clear();
        state.pending.clear();
        state.beats.clear();
        // What ended in a history that was given up may not have, in this one. Until all of this one is read, nobody goes
        // by what is known here.
        self.read_at.set(None);
        self.revoked.clear();
        let _ = self.updates.send(Update::Interrupted);
        found
    }

    /// What the next reading has to look for; `None` before the past was read.
    pub(super) fn unseen(&self) -> Option<Unseen> {
        self.state().position.as_ref().map(Position::unseen)
    }

    /// The newest row that was read.
    pub(super) fn newest(&self) -> Option<Newest> {
        self.state().position.as_ref().and_then(Position::newest)
    }

    /// Takes in some of what had ended before a reading.
    pub(super) fn take_in_past(&self, news: Vec<News>, now: Timestamp) {
        self.take_in_read(&mut self.state(), news, now);
    }

    /// Goes on from where the database stood: all that was before is here.
    pub(super) fn begin(&self, position: Position) {
        self.state().position = Some(position);
    }

    /// Takes in what has come since the reading before.
    ///
    /// # Errors
    ///
    /// When it is no continuation of that one: the feed is to begin anew.
    pub(super) fn go_on(&self, reading: Reading) -> Result<(), Break> {
        let mut state = self.state();
        let position = state.position.as_ref().ok_or(Break::AnotherHistory)?.after(&reading)?;
        self.take_in_read(&mut state, reading.news, reading.at.min(self.clock.now()));
        // Whatever else it shows, it shows all that was there before the newest beat of ours that it shows.
        let shown = state.beats.iter().rev().find(|(beat, _)| position.shows(beat));
        if let Some((_, at)) = shown {
            self.read_at.set(self.read_at.get().max(Some(*at)));
        }
        state.position = Some(position);
        self.readings.send_modify(|readings| *readings += 1);
        Ok(())
    }

    /// Notes a sign of life that was committed, and when that began.
    pub(super) fn beaten(&self, beat: Beat, began: Instant) {
        let beats = &mut self.state().beats;
        beats.push_back((beat, began));
        if beats.len() > BEATS_MAX {
            beats.pop_front();
        }
    }

    /// Takes in what a reading has shown, at a moment by whichever clock is behind. What no token outlives is passed over.
    fn take_in_read(&self, state: &mut State, mut news: Vec<News>, now: Timestamp) {
        news.retain(|news| now < news.access_expires_at + LEEWAY);
        self.take_in(state, news, now);
    }

    fn take_in(&self, state: &mut State, news: Vec<News>, now: Timestamp) {
        if news.is_empty() {
            return;
        }
        let elapsed = self.clock.elapsed();
        for news in news {
            let until = elapsed + retention(&news, now);
            let place = ledger::place_of(&news);
            // Known already, from the one who ended it: what counts is the longer term. A second makes no difference.
            let known = state.entries.until(place).map(|known| Duration::from_secs(known.into()));
            if known.is_some_and(|known| until <= known + Duration::from_secs(1)) {
                continue;
            }
            self.revoked.insert(&news.project, &news.ended, until);
            state.entries.insert(&news, seconds_up(until));
            // Before there is a position, nobody listens.
            if state.position.is_some() {
                state.pending.push(Entry { news: Arc::new(News { place, ..news }), until });
            }
        }
        self.pending.notify_one();
    }

    /// Tells subscribers what waits to be told.
    pub(super) fn flush(&self) {
        // Under the lock, so that whoever begins to listen finds each entry in one place or the other.
        let mut state = self.state();
        let pending = std::mem::take(&mut state.pending);
        if pending.is_empty() {
            return;
        }
        let now = self.clock.now();
        pending.iter().for_each(|entry| self.metrics.feed_lag(now.since(entry.news.at)));
        // After an outage there may be much at once, and a message has to stay small.
        for some in pending.chunks(PAGE) {
            let _ = self.updates.send(Update::Ended(some.into()));
        }
    }

    /// Tells subscribers that the stream is alive, how far it has got, and how old its news may be.
    pub(super) fn heartbeat(&self) {
        let state = self.state();
        let (Some(position), Some(read_at)) = (&state.position, self.read_at.get()) else { return };
        let cursor = Cursor { origin: position.origin(), xmin: position.settled(), at: self.clock.now() };
        // What waits to be told is before the cursor, or may be.
        if state.pending.is_empty() {
            let _ = self.updates.send(Update::Moved(cursor));
        }
        let _ = self.updates.send(Update::Heartbeat(read_at));
    }

    /// As of when everything is known; `None` before the first complete reading.
    pub(super) fn read_at(&self) -> Option<Instant> {
        self.read_at.get()
    }

    /// How old the news may be; `None` before the first complete reading.
    pub(super) fn age(&self) -> Option<Duration> {
        self.read_at().map(|at| at.elapsed())
    }

    /// Forgets what no token outlives, a little at a time.
    pub(super) fn forget(&self) {
        let now = self.clock.elapsed();
        self.revoked.forget(now);
        let (now, mut from) = (u32::try_from(now.as_secs()).unwrap_or(u32::MAX), None);
        loop {
            let next = self.state().entries.forget_some(from, now);
            if next.is_none() {
                return;
            }
            from = next;
        }
    }

    /// How many entries there are.
    pub(super) fn len(&self) -> usize {
        self.state().entries.len()
    }

    pub(super) fn set_subscribers_max(&self, subscribers_max: usize) {
        self.state().seats.max = subscribers_max;
    }

    pub(super) fn set_staleness_max(&self, staleness_max: Duration) {
        self.staleness_max.store(millis(staleness_max), Ordering::Relaxed);
    }

    pub(super) fn staleness_max(&self) -> Duration {
        Duration::from_millis(self.staleness_max.load(Ordering::Relaxed))
    }

    /// How many are listening.
    pub(super) fn subscribers(&self) -> usize {
        self.state().seats.taken
    }

    /// Lets one more listen; `None` when there are as many as there may be.
    pub(super) fn admit(self: &Arc<Self>, party: Party) -> Option<Seat> {
        let seats = &mut self.state().seats;
        let of_users = seats.of_users.get(party.project()).copied().unwrap_or(0);
        let (own_max, all_max) = match &party {
            Party::Services(_) => (SERVICES_MAX, seats.max),
            // However many tabs one project's users have open, there is room for another's.
            Party::User(..) if of_users >= seats.max.div_ceil(2) => return None,
            // However many all have, there is room for those who guard the services.
            Party::User(..) => (TABS_MAX, seats.max - seats.max / 4),
        };
        let own = seats.of.get(&party).copied().unwrap_or(0);
        if own >= own_max || seats.taken >= all_max {
            return None;
        }
        seats.of.insert(party.clone(), own + 1);
        if let Party::User(project, _) = &party {
            *seats.of_users.entry(project.clone()).or_default() += 1;
        }
        seats.taken += 1;
        Some(Seat { hub: Arc::clone(self), party })
    }

    fn leave(&self, party: &Party) {
        let seats = &mut self.state().seats;
        seats.taken -= 1;
        leave(&mut seats.of, party);
        if let Party::User(project, _) = party {
            leave(&mut seats.of_users, project);
        }
    }

    /// Begins to listen: everything that comes from now on, and what the cursor is worth. `None` before the first reading,
    /// and after the last.
    pub(super) fn listen(&self, cursor: Option<Cursor>) -> Option<Listening> {
        let state = self.state();
        let (position, read_at) = (state.position.as_ref().filter(|_| !state.is_closed)?, self.read_at.get()?);
        let now = self.clock.now();
        let (why, from) = match cursor {
            None => (Some(Why::NoCursor), 0),
            Some(cursor) if cursor.origin != position.origin() => (Some(Why::CursorOfAnotherDatabase), 0),
            Some(cursor) if cursor.is_too_old(now) => (Some(Why::CursorTooOld), 0),
            Some(cursor) if position.is_behind(cursor.xmin) => {
                // Of another replica, which has read a little more; or of a future that was lost.
                if cursor.at + LEAD_MAX < now {
                    tracing::warn!(
                        "a subscriber's cursor is ahead of the database, and gets a snapshot: were data files put back \
                         without `sessiond restored`?"
                    );
                }
                (Some(Why::CursorOfAnotherDatabase), 0)
            }
            Some(cursor) => (None, cursor.xmin),
        };
        let reached = Cursor { origin: position.origin(), xmin: position.settled(), at: now };
        let updates = self.updates.subscribe();
        Some(Listening { updates, why, from, reached, read_at, history: state.histories })
    }

    /// The next page of what matters, in order, beginning with the transaction or behind a place; `None` when the history
    /// has ended meanwhile.
    pub(super) fn page(&self, history: u64, from: u64, after: Option<Place>) -> Option<Vec<Entry>> {
        let start = match after {
            Some(after) => Bound::Excluded(after),
            None => Bound::Included(Place { xid: from, id: Uuid::nil() }),
        };
        let state = self.state();
        if state.histories != history || state.is_closed {
            return None;
        }
        let page = state.entries.page(start, PAGE).into_iter();
        let entry =
            |(news, until): (News, u32)| Entry { news: Arc::new(news), until: Duration::from_secs(until.into()) };
        Some(page.map(entry).collect())
    }

    /// Ends every subscription, and lets nobody in any more.
    pub(super) fn close(&self) {
        self.state().is_closed = true;
        let _ = self.updates.send(Update::Interrupted);
    }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}

fn leave<K: Eq + Hash>(seats: &mut HashMap<K, usize>, key: &K) {
    if let Some(taken) = seats.get_mut(key) {
        *taken -= 1;
        if *taken == 0 {
            seats.remove(key);
        }
    }
}

/// How long to remember what was ended, from now on: never longer than any token lives, whatever the clocks say, and never
/// shorter than most do, where the one who ended it and the database go by the same wrong one.
fn retention(news: &News, now: Timestamp) -> Duration {
    news.access_expires_at.since(now).clamp(RETENTION_MIN, ACCESS_TOKEN_TTL_MAX) + LEEWAY
}

/// How long a token lives unless a project says otherwise.
const RETENTION_MIN: Duration = Duration::from_secs(10 * 60);

/// What it takes to follow.
pub(super) struct Listening {
    pub(super) updates: broadcast::Receiver<Update>,
    /// Why a snapshot comes first; `None` for a cursor that leads on.
    pub(super) why: Option<Why>,
    /// The first transaction to tell of.
    pub(super) from: u64,
    /// How far everything goes that is there now.
    pub(super) reached: Cursor,
    /// As of when everything is told that is there now.
    pub(super) read_at: Instant,
    /// Which history it is of.
    pub(super) history: u64,
}

/// The places for those who listen.
struct Seats {
    max: usize,
    taken: usize,
    of: HashMap<Party, usize>,
    /// Those of each project's users.
    of_users: HashMap<ProjectId, usize>,
}

impl Default for Seats {
    fn default() -> Self {
        Self { max: SUBSCRIBERS_MAX, taken: 0, of: HashMap::new(), of_users: HashMap::new() }
    }
}

/// Who listens, as far as seats are counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Party {
    /// The services of a project.
    Services(ProjectId),
    /// A user.
    User(ProjectId, UserId),
}

impl Party {
    const fn project(&self) -> &ProjectId {
        match self {
            Self::Services(project) | Self::User(project, _) => project,
        }
    }
}

/// The most streams of one project's services at once, on each replica.
const SERVICES_MAX: usize = 1_024;

/// The most streams of one user at once, on each replica.
const TABS_MAX: usize = 32;

/// The right to listen, as long as it is held.
pub(super) struct Seat {
    hub: Arc<Hub>,
    party: Party,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.hub.leave(&self.party);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::clock;
    use crate::session::RevokeReason;

    const NAME: &str = "feed::hub::tests::a_revocation_takes_150_bytes_at_most";
    const MEASURE: &str = "SESSIOND_TEST_MEASURE";

    /// What the system has given to this process, in bytes.
    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
    }

    /// Ten thousand a second for a quarter of an hour must fit in 1.5 GB. `FEED_ENTRIES=1000000` for more of them.
    #[test]
    fn a_revocation_takes_150_bytes_at_most() {
        if let Ok(users) = std::env::var(MEASURE) {
            return measure(&users);
        }
        for users in ["uuid", "text"] {
            // In a process of its own: other tests take memory too.
            let mut own = Command::new(std::env::current_exe().expect("a path"));
            own.args(["--exact", NAME, "--nocapture"]).env(MEASURE, users);
            let output = own.output().expect("runs");
            let said = String::from_utf8_lossy(&output.stdout);
            let bytes = said.lines().find_map(|line| line.strip_prefix("bytes: ")).unwrap_or_else(|| panic!("{said}"));
            println!("{users}: {bytes} bytes each");
            assert!(bytes.parse::<usize>().expect("a number") <= 150, "{users}: {bytes}");
        }
    }

    fn measure(users: &str) {
        let count = std::env::var("FEED_ENTRIES").ok().and_then(|text| text.parse().ok()).unwrap_or(200_000_u64);
        let (hub, now) = (Hub::new(Clock::system(), Metrics::default()), Clock::system().now());
        let project = ProjectId::parse("shop").expect("a name");
        let news = |at: u64| News {
            place: Place { xid: at, id: clock::new_uuid() },
            project: project.clone(),
            ended: Ended::Session { id: clock::new_session_id(now), is_impersonation: false },
            user: UserId::parse(&match users {
                "uuid" => clock::new_uuid().to_string(),
                _ => format!("somebody-{at}@example.org"),
            }),
            at: now,
            reason: RevokeReason::SignedOut,
            access_expires_at: now + Duration::from_secs(600),
        };
        let before = resident();
        for page in 0..count / 1_000 {
            hub.take_in_past((0..1_000).map(|at| news(page * 1_000 + at)).collect(), now);
        }
        hub.forget();
        assert_eq!(u64::try_from(hub.len()), Ok(count));
        println!("\nbytes: {}", (resident() - before) / usize::try_from(count).expect("small"));
    }
}
