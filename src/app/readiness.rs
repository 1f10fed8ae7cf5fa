//! Whether this replica should be sent requests, and why not: one list of conditions, which `/readyz`, `grpc.health.v1`, the
//! log and the metrics all show.

use std::time::Duration;

use super::App;
use crate::store;
use crate::store::Durability;

/// A reason to send this replica no requests.
///
/// `Display` is what `/readyz` prints, so it names no host, user or key. The cause is in `source`, for the log.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// The database does not answer, or takes no writes.
    #[error("the database is unavailable")]
    Database(#[source] store::Error),
    /// The server was told to stop; it still answers.
    #[error("the server is about to stop")]
    Draining,
    /// Requests have been refused for want of a place for some seconds without a break.
    #[error("too many requests are under way")]
    Saturated,
    /// The time by which this replica judges may be too far from the database's.
    #[error("the database's clock is not known well enough")]
    ClockSkew,
    /// What is known of what has ended is older than `--staleness-max`, or nothing is known yet.
    #[error("the feed of revocations is too old")]
    FeedStale,
    /// The database may lose what it acknowledges: sign-outs are refused.
    #[error("the database has {0} off")]
    NotDurable(&'static str),
    /// The tables are not this binary's: a migration was taken back, or is still to come. Later ones are fine.
    #[error("the database lacks migrations")]
    Schema(#[source] Lacking),
    /// Keys do not open: their projects can neither open sessions nor tell their tokens from others'.
    #[error("{0} keys in the database do not open with the configured sealing key")]
    Keys(usize),
    /// A pooler loses prepared statements.
    #[error("a pooler before the database loses prepared statements")]
    Pooler,
}

/// How far the time that a replica goes by may be from the database's: a tenth of the default grace of a refresh. Correction
/// makes up for a machine's clock however wrong; what is left is half of the best round trip, and the drift since.
const CLOCK_ERROR_MAX: Duration = Duration::from_secs(1);

/// The migrations that are not applied.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join(", "))]
pub struct Lacking(Vec<String>);

impl NotReady {
    /// Every condition's name, for metrics that show all of them.
    pub const CONDITIONS: [&'static str; 9] =
        ["database", "draining", "saturated", "clock_skew", "feed", "durability", "schema", "keys", "pooler"];

    /// The name of the condition, as in the metric `sessiond_not_ready`.
    pub const fn condition(&self) -> &'static str {
        match self {
            Self::Database(_) => "database",
            Self::Draining => "draining",
            Self::Saturated => "saturated",
            Self::ClockSkew => "clock_skew",
            Self::FeedStale => "feed",
            Self::NotDurable(_) => "durability",
            Self::Schema(_) => "schema",
            Self::Keys(_) => "keys",
            Self::Pooler => "pooler",
        }
    }
}

impl App {
    /// Checks every condition. Empty when the service can do its work.
    pub async fn readiness(&self) -> Vec<NotReady> {
        // Not behind the requests: where they fill the pool, the database is not away.
        let database = self.probe.ping().await.err().map(NotReady::Database);
        let draining = self.load.is_draining().then_some(NotReady::Draining);
        let saturated = self.load.look().then_some(NotReady::Saturated);
        let clock = (!self.clock.is_known(CLOCK_ERROR_MAX)).then_some(NotReady::ClockSkew);
        let feed = (!self.feed().is_trusted()).then_some(NotReady::FeedStale);
        let durability = match self.store.known_durability() {
            Durability::Kept => None,
            lost => Some(NotReady::NotDurable(lost.setting())),
        };
        // When it does not answer, that is said already.
        let lacking = self.probe.pending_migrations().await.unwrap_or_default();
        let schema = (!lacking.is_empty()).then(|| NotReady::Schema(Lacking(lacking)));
        let unopened = self.keys.snapshot().unopened();
        let keys = (unopened > 0).then_some(NotReady::Keys(unopened));
        let pooler = self.store.loses_statements().then_some(NotReady::Pooler);
        [database, draining, saturated, clock, feed, durability, schema, keys, pooler].into_iter().flatten().collect()
    }
}
