//! What the service does, a file per verb: gather, decide, record, answer. Three hops from a handler to SQL.

mod after_restore;
mod backchannel;
mod create;
mod credentials;
mod deliver;
mod erase;
mod grant;
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
mod reseal;
mod revoke;
mod revoke_all;
mod revoke_key;
mod revoke_session;
mod rotate_key;
mod supervise;
mod sweep;
mod turns;
mod update;
mod usage;
mod verify;
mod watch;

pub use after_restore::after_restore;
pub use backchannel::EndpointError;
pub use backchannel::NewEndpoint;
pub use credentials::AccessToken;
pub use credentials::Caller;
pub use credentials::Client;
pub use credentials::Service;
pub use credentials::Standing;
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
pub use projects::Taken;
pub use readiness::NotReady;
pub use reseal::Resealed;
pub use revoke::Ended;
pub use revoke::TokenHolder;
pub use revoke_all::RevokeAllRequest;
pub use revoke_key::KeyRevoked;
pub use rotate_key::Rotated;
pub use supervise::Supervisor;
pub use sweep::Kind;
pub use sweep::PASS_INTERVAL;
pub use sweep::Removed;
pub use sweep::Start;
pub use sweep::Step;
pub use sweep::SweepError;
pub use sweep::Sweeper;

use std::sync::Arc;

use turns::Turns;
use usage::Usage;

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
use sessiond_core::token::verifier::AccessVerifier;
use sessiond_core::token::verifier::VerifyError;

/// How many connections to the database there are beside those for requests: the feed's, and the one that readiness asks over.
pub const CONNECTIONS: usize = feed::CONNECTIONS + 1;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The answer is no.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The database failed. Shared, because many may have waited for the same operation.
    #[error(transparent)]
    Store(#[from] Arc<store::Error>),
    /// The feed cannot be followed here now: nothing is known yet, or the server is about to stop.
    #[error("the feed is interrupted")]
    FeedInterrupted,
    /// A key failed: it does not open, or there is none.
    #[error(transparent)]
    Key(#[from] KeyError),
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

/// The service. Clones are one and the same.
#[derive(Clone)]
pub struct App {
    pub(crate) store: Store,
    pub(crate) keys: KeyCache,
    pub(crate) issuer: Issuer,
    pub(crate) clock: Clock,
    pub(crate) rates: Limiter,
    feed: Feed,
    verifier: AccessVerifier,
    usage: Usage,
    /// The database by a connection of its own, to ask whether it answers.
    probe: Store,
    /// The database for what must get through: signing out.
    urgent: Store,
    turns: Turns,
    load: Load,
    pub(crate) metrics: Metrics,
    /// When it was last logged that a refresh was repeated from elsewhere.
    repeats_said: LogLimiter,
}

impl App {
    /// Puts the service together. It lets in all who come; see [`App::with_rates`].
    pub fn new(store: Store, keys: KeyCache, issuer: Issuer, clock: Clock) -> Self {
        Self {
            feed: Feed::new(&store, clock.clone()),
            probe: store.with_own_pool(1),
            urgent: store.urgent(),
            turns: Turns::new(store.operation_timeout(), store.metrics().clone()),
            load: Load::default(),
            store,
            keys,
            verifier: AccessVerifier::new(issuer.clone()),
            issuer,
            clock,
            rates: Limiter::off(),
            usage: Usage::default(),
            metrics: Metrics::default(),
            repeats_said: LogLimiter::default(),
        }
    }

    /// Lets in only so many, and counts into these metrics.
    #[must_use]
    pub fn with_rates(self, rates: &config::Rates, metrics: Metrics) -> Self {
        Self { rates: Limiter::new(rates, self.clock.clone(), metrics.clone()), metrics, ..self }
    }

    /// What has ended, live.
    pub const fn feed(&self) -> &Feed {
        &self.feed
    }

    /// How busy this replica is.
    pub const fn load(&self) -> &Load {
        &self.load
    }

    /// How much any one caller may ask for.
    pub const fn rates(&self) -> &Limiter {
        &self.rates
    }

    /// The keys and policies as they are known now.
    pub const fn keys(&self) -> &KeyCache {
        &self.keys
    }

    /// What time it is.
    pub const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Whether the sealing key is the one that this database's keys are sealed with.
    ///
    /// # Errors
    ///
    /// [`KeyError::SealedByAnother`] when it is not; the store's.
    pub async fn check_sealing(&self) -> Result<(), Error> {
        match self.keys.reload().await?.is_sealed_by_another() {
            true => Err(KeyError::SealedByAnother.into()),
            false => Ok(()),
        }
    }

    /// How many connections to the database there are, and how many of them are idle.
    pub fn pool_size(&self) -> (usize, usize) {
        self.store.pool_size()
    }
}
