//! Ends a session by its id.

use super::App;
use super::Caller;
use super::Client;
use super::Error;
use super::RevokeOutcome;
use super::bulkhead::Key;
use super::bulkhead::Lane;
use super::credentials::VerifiedCaller;
use super::list::named_user;
use crate::store;
use crate::store::RefusedAttempt;
use crate::store::Revocation;
use crate::store::Role;
use crate::store::Tx;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::id::UserId;
use sessiond_core::session::EndedBy;
use sessiond_core::session::Origin;
use sessiond_core::session::Refusal;
use sessiond_core::session::RevokeReason;
use sessiond_core::token::verified::VerifiedToken;

/// A refusal is a value: it is returned after the transaction has committed.
type RevokeResult = Result<RevokeOutcome, Refusal>;

impl App {
    /// Ends a session by its id: another session of the calling user, or any session of a service's project; on behalf of a
    /// client, only of the client's project.
    ///
    /// # Errors
    ///
    /// Fails if the caller, the client or the request is refused, with [`Refusal::SessionNotFound`] also for a session that the
    /// caller may not see; or if the database operation fails.
    pub async fn revoke_session(
        &self,
        caller: Caller,
        client: Option<Client>,
        id: &str,
        user_id: Option<String>,
        origin: Origin,
    ) -> Result<RevokeOutcome, Error> {
        let now = self.clock.now();
        let principal = self.principal_within(caller, client, Role::Service).await?;
        let id = SessionId::parse(id).ok_or_else(|| Refusal::invalid("id", "must be a session's id"))?;
        let outcome = match principal {
            VerifiedCaller::User(token) => {
                if token.impersonator().is_some() {
                    return Err(Refusal::InsufficientAccessType.into());
                }
                if user_id.is_some_and(|named| named != "me" && named != token.user().as_str()) {
                    return Err(Refusal::SessionNotFound.into());
                }
                self.may_revoke_others(&token, now).await?;
                let keys = [
                    Key::Session(token.project().clone(), token.session()),
                    Key::Session(token.project().clone(), id),
                    Key::User(token.project().clone(), token.user().clone()),
                ];
                let permit = self.bulkhead.acquire("revoke_session", Lane::Revoke, keys).await?;
                let (project, own) = (token.project().clone(), token.session());
                let work = move |mut tx: Tx| async move {
                    let outcome = revoke_own(&mut tx, &token, id, &origin, now).await?;
                    let done = tx.commit(outcome).await;
                    drop(permit);
                    done
                };
                let outcome = self.store.transact("revoke_session", work).await?;
                self.note_ended_before(&project, id, own, &outcome);
                outcome
            }
            VerifiedCaller::Service(service) => {
                let user = user_id.as_deref().map(named_user).transpose()?;
                let (by, project) = (EndedBy::Service(service.key), service.project.clone());
                let permit = self
                    .bulkhead
                    .acquire("revoke_session", Lane::Revoke, [Key::Session(service.project.clone(), id)])
                    .await?;
                let work = move |mut tx: Tx| async move {
                    let outcome = revoke_any(&mut tx, &service.project, user.as_ref(), id, by, &origin, now).await?;
                    let done = tx.commit(outcome).await;
                    drop(permit);
                    done
                };
                let outcome = self.store.transact("revoke_session", work).await?;
                self.note_ended_before(&project, id, id, &outcome);
                outcome
            }
        };
        Ok(outcome?)
    }

    /// Tells the feed which session had ended before: the session itself, or the caller's own.
    fn note_ended_before(&self, project: &ProjectId, id: SessionId, own: SessionId, outcome: &RevokeResult) {
        match outcome {
            Ok(RevokeOutcome { already: true }) => self.feed.note_ended(project, id),
            Err(Refusal::SessionRevoked) => {
                self.feed.note_ended(project, own);
                self.note_refused_session(project, own, RefusedAttempt::SessionRevoked);
            }
            Ok(RevokeOutcome { already: false }) | Err(_) => {}
        }
    }
}

/// Ends another session of a user whose own session must be live.
async fn revoke_own(
    tx: &mut Tx,
    token: &VerifiedToken,
    id: SessionId,
    origin: &Origin,
    now: Timestamp,
) -> Result<RevokeResult, store::Error> {
    let (project, user, own) = (token.project(), token.user(), token.session());
    let locked = tx.sessions_lock(project, &[own, id]).await?;
    let present = tx.epoch_share(project, user, own.bucket()).await?;
    let find =
        |id| locked.iter().map(|stored| &stored.session).find(|session| session.id == id && session.user == *user);
    let is_live = find(own).zip(present).is_some_and(|(session, present)| session.is_live(now, present));
    if !is_live {
        return Ok(Err(Refusal::SessionRevoked));
    }
    if id == own {
        return Ok(Err(Refusal::CannotDeleteCurrentSession));
    }
    // The user cannot see impersonated sessions.
    if find(id).is_none_or(|session| session.impersonator.is_some()) {
        return Ok(Err(Refusal::SessionNotFound));
    }
    revoke(tx, project, id, EndedBy::User(own), origin, now).await
}

/// Ends a session of a project; if a user is named, only that user's.
async fn revoke_any(
    tx: &mut Tx,
    project: &ProjectId,
    user: Option<&UserId>,
    id: SessionId,
    by: EndedBy,
    origin: &Origin,
    now: Timestamp,
) -> Result<RevokeResult, store::Error> {
    let stored = tx.session_lock(project, id).await?;
    if stored.is_none_or(|stored| user.is_some_and(|user| stored.session.user != *user)) {
        return Ok(Err(Refusal::SessionNotFound));
    }
    revoke(tx, project, id, by, origin, now).await
}

async fn revoke(
    tx: &mut Tx,
    project: &ProjectId,
    session: SessionId,
    by: EndedBy,
    origin: &Origin,
    now: Timestamp,
) -> Result<RevokeResult, store::Error> {
    let (project, reason, ip) = (project.clone(), RevokeReason::Revoked, origin.ip);
    let ended = tx.sessions_revoke(&[Revocation { project, session, at: now, reason, by, ip }]).await?;
    Ok(Ok(RevokeOutcome { already: ended.is_empty() }))
}
