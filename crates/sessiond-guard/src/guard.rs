//! The guard itself: connects, verifies, counts.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::task::JoinSet;
use tokio::time::timeout;

use super::follow;
use super::jwks_reader;
use super::options::ConnectError;
use super::options::FailMode;
use super::options::GuardOptions;
use super::principal::Principal;
use super::rejection::Rejection;
use super::rejection::UnavailableReason;
use super::state::Decision;
use super::state::GuardState;
use super::state::Startup;
use super::stats::Stats;
use super::trace::TraceHeaders;
use sessiond_core::session::policy::StepUp;

/// Verifies the access tokens of one project. Cheap to clone; clones share state.
///
/// Its tasks stop when the last clone is dropped.
#[derive(Clone)]
pub struct Guard {
    state: Arc<GuardState>,
    _tasks: Arc<JoinSet<()>>,
}

impl Guard {
    /// Connects to sessiond, and waits until the keys and the first complete snapshot of the revocations have arrived. In an
    /// outage, returns after [`GuardOptions::startup_timeout`]; the fail mode then decides until they arrive.
    ///
    /// Must be called within a Tokio runtime: the guard spawns its tasks on it.
    ///
    /// # Errors
    ///
    /// Fails if the configuration is wrong: invalid options, a server key that is not the project's, or a server that does
    /// not issue the project's tokens. Does not fail in an outage.
    pub async fn connect(options: GuardOptions) -> Result<Self, ConnectError> {
        let state = Arc::new(GuardState::new(&options)?);
        let mut tasks = JoinSet::new();
        let shared = Arc::clone(&state);
        tasks.spawn(async move { follow::run(&shared).await });
        let shared = Arc::clone(&state);
        tasks.spawn(async move { jwks_reader::run(&shared).await });
        let shared = Arc::clone(&state);
        tasks.spawn(async move { follow::expire_entries(&shared).await });
        let guard = Self { state, _tasks: Arc::new(tasks) };
        match timeout(options.startup_timeout, guard.ready()).await {
            Ok(outcome) => outcome.map(|()| guard),
            Err(_) => {
                tracing::warn!("sessiond is unavailable: the fail mode decides until it answers");
                Ok(guard)
            }
        }
    }

    /// Waits until the keys and the first complete snapshot of the revocations have arrived.
    ///
    /// # Errors
    ///
    /// Fails if the configuration is wrong, as [`Guard::connect`].
    pub async fn ready(&self) -> Result<(), ConnectError> {
        let mut startup = self.state.startup.subscribe();
        let has_ended = |startup: &Startup| startup.is_complete() || startup.misconfiguration.is_some();
        let startup = startup.wait_for(has_ended).await.expect("the sender is held by this guard");
        match &startup.misconfiguration {
            Some(error) if !startup.is_complete() => Err(error.clone()),
            Some(_) | None => Ok(()),
        }
    }

    /// Verifies a token. Usually returns without waiting; asks sessiond only under [`FailMode::Introspect`] and about unknown
    /// keys.
    ///
    /// # Errors
    ///
    /// Returns why the token is rejected.
    pub async fn verify(&self, token: &str) -> Result<Principal, Rejection> {
        match self.verify_locally(token) {
            Some(outcome) => outcome,
            None => self.ask(token, &TraceHeaders::default()).await,
        }
    }

    /// Verifies a token that could not be verified locally, as a part of a trace.
    pub(super) async fn ask(&self, token: &str, trace: &TraceHeaders) -> Result<Principal, Rejection> {
        let outcome = self.state.verify(token, trace).await;
        self.state.counters.count(&outcome);
        outcome
    }

    /// Verifies a token without waiting.
    ///
    /// # Errors
    ///
    /// Returns why the token is rejected: [`Rejection::Unavailable`] where [`Guard::verify`] would ask sessiond.
    pub fn verify_now(&self, token: &str) -> Result<Principal, Rejection> {
        let outcome = match self.state.decide(token) {
            Decision::Accepted(principal) => Ok(principal),
            Decision::Rejected(rejection) => Err(rejection),
            Decision::UnknownKey => {
                self.state.keys.request_read();
                Err(Rejection::Unavailable(UnavailableReason::NoKeys))
            }
            Decision::Uncertain(reason, principal) => self.state.decide_by_fail_mode(reason, principal),
        };
        self.state.counters.count(&outcome);
        outcome
    }

    /// Checks that the user of an accepted token has authenticated as a route requires (RFC 9470). See also
    /// [`GuardLayer::require`](super::GuardLayer::require).
    ///
    /// # Errors
    ///
    /// [`Rejection::InsufficientUserAuthentication`].
    pub fn check(&self, principal: &Principal, required: &StepUp) -> Result<(), Rejection> {
        self.state.check(principal, required)
    }

    /// The guard's counters, and the age of its keys and revocations.
    pub fn stats(&self) -> Stats {
        let state = &self.state;
        let [accepted, refused, expired, revoked, unavailable, superseded] = state.counters.outcomes();
        Stats {
            staleness: state.revocations.age(&state.time),
            entries: state.revocations.current().len(),
            jwks_age: state.keys.age(&state.time),
            accepted,
            refused,
            expired,
            revoked,
            superseded,
            unavailable,
            step_ups: state.counters.step_ups.load(Ordering::Relaxed),
            withheld: state.counters.withheld.load(Ordering::Relaxed),
            introspections: state.counters.introspections.load(Ordering::Relaxed),
            connections: state.counters.connections.load(Ordering::Relaxed),
            snapshots: state.counters.snapshots.load(Ordering::Relaxed),
        }
    }

    /// Verifies without waiting; `None` if sessiond must be asked.
    pub(super) fn verify_locally(&self, token: &str) -> Option<Result<Principal, Rejection>> {
        let outcome = match self.state.decide(token) {
            Decision::Accepted(principal) => Ok(principal),
            Decision::Rejected(rejection) => Err(rejection),
            Decision::UnknownKey => return None,
            Decision::Uncertain(reason, principal) => match self.state.fail_mode {
                FailMode::Introspect => return None,
                FailMode::Reject | FailMode::AcceptUntilExpiry => self.state.decide_by_fail_mode(reason, principal),
            },
        };
        self.state.counters.count(&outcome);
        Some(outcome)
    }

    /// Counts a request that carries no token to verify.
    pub(super) fn count(&self, rejection: Rejection) -> Rejection {
        let outcome: Result<(), Rejection> = Err(rejection.clone());
        self.state.counters.count(&outcome);
        rejection
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Guard").field("project", &self.state.project).finish_non_exhaustive()
    }
}
