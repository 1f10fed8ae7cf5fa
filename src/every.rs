//! Repeats work at an interval.

use std::time::Duration;

use tokio::time::Interval;
use tokio::time::MissedTickBehavior;
use tokio::time::interval;

/// Ticks at once, and then every `period`. A late tick delays the following ones; missed ticks are skipped.
pub(crate) fn ticks(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Does the work at once, and then every `period`, one run after the other. Does not return.
pub(crate) async fn every<F: Future<Output = ()>>(period: Duration, mut work: impl FnMut() -> F) {
    let mut ticks = ticks(period);
    loop {
        ticks.tick().await;
        work().await;
    }
}
