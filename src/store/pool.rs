//! The connection pool, which leases a connection for each operation. The number of our server processes is bounded: a
//! connection abandoned during a statement counts until its server process has ended, because a process that waits for
//! a standby does not notice that its client is gone.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use diesel::ConnectionError;
use diesel_async::AsyncPgConnection;
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio::time::timeout;

use super::backend::Backend;
use super::connect::DatabaseHosts;
use super::connect::Opened;
use super::primary::ServerRef;
use super::slots::SlotCount;
use super::writers::Writers;

/// How long the pool does not grow after the server has refused a connection, if it has other connections.
const GROWTH_PAUSE: Duration = Duration::from_millis(100);

/// Leases connections. Cheap to clone; clones share state.
#[derive(Clone)]
pub(super) struct ConnectionPool {
    shared: Arc<PoolState>,
}

struct PoolState {
    target: Arc<DatabaseHosts>,
    /// One permit for each connection that is in use, being opened, or abandoned. Waiters are served in order.
    permits: Arc<Semaphore>,
    /// Idle connections, which hold no permit of `permits`. A connection is opened only by a permit holder that finds
    /// none idle, so the total never exceeds the number of permits.
    idle: Mutex<VecDeque<Pooled>>,
    /// One permit for each idle connection, for permit holders to wait on.
    returned: Semaphore,
    /// The number of connections.
    size: Arc<AtomicUsize>,
    /// The last failure to connect, cleared by a success.
    refusal: Mutex<Option<LastRefusal>>,
}

struct LastRefusal {
    at: Instant,
    message: String,
}

struct Pooled {
    connection: AsyncPgConnection,
    backend: Backend,
    server: ServerRef,
    /// Its writers of the feed, one for each slot to which it has written a revocation.
    writers: Writers,
    counted: Counted,
}

/// Counts as one connection until it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(size: &Arc<AtomicUsize>) -> Self {
        size.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(size))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A leased connection. [`LeasedConnection::give_back`] returns it to the pool; dropping it closes it.
pub(super) struct LeasedConnection {
    pooled: Option<Pooled>,
    permit: Option<OwnedSemaphorePermit>,
    /// Whether it was idle before: the server may have disconnected since.
    is_reused: bool,
    shared: Arc<PoolState>,
}

impl ConnectionPool {
    /// Prepares a pool, without connecting.
    pub(super) fn new(target: Arc<DatabaseHosts>, connections_max: usize) -> Self {
        let shared = PoolState {
            target,
            permits: Arc::new(Semaphore::new(connections_max)),
            idle: Mutex::default(),
            returned: Semaphore::new(0),
            size: Arc::default(),
            refusal: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Leases a connection, as soon as one is idle or can be opened. The caller limits the wait.
    ///
    /// # Errors
    ///
    /// Returns the last host's error if no connection can be opened and there is none to wait for.
    pub(super) async fn lease(&self) -> Result<LeasedConnection, ConnectionError> {
        let shared = &self.shared;
        let permit = Arc::clone(&shared.permits).acquire_owned().await.expect("never closed");
        loop {
            if let Ok(returned) = shared.returned.try_acquire() {
                returned.forget();
            } else {
                let refused = match shared.grow().await {
                    Ok(pooled) => return Ok(self.lend(pooled, permit, false)),
                    Err(refused) => refused,
                };
                if shared.size.load(Ordering::Relaxed) == 0 {
                    return Err(refused);
                }
                // The server may have reached its limit. The connections that we have are returned one by one.
                match timeout(GROWTH_PAUSE, shared.returned.acquire()).await {
                    Ok(returned) => returned.expect("never closed").forget(),
                    Err(_) => continue,
                }
            }
            let pooled = shared.idle().pop_front().expect("one for each permit");
            if !pooled.backend.is_over() && shared.target.primary().is_current(&pooled.server) {
                return Ok(self.lend(pooled, permit, true));
            }
        }
    }

    fn lend(&self, pooled: Pooled, permit: OwnedSemaphorePermit, is_reused: bool) -> LeasedConnection {
        LeasedConnection { pooled: Some(pooled), permit: Some(permit), is_reused, shared: Arc::clone(&self.shared) }
    }

    /// The number of connections, including abandoned ones that are not closed yet, and how many of them are idle.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.shared.size.load(Ordering::Relaxed), self.shared.idle().len())
    }

    /// Why the last attempt to connect failed; `None` if it succeeded.
    pub(super) fn refusal(&self) -> Option<String> {
        self.shared.refusal().as_ref().map(|refused| refused.message.clone())
    }
}

impl PoolState {
    fn idle(&self) -> MutexGuard<'_, VecDeque<Pooled>> {
        self.idle.lock().expect("no one panics while holding it")
    }

    fn refusal(&self) -> MutexGuard<'_, Option<LastRefusal>> {
        self.refusal.lock().expect("no one panics while holding it")
    }

    async fn grow(self: &Arc<Self>) -> Result<Pooled, ConnectionError> {
        let is_full = self.size.load(Ordering::Relaxed) > 0;
        let recent = self
            .refusal()
            .as_ref()
            .filter(|refused| refused.at.elapsed() < GROWTH_PAUSE)
            .map(|refused| refused.message.clone());
        if let Some(message) = recent.filter(|_| is_full) {
            return Err(ConnectionError::BadConnection(message));
        }
        match self.target.connect().await {
            Ok(Opened { client: connection, backend, server }) => {
                *self.refusal() = None;
                Ok(Pooled { connection, backend, server, writers: Writers::new(), counted: Counted::new(&self.size) })
            }
            Err(error) => {
                let message = error.to_string();
                *self.refusal() = Some(LastRefusal { at: Instant::now(), message: message.clone() });
                Err(ConnectionError::BadConnection(message))
            }
        }
    }
}

impl LeasedConnection {
    /// The connection, to run a statement.
    pub(super) fn pg(&mut self) -> &mut AsyncPgConnection {
        &mut self.pooled.as_mut().expect("leased until it is given back").connection
    }

    pub(super) fn backend(&self) -> &Backend {
        &self.pooled.as_ref().expect("leased until it is given back").backend
    }

    /// Takes the connection's writers of the feed, which are lost unless they are put back.
    pub(super) fn take_writers(&mut self) -> Writers {
        self.pooled.as_mut().map(|pooled| std::mem::take(&mut pooled.writers)).unwrap_or_default()
    }

    /// Puts back the connection's writers of the feed.
    pub(super) fn put_writers(&mut self, writers: Writers) {
        if let Some(pooled) = &mut self.pooled {
            pooled.writers = writers;
        }
    }

    /// How many slots the database has.
    pub(super) fn slots(&self) -> &SlotCount {
        self.shared.target.slots()
    }

    /// Whether it was idle before: the server may have disconnected since.
    pub(super) const fn is_reused(&self) -> bool {
        self.is_reused
    }

    /// Whether its server is still the primary; another one may have taken over.
    pub(super) fn is_current(&self) -> bool {
        self.pooled.as_ref().is_some_and(|pooled| self.shared.target.primary().is_current(&pooled.server))
    }

    /// Returns an intact connection, with no statement in progress, to the pool.
    pub(super) fn give_back(mut self) {
        let Some(pooled) = self.pooled.take() else { return };
        if !pooled.backend.is_over() && self.shared.target.primary().is_current(&pooled.server) {
            self.shared.idle().push_back(pooled);
            self.shared.returned.add_permits(1);
        }
        // Before the permit, so that the next waiter finds it.
        drop(self.permit.take());
    }
}

impl Drop for LeasedConnection {
    fn drop(&mut self) {
        let (Some(pooled), Some(permit)) = (self.pooled.take(), self.permit.take()) else { return };
        let Pooled { connection, backend, server, writers: _, counted } = pooled;
        let cancel = connection.cancel_token();
        // The backend's task closes the connection once the server has responded to the pending statement.
        drop(connection);
        let target = Arc::clone(&self.shared.target);
        // Without a runtime, connections end with the process.
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            target.reap(&backend, &cancel, &server).await;
            drop((permit, counted));
        });
    }
}
