//! What is known of what has ended, and who is told of it.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::broadcast;
use tokio::time::Instant;
use uuid::Uuid;

use super::LEEWAY;
use super::SUBSCRIBERS_MAX;
use super::cursor::Cursor;
use crate::clock::Clock;
use crate::clock::Timestamp;
use crate::id::ProjectId;
use crate::id::UserId;
use crate::session::policy::ACCESS_TOKEN_TTL_MAX;
use crate::session::revoked::RevokedSet;
use crate::store::FeedOrigin;
use crate::store::News;
use crate::store::Place;
use crate::store::Reading;
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
    /// The cursor is of another database, or of another history of this one.
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
    /// The stream is alive, and its news at most so old.
    Heartbeat(Duration),
    /// The database tells another history now, or this replica stops: begin anew.
    Interrupted,
}

/// See the module.
pub(super) struct Hub {
    clock: Clock,
    metrics: Metrics,
    revoked: RevokedSet,
    state: Mutex<State>,
    updates: broadcast::Sender<Update>,
    /// Rung when this replica has ended something, for the other replicas to hear of.
    pub(super) bell: Notify,
    /// Rung when something waits to be told.
    pub(super) pending: Notify,
}

#[derive(Default)]
struct State {
    /// What still matters, in the order in which a resumed stream wants it.
    entries: BTreeMap<Place, Entry>,
    /// What was ended and not yet told.
    pending: Vec<Entry>,
    /// How far the database was read.
    position: Option<Position>,
    beats: Beats,
    seats: Seats,
    is_closed: bool,
}

#[derive(Clone, Copy)]
struct Position {
    origin: FeedOrigin,
    xmin: u64,
    /// When the last reading began that also showed that this replica reads what it writes; `None` before the first one.
    read_at: Option<Instant>,
}

impl Position {
    /// With how old the news may be; `None` before the first complete reading.
    fn aged(self) -> Option<(Self, Duration)> {
        self.read_at.map(|read_at| (self, read_at.elapsed()))
    }
}

/// This replica's signs of life.
#[derive(Default)]
struct Beats {
    /// The last one that was committed, and when it was about to be.
    last: Option<(i64, Instant)>,
}

/// A beat older than this proves nothing any more of a reading that begins now.
const BEAT_AGE_MAX: Duration = Duration::from_secs(2);

/// A reading was of another history than the one before.
pub(super) struct AnotherHistory;

impl Hub {
    pub(super) fn new(clock: Clock, metrics: Metrics) -> Self {
        Self {
            clock,
            metrics,
            revoked: RevokedSet::default(),
            state: Mutex::default(),
            updates: broadcast::Sender::new(UPDATES_MAX),
            bell: Notify::new(),
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
        self.state.lock().expect("no one panics while holding it")
    }

    /// Takes in what this replica has ended itself.
    pub(super) fn tell(&self, news: Vec<News>) {
        news.iter().for_each(|news| self.metrics.revocation(news.reason.as_str()));
        self.take_in(&mut self.state(), news, self.clock.now());
        self.bell.notify_one();
    }

    /// Forgets a history that goes on no longer, and sends everyone away who listens to it.
    pub(super) fn forget_history(&self) {
        let mut state = self.state();
        if state.position.take().is_some() {
            // What was told of it may not be so in another; what has ended there stays ended here.
            state.entries.clear();
            let _ = self.updates.send(Update::Interrupted);
        }
    }

    /// Takes in some of what had ended before a history is begun.
    pub(super) fn take_in_past(&self, news: Vec<News>, now: Timestamp) {
        self.take_in(&mut self.state(), news, now);
    }

    /// Begins a history, all of whose past is here.
    pub(super) fn begin(&self, position: &Reading) {
        let mut state = self.state();
        // Nobody listens yet.
        state.pending.clear();
        state.position = Some(Position { origin: position.origin, xmin: position.snapshot.xmin, read_at: None });
    }

    /// Takes in what has come since the reading before.
    ///
    /// # Errors
    ///
    /// When it is no continuation of that one: the feed is to begin anew.
    pub(super) fn go_on(&self, reading: Reading, began: Instant) -> Result<(), AnotherHistory> {
        let mut state = self.state();
        let continues =
            |position: &Position| position.origin == reading.origin && position.xmin <= reading.snapshot.xmin;
        let Some(position) = state.position.filter(continues) else { return Err(AnotherHistory) };
        self.take_in(&mut state, reading.news, reading.at.min(self.clock.now()));
        let proved = state.beats.last.is_some_and(|(beat, at)| {
            reading.beat.is_some_and(|shown| shown >= beat) && began.saturating_duration_since(at) <= BEAT_AGE_MAX
        });
        let read_at = if proved { Some(began) } else { position.read_at };
        state.position = Some(Position { xmin: reading.snapshot.xmin, read_at, ..position });
        Ok(())
    }

    /// Notes a sign of life that was committed, and when that began.
    pub(super) fn beaten(&self, beat: i64, began: Instant) {
        self.state().beats.last = Some((beat, began));
    }

    /// Takes in what has ended, at a moment by whichever clock is behind.
    fn take_in(&self, state: &mut State, news: Vec<News>, now: Timestamp) {
        if news.is_empty() {
            return;
        }
        let elapsed = self.clock.elapsed();
        for news in news {
            if state.entries.contains_key(&news.place) {
                continue;
            }
            let until = elapsed + retention(&news, now);
            self.revoked.insert(&news.project, &news.ended, until);
            let (place, entry) = (news.place, Entry { news: Arc::new(news), until });
            state.entries.insert(place, entry.clone());
            state.pending.push(entry);
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
        let Some((position, age)) = state.position.and_then(Position::aged) else { return };
        let cursor = Cursor { origin: position.origin, xmin: position.xmin, at: self.clock.now() };
        // What waits to be told is before the cursor, or may be.
        if state.pending.is_empty() {
            let _ = self.updates.send(Update::Moved(cursor));
        }
        let _ = self.updates.send(Update::Heartbeat(age));
    }

    /// How old the news may be; `None` before the first complete reading.
    pub(super) fn age(&self) -> Option<Duration> {
        self.state().position.and_then(Position::aged).map(|(_, age)| age)
    }

    /// Forgets what no token outlives, a page at a time.
    pub(super) fn forget(&self) {
        let now = self.clock.elapsed();
        self.revoked.forget(now);
        let mut after = None;
        loop {
            let mut state = self.state();
            let page: Vec<(Place, bool)> =
                state.entries.range(behind(after)).take(PAGE).map(|(at, entry)| (*at, entry.until <= now)).collect();
            let Some((last, _)) = page.last() else { return };
            after = Some(*last);
            page.iter().filter(|(_, is_past)| *is_past).for_each(|(at, _)| drop(state.entries.remove(at)));
        }
    }

    /// How many entries there are.
    pub(super) fn len(&self) -> usize {
        self.state().entries.len()
    }

    pub(super) fn set_subscribers_max(&self, subscribers_max: usize) {
        self.state().seats.max = subscribers_max;
    }

    /// How many are listening.
    pub(super) fn subscribers(&self) -> usize {
        self.state().seats.taken
    }

    /// Lets one more listen; `None` when there are as many as there may be.
    pub(super) fn admit(self: &Arc<Self>, party: Party) -> Option<Seat> {
        let seats = &mut self.state().seats;
        let (own_max, all_max) = match party {
            Party::Services(_) => (SERVICES_MAX, seats.max),
            // However many tabs are open, there is room for those who guard the services.
            Party::User(..) => (TABS_MAX, seats.max - seats.max / 4),
        };
        let own = seats.of.get(&party).copied().unwrap_or(0);
        if own >= own_max || seats.taken >= all_max {
            return None;
        }
        seats.of.insert(party.clone(), own + 1);
        seats.taken += 1;
        Some(Seat { hub: Arc::clone(self), party })
    }

    fn leave(&self, party: &Party) {
        let seats = &mut self.state().seats;
        seats.taken -= 1;
        if let Some(own) = seats.of.get_mut(party) {
            *own -= 1;
            if *own == 0 {
                seats.of.remove(party);
            }
        }
    }

    /// Begins to listen: everything that comes from now on, and what the cursor is worth. `None` before the first reading,
    /// and after the last.
    pub(super) fn listen(&self, cursor: Option<Cursor>) -> Option<Listening> {
        let state = self.state();
        let (position, age) = state.position.filter(|_| !state.is_closed).and_then(Position::aged)?;
        let now = self.clock.now();
        let (why, from) = match cursor {
            None => (Some(Why::NoCursor), 0),
            Some(cursor) if cursor.origin != position.origin => (Some(Why::CursorOfAnotherDatabase), 0),
            Some(cursor) if cursor.is_too_old(now) => (Some(Why::CursorTooOld), 0),
            // A replica that is behind the one that the cursor is from tells the rest as it reads it.
            Some(cursor) => (None, cursor.xmin),
        };
        let reached = Cursor { origin: position.origin, xmin: position.xmin, at: now };
        Some(Listening { updates: self.updates.subscribe(), why, from, reached, age })
    }

    /// The next page of what matters, in order, beginning with the transaction or behind a place.
    pub(super) fn page(&self, from: u64, after: Option<Place>) -> Vec<Entry> {
        let start = match after {
            Some(after) => Bound::Excluded(after),
            None => Bound::Included(Place { xid: from, id: Uuid::nil() }),
        };
        self.state().entries.range((start, Bound::Unbounded)).take(PAGE).map(|(_, entry)| entry.clone()).collect()
    }

    /// Ends every subscription, and lets nobody in any more.
    pub(super) fn close(&self) {
        self.state().is_closed = true;
        let _ = self.updates.send(Update::Interrupted);
    }
}

fn behind(after: Option<Place>) -> (Bound<Place>, Bound<Place>) {
    (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded)
}

/// How long to remember what was ended, from now on: never longer than any token lives, whatever the clocks say.
fn retention(news: &News, now: Timestamp) -> Duration {
    news.access_expires_at.since(now).min(ACCESS_TOKEN_TTL_MAX) + LEEWAY
}

/// What it takes to follow.
pub(super) struct Listening {
    pub(super) updates: broadcast::Receiver<Update>,
    /// Why a snapshot comes first; `None` for a cursor that leads on.
    pub(super) why: Option<Why>,
    /// The first transaction to tell of.
    pub(super) from: u64,
    /// How far everything goes that is there now.
    pub(super) reached: Cursor,
    /// How old the news may be.
    pub(super) age: Duration,
}

/// The places for those who listen.
struct Seats {
    max: usize,
    taken: usize,
    of: HashMap<Party, usize>,
}

impl Default for Seats {
    fn default() -> Self {
        Self { max: SUBSCRIBERS_MAX, taken: 0, of: HashMap::new() }
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
