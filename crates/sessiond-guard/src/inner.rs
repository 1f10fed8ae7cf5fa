//! What a guard knows, and what follows from it for a token.

use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::sync::watch;

use super::ask;
use super::keys::JwksCache;
use super::keys::Lookup;
use super::options::ConnectError;
use super::options::FailMode;
use super::options::GuardOptions;
use super::options::MAX_STALENESS_MIN;
use super::principal::Principal;
use super::refusal::Refusal;
use super::refusal::Uncertainty;
use super::revocations::Revocations;
use super::stats::Counters;
use super::time::Time;
use super::upstream::Upstream;
use super::upstream::UpstreamError;
use sessiond_core::id::ProjectId;
use sessiond_core::session::revoked::Bearer;
use sessiond_core::token::access::Issuer;
use sessiond_core::token::verifier::AccessVerifier;
use sessiond_core::token::verifier::VerifiedToken;
use sessiond_core::token::verifier::VerifyError;

/// What the tasks and the requests share.
pub(super) struct Inner {
    pub(super) upstream: Upstream,
    pub(super) project: ProjectId,
    pub(super) max_staleness: Duration,
    pub(super) fail_mode: FailMode,
    pub(super) time: Time,
    pub(super) keys: JwksCache,
    pub(super) revocations: Revocations,
    pub(super) verifier: AccessVerifier,
    pub(super) counters: Counters,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) asking: Semaphore,
}

/// How far a guard has come.
#[derive(Default)]
pub(super) struct Progress {
    pub(super) has_news: bool,
    pub(super) has_keys: bool,
    /// What nobody else could put right.
    pub(super) rejected: Option<ConnectError>,
}

impl Progress {
    pub(super) const fn has_begun(&self) -> bool {
        self.has_news && self.has_keys
    }
}

/// What the guard can say of a token without asking sessiond.
pub(super) enum Decision {
    Accepted(Principal),
    Refused(Refusal),
    /// The token names a key that is unknown here.
    UnknownKey,
    /// Something is missing to decide; with the principal if the signature is good.
    Uncertain(Uncertainty, Option<Principal>),
}

impl Inner {
    pub(super) fn new(options: &GuardOptions) -> Result<Self, ConnectError> {
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
            max_staleness: options.max_staleness,
            fail_mode: options.fail_mode,
            time: Time::new(options.clock.clone()),
            keys: JwksCache::default(),
            revocations: Revocations::default(),
            verifier: AccessVerifier::new(issuer),
            counters: Counters::default(),
            progress: watch::Sender::default(),
            asking: Semaphore::new(ask::ASKING_MAX),
        })
    }

    /// Decides by what is known here.
    pub(super) fn decide(&self, text: &str) -> Decision {
        let candidate = match self.verifier.read(text) {
            Ok(candidate) => candidate,
            Err(error) => return Decision::Refused(error.into()),
        };
        // Also for a token that verified before: its key may have been revoked since.
        match self.keys.with(candidate.key(), |key| self.verifier.verify(candidate, key)) {
            Lookup::Known(Ok(token)) => self.decide_verified(token),
            Lookup::Known(Err(error)) => Decision::Refused(error.into()),
            Lookup::Unknown => self.decide_unknown(text),
            Lookup::NoKeys => Decision::Uncertain(Uncertainty::NoKeys, None),
        }
    }

    /// Decides on a token under an unknown key. It is refused if it names another project, whose keys are never known here.
    fn decide_unknown(&self, text: &str) -> Decision {
        match self.verifier.parse_unverified(text, &self.project) {
            Err(VerifyError::WrongProject { expected, actual }) if ProjectId::parse(&actual).is_some() => {
                Decision::Refused(Refusal::WrongProject { expected, actual })
            }
            Ok(_) | Err(_) => Decision::UnknownKey,
        }
    }

    /// Decides on a token whose signature is good.
    fn decide_verified(&self, token: VerifiedToken) -> Decision {
        if let Err(expired) = token.check_expiry(self.time.now()) {
            return Decision::Refused(expired.into());
        }
        if self.revocations.has(&Bearer::from(&token)) {
            return Decision::Refused(Refusal::SessionRevoked);
        }
        let principal = Principal::new(token);
        match self.revocations.age(&self.time) {
            None => Decision::Uncertain(Uncertainty::NoFeed, Some(principal)),
            Some(age) if age > self.max_staleness => Decision::Uncertain(Uncertainty::StaleFeed, Some(principal)),
            Some(_) if !self.keys.are_good(&self.time) => {
                // After a long sleep of the machine, before the timers know of it.
                self.keys.wish();
                Decision::Uncertain(Uncertainty::NoKeys, Some(principal))
            }
            Some(_) => Decision::Accepted(principal),
        }
    }

    /// Decides by the fail mode, without asking sessiond.
    pub(super) fn decide_by_fail_mode(
        &self,
        uncertainty: Uncertainty,
        principal: Option<Principal>,
    ) -> Result<Principal, Refusal> {
        let accepts = match self.fail_mode {
            FailMode::AcceptUntilExpiry => self.revocations.is_complete(),
            FailMode::Reject | FailMode::Introspect => false,
        };
        principal.filter(|_| accepts).ok_or(Refusal::Unavailable(uncertainty))
    }

    /// Notes an error that only an operator can correct, for [`super::Guard::ready`].
    pub(super) fn reject(&self, failure: UpstreamError) {
        match failure {
            UpstreamError::NoAnswer(_) => {}
            UpstreamError::Refused(refused) => self.progress.send_modify(|progress| progress.rejected = Some(refused)),
        }
    }
}
