//! Time and dice. The only home of the system's clock and of randomness, so that tests hold both in hand.

use std::fmt;
use std::ops::Add;
use std::ops::Sub;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use uuid::Uuid;

use crate::id::SessionId;

/// A moment, in microseconds since 1970-01-01T00:00:00Z: what Postgres can keep, so nothing is rounded on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From microseconds since the Unix epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// From whole seconds since the Unix epoch; past the end of time is the end of time.
    pub const fn from_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1_000_000))
    }

    /// Microseconds since the Unix epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Whole milliseconds since the Unix epoch, rounded down.
    pub const fn as_millis(self) -> i64 {
        self.0.div_euclid(1_000)
    }

    /// Whole seconds since the Unix epoch, rounded down: what a JWT's `NumericDate` can say.
    pub const fn as_seconds(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// How long it is from `earlier` to this moment; zero when it is the other way round.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0).try_into().unwrap_or(0))
    }
}

/// As RFC 3339 writes it, in UTC, to the second, rounded down: for people, and for JSON.
impl fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // RFC 3339 knows four digits of year; what lies outside 1970 to 9999 prints as the nearest that does not.
        let seconds = self.as_seconds().clamp(0, SECONDS_MAX).unsigned_abs();
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).fmt(formatter)
    }
}

/// 9999-12-31T23:59:59Z.
const SECONDS_MAX: i64 = 253_402_300_799;

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(rhs.as_micros()).unwrap_or(i64::MAX)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;

    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(rhs.as_micros()).unwrap_or(i64::MAX)))
    }
}

/// Tells the time: the system's, or one that stands still until a test moves it.
#[derive(Clone, Debug)]
pub struct Clock {
    hand: Option<Arc<Hand>>,
}

/// Of a clock that stands still, in microseconds.
#[derive(Debug)]
struct Hand {
    /// What has passed.
    elapsed: AtomicI64,
    /// What the time of day is ahead of that.
    ahead: AtomicI64,
}

impl Clock {
    /// The system's clock.
    pub const fn system() -> Self {
        Self { hand: None }
    }

    /// A clock that starts at the present moment and then stands still; its clones move together.
    pub fn frozen() -> Self {
        let hand = Hand { elapsed: AtomicI64::new(system_micros()), ahead: AtomicI64::new(0) };
        Self { hand: Some(Arc::new(hand)) }
    }

    /// What time it is.
    pub fn now(&self) -> Timestamp {
        let shown =
            |hand: &Arc<Hand>| hand.elapsed.load(Ordering::SeqCst).saturating_add(hand.ahead.load(Ordering::SeqCst));
        Timestamp(self.hand.as_ref().map_or_else(system_micros, shown))
    }

    /// How long it is from some moment in the past, the same for as long as the process runs: for measuring, where a time
    /// of day that is set back must do no harm. Never goes back; a frozen clock's stands still with it.
    pub fn elapsed(&self) -> Duration {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        let hand = self.hand.as_ref().map(|hand| hand.elapsed.load(Ordering::SeqCst));
        hand.map_or_else(|| START.elapsed(), |micros| Duration::from_micros(micros.try_into().unwrap_or(0)))
    }

    /// Moves a frozen clock on. The system's clock goes by itself: there this does nothing.
    pub fn advance(&self, by: Duration) {
        if let Some(hand) = &self.hand {
            hand.elapsed.fetch_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX), Ordering::SeqCst);
        }
    }

    /// Sets the time of day of a frozen clock, as an operator does by hand; what it measures with goes on as if nothing had
    /// happened. The system's clock is not ours to set.
    pub fn set(&self, now: Timestamp) {
        if let Some(hand) = &self.hand {
            hand.ahead.store(now.0.saturating_sub(hand.elapsed.load(Ordering::SeqCst)), Ordering::SeqCst);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that asks the system")]
fn system_micros() -> i64 {
    // Before 1970 is not a time that a server runs at; it reads as 1970, where every token is still to be issued.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |passed| i64::try_from(passed.as_micros()).unwrap_or(i64::MAX))
}

/// Random bytes from the operating system, fit for keys.
///
/// # Panics
///
/// When the operating system has no randomness to give: nothing that we could go on to do would be safe.
#[expect(clippy::disallowed_methods, reason = "this is the one place that asks the system")]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system has randomness");
    bytes
}

/// A random share of something, from `low` up to but not including `high`: so that what began at once does not end at once.
///
/// # Panics
///
/// As [`random`].
pub fn jitter(low: f64, high: f64) -> f64 {
    low + (high - low) * (f64::from(u32::from_be_bytes(random())) / (f64::from(u32::MAX) + 1.0))
}

/// A new session's id: a UUIDv7 of this moment, with 74 random bits (RFC 9562 §5.7).
pub fn new_session_id(now: Timestamp) -> SessionId {
    SessionId::from_uuid(new_record_id(now))
}

/// A UUIDv7 of this moment, for what is kept in the order of time.
pub fn new_record_id(now: Timestamp) -> Uuid {
    let millis = now.as_millis().try_into().unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(millis, &random()).into_uuid()
}

/// A UUIDv4: for keys, requests and tokens, which have no order.
pub fn new_uuid() -> Uuid {
    uuid::Builder::from_random_bytes(random()).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frozen_clock_moves_only_by_hand() {
        let clock = Clock::frozen();
        let before = clock.now();
        assert_eq!(clock.now(), before);
        clock.clone().advance(Duration::from_secs(1));
        assert_eq!(clock.now().since(before), Duration::from_secs(1));
        let elapsed = clock.elapsed();
        clock.advance(Duration::from_secs(1));
        assert_eq!(clock.elapsed(), elapsed + Duration::from_secs(1));
        clock.set(before);
        assert_eq!((clock.now(), clock.elapsed()), (before, elapsed + Duration::from_secs(1)));
        clock.advance(Duration::from_secs(1));
        assert_eq!(clock.now().since(before), Duration::from_secs(1));
    }

    #[test]
    fn moments_round_down_on_both_sides_of_the_epoch() {
        assert_eq!(Timestamp::from_micros(1_999_999).as_seconds(), 1);
        assert_eq!(Timestamp::from_micros(-1).as_seconds(), -1);
        assert_eq!(Timestamp::from_micros(0).since(Timestamp::from_micros(5)), Duration::ZERO);
    }

    #[test]
    fn a_moment_prints_as_rfc_3339_wherever_it_lies() {
        assert_eq!(Timestamp::from_micros(1_999_999).to_string(), "1970-01-01T00:00:01Z");
        assert_eq!(Timestamp::from_micros(i64::MIN).to_string(), "1970-01-01T00:00:00Z");
        assert_eq!(Timestamp::from_micros(i64::MAX).to_string(), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn session_ids_sort_by_time() {
        let early = new_session_id(Timestamp::from_seconds(1_000));
        let late = new_session_id(Timestamp::from_seconds(1_001));
        assert!(early < late);
        assert_eq!(late.as_uuid().get_version_num(), 7);
    }
}
