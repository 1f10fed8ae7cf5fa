//! What takes an answer from sessiond.

use super::Core;
use super::Doubt;
use super::FailMode;
use super::Principal;
use super::Refusal;
use super::Verdict;
use super::count;
use super::expired;
use crate::token::access::Presented;

/// The most questions at once. In an outage every request is one; what is more is refused rather than kept waiting.
pub(super) const ASKING_MAX: usize = 256;

impl Core {
    /// Whom a token speaks for, after whatever it takes.
    pub(super) async fn look(&self, token: &str) -> Result<Principal, Refusal> {
        let verdict = match self.judge(token) {
            Verdict::UnknownKey if self.keys.read_again().await => self.judge(token),
            Verdict::UnknownKey => Verdict::Unsure(Doubt::NoKeys, None),
            settled => settled,
        };
        match verdict {
            Verdict::Accepted(principal) => Ok(principal),
            Verdict::Refused(refusal) => Err(refusal),
            // It is none of those that were just read, and these are all.
            Verdict::UnknownKey => Err(Refusal::UnparsableAccessToken),
            Verdict::Unsure(doubt, principal) => match self.fail_mode {
                FailMode::Introspect => self.ask(token, principal).await,
                FailMode::Reject | FailMode::AcceptUntilExpiry => self.by_what_is_known(doubt, principal),
            },
        }
    }

    /// Asks sessiond about one token, every time anew.
    async fn ask(&self, token: &str, principal: Option<Principal>) -> Result<Principal, Refusal> {
        let unavailable = || Refusal::Unavailable(Doubt::NoAnswer);
        let _turn = self.asking.try_acquire().map_err(|_| unavailable())?;
        count(&self.counters.introspections);
        let answer = self.upstream.introspect(token).await.map_err(|_| unavailable())?;
        match (answer.active, principal) {
            // Genuine and not expired, as far as can be seen here: so it is its session that is over.
            (false, Some(_)) => Err(Refusal::SessionRevoked),
            (false, None) => Err(Refusal::UnparsableAccessToken),
            (true, Some(principal)) => Ok(principal),
            (true, None) => {
                // Its signature could not be checked here; whoever issued it has done that.
                let presented = Presented::parse(token)?;
                let claims = presented.unverified(&self.project, &self.issuer)?;
                let principal = Principal::of(claims, presented.key()).ok_or(Refusal::UnparsableAccessToken)?;
                match principal.claims().expired_at(self.time.now()) {
                    true => Err(expired(&principal)),
                    false => Ok(principal),
                }
            }
        }
    }
}
