//! How busy this replica is, as far as readiness goes by it: told by the edge, which alone sees the requests.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use tokio::sync::Notify;

/// For how many looks in a row, one a second, requests must have been refused for want of a place.
///
/// An attacker must not turn a replica red cheaply, for its clients would all move to the next one. So the bound is long,
/// and what counts is a place refused to a request that was there whole, within its address's bucket and share: one address
/// has an eighth of the places at most, and holds each for as long as an answer takes.
const SATURATED_AFTER: u64 = 10;

/// See the module. Cheap to clone; clones share state.
#[derive(Clone, Default)]
pub struct Load(Arc<Shared>);

#[derive(Default)]
struct Shared {
    draining: AtomicBool,
    /// Requests refused for want of a place since the last look.
    refused: AtomicU64,
    /// How many looks in a row have found some.
    streak: AtomicU64,
    changed: Notify,
}

impl Load {
    /// Notes that the server was told to stop: it still answers, and wants no more requests.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
        self.0.changed.notify_one();
    }

    /// Resolves when readiness should be looked at before it is due.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Notes that a request was refused for want of a place.
    pub fn refused_for_slots(&self) {
        self.0.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Relaxed)
    }

    /// Whether requests have been refused for want of a place for a while. Called once a look.
    pub(super) fn look(&self) -> bool {
        let streak = match self.0.refused.swap(0, Ordering::Relaxed) {
            0 => 0,
            _ => self.0.streak.load(Ordering::Relaxed) + 1,
        };
        self.0.streak.store(streak, Ordering::Relaxed);
        streak >= SATURATED_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lasts_is_saturation() {
        let load = Load::default();
        for look in 1..=2 * SATURATED_AFTER {
            load.refused_for_slots();
            assert_eq!(load.look(), look >= SATURATED_AFTER, "{look}");
        }
        assert!(!load.look(), "one quiet second ends it");
        load.refused_for_slots();
        assert!(!load.look());
    }
}
