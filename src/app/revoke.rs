//! Signing out. It always works: any genuine token of the session ends it, valid or expired, current or older, and it is
//! idempotent. So it is charged to no bucket that others can drain, such as the project's: only the sign-outs per address are
//! limited (`edge::rate`).

use std::collections::HashSet;

use futures_util::future::join_all;

use super::AccessToken;
use super::App;
use super::Client;
use super::Error;
use super::bulkhead::Key;
use super::bulkhead::Lane;
use super::group::Groups;
use crate::store;
use crate::store::RefusedAttempt;
use crate::store::Revocation;
use crate::store::Revoked;
use crate::store::SESSIONS_REVOKE;
use crate::store::Store;
use crate::telemetry::request;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::session::EndedBy;
use sessiond_core::session::Origin;
use sessiond_core::session::Refusal;
use sessiond_core::session::RevokeReason;
use sessiond_core::token::refresh::RefreshToken;

/// The credentials presented with a sign-out.
#[derive(Default)]
pub struct TokenHolder {
    /// Access tokens.
    pub access: Vec<AccessToken>,
    /// Refresh tokens; `None` for a malformed one.
    pub refresh: Vec<Option<RefreshToken>>,
    /// Whether a server key was presented, which this method does not accept.
    pub server_key: bool,
}

/// Sign-outs, carried out in groups.
pub(super) type SignOuts = Groups<SignOut, SignedOut>;

/// The sessions that one request ends.
type SignOut = Vec<Revocation>;

/// What a group has done for a request.
pub(super) struct SignedOut {
    /// The sessions that were live until now. The others had ended before, or are locked.
    ended: HashSet<(ProjectId, SessionId)>,
    /// Whether another transaction has locked a session, so that the request must be carried out alone.
    has_locked: bool,
}

/// The session has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevokeOutcome {
    /// Whether it had ended before this call.
    pub already: bool,
}

/// A genuine token's session.
struct Target {
    project: ProjectId,
    session: SessionId,
}

impl Target {
    /// Refuses a target outside the project: a client of one project must not end sessions in another.
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
    /// Fails if no token is genuine (with the refusal of the first), if the client is refused, or if the database operation
    /// fails.
    pub async fn revoke_current(
        &self,
        holder: TokenHolder,
        client: Option<Client>,
        origin: Origin,
    ) -> Result<RevokeOutcome, Error> {
        let now = self.clock.now();
        let within = self.client_project(client).await?;
        let (mut targets, mut errors) = (vec![], vec![]);
        let mut sort = |outcome: Result<Target, Error>| {
            if let (Ok(target), Some(project)) = (&outcome, &within)
                && target.project != *project
            {
                self.note_refused_session(&target.project, target.session, RefusedAttempt::WrongProject);
            }
            match outcome.and_then(|one| one.within(within.as_ref())) {
                Ok(target) => targets.push(target),
                Err(error) => errors.push(error),
            }
        };
        for token in &holder.access {
            let found = self.session_of_access(token).await;
            sort(found.map(|(project, session)| Target { project, session }));
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
        let ended = self.sign_out(targets.into_iter().map(revocation).collect()).await?;
        // The feed may not have delivered yet what another replica has revoked.
        sessions.iter().filter(|one| !ended.contains(one)).for_each(|(project, id)| self.feed.note_ended(project, *id));
        // Everything that could be ended has ended; a token that could not be checked may be genuine, so the caller must retry.
        match errors.into_iter().find(|error| !matches!(error, Error::Refused(_))) {
            Some(failure) => Err(failure),
            None => Ok(RevokeOutcome { already: ended.is_empty() }),
        }
    }

    /// Signs a browser out: as [`App::revoke_current`], but succeeds if its cookies hold no genuine token. That signs nobody in,
    /// and the user wants to be rid of it.
    ///
    /// # Errors
    ///
    /// Fails if a session may live on: if too many wait for it, or if the database operation fails.
    pub async fn sign_out_browser(
        &self,
        holder: TokenHolder,
        client: Client,
        origin: Origin,
    ) -> Result<RevokeOutcome, Error> {
        match self.revoke_current(holder, Some(client), origin).await {
            Err(Error::Refused(refusal)) if refusal.is_of_no_session() => Ok(RevokeOutcome { already: true }),
            ended => ended,
        }
    }

    /// Ends sessions together with those of other requests; see [`Groups`]. Returns those that were live until now.
    async fn sign_out(&self, asked: SignOut) -> Result<HashSet<(ProjectId, SessionId)>, Error> {
        let Some(first) = asked.first() else { return Ok(HashSet::new()) };
        request::note_project(&first.project);
        // Of those with sessions in several slots, all wait for the slowest.
        let group = self.sign_outs.of(self.urgent.slot_number(first.session.bucket()));
        let joined = group.join(&first.project, asked.clone(), &self.urgent, sign_out_all);
        let mut ended = match joined.await? {
            Some(SignedOut { ended, has_locked: false }) => return Ok(ended),
            Some(SignedOut { ended, has_locked: true }) => ended,
            None => HashSet::new(),
        };
        let keys = asked.iter().map(|one| Key::Session(one.project.clone(), one.session));
        let permit = self.bulkhead.acquire(SESSIONS_REVOKE, Lane::SignOut, keys).await?;
        ended.extend(self.urgent.sessions_revoke(asked, permit).await?);
        Ok(ended)
    }

    /// The session of a genuine refresh token.
    async fn session_of(&self, token: Option<&RefreshToken>) -> Result<Target, Error> {
        const REFUSED: Refusal = Refusal::RefreshTokenNotFoundOrExpired;
        let token = token.ok_or(REFUSED)?;
        let snapshot = self.keys.find(token.key(), |snapshot| snapshot.keyring.refresh(token.key()).is_some()).await?;
        let key = snapshot.keyring.refresh(token.key()).filter(|key| key.verify_tag(token)).ok_or(REFUSED)?;
        let target = Target { project: key.project().clone(), session: token.session() };
        // A session that was swept has no secret to check; the tag has already shown that the token is ours, and the session has
        // ended.
        let stored = self.urgent.session_find(target.project.clone(), target.session).await?;
        if stored.is_some_and(|seen| !key.verify_token(token, &seen.stored.secret)) {
            return Err(REFUSED.into());
        }
        Ok(target)
    }
}

/// Ends the sessions of a group of requests, those of each slot in one statement.
async fn sign_out_all(store: Store, requests: Vec<SignOut>) -> Result<Vec<Option<SignedOut>>, store::Error> {
    let mut seen = HashSet::new();
    // Each session once: the first request to name it ends it, and the others find it ended.
    let first = requests.iter().flatten().filter(|one| seen.insert((&one.project, one.session)));
    let asked: Vec<Revocation> = first.cloned().collect();
    let mut parts = store.by_slot(asked, |one| one.session.bucket());
    let revoke = |part: Vec<(usize, Revocation)>| {
        let asked: Vec<Revocation> = part.into_iter().map(|(_, one)| one).collect();
        let store = &store;
        async move { store.sessions_revoke_unlocked(&asked).await }
    };
    let Revoked { mut live, locked } = match parts.len() {
        0 => Revoked::default(),
        1 => revoke(parts.pop().unwrap_or_default()).await?,
        _ => {
            let mut all = Revoked::default();
            let sessions = |part: &[(usize, Revocation)]| -> Vec<_> {
                part.iter().map(|(_, one)| (one.project.clone(), one.session)).collect()
            };
            let named: Vec<_> = parts.iter().map(|part| sessions(part)).collect();
            for (named, outcome) in named.into_iter().zip(join_all(parts.into_iter().map(revoke)).await) {
                match outcome {
                    Ok(part) => {
                        all.live.extend(part.live);
                        all.locked.extend(part.locked);
                    }
                    // Each waits for itself, and fails if its slot still does. What the others ended is not repeated.
                    Err(_) => all.locked.extend(named),
                }
            }
            all
        }
    };
    let signed_out = |request: SignOut| {
        let sessions: Vec<_> = request.into_iter().map(|one| (one.project, one.session)).collect();
        let has_locked = sessions.iter().any(|session| locked.contains(session));
        let ended = sessions.into_iter().filter_map(|session| live.take(&session)).collect();
        Some(SignedOut { ended, has_locked })
    };
    Ok(requests.into_iter().map(signed_out).collect())
}

/// The first failure, or else the first refusal: if one token could not be checked, it is unknown whether any is genuine.
fn first_failure(mut errors: Vec<Error>) -> Option<Error> {
    let failure = errors.iter().position(|error| !matches!(error, Error::Refused(_))).unwrap_or(0);
    (failure < errors.len()).then(|| errors.swap_remove(failure))
}
