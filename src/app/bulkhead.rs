//! A keyed bulkhead: limits how many operations on one session or one user use the database at a time. The others wait here in
//! order, which costs a few bytes each and no connection. Otherwise operations on one locked or busy row could hold the whole
//! pool.
//!
//! Each kind of operation has a lane of its own: somebody who has a copy of a refresh token, and refreshes without end, must not
//! keep its owner from signing out.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio::time::timeout_at;

use super::Error;
use crate::store;
use crate::telemetry::Metrics;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::id::UserId;
use sessiond_core::session::Refusal;

/// The most operations of a lane on one key that use the database at a time. More than one, so that the next is ready when one
/// commits.
const CONCURRENT_MAX: usize = 2;

/// The most of a lane that wait for one key; further ones are refused.
const WAITING_MAX: usize = 128;

/// How long a refused caller should wait before it retries.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Operations of one lane wait for each other, and for no others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Lane {
    /// Ends the caller's own session.
    SignOut,
    /// Ends other sessions.
    Revoke,
    /// Opens, refreshes or updates a session.
    Use,
}

/// A row that an operation locks.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Key {
    /// A session's row.
    Session(ProjectId, SessionId),
    /// A user's row.
    User(ProjectId, UserId),
}

/// The bulkhead. Cheap to clone; clones share state.
#[derive(Clone)]
pub(super) struct Bulkhead(Arc<BulkheadState>);

struct BulkheadState {
    wait_max: Duration,
    metrics: Metrics,
    queues: Mutex<HashMap<(Lane, Key), Queue>>,
}

/// The operations of a lane on one key.
struct Queue {
    permits: Arc<Semaphore>,
    /// How many hold a permit or wait for one.
    count: usize,
}

impl Bulkhead {
    /// Creates a bulkhead in which an operation waits at most `wait_max`.
    pub(super) fn new(wait_max: Duration, metrics: Metrics) -> Self {
        Self(Arc::new(BulkheadState { wait_max, metrics, queues: Mutex::default() }))
    }

    /// Waits for a permit for each of the keys. The transaction must hold the permit until it ends, because it goes on when its
    /// caller is dropped.
    ///
    /// # Errors
    ///
    /// [`Refusal::RateLimited`] if too many already wait, [`store::Error::Unavailable`] if the wait takes too long.
    pub(super) async fn acquire(
        &self,
        operation: &'static str,
        lane: Lane,
        keys: impl IntoIterator<Item = Key>,
    ) -> Result<Permit, Error> {
        let mut keys: Vec<Key> = keys.into_iter().collect();
        // Everyone acquires them in the same order and without duplicates, so there is no deadlock.
        keys.sort_unstable();
        keys.dedup();
        let until = Instant::now() + self.0.wait_max;
        let mut permit = Permit(vec![]);
        for key in keys {
            let (permits, mut ticket) = self.join((lane, key))?;
            let Ok(acquired) = timeout_at(until, permits.acquire_owned()).await else {
                self.0.metrics.turn_refused("time");
                return Err(store::Error::late(operation).into());
            };
            ticket.permit = Some(acquired.expect("never closed"));
            permit.0.push(ticket);
        }
        Ok(permit)
    }

    /// Joins the queue of a lane for a key.
    fn join(&self, key: (Lane, Key)) -> Result<(Arc<Semaphore>, Ticket), Error> {
        let mut queues = self.0.queues.lock().expect("no one panics while holding it");
        let new = || Queue { permits: Arc::new(Semaphore::new(CONCURRENT_MAX)), count: 0 };
        let queue = queues.entry(key.clone()).or_insert_with(new);
        if queue.count >= CONCURRENT_MAX + WAITING_MAX {
            self.0.metrics.turn_refused("line");
            return Err(Refusal::RateLimited { retry_after: RETRY_AFTER }.into());
        }
        queue.count += 1;
        Ok((Arc::clone(&queue.permits), Ticket { permit: None, key, bulkhead: self.clone() }))
    }
}

/// A permit for every requested key. Released when dropped.
pub(super) struct Permit(Vec<Ticket>);

/// A place in a queue, with the permit once it is acquired.
struct Ticket {
    permit: Option<OwnedSemaphorePermit>,
    key: (Lane, Key),
    bulkhead: Bulkhead,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut queues = self.bulkhead.0.queues.lock().expect("no one panics while holding it");
        drop(self.permit.take());
        if let Some(queue) = queues.get_mut(&self.key) {
            queue.count -= 1;
            if queue.count == 0 {
                queues.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn key(user: &str) -> Key {
        Key::User(ProjectId::parse("demo").expect("a name"), UserId::parse(user).expect("a name"))
    }

    #[tokio::test]
    async fn a_few_get_a_permit_and_the_rest_wait_in_order() {
        let bulkhead = Bulkhead::new(Duration::from_secs(10), Metrics::default());
        let first = bulkhead.acquire("test", Lane::Use, [key("ada")]).await.expect("a permit");
        let second = bulkhead.acquire("test", Lane::Use, [key("ada"), key("ada")]).await.expect("each key counts once");
        let mut third = Box::pin(bulkhead.acquire("test", Lane::Use, [key("ada"), key("bob")]));
        assert!(third.as_mut().now_or_never().is_none());
        assert!(bulkhead.acquire("test", Lane::Use, [key("eve")]).await.is_ok(), "other keys are independent");
        drop(first);
        let third = third.await.expect("its permit");
        drop((second, third));
        assert!(bulkhead.0.queues.lock().expect("no panic").is_empty(), "no queue is left");
    }

    #[tokio::test]
    async fn the_queue_and_the_wait_are_bounded() {
        let bulkhead = Bulkhead::new(Duration::from_millis(50), Metrics::default());
        let held: Vec<_> = futures_util::future::join_all(
            (0..CONCURRENT_MAX).map(|_| bulkhead.acquire("test", Lane::Use, [key("ada")])),
        )
        .await;
        assert!(held.iter().all(Result::is_ok));
        let mut waiting: Vec<_> =
            (0..WAITING_MAX).map(|_| Box::pin(bulkhead.acquire("test", Lane::Use, [key("ada")]))).collect();
        assert!(waiting.iter_mut().all(|one| one.as_mut().now_or_never().is_none()));
        let refused = bulkhead.acquire("test", Lane::Use, [key("ada")]).await;
        assert!(matches!(refused, Err(Error::Refused(Refusal::RateLimited { .. }))));
        assert!(bulkhead.acquire("test", Lane::SignOut, [key("ada")]).await.is_ok(), "another lane is independent");
        let late = waiting.remove(0).await;
        assert!(matches!(late, Err(Error::Store(_))), "fails in time");
        drop((waiting, held));
        assert!(bulkhead.0.queues.lock().expect("no panic").is_empty(), "no queue is left");
    }
}
