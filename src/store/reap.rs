//! Connections that were given up: their server processes are waited for, and ended where they do not end by themselves.

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

/// How long a connection that was given up may take to end by itself before its statement is cancelled. Most have none.
const CANCEL_AFTER: Duration = Duration::from_millis(20);

/// How often its statement is cancelled again: a request may come between two statements. Doubled each time.
const CANCEL_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How long a server process may take to go once its client has said goodbye.
const GOODBYE: Duration = Duration::from_millis(20);

impl DatabaseHosts {
    /// Waits until the server process of a connection that was given up is gone, and cancels the statement that holds it up.
    ///
    /// A process that waits for a standby does not notice that its client has left. Cancelled, it has committed, and the wait
    /// of the next one takes its place (see `tx`). Also returns once another server has taken over: what becomes of
    /// processes on the one before is out of our hands. A network that swallows everything is found out by keep-alives.
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
            // Whether it was heard shows by itself.
            let _ = timeout(self.deadline(), self.cancel(cancel, server)).await;
            patience = (2 * patience).clamp(CANCEL_AGAIN.0, CANCEL_AGAIN.1);
        }
    }

    async fn cancel(&self, cancel: &CancelToken, server: &ServerRef) -> Result<(), HostError> {
        let (wire, _) = self.reach(server.host).await?;
        Ok(cancel.cancel_query_raw(wire, AlreadyNegotiated).await?)
    }
}
