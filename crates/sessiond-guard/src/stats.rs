//! A guard's counters.

use std::cell::Cell;
use std::fmt::Write as _;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::rejection::Rejection;

/// A guard's counters and the age of its keys and revocations, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// The age of the feed of revocations; `None` before the first complete snapshot.
    pub staleness: Option<Duration>,
    /// Revocations in memory.
    pub entries: usize,
    /// The time since the keys were last read; `None` if they never were.
    pub jwks_age: Option<Duration>,
    /// Accepted tokens.
    pub accepted: u64,
    /// Requests with no token, a malformed one, or another project's.
    pub refused: u64,
    /// Expired tokens.
    pub expired: u64,
    /// Tokens of revoked sessions.
    pub revoked: u64,
    /// Tokens that the guard could not decide on.
    pub unavailable: u64,
    /// Introspection requests to sessiond.
    pub introspections: u64,
    /// Streams of revocations that were opened.
    pub connections: u64,
    /// Complete snapshots received.
    pub snapshots: u64,
}

impl Stats {
    /// Renders Prometheus' text exposition format. A staleness or an age of `None` is `+Inf`.
    pub fn render(&self) -> String {
        let seconds =
            |age: Option<Duration>| age.map_or_else(|| "+Inf".to_owned(), |age| age.as_secs_f64().to_string());
        let mut page = String::new();
        let mut gauge = |name: &str, help: &str, value: String| {
            let _ = write!(page, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
        };
        let help = "Age of the feed of revocations";
        gauge("sessiond_guard_staleness_seconds", help, seconds(self.staleness));
        gauge("sessiond_guard_entries", "Revocations in memory", self.entries.to_string());
        gauge("sessiond_guard_jwks_age_seconds", "Time since the keys were last read", seconds(self.jwks_age));

        let verifications = "sessiond_guard_verifications_total";
        let _ = write!(page, "# HELP {verifications} Verified tokens, by outcome\n# TYPE {verifications} counter\n");
        for (outcome, count) in [
            ("accepted", self.accepted),
            ("refused", self.refused),
            ("expired", self.expired),
            ("revoked", self.revoked),
            ("unavailable", self.unavailable),
        ] {
            let _ = writeln!(page, "{verifications}{{outcome=\"{outcome}\"}} {count}");
        }
        for (name, help, count) in [
            ("introspections", "Introspection requests to sessiond", self.introspections),
            ("connections", "Streams of revocations that were opened", self.connections),
            ("snapshots", "Complete snapshots received", self.snapshots),
        ] {
            let name = format!("sessiond_guard_{name}_total");
            let _ = write!(page, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {count}\n");
        }
        page
    }
}

#[derive(Default)]
pub(super) struct Counters {
    outcomes: [Stripe; STRIPES],
    pub(super) introspections: AtomicU64,
    pub(super) connections: AtomicU64,
    pub(super) snapshots: AtomicU64,
}

/// Threads count in separate stripes, so that cores do not contend for one cache line.
const STRIPES: usize = 16;

/// Two cache lines long, because processors fetch them in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Stripe([AtomicU64; 5]);

impl Counters {
    pub(super) fn count<T>(&self, outcome: &Result<T, Rejection>) {
        let at = match outcome {
            Ok(_) => 0,
            Err(Rejection::CredentialsMissing | Rejection::UnparsableAccessToken | Rejection::WrongProject { .. }) => 1,
            Err(Rejection::AccessTokenExpired { .. }) => 2,
            Err(Rejection::SessionRevoked) => 3,
            Err(Rejection::Unavailable(_)) => 4,
        };
        self.outcomes[stripe()].0[at].fetch_add(1, Ordering::Relaxed);
    }

    /// Accepted, refused, expired, revoked, unavailable, in this order.
    pub(super) fn outcomes(&self) -> [u64; 5] {
        std::array::from_fn(|at| self.outcomes.iter().map(|stripe| stripe.0[at].load(Ordering::Relaxed)).sum())
    }
}

fn stripe() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES);
    }
    OWN.with(Cell::get)
}

pub(super) fn increment(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
