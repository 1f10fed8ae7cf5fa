//! One subscription: the backlog first, then what is published.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::time::Instant;
use tokio::time::timeout_at;

use super::backlog::EntryKey;
use super::broadcaster::Broadcast;
use super::broadcaster::Broadcaster;
use super::broadcaster::PAGE;
use super::broadcaster::Receiver;
use super::broadcaster::Retained;
use super::broadcaster::SnapshotReason;
use super::cursor::Cursor;
use super::cursor::MalformedCursor;
use super::subscriber_slots::Subscriber;
use super::subscriber_slots::SubscriberSlot;
use crate::store::PublishedRevocation;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::id::UserId;
use sessiond_core::session::Epoch;
use sessiond_core::session::revoked::Bearer;
use sessiond_core::session::revoked::RevocationTarget;

/// Which revocations a subscriber receives.
#[derive(Clone, Debug)]
pub enum SubscriptionFilter {
    /// A service: those of its whole project, until its key is revoked.
    Project {
        /// The project.
        project: ProjectId,
        /// The key that it authenticated with.
        key: KeyId,
        /// How long the key is still valid; `None` if it does not expire.
        key_ttl: Option<Duration>,
        /// The most revocations that it can hold; `None` for any number.
        entries_max: Option<usize>,
    },
    /// A user: those of their own sessions, until this session is revoked or its token expires. Not those of impersonations.
    /// Without a backlog: users can list their sessions, and verify no tokens.
    User {
        /// The project.
        project: ProjectId,
        /// The user.
        user: UserId,
        /// The session that subscribes.
        session: SessionId,
        /// The epoch in its token.
        epoch: Epoch,
        /// The key that its token is signed with.
        key: KeyId,
        /// How long its token is still valid.
        token_ttl: Duration,
    },
}

/// What a subscriber receives.
#[derive(Clone, Debug)]
pub enum FeedEvent {
    /// A snapshot begins.
    SnapshotBegin(SnapshotReason),
    /// Revocations, and for how long to retain each.
    Revocations(Vec<(Arc<PublishedRevocation>, Duration)>),
    /// The snapshot is complete.
    SnapshotComplete,
    /// The feed is alive; everything up to this long ago was sent.
    Heartbeat(Duration),
}

/// An event, and the cursor if it has changed.
#[derive(Clone, Debug)]
pub struct FeedMessage {
    /// The event.
    pub event: FeedEvent,
    /// Resumes after everything that was sent so far.
    pub cursor: Option<String>,
}

/// Why subscribing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubscribeError {
    /// The cursor is malformed.
    MalformedCursor,
    /// There is no slot left for this subscriber.
    TooMany,
    /// There are more revocations than the subscriber can hold.
    TooManyEntries {
        /// How many there are.
        entries: usize,
        /// How many it can hold.
        entries_max: usize,
    },
    /// The feed has not been read yet, or the server is about to stop.
    NotReady,
}

impl From<MalformedCursor> for SubscribeError {
    fn from(MalformedCursor: MalformedCursor) -> Self {
        Self::MalformedCursor
    }
}

/// Why a subscription ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubscriptionEnd {
    /// The subscriber is too far behind. Nothing was skipped up to the cursor.
    TooSlow {
        /// The last one that was sent.
        cursor: Option<String>,
    },
    /// The server stops, or the database has another history.
    Interrupted,
    /// The subscriber's session was revoked.
    SessionEnded,
    /// The subscriber's token has expired.
    TokenExpired,
    /// The server key was revoked, or has expired.
    KeyRevoked,
}

/// A subscription. Its slot is released when it is dropped.
pub struct Subscription {
    broadcaster: Arc<Broadcaster>,
    _slot: SubscriberSlot,
    filter: SubscriptionFilter,
    receiver: Receiver,
    /// When the subscriber's credential expires.
    deadline: Option<Instant>,
    phase: Phase,
    /// Received together with what is being sent.
    received: VecDeque<Broadcast>,
    cursor: Option<String>,
    /// Why it ends, once everything before the end was sent.
    end: Option<SubscriptionEnd>,
}

enum Phase {
    SnapshotBegin,
    Backlog(Option<EntryKey>),
    SnapshotComplete,
    CaughtUp,
    Live,
}

impl Subscription {
    pub(super) fn begin(
        broadcaster: Arc<Broadcaster>,
        filter: SubscriptionFilter,
        cursor: Option<Cursor>,
    ) -> Result<Self, SubscribeError> {
        let slot = broadcaster.slots().take(filter.subscriber()).ok_or(SubscribeError::TooMany)?;
        let receiver = broadcaster.receive(cursor).ok_or(SubscribeError::NotReady)?;
        if let SubscriptionFilter::Project { project, entries_max: Some(entries_max), .. } = &filter {
            let (entries, entries_max) = (broadcaster.len_of(project), *entries_max);
            if entries > entries_max {
                return Err(SubscribeError::TooManyEntries { entries, entries_max });
            }
        }
        let (ttl, phase) = match &filter {
            SubscriptionFilter::Project { key_ttl, .. } if receiver.snapshot.is_none() => {
                (*key_ttl, Phase::Backlog(None))
            }
            SubscriptionFilter::Project { key_ttl, .. } => (*key_ttl, Phase::SnapshotBegin),
            SubscriptionFilter::User { token_ttl, .. } => (Some(*token_ttl), Phase::SnapshotBegin),
        };
        // A time beyond what can be represented is never reached.
        let deadline = ttl.and_then(|ttl| Instant::now().checked_add(ttl));
        // The caller may have been revoked after it was authenticated and before this began to receive.
        let end = end_of(&broadcaster, &filter);
        let received = VecDeque::new();
        Ok(Self { broadcaster, _slot: slot, filter, receiver, deadline, phase, received, cursor: None, end })
    }

    /// Which revocations it receives.
    pub const fn filter(&self) -> &SubscriptionFilter {
        &self.filter
    }

    /// Waits for the next message.
    ///
    /// # Errors
    ///
    /// Why the subscription ended.
    pub async fn next(&mut self) -> Result<FeedMessage, SubscriptionEnd> {
        loop {
            match &self.phase {
                Phase::SnapshotBegin => {
                    self.phase = match self.filter {
                        SubscriptionFilter::Project { .. } => Phase::Backlog(None),
                        SubscriptionFilter::User { .. } => Phase::SnapshotComplete,
                    };
                    let reason = self.receiver.snapshot.unwrap_or(SnapshotReason::NoCursor);
                    return Ok(FeedMessage { event: FeedEvent::SnapshotBegin(reason), cursor: None });
                }
                Phase::Backlog(after) => {
                    let (history, resumed) = (self.receiver.history, self.receiver.resumed.as_ref());
                    let page = self.broadcaster.page(self.filter.project(), history, resumed, *after);
                    // The rest of an abandoned history does not complete a snapshot.
                    let (page, next) = page.ok_or(SubscriptionEnd::Interrupted)?;
                    self.phase = match next {
                        Some(last) => Phase::Backlog(Some(last)),
                        None if self.receiver.snapshot.is_some() => Phase::SnapshotComplete,
                        None => Phase::CaughtUp,
                    };
                    // A snapshot may be long, and mostly of other projects: other tasks need the thread and the lock too.
                    tokio::task::yield_now().await;
                    if let Some(message) = self.revocations(&page) {
                        return Ok(message);
                    }
                }
                Phase::SnapshotComplete => {
                    self.phase = Phase::CaughtUp;
                    let cursor = self.changed_cursor();
                    return Ok(FeedMessage { event: FeedEvent::SnapshotComplete, cursor });
                }
                Phase::CaughtUp => {
                    self.phase = Phase::Live;
                    let cursor = self.changed_cursor();
                    return Ok(FeedMessage { event: FeedEvent::Heartbeat(self.receiver.read_at.elapsed()), cursor });
                }
                Phase::Live => {
                    if let Some(message) = self.live().await? {
                        return Ok(message);
                    }
                }
            }
        }
    }

    /// The next message; `None` if a broadcast does not concern this subscriber.
    async fn live(&mut self) -> Result<Option<FeedMessage>, SubscriptionEnd> {
        if let Some(end) = &self.end {
            return Err(end.clone());
        }
        let broadcast = match self.received.pop_front() {
            Some(broadcast) => broadcast,
            None => self.receive().await?,
        };
        match broadcast {
            Broadcast::Revocations(first) => {
                let mut others = vec![];
                // Whatever else was broadcast meanwhile is sent with it: fewer messages under load.
                while first.len() + others.len() < PAGE {
                    match self.receiver.broadcasts.try_recv() {
                        Ok(Broadcast::Revocations(more)) => others.extend_from_slice(&more),
                        Ok(other) => {
                            self.received.push_back(other);
                            break;
                        }
                        Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                        // Returned by the next call: this batch comes first.
                        Err(TryRecvError::Lagged(_)) => {
                            self.end = Some(SubscriptionEnd::TooSlow { cursor: self.cursor.clone() });
                            break;
                        }
                    }
                }
                if others.is_empty() {
                    return Ok(self.revocations(&first));
                }
                let all: Vec<Retained> = first.iter().cloned().chain(others).collect();
                Ok(self.revocations(&all))
            }
            Broadcast::Reached(cursor) => {
                // Sent with the heartbeat that follows.
                self.receiver.reached = cursor;
                Ok(None)
            }
            Broadcast::Heartbeat(read_at) => {
                let cursor = self.changed_cursor();
                // The broadcast may have waited here.
                Ok(Some(FeedMessage { event: FeedEvent::Heartbeat(read_at.elapsed()), cursor }))
            }
            Broadcast::Interrupted => Err(SubscriptionEnd::Interrupted),
        }
    }

    async fn receive(&mut self) -> Result<Broadcast, SubscriptionEnd> {
        let next = self.receiver.broadcasts.recv();
        let received = match self.deadline {
            Some(deadline) => timeout_at(deadline, next).await.map_err(|_| match self.filter {
                SubscriptionFilter::Project { .. } => SubscriptionEnd::KeyRevoked,
                SubscriptionFilter::User { .. } => SubscriptionEnd::TokenExpired,
            })?,
            None => next.await,
        };
        received.map_err(|error| match error {
            RecvError::Lagged(_) => SubscriptionEnd::TooSlow { cursor: self.cursor.clone() },
            RecvError::Closed => SubscriptionEnd::Interrupted,
        })
    }

    /// The revocations that concern the subscriber.
    fn revocations(&mut self, retained: &[Retained]) -> Option<FeedMessage> {
        let now = self.broadcaster.clock().elapsed();
        let lasts = |retained: &&Retained| !retained.remaining(now).is_zero();
        let concerning = retained.iter().filter(lasts).filter(|retained| concerns(&retained.revocation, &self.filter));
        let sent: Vec<_> =
            concerning.map(|retained| (Arc::clone(&retained.revocation), retained.remaining(now))).collect();
        self.end = self.end.take().or_else(|| end_of(&self.broadcaster, &self.filter));
        (!sent.is_empty()).then_some(FeedMessage { event: FeedEvent::Revocations(sent), cursor: None })
    }

    /// The cursor, if it differs from the last one. Users have none, because they get no backlog.
    fn changed_cursor(&mut self) -> Option<String> {
        let SubscriptionFilter::Project { project, .. } = &self.filter else { return None };
        let cursor = self.receiver.reached.encode(project);
        let has_changed = self.cursor.as_ref() != Some(&cursor);
        has_changed.then(|| self.cursor.insert(cursor).clone())
    }
}

impl SubscriptionFilter {
    /// The server key of a service; `None` for a user.
    pub const fn key(&self) -> Option<KeyId> {
        match self {
            Self::Project { key, .. } => Some(*key),
            Self::User { .. } => None,
        }
    }

    pub(super) const fn project(&self) -> &ProjectId {
        match self {
            Self::Project { project, .. } | Self::User { project, .. } => project,
        }
    }

    fn subscriber(&self) -> Subscriber {
        match self {
            Self::Project { project, .. } => Subscriber::Services(project.clone()),
            Self::User { project, user, .. } => Subscriber::User(project.clone(), user.clone()),
        }
    }
}

/// Whether a subscriber with this filter receives the revocation.
fn concerns(revocation: &PublishedRevocation, filter: &SubscriptionFilter) -> bool {
    let PublishedRevocation { project, ended, user, .. } = revocation;
    match (filter, ended) {
        // It concerns only the holder of the key, whose subscription ends.
        (SubscriptionFilter::Project { .. }, RevocationTarget::ServerKey(_)) => false,
        (SubscriptionFilter::Project { project: own, .. }, _) => project == own,
        (SubscriptionFilter::User { project: own, user: me, session, .. }, ended) => {
            project == own
                && match ended {
                    RevocationTarget::Session { is_impersonation, .. } => {
                        user.as_ref() == Some(me) && !is_impersonation
                    }
                    RevocationTarget::User { user, .. } => user == me,
                    RevocationTarget::Project { .. } | RevocationTarget::SigningKey(_) => true,
                    // The others' tokens are of no use to it.
                    RevocationTarget::Superseded { id, .. } => id == session,
                    RevocationTarget::ServerKey(_) => false,
                }
        }
    }
}

/// Why a subscriber may not subscribe any longer, if so.
fn end_of(broadcaster: &Broadcaster, filter: &SubscriptionFilter) -> Option<SubscriptionEnd> {
    match filter {
        SubscriptionFilter::Project { key, .. } => {
            broadcaster.revoked().has_key(*key).then_some(SubscriptionEnd::KeyRevoked)
        }
        SubscriptionFilter::User { project, user, session, epoch, key, .. } => {
            let bearer = Bearer { project, user, session: *session, epoch: *epoch, key: *key };
            broadcaster.revoked().has(&bearer).then_some(SubscriptionEnd::SessionEnded)
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::broadcaster::Continuity;
    use super::super::position::Beat;
    use super::super::position::Position;
    use super::*;
    use crate::store::Extent;
    use crate::store::FeedOrigin;
    use crate::store::FeedPlace;
    use crate::store::FeedPresent;
    use crate::store::FeedReading;
    use crate::store::FeedWriters;
    use crate::store::WriterEntry;
    use crate::store::WriterId;
    use crate::telemetry::Metrics;
    use sessiond_core::clock;
    use sessiond_core::clock::Clock;
    use sessiond_core::id::Bucket;
    use sessiond_core::session::RevokeReason;

    fn project() -> ProjectId {
        ProjectId::parse("demo").expect("a name")
    }

    fn everything() -> SubscriptionFilter {
        SubscriptionFilter::Project {
            project: project(),
            key: KeyId::from_uuid(clock::new_uuid()),
            key_ttl: None,
            entries_max: None,
        }
    }

    const WRITER: WriterId = WriterId::from_number(1);

    fn revocation(seq: u32) -> PublishedRevocation {
        let now = Clock::system().now();
        let id = clock::new_session_id(now, Bucket::from_number(1));
        PublishedRevocation {
            place: FeedPlace { writer: WRITER, seq, id: id.as_uuid() },
            project: project(),
            ended: RevocationTarget::Session { id, is_impersonation: false },
            user: UserId::parse("ada"),
            at: now,
            reason: RevokeReason::SignedOut,
            access_expires_at: now + Duration::from_secs(600),
        }
    }

    fn present(xmin: u64) -> FeedPresent {
        let origin = FeedOrigin { history: Uuid::from_u128(1), timeline: 1 };
        let snapshot = format!("{xmin}:{xmin}:").parse().expect("a snapshot");
        FeedPresent::of_one(origin, snapshot, Clock::system().now())
    }

    fn entry(revocation: &PublishedRevocation) -> WriterEntry {
        let FeedPlace { writer, seq, .. } = revocation.place;
        WriterEntry { writer, seq, access_expires_at: revocation.access_expires_at }
    }

    fn reading(xmin: u64, revocations: Vec<PublishedRevocation>) -> FeedReading {
        let entries = revocations.iter().map(entry).collect();
        FeedReading { present: present(xmin), revocations, entries, extent: Extent::Whole }
    }

    fn found(newest: Option<&PublishedRevocation>) -> FeedWriters {
        FeedWriters { present: present(1), newest: newest.map(entry).into_iter().collect() }
    }

    fn beat(xid: u64) -> Beat {
        Beat::of_one(present(1).origin, xid)
    }

    /// A broadcaster that has read this much, and has seen its own beat.
    fn broadcaster(past: Vec<PublishedRevocation>) -> Arc<Broadcaster> {
        let broadcaster = Arc::new(Broadcaster::new(Clock::system(), Metrics::default()));
        assert!(broadcaster.receive(None).is_none(), "nothing is known yet");
        let found = found(past.last());
        broadcaster.insert_backlog(past, Clock::system().now());
        broadcaster.check_continuity(&found);
        broadcaster.start_at(Position::new(&found));
        assert!(broadcaster.receive(None).is_none(), "and not whether it is current");
        broadcaster.note_beat(beat(1), Instant::now());
        broadcaster.advance(reading(2, vec![])).expect("goes on");
        broadcaster
    }

    /// The broadcaster's present cursor, with another number.
    fn cursor(broadcaster: &Broadcaster, number: u32) -> Cursor {
        let reached = broadcaster.receive(None).expect("known").reached;
        Cursor { numbers: Arc::new([(WRITER, number)].into()), ..reached }
    }

    fn follow(broadcaster: &Arc<Broadcaster>, cursor: Option<Cursor>) -> Subscription {
        Subscription::begin(Arc::clone(broadcaster), everything(), cursor)
            .unwrap_or_else(|refused| panic!("{refused:?}"))
    }

    async fn all_until_complete(subscription: &mut Subscription) -> Vec<FeedPlace> {
        let mut sent = vec![];
        loop {
            match subscription.next().await.expect("goes on").event {
                FeedEvent::SnapshotBegin(_) => {}
                FeedEvent::Revocations(batch) => sent.extend(batch.iter().map(|(revocation, _)| revocation.place)),
                FeedEvent::SnapshotComplete | FeedEvent::Heartbeat(_) => return sent,
            }
        }
    }

    #[tokio::test]
    async fn a_snapshot_of_many_pages_is_complete() {
        let past: Vec<PublishedRevocation> =
            (1..=3 * u32::try_from(PAGE).expect("small") + 7).map(revocation).collect();
        let mut expected: Vec<FeedPlace> = past.iter().map(|revocation| revocation.place).collect();
        expected.sort();
        let broadcaster = broadcaster(past);
        let mut subscription = follow(&broadcaster, None);
        assert_eq!(all_until_complete(&mut subscription).await, expected);

        // From a cursor on: all after it.
        let mut resumed = follow(&broadcaster, Some(cursor(&broadcaster, 1_000)));
        let rest: Vec<FeedPlace> = expected.iter().copied().filter(|place| place.seq > 1_000).collect();
        assert_eq!(all_until_complete(&mut resumed).await, rest);
        // The cursor names another writer only: all of this one's.
        let other = Cursor { numbers: Arc::default(), ..cursor(&broadcaster, 0) };
        assert_eq!(all_until_complete(&mut follow(&broadcaster, Some(other))).await, expected);
    }

    #[tokio::test]
    async fn a_revocation_that_is_published_and_read_is_sent_once() {
        let broadcaster = broadcaster(vec![]);
        let mut subscription = follow(&broadcaster, None);
        all_until_complete(&mut subscription).await;
        let one = revocation(1);
        broadcaster.publish(vec![one.clone()]);
        broadcaster.publish_pending();
        broadcaster.advance(reading(12, vec![one.clone()])).expect("goes on");
        broadcaster.publish_pending();
        broadcaster.heartbeat();
        let mut sent = 0;
        loop {
            let FeedMessage { event, cursor } = subscription.next().await.expect("goes on");
            match event {
                FeedEvent::Revocations(batch) => sent += batch.len(),
                // The heartbeat right after the snapshot is older.
                FeedEvent::Heartbeat(_) if sent > 0 => {
                    let cursor = Cursor::parse(&cursor.expect("it has moved"), &project()).expect("a cursor");
                    assert_eq!(cursor.number(WRITER), 1);
                    break;
                }
                _ => {}
            }
        }
        assert_eq!(sent, 1);
    }

    #[tokio::test]
    async fn a_subscriber_that_falls_behind_is_disconnected_with_a_cursor_and_loses_nothing() {
        let broadcaster = broadcaster(vec![]);
        let mut slow = follow(&broadcaster, None);
        assert!(all_until_complete(&mut slow).await.is_empty());
        let all: Vec<PublishedRevocation> = (1..2_001).map(revocation).collect();
        for one in &all {
            broadcaster.publish(vec![one.clone()]);
            broadcaster.publish_pending();
        }
        let end = loop {
            match slow.next().await {
                Ok(_) => {}
                Err(end) => break end,
            }
        };
        let SubscriptionEnd::TooSlow { cursor: Some(cursor) } = end else { panic!("{end:?}") };
        let cursor = Cursor::parse(&cursor, &project()).expect("a cursor");
        let mut resumed = follow(&broadcaster, Some(cursor));
        let sent = all_until_complete(&mut resumed).await;
        assert_eq!(sent, all.iter().map(|revocation| revocation.place).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn another_history_interrupts_every_subscription() {
        let broadcaster = broadcaster(vec![revocation(5)]);
        let mut subscription = follow(&broadcaster, None);
        assert_eq!(all_until_complete(&mut subscription).await.len(), 1);
        let other = FeedOrigin { history: Uuid::from_u128(1), timeline: 2 };
        let elsewhere = |xmin| FeedPresent { origin: other, ..present(xmin) };
        let another = FeedWriters { present: elsewhere(8), newest: vec![] };
        let continued = FeedReading { present: elsewhere(8), ..reading(8, vec![]) };
        assert!(broadcaster.advance(continued).is_err(), "no continuation");
        assert!(broadcaster.advance(reading(5, vec![revocation(5)])).is_err(), "nor is one that goes back");
        assert_eq!(broadcaster.check_continuity(&another), Continuity::AnotherHistory);
        broadcaster.start_at(Position::new(&another));
        let end = loop {
            match subscription.next().await {
                Ok(_) => {}
                Err(end) => break end,
            }
        };
        assert_eq!(end, SubscriptionEnd::Interrupted);
        assert!(broadcaster.receive(None).is_none(), "until a beat proves that it is current");
        broadcaster.note_beat(Beat::of_one(other, 3), Instant::now());
        broadcaster.close();
        broadcaster.advance(FeedReading { present: elsewhere(9), ..reading(9, vec![]) }).expect("goes on");
        assert!(broadcaster.age().is_some() && broadcaster.receive(None).is_none(), "closed");
    }

    /// The database's history changes while a snapshot is sent: the part that was sent must not count as a complete snapshot.
    #[tokio::test]
    async fn a_snapshot_of_a_history_that_ends_is_not_completed() {
        let broadcaster = broadcaster((1..=3 * u32::try_from(PAGE).expect("small")).map(revocation).collect());
        let mut subscription = follow(&broadcaster, None);
        assert!(matches!(subscription.next().await.expect("goes on").event, FeedEvent::SnapshotBegin(_)));
        assert!(matches!(subscription.next().await.expect("goes on").event, FeedEvent::Revocations(_)));
        let origin = FeedOrigin { history: Uuid::from_u128(2), timeline: 1 };
        let another = FeedWriters { present: FeedPresent { origin, ..present(8) }, newest: vec![] };
        broadcaster.check_continuity(&another);
        assert!(broadcaster.age().is_none(), "the known revocations no longer count");
        assert_eq!(subscription.next().await.err(), Some(SubscriptionEnd::Interrupted));
    }

    /// The replica that revoked has a clock that is ahead, so its retention is too short.
    #[tokio::test]
    async fn of_two_retentions_the_longer_counts() {
        let broadcaster = broadcaster(vec![]);
        let mut subscription = follow(&broadcaster, None);
        all_until_complete(&mut subscription).await;
        let now = Clock::system().now();
        let long = PublishedRevocation { access_expires_at: now + Duration::from_secs(3_600), ..revocation(1) };
        broadcaster.publish(vec![PublishedRevocation { access_expires_at: now, ..long.clone() }]);
        broadcaster.publish_pending();
        broadcaster.advance(reading(12, vec![long])).expect("goes on");
        broadcaster.publish_pending();
        let mut terms = vec![];
        while terms.len() < 2 {
            if let FeedEvent::Revocations(batch) = subscription.next().await.expect("goes on").event {
                terms.extend(batch.iter().map(|(_, retain)| retain.as_secs() / 60));
            }
        }
        assert_eq!(terms, [14, 64], "ten minutes at least; an hour; and five for clocks that differ");
    }

    /// A cursor of another replica that is ahead, or of a database whose files were restored since.
    #[tokio::test]
    async fn a_cursor_from_the_future_gets_a_snapshot() {
        let broadcaster = broadcaster(vec![revocation(5)]);
        let mut resumed = follow(&broadcaster, Some(cursor(&broadcaster, 6)));
        let FeedEvent::SnapshotBegin(why) = resumed.next().await.expect("goes on").event else { panic!("no snapshot") };
        assert_eq!(why, SnapshotReason::CursorOfAnotherDatabase);
        assert_eq!(all_until_complete(&mut resumed).await.len(), 1);
        let mut resumed = follow(&broadcaster, Some(cursor(&broadcaster, 5)));
        assert!(matches!(resumed.next().await.expect("goes on").event, FeedEvent::Heartbeat(_)));
    }

    /// A reading is only as good as the beat that it shows.
    #[tokio::test]
    async fn the_feed_grows_old_when_no_beat_is_seen() {
        let broadcaster = broadcaster(vec![]);
        let start = broadcaster.read_at().expect("known");
        let after = |seconds| start + Duration::from_secs(seconds);
        let read = |xmax| {
            broadcaster.advance(reading(xmax, vec![])).expect("goes on");
            (broadcaster.read_at().expect("known") - start).as_secs()
        };
        broadcaster.note_beat(beat(20), after(10));
        assert_eq!(read(20), 0, "it does not show the last beat: this is a copy that is behind");
        assert_eq!(read(21), 10, "all that was there before the beat is known");
        broadcaster.note_beat(beat(30), after(20));
        broadcaster.note_beat(beat(40), after(30));
        assert_eq!(read(35), 20, "behind again, and not as far");
        assert_eq!(read(41), 30);
        assert_eq!((read(50), read(20)), (30, 30), "a database that takes no writes; one that is behind");
    }
}
