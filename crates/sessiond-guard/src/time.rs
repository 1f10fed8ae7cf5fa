//! What time it is, whatever becomes of the system's clock.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sessiond_core::clock::Clock;
use sessiond_core::clock::Timestamp;

/// The later of two: what the system's clock shows, and what it must be by what has passed since it was last known for
/// certain. Set back by an hour, the clock revives no token; set ahead, it ends them early until it is put right.
pub(super) struct Time {
    clock: Clock,
    /// The time of day, less what has passed: in microseconds.
    ahead: AtomicI64,
    /// The last witnesses' word for the same, oldest first: the own clock's at the start, then that of each answer.
    witnesses: Mutex<VecDeque<i64>>,
}

/// How many witnesses are remembered. The one in the middle is believed, so a wrong one moves nothing by itself.
const WITNESSES_MAX: usize = 5;

/// From how many on they are believed at all: of two, nobody can say which is wrong.
const WITNESSES_MIN: usize = 3;

/// How far two witnesses may differ and still agree. A `Date` has whole seconds, and takes a moment to arrive.
const TOLERANCE: Duration = Duration::from_secs(5);

impl Time {
    pub(super) fn new(clock: Clock) -> Self {
        let own = clock.now().as_micros().saturating_sub(micros(clock.elapsed()));
        Self { ahead: AtomicI64::new(own), witnesses: Mutex::new(VecDeque::from([own])), clock }
    }

    /// Hears what time it is now by an answer of whoever issues the tokens, and believes the median of the last witnesses.
    /// Returns whether this one agrees with it; if not, ask again soon.
    pub(super) fn hear(&self, now: Timestamp) -> bool {
        let said = now.as_micros().saturating_sub(micros(self.clock.elapsed()));
        let mut witnesses = self.witnesses.lock().expect("no one panics while holding it");
        witnesses.push_back(said);
        if witnesses.len() > WITNESSES_MAX {
            witnesses.pop_front();
        }
        if witnesses.len() >= WITNESSES_MIN {
            let mut sorted: Vec<i64> = witnesses.iter().copied().collect();
            sorted.sort_unstable();
            self.ahead.store(sorted[(sorted.len() - 1) / 2], Ordering::Relaxed);
        }
        said.abs_diff(self.ahead.load(Ordering::Relaxed)) <= micros(TOLERANCE).unsigned_abs()
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
        // What the issuer says, and says again, counts for more than what the clock showed at the start.
        assert!(!time.hear(right), "one against one");
        assert!(time.hear(right));
        assert_eq!(time.now(), right + HOUR, "still the later of the two");
        clock.set(right);
        assert_eq!(time.now(), right);
    }

    #[test]
    fn one_wrong_answer_moves_nothing() {
        for wrong in [HOUR * 24 * 365, HOUR] {
            let clock = Clock::frozen();
            let time = Time::new(clock.clone());
            let start = time.now();
            assert!(!time.hear(start + wrong), "at the start");
            assert_eq!(time.now(), start);
            for _ in 0..3 {
                assert!(time.hear(start));
            }
            assert!(!time.hear(start + wrong), "later");
            assert!(!time.hear(start + wrong), "and once more");
            assert_eq!(time.now(), start);
            clock.advance(HOUR);
            assert!(time.hear(start + HOUR), "what has passed is counted");
            assert_eq!(time.now(), start + HOUR);
        }
    }
}
