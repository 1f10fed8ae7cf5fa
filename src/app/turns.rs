//! A keyed bulkhead: of the operations on one session, or on one user, a few at a time go on to the database. The rest wait
//! in here, in their order, where waiting costs a few bytes and not a connection. A row that is locked, or has many
//! callers, would otherwise hold the whole pool.

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

/// How many operations on one key use the database at a time. More than one: the next is there when the first commits.
const AT_ONCE: usize = 2;

/// How many more may wait; further ones are refused.
const WAITING_MAX: usize = 128;

/// After how long to try again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What an operation may wait for in the database.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Key {
    /// A session's row.
    Session(ProjectId, SessionId),
    /// A user's row.
    User(ProjectId, UserId),
}

/// See the module. Cheap to clone; clones share state.
#[derive(Clone)]
pub(super) struct Turns(Arc<Shared>);

struct Shared {
    patience: Duration,
    metrics: Metrics,
    lines: Mutex<HashMap<Key, Line>>,
}

/// Who has a turn, and who waits for one.
struct Line {
    places: Arc<Semaphore>,
    interested: usize,
}

impl Turns {
    /// Lets an operation wait this long.
    pub(super) fn new(patience: Duration, metrics: Metrics) -> Self {
        Self(Arc::new(Shared { patience, metrics, lines: Mutex::default() }))
    }

    /// Waits for a turn with every one of the keys. The turn must be kept for as long as the database is busy with the
    /// operation: by its transaction, which goes on when its caller does not.
    ///
    /// # Errors
    ///
    /// [`Refusal::RateLimited`] where too many wait already, [`store::Error::Unavailable`] when the time is over.
    pub(super) async fn take(
        &self,
        operation: &'static str,
        keys: impl IntoIterator<Item = Key>,
    ) -> Result<Turn, Error> {
        let mut keys: Vec<Key> = keys.into_iter().collect();
        // All take them in one order, each once: nobody waits for somebody who waits for them.
        keys.sort_unstable();
        keys.dedup();
        let until = Instant::now() + self.0.patience;
        let mut turn = Turn(vec![]);
        for key in keys {
            let (places, mut hold) = self.join(key)?;
            let Ok(place) = timeout_at(until, places.acquire_owned()).await else {
                self.0.metrics.turn_refused("time");
                return Err(store::Error::late(operation).into());
            };
            hold.place = Some(place.expect("never closed"));
            turn.0.push(hold);
        }
        Ok(turn)
    }

    fn join(&self, key: Key) -> Result<(Arc<Semaphore>, Hold), Error> {
        let mut lines = self.0.lines.lock().expect("no one panics while holding it");
        let new = || Line { places: Arc::new(Semaphore::new(AT_ONCE)), interested: 0 };
        let line = lines.entry(key.clone()).or_insert_with(new);
        if line.interested >= AT_ONCE + WAITING_MAX {
            self.0.metrics.turn_refused("line");
            return Err(Refusal::RateLimited { retry_after: RETRY_AFTER }.into());
        }
        line.interested += 1;
        Ok((Arc::clone(&line.places), Hold { place: None, key, turns: self.clone() }))
    }
}

/// A turn with every key that was asked for. Given back when dropped.
pub(super) struct Turn(Vec<Hold>);

struct Hold {
    place: Option<OwnedSemaphorePermit>,
    key: Key,
    turns: Turns,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut lines = self.turns.0.lines.lock().expect("no one panics while holding it");
        drop(self.place.take());
        if let Some(line) = lines.get_mut(&self.key) {
            line.interested -= 1;
            if line.interested == 0 {
                lines.remove(&self.key);
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
    async fn a_few_have_their_turn_and_the_rest_wait_in_their_order() {
        let turns = Turns::new(Duration::from_secs(10), Metrics::default());
        let first = turns.take("test", [key("ada")]).await.expect("a turn");
        let second = turns.take("test", [key("ada"), key("ada")]).await.expect("each key counts once");
        let mut third = Box::pin(turns.take("test", [key("ada"), key("bob")]));
        assert!(third.as_mut().now_or_never().is_none());
        assert!(turns.take("test", [key("eve")]).await.is_ok(), "another's are another's");
        drop(first);
        let third = third.await.expect("its turn");
        drop((second, third));
        assert!(turns.0.lines.lock().expect("no panic").is_empty(), "nothing stays");
    }

    #[tokio::test]
    async fn a_line_has_an_end_and_so_has_patience() {
        let turns = Turns::new(Duration::from_millis(50), Metrics::default());
        let held: Vec<_> = futures_util::future::join_all((0..AT_ONCE).map(|_| turns.take("test", [key("ada")]))).await;
        assert!(held.iter().all(Result::is_ok));
        let mut waiting: Vec<_> = (0..WAITING_MAX).map(|_| Box::pin(turns.take("test", [key("ada")]))).collect();
        assert!(waiting.iter_mut().all(|one| one.as_mut().now_or_never().is_none()));
        let refused = turns.take("test", [key("ada")]).await;
        assert!(matches!(refused, Err(Error::Refused(Refusal::RateLimited { .. }))));
        let late = waiting.remove(0).await;
        assert!(matches!(late, Err(Error::Store(_))), "told in time");
        drop((waiting, held));
        assert!(turns.0.lines.lock().expect("no panic").is_empty(), "nothing stays");
    }
}
