//! Time and dice. The only home of the system's clock and of randomness, so that tests hold both in hand.

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

    /// The midnight (UTC) that this moment's day begins with.
    pub const fn day_begin(self) -> Self {
        Self(self.0.saturating_sub(self.0.rem_euclid(DAY_MICROS)))
    }

    /// The first midnight (UTC) that is not before this moment.
    pub const fn day_end(self) -> Self {
        Self(self.0.saturating_add((-self.0).rem_euclid(DAY_MICROS)))
    }

    /// How long it is from `earlier` to this moment; zero when it is the other way round.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0).try_into().unwrap_or(0))
    }
}

/// A day, in microseconds: Unix time has no leap seconds.
const DAY_MICROS: i64 = 24 * 60 * 60 * 1_000_000;

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

/// Tells the time: the database's once that is known, before that the system's; or one that stands still until a test moves
/// it. Cheap to clone; clones share state.
///
/// Replicas judge each other's writes, so all of them go by one clock, the database's. Each reading of it bounds how far it is
/// from the clock that this process measures with; what is told between readings comes from there. So the system's time of
/// day may be wrong, and may be set, and nothing here follows it.
#[derive(Clone, Debug)]
pub struct Clock {
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    System(Arc<SystemClock>),
    Frozen(Arc<ManualClock>),
}

/// Of a clock that stands still, in microseconds.
#[derive(Debug)]
struct ManualClock {
    /// What has passed.
    elapsed: AtomicI64,
    /// What the time of day is ahead of that.
    ahead: AtomicI64,
}

/// The system's clock, and what the database's readings have made of it.
#[derive(Debug, Default)]
struct SystemClock {
    /// How far the machine's clock is set wrong, in microseconds; where there is one, by a test.
    wrong_by: Option<AtomicI64>,
    course: RwLock<Option<DatabaseTime>>,
}

/// The database's clock, as far as it is known. All in microseconds.
#[derive(Clone, Copy, Debug)]
struct DatabaseTime {
    /// The database's time less what has elapsed here lies between these two, as of `at`.
    low: i64,
    high: i64,
    at: i64,
    /// What was shown at `at`, which may be ahead of the middle of the two.
    shown: i64,
}

/// How fast two sound clocks may drift apart: 500 parts in a million, which is what a kernel's slewing does at most.
const DRIFT_PPM: i64 = 500;

/// A difference up to this is caught up with so that the time shown never goes back; the database's clock was set, or another
/// server's is read, where it is more, and then all replicas follow at once. 1 s.
const SLEWED_MAX: i64 = 1_000_000;

/// How far this machine's clock and the database's may be apart for what cannot be undone.
pub const AGREEMENT: Duration = Duration::from_secs(60);

/// How this machine's clock stands to the database's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skew {
    /// The machine's time of day less the database's, in microseconds: negative when the machine's is behind.
    pub micros: i64,
    /// How far [`Clock::now`] may be from the database's time at the most: half of the best round trip, and the drift since.
    pub error: Duration,
}

/// Two clocks that are further apart than [`AGREEMENT`]: one of them is wrong, and nobody can tell which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this machine's clock is {} s {} the database's; set the wrong one right (see `timedatectl`)",
    .ahead_micros.unsigned_abs() / 1_000_000,
    if *.ahead_micros < 0 { "behind" } else { "ahead of" }
)]
pub struct Disagreement {
    /// The machine's time of day less the database's, in microseconds.
    pub ahead_micros: i64,
}

impl DatabaseTime {
    /// The interval, widened by what the clocks may have drifted apart since.
    fn bounds(&self, elapsed: i64) -> (i64, i64) {
        let drift = (elapsed - self.at).saturating_mul(DRIFT_PPM) / 1_000_000;
        (self.low.saturating_sub(drift), self.high.saturating_add(drift))
    }

    /// What to show. Where more was shown than the database says, time passes at half its pace until that is made up for.
    fn now(&self, elapsed: i64) -> i64 {
        let passed = elapsed - self.at;
        let meant = (self.low / 2 + self.high / 2).saturating_add(elapsed);
        meant.max(self.shown.saturating_add(passed / 2))
    }
}

impl Clock {
    /// The system's clock, until [`Clock::observe`] is told of the database's.
    pub fn system() -> Self {
        Self { source: Source::System(Arc::default()) }
    }

    /// The clock of a machine on which it is set wrong, by so many microseconds: for tests. It goes by itself, and is
    /// corrected as the system's is.
    pub fn wrong_by(micros: i64) -> Self {
        let wrong_by = Some(AtomicI64::new(micros));
        Self { source: Source::System(Arc::new(SystemClock { wrong_by, ..SystemClock::default() })) }
    }

    /// A clock that starts at the present moment and then stands still; its clones move together. No database corrects it.
    pub fn frozen() -> Self {
        let hand = ManualClock { elapsed: AtomicI64::new(system_micros()), ahead: AtomicI64::new(0) };
        Self { source: Source::Frozen(Arc::new(hand)) }
    }

    /// What time it is.
    pub fn now(&self) -> Timestamp {
        Timestamp(match &self.source {
            Source::System(clock) => {
                // Held while the time passes, or a correction in between would be gone back behind.
                let course = clock.course.read().expect("no one panics while holding it");
                course.map_or_else(|| clock.time_of_day(), |course| course.now(self.elapsed_micros()))
            }
            Source::Frozen(hand) => hand.time_of_day(),
        })
    }

    /// How long it is from some moment in the past, the same for as long as the process runs: for measuring, where a time
    /// of day that is set back must do no harm. Never goes back; a frozen clock's stands still with it.
    pub fn elapsed(&self) -> Duration {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        match &self.source {
            Source::System(_) => START.elapsed(),
            Source::Frozen(hand) => Duration::from_micros(hand.elapsed.load(Ordering::SeqCst).try_into().unwrap_or(0)),
        }
    }

    fn elapsed_micros(&self) -> i64 {
        i64::try_from(self.elapsed().as_micros()).unwrap_or(i64::MAX)
    }

    /// Takes in a reading of the database's clock, which was asked when [`Clock::elapsed`] was `asked`, and has answered by
    /// now. The time shown goes by it from now on. A frozen clock takes in nothing.
    ///
    /// Returns by how many microseconds the time shown was set, where it was: the database's clock was set, or another
    /// server answers.
    pub fn observe(&self, database: Timestamp, asked: Duration) -> Option<i64> {
        let Source::System(clock) = &self.source else { return None };
        let mut course = clock.course.write().expect("no one panics while holding it");
        let elapsed = self.elapsed_micros();
        let asked = i64::try_from(asked.as_micros()).unwrap_or(i64::MAX).min(elapsed);
        // It was read at some moment in between.
        let (low, high) = (database.0.saturating_sub(elapsed), database.0.saturating_sub(asked));
        let Some(before) = *course else {
            let shown = low / 2 + high / 2 + elapsed;
            *course = Some(DatabaseTime { low, high, at: elapsed, shown });
            return None;
        };
        let (low_before, high_before) = before.bounds(elapsed);
        let both = (low.max(low_before), high.min(high_before));
        // Where the two cannot both be, the later one is.
        let (low, high) = if both.0 <= both.1 { both } else { (low, high) };
        let shown = before.now(elapsed);
        let set_by = (low / 2 + high / 2).saturating_add(elapsed).saturating_sub(shown);
        let was_set = set_by.saturating_abs() > SLEWED_MAX;
        let shown = if was_set { shown.saturating_add(set_by) } else { shown };
        *course = Some(DatabaseTime { low, high, at: elapsed, shown });
        was_set.then_some(set_by)
    }

    /// How this machine's clock stands to the database's; `None` before the first reading, and for a frozen clock.
    pub fn skew(&self) -> Option<Skew> {
        let Source::System(clock) = &self.source else { return None };
        let course = (*clock.course.read().expect("no one panics while holding it"))?;
        let elapsed = self.elapsed_micros();
        let (low, high) = course.bounds(elapsed);
        let (lead, width) = (course.now(elapsed) - elapsed, high - low);
        let middle = low / 2 + high / 2;
        Some(Skew {
            micros: clock.time_of_day().saturating_sub(middle).saturating_sub(elapsed),
            error: Duration::from_micros((width / 2 + (lead - middle).abs()).try_into().unwrap_or(0)),
        })
    }

    /// Whether the time is known as well as it has to be: corrected by the database's, to within `error_max`. A frozen clock
    /// is right.
    pub fn is_known(&self, error_max: Duration) -> bool {
        match &self.source {
            Source::System(_) => self.skew().is_some_and(|skew| skew.error <= error_max),
            Source::Frozen(_) => true,
        }
    }

    /// The present moment for what cannot be undone: the database's, read just now, where this machine's own clock bears
    /// it out. A frozen clock shows what it shows.
    ///
    /// # Errors
    ///
    /// When the two are further apart than [`AGREEMENT`].
    pub fn agreed(&self, database: Timestamp) -> Result<Timestamp, Disagreement> {
        match &self.source {
            Source::System(clock) => {
                let ahead_micros = clock.time_of_day().saturating_sub(database.0);
                let apart = Duration::from_micros(ahead_micros.unsigned_abs());
                if apart > AGREEMENT { Err(Disagreement { ahead_micros }) } else { Ok(database) }
            }
            Source::Frozen(hand) => Ok(Timestamp(hand.time_of_day())),
        }
    }

    /// Moves a frozen clock on. The system's clock goes by itself: there this does nothing.
    pub fn advance(&self, by: Duration) {
        if let Source::Frozen(hand) = &self.source {
            hand.elapsed.fetch_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX), Ordering::SeqCst);
        }
    }

    /// Sets the time of day, as an operator does by hand; what is measured with goes on as if nothing had happened. For
    /// clocks of tests: the system's own is not ours to set.
    pub fn set(&self, now: Timestamp) {
        match &self.source {
            Source::System(clock) => {
                if let Some(wrong_by) = &clock.wrong_by {
                    wrong_by.store(now.0.saturating_sub(system_micros()), Ordering::SeqCst);
                }
            }
            Source::Frozen(hand) => {
                hand.ahead.store(now.0.saturating_sub(hand.elapsed.load(Ordering::SeqCst)), Ordering::SeqCst);
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
    /// What the machine's clock shows.
    fn time_of_day(&self) -> i64 {
        let wrong_by = self.wrong_by.as_ref().map_or(0, |wrong_by| wrong_by.load(Ordering::SeqCst));
        system_micros().saturating_add(wrong_by)
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

/// A random number, for what only has to differ: the random part of a wait.
///
/// # Panics
///
/// As [`random`].
pub fn random_u32() -> u32 {
    u32::from_ne_bytes(random())
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

    fn micros(duration: Duration) -> i64 {
        duration.as_micros().try_into().unwrap()
    }

    /// A reading as the database gives it, on a machine whose clock is wrong by so much.
    fn read(clock: &Clock, database_ahead: i64) -> Option<i64> {
        clock.observe(Timestamp(system_micros() + database_ahead), clock.elapsed())
    }

    #[test]
    fn time_is_the_databases_whatever_the_machine_shows() {
        for wrong_by in [-90, 90, 3_600, -3_600, 130 * 86_400] {
            let wrong_by = wrong_by * 1_000_000;
            let clock = Clock::wrong_by(wrong_by);
            assert!((clock.now().as_micros() - system_micros() - wrong_by).abs() < 1_000_000, "none other is known");
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
    fn time_never_goes_back_for_a_small_difference_and_at_once_for_a_large_one() {
        let clock = Clock::wrong_by(0);
        read(&clock, 0);
        let before = clock.now();
        // Half a second back: the readings contradict each other, and the clock waits.
        assert_eq!(read(&clock, -500_000), None);
        let after = clock.now();
        assert!(after >= before && after.since(before) < Duration::from_millis(400), "{before} {after}");
        std::thread::sleep(Duration::from_millis(20));
        assert!(clock.now() > after, "and goes on");
        // Another primary, whose clock is an hour behind: all replicas follow at once, and say so.
        let set_by = read(&clock, -micros(Duration::from_secs(3_600))).unwrap();
        assert!((set_by + micros(Duration::from_secs(3_600))).abs() < 2_000_000, "{set_by}");
        assert!((clock.now().as_micros() - system_micros() - set_by).abs() < 2_000_000);
        assert!(read(&clock, 0).unwrap() > 0, "and back again");
    }

    /// A slow answer says little, and takes nothing away from what a fast one has said.
    #[test]
    fn the_best_of_the_readings_counts() {
        let clock = Clock::wrong_by(0);
        // What elapses is counted from the first time that somebody asks.
        clock.elapsed();
        std::thread::sleep(Duration::from_millis(30));
        // Asked 30 ms ago, answered now.
        clock.observe(Timestamp(system_micros()), clock.elapsed().saturating_sub(Duration::from_millis(30)));
        let vague = clock.skew().unwrap().error;
        assert!(vague >= Duration::from_millis(14), "{vague:?}");
        read(&clock, -10_000);
        // Until what was shown too much is made up for.
        std::thread::sleep(Duration::from_millis(100));
        let exact = clock.skew().unwrap();
        assert!(exact.error < vague, "{exact:?}");
        clock.observe(Timestamp(system_micros() - 10_000), clock.elapsed().saturating_sub(Duration::from_millis(30)));
        assert!(clock.skew().unwrap().error < vague);
        assert!(clock.is_known(Duration::from_secs(1)) && !clock.is_known(Duration::ZERO));
        assert!(!Clock::system().is_known(Duration::from_secs(1)), "never read");
    }

    #[test]
    fn what_cannot_be_undone_waits_until_the_clocks_agree() {
        let (minute, here) = (micros(AGREEMENT), Clock::wrong_by(0));
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
