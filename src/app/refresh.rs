//! Trading a refresh token for the next one.

use super::App;
use super::Error;
use super::Grant;
use super::grant::Granted;
use crate::clock::Timestamp;
use crate::id::ProjectId;
use crate::session::Policy;
use crate::session::Refusal;
use crate::session::RevokeReason;
use crate::session::rotation;
use crate::session::rotation::Rotation;
use crate::store;
use crate::store::Revocation;
use crate::store::StoredSession;
use crate::store::Tx;
use crate::token::keys::RefreshKey;
use crate::token::refresh::Link;
use crate::token::refresh::RefreshToken;

impl App {
    /// Refreshes the session of a refresh token.
    ///
    /// # Errors
    ///
    /// [`Refusal::RefreshTokenNotFoundOrExpired`] for any token that does not work, whatever the cause;
    /// [`Refusal::RateLimited`]; the store's; a key's.
    pub async fn refresh_session(&self, presented: Option<RefreshToken>) -> Result<Grant, Error> {
        let now = self.clock.now();
        let presented = presented.ok_or(Refusal::RefreshTokenNotFoundOrExpired)?;
        let snapshot = self.keys.with(|snapshot| snapshot.keyring.refresh(presented.key()).is_some()).await?;
        let key = snapshot.keyring.refresh(presented.key()).ok_or(Refusal::RefreshTokenNotFoundOrExpired)?.clone();
        let policy = *snapshot.policy(key.project()).ok_or(Refusal::RefreshTokenNotFoundOrExpired)?;
        // A made-up token ends here, before the database hears of it.
        if !key.may_have_made(&presented) {
            return Err(Refusal::RefreshTokenNotFoundOrExpired.into());
        }

        let work = move |mut tx: Tx| async move {
            let outcome = rotate(&mut tx, &key, &presented, now, &policy).await?;
            tx.commit(outcome).await
        };
        let outcome = self.store.transact("refresh_session", work).await?;
        self.grant(&snapshot, outcome?, now)
    }
}

/// Locks, judges and records. What is refused is a value: an error would roll back, and forget a theft.
async fn rotate(
    tx: &mut Tx,
    key: &RefreshKey,
    presented: &RefreshToken,
    now: Timestamp,
    policy: &Policy,
) -> Result<Result<Granted, Refusal>, store::Error> {
    let refused = Ok(Err(Refusal::RefreshTokenNotFoundOrExpired));
    let project = key.project();
    let Some(mut stored) = tx.session_lock(project, presented.session()).await? else { return refused };
    let present = tx.epoch_share(project, &stored.session.user).await?;
    let live = present.is_some_and(|present| stored.session.is_live(now, present));
    if !key.has_made(presented, &stored.secret) || !live {
        return refused;
    }
    match rotation::decide(&stored.chain, presented.link(), now, policy) {
        Rotation::Repeated(link) => use_session(tx, stored, link, now, policy).await.map(Ok),
        Rotation::Advanced(link, chain) => {
            stored.chain = chain;
            use_session(tx, stored, link, now, policy).await.map(Ok)
        }
        Rotation::Reused => {
            tx.sessions_revoke(&[reused(project, presented, now)]).await?;
            tracing::warn!(project = %project, session = %presented.session(), "refresh token reused; session ended");
            refused
        }
        Rotation::Throttled(retry_after) => Ok(Err(Refusal::RateLimited { retry_after })),
        Rotation::Unknown => refused,
    }
}

async fn use_session(
    tx: &mut Tx,
    stored: StoredSession,
    link: Link,
    now: Timestamp,
    policy: &Policy,
) -> Result<Granted, store::Error> {
    let StoredSession { mut session, chain, secret, .. } = stored;
    session.touch(now);
    let access_expires_at = session.access_expires_at(now, policy);
    tx.session_rotate(&session, &chain, access_expires_at).await?;
    Ok(Granted { session, secret, link, access_expires_at })
}

fn reused(project: &ProjectId, presented: &RefreshToken, now: Timestamp) -> Revocation {
    Revocation {
        project: project.clone(),
        session: presented.session(),
        at: now,
        reason: RevokeReason::RefreshTokenReused,
    }
}
