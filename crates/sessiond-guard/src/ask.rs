//! What takes an answer from sessiond.

use super::FailMode;
use super::Principal;
use super::Refusal;
use super::Uncertainty;
use super::inner::Decision;
use super::inner::Inner;
use super::stats::count;

/// The most questions at once. In an outage every request is one; what is more is refused rather than kept waiting.
pub(super) const ASKING_MAX: usize = 256;

impl Inner {
    /// Whom a token speaks for, after whatever it takes.
    pub(super) async fn look(&self, token: &str) -> Result<Principal, Refusal> {
        let decision = match self.decide(token) {
            Decision::UnknownKey if self.keys.read_again().await => self.decide(token),
            Decision::UnknownKey => Decision::Uncertain(Uncertainty::NoKeys, None),
            settled => settled,
        };
        match decision {
            Decision::Accepted(principal) => Ok(principal),
            Decision::Refused(refusal) => Err(refusal),
            // It is none of those that were just read, and these are all.
            Decision::UnknownKey => Err(Refusal::UnparsableAccessToken),
            Decision::Uncertain(uncertainty, principal) => match self.fail_mode {
                FailMode::Introspect => self.ask(token, principal).await,
                FailMode::Reject | FailMode::AcceptUntilExpiry => self.decide_by_fail_mode(uncertainty, principal),
            },
        }
    }

    /// Asks sessiond about one token, every time anew.
    async fn ask(&self, token: &str, principal: Option<Principal>) -> Result<Principal, Refusal> {
        let unavailable = || Refusal::Unavailable(Uncertainty::NoAnswer);
        let _turn = self.asking.try_acquire().map_err(|_| unavailable())?;
        count(&self.counters.introspections);
        let answer = self.upstream.introspect(token).await.map_err(|_| unavailable())?;
        match (answer.active, principal) {
            // Genuine and not expired, as far as can be seen here: so it is its session that is over.
            (false, Some(_)) => Err(Refusal::SessionRevoked),
            (false, None) => Err(Refusal::UnparsableAccessToken),
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
