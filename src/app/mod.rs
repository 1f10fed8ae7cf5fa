//! The service's operations, a file per verb. Each gathers what it needs, decides, records the decision, and answers. Three
//! hops from a handler to SQL.

mod after_restore;
mod audit;
mod backchannel;
mod bulkhead;
mod cookies;
mod create;
mod credentials;
mod deliver;
mod erase;
mod grant;
mod group;
mod idempotency;
mod introspect;
mod jobs;
mod keys;
mod list;
mod liveness;
mod load;
mod projects;
mod readiness;
mod refresh;
mod refused;
mod rehearse;
mod renew;
mod reseal;
mod revoke;
mod revoke_all;
mod revoke_key;
mod revoke_project;
mod revoke_session;
mod rotate_key;
mod server_keys;
mod slots;
mod supervise;
mod sweep;
mod update;
mod usage;
mod verify;
mod watch;

pub use after_restore::after_restore;
pub use audit::AuditActor;
pub use audit::AuditEntry;
pub use audit::AuditFilter;
pub use audit::AuditLog;
pub use audit::audit_kinds;
pub use backchannel::EndpointError;
pub use backchannel::NewEndpoint;
pub use credentials::AccessToken;
pub use credentials::Caller;
pub use credentials::Client;
pub use credentials::ClientAuth;
pub use credentials::ClientCertificate;
pub use credentials::Service;
pub use deliver::Deliverer;
pub use deliver::LOST_AFTER;
pub use grant::Grant;
pub use idempotency::IdempotencyKey;
pub use introspect::Introspection;
pub use introspect::TOKENS_MAX;
pub use jobs::Jobs;
pub use keys::KeyCache;
pub use keys::KeyError;
pub use keys::RELOAD_INTERVAL;
pub use keys::Snapshot;
pub use list::ListRequest;
pub use list::Listed;
pub use list::Page;
pub use load::Load;
pub use projects::ProjectError;
pub use projects::ServerKeyRevoked;
pub use readiness::NotReady;
pub use rehearse::Rehearsal;
pub use renew::Renewed;
pub use reseal::Resealed;
pub use revoke::RevokeOutcome;
pub use revoke::TokenHolder;
pub use revoke_all::RevokeAllRequest;
pub use revoke_key::KeyRevoked;
pub use rotate_key::Rotated;
pub use supervise::Supervisor;
pub use sweep::PASS_INTERVAL;
pub use sweep::Removed;
pub use sweep::Start;
pub use sweep::SweepError;
pub use sweep::SweepKind;
pub use sweep::SweepStep;
pub use sweep::Sweeper;

use std::sync::Arc;

use bulkhead::Bulkhead;
use create::Creations;
use group::Groups;
use refresh::Refreshes;
use refused::RefusedAttempts;
use renew::SharedRefreshes;
use revoke::SignOuts;
use server_keys::KnownServerKeys;
use usage::Usage;
use watch::StrongKeys;

use crate::config;
use crate::feed;
use crate::feed::Feed;
use crate::rates;
use crate::rates::Limiter;
use crate::store;
use crate::store::Store;
use crate::telemetry::LogLimiter;
use crate::telemetry::Metrics;
use sessiond_core::clock::Clock;
use sessiond_core::session::Refusal;
use sessiond_core::token::access::Issuer;
use sessiond_core::token::verified::VerifyError;
use sessiond_core::token::verifier::AccessVerifier;

/// Database connections besides the request pool: the feed's, and the one for readiness checks.
pub const CONNECTIONS: usize = feed::CONNECTIONS + 1;

/// Why an operation failed. Its causes are shared, because several callers may have awaited the same operation.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The request was refused.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] Arc<store::Error>),
    /// The feed cannot be followed here now: it has not been read yet, or the server is about to stop.
    #[error("the feed is interrupted")]
    FeedInterrupted,
    /// A key could not be opened or used, or the project has none.
    #[error(transparent)]
    Key(Arc<KeyError>),
}

impl From<KeyError> for Error {
    fn from(error: KeyError) -> Self {
        Self::Key(Arc::new(error))
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<VerifyError> for Error {
    fn from(error: VerifyError) -> Self {
        Self::Refused(error.into())
    }
}

impl From<rates::Empty> for Error {
    fn from(empty: rates::Empty) -> Self {
        Self::Refused(empty.into())
    }
}

/// The service. Cheap to clone; clones share state.
#[derive(Clone)]
pub struct App {
    pub(crate) store: Store,
    pub(crate) keys: KeyCache,
    pub(crate) issuer: Issuer,
    pub(crate) clock: Clock,
    pub(crate) rates: Limiter,
    feed: Feed,
    verifier: AccessVerifier,
    server_keys: KnownServerKeys,
    strong_keys: StrongKeys,
    usage: Usage,
    refused: RefusedAttempts,
    /// The database over a connection of its own, for readiness checks.
    probe: Store,
    /// The database over connections reserved for signing out, which must not wait behind other requests.
    urgent: Store,
    bulkhead: Bulkhead,
    sign_outs: SignOuts,
    refreshes: Refreshes,
    /// Refreshes for proxies, which requests share.
    renewals: SharedRefreshes,
    creations: Creations,
    load: Load,
    pub(crate) metrics: Metrics,
    /// Limits the log lines about refreshes that were repeated from elsewhere.
    repeat_log: LogLimiter,
}

impl App {
    /// Creates the service, without rate limits; see [`App::with_rates`].
    pub fn new(store: Store, keys: KeyCache, issuer: Issuer, clock: Clock) -> Self {
        Self {
            feed: Feed::new(&store, clock.clone()),
            probe: store.with_own_pool(1),
            urgent: store.urgent(),
            bulkhead: Bulkhead::new(store.operation_timeout(), store.metrics().clone()),
            sign_outs: Groups::new(store::SESSIONS_REVOKE, store.operation_timeout(), store.metrics().clone()),
            refreshes: Groups::new(refresh::OPERATION, store.operation_timeout(), store.metrics().clone()),
            creations: Groups::new(create::OPERATION, store.operation_timeout(), store.metrics().clone()),
            load: Load::default(),
            renewals: SharedRefreshes::default(),
            store,
            keys,
            verifier: AccessVerifier::new(issuer.clone()),
            server_keys: KnownServerKeys::default(),
            strong_keys: StrongKeys::default(),
            issuer,
            clock,
            rates: Limiter::off(),
            usage: Usage::default(),
            refused: RefusedAttempts::default(),
            metrics: Metrics::default(),
            repeat_log: LogLimiter::default(),
        }
    }

    /// Applies rate limits, and counts into these metrics.
    #[must_use]
    pub fn with_rates(self, rates: &config::Rates, metrics: Metrics) -> Self {
        Self { rates: Limiter::new(rates, self.clock.clone(), metrics.clone()), metrics, ..self }
    }

    /// Keeps half of the places for verifications free of requests that wait for a key which they may have made up.
    #[must_use]
    pub fn with_requests_max(self, count: usize) -> Self {
        Self { keys: self.keys.with_waiting_max(count.div_ceil(2)), ..self }
    }

    /// The feed of revocations.
    pub const fn feed(&self) -> &Feed {
        &self.feed
    }

    /// The load of this replica.
    pub const fn load(&self) -> &Load {
        &self.load
    }

    /// The rate limits.
    pub const fn rates(&self) -> &Limiter {
        &self.rates
    }

    /// The cached keys and policies.
    pub const fn keys(&self) -> &KeyCache {
        &self.keys
    }

    /// The clock.
    pub const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Checks that the sealing key is the one that this database's keys are sealed with.
    ///
    /// # Errors
    ///
    /// Fails with [`KeyError::SealedByAnother`] if it is not, or if the database operation fails.
    pub async fn check_sealing(&self) -> Result<(), Error> {
        match self.keys.reload().await?.is_sealed_by_another() {
            true => Err(KeyError::SealedByAnother.into()),
            false => Ok(()),
        }
    }

    /// The number of open database connections, and how many of them are idle.
    pub fn pool_size(&self) -> (usize, usize) {
        self.store.pool_size()
    }
}
