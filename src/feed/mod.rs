//! What has ended, live: read from the database as it commits, and told to whoever follows.
//!
//! The table is the truth; a doorbell says when to look, and a look every so often makes up for a doorbell that does not ring.
//! What this replica ends itself is told straight after its commit. How old the news may be is known at every moment, so that
//! nobody takes silence for an answer.
//!
//! What is told is what a reader of the database sees, and that may be more than a failover keeps: a commit whose wait for a
//! standby was cancelled is visible, and lost with the primary. That is harmless, because news only refuses: a session that
//! lives again after the failover is refused by those who heard of its end, until they hear of the new history and forget
//! the old one. Nobody was told that the sign-out succeeded (`store::tx`).

mod cursor;
mod hub;
mod ledger;
mod position;
mod reader;
mod subscription;

use std::sync::Arc;
use std::time::Duration;

pub use cursor::MalformedCursor;
pub use hub::Why;
pub use subscription::End;
pub use subscription::Event;
pub use subscription::Filter;
pub use subscription::Message;
pub use subscription::Refused;
pub use subscription::Subscription;

use cursor::Cursor;
use hub::Hub;

use crate::clock::Clock;
use crate::id::KeyId;
use crate::id::ProjectId;
use crate::id::SessionId;
use crate::session::revoked::Bearer;
use crate::store::Store;

/// How old the news may be for questions to be answered by it alone. Older, and whoever asks is better off with the database.
pub const AGE_MAX: Duration = Duration::from_secs(2);

/// How old the news may be for the database to be believed, unless told otherwise; see [`Feed::is_trusted`].
pub const STALENESS_MAX: Duration = Duration::from_secs(5);

/// How many connections of its own a feed has: those of its loops, the one that listens, and one that asks which server is
/// the newest.
pub const CONNECTIONS: usize = reader::CONNECTIONS + 2;

/// How often subscribers hear that the stream is alive, and how old its news may be.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// How many may follow at once, unless told otherwise.
pub const SUBSCRIBERS_MAX: usize = 4_096;

/// How long an entry is remembered beyond the last token that it ends, for verifiers whose clocks are behind.
const LEEWAY: Duration = Duration::from_secs(5 * 60);

/// The feed of one replica. Clones are one and the same.
#[derive(Clone)]
pub struct Feed {
    hub: Arc<Hub>,
    /// Its only connection is the reader's, so that a loss of it is noticed.
    reading: Store,
    store: Store,
}

impl Feed {
    /// Prepares the feed of a database. It knows nothing yet: see [`Feed::run`].
    pub fn new(store: &Store, clock: Clock) -> Self {
        let hub = Arc::new(Hub::new(clock, store.metrics().clone()));
        let told = Arc::clone(&hub);
        store.on_news(move |news| told.tell(news));
        // A reading must not wait behind requests, or the news would be oldest when there is most of it.
        Self { hub, reading: store.aside(1), store: store.aside(reader::CONNECTIONS - 1) }
    }

    /// Lets so many follow at once, in place of [`SUBSCRIBERS_MAX`].
    pub fn set_subscribers_max(&self, subscribers_max: usize) {
        self.hub.set_subscribers_max(subscribers_max);
    }

    /// Trusts news of this age, in place of [`STALENESS_MAX`].
    pub fn set_staleness_max(&self, staleness_max: Duration) {
        self.hub.set_staleness_max(staleness_max);
    }

    /// Follows the database, for ever.
    pub async fn run(&self) {
        reader::run(&self.hub, &self.reading, &self.store).await;
    }

    /// How old the news may be; `None` before the first complete reading.
    pub fn age(&self) -> Option<Duration> {
        self.hub.age()
    }

    /// How many entries are remembered, and how many subscribers there are.
    pub fn size(&self) -> (usize, usize) {
        (self.hub.len(), self.hub.subscribers())
    }

    /// Whether what is known is young enough to answer by.
    pub fn is_fresh(&self) -> bool {
        self.age().is_some_and(|age| age <= AGE_MAX) && self.is_trusted()
    }

    /// Whether the database that is read here was seen to commit a short while ago. A primary that was deposed answers every
    /// question with what was true before, but commits nothing any more: a sign of life that was written and read there is
    /// the proof that it is the one in charge.
    pub fn is_trusted(&self) -> bool {
        self.age().is_some_and(|age| age <= self.hub.staleness_max())
    }

    /// Whether a token is known to be over.
    pub fn has_ended(&self, bearer: &Bearer<'_>) -> bool {
        self.hub.revoked().has(bearer)
    }

    /// Whether a key is known to be revoked.
    pub fn has_revoked(&self, key: KeyId) -> bool {
        self.hub.revoked().has_key(key)
    }

    /// Takes in that a session was found to have ended, whoever ended it: the caller who is told so is not let in afterwards,
    /// though the feed may bring it a moment later.
    pub fn note_ended(&self, project: &ProjectId, session: SessionId) {
        self.hub.note_ended(project, session);
    }

    /// Waits until all is read that was committed before this call, or a second has passed: for answers that rest on a cut-off
    /// of another replica.
    pub async fn catch_up(&self) {
        self.hub.catch_up().await;
    }

    /// Follows what concerns the filter, from a cursor on or with a snapshot first.
    ///
    /// # Errors
    ///
    /// [`Refused`], when there is nothing to tell yet or too many are listening.
    pub fn subscribe(&self, filter: Filter, cursor: Option<&str>) -> Result<Subscription, Refused> {
        let cursor = cursor.map(|text| Cursor::parse(text, filter.project())).transpose()?;
        Subscription::begin(Arc::clone(&self.hub), filter, cursor)
    }

    /// Ends every subscription, for a server that stops: their owners go on elsewhere.
    pub fn close(&self) {
        self.hub.close();
    }
}
