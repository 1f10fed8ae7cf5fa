//! What a proxy asks about every request that it lets through: is the access token good, and whose is it?
//!
//! Takes from no bucket. All of a proxy's clients come from the proxy's address, and anyone can send a proxy rubbish: whoever
//! paid for that, it would be everyone else behind it. So rubbish is cheap instead. What is no token costs a parse, a made-up
//! key a place in the one reading of the keys that all of them share, a forgery a signature check; only a genuine token of
//! the project makes us ask about its session.

use std::slice;

use super::AccessToken;
use super::App;
use super::Error;
use super::keys::Snapshot;
use sessiond_core::id::ProjectId;
use sessiond_core::session::Refusal;
use sessiond_core::token::verifier::VerifiedToken;
use sessiond_core::token::verifier::VerifyError;

impl App {
    /// Verifies the access token of a request to one project. Which one must not come from the token, or from whoever sent it.
    ///
    /// # Errors
    ///
    /// [`Refusal::ProjectNotFound`], [`Refusal::CredentialsMissing`]; [`Refusal::UnparsableAccessToken`],
    /// [`Refusal::WrongProject`] for a genuine one of another project, [`Refusal::AccessTokenExpired`],
    /// [`Refusal::SessionRevoked`] when the session has ended, one way or another; the store's.
    pub async fn verify(&self, project: &ProjectId, token: Option<&AccessToken>) -> Result<VerifiedToken, Error> {
        let exists = |snapshot: &Snapshot| snapshot.policy(project).is_some();
        let snapshot = self.keys.find(project, exists).await?;
        if !exists(&snapshot) {
            return Err(Refusal::ProjectNotFound.into());
        }
        let AccessToken(text) = token.ok_or(Refusal::CredentialsMissing)?;
        let now = self.clock.now();
        let token = match self.verify_by(&snapshot, project, text, now) {
            // The next reading settles it: a key that is not in there does not exist, or did not when the request came.
            Err(VerifyError::UnknownKey(key)) => {
                let is_known = |snapshot: &Snapshot| snapshot.keyring.signing(key).is_some();
                self.verify_by(&*self.keys.find(key, is_known).await?, project, text, now)?
            }
            verified => verified?,
        };
        match self.are_live(project, slice::from_ref(&token), now).await?.as_slice() {
            [true] => Ok(token),
            _ => Err(Refusal::SessionRevoked.into()),
        }
    }
}
