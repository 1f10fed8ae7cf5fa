//! What a guard has done, and how it stands.

use std::cell::Cell;
use std::fmt::Write as _;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::refusal::Refusal;

/// How a guard stands, at one moment: to be read, or rendered for Prometheus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// How old the news of what has ended may be; `None` before the first complete news.
    pub staleness: Option<Duration>,
    /// How many revocations are remembered.
    pub entries: usize,
    /// How long ago the keys were last read; `None` when they never were.
    pub jwks_age: Option<Duration>,
    /// Tokens that were accepted.
    pub accepted: u64,
    /// Tokens that were none of ours, or none at all.
    pub refused: u64,
    /// Tokens that had expired.
    pub expired: u64,
    /// Tokens whose session had ended.
    pub revoked: u64,
    /// Tokens of which could not be known whether they were good.
    pub unavailable: u64,
    /// How often sessiond was asked about a token.
    pub introspections: u64,
    /// How often a stream was begun.
    pub connections: u64,
    /// How many snapshots were told to their end.
    pub snapshots: u64,
}

impl Stats {
    /// As text in Prometheus' exposition format. A staleness or an age that there is none of is `+Inf`.
    pub fn render(&self) -> String {
        let seconds =
            |age: Option<Duration>| age.map_or_else(|| "+Inf".to_owned(), |age| age.as_secs_f64().to_string());
        let mut page = String::new();
        let mut gauge = |name: &str, help: &str, value: String| {
            let _ = write!(page, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
        };
        let help = "How old the news of what has ended may be";
        gauge("sessiond_guard_staleness_seconds", help, seconds(self.staleness));
        gauge("sessiond_guard_entries", "Revocations that are remembered", self.entries.to_string());
        gauge("sessiond_guard_jwks_age_seconds", "Time since the keys were last read", seconds(self.jwks_age));

        let verifications = "sessiond_guard_verifications_total";
        let _ = write!(page, "# HELP {verifications} Tokens, by what became of them\n# TYPE {verifications} counter\n");
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
            ("introspections", "Tokens that sessiond was asked about", self.introspections),
            ("connections", "Streams of news that were begun", self.connections),
            ("snapshots", "Snapshots that were told to their end", self.snapshots),
        ] {
            let name = format!("sessiond_guard_{name}_total");
            let _ = write!(page, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {count}\n");
        }
        page
    }
}

/// What is counted.
#[derive(Default)]
pub(super) struct Counters {
    outcomes: [Stripe; STRIPES],
    pub(super) introspections: AtomicU64,
    pub(super) connections: AtomicU64,
    pub(super) snapshots: AtomicU64,
}

/// Each thread counts in a place of its own, as far as there are enough: or all cores would fight for one line of memory.
const STRIPES: usize = 16;

/// As long as two lines, because they are fetched in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Stripe([AtomicU64; 5]);

impl Counters {
    pub(super) fn verified<T>(&self, outcome: &Result<T, Refusal>) {
        let at = match outcome {
            Ok(_) => 0,
            Err(Refusal::CredentialsMissing | Refusal::UnparsableAccessToken | Refusal::WrongProject { .. }) => 1,
            Err(Refusal::AccessTokenExpired { .. }) => 2,
            Err(Refusal::SessionRevoked) => 3,
            Err(Refusal::Unavailable(_)) => 4,
        };
        self.outcomes[stripe()].0[at].fetch_add(1, Ordering::Relaxed);
    }

    /// Accepted, refused, expired, revoked, unavailable.
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

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
