//! The queue for connections, with its time limit and maximum length.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// The queue in which operations wait for a connection, in order. Waiting uses no resources. Cheap to clone; clones
/// share state.
#[derive(Clone)]
pub(super) struct Gate {
    /// One permit for each connection.
    connections: Arc<Semaphore>,
    /// Non-urgent operations also need one of these, which are fewer, so that some connections are reserved for urgent
    /// ones. With a single connection, none is reserved.
    ordinary: Option<Arc<Semaphore>>,
    /// One permit for each operation that waits or runs.
    line: Arc<Semaphore>,
    /// The same for urgent operations.
    urgent_line: Arc<Semaphore>,
}

/// Permits an operation to use a connection; dropping it frees the connection.
pub(super) struct Permit {
    _connection: OwnedSemaphorePermit,
    _ordinary: Option<OwnedSemaphorePermit>,
    _line: OwnedSemaphorePermit,
}

/// The maximum number of waiting operations for each connection.
///
/// Waiting uses no resources, but a refusal does: its client retries at once, and responding takes processor time from
/// the operations that have a connection. In a test, 2,048 clients that were refused without waiting left those no time
/// at all. So the queue is long enough that, except in a flood, waits end by timeout.
const OPERATIONS_PER_CONNECTION_MAX: usize = 256;

impl Gate {
    pub(super) fn new(connections_max: usize) -> Self {
        let semaphore = |places| Arc::new(Semaphore::new(places));
        let line = || semaphore(connections_max * OPERATIONS_PER_CONNECTION_MAX);
        let ordinary = semaphore(connections_max - connections_max.div_ceil(4).min(connections_max - 1));
        Self { connections: semaphore(connections_max), ordinary: Some(ordinary), line: line(), urgent_line: line() }
    }

    pub(super) fn urgent(&self) -> Self {
        Self { ordinary: None, line: Arc::clone(&self.urgent_line), ..self.clone() }
    }

    /// Waits for a free connection.
    ///
    /// # Errors
    ///
    /// Returns the reason: `line` if the queue is full; `time` if the wait timed out.
    pub(super) async fn enter(&self, patience: Duration) -> Result<Permit, &'static str> {
        let line = Arc::clone(&self.line).try_acquire_owned().map_err(|_| "line")?;
        let wait = async {
            let ordinary = match &self.ordinary {
                Some(places) => Some(Arc::clone(places).acquire_owned().await.expect("never closed")),
                None => None,
            };
            let connection = Arc::clone(&self.connections).acquire_owned().await.expect("never closed");
            Permit { _connection: connection, _ordinary: ordinary, _line: line }
        };
        timeout(patience, wait).await.map_err(|_| "time")
    }
}
