//! Verifies sessiond's access tokens where they are used, without a call per request, and rejects the tokens of a revoked
//! session within milliseconds of the revocation.
//!
//! A guard caches the project's public keys and follows its feed of revocations. It accepts a token if the signature is
//! valid, the token has not expired, its session is not revoked, and the feed is recent enough. If it is not, [`FailMode`]
//! decides: a guard that is cut off from sessiond knows it.
//!
//! ```no_run
//! # async fn example(key: String) -> Result<(), sessiond_guard::ConnectError> {
//! use sessiond_guard::{Guard, GuardOptions};
//!
//! let guard = Guard::connect(GuardOptions::new("http://sessiond:8080", "shop", "https://sessions.example.org", key)).await?;
//! let routes = axum::Router::<()>::new().layer(guard.layer());
//! # drop(routes); Ok(()) }
//! ```
//!
//! Behind the layer, a request has a [`Principal`] among its extensions. `docs/guard.md` has what is
//! promised, and measured.

mod ask;
mod follow;
mod inner;
mod keys;
mod layer;
mod options;
mod principal;
mod refusal;
mod revocations;
mod stats;
mod time;
mod upstream;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::task::JoinSet;
use tokio::time::timeout;

pub use layer::GuardLayer;
pub use layer::Guarded;
pub use layer::GuardedBody;
pub use layer::GuardedFuture;
pub use options::ConnectError;
pub use options::FailMode;
pub use options::GuardOptions;
pub use options::MAX_STALENESS_MIN;
pub use principal::Principal;
pub use refusal::Refusal;
pub use refusal::Uncertainty;
pub use sessiond_core::reason::Reason;
pub use stats::Stats;

use inner::Decision;
use inner::Inner;
use inner::Progress;

/// Verifies the access tokens of one project. Cheap to clone; clones share state. It stops following the feed when the last
/// clone is dropped.
#[derive(Clone)]
pub struct Guard {
    inner: Arc<Inner>,
    _tasks: Arc<JoinSet<()>>,
}

impl Guard {
    /// Begins to follow the feed, and waits until the keys and the first complete news are there; or, in an outage, for as
    /// long as [`GuardOptions::patience`] says. From then on the fail mode decides, until they come.
    ///
    /// Must be called in a Tokio runtime, which the guard's tasks then live in.
    ///
    /// # Errors
    ///
    /// For what an operator has to put right: options that make no sense, a server key that is not the project's, a server
    /// that is not the issuer. Not for an outage.
    pub async fn connect(options: GuardOptions) -> Result<Self, ConnectError> {
        let inner = Arc::new(Inner::new(&options)?);
        let mut tasks = JoinSet::new();
        let one = Arc::clone(&inner);
        tasks.spawn(async move { follow::run(&one).await });
        let one = Arc::clone(&inner);
        tasks.spawn(async move { keys::run(&one).await });
        let one = Arc::clone(&inner);
        tasks.spawn(async move { follow::forget(&one).await });
        let guard = Self { inner, _tasks: Arc::new(tasks) };
        match timeout(options.patience, guard.ready()).await {
            Ok(begun) => begun.map(|()| guard),
            Err(_) => {
                tracing::warn!("sessiond does not answer: until it does, what is verified is up to the fail mode");
                Ok(guard)
            }
        }
    }

    /// Waits until the keys and the first complete news are there.
    ///
    /// # Errors
    ///
    /// As [`Guard::connect`], when they cannot come.
    pub async fn ready(&self) -> Result<(), ConnectError> {
        let mut progress = self.inner.progress.subscribe();
        let settled = |progress: &Progress| progress.has_begun() || progress.rejected.is_some();
        let progress = progress.wait_for(settled).await.expect("the sender is held by this guard");
        match &progress.rejected {
            Some(rejected) if !progress.has_begun() => Err(rejected.clone()),
            Some(_) | None => Ok(()),
        }
    }

    /// Verifies a token. Most return at once; sessiond is asked only under [`FailMode::Introspect`] and for keys that are not
    /// known yet.
    ///
    /// # Errors
    ///
    /// Why it is not accepted.
    pub async fn verify(&self, token: &str) -> Result<Principal, Refusal> {
        match self.glance(token) {
            Some(outcome) => outcome,
            None => {
                let outcome = self.inner.look(token).await;
                self.inner.counters.verified(&outcome);
                outcome
            }
        }
    }

    /// Verifies a token without waiting.
    ///
    /// # Errors
    ///
    /// As [`Guard::verify`]; where that would ask sessiond, [`Refusal::Unavailable`].
    pub fn verify_now(&self, token: &str) -> Result<Principal, Refusal> {
        let decision = self.inner.decide(token);
        let outcome = match decision {
            Decision::Accepted(principal) => Ok(principal),
            Decision::Refused(refusal) => Err(refusal),
            Decision::UnknownKey => {
                self.inner.keys.wish();
                Err(Refusal::Unavailable(Uncertainty::NoKeys))
            }
            Decision::Uncertain(uncertainty, principal) => self.inner.decide_by_fail_mode(uncertainty, principal),
        };
        self.inner.counters.verified(&outcome);
        outcome
    }

    /// Puts the guard in front of a service.
    pub fn layer(&self) -> GuardLayer {
        GuardLayer::new(self.clone())
    }

    /// The guard's counters and the age of what it knows.
    pub fn stats(&self) -> Stats {
        let inner = &self.inner;
        let [accepted, refused, expired, revoked, unavailable] = inner.counters.outcomes();
        Stats {
            staleness: inner.revocations.age(&inner.time),
            entries: inner.revocations.revoked().len(),
            jwks_age: inner.keys.age(&inner.time),
            accepted,
            refused,
            expired,
            revoked,
            unavailable,
            introspections: inner.counters.introspections.load(Ordering::Relaxed),
            connections: inner.counters.connections.load(Ordering::Relaxed),
            snapshots: inner.counters.snapshots.load(Ordering::Relaxed),
        }
    }

    /// Decides without waiting; `None` if sessiond must be asked.
    fn glance(&self, token: &str) -> Option<Result<Principal, Refusal>> {
        let outcome = match self.inner.decide(token) {
            Decision::Accepted(principal) => Ok(principal),
            Decision::Refused(refusal) => Err(refusal),
            Decision::UnknownKey => return None,
            Decision::Uncertain(uncertainty, principal) => match self.inner.fail_mode {
                FailMode::Introspect => return None,
                FailMode::Reject | FailMode::AcceptUntilExpiry => {
                    self.inner.decide_by_fail_mode(uncertainty, principal)
                }
            },
        };
        self.inner.counters.verified(&outcome);
        Some(outcome)
    }

    /// Counts a request without a token to verify.
    fn count(&self, refusal: Refusal) -> Refusal {
        let outcome: Result<(), Refusal> = Err(refusal.clone());
        self.inner.counters.verified(&outcome);
        refusal
    }
}
