//! How long to wait before the next attempt.

use std::time::Duration;

use crate::clock;

/// Doubles from the least to the most, less a random part of up to a half: guards that lost the same replica do not all come
/// back at once.
pub(super) struct Backoff {
    bounds: (Duration, Duration),
    next: Duration,
}

impl Backoff {
    pub(super) const fn new(bounds: (Duration, Duration)) -> Self {
        Self { bounds, next: bounds.0 }
    }

    /// It went well: the next failure is the first.
    pub(super) const fn reset(&mut self) {
        self.next = self.bounds.0;
    }

    pub(super) fn next(&mut self) -> Duration {
        let whole = self.next;
        self.next = self.bounds.1.min(whole * 2);
        let part = u32::from(u8::from_le_bytes(clock::random()));
        whole - whole * part / (2 * 256)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_bound() {
        let (least, most) = (Duration::from_millis(50), Duration::from_secs(2));
        let mut backoff = Backoff::new((least, most));
        for whole in [50, 100, 200, 400, 800, 1_600, 2_000, 2_000].map(Duration::from_millis) {
            let wait = backoff.next();
            assert!(whole / 2 <= wait && wait <= whole, "{wait:?} of {whole:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= least);
    }
}
