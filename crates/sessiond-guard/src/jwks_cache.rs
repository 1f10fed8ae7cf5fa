//! The project's public keys, as last read from its JWK Set.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio::time::timeout;

use super::time::Time;
use sessiond_core::id::KeyId;
use sessiond_core::token::jwks::VerifyingKeys;
use sessiond_core::token::keys::VerifyingKey;

/// Keys remain usable for this many times their `max-age`: once as cached, and once more to survive an outage. A key that
/// signs before then was already published when they were read.
const USABLE_MAX_AGES: u32 = 2;

/// The shortest time between two reads that unknown keys cause: anyone can make up a `kid`.
pub(super) const READ_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// How long a token under an unknown key waits for the keys to be read.
const READ_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Default)]
pub(super) struct JwksCache {
    cached: ArcSwapOption<CachedKeys>,
    /// A token named an unknown key.
    requested: Notify,
    reads: watch::Sender<Reads>,
}

struct CachedKeys {
    keys: VerifyingKeys,
    /// When the request was sent, on the monotonic clock.
    requested_at: Duration,
    max_age: Duration,
}

#[derive(Clone, Copy, Default)]
struct Reads {
    begun: u64,
    done: u64,
    /// When the last one began.
    last_begun_at: Option<Instant>,
    has_last_succeeded: bool,
}

pub(super) enum Lookup<T> {
    Known(T),
    /// The key is not in the JWK Set.
    Unknown,
    /// The JWK Set was never read.
    NoKeys,
}

impl JwksCache {
    /// Calls `use_key` with the key of this `kid`. Takes no lock.
    pub(super) fn with_key<T>(&self, id: KeyId, use_key: impl FnOnce(&VerifyingKey) -> T) -> Lookup<T> {
        match &*self.cached.load() {
            None => Lookup::NoKeys,
            Some(cached) => cached.keys.find(id).map_or(Lookup::Unknown, |key| Lookup::Known(use_key(key))),
        }
    }

    /// Whether the keys are recent enough to verify tokens with.
    pub(super) fn is_usable(&self, time: &Time) -> bool {
        let cached = self.cached.load();
        cached.as_ref().is_some_and(|cached| cached.age(time) <= cached.max_age * USABLE_MAX_AGES)
    }

    /// The time since the keys were last read.
    pub(super) fn age(&self, time: &Time) -> Option<Duration> {
        self.cached.load().as_ref().map(|cached| cached.age(time))
    }

    pub(super) fn store(&self, keys: VerifyingKeys, requested_at: Duration, max_age: Duration) {
        self.cached.store(Some(Arc::new(CachedKeys { keys, requested_at, max_age })));
    }

    /// Requests a read without waiting for it.
    pub(super) fn request_read(&self) {
        let last = self.reads.borrow().last_begun_at;
        if last.is_none_or(|begun_at| begun_at.elapsed() >= READ_INTERVAL_MIN) {
            self.requested.notify_one();
        }
    }

    /// Resolves when a read is requested.
    pub(super) async fn requested(&self) {
        self.requested.notified().await;
    }

    /// Requests a read and waits for it, unless the keys were read a moment ago. Returns whether the cached keys are now the
    /// published ones.
    pub(super) async fn read_now(&self) -> bool {
        let seen = *self.reads.borrow();
        let is_recent = seen.last_begun_at.is_some_and(|begun_at| begun_at.elapsed() < READ_INTERVAL_MIN);
        if is_recent && seen.begun == seen.done {
            return seen.has_last_succeeded;
        }
        // A read in progress may have been sent before the key was published; by the next token it is no longer recent.
        let awaited = if seen.begun > seen.done { seen.begun } else { seen.begun + 1 };
        self.requested.notify_one();
        let mut reads = self.reads.subscribe();
        let done = timeout(READ_TIMEOUT, reads.wait_for(|reads| reads.done >= awaited)).await;
        matches!(done, Ok(Ok(reads)) if reads.has_last_succeeded)
    }

    /// Records that a read begins.
    pub(super) fn begin_read(&self, now: Instant) {
        self.reads.send_modify(|reads| {
            reads.begun += 1;
            reads.last_begun_at = Some(now);
        });
    }

    /// Records that the read has ended.
    pub(super) fn end_read(&self, has_succeeded: bool) {
        self.reads.send_modify(|reads| {
            reads.done = reads.begun;
            reads.has_last_succeeded = has_succeeded;
        });
    }
}

impl CachedKeys {
    fn age(&self, time: &Time) -> Duration {
        time.elapsed().saturating_sub(self.requested_at)
    }
}
