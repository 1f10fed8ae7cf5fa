//! The queue for connections: what waits how long, and what is refused at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Where operations wait for a connection, in order. Waiting costs nothing. Cheap to clone; clones share state.
#[derive(Clone)]
pub(super) struct Gate {
    /// One place for each connection.
    connections: Arc<Semaphore>,
    /// What operations that are not urgent take besides: fewer, so that some connections are always the urgent ones'. With
    /// a single connection there is nothing to keep back.
    ordinary: Option<Arc<Semaphore>>,
    /// A place for each that waits or is under way.
    line: Arc<Semaphore>,
    /// The same for urgent ones.
    urgent_line: Arc<Semaphore>,
}

/// Permits an operation to use a connection, until it is dropped.
pub(super) struct Permit {
    _connection: OwnedSemaphorePermit,
    _ordinary: Option<OwnedSemaphorePermit>,
    _line: OwnedSemaphorePermit,
}

/// The most operations that wait for each connection.
///
/// Waiting costs nothing, and a refusal does: its client comes back at once, and answering it takes the processor from the
/// operations that have a connection. 2,048 clients that were refused without a wait left them nothing at all. So the line
/// has room for as many as wait out their time anywhere but in a flood, and time is what ends most waits.
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

    /// Waits for a connection to be free.
    ///
    /// # Errors
    ///
    /// What is short: `line`, if too many wait; `time`, if the wait was in vain.
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
