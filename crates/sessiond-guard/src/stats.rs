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
    /// Tokens that a change of their session's claims superseded.
    pub superseded: u64,
    /// Tokens that the guard could not decide on.
    pub unavailable: u64,
    /// Accepted tokens whose user must authenticate again for the route.
    pub step_ups: u64,
    /// Revocations that a newer sessiond has withheld: upgrade this guard.
    pub withheld: u64,
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
        render(&[(String::new(), self)])
    }

    /// The same for the guards of several projects, with the project as a label.
    pub fn render_by_project(stats: &[(&str, Self)]) -> String {
        // A project's name needs no escaping.
        let labelled = stats.iter().map(|(project, stats)| (format!("project=\"{project}\""), stats));
        render(&labelled.collect::<Vec<_>>())
    }
}

type Count = fn(&Stats) -> u64;

/// Renders the numbers of guards, each with its label; empty for none.
fn render(guards: &[(String, &Stats)]) -> String {
    let seconds = |age: Option<Duration>| age.map_or_else(|| "+Inf".to_owned(), |age| age.as_secs_f64().to_string());
    let mut page = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: &dyn Fn(&Stats) -> Vec<(String, String)>| {
        let _ = write!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (own, stats) in guards {
            for (label, value) in samples(stats) {
                let labels: Vec<&str> = [own.as_str(), &label].into_iter().filter(|label| !label.is_empty()).collect();
                let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
                let _ = writeln!(page, "{name}{labels} {value}");
            }
        }
    };
    let one = |value: String| vec![(String::new(), value)];
    family("sessiond_guard_staleness_seconds", "gauge", "Age of the feed of revocations", &|stats| {
        one(seconds(stats.staleness))
    });
    family("sessiond_guard_entries", "gauge", "Revocations in memory", &|stats| one(stats.entries.to_string()));
    family("sessiond_guard_jwks_age_seconds", "gauge", "Time since the keys were last read", &|stats| {
        one(seconds(stats.jwks_age))
    });
    family("sessiond_guard_verifications_total", "counter", "Verified tokens, by outcome", &|stats| {
        let outcomes = [
            ("accepted", stats.accepted),
            ("refused", stats.refused),
            ("expired", stats.expired),
            ("revoked", stats.revoked),
            ("superseded", stats.superseded),
            ("unavailable", stats.unavailable),
        ];
        outcomes.map(|(outcome, count)| (format!("outcome=\"{outcome}\""), count.to_string())).into()
    });
    let counters: [(&str, &str, Count); 5] = [
        ("step_ups", "Accepted tokens whose user must authenticate again", |stats| stats.step_ups),
        ("withheld", "Revocations that this release does not understand", |stats| stats.withheld),
        ("introspections", "Introspection requests to sessiond", |stats| stats.introspections),
        ("connections", "Streams of revocations that were opened", |stats| stats.connections),
        ("snapshots", "Complete snapshots received", |stats| stats.snapshots),
    ];
    for (name, help, count) in counters {
        family(&format!("sessiond_guard_{name}_total"), "counter", help, &|stats| one(count(stats).to_string()));
    }
    page
}

#[derive(Default)]
pub(super) struct Counters {
    outcomes: [Stripe; STRIPES],
    pub(super) step_ups: AtomicU64,
    pub(super) withheld: AtomicU64,
    pub(super) introspections: AtomicU64,
    pub(super) connections: AtomicU64,
    pub(super) snapshots: AtomicU64,
}

/// Threads count in separate stripes, so that cores do not contend for one cache line.
const STRIPES: usize = 16;

/// Two cache lines long, because processors fetch them in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Stripe([AtomicU64; 6]);

impl Counters {
    pub(super) fn count<T>(&self, outcome: &Result<T, Rejection>) {
        let at = match outcome {
            Ok(_) => 0,
            Err(Rejection::CredentialsMissing | Rejection::UnparsableAccessToken | Rejection::WrongProject { .. }) => 1,
            Err(Rejection::AccessTokenExpired { .. }) => 2,
            Err(Rejection::SessionRevoked) => 3,
            Err(Rejection::Unavailable(_)) => 4,
            Err(Rejection::AccessTokenSuperseded) => 5,
            // Counted by itself: the token was accepted.
            Err(Rejection::InsufficientUserAuthentication(_)) => return,
        };
        self.outcomes[stripe()].0[at].fetch_add(1, Ordering::Relaxed);
    }

    /// Accepted, refused, expired, revoked, unavailable, superseded, in this order.
    pub(super) fn outcomes(&self) -> [u64; 6] {
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
