//! Refreshes sessions: exchanges a refresh token for the next one.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ipnet::IpNet;

use super::App;
use super::Client;
use super::Error;
use super::Grant;
use super::bulkhead::Key;
use super::bulkhead::Lane;
use super::grant::Granted;
use super::group::Groups;
use super::keys::Snapshot;
use super::slots;
use crate::device;
use crate::rates::Bucket;
use crate::rates::Empty;
use crate::rates::Limiter;
use crate::store;
use crate::store::AuditEvent;
use crate::store::Done;
use crate::store::EventKind;
use crate::store::RefusedAttempt;
use crate::store::Revocation;
use crate::store::SessionRotations;
use crate::store::Store;
use crate::store::StoredSession;
use crate::store::Tx;
use crate::telemetry::request;
use crate::telemetry::request_id;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::id::UserId;
use sessiond_core::session::EndedBy;
use sessiond_core::session::Epoch;
use sessiond_core::session::Origin;
use sessiond_core::session::Policy;
use sessiond_core::session::Refusal;
use sessiond_core::session::RevokeReason;
use sessiond_core::session::Session;
use sessiond_core::session::origin;
use sessiond_core::session::policy::Refreshing;
use sessiond_core::session::rotation;
use sessiond_core::session::rotation::RepeatNotice;
use sessiond_core::session::rotation::Rotation;
use sessiond_core::token::keys::RefreshKey;
use sessiond_core::token::refresh::Link;
use sessiond_core::token::refresh::RefreshToken;

impl App {
    /// Refreshes the session of a refresh token, and records where the session is used now. On behalf of a client, only in the
    /// client's project.
    ///
    /// A genuine token is charged to its project's bucket; if that is empty, the token is not checked at all. A made-up one is
    /// not, or anyone could drain the bucket: the key's id is in every token of the project.
    ///
    /// # Errors
    ///
    /// [`Refusal::RefreshTokenNotFoundOrExpired`] for any token that does not work, whatever the cause;
    /// [`Refusal::ClientAuthenticationRequired`] for a genuine token without a client's key, if the policy requires one;
    /// [`Refusal::RateLimited`]; [`Refusal::InvalidServerKey`] for a client that does not authenticate; or if the database
    /// operation fails or the project has no usable key.
    pub async fn refresh_session(
        &self,
        presented: Option<RefreshToken>,
        client: Option<Client>,
        origin: Origin,
    ) -> Result<Grant, Error> {
        let now = self.clock.now();
        let client = self.paying_client(client).await?;
        let is_confidential = client.as_ref().is_some_and(|client| client.key.is_some());
        let presented = presented.ok_or(Refusal::RefreshTokenNotFoundOrExpired)?;
        let snapshot = self.keys.find(presented.key(), knows(&presented)).await?;
        let key = self.genuine_refresh_key(&snapshot, &presented)?;
        let policy = snapshot.policy(key.project()).ok_or(Refusal::RefreshTokenNotFoundOrExpired)?.clone();
        // One that was issued to another client is refused here, before any database query.
        let refuse = |why| self.note_refused_session(key.project(), presented.session(), why);
        if client.is_some_and(|client| client.project != *key.project()) {
            refuse(RefusedAttempt::WrongProject);
            return Err(Refusal::RefreshTokenNotFoundOrExpired.into());
        }
        // The user is known only once the row is read; until then the session's own bucket is charged.
        let charged = self.rates.charge(Bucket::Session(key.project(), presented.session()));
        charged.inspect_err(|_| refuse(RefusedAttempt::RateLimited))?;
        if policy.refreshing == Refreshing::ByClientsAlone && !is_confidential {
            return Err(Refusal::ClientAuthenticationRequired.into());
        }
        if origin.user_agent.is_some() {
            // Now, not while the session is locked and the operation's time limit runs.
            device::prepare().await;
        }
        let (project, session) = (key.project().clone(), presented.session());
        request::note_project(&project);
        let network = origin.ip.map(origin::network);
        let request = RefreshRequest { key, presented, origin, now, policy, is_charged: AtomicBool::new(false) };
        let outcome = self.rotate(Arc::new(request)).await?;
        if let Some(why) = outcome.refused() {
            self.note_refused_session(&project, session, why);
        }
        match outcome {
            RefreshOutcome::Granted(granted, notice) => {
                if notice != RepeatNotice::None {
                    self.metrics.refresh_repeated_elsewhere("allowed");
                    self.log_repeat_elsewhere(&project, session, network);
                }
                self.grant(&snapshot, *granted, now)
            }
            RefreshOutcome::ReusedElsewhere => {
                self.metrics.refresh_repeated_elsewhere("ended");
                self.log_repeat_elsewhere(&project, session, network);
                Err(Refusal::RefreshTokenNotFoundOrExpired.into())
            }
            RefreshOutcome::Throttled(retry_after) => Err(Refusal::RateLimited { retry_after }.into()),
            RefreshOutcome::Reused => {
                tracing::warn!(%project, %session, request_id = %request_id(), "refresh token reused; session revoked");
                Err(Refusal::RefreshTokenNotFoundOrExpired.into())
            }
            RefreshOutcome::Ended => {
                self.feed.note_ended(&project, session);
                Err(Refusal::RefreshTokenNotFoundOrExpired.into())
            }
            RefreshOutcome::Refused => Err(Refusal::RefreshTokenNotFoundOrExpired.into()),
        }
    }

    /// The key of a refresh token; a made-up token is refused.
    ///
    /// # Errors
    ///
    /// [`Refusal::RefreshTokenNotFoundOrExpired`]; [`Refusal::RateLimited`] if the project's bucket is empty.
    pub(super) fn genuine_refresh_key(
        &self,
        snapshot: &Snapshot,
        presented: &RefreshToken,
    ) -> Result<Arc<RefreshKey>, Refusal> {
        let key = snapshot.keyring.refresh(presented.key()).ok_or(Refusal::RefreshTokenNotFoundOrExpired)?;
        self.rates.check(Bucket::Project(key.project()))?;
        if !key.verify_tag(presented) {
            return Err(Refusal::RefreshTokenNotFoundOrExpired);
        }
        Ok(Arc::clone(key))
    }

    /// Rotates the chain together with those of other requests; see [`Groups`].
    async fn rotate(&self, request: Arc<RefreshRequest>) -> Result<RefreshOutcome, Error> {
        let (project, context) = (request.key.project(), (self.store.clone(), self.rates.clone()));
        let group = self.refreshes.of(self.store.slot_number(request.presented.session().bucket()));
        if let Some(outcome) = group.join(project, Arc::clone(&request), &context, rotate_all).await? {
            return Ok(outcome);
        }
        let key = Key::Session(project.clone(), request.presented.session());
        let permit = self.bulkhead.acquire(OPERATION, Lane::Use, [key]).await?;
        let rates = self.rates.clone();
        let work = move |tx: Tx| async move {
            let done = rotate_alone(tx, &request, &rates).await;
            drop(permit);
            done
        };
        Ok(self.store.transact(OPERATION, work).await?)
    }

    /// Logs that a refresh was repeated from elsewhere, at a limited rate. The audit records every one.
    fn log_repeat_elsewhere(&self, project: &ProjectId, session: SessionId, network: Option<IpNet>) {
        if let Some(suppressed) = self.repeat_log.admit() {
            let network = network.map(|network| network.to_string()).unwrap_or_default();
            tracing::warn!(
                %project, %session, network, suppressed, request_id = %request_id(),
                "a refresh was repeated from another network or user agent: someone may hold a copy of the refresh token"
            );
        }
    }
}

/// Refreshes, carried out in groups.
pub(super) type Refreshes = Groups<Arc<RefreshRequest>, RefreshOutcome>;

/// The operation's name in metrics and errors.
pub(super) const OPERATION: &str = "refresh_session";

/// A genuine-looking token, and what the decision depends on.
pub(super) struct RefreshRequest {
    key: Arc<RefreshKey>,
    presented: RefreshToken,
    origin: Origin,
    now: Timestamp,
    policy: Policy,
    /// Whether the user and the project were charged. After the failure of its group, a request is carried out again.
    is_charged: AtomicBool,
}

impl RefreshRequest {
    /// Charges the user and the project, once.
    fn charge(&self, user: &UserId, rates: &Limiter) -> Result<(), Empty> {
        if !self.is_charged.load(Ordering::Relaxed) {
            // The user before the project, so that no user can drain the project's bucket.
            rates.charge(Bucket::User(self.key.project(), user))?;
            rates.charge(Bucket::Project(self.key.project()))?;
            self.is_charged.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn session(&self) -> (&ProjectId, SessionId) {
        (self.key.project(), self.presented.session())
    }
}

/// What was committed. A refusal is a value: an error would roll back, and the detected theft would not be recorded.
pub(super) enum RefreshOutcome {
    Granted(Box<Granted>, RepeatNotice),
    Throttled(Duration),
    Reused,
    ReusedElsewhere,
    /// The token is genuine, but its session has ended.
    Ended,
    Refused,
}

impl RefreshOutcome {
    /// Why a genuine token was refused.
    const fn refused(&self) -> Option<RefusedAttempt> {
        match self {
            Self::Throttled(_) => Some(RefusedAttempt::RateLimited),
            Self::Reused | Self::ReusedElsewhere => Some(RefusedAttempt::RefreshTokenReused),
            Self::Ended => Some(RefusedAttempt::SessionRevoked),
            // Not genuine, or swept.
            Self::Refused | Self::Granted(..) => None,
        }
    }
}

/// Rotates the chains of a group of requests, those of each slot in a transaction of their own.
async fn rotate_all(
    (store, rates): (Store, Limiter),
    requests: Vec<Arc<RefreshRequest>>,
) -> Result<Vec<Option<RefreshOutcome>>, store::Error> {
    let bucket = |request: &Arc<RefreshRequest>| request.presented.session().bucket();
    slots::apart(&store, requests, bucket, |requests| rotate_some(&store, &rates, requests)).await
}

/// Rotates the chains of those sessions that no other transaction has locked. Of several requests for one session, the
/// others are carried out alone, after the first.
async fn rotate_some(
    store: &Store,
    rates: &Limiter,
    requests: Vec<Arc<RefreshRequest>>,
) -> Result<Vec<Option<RefreshOutcome>>, store::Error> {
    let work = |mut tx: Tx| async move {
        let sessions: Vec<(&ProjectId, SessionId)> = requests.iter().map(|request| request.session()).collect();
        let mut unlocked = tx.sessions_lock_unlocked(&sessions).await?;
        let (mut outcomes, mut rotations) = (vec![], SessionRotations::default());
        for request in &requests {
            let (project, session) = request.session();
            outcomes.push(match unlocked.remove(&(project.clone(), session)) {
                Some((stored, present)) => {
                    Some(rotate(&mut tx, request, stored, Some(present), rates, &mut rotations).await?)
                }
                None => None,
            });
        }
        tx.sessions_rotate(rotations).await?;
        tx.commit(outcomes).await
    };
    store.transact_attached(OPERATION, work).await
}

/// Waits for the session, and rotates its chain.
async fn rotate_alone(
    mut tx: Tx,
    request: &RefreshRequest,
    rates: &Limiter,
) -> Result<Done<RefreshOutcome>, store::Error> {
    let (project, session) = request.session();
    let outcome = match tx.session_lock(project, session).await? {
        Some(stored) => {
            let present = tx.epoch_share(project, &stored.session.user, session.bucket()).await?;
            let mut rotations = SessionRotations::default();
            let outcome = rotate(&mut tx, request, stored, present, rates, &mut rotations).await?;
            tx.sessions_rotate(rotations).await?;
            outcome
        }
        None => RefreshOutcome::Refused,
    };
    tx.commit(outcome).await
}

/// Decides on a request for a locked session, and adds what is to be stored to `rotations`.
async fn rotate(
    tx: &mut Tx,
    request: &RefreshRequest,
    mut stored: StoredSession,
    present: Option<Epoch>,
    rates: &Limiter,
    rotations: &mut SessionRotations,
) -> Result<RefreshOutcome, store::Error> {
    let RefreshRequest { key, presented, origin, now, policy, .. } = request;
    let (project, now) = (key.project(), *now);
    if !key.verify_token(presented, &stored.secret) {
        return Ok(RefreshOutcome::Refused);
    }
    if !present.is_some_and(|present| stored.session.is_live(now, present)) {
        return Ok(RefreshOutcome::Ended);
    }
    if let Err(Empty { retry_after }) = request.charge(&stored.session.user, rates) {
        return Ok(RefreshOutcome::Throttled(retry_after));
    }
    let origin_match = stored.session.device.origin_match(origin);
    match rotation::decide(&stored.chain, presented.link(), origin_match, now, policy) {
        Rotation::Repeated(link, chain, notice) => {
            stored.chain = chain;
            if notice == RepeatNotice::FirstElsewhere {
                tx.event_insert(&repeated_elsewhere(&stored.session, origin.ip, now)).await?;
            }
            // The device is not updated: it stays as the first use of the token has shown it. Otherwise a thief could read the
            // user's address in the session, or overwrite it.
            Ok(record(rotations, stored, link, notice, now, policy))
        }
        Rotation::Advanced(link, chain) => {
            stored.chain = chain;
            stored.session.update_from(origin, device::name, now);
            Ok(record(rotations, stored, link, RepeatNotice::None, now, policy))
        }
        Rotation::Reused => {
            tx.sessions_revoke(&[reused(project, presented, origin.ip, now)]).await?;
            Ok(RefreshOutcome::Reused)
        }
        Rotation::ReusedElsewhere => {
            tx.event_insert(&repeated_elsewhere(&stored.session, origin.ip, now)).await?;
            tx.sessions_revoke(&[reused(project, presented, origin.ip, now)]).await?;
            Ok(RefreshOutcome::ReusedElsewhere)
        }
        Rotation::Throttled(retry_after) => Ok(RefreshOutcome::Throttled(retry_after)),
        Rotation::Unknown => Ok(RefreshOutcome::Refused),
    }
}

/// Whether a snapshot has the key of a refresh token, and its project.
pub(super) fn knows(presented: &RefreshToken) -> impl Fn(&Snapshot) -> bool {
    let key = presented.key();
    move |snapshot| snapshot.keyring.refresh(key).is_some_and(|key| snapshot.policy(key.project()).is_some())
}

/// Extends the session's life by the refresh, and adds it to what is to be stored.
fn record(
    rotations: &mut SessionRotations,
    stored: StoredSession,
    link: Link,
    notice: RepeatNotice,
    now: Timestamp,
    policy: &Policy,
) -> RefreshOutcome {
    let StoredSession { mut session, chain, secret, .. } = stored;
    session.touch(now);
    let access_expires_at = session.access_expires_at(now, policy);
    rotations.push(&session, &chain, access_expires_at);
    RefreshOutcome::Granted(Box::new(Granted { session, secret, link, access_expires_at }), notice)
}

fn repeated_elsewhere(session: &Session, ip: Option<IpAddr>, now: Timestamp) -> AuditEvent {
    let user = Some(session.user.as_str().to_owned());
    AuditEvent {
        project: session.project.clone(),
        kind: EventKind::RefreshRepeatedElsewhere { session: session.id, user },
        at: now,
        by: EndedBy::Holder,
        ip,
        details: None,
    }
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
