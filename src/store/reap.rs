//! Reaps abandoned connections: waits until their server processes have ended, and cancels statements that prevent it.

use std::time::Duration;

use tokio::time::sleep;
use tokio::time::timeout;
use tokio_postgres::CancelToken;

use super::backend::Backend;
use super::backend::ConnectionEnd;
use super::connect::DatabaseHosts;
use super::primary::ServerRef;
use super::refused::HostError;
use super::wire::AlreadyNegotiated;

/// How long an abandoned connection may take to end before its statement is cancelled. Most have no statement in
/// progress.
const CANCEL_AFTER: Duration = Duration::from_millis(20);

/// The first and the longest interval between cancel requests, doubled each time: a request may arrive between two
/// statements.
const CANCEL_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How long a server process may take to exit after its client has disconnected.
const GOODBYE: Duration = Duration::from_millis(20);

impl DatabaseHosts {
    /// Waits until the server process of an abandoned connection has ended, and cancels the statement that delays it.
    ///
    /// A process that waits for a standby does not notice that its client is gone. When cancelled, it has committed
    /// locally, and the wait of the next commit covers it (see `tx`). Also returns once another server has taken over:
    /// processes on the previous one cannot be reached any more. A network that drops all packets is detected by
    /// keep-alives.
    pub(super) async fn reap(&self, backend: &Backend, cancel: &CancelToken, server: &ServerRef) {
        let mut patience = CANCEL_AFTER;
        loop {
            tokio::select! {
                end = backend.ended() => {
                    if end == ConnectionEnd::Closed {
                        sleep(GOODBYE).await;
                    }
                    return;
                }
                () = self.primary().superseded(server) => return,
                () = sleep(patience) => {}
            }
            // Its result does not matter: if it worked, the connection ends.
            let _ = timeout(self.deadline(), self.cancel(cancel, server)).await;
            patience = (2 * patience).clamp(CANCEL_AGAIN.0, CANCEL_AGAIN.1);
        }
    }

    async fn cancel(&self, cancel: &CancelToken, server: &ServerRef) -> Result<(), HostError> {
        let (wire, _) = self.reach(server.host).await?;
        Ok(cancel.cancel_query_raw(wire, AlreadyNegotiated).await?)
    }
}
