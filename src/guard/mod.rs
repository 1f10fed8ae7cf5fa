//! Verifies access tokens where they are used, without a call for each, and refuses those of sessions that have ended
//! within milliseconds of their end.
//!
//! A guard keeps the project's public keys and follows `WatchRevocations`. A token is accepted when its signature holds, its
//! time is not up, its session is not among those that have ended, and the news of what has ended is young enough. When it
//! is not, [`FailMode`](crate::guard::FailMode) decides: a guard that is cut off knows that it is.
//!
//! ```no_run
//! # async fn example(key: String) -> Result<(), sessiond::guard::ConnectError> {
//! use sessiond::guard::{Guard, GuardOptions};
//!
//! let guard = Guard::connect(GuardOptions::new("http://sessiond:8080", "shop", "https://sessions.example.org", key)).await?;
//! let routes = axum::Router::<()>::new().layer(guard.layer());
//! # drop(routes); Ok(()) }
//! ```
//!
//! Behind the layer, a request has a [`Principal`](crate::guard::Principal) among its extensions. `docs/guard.md` has what is
//! promised, and measured.

mod ask;
mod backoff;
mod follow;
mod keys;
mod layer;
mod news;
mod options;
mod principal;
mod refusal;
mod stats;
mod time;
mod upstream;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::sync::watch;
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
pub use refusal::Doubt;
pub use refusal::Refusal;
pub use stats::Stats;

use keys::Found;
use keys::Keys;
use news::News;
use stats::Counters;
use stats::count;
use time::Time;
use upstream::Failure;
use upstream::Upstream;

use crate::id::ProjectId;
use crate::token::access::Issuer;
use crate::token::access::Presented;
use crate::token::access::Rejection;
use crate::token::fingerprint;
use crate::token::slots::Slots;

/// The most tokens that are known again without a second look at their signatures: some 30 MB. Those that were not seen for
/// longest make way.
const TOKENS_MAX: usize = 16_384;

/// Verifies the access tokens of one project. Clones are one and the same; with the last of them, it follows the feed no
/// longer.
#[derive(Clone)]
pub struct Guard {
    core: Arc<Core>,
    _tasks: Arc<JoinSet<()>>,
}

/// What the tasks and the requests share.
struct Core {
    upstream: Upstream,
    project: ProjectId,
    issuer: Issuer,
    max_staleness: Duration,
    fail_mode: FailMode,
    time: Time,
    keys: Keys,
    news: News,
    /// Whom genuine tokens speak for, by the tokens' digests. Whether the key still counts, whether the token has expired and
    /// whether its session has ended are questions of the moment, and asked anew each time.
    known: Slots<Principal>,
    counters: Counters,
    state: watch::Sender<State>,
    asking: Semaphore,
}

/// How far a guard has come.
#[derive(Default)]
struct State {
    has_news: bool,
    has_keys: bool,
    /// What nobody else could put right.
    rejected: Option<ConnectError>,
}

impl State {
    const fn has_begun(&self) -> bool {
        self.has_news && self.has_keys
    }
}

/// What can be said of a token at once.
enum Verdict {
    Accepted(Principal),
    Refused(Refusal),
    /// It names a key that is not among those that are known.
    UnknownKey,
    /// Not whether it is good; whom it speaks for, when that is known.
    Unsure(Doubt, Option<Principal>),
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
        let core = Arc::new(Core::new(&options)?);
        let mut tasks = JoinSet::new();
        let one = Arc::clone(&core);
        tasks.spawn(async move { follow::run(&one).await });
        let one = Arc::clone(&core);
        tasks.spawn(async move { keys::run(&one).await });
        let one = Arc::clone(&core);
        tasks.spawn(async move { follow::forget(&one).await });
        let guard = Self { core, _tasks: Arc::new(tasks) };
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
        let mut state = self.core.state.subscribe();
        let settled = |state: &State| state.has_begun() || state.rejected.is_some();
        let state = state.wait_for(settled).await.expect("the sender is held by this guard");
        match &state.rejected {
            Some(rejected) if !state.has_begun() => Err(rejected.clone()),
            Some(_) | None => Ok(()),
        }
    }

    /// Whom a token speaks for. As a rule at once; sessiond is asked only under [`FailMode::Introspect`] and for keys that
    /// are not known yet.
    ///
    /// # Errors
    ///
    /// Why it is not accepted.
    pub async fn verify(&self, token: &str) -> Result<Principal, Refusal> {
        match self.glance(token) {
            Some(outcome) => outcome,
            None => {
                let outcome = self.core.look(token).await;
                self.core.counters.verified(&outcome);
                outcome
            }
        }
    }

    /// The same, by what is known here and now.
    ///
    /// # Errors
    ///
    /// As [`Guard::verify`]; where that would ask sessiond, [`Refusal::Unavailable`].
    pub fn verify_now(&self, token: &str) -> Result<Principal, Refusal> {
        let verdict = self.core.judge(token);
        let outcome = match verdict {
            Verdict::Accepted(principal) => Ok(principal),
            Verdict::Refused(refusal) => Err(refusal),
            Verdict::UnknownKey => {
                self.core.keys.wish();
                Err(Refusal::Unavailable(Doubt::NoKeys))
            }
            Verdict::Unsure(doubt, principal) => self.core.by_what_is_known(doubt, principal),
        };
        self.core.counters.verified(&outcome);
        outcome
    }

    /// Puts the guard in front of a service.
    pub fn layer(&self) -> GuardLayer {
        GuardLayer::new(self.clone())
    }

    /// How the guard stands.
    pub fn stats(&self) -> Stats {
        let core = &self.core;
        let [accepted, refused, expired, revoked, unavailable] = core.counters.outcomes();
        Stats {
            staleness: core.news.age(&core.time),
            entries: core.news.revoked().len(),
            jwks_age: core.keys.age(&core.time),
            accepted,
            refused,
            expired,
            revoked,
            unavailable,
            introspections: core.counters.introspections.load(Ordering::Relaxed),
            connections: core.counters.connections.load(Ordering::Relaxed),
            snapshots: core.counters.snapshots.load(Ordering::Relaxed),
        }
    }

    /// What can be said without waiting for anyone; `None` when that takes an answer from elsewhere.
    fn glance(&self, token: &str) -> Option<Result<Principal, Refusal>> {
        let outcome = match self.core.judge(token) {
            Verdict::Accepted(principal) => Ok(principal),
            Verdict::Refused(refusal) => Err(refusal),
            Verdict::UnknownKey => return None,
            Verdict::Unsure(doubt, principal) => match self.core.fail_mode {
                FailMode::Introspect => return None,
                FailMode::Reject | FailMode::AcceptUntilExpiry => self.core.by_what_is_known(doubt, principal),
            },
        };
        self.core.counters.verified(&outcome);
        Some(outcome)
    }

    /// Counts a request that has no token to be judged.
    fn count(&self, refusal: Refusal) -> Refusal {
        let outcome: Result<(), Refusal> = Err(refusal.clone());
        self.core.counters.verified(&outcome);
        refusal
    }
}

impl Core {
    fn new(options: &GuardOptions) -> Result<Self, ConnectError> {
        let malformed = || ConnectError::Project { project: options.project.clone() };
        let project = ProjectId::parse(&options.project).ok_or_else(malformed)?;
        let uri = options.issuer.parse::<http::Uri>().ok();
        let scheme = uri.as_ref().and_then(http::Uri::scheme_str);
        if !matches!(scheme, Some("http" | "https")) {
            return Err(ConnectError::Issuer { issuer: options.issuer.clone() });
        }
        if options.max_staleness < MAX_STALENESS_MIN {
            return Err(ConnectError::MaxStaleness);
        }
        let issuer = Issuer::new(&options.issuer);
        Ok(Self {
            upstream: Upstream::new(options, &project, &issuer)?,
            project,
            issuer,
            max_staleness: options.max_staleness,
            fail_mode: options.fail_mode,
            time: Time::new(options.clock.clone()),
            keys: Keys::default(),
            news: News::default(),
            known: Slots::new(TOKENS_MAX),
            counters: Counters::default(),
            state: watch::Sender::default(),
            asking: Semaphore::new(ask::ASKING_MAX),
        })
    }

    /// What can be said of a token by what is known here.
    fn judge(&self, text: &str) -> Verdict {
        let digest = fingerprint(text.as_bytes());
        let principal = match self.known.find(&digest) {
            // A key that is no longer among the project's vouches for nothing any more.
            Some(known) => match self.keys.with(known.key(), |_| ()) {
                Found::Known(()) => known,
                Found::Unknown => return Verdict::UnknownKey,
                Found::NoKeys => return Verdict::Unsure(Doubt::NoKeys, None),
            },
            None => {
                let presented = match Presented::parse(text) {
                    Ok(presented) => presented,
                    Err(rejection) => return Verdict::Refused(rejection.into()),
                };
                match self.keys.with(presented.key(), |key| presented.verify(key, &self.issuer)) {
                    Found::Known(Ok(claims)) => match Principal::of(claims, presented.key()) {
                        Some(principal) => {
                            self.known.insert(digest, principal.clone());
                            principal
                        }
                        None => return Verdict::Refused(Refusal::UnparsableAccessToken),
                    },
                    Found::Known(Err(rejection)) => return Verdict::Refused(rejection.into()),
                    Found::Unknown => return self.judge_unknown(&presented),
                    Found::NoKeys => return Verdict::Unsure(Doubt::NoKeys, None),
                }
            }
        };
        self.judge_genuine(principal)
    }

    /// What can be said of a token under a key that is not known: as a rule that another project's is none of ours.
    fn judge_unknown(&self, presented: &Presented<'_>) -> Verdict {
        match presented.unverified(&self.project, &self.issuer) {
            Err(Rejection::WrongProject { expected, actual }) if ProjectId::parse(&actual).is_some() => {
                Verdict::Refused(Refusal::WrongProject { expected, actual })
            }
            Ok(_) | Err(Rejection::WrongProject { .. } | Rejection::Unparsable) => Verdict::UnknownKey,
        }
    }

    /// What can be said of whoever shows a genuine token.
    fn judge_genuine(&self, principal: Principal) -> Verdict {
        if principal.claims().expired_at(self.time.now()) {
            return Verdict::Refused(expired(&principal));
        }
        if self.news.has(&principal.bearer()) {
            return Verdict::Refused(Refusal::SessionRevoked);
        }
        match self.news.age(&self.time) {
            None => Verdict::Unsure(Doubt::NoNews, Some(principal)),
            Some(age) if age > self.max_staleness => Verdict::Unsure(Doubt::StaleNews, Some(principal)),
            Some(_) if !self.keys.are_good(&self.time) => {
                // After a long sleep of the machine, before the timers know of it.
                self.keys.wish();
                Verdict::Unsure(Doubt::NoKeys, Some(principal))
            }
            Some(_) => Verdict::Accepted(principal),
        }
    }

    /// What becomes of a token in doubt when nobody else is asked.
    fn by_what_is_known(&self, doubt: Doubt, principal: Option<Principal>) -> Result<Principal, Refusal> {
        let accepts = match self.fail_mode {
            FailMode::AcceptUntilExpiry => self.news.is_complete(),
            FailMode::Reject | FailMode::Introspect => false,
        };
        principal.filter(|_| accepts).ok_or(Refusal::Unavailable(doubt))
    }

    /// Notes what nobody but an operator can put right, for whoever waits for the beginning.
    fn reject(&self, failure: Failure) {
        match failure {
            Failure::NoAnswer(_) => {}
            Failure::Refused(refused) => self.state.send_modify(|state| state.rejected = Some(refused)),
        }
    }
}

fn expired(principal: &Principal) -> Refusal {
    Refusal::AccessTokenExpired {
        expired_at: principal.expires_at(),
        project: principal.project_id().clone(),
        user: principal.user_id().clone(),
        session: principal.session_id(),
    }
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        match rejection {
            Rejection::Unparsable => Self::UnparsableAccessToken,
            Rejection::WrongProject { expected, actual } => Self::WrongProject { expected, actual },
        }
    }
}
