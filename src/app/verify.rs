//! What a proxy asks about every request that it lets through: is the access token good, and whose is it?
//!
//! Takes from no bucket. All of a proxy's clients come from the proxy's address, and anyone can send a proxy rubbish: whoever
//! paid for that, it would be everyone else behind it. So rubbish is cheap instead. What is no token costs a parse, a made-up
//! key a place in the one reading of the keys that all of them share, a forgery a signature check; only a genuine token of
//! the project makes us ask about its session.

use std::slice;
use std::sync::Arc;

use super::AccessToken;
use super::App;
use super::Error;
use super::judge::Doubt;
use super::keys::Snapshot;
use crate::id::ProjectId;
use crate::id::SessionId;
use crate::session::Refusal;
use crate::token::access::Claims;
use crate::token::access::Presented;

/// The token is good.
pub struct Verdict {
    /// What it says.
    pub claims: Arc<Claims>,
    /// Its session, which lives.
    pub session: SessionId,
}

impl App {
    /// Judges the access token of a request to one project. Which one must not come from the token, or from whoever sent it.
    ///
    /// # Errors
    ///
    /// [`Refusal::ProjectNotFound`], [`Refusal::CredentialsMissing`]; [`Refusal::UnparsableAccessToken`],
    /// [`Refusal::WrongProject`] for a genuine one of another project, [`Refusal::AccessTokenExpired`],
    /// [`Refusal::SessionRevoked`] when the session has ended, one way or another; the store's.
    pub async fn verify(&self, project: &ProjectId, token: Option<&AccessToken>) -> Result<Verdict, Error> {
        let exists = |snapshot: &Snapshot| snapshot.policy(project).is_some();
        let snapshot = self.keys.find(project, exists).await?;
        if !exists(&snapshot) {
            return Err(Refusal::ProjectNotFound.into());
        }
        let AccessToken(text) = token.ok_or(Refusal::CredentialsMissing)?;
        let now = self.clock.now();
        let judge = |snapshot| self.judge(snapshot, project.clone(), now).access(text);
        let judged = match judge(snapshot) {
            // What is not there does not exist, or did not when we were asked.
            Err(Doubt::OfUnknownKey) => {
                let key = Presented::parse(text).ok().map(|presented| presented.key());
                let is_known = |snapshot: &Snapshot| key.is_some_and(|key| snapshot.keyring.signing(key).is_some());
                judge(self.keys.find(key, is_known).await?)
            }
            judged => judged,
        };
        let genuine = judged.map_err(Doubt::refusal)?;
        match self.lives(project, slice::from_ref(&genuine), now).await?.as_slice() {
            [true] => Ok(Verdict { claims: genuine.claims, session: genuine.session }),
            _ => Err(Refusal::SessionRevoked.into()),
        }
    }
}
