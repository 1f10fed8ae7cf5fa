//! Revocations, live: read from the database as they commit, and published to subscribers.
//!
//! The table is the truth; a doorbell says when to read, and a poll makes up for a doorbell that does not ring. What this
//! replica revokes itself is published right after its commit. The age of the feed is always known, so that a silent feed is
//! not mistaken for one without revocations.
//!
//! The feed publishes what a reader of the database sees, and that may be more than a failover keeps: a commit whose wait for
//! a standby was cancelled is visible, and lost with the primary. That is harmless, because a revocation only refuses: a session
//! that is active again after the failover is refused by subscribers that received its revocation, until they learn of the new
//! history and forget the old one. No caller was told that the sign-out succeeded (`store::tx`).

mod backlog;
mod broadcaster;
mod cursor;
#[cfg(test)]
mod explorer;
mod limits;
mod position;
mod reader;
mod subscriber_slots;
mod subscription;

use std::sync::Arc;
use std::time::Duration;

pub use broadcaster::SnapshotReason;
pub use cursor::MalformedCursor;
pub use limits::AGE_MAX;
pub use limits::HEARTBEAT_INTERVAL;
pub use limits::STALENESS_MAX;
pub use limits::SUBSCRIBERS_MAX;
pub use subscription::FeedEvent;
pub use subscription::FeedMessage;
pub use subscription::SubscribeError;
pub use subscription::Subscription;
pub use subscription::SubscriptionEnd;
pub use subscription::SubscriptionFilter;

use broadcaster::Broadcaster;
use cursor::Cursor;

use crate::store::Store;
use sessiond_core::clock::Clock;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::session::revoked::Bearer;

/// How many connections of its own a feed has: those of its loops, the one that listens, and one that checks which server is
/// the newest.
pub const CONNECTIONS: usize = reader::CONNECTIONS + 2;

/// The feed of one replica. Cheap to clone; clones share state.
#[derive(Clone)]
pub struct Feed {
    broadcaster: Arc<Broadcaster>,
    /// The reader's only connection, so that its loss is noticed.
    reading: Store,
    beating: Store,
    ringing: Store,
}

impl Feed {
    /// Prepares the feed of a database. It is empty until [`Feed::run`] has read it.
    pub fn new(store: &Store, clock: Clock) -> Self {
        let broadcaster = Arc::new(Broadcaster::new(clock, store.metrics().clone()));
        let publisher = Arc::clone(&broadcaster);
        store.on_revocations(move |revocations| publisher.publish(revocations));
        // A reading must not wait behind requests, or the feed would be oldest under the greatest load.
        let [reading, beating, ringing] = [(); reader::CONNECTIONS].map(|()| store.with_own_pool(1));
        Self { broadcaster, reading, beating, ringing }
    }

    /// Sets how many subscribers there may be at once, in place of [`SUBSCRIBERS_MAX`].
    pub fn set_subscribers_max(&self, subscribers_max: usize) {
        self.broadcaster.slots().set_max(subscribers_max);
    }

    /// Sets the greatest age at which the database is trusted, in place of [`STALENESS_MAX`].
    pub fn set_staleness_max(&self, staleness_max: Duration) {
        self.broadcaster.set_staleness_max(staleness_max);
    }

    /// Follows the database. Does not return.
    pub async fn run(&self) {
        // On the heap: its loops take some 30 kB, which the caller's future would contain.
        Box::pin(reader::run(&self.broadcaster, &self.reading, &self.beating, &self.ringing)).await;
    }

    /// How long ago the feed was complete; `None` before the first complete reading.
    pub fn age(&self) -> Option<Duration> {
        self.broadcaster.age()
    }

    /// How many revocations are retained, and how many subscribers there are.
    pub fn size(&self) -> (usize, usize) {
        (self.broadcaster.len(), self.broadcaster.slots().taken())
    }

    /// Whether the feed is young enough to answer by itself.
    pub fn is_fresh(&self) -> bool {
        self.age().is_some_and(|age| age <= AGE_MAX) && self.is_trusted()
    }

    /// Whether the database that is read here was seen to commit a short while ago. A deposed primary still answers every
    /// query from before, but commits nothing any more: a beat that was written and read there proves that it is the primary.
    pub fn is_trusted(&self) -> bool {
        self.age().is_some_and(|age| age <= self.broadcaster.staleness_max())
    }

    /// Whether a token is known to be revoked.
    pub fn has_ended(&self, bearer: &Bearer<'_>) -> bool {
        self.broadcaster.revoked().has(bearer)
    }

    /// Whether a token is known to be superseded.
    pub fn has_superseded(&self, session: SessionId, session_epoch: i64) -> bool {
        self.broadcaster.revoked().has_superseded(session, session_epoch)
    }

    /// Whether a key is known to be revoked.
    pub fn has_revoked(&self, key: KeyId) -> bool {
        self.broadcaster.revoked().has_key(key)
    }

    /// Records that a session was found to be revoked, so that its tokens are refused even before the feed has read the
    /// revocation.
    pub fn note_ended(&self, project: &ProjectId, session: SessionId) {
        self.broadcaster.note_ended(project, session);
    }

    /// Waits until everything that was committed before this call is read, at most one second: for answers that depend on a
    /// cut-off by another replica.
    pub async fn catch_up(&self) {
        self.broadcaster.catch_up().await;
    }

    /// Subscribes to what matches the filter, from a cursor or with a snapshot first.
    ///
    /// # Errors
    ///
    /// [`SubscribeError`], if the feed has not been read yet, there are too many subscribers, or there is more than the
    /// subscriber can hold.
    pub fn subscribe(&self, filter: SubscriptionFilter, cursor: Option<&str>) -> Result<Subscription, SubscribeError> {
        let cursor = cursor.map(|text| Cursor::parse(text, filter.project())).transpose()?;
        Subscription::begin(Arc::clone(&self.broadcaster), filter, cursor)
    }

    /// Ends every subscription, for a server that stops: subscribers resume at another replica.
    pub fn close(&self) {
        self.broadcaster.close();
    }
}
