//! The revocations received so far, and how recent they are.

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
use sessiond_core::token::verified::VerifiedToken;

/// The revocations. Reads take no lock.
#[derive(Default)]
pub(super) struct Revocations {
    revoked: ArcSwap<RevokedSet>,
    /// A snapshot was received completely, so the set has every revocation up to `current_until`.
    is_complete: AtomicBool,
    /// The moment up to which the set is current, in microseconds: on the monotonic clock, and as the time of day. The first
    /// stops while the machine sleeps, and the second may be set: the older of the two counts.
    current_until: [AtomicI64; 2],
    /// When the set last learned something, by the monotonic clock in microseconds.
    news_at: AtomicI64,
}

impl Revocations {
    /// Whether a token is revoked.
    pub(super) fn contains(&self, bearer: &Bearer<'_>) -> bool {
        self.revoked.load().has(bearer)
    }

    /// Whether a token is superseded.
    pub(super) fn has_superseded(&self, token: &VerifiedToken) -> bool {
        self.revoked.load().has_superseded(token.session(), token.session_epoch())
    }

    /// Whether it is unknown if a token is revoked.
    pub(super) fn withholds(&self, bearer: &Bearer<'_>) -> bool {
        self.revoked.load().withholds(bearer)
    }

    /// The age of the set; `None` before the first complete snapshot.
    pub(super) fn age(&self, time: &Time) -> Option<Duration> {
        if !self.is_complete() {
            return None;
        }
        let [monotonic, time_of_day] = &self.current_until;
        let monotonic = micros(time.elapsed()).saturating_sub(monotonic.load(Ordering::Relaxed));
        let time_of_day = time.now().as_micros().saturating_sub(time_of_day.load(Ordering::Relaxed));
        Some(Duration::from_micros(monotonic.max(time_of_day).try_into().unwrap_or(0)))
    }

    /// Records that the set is at most this old.
    pub(super) fn set_age(&self, time: &Time, age: Duration) {
        let [monotonic, time_of_day] = &self.current_until;
        let current_until: Timestamp = time.now() - age;
        time_of_day.store(current_until.as_micros(), Ordering::Relaxed);
        monotonic.store(micros(time.elapsed()).saturating_sub(micros(age)), Ordering::Relaxed);
    }

    /// How old a snapshot may be that has all that the set has: between two heartbeats, the set knows more than its age says. `None`
    /// before the first complete snapshot.
    pub(super) fn age_of_news(&self, time: &Time) -> Option<Duration> {
        let since = micros(time.elapsed()).saturating_sub(self.news_at.load(Ordering::Relaxed));
        Some(self.age(time)?.min(Duration::from_micros(since.try_into().unwrap_or(0))))
    }

    /// Records that the set has learned something.
    pub(super) fn note_news(&self, time: &Time) {
        self.news_at.store(micros(time.elapsed()), Ordering::Relaxed);
    }

    /// Replaces the set by a complete snapshot, and returns the previous set.
    pub(super) fn replace(&self, time: &Time, revoked: RevokedSet) -> Arc<RevokedSet> {
        let previous = self.revoked.swap(Arc::new(revoked));
        self.note_news(time);
        self.is_complete.store(true, Ordering::Release);
        previous
    }

    /// The current set, for additions.
    pub(super) fn current(&self) -> Arc<RevokedSet> {
        self.revoked.load_full()
    }

    pub(super) fn is_complete(&self) -> bool {
        self.is_complete.load(Ordering::Acquire)
    }
}
