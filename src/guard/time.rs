//! What time it is, whatever becomes of the system's clock.

use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::clock::Clock;
use crate::clock::Timestamp;

/// The later of two: what the system's clock shows, and what it must be by what has passed since it was last known for
/// certain. Set back by an hour, the clock revives no token; set ahead, it ends them early until it is put right.
pub(super) struct Time {
    clock: Clock,
    /// The time of day, less what has passed: in microseconds.
    ahead: AtomicI64,
}

impl Time {
    pub(super) fn new(clock: Clock) -> Self {
        let time = Self { ahead: AtomicI64::new(0), clock };
        time.anchor(time.clock.now());
        time
    }

    /// Takes someone's word for what time it is now: that of whoever issues the tokens.
    pub(super) fn anchor(&self, now: Timestamp) {
        self.ahead.store(now.as_micros().saturating_sub(micros(self.clock.elapsed())), Ordering::Relaxed);
    }

    /// The time of day.
    pub(super) fn now(&self) -> Timestamp {
        let passed = micros(self.clock.elapsed());
        let expected = Timestamp::from_micros(passed.saturating_add(self.ahead.load(Ordering::Relaxed)));
        self.clock.now().max(expected)
    }

    /// What has passed since some moment: never goes back.
    pub(super) fn elapsed(&self) -> Duration {
        self.clock.elapsed()
    }
}

pub(super) fn micros(duration: Duration) -> i64 {
    duration.as_micros().try_into().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(60 * 60);

    #[test]
    fn a_clock_that_is_set_back_makes_nothing_young_again() {
        let clock = Clock::frozen();
        let time = Time::new(clock.clone());
        let start = time.now();
        clock.advance(HOUR);
        clock.set(start);
        assert_eq!(time.now(), start + HOUR);
        clock.advance(HOUR);
        assert_eq!(time.now(), start + HOUR + HOUR, "and it goes on");
    }

    #[test]
    fn a_clock_that_was_ahead_and_is_put_right_is_believed() {
        let clock = Clock::frozen();
        let right = clock.now();
        clock.set(right + HOUR);
        let time = Time::new(clock.clone());
        assert_eq!(time.now(), right + HOUR);
        // What the issuer says counts for more than what the clock showed at the start.
        time.anchor(right);
        assert_eq!(time.now(), right + HOUR, "still the later of the two");
        clock.set(right);
        assert_eq!(time.now(), right);
    }
}
