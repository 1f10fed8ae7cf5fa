//! The load of this replica, for readiness. Reported by the edge, which sees the requests.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use tokio::sync::Notify;

/// After how many checks in a row, one a second, that found refused requests the replica counts as saturated.
///
/// An attacker must not make a replica unready cheaply, because its clients would all move to the next one. So the bound is
/// long, and only a complete request that was refused a slot counts, within its address's bucket and share: one address has
/// at most an eighth of the slots, and holds each only while its request is answered.
const SATURATED_AFTER: u64 = 10;

/// The load of this replica. Cheap to clone; clones share state.
#[derive(Clone, Default)]
pub struct Load(Arc<LoadState>);

#[derive(Default)]
struct LoadState {
    draining: AtomicBool,
    /// Requests refused a slot since the last check.
    refused: AtomicU64,
    /// How many checks in a row have found some.
    streak: AtomicU64,
    changed: Notify,
}

impl Load {
    /// Marks the server as stopping: it still answers, but should get no more requests.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
        self.0.changed.notify_one();
    }

    /// Resolves when readiness should be checked before the next regular check.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Counts a request that was refused a slot.
    pub fn refused_for_slots(&self) {
        self.0.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Relaxed)
    }

    /// Returns whether requests have been refused slots for [`SATURATED_AFTER`] checks in a row. Called once per check.
    pub(super) fn check_saturated(&self) -> bool {
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
    fn a_replica_is_saturated_only_after_enough_checks_in_a_row() {
        let load = Load::default();
        for check in 1..=2 * SATURATED_AFTER {
            load.refused_for_slots();
            assert_eq!(load.check_saturated(), check >= SATURATED_AFTER, "{check}");
        }
        assert!(!load.check_saturated(), "one quiet second ends it");
        load.refused_for_slots();
        assert!(!load.check_saturated());
    }
}
