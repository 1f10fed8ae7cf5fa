//! Whether this replica should be sent requests, and why not: one list of conditions, which `/readyz`, `grpc.health.v1`, the
//! log and the metrics all show.

use super::App;
use crate::store;

/// A reason to send this replica no requests.
///
/// `Display` is what `/readyz` prints, so it names no host, user or key. The cause is in `source`, for the log.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// The database does not answer, or takes no writes.
    #[error("the database is unavailable")]
    Database(#[source] store::Error),
}

impl NotReady {
    /// Every condition's name, for metrics that show all of them.
    pub const CONDITIONS: [&'static str; 1] = ["database"];

    /// The name of the condition, as in the metric `sessiond_not_ready`.
    pub const fn condition(&self) -> &'static str {
        match self {
            Self::Database(_) => "database",
        }
    }
}

impl App {
    /// Checks every condition. Empty when the service can do its work.
    pub async fn readiness(&self) -> Vec<NotReady> {
        let database = self.store.ping().await.err().map(NotReady::Database);
        database.into_iter().collect()
    }
}
