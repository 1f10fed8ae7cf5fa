//! Ends every session of a user at once. Not one by one: it raises the user's epoch, which ends every session that was created
//! under a smaller one.

use uuid::Uuid;

use super::App;
use super::Caller;
use super::Error;
use super::bulkhead::Key;
use super::bulkhead::Lane;
use super::credentials::VerifiedCaller;
use super::idempotency::IdempotencyKey;
use super::list::check_own_user;
use super::list::named_user;
use super::projects::CLOCK_SKEW_MAX;
use crate::store;
use crate::store::BulkRevocation;
use crate::store::RefusedAttempt;
use crate::store::RequestIdStatus;
use crate::store::RequestOutcome;
use crate::store::Role;
use crate::store::Tx;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::Bucket;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::id::UserId;
use sessiond_core::session::EndedBy;
use sessiond_core::session::Epoch;
use sessiond_core::session::Origin;
use sessiond_core::session::Refusal;
use sessiond_core::session::RevokeReason;
use sessiond_core::session::backchannel::SESSION_NOTICES_MAX;
use sessiond_core::session::policy::ACCESS_TOKEN_TTL_MAX;
use sessiond_core::session::revoked::RevocationTarget;

/// Whose sessions to end.
pub struct RevokeAllRequest {
    /// `me`, or a user's id.
    pub user_id: Option<String>,
    /// Whether to keep the caller's own session.
    pub except_current: bool,
    /// The session to keep, named by a service.
    pub spared_session_id: Option<String>,
    /// The id under which the request may be repeated.
    pub request_id: Option<Uuid>,
}

/// A refusal is a value, so that the transaction decides what to do with it.
type RevokeAllResult = Result<CutOffResult, Refusal>;

struct CutOffResult {
    /// How many sessions were live until now, among the newest ten thousand.
    count: i32,
    /// Whether this request may have ended any, so that a revocation is published.
    is_effective: bool,
}

impl CutOffResult {
    /// The sessions had ended before.
    const fn unchanged(count: i32) -> Self {
        Self { count, is_effective: false }
    }
}

/// A checked request, and what the decision depends on.
struct CutOffRequest {
    project: ProjectId,
    user: UserId,
    /// The user's own session, which must be live.
    own: Option<SessionId>,
    spares_own: bool,
    /// The session that a service keeps, if it is live.
    spared: Option<SessionId>,
    idempotency: Option<IdempotencyKey>,
    by: EndedBy,
    origin: Origin,
    now: Timestamp,
    /// The user's.
    bucket: Bucket,
}

impl App {
    /// Ends every session of a user: of the calling user, or of any user of a service's project. Returns how many were live.
    ///
    /// # Errors
    ///
    /// Fails if the caller or the request is refused, or if the database operation fails.
    pub async fn revoke_all_sessions(
        &self,
        caller: Caller,
        request: RevokeAllRequest,
        origin: Origin,
    ) -> Result<i32, Error> {
        let now = self.clock.now();
        let (project, user, own, by) = match self.principal(caller, Role::Service).await? {
            // An impersonator can end only the impersonated session.
            VerifiedCaller::User(token) if token.impersonator().is_some() => {
                return Err(Refusal::InsufficientAccessType.into());
            }
            VerifiedCaller::User(_) if request.spared_session_id.is_some() => {
                let expected = "must be absent for a user: `except_current` keeps the current session";
                return Err(Refusal::invalid("spared_session_id", expected).into());
            }
            VerifiedCaller::User(token) => {
                check_own_user(request.user_id.as_deref(), token.user())?;
                self.may_revoke_others(&token, now).await?;
                let session = token.session();
                (token.project().clone(), token.user().clone(), Some(session), EndedBy::User(session))
            }
            VerifiedCaller::Service(_) if request.except_current => {
                return Err(Refusal::invalid("except_current", "must be false for a service: it has no session").into());
            }
            VerifiedCaller::Service(service) => {
                let user = named_user(request.user_id.as_deref().unwrap_or_default())?;
                (service.project, user, None, EndedBy::Service(service.key))
            }
        };
        let caller = own.map(|own| (project.clone(), own));
        let spared = request.spared_session_id.as_deref();
        let spared = spared.map(|id| {
            SessionId::parse(id).ok_or_else(|| Refusal::invalid("spared_session_id", "must be a session's id"))
        });
        let spared = spared.transpose()?;
        let content = content(&user, own, request.except_current, spared);
        let idempotency = request.request_id.map(|id| IdempotencyKey::new(id, content.as_bytes()));
        let bucket = self.bucket(&project, &user).await?;
        let spares_own = request.except_current;
        let request = CutOffRequest { project, user, own, spares_own, spared, idempotency, by, origin, now, bucket };
        let session = request.own.or(spared).map(|own| Key::Session(request.project.clone(), own));
        let keys = [Key::User(request.project.clone(), request.user.clone())].into_iter().chain(session);
        let permit = self.bulkhead.acquire("revoke_all_sessions", Lane::Revoke, keys).await?;
        let work = move |mut tx: Tx| async move {
            let done = match revoke(&mut tx, request).await? {
                Ok(cut) => tx.commit(Ok(cut)).await,
                // Nothing was ended, so nothing is kept: the request id can be used again.
                Err(refusal) => tx.rollback(Err(refusal)).await,
            };
            drop(permit);
            done
        };
        let outcome = self.store.transact("revoke_all_sessions", work).await?;
        if let (Err(Refusal::SessionRevoked), Some((project, own))) = (&outcome, &caller) {
            self.feed.note_ended(project, *own);
            self.note_refused_session(project, *own, RefusedAttempt::SessionRevoked);
        }
        let CutOffResult { count, is_effective } = outcome?;
        if !is_effective {
            // The earlier cut-off may be another replica's.
            self.feed.catch_up().await;
        }
        Ok(count)
    }
}

/// Locks are taken in this order: the request id, the caller's session or the one to spare, the user.
async fn revoke(tx: &mut Tx, request: CutOffRequest) -> Result<RevokeAllResult, store::Error> {
    let CutOffRequest { project, user, own, spares_own, spared, idempotency, by, origin, now, bucket } = request;
    if let Some(key) = idempotency {
        // Before the caller's session is checked: the first attempt may have ended it, and a repeat gets the same answer.
        match tx.request_claim(&project, bucket, key.id, RequestOutcome::RevokedAll(0), &key.digest, now).await? {
            RequestIdStatus::New => {}
            RequestIdStatus::Repeated(RequestOutcome::RevokedAll(count)) => {
                return Ok(Ok(CutOffResult::unchanged(count)));
            }
            RequestIdStatus::Repeated(RequestOutcome::Opened(_)) | RequestIdStatus::Conflict => {
                return Ok(Err(Refusal::invalid("request_id", "was used for another request")));
            }
        }
    }
    let held = match own.or(spared) {
        Some(id) => tx.session_lock(&project, id).await?.map(|stored| stored.session),
        None => None,
    };
    // One that is unknown may have ended and been deleted since, and then it is not kept either; unless it was another user's.
    let is_users = |id: SessionId| held.as_ref().map_or(id.bucket() == bucket, |session| session.user == user);
    if !spared.is_none_or(is_users) {
        return Ok(Err(Refusal::SessionNotFound));
    }
    let Some(epoch) = tx.epoch_raise(&project, &user, bucket, now).await? else {
        // No such user has ever signed in, or the user was erased.
        return Ok(if own.is_some() { Err(Refusal::SessionRevoked) } else { Ok(CutOffResult::unchanged(0)) });
    };
    // The user's row is locked now: whether sessions were live is decided by the epoch before this one.
    let Some(raised) = tx.epoch_read(&project, &user, bucket).await? else { return Ok(Ok(CutOffResult::unchanged(0))) };
    let before = Epoch { user: epoch - 1, ..raised };
    if own.is_some() && held.as_ref().is_none_or(|session| session.user != user || !session.is_live(now, before)) {
        return Ok(Err(Refusal::SessionRevoked));
    }
    // One that has ended is not kept.
    let spared = spared.filter(|_| held.is_some_and(|session| session.is_live(now, before)));
    let spared = own.filter(|_| spares_own).or(spared);
    let ended = |one: &store::SessionSummary| one.lifetime.is_live(now, before) && Some(one.id) != spared;
    let mut ends = tx.session_summaries(&project, &user, bucket, None).await?;
    // Includes sessions that another replica, whose clock is behind, may still accept.
    let may_matter =
        |one: &store::SessionSummary| one.lifetime.is_live(now - CLOCK_SKEW_MAX, before) && Some(one.id) != spared;
    // Any of the sessions that were not read may be live.
    let may_be_more = ends.len() >= store::SUMMARIES_MAX;
    let is_effective = may_be_more || ends.iter().any(may_matter);
    ends.retain(ended);
    // Impersonated sessions end too, but are not counted for the user, who cannot see them.
    let count = ends.iter().filter(|one| own.is_none() || !one.is_impersonation).count();
    let count = i32::try_from(count).unwrap_or(i32::MAX);
    let one_by_one = spared.is_some().then(|| ends.iter().map(|one| one.id).collect());
    let one_by_one = one_by_one.filter(|ids: &Vec<_>| ids.len() <= SESSION_NOTICES_MAX && !may_be_more);
    if let Some(spared) = spared {
        tx.session_spare(&project, spared, epoch).await?;
    }
    if let Some(key) = idempotency {
        tx.request_answer(&project, bucket, key.id, RequestOutcome::RevokedAll(count)).await?;
    }
    let (access_expires_at, ip) = (now + ACCESS_TOKEN_TTL_MAX, origin.ip);
    let (ended, reason) = (RevocationTarget::User { user, epoch, spared }, RevokeReason::RevokedAll);
    let revocation = BulkRevocation { project, bucket, ended, user: None, reason, at: now, access_expires_at, by, ip };
    // Sessions that an earlier cut-off ended were published then: repeated requests add no records.
    if is_effective {
        let record = tx.bulk_revocation_insert(revocation.clone()).await?;
        tx.bulk_revocation_queue(&revocation, record, one_by_one).await?;
    }
    Ok(Ok(CutOffResult { count, is_effective }))
}

/// The parts of a request that a repeat must have in common with it. The method's name distinguishes it from other requests.
fn content(user: &UserId, own: Option<SessionId>, spares_own: bool, spared: Option<SessionId>) -> String {
    let own = own.map(|id| id.to_string()).unwrap_or_default();
    // Without one as in earlier releases, so that a repeat is recognised across an upgrade.
    let spared = spared.map(|id| format!("\n{id}")).unwrap_or_default();
    format!("RevokeAllSessions\n{}\n{own}\n{spares_own}{spared}", user.as_str())
}
