//! Readiness: whether this replica should get requests, and if not, why. One list of conditions, which `/readyz`,
//! `grpc.health.v1`, the log and the metrics all show.

use std::time::Duration;

use super::App;
use crate::store;
use crate::store::Durability;
use crate::store::WritesRefused;

/// A reason why this replica should get no requests.
///
/// `Display` is what `/readyz` prints, so it names no host, user or key. The cause is in `source`, for the log.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// The database does not answer, or no host of it can be used.
    #[error("the database is unavailable")]
    Database(#[source] store::Error),
    /// The database answers, but takes no writes.
    #[error("the database refuses writes: {0}")]
    Writes(WritesRefused),
    /// The server is stopping; it still answers.
    #[error("the server is about to stop")]
    Draining,
    /// Requests have been refused slots for ten seconds without a break.
    #[error("too many requests are in progress")]
    Saturated,
    /// The clock that this replica uses may differ too much from the database's.
    #[error("the database's clock is not known well enough")]
    ClockSkew,
    /// The feed of revocations has not been read since the start.
    #[error("the feed of revocations has not been read yet")]
    FeedUnread,
    /// The feed of revocations is older than `--staleness-max`.
    #[error("the feed of revocations is too old")]
    FeedStale,
    /// The database may lose acknowledged commits, so sign-outs are refused.
    #[error("the database has {0} off")]
    NotDurable(&'static str),
    /// The node of a divided database that is asked may have left the cluster, so writes are refused.
    #[error("{}", store::Unlisted)]
    Unlisted,
    /// A migration that this binary needs was reverted, or is not applied yet. Later ones are fine.
    #[error("the database lacks migrations")]
    Schema(#[source] Lacking),
    /// Keys do not open: their projects can neither create sessions nor verify tokens.
    #[error("{0} keys in the database do not open with the configured sealing key")]
    Keys(usize),
    /// A connection pooler loses prepared statements.
    #[error("a pooler before the database loses prepared statements")]
    Pooler,
}

/// The largest error of a replica's corrected clock: a tenth of the default refresh grace. The correction removes any offset
/// of the machine's clock; what remains is half of the best round trip, and the drift since.
const CLOCK_ERROR_MAX: Duration = Duration::from_secs(1);

/// The migrations that are not applied.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join(", "))]
pub struct Lacking(Vec<String>);

impl NotReady {
    /// The names of all conditions, for the metrics.
    pub const CONDITIONS: [&'static str; 11] = [
        "database",
        "writes",
        "draining",
        "saturated",
        "clock_skew",
        "feed",
        "durability",
        "membership",
        "schema",
        "keys",
        "pooler",
    ];

    /// The name of the condition, as in the metric `sessiond_not_ready`.
    pub const fn condition(&self) -> &'static str {
        match self {
            Self::Database(_) => "database",
            Self::Writes(_) => "writes",
            Self::Draining => "draining",
            Self::Saturated => "saturated",
            Self::ClockSkew => "clock_skew",
            Self::FeedUnread | Self::FeedStale => "feed",
            Self::NotDurable(_) => "durability",
            Self::Unlisted => "membership",
            Self::Schema(_) => "schema",
            Self::Keys(_) => "keys",
            Self::Pooler => "pooler",
        }
    }
}

impl App {
    /// Checks every condition. Returns those that fail; empty if the replica is ready.
    pub async fn readiness(&self) -> Vec<NotReady> {
        // Over its own connection: the database is not unavailable because requests fill the pool.
        let (database, writes) = match self.probe.writes_refused().await {
            Ok(refused) => (None, refused.map(NotReady::Writes)),
            Err(error) => (Some(NotReady::Database(error)), None),
        };
        let draining = self.load.is_draining().then_some(NotReady::Draining);
        let saturated = self.load.check_saturated().then_some(NotReady::Saturated);
        let clock = (!self.clock.is_known(CLOCK_ERROR_MAX)).then_some(NotReady::ClockSkew);
        let feed = match self.feed().age() {
            None => Some(NotReady::FeedUnread),
            Some(_) => (!self.feed().is_trusted()).then_some(NotReady::FeedStale),
        };
        let durability = match self.store.known_durability() {
            Durability::Kept => None,
            lost => Some(NotReady::NotDurable(lost.setting())),
        };
        let unlisted = (!self.store.is_listed()).then_some(NotReady::Unlisted);
        // If it does not answer, that is reported above.
        let lacking = self.probe.pending_migrations().await.unwrap_or_default();
        let schema = (!lacking.is_empty()).then(|| NotReady::Schema(Lacking(lacking)));
        let unopened = self.keys.snapshot().unopened();
        let keys = (unopened > 0).then_some(NotReady::Keys(unopened));
        let pooler = self.store.loses_statements().then_some(NotReady::Pooler);
        [database, writes, draining, saturated, clock, feed, durability, unlisted, schema, keys, pooler]
            .into_iter()
            .flatten()
            .collect()
    }
}
