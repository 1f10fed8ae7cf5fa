//! One follower: first what matters already, then what comes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::time::Instant;
use tokio::time::timeout_at;

use super::cursor::Cursor;
use super::cursor::MalformedCursor;
use super::hub::Entry;
use super::hub::Hub;
use super::hub::Listening;
use super::hub::PAGE;
use super::hub::Party;
use super::hub::Seat;
use super::hub::Update;
use super::hub::Why;
use crate::id::KeyId;
use crate::id::ProjectId;
use crate::id::SessionId;
use crate::id::UserId;
use crate::session::Epoch;
use crate::session::revoked::Bearer;
use crate::session::revoked::Ended;
use crate::store::News;
use crate::store::Place;

/// What a subscriber is told of.
#[derive(Clone, Debug)]
pub enum Filter {
    /// A service: all of its project, until its key is revoked.
    Project {
        /// The project.
        project: ProjectId,
        /// The key that it listens with.
        key: KeyId,
    },
    /// A user: their own sessions, until this one has ended or its token runs out. Those in which someone else acts as them
    /// are not theirs to know of. No past is told: users can list their sessions, and verify no tokens.
    User {
        /// The project.
        project: ProjectId,
        /// The user.
        user: UserId,
        /// The session that listens.
        session: SessionId,
        /// The epoch in its token.
        epoch: Epoch,
        /// The key that its token is signed with.
        key: KeyId,
        /// How long its token is good for.
        token_ttl: Duration,
    },
}

/// What is told.
#[derive(Clone, Debug)]
pub enum Event {
    /// A snapshot begins.
    SnapshotBegin(Why),
    /// This has ended, and is to be remembered for so long.
    Revocations(Vec<(Arc<News>, Duration)>),
    /// The snapshot is whole.
    SnapshotComplete,
    /// The stream is alive, and its news at most so old.
    Heartbeat(Duration),
}

/// What is told, and how far everything goes that was told so far, when that has changed.
#[derive(Clone, Debug)]
pub struct Message {
    /// What is told.
    pub event: Event,
    /// Leads on from here.
    pub cursor: Option<String>,
}

/// Why nobody may listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The cursor is none.
    MalformedCursor,
    /// As many are listening as may.
    TooMany,
    /// Nothing is known yet, or the server is about to stop.
    NotReady,
}

impl From<MalformedCursor> for Refused {
    fn from(MalformedCursor: MalformedCursor) -> Self {
        Self::MalformedCursor
    }
}

/// Why there is nothing more to hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The subscriber is too far behind. Nothing was skipped up to the cursor.
    TooSlow {
        /// The last one that was handed out.
        cursor: Option<String>,
    },
    /// The server stops, or the database has changed hands.
    Interrupted,
    /// The session that listened has ended.
    SessionEnded,
    /// The token that it listened with has run out.
    TokenExpired,
    /// The server key was revoked.
    KeyRevoked,
}

/// See the module. Dropped, it makes room for another.
pub struct Subscription {
    hub: Arc<Hub>,
    _seat: Seat,
    filter: Filter,
    listening: Listening,
    /// When the subscriber's token runs out.
    deadline: Option<Instant>,
    stage: Stage,
    /// What was heard while the past was being told, or together with what is told now.
    heard: VecDeque<Update>,
    cursor: Option<String>,
    /// Told that it is over: what is there to be told comes first.
    end: Option<End>,
}

enum Stage {
    Begin,
    Past(Option<Place>),
    Complete,
    CaughtUp,
    Live,
}

impl Subscription {
    pub(super) fn begin(hub: Arc<Hub>, filter: Filter, cursor: Option<Cursor>) -> Result<Self, Refused> {
        let seat = hub.admit(filter.party()).ok_or(Refused::TooMany)?;
        let listening = hub.listen(cursor).ok_or(Refused::NotReady)?;
        let (deadline, stage) = match &filter {
            Filter::Project { .. } if listening.why.is_none() => (None, Stage::Past(None)),
            Filter::Project { .. } => (None, Stage::Begin),
            Filter::User { token_ttl, .. } => (Some(Instant::now() + *token_ttl), Stage::Begin),
        };
        // What was revoked after the caller was let in, and before this began to listen.
        let end = end_of(&hub, &filter);
        let heard = VecDeque::new();
        Ok(Self { hub, _seat: seat, filter, listening, deadline, stage, heard, cursor: None, end })
    }

    /// Waits for the next thing to be told.
    ///
    /// # Errors
    ///
    /// Why there is nothing more.
    pub async fn next(&mut self) -> Result<Message, End> {
        loop {
            match &self.stage {
                Stage::Begin => {
                    self.stage = match self.filter {
                        Filter::Project { .. } => Stage::Past(None),
                        Filter::User { .. } => Stage::Complete,
                    };
                    let why = self.listening.why.unwrap_or(Why::NoCursor);
                    return Ok(Message { event: Event::SnapshotBegin(why), cursor: None });
                }
                Stage::Past(after) => {
                    let page = self.hub.page(self.listening.history, self.listening.from, *after);
                    // What is left of a history that has ended is no snapshot.
                    let page = page.ok_or(End::Interrupted)?;
                    self.stage = match page.last() {
                        Some(last) if page.len() == PAGE => Stage::Past(Some(last.news.place)),
                        _ if self.listening.why.is_some() => Stage::Complete,
                        _ => Stage::CaughtUp,
                    };
                    // A snapshot may be long: others want the thread too.
                    tokio::task::coop::consume_budget().await;
                    if let Some(message) = self.ended(&page) {
                        return Ok(message);
                    }
                }
                Stage::Complete => {
                    self.stage = Stage::CaughtUp;
                    let cursor = self.moved(self.listening.reached);
                    return Ok(Message { event: Event::SnapshotComplete, cursor });
                }
                Stage::CaughtUp => {
                    self.stage = Stage::Live;
                    let cursor = self.moved(self.listening.reached);
                    return Ok(Message { event: Event::Heartbeat(self.listening.read_at.elapsed()), cursor });
                }
                Stage::Live => {
                    if let Some(message) = self.live().await? {
                        return Ok(message);
                    }
                }
            }
        }
    }

    /// The next update; `None` when it is nothing to this subscriber.
    async fn live(&mut self) -> Result<Option<Message>, End> {
        if let Some(end) = &self.end {
            return Err(end.clone());
        }
        let update = match self.heard.pop_front() {
            Some(update) => update,
            None => self.heard().await?,
        };
        match update {
            Update::Ended(mut entries) => {
                // What else has come meanwhile goes with it: fewer messages when there is much to tell.
                while entries.len() < PAGE {
                    match self.listening.updates.try_recv() {
                        Ok(Update::Ended(more)) => entries = entries.iter().chain(more.iter()).cloned().collect(),
                        Ok(other) => {
                            self.heard.push_back(other);
                            break;
                        }
                        Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                        // Heard with the next call: these come first.
                        Err(TryRecvError::Lagged(_)) => {
                            self.end = Some(End::TooSlow { cursor: self.cursor.clone() });
                            break;
                        }
                    }
                }
                Ok(self.ended(&entries))
            }
            Update::Moved(cursor) => {
                // It rides on the heartbeat that follows.
                self.listening.reached = cursor;
                Ok(None)
            }
            Update::Heartbeat(read_at) => {
                let cursor = self.moved(self.listening.reached);
                // It may have waited here.
                Ok(Some(Message { event: Event::Heartbeat(read_at.elapsed()), cursor }))
            }
            Update::Interrupted => Err(End::Interrupted),
        }
    }

    async fn heard(&mut self) -> Result<Update, End> {
        let next = self.listening.updates.recv();
        let heard = match self.deadline {
            Some(deadline) => timeout_at(deadline, next).await.map_err(|_| End::TokenExpired)?,
            None => next.await,
        };
        heard.map_err(|error| match error {
            RecvError::Lagged(_) => End::TooSlow { cursor: self.cursor.clone() },
            RecvError::Closed => End::Interrupted,
        })
    }

    /// What of this concerns the subscriber.
    fn ended(&mut self, entries: &[Entry]) -> Option<Message> {
        let now = self.hub.clock().elapsed();
        let lasts = |entry: &&Entry| !entry.remaining(now).is_zero();
        let concerning = entries.iter().filter(lasts).filter(|entry| entry.concerns(&self.filter));
        let told: Vec<_> = concerning.map(|entry| (Arc::clone(&entry.news), entry.remaining(now))).collect();
        self.end = self.end.take().or_else(|| end_of(&self.hub, &self.filter));
        (!told.is_empty()).then_some(Message { event: Event::Revocations(told), cursor: None })
    }

    /// The cursor, when it is another than the last one. Users have none: no past is told to them.
    fn moved(&mut self, cursor: Cursor) -> Option<String> {
        let Filter::Project { project, .. } = &self.filter else { return None };
        let cursor = cursor.encode(project);
        let moved = self.cursor.as_ref() != Some(&cursor);
        moved.then(|| self.cursor.insert(cursor).clone())
    }
}

impl Filter {
    pub(super) const fn project(&self) -> &ProjectId {
        match self {
            Self::Project { project, .. } | Self::User { project, .. } => project,
        }
    }

    fn party(&self) -> Party {
        match self {
            Self::Project { project, .. } => Party::Services(project.clone()),
            Self::User { project, user, .. } => Party::User(project.clone(), user.clone()),
        }
    }
}

impl Entry {
    fn concerns(&self, filter: &Filter) -> bool {
        let News { project, ended, user, .. } = &*self.news;
        match (filter, ended) {
            // Nobody's business but the key's own.
            (Filter::Project { .. }, Ended::ServerKey(_)) => false,
            (Filter::Project { project: own, .. }, _) => project == own,
            (Filter::User { project: own, user: me, .. }, ended) => {
                project == own
                    && match ended {
                        Ended::Session { is_impersonation, .. } => user.as_ref() == Some(me) && !is_impersonation,
                        Ended::User { user, .. } => user == me,
                        Ended::Project { .. } | Ended::SigningKey(_) => true,
                        Ended::ServerKey(_) => false,
                    }
            }
        }
    }
}

/// Whether the one who listens may do so no longer.
fn end_of(hub: &Hub, filter: &Filter) -> Option<End> {
    match filter {
        Filter::Project { key, .. } => hub.revoked().has_key(*key).then_some(End::KeyRevoked),
        Filter::User { project, user, session, epoch, key, .. } => {
            let bearer = Bearer { project, user, session: *session, epoch: *epoch, key: *key };
            hub.revoked().has(&bearer).then_some(End::SessionEnded)
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::hub::Found;
    use super::super::position::Beat;
    use super::super::position::Position;
    use super::*;
    use crate::clock;
    use crate::clock::Clock;
    use crate::session::RevokeReason;
    use crate::store::Extent;
    use crate::store::FeedOrigin;
    use crate::store::Newest;
    use crate::store::Reading;
    use crate::telemetry::Metrics;

    fn project() -> ProjectId {
        ProjectId::parse("demo").expect("a name")
    }

    fn everything() -> Filter {
        Filter::Project { project: project(), key: KeyId::from_uuid(clock::new_uuid()) }
    }

    fn news(xid: u64) -> News {
        let now = Clock::system().now();
        let id = clock::new_session_id(now);
        News {
            place: Place { xid, id: id.as_uuid() },
            project: project(),
            ended: Ended::Session { id, is_impersonation: false },
            user: UserId::parse("ada"),
            at: now,
            reason: RevokeReason::SignedOut,
            access_expires_at: now + Duration::from_secs(600),
        }
    }

    fn reading(xmin: u64, news: Vec<News>) -> Reading {
        let origin = FeedOrigin { history: Uuid::from_u128(1), timeline: 1 };
        let snapshot = format!("{xmin}:{xmin}:").parse().expect("a snapshot");
        let stands = |news: &News| Newest { place: news.place, access_expires_at: news.access_expires_at };
        let newest = news.iter().map(stands).filter(|newest| newest.place.xid < xmin).max();
        let (at, extent) = (Clock::system().now(), Extent::Whole);
        Reading { news, origin, snapshot, at, newest, lacks_newest: false, connection: 1, extent }
    }

    fn beat(xid: u64) -> Beat {
        Beat { origin: reading(1, vec![]).origin, xid }
    }

    /// A hub that has read this much, and has seen its own sign of life.
    fn hub(xmin: u64, past: Vec<News>) -> Arc<Hub> {
        let hub = Arc::new(Hub::new(Clock::system(), Metrics::default()));
        assert!(hub.listen(None).is_none(), "nothing is known yet");
        hub.take_in_past(past.clone(), Clock::system().now());
        hub.found(&reading(xmin, past.clone()));
        hub.begin(Position::new(&reading(xmin, past)));
        assert!(hub.listen(None).is_none(), "and not that it is the present");
        hub.beaten(beat(1), Instant::now());
        hub.go_on(reading(xmin, vec![])).expect("goes on");
        hub
    }

    fn follow(hub: &Arc<Hub>, cursor: Option<Cursor>) -> Subscription {
        Subscription::begin(Arc::clone(hub), everything(), cursor).unwrap_or_else(|refused| panic!("{refused:?}"))
    }

    async fn all_until_complete(subscription: &mut Subscription) -> Vec<Place> {
        let mut told = vec![];
        loop {
            match subscription.next().await.expect("goes on").event {
                Event::SnapshotBegin(_) => {}
                Event::Revocations(batch) => told.extend(batch.iter().map(|(news, _)| news.place)),
                Event::SnapshotComplete | Event::Heartbeat(_) => return told,
            }
        }
    }

    #[tokio::test]
    async fn a_snapshot_of_many_pages_is_whole() {
        let past: Vec<News> = (0..3 * PAGE as u64 + 7).map(|at| news(at / 2)).collect();
        let mut expected: Vec<Place> = past.iter().map(|news| news.place).collect();
        expected.sort();
        let hub = hub(9_000, past);
        let mut subscription = follow(&hub, None);
        assert_eq!(all_until_complete(&mut subscription).await, expected);

        // From a cursor on: that transaction and all after it.
        let cursor = Cursor { xmin: 1_000, ..hub.listen(None).expect("known").reached };
        let mut resumed = follow(&hub, Some(cursor));
        let rest: Vec<Place> = expected.into_iter().filter(|place| place.xid >= 1_000).collect();
        assert_eq!(all_until_complete(&mut resumed).await, rest);
    }

    #[tokio::test]
    async fn what_is_told_by_two_ways_is_told_once() {
        let hub = hub(10, vec![]);
        let mut subscription = follow(&hub, None);
        all_until_complete(&mut subscription).await;
        let one = news(11);
        hub.tell(vec![one.clone()]);
        hub.flush();
        hub.go_on(reading(12, vec![one.clone()])).expect("goes on");
        hub.flush();
        hub.heartbeat();
        let mut told = 0;
        loop {
            let Message { event, cursor } = subscription.next().await.expect("goes on");
            match event {
                Event::Revocations(batch) => told += batch.len(),
                // The one that follows the snapshot is of before.
                Event::Heartbeat(_) if told > 0 => {
                    let cursor = Cursor::parse(&cursor.expect("it has moved"), &project()).expect("a cursor");
                    assert_eq!(cursor.xmin, 12);
                    break;
                }
                _ => {}
            }
        }
        assert_eq!(told, 1);
    }

    #[tokio::test]
    async fn whoever_falls_behind_is_cut_off_with_a_cursor_and_nothing_lost() {
        let hub = hub(10, vec![]);
        let mut slow = follow(&hub, None);
        assert!(all_until_complete(&mut slow).await.is_empty());
        let all: Vec<News> = (11..2_011).map(news).collect();
        for one in &all {
            hub.tell(vec![one.clone()]);
            hub.flush();
        }
        let end = loop {
            match slow.next().await {
                Ok(_) => {}
                Err(end) => break end,
            }
        };
        let End::TooSlow { cursor: Some(cursor) } = end else { panic!("{end:?}") };
        let cursor = Cursor::parse(&cursor, &project()).expect("a cursor");
        let mut resumed = follow(&hub, Some(cursor));
        let told = all_until_complete(&mut resumed).await;
        assert_eq!(told, all.iter().map(|news| news.place).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn another_history_interrupts_everyone() {
        let hub = hub(10, vec![news(5)]);
        let mut subscription = follow(&hub, None);
        assert_eq!(all_until_complete(&mut subscription).await.len(), 1);
        let other = FeedOrigin { history: Uuid::from_u128(1), timeline: 2 };
        let another = Reading { origin: other, ..reading(8, vec![]) };
        assert!(hub.go_on(another.clone()).is_err(), "no continuation");
        assert!(hub.go_on(reading(5, vec![])).is_err(), "nor is one that goes back");
        assert_eq!(hub.found(&another), Found::AnotherHistory);
        hub.begin(Position::new(&another));
        let end = loop {
            match subscription.next().await {
                Ok(_) => {}
                Err(end) => break end,
            }
        };
        assert_eq!(end, End::Interrupted);
        assert!(hub.listen(None).is_none(), "until it is proved to be the present");
        hub.beaten(Beat { origin: other, xid: 3 }, Instant::now());
        hub.close();
        hub.go_on(Reading { origin: other, ..reading(9, vec![]) }).expect("goes on");
        assert!(hub.age().is_some() && hub.listen(None).is_none(), "closed");
    }

    /// The database changes hands while a snapshot is told: what is left of it must not pass for all of it.
    #[tokio::test]
    async fn a_snapshot_of_a_history_that_ends_is_not_completed() {
        let hub = hub(9_000, (0..3 * PAGE as u64).map(news).collect());
        let mut subscription = follow(&hub, None);
        assert!(matches!(subscription.next().await.expect("goes on").event, Event::SnapshotBegin(_)));
        assert!(matches!(subscription.next().await.expect("goes on").event, Event::Revocations(_)));
        let another = Reading { origin: FeedOrigin { history: Uuid::from_u128(2), timeline: 1 }, ..reading(8, vec![]) };
        hub.found(&another);
        assert!(hub.age().is_none(), "nobody goes by what is known here");
        assert_eq!(subscription.next().await.err(), Some(End::Interrupted));
    }

    /// The one who ended it has a clock that is ahead, and would have it forgotten too early.
    #[tokio::test]
    async fn of_two_terms_the_longer_counts() {
        let hub = hub(10, vec![]);
        let mut subscription = follow(&hub, None);
        all_until_complete(&mut subscription).await;
        let now = Clock::system().now();
        let long = News { access_expires_at: now + Duration::from_secs(3_600), ..news(11) };
        hub.tell(vec![News { access_expires_at: now, ..long.clone() }]);
        hub.flush();
        hub.go_on(reading(12, vec![long])).expect("goes on");
        hub.flush();
        let mut terms = vec![];
        while terms.len() < 2 {
            if let Event::Revocations(batch) = subscription.next().await.expect("goes on").event {
                terms.extend(batch.iter().map(|(_, retain)| retain.as_secs() / 60));
            }
        }
        assert_eq!(terms, [14, 64], "ten minutes at least; an hour; and five for clocks that differ");
    }

    /// A cursor of another replica that is ahead, or of a database whose files were put back since.
    #[tokio::test]
    async fn a_cursor_from_the_future_gets_a_snapshot() {
        let hub = hub(10, vec![news(5)]);
        let cursor = Cursor { xmin: 11, ..hub.listen(None).expect("known").reached };
        let mut resumed = follow(&hub, Some(cursor));
        let Event::SnapshotBegin(why) = resumed.next().await.expect("goes on").event else { panic!("no snapshot") };
        assert_eq!(why, Why::CursorOfAnotherDatabase);
        assert_eq!(all_until_complete(&mut resumed).await.len(), 1);
        let mut resumed = follow(&hub, Some(Cursor { xmin: 10, ..cursor }));
        assert!(matches!(resumed.next().await.expect("goes on").event, Event::Heartbeat(_)));
    }

    /// A reading is only as good as the sign of life that it shows.
    #[tokio::test]
    async fn the_news_grows_old_when_no_sign_of_life_is_seen() {
        let hub = hub(10, vec![]);
        let start = hub.read_at().expect("known");
        let after = |seconds| start + Duration::from_secs(seconds);
        let read = |xmax| {
            hub.go_on(reading(xmax, vec![])).expect("goes on");
            (hub.read_at().expect("known") - start).as_secs()
        };
        hub.beaten(beat(20), after(10));
        assert_eq!(read(20), 0, "it does not show the last beat: this is a copy that is behind");
        assert_eq!(read(21), 10, "all that was there before the beat is known");
        hub.beaten(beat(30), after(20));
        hub.beaten(beat(40), after(30));
        assert_eq!(read(35), 20, "behind again, and not as far");
        assert_eq!(read(41), 30);
        assert_eq!((read(50), read(20)), (30, 30), "a database that takes no writes; one that is behind");
    }
}
