//! Signing out. It always works: any genuine token of the session ends it, fresh or expired, current or older, and once
//! more is as good as once. So it takes from no bucket that others can drain, the project's above all: only the sign-outs of
//! one address are bounded (`edge::rate`).

use super::AccessToken;
use super::App;
use super::Client;
use super::Error;
use super::turns::Key;
use crate::store::Revocation;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::session::EndedBy;
use sessiond_core::session::Origin;
use sessiond_core::session::Refusal;
use sessiond_core::session::RevokeReason;
use sessiond_core::token::refresh::RefreshToken;

/// Everything that was presented with a sign-out.
#[derive(Default)]
pub struct TokenHolder {
    /// Access tokens.
    pub access: Vec<AccessToken>,
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

impl Target {
    /// The same, when it belongs to the project; whoever asks for one project ends nothing in another.
    fn within(self, project: Option<&ProjectId>) -> Result<Self, Error> {
        match project {
            Some(project) if *project != self.project => {
                let (expected, actual) = (project.to_string(), self.project.to_string());
                Err(Refusal::WrongProject { expected, actual }.into())
            }
            Some(_) | None => Ok(self),
        }
    }
}

impl App {
    /// Ends the session of every genuine token presented; on behalf of a client, only in the client's project.
    ///
    /// # Errors
    ///
    /// When none of them is genuine, what is wrong with the first; what is wrong with the client; the store's.
    pub async fn revoke_current(
        &self,
        holder: TokenHolder,
        client: Option<Client>,
        origin: Origin,
    ) -> Result<Ended, Error> {
        let now = self.clock.now();
        let within = self.client_project(client).await?;
        let (mut targets, mut errors) = (vec![], vec![]);
        let mut sort = |outcome: Result<Target, Error>| match outcome.and_then(|one| one.within(within.as_ref())) {
            Ok(target) => targets.push(target),
            Err(error) => errors.push(error),
        };
        for token in &holder.access {
            let verified = self.verified(token).await;
            sort(verified.map(|token| Target { project: token.project().clone(), session: token.session() }));
        }
        for token in &holder.refresh {
            sort(self.session_of(token.as_ref()).await);
        }
        let otherwise = if holder.server_key { Refusal::InsufficientAccessType } else { Refusal::CredentialsMissing };
        if targets.is_empty() {
            return Err(first_failure(errors).unwrap_or(otherwise.into()));
        }
        let revocation = |Target { project, session }| Revocation {
            project,
            session,
            at: now,
            reason: RevokeReason::SignedOut,
            by: EndedBy::Holder,
            ip: origin.ip,
        };
        let sessions: Vec<(ProjectId, SessionId)> =
            targets.iter().map(|target| (target.project.clone(), target.session)).collect();
        let keys: Vec<_> = targets.iter().map(|target| Key::Session(target.project.clone(), target.session)).collect();
        let turn = self.turns.take("sessions_revoke", keys).await?;
        let ended = self.urgent.sessions_revoke(targets.into_iter().map(revocation).collect(), turn).await?;
        // Those that others have ended may not have come by the feed yet.
        sessions.iter().filter(|one| !ended.contains(one)).for_each(|(project, id)| self.feed.note_ended(project, *id));
        // What could be ended is; a token that could not be judged may be genuine, and its holder must try again.
        match errors.into_iter().find(|error| !matches!(error, Error::Refused(_))) {
            Some(failure) => Err(failure),
            None => Ok(Ended { already: ended.is_empty() }),
        }
    }

    /// The session of a refresh token, when the token is genuine.
    async fn session_of(&self, token: Option<&RefreshToken>) -> Result<Target, Error> {
        const REFUSED: Refusal = Refusal::RefreshTokenNotFoundOrExpired;
        let token = token.ok_or(REFUSED)?;
        let snapshot = self.keys.find(token.key(), |snapshot| snapshot.keyring.refresh(token.key()).is_some()).await?;
        let key = snapshot.keyring.refresh(token.key()).filter(|key| key.may_have_made(token)).ok_or(REFUSED)?;
        let target = Target { project: key.project().clone(), session: token.session() };
        // A session long swept has no secret to check against; the tag has shown that the token was ours, and it is over.
        let stored = self.urgent.session_find(target.project.clone(), target.session).await?;
        if stored.is_some_and(|seen| !key.has_made(token, &seen.stored.secret)) {
            return Err(REFUSED.into());
        }
        Ok(target)
    }
}

/// A failure before any refusal: where one token could not be judged, that none is genuine is not known.
fn first_failure(mut errors: Vec<Error>) -> Option<Error> {
    let failure = errors.iter().position(|error| !matches!(error, Error::Refused(_))).unwrap_or(0);
    (failure < errors.len()).then(|| errors.swap_remove(failure))
}
