//! Creates sessions.

use std::collections::HashMap;
use std::sync::Arc;

use super::App;
use super::Caller;
use super::Client;
use super::Error;
use super::Grant;
use super::Service;
use super::bulkhead::Key;
use super::bulkhead::Lane;
use super::cookies::does_not_fit;
use super::grant::Granted;
use super::group::Groups;
use super::idempotency::IdempotencyKey;
use super::slots;
use crate::cookies::Lifetime;
use crate::cookies::SetCookies;
use crate::device;
use crate::store;
use crate::store::AuditEvent;
use crate::store::EventKind;
use crate::store::Project;
use crate::store::RefusedAttempt;
use crate::store::RequestIdStatus;
use crate::store::RequestOutcome;
use crate::store::Revocation;
use crate::store::Role;
use crate::store::SessionRotations;
use crate::store::Store;
use crate::store::StoredSession;
use crate::store::Tx;
use sessiond_core::clock;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::Bucket;
use sessiond_core::id::KeyId;
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
use sessiond_core::session::create::CreateRequest;
use sessiond_core::session::create::NewSession;
use sessiond_core::session::lifecycle::Impersonator;
use sessiond_core::session::limit;
use sessiond_core::session::limit::Admission;
use sessiond_core::session::limit::LiveSession;
use sessiond_core::session::rotation::Chain;
use sessiond_core::token::refresh::RowSecret;

/// The result of the transaction. A refusal is a value, so that the transaction decides what to do with it.
type CreateResult = Result<(Granted, Origination), Refusal>;

/// Whether a session was created by this request, or by an earlier attempt of the same request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origination {
    New,
    Repeated,
}

impl App {
    /// Creates a session for a service; on behalf of a client, only in the client's project. With an idempotency key, a
    /// repeated request returns the session that the first one created.
    ///
    /// # Errors
    ///
    /// Fails if the caller, the client or the request is refused, if the database operation fails, or if the project has no
    /// usable key. Nothing is created if the access token would not fit into a cookie that is asked for.
    pub async fn create_session(
        &self,
        caller: Caller,
        client: Option<Client>,
        request: CreateRequest,
        cookies: Option<Lifetime>,
        idempotency: Option<IdempotencyKey>,
        origin: Origin,
    ) -> Result<(Grant, Option<SetCookies>), Error> {
        let service = self.service_within(caller, client, Role::Service).await?;
        let Service { project, key, privileges } = service.clone();
        let now = self.clock.now();
        // The server key was found, so its project exists; it may be newer than the snapshot.
        let snapshot = self.keys.with(|snapshot| snapshot.policy(&project).is_some()).await?;
        let Project { policy, bucket_key, .. } =
            snapshot.project(&project).ok_or_else(|| super::KeyError::NoKey(project.clone()))?.clone();
        let mut new = request.check(now, &policy).map_err(Refusal::Schema)?;
        if new.impersonator.is_some() && !privileges.allows_impersonation() {
            self.note_refused_service(&service, RefusedAttempt::ServerKeyPrivileges);
            return Err(Refusal::ImpersonationNotGranted.into());
        }
        if new.device.user_agent.is_some() && new.device.name.is_none() {
            device::prepare().await;
        }
        new.device = new.device.named(device::name);

        let (bucket, creator) = (bucket_key.bucket(&new.user), key);
        let cookie_policy = policy.cookies.clone();
        if cookies.is_some() {
            if !cookie_policy.scope.is_on() {
                return Err(Refusal::invalid("cookies", "must be absent: the project uses no cookies").into());
            }
            let id = clock::new_session_id(now, bucket);
            let trial = Session::open(id, project.clone(), Epoch { project: 0, user: 0 }, new.clone(), now);
            if !self.fits_cookie(&snapshot, &trial, now)? {
                return Err(does_not_fit().into());
            }
        }
        let sign_in = Arc::new(SignIn { project, new, bucket, idempotency, creator, origin, now, policy });
        let (granted, origination) = self.open(sign_in).await??;
        if granted.session.impersonator.is_some() && origination == Origination::New {
            self.metrics.impersonation();
        }
        let grant = self.grant(&snapshot, granted, now)?;
        let set = cookies.map(|lifetime| self.set_cookies(&grant, &cookie_policy, lifetime)).transpose()?;
        Ok((grant, set))
    }

    /// Opens the session; if nothing has to be decided in the database, together with those of other requests (see [`Groups`]).
    async fn open(&self, sign_in: Arc<SignIn>) -> Result<CreateResult, Error> {
        if sign_in.is_plain() {
            let group = self.creations.of(self.store.slot_number(sign_in.bucket));
            let joined = group.join(&sign_in.project, Arc::clone(&sign_in), &self.store, open_all);
            if let Some(granted) = joined.await? {
                return Ok(Ok((granted, Origination::New)));
            }
        }
        let user = Key::User(sign_in.project.clone(), sign_in.new.user.clone());
        let permit = self.bulkhead.acquire(OPERATION, Lane::Use, [user]).await?;
        let work = move |mut tx: Tx| async move {
            let done = match open_alone(&mut tx, &sign_in).await? {
                Ok(opened) => tx.commit(Ok(opened)).await,
                // Nothing was created, so nothing is kept: the request id can be used again.
                Err(refusal) => tx.rollback(Err(refusal)).await,
            };
            drop(permit);
            done
        };
        Ok(self.store.transact(OPERATION, work).await?)
    }
}

/// Sign-ins, carried out in groups.
pub(super) type Creations = Groups<Arc<SignIn>, Granted>;

/// The operation's name in metrics and errors.
pub(super) const OPERATION: &str = "create_session";

/// A checked sign-in, and what the decision depends on.
pub(super) struct SignIn {
    project: ProjectId,
    new: NewSession,
    /// The user's.
    bucket: Bucket,
    idempotency: Option<IdempotencyKey>,
    /// The server key of the service that creates the session.
    creator: KeyId,
    origin: Origin,
    now: Timestamp,
    policy: Policy,
}

impl SignIn {
    /// Whether nothing but the user's epoch has to be read: no limit, no request id, no session that is replaced, and nothing
    /// to record.
    fn is_plain(&self) -> bool {
        let Self { new, idempotency, policy, .. } = self;
        policy.sessions.is_none() && idempotency.is_none() && new.replaces.is_none() && new.impersonator.is_none()
    }

    fn new_id(&self) -> SessionId {
        clock::new_session_id(self.now, self.bucket)
    }

    /// The session, as it is granted and as it is stored.
    fn open_under(&self, id: SessionId, epoch: Epoch) -> (Granted, StoredSession) {
        let session = Session::open(id, self.project.clone(), epoch, self.new.clone(), self.now);
        let (chain, secret) = (Chain::start(self.now), RowSecret::generate());
        let access_expires_at = session.access_expires_at(self.now, &self.policy);
        let granted =
            Granted { session: session.clone(), secret: secret.clone(), link: chain.head(), access_expires_at };
        (granted, StoredSession { session, chain, secret, access_expires_at })
    }
}

/// Opens the sessions of a group of requests, those of each slot in a transaction of their own.
async fn open_all(store: Store, requests: Vec<Arc<SignIn>>) -> Result<Vec<Option<Granted>>, store::Error> {
    slots::apart(&store, requests, |sign_in| sign_in.bucket, |requests| open_some(&store, requests)).await
}

/// Opens the sessions of those users whose row no other transaction has locked.
async fn open_some(store: &Store, requests: Vec<Arc<SignIn>>) -> Result<Vec<Option<Granted>>, store::Error> {
    let work = |mut tx: Tx| async move {
        let users: HashMap<(&ProjectId, &UserId), Bucket> =
            requests.iter().map(|sign_in| ((&sign_in.project, &sign_in.new.user), sign_in.bucket)).collect();
        let epochs = tx.epochs_share_unlocked(users).await?;
        let (mut outcomes, mut sessions) = (vec![], vec![]);
        for sign_in in &requests {
            let epoch = epochs.get(&(sign_in.project.clone(), sign_in.new.user.clone()));
            outcomes.push(epoch.map(|epoch| {
                let (granted, stored) = sign_in.open_under(sign_in.new_id(), *epoch);
                sessions.push((stored, sign_in.creator));
                granted
            }));
        }
        tx.sessions_insert(sessions).await?;
        tx.commit(outcomes).await
    };
    store.transact_attached(OPERATION, work).await
}

/// Locks are taken in this order: the user's queue, the request id, sessions, the user.
async fn open_alone(tx: &mut Tx, sign_in: &SignIn) -> Result<CreateResult, store::Error> {
    let SignIn { project, new, idempotency, creator, origin, now, policy, bucket } = sign_in;
    let (by, now, bucket) = (EndedBy::Service(*creator), *now, *bucket);
    let limit = policy.sessions.filter(|_| new.impersonator.is_none());
    if limit.is_some() {
        tx.user_queue(project, &new.user, bucket).await?;
    }
    let id = sign_in.new_id();
    if let Some(key) = idempotency {
        match tx.request_claim(project, bucket, key.id, RequestOutcome::Opened(id), &key.digest, now).await? {
            RequestIdStatus::New => {}
            RequestIdStatus::Repeated(RequestOutcome::Opened(session)) => {
                return repeat(tx, project, session, now, policy).await;
            }
            RequestIdStatus::Repeated(RequestOutcome::RevokedAll(_)) | RequestIdStatus::Conflict => {
                return Ok(Err(Refusal::invalid("request_id", "was used for another request")));
            }
        }
    }
    let end = |session, reason, by| Revocation { project: project.clone(), session, at: now, reason, by, ip: None };
    let replaced = new.replaces;
    let admission = match limit {
        Some(limit) => {
            let enough = usize::try_from(limit.max).unwrap_or(usize::MAX);
            limit::admit(live_sessions(tx, project, (&new.user, bucket), replaced, enough, now).await?, limit)
        }
        None => Admission::Admitted(vec![]),
    };
    if let Some(replaced) = replaced {
        // Locked together with the evicted sessions, in one order: waiting for one while holding another could deadlock.
        let ids = [admission.evicted(), &[replaced]].concat();
        let locked = tx.sessions_lock(project, &ids).await?;
        if !locked.iter().any(|stored| stored.session.id == replaced && stored.session.user == new.user) {
            return Ok(Err(Refusal::SessionNotFound));
        }
    }
    let Admission::Admitted(evicted) = admission else { return Ok(Err(Refusal::SessionLimitReached)) };
    let replaced = replaced.map(|one| end(one, RevokeReason::Replaced, by));
    let evicted = evicted.into_iter().map(|one| end(one, RevokeReason::Evicted, EndedBy::Sessiond));
    let ends: Vec<_> = replaced.into_iter().chain(evicted).collect();
    if !ends.is_empty() {
        tx.sessions_revoke(&ends).await?;
    }
    let epoch = epoch(tx, project, &new.user, bucket).await?;
    let (granted, stored) = sign_in.open_under(id, epoch);
    if let Some(Impersonator(impersonator)) = granted.session.impersonator.clone() {
        let session = &granted.session;
        let user = Some(session.user.as_str().to_owned());
        let kind = EventKind::ImpersonationOpened { session: id, user, impersonator };
        // The address of the impersonator's device if the service states it; otherwise the service's own.
        let ip = session.device.ip.or(origin.ip);
        tx.event_insert(&AuditEvent { project: project.clone(), kind, at: now, by, ip, details: None }).await?;
    }
    tx.sessions_insert(vec![(stored, *creator)]).await?;
    Ok(Ok((granted, Origination::New)))
}

/// The most pages of sessions, live or ended, that are read to count those under a limit: a million rows.
const SUMMARY_PAGES_MAX: usize = 100;

/// The user's live sessions that count against a limit, without the one that is replaced. Stops once it has found `enough`.
async fn live_sessions(
    tx: &mut Tx,
    project: &ProjectId,
    (user, bucket): (&UserId, Bucket),
    replaced: Option<SessionId>,
    enough: usize,
    now: Timestamp,
) -> Result<Vec<LiveSession>, store::Error> {
    // Not locked yet: sessions are locked before the user. If the epoch is raised meanwhile, that only makes more room.
    let Some(present) = tx.epoch_read(project, user, bucket).await? else { return Ok(vec![]) };
    let counts = |one: &store::SessionSummary| {
        !one.is_impersonation && one.lifetime.is_live(now, present) && Some(one.id) != replaced
    };
    let (mut found, mut beyond) = (vec![], None);
    for _ in 0..SUMMARY_PAGES_MAX {
        let page = tx.session_summaries(project, user, bucket, beyond).await?;
        found.extend(
            page.iter()
                .filter(|one| counts(one))
                .map(|one| LiveSession { session: one.id, last_used_at: one.last_used_at }),
        );
        // No more sessions are live than the limit allows, unless the limit was lowered since.
        if page.len() < store::SUMMARIES_MAX || found.len() >= enough {
            break;
        }
        beyond = page.last().map(|one| one.id);
    }
    Ok(found)
}

/// The epoch of the new session. It cannot change until the end of the transaction.
async fn epoch(tx: &mut Tx, project: &ProjectId, user: &UserId, bucket: Bucket) -> Result<Epoch, store::Error> {
    // An erasure of the user may delete the row between the two statements, but hardly three times in a row.
    for _ in 0..3 {
        tx.user_ensure(project, user, bucket).await?;
        if let Some(epoch) = tx.epoch_share(project, user, bucket).await? {
            return Ok(epoch);
        }
    }
    Err(store::Error::Inconsistent { table: "users", column: "epoch", row: project.to_string() })
}

/// Answers a repeated request with the session that the first attempt created, and with the same refresh token.
///
/// Refuses once that token has been used: the first answer did arrive, and a second holder of the chain would end the
/// session for both.
async fn repeat(
    tx: &mut Tx,
    project: &ProjectId,
    id: SessionId,
    now: Timestamp,
    policy: &Policy,
) -> Result<CreateResult, store::Error> {
    let ended = || Refusal::invalid("request_id", "was used for a session that has ended");
    let Some(StoredSession { session, chain, secret, .. }) = tx.session_lock(project, id).await? else {
        return Ok(Err(ended()));
    };
    if chain.generation() > 0 {
        return Ok(Err(Refusal::invalid("request_id", "was used for a session that has been refreshed since")));
    }
    let present = tx.epoch_share(project, &session.user, id.bucket()).await?;
    let live = present.is_some_and(|present| session.is_live(now, present));
    if !live {
        return Ok(Err(ended()));
    }
    let access_expires_at = session.access_expires_at(now, policy);
    let mut rotations = SessionRotations::default();
    rotations.push(&session, &chain, access_expires_at);
    tx.sessions_rotate(rotations).await?;
    Ok(Ok((Granted { session, secret, link: chain.head(), access_expires_at }, Origination::Repeated)))
}
