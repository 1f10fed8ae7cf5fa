//! Opening a session.

use super::App;
use super::Caller;
use super::Client;
use super::Error;
use super::Grant;
use super::Service;
use super::grant::Granted;
use super::idempotency::IdempotencyKey;
use super::turns::Key;
use crate::device;
use crate::store;
use crate::store::AuditEvent;
use crate::store::EventKind;
use crate::store::RequestIdStatus;
use crate::store::RequestOutcome;
use crate::store::Revocation;
use crate::store::StoredSession;
use crate::store::Tx;
use sessiond_core::clock;
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
use sessiond_core::session::create::CreateRequest;
use sessiond_core::session::create::NewSession;
use sessiond_core::session::lifecycle::Impersonator;
use sessiond_core::session::limit;
use sessiond_core::session::limit::Admission;
use sessiond_core::session::limit::LiveSession;
use sessiond_core::session::rotation::Chain;
use sessiond_core::token::refresh::RowSecret;

/// What the transaction came to. A refusal is a value here, like any other outcome.
type Outcome = Result<(Granted, Was), Refusal>;

/// Whether a session was opened now, or by an earlier try of the same request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Was {
    Opened,
    Repeated,
}

impl App {
    /// Opens a session for a service; on behalf of a client, only in the client's project. With an idempotency key, a
    /// repeat answers with the session that the first request opened.
    ///
    /// # Errors
    ///
    /// A refusal of the caller, of the client or of the request; the store's; a key's.
    pub async fn create_session(
        &self,
        caller: Caller,
        client: Option<Client>,
        request: CreateRequest,
        idempotency: Option<IdempotencyKey>,
        origin: Origin,
    ) -> Result<Grant, Error> {
        let Service { project, key, .. } = self.service_within(caller, client).await?;
        let now = self.clock.now();
        // A key that was found is of a project that exists; it may be younger than the snapshot.
        let snapshot = self.keys.with(|snapshot| snapshot.policy(&project).is_some()).await?;
        let policy = snapshot.policy(&project).ok_or_else(|| super::KeyError::NoKey(project.clone()))?.clone();
        let mut new = request.check(now, &policy).map_err(Refusal::Schema)?;
        new.device = new.device.named(device::name);

        let sign_in = SignIn { project, new, idempotency, by: EndedBy::Service(key), origin, now, policy };
        let turn = self.turns.take("create_session", [Key::User(sign_in.project.clone(), sign_in.new.user.clone())]);
        let turn = turn.await?;
        let work = move |mut tx: Tx| async move {
            let done = match open(&mut tx, sign_in).await? {
                Ok(opened) => tx.commit(Ok(opened)).await,
                // Nothing was opened, so nothing stays: the request id is free for a better try.
                Err(refusal) => tx.rollback(Err(refusal)).await,
            };
            drop(turn);
            done
        };
        let (granted, was) = self.store.transact("create_session", work).await??;
        if granted.session.impersonator.is_some() && was == Was::Opened {
            self.metrics.impersonation();
        }
        self.grant(&snapshot, granted, now)
    }
}

/// A sign-in, checked, and all that it is judged by.
struct SignIn {
    project: ProjectId,
    new: NewSession,
    idempotency: Option<IdempotencyKey>,
    /// Who ends a session that is replaced.
    by: EndedBy,
    origin: Origin,
    now: Timestamp,
    policy: Policy,
}

/// Locks are taken in this order: the user's queue, the request id, sessions, the user.
async fn open(tx: &mut Tx, sign_in: SignIn) -> Result<Outcome, store::Error> {
    let SignIn { project, new, idempotency, by, origin, now, policy } = sign_in;
    let limit = policy.sessions.filter(|_| new.impersonator.is_none());
    if limit.is_some() {
        tx.user_queue(&project, &new.user).await?;
    }
    let id = clock::new_session_id(now);
    if let Some(key) = idempotency {
        match tx.request_claim(&project, key.id, RequestOutcome::Opened(id), &key.digest, now).await? {
            RequestIdStatus::New => {}
            RequestIdStatus::Repeated(RequestOutcome::Opened(session)) => {
                return repeat(tx, &project, session, now, &policy).await;
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
            limit::admit(live_sessions(tx, &project, &new.user, replaced, enough, now).await?, limit)
        }
        None => Admission::Admitted(vec![]),
    };
    if let Some(replaced) = replaced {
        // With those that make room, because of the one order: none of them may be waited for while holding another.
        let ids = [admission.evicted(), &[replaced]].concat();
        let locked = tx.sessions_lock(&project, &ids).await?;
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
    let epoch = epoch(tx, &project, &new.user).await?;
    let session = Session::open(id, project, epoch, new, now);
    let (chain, secret) = (Chain::start(now), RowSecret::generate());
    let access_expires_at = session.access_expires_at(now, &policy);
    if let Some(Impersonator(impersonator)) = session.impersonator.clone() {
        let user = Some(session.user.as_str().to_owned());
        let kind = EventKind::ImpersonationOpened { session: id, user, impersonator };
        // From the device of whoever acts, where the service says that; else from the service itself.
        let ip = session.device.ip.or(origin.ip);
        tx.event_insert(&AuditEvent { project: session.project.clone(), kind, at: now, by, ip }).await?;
    }
    let granted = Granted { session: session.clone(), secret: secret.clone(), link: chain.head(), access_expires_at };
    tx.session_insert(StoredSession { session, chain, secret, access_expires_at }).await?;
    Ok(Ok((granted, Was::Opened)))
}

/// How many pages of sessions, live or over, are looked through for those that count against a limit: a million rows.
const SUMMARY_PAGES_MAX: usize = 100;

/// The user's live sessions, as far as they count against a limit: not the one that is replaced. Looks no further once
/// there are enough.
async fn live_sessions(
    tx: &mut Tx,
    project: &ProjectId,
    user: &UserId,
    replaced: Option<SessionId>,
    enough: usize,
    now: Timestamp,
) -> Result<Vec<LiveSession>, store::Error> {
    // Not locked yet: sessions come before the user. Whoever raises the epoch meanwhile makes only more room.
    let Some(present) = tx.epoch_read(project, user).await? else { return Ok(vec![]) };
    let counts = |one: &store::SessionSummary| {
        !one.is_impersonation && one.lifetime.is_live(now, present) && Some(one.id) != replaced
    };
    let (mut found, mut beyond) = (vec![], None);
    for _ in 0..SUMMARY_PAGES_MAX {
        let page = tx.session_summaries(project, user, beyond).await?;
        found.extend(
            page.iter()
                .filter(|one| counts(one))
                .map(|one| LiveSession { session: one.id, last_used_at: one.last_used_at }),
        );
        // There are no more live ones than the limit allows, unless it was lowered since.
        if page.len() < store::SUMMARIES_MAX || found.len() >= enough {
            break;
        }
        beyond = page.last().map(|one| one.id);
    }
    Ok(found)
}

/// The epoch to open a session under. It stays as it is until the end of the transaction.
async fn epoch(tx: &mut Tx, project: &ProjectId, user: &UserId) -> Result<Epoch, store::Error> {
    // Whoever erases the user may take the row away between the two. Nobody does that over and over.
    for _ in 0..3 {
        tx.user_ensure(project, user).await?;
        if let Some(epoch) = tx.epoch_share(project, user).await? {
            return Ok(epoch);
        }
    }
    Err(store::Error::Inconsistent { table: "users", column: "epoch", row: project.to_string() })
}

/// Answers a repeat with the session that the first try opened, and with the refresh token that it was given.
///
/// Once that token has been used the first answer did arrive, and its client has gone on: a second holder of the chain would
/// end the session for both.
async fn repeat(
    tx: &mut Tx,
    project: &ProjectId,
    id: SessionId,
    now: Timestamp,
    policy: &Policy,
) -> Result<Outcome, store::Error> {
    let over = || Refusal::invalid("request_id", "was used for a session that has ended");
    let Some(StoredSession { session, chain, secret, .. }) = tx.session_lock(project, id).await? else {
        return Ok(Err(over()));
    };
    if chain.generation() > 0 {
        return Ok(Err(Refusal::invalid("request_id", "was used for a session that is in use by now")));
    }
    let live = tx.epoch_share(project, &session.user).await?.is_some_and(|present| session.is_live(now, present));
    if !live {
        return Ok(Err(over()));
    }
    let access_expires_at = session.access_expires_at(now, policy);
    tx.session_rotate(&session, &chain, access_expires_at).await?;
    Ok(Ok((Granted { session, secret, link: chain.head(), access_expires_at }, Was::Repeated)))
}
