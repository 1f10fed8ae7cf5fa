//! A Postgres server process, as seen by its client: the task that drives the connection, warnings from the server, and
//! whether the connection has ended.
//!
//! diesel-async can drive a connection too, but drops the server's warnings. One of them matters: a commit that gave up
//! waiting for its standbys is confirmed like any other, after a warning.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio_postgres::AsyncMessage;
use tokio_postgres::error::DbError;
use tokio_postgres::error::Severity;
use tokio_postgres::error::SqlState;

use super::wire::Connection;
use super::wire::WireState;

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionEnd {
    /// The server or the network closed it.
    Lost,
    /// This side closed it, after the server had responded to everything.
    Closed,
}

/// A handle to the connection's task. Cheap to clone; clones share state.
#[derive(Clone)]
pub(super) struct Backend {
    number: u64,
    has_warned: Arc<AtomicBool>,
    state: Arc<WireState>,
    end: watch::Receiver<Option<ConnectionEnd>>,
}

impl Backend {
    /// Drives a connection on its own task until it ends: once the client is dropped, when the server has responded to
    /// all pending requests.
    ///
    /// `bell` receives the payloads of notifications. They are dropped while it is full: one is enough to wake the
    /// reader.
    pub(super) fn drive(mut connection: Connection, state: Arc<WireState>, bell: Option<mpsc::Sender<String>>) -> Self {
        let (ended, end) = watch::channel(None);
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let backend = Self { number, has_warned: Arc::default(), state, end };
        let has_warned = Arc::clone(&backend.has_warned);
        tokio::spawn(async move {
            let end = loop {
                match poll_fn(|context| connection.poll_message(context)).await {
                    // The server sends the warning before the confirmation, and messages are handled in order: when the
                    // confirmation is read, this is set.
                    Some(Ok(AsyncMessage::Notice(notice))) if is_doubt(&notice) => {
                        has_warned.store(true, Ordering::Release);
                    }
                    Some(Ok(AsyncMessage::Notification(rung))) => {
                        bell.as_ref().map(|bell| bell.try_send(rung.payload().to_owned()));
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => {
                        tracing::debug!(%error, "a connection to the database was lost");
                        break ConnectionEnd::Lost;
                    }
                    None => break ConnectionEnd::Closed,
                }
            };
            drop((connection, bell));
            ended.send_replace(Some(end));
        });
        backend
    }

    /// The connection's number, unique within this process.
    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    /// What was read from the wire, beside the driver.
    pub(super) fn state(&self) -> &WireState {
        &self.state
    }

    /// Clears the flag of earlier warnings.
    pub(super) fn forget_warnings(&self) {
        self.has_warned.store(false, Ordering::Release);
    }

    /// Whether the server has warned since [`Backend::forget_warnings`].
    pub(super) fn has_warned(&self) -> bool {
        self.has_warned.load(Ordering::Acquire)
    }

    /// Whether the connection has ended.
    pub(super) fn is_over(&self) -> bool {
        self.end.borrow().is_some()
    }

    /// Waits until the connection has ended.
    pub(super) async fn ended(&self) -> ConnectionEnd {
        let mut end = self.end.clone();
        // An error means that the task is gone: the runtime is shutting down.
        end.wait_for(Option::is_some).await.ok().and_then(|end| *end).unwrap_or(ConnectionEnd::Lost)
    }
}

/// Whether a notice makes a commit doubtful. "canceling wait for synchronous replication" has the SQLSTATE of any
/// warning, and its text is in the server's language, so every such warning counts. The notice with 57P01 means the
/// same; the server then closes the connection.
fn is_doubt(notice: &DbError) -> bool {
    let codes = [SqlState::WARNING, SqlState::ADMIN_SHUTDOWN];
    notice.parsed_severity() == Some(Severity::Warning) && codes.contains(notice.code())
}
