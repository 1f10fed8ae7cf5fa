//! Trading a refresh token for the next one.

use std::net::IpAddr;
use std::time::Duration;

use super::App;
use super::Client;
use super::Error;
use super::Grant;
use super::grant::Granted;
use super::keys::Snapshot;
use crate::clock::Timestamp;
use crate::device;
use crate::id::ProjectId;
use crate::rates::Of;
use crate::session::EndedBy;
use crate::session::Origin;
use crate::session::Policy;
use crate::session::Refusal;
use crate::session::RevokeReason;
use crate::session::rotation;
use crate::session::rotation::Rotation;
use crate::store;
use crate::store::Revocation;
use crate::store::StoredSession;
use crate::store::Tx;
use crate::telemetry::request_id;
use crate::token::keys::RefreshKey;
use crate::token::refresh::Link;
use crate::token::refresh::RefreshToken;

impl App {
    /// Refreshes the session of a refresh token; it shows where the session is now. On behalf of a client, only in the
    /// client's project.
    ///
    /// A genuine token takes from its project's bucket; where nothing is left there, the token is not even looked at. One
    /// that is made up takes nothing, or anyone could drain it: the key's id is in every token of the project.
    ///
    /// # Errors
    ///
    /// [`Refusal::RefreshTokenNotFoundOrExpired`] for any token that does not work, whatever the cause;
    /// [`Refusal::RateLimited`]; what is wrong with the client; the store's; a key's.
    pub async fn refresh_session(
        &self,
        presented: Option<RefreshToken>,
        client: Option<Client>,
        origin: Origin,
    ) -> Result<Grant, Error> {
        let now = self.clock.now();
        let within = self.paying_client_project(client).await?;
        let presented = presented.ok_or(Refusal::RefreshTokenNotFoundOrExpired)?;
        let known = |snapshot: &Snapshot| {
            let key = snapshot.keyring.refresh(presented.key());
            key.is_some_and(|key| snapshot.policy(key.project()).is_some())
        };
        let snapshot = self.keys.with(known).await?;
        let key = snapshot.keyring.refresh(presented.key()).ok_or(Refusal::RefreshTokenNotFoundOrExpired)?.clone();
        let policy = snapshot.policy(key.project()).ok_or(Refusal::RefreshTokenNotFoundOrExpired)?.clone();
        self.rates.look(Of::Project(key.project()))?;
        // A made-up token ends here, before the database hears of it; so does one that was issued to another client.
        if !key.may_have_made(&presented) || within.is_some_and(|project| project != *key.project()) {
            return Err(Refusal::RefreshTokenNotFoundOrExpired.into());
        }
        self.rates.take(Of::Project(key.project()))?;

        // Not while the session is locked and the time of the database's operation runs.
        device::prepare();
        let (project, session) = (key.project().clone(), presented.session());
        let work = move |mut tx: Tx| async move {
            let outcome = rotate(&mut tx, &key, &presented, &origin, now, &policy).await?;
            tx.commit(outcome).await
        };
        match self.store.transact("refresh_session", work).await? {
            Outcome::Granted(granted) => self.grant(&snapshot, *granted, now),
            Outcome::Throttled(retry_after) => Err(Refusal::RateLimited { retry_after }.into()),
            Outcome::Reused => {
                tracing::warn!(%project, %session, request_id = %request_id(), "refresh token reused; the session has ended");
                Err(Refusal::RefreshTokenNotFoundOrExpired.into())
            }
            Outcome::Refused => Err(Refusal::RefreshTokenNotFoundOrExpired.into()),
        }
    }
}

/// What was committed. A refusal is a value: an error would roll back, and forget a theft.
enum Outcome {
    Granted(Box<Granted>),
    Throttled(Duration),
    Reused,
    Refused,
}

/// Locks, judges and records.
async fn rotate(
    tx: &mut Tx,
    key: &RefreshKey,
    presented: &RefreshToken,
    origin: &Origin,
    now: Timestamp,
    policy: &Policy,
) -> Result<Outcome, store::Error> {
    let project = key.project();
    let Some(mut stored) = tx.session_lock(project, presented.session()).await? else { return Ok(Outcome::Refused) };
    let present = tx.epoch_share(project, &stored.session.user).await?;
    let live = present.is_some_and(|present| stored.session.is_live(now, present));
    if !key.has_made(presented, &stored.secret) || !live {
        return Ok(Outcome::Refused);
    }
    match rotation::decide(&stored.chain, presented.link(), now, policy) {
        Rotation::Repeated(link) => use_session(tx, stored, link, origin, now, policy).await,
        Rotation::Advanced(link, chain) => {
            stored.chain = chain;
            use_session(tx, stored, link, origin, now, policy).await
        }
        Rotation::Reused => {
            tx.sessions_revoke(&[reused(project, presented, origin.ip, now)]).await?;
            Ok(Outcome::Reused)
        }
        Rotation::Throttled(retry_after) => Ok(Outcome::Throttled(retry_after)),
        Rotation::Unknown => Ok(Outcome::Refused),
    }
}

async fn use_session(
    tx: &mut Tx,
    stored: StoredSession,
    link: Link,
    origin: &Origin,
    now: Timestamp,
    policy: &Policy,
) -> Result<Outcome, store::Error> {
    let StoredSession { mut session, chain, secret, .. } = stored;
    session.touch(now);
    session.device.seen_from(origin);
    let access_expires_at = session.access_expires_at(now, policy);
    tx.session_rotate(&session, &chain, access_expires_at).await?;
    Ok(Outcome::Granted(Box::new(Granted { session, secret, link, access_expires_at })))
}

fn reused(project: &ProjectId, presented: &RefreshToken, ip: Option<IpAddr>, now: Timestamp) -> Revocation {
    Revocation {
        project: project.clone(),
        session: presented.session(),
        at: now,
        reason: RevokeReason::RefreshTokenReused,
        by: EndedBy::Sessiond,
        ip,
    }
}
