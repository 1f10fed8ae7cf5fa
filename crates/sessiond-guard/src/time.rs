//! The time of day, robust against changes of the system's clock.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sessiond_core::clock::Clock;
use sessiond_core::clock::Timestamp;

/// The later of the system's time of day and the time of day expected from the monotonic clock. If the system's clock is set
/// back, no expired token becomes valid again; if it is set ahead, tokens expire early until it is corrected.
pub(super) struct Time {
    clock: Clock,
    /// The expected time of day minus the monotonic clock, in microseconds.
    offset: AtomicI64,
    /// The last observations of this offset, oldest first: the system clock's at the start, then one per response.
    observations: Mutex<VecDeque<i64>>,
}

/// How many observations are kept. The median counts, so that a single wrong one has no effect.
const OBSERVATIONS_MAX: usize = 5;

/// How many observations are needed for the median to count: of two, either may be wrong.
const OBSERVATIONS_MIN: usize = 3;

/// How far two observations may differ and still agree. A `Date` has whole seconds, and takes a moment to arrive.
const TOLERANCE: Duration = Duration::from_secs(5);

impl Time {
    pub(super) fn new(clock: Clock) -> Self {
        let own = clock.now().as_micros().saturating_sub(micros(clock.elapsed()));
        Self { offset: AtomicI64::new(own), observations: Mutex::new(VecDeque::from([own])), clock }
    }

    /// Takes in the issuer's time of day, from the `Date` of a response, and adjusts the offset to the median of the last
    /// observations. Returns whether this one agrees with it; if not, observe again soon.
    pub(super) fn observe(&self, now: Timestamp) -> bool {
        let observed = now.as_micros().saturating_sub(micros(self.clock.elapsed()));
        let mut observations = self.observations.lock().expect("no one panics while holding it");
        observations.push_back(observed);
        if observations.len() > OBSERVATIONS_MAX {
            observations.pop_front();
        }
        if observations.len() >= OBSERVATIONS_MIN {
            let mut sorted: Vec<i64> = observations.iter().copied().collect();
            sorted.sort_unstable();
            self.offset.store(sorted[(sorted.len() - 1) / 2], Ordering::Relaxed);
        }
        observed.abs_diff(self.offset.load(Ordering::Relaxed)) <= micros(TOLERANCE).unsigned_abs()
    }

    /// The time of day.
    pub(super) fn now(&self) -> Timestamp {
        let passed = micros(self.clock.elapsed());
        let expected = Timestamp::from_micros(passed.saturating_add(self.offset.load(Ordering::Relaxed)));
        self.clock.now().max(expected)
    }

    /// The monotonic clock.
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
    fn setting_the_clock_back_does_not_move_time_back() {
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
    fn a_clock_that_was_ahead_can_be_corrected() {
        let clock = Clock::frozen();
        let right = clock.now();
        clock.set(right + HOUR);
        let time = Time::new(clock.clone());
        assert_eq!(time.now(), right + HOUR);
        // Two observations outweigh what the clock showed at the start.
        assert!(!time.observe(right), "one against one");
        assert!(time.observe(right));
        assert_eq!(time.now(), right + HOUR, "still the later of the two");
        clock.set(right);
        assert_eq!(time.now(), right);
    }

    #[test]
    fn a_single_wrong_observation_has_no_effect() {
        for wrong in [HOUR * 24 * 365, HOUR] {
            let clock = Clock::frozen();
            let time = Time::new(clock.clone());
            let start = time.now();
            assert!(!time.observe(start + wrong), "at the start");
            assert_eq!(time.now(), start);
            for _ in 0..3 {
                assert!(time.observe(start));
            }
            assert!(!time.observe(start + wrong), "later");
            assert!(!time.observe(start + wrong), "and once more");
            assert_eq!(time.now(), start);
            clock.advance(HOUR);
            assert!(time.observe(start + HOUR), "elapsed time counts");
            assert_eq!(time.now(), start + HOUR);
        }
    }
}
