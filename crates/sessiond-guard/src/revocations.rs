//! What has ended, and how long ago that was all of it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::time::Time;
use super::time::micros;
use sessiond_core::clock::Timestamp;
use sessiond_core::session::revoked::Bearer;
use sessiond_core::session::revoked::RevokedSet;

/// What the feed has told. Whoever asks takes no lock.
#[derive(Default)]
pub(super) struct Revocations {
    revoked: ArcSwap<RevokedSet>,
    /// A snapshot was told to its end: what is not in the set has not ended, as far as the news goes.
    is_complete: AtomicBool,
    /// Up to which moment the news goes, in microseconds by the clock that only goes forward, and by the time of day. The
    /// first stands still while the machine sleeps, and the second may be set: the older of the two counts.
    told_until: [AtomicI64; 2],
}

impl Revocations {
    /// Whether a token is known to be over.
    pub(super) fn has(&self, bearer: &Bearer<'_>) -> bool {
        self.revoked.load().has(bearer)
    }

    /// How old the news may be; `None` before the first snapshot was told to its end.
    pub(super) fn age(&self, time: &Time) -> Option<Duration> {
        if !self.is_complete.load(Ordering::Acquire) {
            return None;
        }
        let [steady, by_day] = &self.told_until;
        let steady = micros(time.elapsed()).saturating_sub(steady.load(Ordering::Relaxed));
        let by_day = time.now().as_micros().saturating_sub(by_day.load(Ordering::Relaxed));
        Some(Duration::from_micros(steady.max(by_day).try_into().unwrap_or(0)))
    }

    /// The news is at most so old.
    pub(super) fn is_of(&self, time: &Time, age: Duration) {
        let [steady, by_day] = &self.told_until;
        let told_until: Timestamp = time.now() - age;
        by_day.store(told_until.as_micros(), Ordering::Relaxed);
        steady.store(micros(time.elapsed()).saturating_sub(micros(age)), Ordering::Relaxed);
    }

    /// Puts what a snapshot has told in place of all that was known; hands out the latter.
    pub(super) fn replace(&self, revoked: RevokedSet) -> Arc<RevokedSet> {
        let last = self.revoked.swap(Arc::new(revoked));
        self.is_complete.store(true, Ordering::Release);
        last
    }

    /// What is known, to be added to.
    pub(super) fn revoked(&self) -> Arc<RevokedSet> {
        self.revoked.load_full()
    }

    pub(super) fn is_complete(&self) -> bool {
        self.is_complete.load(Ordering::Acquire)
    }
}
