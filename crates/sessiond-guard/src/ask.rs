//! Verification that may ask sessiond.

use super::options::FailMode;
use super::principal::Principal;
use super::rejection::Rejection;
use super::rejection::UnavailableReason;
use super::state::Decision;
use super::state::GuardState;
use super::stats::increment;
use super::trace::TraceHeaders;

impl GuardState {
    /// Verifies a token, asking sessiond if necessary.
    pub(super) async fn verify(&self, token: &str, trace: &TraceHeaders) -> Result<Principal, Rejection> {
        let decision = match self.decide(token) {
            Decision::UnknownKey if self.keys.read_now().await => self.decide(token),
            Decision::UnknownKey => Decision::Uncertain(UnavailableReason::NoKeys, None),
            decided => decided,
        };
        match decision {
            Decision::Accepted(principal) => Ok(principal),
            Decision::Rejected(rejection) => Err(rejection),
            // The keys were just read, and this is none of them.
            Decision::UnknownKey => Err(Rejection::UnparsableAccessToken),
            Decision::Uncertain(reason, principal) => match self.fail_mode {
                FailMode::Introspect => self.introspect(token, principal, trace).await,
                FailMode::Reject | FailMode::AcceptUntilExpiry => self.decide_by_fail_mode(reason, principal),
            },
        }
    }

    /// Asks sessiond about one token. The response is not cached.
    async fn introspect(
        &self,
        token: &str,
        principal: Option<Principal>,
        trace: &TraceHeaders,
    ) -> Result<Principal, Rejection> {
        let unavailable = || Rejection::Unavailable(UnavailableReason::NoAnswer);
        let _permit = self.introspection_permits.try_acquire().map_err(|_| unavailable())?;
        increment(&self.counters.introspections);
        let response = self.upstream.introspect(token, trace).await.map_err(|_| unavailable())?;
        match (response.active, principal) {
            // The signature and the expiry were checked here, so it is the session that has ended.
            (false, Some(_)) => Err(Rejection::SessionRevoked),
            (false, None) => Err(Rejection::UnparsableAccessToken),
            (true, Some(principal)) => Ok(principal),
            (true, None) => {
                // The signature could not be checked here; sessiond has checked it.
                let token = self.verifier.parse_unverified(token, &self.project)?;
                token.check_expiry(self.time.now())?;
                Ok(Principal::new(token))
            }
        }
    }
}
