//! The state that a guard's tasks and requests share, and the decision on a token that follows from it.

use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::sync::watch;

use super::jwks_cache::JwksCache;
use super::jwks_cache::Lookup;
use super::options::ConnectError;
use super::options::FailMode;
use super::options::GuardOptions;
use super::options::MAX_STALENESS_MIN;
use super::principal::Principal;
use super::rejection::Rejection;
use super::rejection::UnavailableReason;
use super::revocations::Revocations;
use super::stats::Counters;
use super::stats::increment;
use super::time::Time;
use super::upstream::Upstream;
use super::upstream::UpstreamError;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::session::policy::StepUp;
use sessiond_core::session::revoked::Bearer;
use sessiond_core::token::access::Issuer;
use sessiond_core::token::verified::VerifiedToken;
use sessiond_core::token::verified::VerifyError;
use sessiond_core::token::verifier::AccessVerifier;

/// The most introspections at once. In an outage every request is one; more are rejected rather than queued.
const INTROSPECTIONS_MAX: usize = 256;

pub(super) struct GuardState {
    pub(super) upstream: Upstream,
    pub(super) project: ProjectId,
    pub(super) max_staleness: Duration,
    pub(super) fail_mode: FailMode,
    pub(super) max_entries: usize,
    pub(super) time: Time,
    pub(super) keys: JwksCache,
    pub(super) revocations: Revocations,
    pub(super) verifier: AccessVerifier,
    pub(super) counters: Counters,
    pub(super) startup: watch::Sender<Startup>,
    pub(super) introspection_permits: Semaphore,
}

/// How far the startup has come.
#[derive(Default)]
pub(super) struct Startup {
    /// The first snapshot is complete.
    pub(super) has_snapshot: bool,
    pub(super) has_keys: bool,
    /// An error that only an operator can correct.
    pub(super) misconfiguration: Option<ConnectError>,
}

impl Startup {
    pub(super) const fn is_complete(&self) -> bool {
        self.has_snapshot && self.has_keys
    }
}

/// The decision on a token, without asking sessiond.
pub(super) enum Decision {
    Accepted(Principal),
    Rejected(Rejection),
    /// The token names a key that is not cached.
    UnknownKey,
    /// The keys or the feed are missing or too old. Has the principal if the signature is good.
    Uncertain(UnavailableReason, Option<Principal>),
}

impl GuardState {
    pub(super) fn new(options: &GuardOptions) -> Result<Self, ConnectError> {
        let malformed = || ConnectError::InvalidProject { project: options.project.clone() };
        let project = ProjectId::parse(&options.project).ok_or_else(malformed)?;
        let uri = options.issuer.parse::<http::Uri>().ok();
        let scheme = uri.as_ref().and_then(http::Uri::scheme_str);
        if !matches!(scheme, Some("http" | "https")) {
            return Err(ConnectError::InvalidIssuer { issuer: options.issuer.clone() });
        }
        if options.max_staleness < MAX_STALENESS_MIN {
            return Err(ConnectError::MaxStalenessTooShort);
        }
        let issuer = Issuer::new(&options.issuer);
        Ok(Self {
            upstream: Upstream::new(options, &project, &issuer)?,
            project,
            max_staleness: options.max_staleness,
            fail_mode: options.fail_mode,
            max_entries: options.max_entries.max(1),
            time: Time::new(options.clock.clone()),
            keys: JwksCache::default(),
            revocations: Revocations::default(),
            verifier: AccessVerifier::with_cache(issuer, options.cached_tokens),
            counters: Counters::default(),
            startup: watch::Sender::default(),
            introspection_permits: Semaphore::new(INTROSPECTIONS_MAX),
        })
    }

    /// Decides from the cached keys and revocations.
    pub(super) fn decide(&self, text: &str) -> Decision {
        let candidate = match self.verifier.read(text) {
            Ok(candidate) => candidate,
            Err(error) => return Decision::Rejected(error.into()),
        };
        // Also for a token that verified before: its key may have been revoked since.
        match self.keys.with_key(candidate.key(), |key| self.verifier.verify(candidate, key)) {
            Lookup::Known(Ok(token)) => self.decide_verified(token),
            Lookup::Known(Err(error)) => Decision::Rejected(error.into()),
            Lookup::Unknown => self.decide_unknown(text),
            Lookup::NoKeys => Decision::Uncertain(UnavailableReason::NoKeys, None),
        }
    }

    /// Decides on a token under an unknown key. Rejects it if it names another project, whose keys are never cached here.
    fn decide_unknown(&self, text: &str) -> Decision {
        match self.verifier.parse_unverified(text, &self.project) {
            Err(VerifyError::WrongProject { expected, actual }) if ProjectId::parse(&actual).is_some() => {
                Decision::Rejected(Rejection::WrongProject { expected, actual })
            }
            Ok(_) | Err(_) => Decision::UnknownKey,
        }
    }

    /// Decides on a token whose signature is good.
    fn decide_verified(&self, token: VerifiedToken) -> Decision {
        if let Err(expired) = token.check_expiry(self.time.now()) {
            return Decision::Rejected(expired.into());
        }
        let bearer = Bearer::from(&token);
        // Before the set: the one that is asked must not be older than what is believed of it.
        let age = self.revocations.age(&self.time);
        if self.revocations.contains(&bearer) {
            return Decision::Rejected(Rejection::SessionRevoked);
        }
        if self.revocations.has_superseded(&token) {
            return Decision::Rejected(Rejection::AccessTokenSuperseded);
        }
        let is_withheld = self.revocations.withholds(&bearer);
        let principal = Principal::new(token);
        match age {
            None => Decision::Uncertain(UnavailableReason::NoFeed, Some(principal)),
            Some(age) if age > self.max_staleness => Decision::Uncertain(UnavailableReason::StaleFeed, Some(principal)),
            Some(_) if is_withheld => Decision::Uncertain(UnavailableReason::Withheld, Some(principal)),
            Some(_) if !self.keys.is_usable(&self.time) => {
                // The machine has slept, and the timer of the next read has not fired yet.
                self.keys.request_read();
                Decision::Uncertain(UnavailableReason::NoKeys, Some(principal))
            }
            Some(_) => Decision::Accepted(principal),
        }
    }

    /// Applies the fail mode without asking sessiond.
    pub(super) fn decide_by_fail_mode(
        &self,
        reason: UnavailableReason,
        principal: Option<Principal>,
    ) -> Result<Principal, Rejection> {
        let accepts = match self.fail_mode {
            FailMode::AcceptUntilExpiry => self.revocations.is_complete(),
            FailMode::Reject | FailMode::Introspect => false,
        };
        principal.filter(|_| accepts).ok_or(Rejection::Unavailable(reason))
    }

    /// Checks that the user has authenticated as a route requires.
    pub(super) fn check(&self, principal: &Principal, required: &StepUp) -> Result<(), Rejection> {
        let claims = principal.claims();
        let auth_time = claims.auth_time.map(Timestamp::from_seconds);
        match required.admits(auth_time, claims.acr.as_deref(), self.time.now()) {
            true => Ok(()),
            false => {
                increment(&self.counters.step_ups);
                Err(Rejection::InsufficientUserAuthentication(required.clone()))
            }
        }
    }

    /// Records an error that only an operator can correct, for `Guard::ready`.
    pub(super) fn record_misconfiguration(&self, error: UpstreamError) {
        match error {
            UpstreamError::Unavailable(_) => {}
            UpstreamError::Misconfigured(error) => {
                self.startup.send_modify(|startup| startup.misconfiguration = Some(error));
            }
        }
    }
}
