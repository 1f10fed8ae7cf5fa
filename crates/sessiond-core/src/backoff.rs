//! How long to wait before the next attempt. The rule only: the caller supplies the randomness (`clock::random_u32`).

use std::time::Duration;

/// A wait that doubles with each failure, from a least to a greatest one. See [`wait`] for its random part.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// Starts at the shortest wait.
    pub const fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, failures: 0 }
    }

    /// Notes a success: the next wait is the shortest again.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// How long to wait after one more failure. `random` is a random number.
    pub fn next(&mut self, random: u32) -> Duration {
        let wait = wait(self.min, self.max, self.failures, random);
        self.failures = self.failures.saturating_add(1);
        wait
    }
}

/// The wait after a failure that `failures` others precede: `min` doubled as many times, at most `max`, less a random part of at
/// most a half. Without that part, all that failed together would try again together.
pub fn wait(min: Duration, max: Duration, failures: u32, random: u32) -> Duration {
    let whole = min.saturating_mul(2_u32.saturating_pow(failures)).min(max);
    whole / 2 + (whole / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(50);
    const MAX: Duration = Duration::from_secs(2);

    #[test]
    fn waits_double_up_to_their_bound() {
        let mut backoff = Backoff::new(MIN, MAX);
        for whole in [50, 100, 200, 400, 800, 1_600, 2_000, 2_000].map(Duration::from_millis) {
            assert_eq!(backoff.next(u32::MAX), whole);
        }
        backoff.reset();
        assert_eq!(backoff.next(u32::MAX), MIN);
        assert_eq!(wait(MIN, MAX, u32::MAX, u32::MAX), MAX, "however many failures there were");
    }

    #[test]
    fn dice_take_off_a_half_at_most() {
        for failures in [0, 3, 40] {
            let [least, some, most] = [0, u32::MAX / 2, u32::MAX].map(|random| wait(MIN, MAX, failures, random));
            assert_eq!(least, most / 2);
            assert!(least < some && some < most, "{some:?}");
        }
    }
}
