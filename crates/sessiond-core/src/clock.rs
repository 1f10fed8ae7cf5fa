//! Time and randomness. The only module that reads the system's clock and random numbers, so that tests can control both.

use std::fmt;
use std::ops::Add;
use std::ops::Sub;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::RwLock;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use uuid::Uuid;

use crate::id::Bucket;
use crate::id::SessionId;

/// A moment, in microseconds since 1970-01-01T00:00:00Z: Postgres' precision, so storing it does not round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From microseconds since the Unix epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// From whole seconds since the Unix epoch. Saturates.
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

    /// Whole seconds since the Unix epoch, rounded down, as in a JWT's `NumericDate`.
    pub const fn as_seconds(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// The last midnight (UTC) at or before this moment.
    pub const fn day_begin(self) -> Self {
        Self(self.0.saturating_sub(self.0.rem_euclid(DAY_MICROS)))
    }

    /// The first midnight (UTC) at or after this moment.
    pub const fn day_end(self) -> Self {
        Self(self.0.saturating_add((-self.0).rem_euclid(DAY_MICROS)))
    }

    /// The time from `earlier` to this moment; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0).try_into().unwrap_or(0))
    }
}

/// A day in microseconds. Unix time has no leap seconds.
const DAY_MICROS: i64 = 24 * 60 * 60 * 1_000_000;

/// RFC 3339, in UTC, with whole seconds, rounded down.
impl fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // RFC 3339 has four digits for the year. Clamped to 1970 to 9999.
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

/// A clock: the database's time of day once it was read, and the system's before; or a frozen one for tests. Cheap to clone;
/// clones share state.
///
/// Replicas compare timestamps that other replicas wrote, so all of them follow one clock, the database's. Each reading bounds
/// the offset between the database's time and this process' monotonic clock; between readings, the time is computed from the
/// monotonic clock. So a system clock that is wrong, or is set, has no effect.
#[derive(Clone, Debug)]
pub struct Clock {
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    System(Arc<SystemClock>),
    Frozen(Arc<ManualClock>),
}

/// A frozen clock. All in microseconds.
#[derive(Debug)]
struct ManualClock {
    /// The monotonic clock.
    elapsed: AtomicI64,
    /// The time of day minus the monotonic clock.
    ahead: AtomicI64,
}

/// The system's clock, corrected by readings of the database's.
#[derive(Debug, Default)]
struct SystemClock {
    /// The error of the machine's clock that a test simulates, in microseconds.
    simulated_error: Option<AtomicI64>,
    estimate: RwLock<Option<DatabaseTime>>,
}

/// The last estimate of the database's time. All in microseconds.
#[derive(Clone, Copy, Debug)]
struct DatabaseTime {
    /// The bounds of the database's time minus the monotonic clock, as of `at`.
    low: i64,
    high: i64,
    at: i64,
    /// The time returned at `at`, which may be ahead of the estimate.
    shown: i64,
}

/// How fast two correct clocks may drift apart, in parts per million: the most that a kernel slews.
const DRIFT_PPM: i64 = 500;

/// The largest difference that is slewed, so that the time never goes back, in microseconds: 1 s. A larger one means that the
/// database's clock was set, or that another server answers; then all replicas jump to its time at once.
const SLEWED_MAX: i64 = 1_000_000;

/// The largest difference between this machine's clock and the database's at which irreversible operations are allowed.
pub const AGREEMENT: Duration = Duration::from_secs(60);

/// The difference between this machine's clock and the database's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skew {
    /// The machine's time of day minus the database's, in microseconds. Negative if the machine is behind.
    pub micros: i64,
    /// The maximum error of [`Clock::now`] against the database's time: half of the best round trip, plus drift since then.
    pub error: Duration,
}

/// The two clocks differ by more than [`AGREEMENT`]; either may be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this machine's clock is {} s {} the database's; set the wrong one right (see `timedatectl`)",
    .ahead_micros.unsigned_abs() / 1_000_000,
    if *.ahead_micros < 0 { "behind" } else { "ahead of" }
)]
pub struct Disagreement {
    /// The machine's time of day minus the database's, in microseconds.
    pub ahead_micros: i64,
}

impl DatabaseTime {
    /// The bounds, widened by the drift since `at`.
    fn bounds(&self, elapsed: i64) -> (i64, i64) {
        let drift = (elapsed - self.at).saturating_mul(DRIFT_PPM) / 1_000_000;
        (self.low.saturating_sub(drift), self.high.saturating_add(drift))
    }

    /// The time to return. If the last one was ahead of the estimate, time passes at half speed until it is no longer.
    fn now(&self, elapsed: i64) -> i64 {
        let passed = elapsed - self.at;
        let estimate = (self.low / 2 + self.high / 2).saturating_add(elapsed);
        estimate.max(self.shown.saturating_add(passed / 2))
    }
}

impl Clock {
    /// The system's clock, until [`Clock::observe`] takes in a reading of the database's.
    pub fn system() -> Self {
        Self { source: Source::System(Arc::default()) }
    }

    /// A system clock that is ahead by this many microseconds, or behind if negative, for tests. Runs, and is corrected, like
    /// the system's.
    pub fn skewed(micros: i64) -> Self {
        let simulated_error = Some(AtomicI64::new(micros));
        Self { source: Source::System(Arc::new(SystemClock { simulated_error, ..SystemClock::default() })) }
    }

    /// A clock that starts at the present moment and stands still, for tests. Readings of the database do not correct it.
    pub fn frozen() -> Self {
        let manual = ManualClock { elapsed: AtomicI64::new(system_micros()), ahead: AtomicI64::new(0) };
        Self { source: Source::Frozen(Arc::new(manual)) }
    }

    /// The time of day.
    pub fn now(&self) -> Timestamp {
        Timestamp(match &self.source {
            Source::System(clock) => {
                // Held while the monotonic clock is read; otherwise a concurrent correction could make time go back.
                let estimate = clock.estimate.read().expect("no one panics while holding it");
                estimate.map_or_else(|| clock.time_of_day(), |estimate| estimate.now(self.elapsed_micros()))
            }
            Source::Frozen(manual) => manual.time_of_day(),
        })
    }

    /// The monotonic clock: the time since a fixed moment in this process' past. Never goes back. A frozen clock's stands
    /// still.
    pub fn elapsed(&self) -> Duration {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        match &self.source {
            Source::System(_) => START.elapsed(),
            Source::Frozen(manual) => {
                Duration::from_micros(manual.elapsed.load(Ordering::SeqCst).try_into().unwrap_or(0))
            }
        }
    }

    fn elapsed_micros(&self) -> i64 {
        i64::try_from(self.elapsed().as_micros()).unwrap_or(i64::MAX)
    }

    /// Takes in a reading of the database's clock, requested when [`Clock::elapsed`] was `asked` and answered just now. Does
    /// nothing on a frozen clock.
    ///
    /// Returns by how many microseconds the time jumped, if it did: the database's clock was set, or another server answers.
    pub fn observe(&self, database: Timestamp, asked: Duration) -> Option<i64> {
        let Source::System(clock) = &self.source else { return None };
        let mut estimate = clock.estimate.write().expect("no one panics while holding it");
        let elapsed = self.elapsed_micros();
        let asked = i64::try_from(asked.as_micros()).unwrap_or(i64::MAX).min(elapsed);
        // The database read its clock at some moment between the two.
        let (low, high) = (database.0.saturating_sub(elapsed), database.0.saturating_sub(asked));
        let Some(before) = *estimate else {
            let shown = low / 2 + high / 2 + elapsed;
            *estimate = Some(DatabaseTime { low, high, at: elapsed, shown });
            return None;
        };
        let (low_before, high_before) = before.bounds(elapsed);
        let both = (low.max(low_before), high.min(high_before));
        // If the readings contradict each other, the later one counts.
        let (low, high) = if both.0 <= both.1 { both } else { (low, high) };
        let shown = before.now(elapsed);
        let set_by = (low / 2 + high / 2).saturating_add(elapsed).saturating_sub(shown);
        let was_set = set_by.saturating_abs() > SLEWED_MAX;
        let shown = if was_set { shown.saturating_add(set_by) } else { shown };
        *estimate = Some(DatabaseTime { low, high, at: elapsed, shown });
        was_set.then_some(set_by)
    }

    /// The skew of this machine's clock; `None` before the first reading, and for a frozen clock.
    pub fn skew(&self) -> Option<Skew> {
        let Source::System(clock) = &self.source else { return None };
        let estimate = (*clock.estimate.read().expect("no one panics while holding it"))?;
        let elapsed = self.elapsed_micros();
        let (low, high) = estimate.bounds(elapsed);
        let (lead, width) = (estimate.now(elapsed) - elapsed, high - low);
        let middle = low / 2 + high / 2;
        Some(Skew {
            micros: clock.time_of_day().saturating_sub(middle).saturating_sub(elapsed),
            error: Duration::from_micros((width / 2 + (lead - middle).abs()).try_into().unwrap_or(0)),
        })
    }

    /// Whether the time is the database's to within `error_max`. Always true for a frozen clock.
    pub fn is_known(&self, error_max: Duration) -> bool {
        match &self.source {
            Source::System(_) => self.skew().is_some_and(|skew| skew.error <= error_max),
            Source::Frozen(_) => true,
        }
    }

    /// The time for irreversible operations: the database's, read just now, if this machine's clock agrees. Returns a frozen
    /// clock's own time.
    ///
    /// # Errors
    ///
    /// Fails if the two differ by more than [`AGREEMENT`].
    pub fn agreed(&self, database: Timestamp) -> Result<Timestamp, Disagreement> {
        match &self.source {
            Source::System(clock) => {
                let ahead_micros = clock.time_of_day().saturating_sub(database.0);
                let apart = Duration::from_micros(ahead_micros.unsigned_abs());
                if apart > AGREEMENT { Err(Disagreement { ahead_micros }) } else { Ok(database) }
            }
            Source::Frozen(manual) => Ok(Timestamp(manual.time_of_day())),
        }
    }

    /// Advances a frozen clock. Does nothing on the system's clock.
    pub fn advance(&self, by: Duration) {
        if let Source::Frozen(manual) = &self.source {
            manual.elapsed.fetch_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX), Ordering::SeqCst);
        }
    }

    /// Sets the time of day of a test clock, as an operator sets a machine's; the monotonic clock is unaffected. Does nothing
    /// on the system's clock.
    pub fn set(&self, now: Timestamp) {
        match &self.source {
            Source::System(clock) => {
                if let Some(error) = &clock.simulated_error {
                    error.store(now.0.saturating_sub(system_micros()), Ordering::SeqCst);
                }
            }
            Source::Frozen(manual) => {
                manual.ahead.store(now.0.saturating_sub(manual.elapsed.load(Ordering::SeqCst)), Ordering::SeqCst);
            }
        }
    }
}

impl ManualClock {
    fn time_of_day(&self) -> i64 {
        self.elapsed.load(Ordering::SeqCst).saturating_add(self.ahead.load(Ordering::SeqCst))
    }
}

impl SystemClock {
    /// The machine's time of day.
    fn time_of_day(&self) -> i64 {
        let error = self.simulated_error.as_ref().map_or(0, |error| error.load(Ordering::SeqCst));
        system_micros().saturating_add(error)
    }
}

#[expect(clippy::disallowed_methods, reason = "the only place that asks the system")]
fn system_micros() -> i64 {
    // A clock before 1970 reads as 1970, when no token had been issued yet.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |passed| i64::try_from(passed.as_micros()).unwrap_or(i64::MAX))
}

/// Cryptographically secure random bytes from the operating system.
///
/// # Panics
///
/// Panics if the operating system provides none: nothing would be safe to continue with.
#[expect(clippy::disallowed_methods, reason = "the only place that asks the system")]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system has randomness");
    bytes
}

/// A random number, such as for the jitter of a delay.
///
/// # Panics
///
/// Panics as [`random`] does.
pub fn random_u32() -> u32 {
    u32::from_ne_bytes(random())
}

/// A random factor from `low` up to but not including `high`, so that what starts together does not expire together.
///
/// # Panics
///
/// Panics as [`random`] does.
pub fn jitter(low: f64, high: f64) -> f64 {
    low + (high - low) * (f64::from(u32::from_be_bytes(random())) / (f64::from(u32::MAX) + 1.0))
}

/// A new session id: a UUIDv7 of this moment, with the user's bucket and 62 random bits (RFC 9562 §5.7).
pub fn new_session_id(now: Timestamp, bucket: Bucket) -> SessionId {
    let mut tail: [u8; 10] = random();
    tail[..2].copy_from_slice(&bucket.number().to_be_bytes());
    SessionId::from_uuid(uuid_v7(now, &tail))
}

/// A UUIDv7 of this moment, for rows that are sorted by time.
pub fn new_record_id(now: Timestamp) -> Uuid {
    uuid_v7(now, &random())
}

/// The lowest id: every record of this moment's millisecond, and of later ones, has a greater id; every record of an earlier one
/// has a smaller id.
pub fn record_id_floor(at: Timestamp) -> Uuid {
    // A UUIDv7 begins with 48 bits of milliseconds. The version makes every real id greater.
    Uuid::from_u128(u128::from(u64::try_from(at.as_millis()).unwrap_or(0)) << 80)
}

/// The version and the variant replace the highest bits of the first and the third byte.
fn uuid_v7(now: Timestamp, tail: &[u8; 10]) -> Uuid {
    uuid::Builder::from_unix_timestamp_millis(now.as_millis().try_into().unwrap_or(0), tail).into_uuid()
}

/// A UUIDv4, for keys, requests and tokens, which have no order.
pub fn new_uuid() -> Uuid {
    uuid::Builder::from_random_bytes(random()).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frozen_clock_moves_only_when_advanced() {
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

    fn micros(duration: Duration) -> i64 {
        duration.as_micros().try_into().unwrap()
    }

    /// Takes in a reading of a database whose clock is ahead by this many microseconds.
    fn read(clock: &Clock, database_ahead: i64) -> Option<i64> {
        clock.observe(Timestamp(system_micros() + database_ahead), clock.elapsed())
    }

    #[test]
    fn a_wrong_machine_clock_has_no_effect_after_a_reading() {
        for wrong_by in [-90, 90, 3_600, -3_600, 130 * 86_400] {
            let wrong_by = wrong_by * 1_000_000;
            let clock = Clock::skewed(wrong_by);
            assert!(
                (clock.now().as_micros() - system_micros() - wrong_by).abs() < 1_000_000,
                "before the first reading"
            );
            assert_eq!(read(&clock, 0), None);
            assert!((clock.now().as_micros() - system_micros()).abs() < 1_000_000);
            let skew = clock.skew().unwrap();
            assert!((skew.micros - wrong_by).abs() < 1_000_000, "{skew:?}");
            assert!(skew.error < Duration::from_secs(1), "{skew:?}");
            // Somebody sets the machine's clock.
            clock.set(Timestamp(5_000_000_000));
            assert!((clock.now().as_micros() - system_micros()).abs() < 1_000_000);
        }
    }

    #[test]
    fn time_slews_for_small_differences_and_jumps_for_large_ones() {
        let clock = Clock::skewed(0);
        read(&clock, 0);
        let before = clock.now();
        // Half a second back: the readings contradict each other, and the clock waits.
        assert_eq!(read(&clock, -500_000), None);
        let after = clock.now();
        assert!(after >= before && after.since(before) < Duration::from_millis(400), "{before} {after}");
        std::thread::sleep(Duration::from_millis(20));
        assert!(clock.now() > after, "and continues");
        // Another primary, whose clock is an hour behind: the time jumps, and the jump is returned.
        let set_by = read(&clock, -micros(Duration::from_secs(3_600))).unwrap();
        assert!((set_by + micros(Duration::from_secs(3_600))).abs() < 2_000_000, "{set_by}");
        assert!((clock.now().as_micros() - system_micros() - set_by).abs() < 2_000_000);
        assert!(read(&clock, 0).unwrap() > 0, "and back again");
    }

    /// A slow reading is imprecise, and does not widen the bounds of a precise one.
    #[test]
    fn the_best_of_the_readings_counts() {
        let clock = Clock::skewed(0);
        // The monotonic clock starts at its first use.
        clock.elapsed();
        std::thread::sleep(Duration::from_millis(30));
        // Asked 30 ms ago, answered now.
        clock.observe(Timestamp(system_micros()), clock.elapsed().saturating_sub(Duration::from_millis(30)));
        let vague = clock.skew().unwrap().error;
        assert!(vague >= Duration::from_millis(14), "{vague:?}");
        read(&clock, -10_000);
        // Until the clock has slewed back.
        std::thread::sleep(Duration::from_millis(100));
        let exact = clock.skew().unwrap();
        assert!(exact.error < vague, "{exact:?}");
        clock.observe(Timestamp(system_micros() - 10_000), clock.elapsed().saturating_sub(Duration::from_millis(30)));
        assert!(clock.skew().unwrap().error < vague);
        assert!(clock.is_known(Duration::from_secs(1)) && !clock.is_known(Duration::ZERO));
        assert!(!Clock::system().is_known(Duration::from_secs(1)), "never read");
    }

    #[test]
    fn irreversible_operations_require_agreement() {
        let (minute, here) = (micros(AGREEMENT), Clock::skewed(0));
        let now = system_micros();
        assert_eq!(here.agreed(Timestamp(now - minute / 2)), Ok(Timestamp(now - minute / 2)));
        for apart in [2 * minute, -2 * minute] {
            let Disagreement { ahead_micros } = here.agreed(Timestamp(now - apart)).unwrap_err();
            assert!((ahead_micros - apart).abs() < minute / 2);
        }
        let frozen = Clock::frozen();
        frozen.advance(AGREEMENT * 100);
        assert_eq!(frozen.agreed(Timestamp(now)), Ok(frozen.now()));
        assert!(frozen.observe(Timestamp(0), Duration::ZERO).is_none() && frozen.skew().is_none());
    }

    #[test]
    fn timestamps_round_down_on_both_sides_of_the_epoch() {
        assert_eq!(Timestamp::from_micros(1_999_999).as_seconds(), 1);
        assert_eq!(Timestamp::from_micros(-1).as_seconds(), -1);
        assert_eq!(Timestamp::from_micros(0).since(Timestamp::from_micros(5)), Duration::ZERO);
    }

    #[test]
    fn timestamps_print_as_rfc_3339() {
        assert_eq!(Timestamp::from_micros(1_999_999).to_string(), "1970-01-01T00:00:01Z");
        assert_eq!(Timestamp::from_micros(i64::MIN).to_string(), "1970-01-01T00:00:00Z");
        assert_eq!(Timestamp::from_micros(i64::MAX).to_string(), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn session_ids_sort_by_time() {
        let bucket = Bucket::from_number(7);
        let early = new_session_id(Timestamp::from_seconds(1_000), bucket);
        let late = new_session_id(Timestamp::from_seconds(1_001), bucket);
        assert!(early < late);
        assert_eq!((early.bucket(), late.bucket()), (bucket, bucket));
        assert_eq!(late.as_uuid().get_version_num(), 7);
    }
}
