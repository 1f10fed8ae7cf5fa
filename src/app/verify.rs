//! Verifies the access token of a request for a proxy.
//!
//! Charges no bucket. All clients of a proxy come from the proxy's address and anyone can send it invalid tokens, so a charge
//! would hit the other clients. Instead, an invalid token is cheap: a malformed one costs a parse, a made-up key shares one
//! reload of the keys with all others, a forgery costs a signature check; only a genuine token of the project causes a session
//! lookup.

use std::slice;

use super::AccessToken;
use super::App;
use super::Error;
use super::keys::Snapshot;
use super::liveness::Standing;
use crate::store::RefusedAttempt;
use crate::telemetry::request;
use sessiond_core::id::ProjectId;
use sessiond_core::session::Refusal;
use sessiond_core::token::verified::VerifiedToken;
use sessiond_core::token::verified::VerifyError;

impl App {
    /// Verifies the access token of a request to one project. The project must be configured at the proxy; it must not come from
    /// the token or the request's sender.
    ///
    /// # Errors
    ///
    /// [`Refusal::ProjectNotFound`], [`Refusal::CredentialsMissing`]; [`Refusal::UnparsableAccessToken`],
    /// [`Refusal::WrongProject`] for a genuine one of another project, [`Refusal::AccessTokenExpired`],
    /// [`Refusal::SessionRevoked`] if the session has ended for any reason, [`Refusal::AccessTokenSuperseded`]; or if the
    /// database operation fails.
    pub async fn verify(&self, project: &ProjectId, token: Option<&AccessToken>) -> Result<VerifiedToken, Error> {
        let exists = |snapshot: &Snapshot| snapshot.policy(project).is_some();
        let snapshot = self.keys.find_for_proxy(project, exists).await?;
        if !exists(&snapshot) {
            return Err(Refusal::ProjectNotFound.into());
        }
        request::note_project(project);
        let AccessToken(text) = token.ok_or(Refusal::CredentialsMissing)?;
        let now = self.clock.now();
        let token = match self.admit_by(&snapshot, project, text, now) {
            // A key missing after this reload does not exist, or did not when the request came.
            Err(VerifyError::UnknownKey(key)) => {
                let is_known = |snapshot: &Snapshot| snapshot.keyring.signing(key).is_some();
                self.admit_by(&*self.keys.find_for_proxy(key, is_known).await?, project, text, now)?
            }
            verified => verified?,
        };
        match self.standings(project, slice::from_ref(&token), now).await?.as_slice() {
            [Standing::Good] => Ok(token),
            [Standing::Superseded] => Err(Refusal::AccessTokenSuperseded.into()),
            _ => {
                self.note_refused_session(project, token.session(), RefusedAttempt::SessionRevoked);
                Err(Refusal::SessionRevoked.into())
            }
        }
    }
}
