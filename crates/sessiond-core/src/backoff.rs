//! Exponential backoff with jitter. Pure: the caller supplies the random number (`clock::random_u32`).

use std::time::Duration;

/// A delay that doubles with each failure, between a minimum and a maximum. See [`wait`] for the jitter.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// A backoff without a failure yet.
    pub const fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, failures: 0 }
    }

    /// Records a success: the next delay is the minimum again.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// Records a failure, and returns how long to wait after it. `random` is uniformly distributed.
    pub fn next(&mut self, random: u32) -> Duration {
        let wait = wait(self.min, self.max, self.failures, random);
        self.failures = self.failures.saturating_add(1);
        wait
    }
}

/// The delay after the failure number `failures`, counted from 0: `min` doubled that many times and at most `max`, minus a
/// random part of at most half. Without the random part, clients that failed together would retry together.
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
    fn delays_double_up_to_the_maximum() {
        let mut backoff = Backoff::new(MIN, MAX);
        for whole in [50, 100, 200, 400, 800, 1_600, 2_000, 2_000].map(Duration::from_millis) {
            assert_eq!(backoff.next(u32::MAX), whole);
        }
        backoff.reset();
        assert_eq!(backoff.next(u32::MAX), MIN);
        assert_eq!(wait(MIN, MAX, u32::MAX, u32::MAX), MAX, "after any number of failures");
    }

    #[test]
    fn jitter_takes_off_at_most_half() {
        for failures in [0, 3, 40] {
            let [least, some, most] = [0, u32::MAX / 2, u32::MAX].map(|random| wait(MIN, MAX, failures, random));
            assert_eq!(least, most / 2);
            assert!(least < some && some < most, "{some:?}");
        }
    }
}
