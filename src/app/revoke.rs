//! Signing out. It always works: any genuine token of the session ends it, fresh or expired, current or older, and once
//! more is as good as once.

use super::AccessToken;
use super::App;
use super::Error;
use crate::id::ProjectId;
use crate::id::SessionId;
use crate::session::Refusal;
use crate::session::RevokeReason;
use crate::store::Revocation;
use crate::token::refresh::RefreshToken;

/// Everything that was presented with a sign-out.
#[derive(Default)]
pub struct TokenHolder {
    /// An access token.
    pub access: Option<AccessToken>,
    /// Refresh tokens; `None` for one that has not the form of one.
    pub refresh: Vec<Option<RefreshToken>>,
    /// Whether a server key was presented: the right credential for other methods.
    pub server_key: bool,
}

/// The session is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// It was before.
    pub already: bool,
}

/// A genuine token's session.
struct Target {
    project: ProjectId,
    session: SessionId,
}

impl App {
    /// Ends the session of every genuine token presented.
    ///
    /// # Errors
    ///
    /// When none of them is genuine, what is wrong with the first; the store's.
    pub async fn revoke_current(&self, holder: TokenHolder) -> Result<Ended, Error> {
        let now = self.clock.now();
        let mut targets = vec![];
        let mut refused = None;
        if let Some(token) = &holder.access {
            note(
                self.bearer(token).await.map(|bearer| Target { project: bearer.project, session: bearer.session }),
                &mut targets,
                &mut refused,
            )?;
        }
        for token in &holder.refresh {
            note(self.session_of(token.as_ref()).await, &mut targets, &mut refused)?;
        }
        if targets.is_empty() {
            let otherwise =
                if holder.server_key { Refusal::InsufficientAccessType } else { Refusal::CredentialsMissing };
            return Err(refused.unwrap_or(otherwise).into());
        }
        let revocation =
            |Target { project, session }| Revocation { project, session, at: now, reason: RevokeReason::SignedOut };
        let ended = self.store.sessions_revoke(targets.into_iter().map(revocation).collect()).await?;
        Ok(Ended { already: ended.is_empty() })
    }

    /// The session of a refresh token, when the token is genuine.
    async fn session_of(&self, token: Option<&RefreshToken>) -> Result<Target, Error> {
        const REFUSED: Refusal = Refusal::RefreshTokenNotFoundOrExpired;
        let token = token.ok_or(REFUSED)?;
        let snapshot = self.keys.with(|snapshot| snapshot.keyring.refresh(token.key()).is_some()).await?;
        let key = snapshot.keyring.refresh(token.key()).filter(|key| key.may_have_made(token)).ok_or(REFUSED)?;
        let target = Target { project: key.project().clone(), session: token.session() };
        // A session long swept has no secret to check against; the tag has shown that the token was ours, and it is over.
        let stored = self.store.session_find(target.project.clone(), target.session).await?;
        if stored.is_some_and(|stored| !key.has_made(token, &stored.secret)) {
            return Err(REFUSED.into());
        }
        Ok(target)
    }
}

/// Sorts what became of one token: a target, or a refusal of which the first is kept. Failures end it all.
fn note(outcome: Result<Target, Error>, targets: &mut Vec<Target>, refused: &mut Option<Refusal>) -> Result<(), Error> {
    match outcome {
        Ok(target) => targets.push(target),
        Err(Error::Refused(refusal)) => {
            refused.get_or_insert(refusal);
        }
        Err(failure @ (Error::Store(_) | Error::Key(_))) => return Err(failure),
    }
    Ok(())
}
