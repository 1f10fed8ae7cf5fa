//! Ending every session of a user at once. Not one by one: the user's epoch is raised, and what was opened under a smaller
//! one is over.

use uuid::Uuid;

use super::App;
use super::Caller;
use super::Error;
use super::credentials::Principal;
use super::idempotency::IdempotencyKey;
use super::list::named_user;
use super::list::own_user;
use super::projects::CLOCK_SKEW_MAX;
use super::turns::Key;
use crate::store;
use crate::store::BulkRevocation;
use crate::store::RequestIdStatus;
use crate::store::RequestOutcome;
use crate::store::Tx;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::id::UserId;
use sessiond_core::session::EndedBy;
use sessiond_core::session::Epoch;
use sessiond_core::session::Origin;
use sessiond_core::session::Refusal;
use sessiond_core::session::RevokeReason;
use sessiond_core::session::backchannel::ONE_BY_ONE_MAX;
use sessiond_core::session::policy::ACCESS_TOKEN_TTL_MAX;
use sessiond_core::session::revoked::Ended;

/// Whose sessions to end.
pub struct RevokeAllRequest {
    /// `me`, or a user's id.
    pub user_id: Option<String>,
    /// Whether the caller's own session goes on.
    pub except_current: bool,
    /// The id under which the request may be repeated.
    pub request_id: Option<Uuid>,
}

/// What was ended; or why nothing was.
type Outcome = Result<Cut, Refusal>;

/// How many sessions were live until now, among the newest ten thousand; and whether this is what ended them.
struct Cut {
    count: i32,
    is_news: bool,
}

impl Cut {
    /// What others have done.
    const fn before(count: i32) -> Self {
        Self { count, is_news: false }
    }
}

/// A cut-off, and all that it is judged by.
struct Order {
    project: ProjectId,
    user: UserId,
    /// The user's own session, which must be live.
    own: Option<SessionId>,
    spares_own: bool,
    idempotency: Option<IdempotencyKey>,
    by: EndedBy,
    origin: Origin,
    now: Timestamp,
}

impl App {
    /// Ends every session of a user: the caller's own, or any user's of a service's project. Answers with how many were
    /// live.
    ///
    /// # Errors
    ///
    /// A refusal of the caller or of the request; the store's.
    pub async fn revoke_all_sessions(
        &self,
        caller: Caller,
        request: RevokeAllRequest,
        origin: Origin,
    ) -> Result<i32, Error> {
        let now = self.clock.now();
        let (project, user, own, by) = match self.principal(caller).await? {
            // An impersonation ends only its own session.
            Principal::User(token) if token.impersonator().is_some() => {
                return Err(Refusal::InsufficientAccessType.into());
            }
            Principal::User(token) => {
                own_user(request.user_id.as_deref(), token.user())?;
                self.may_revoke_others(&token, now).await?;
                let session = token.session();
                (token.project().clone(), token.user().clone(), Some(session), EndedBy::User(session))
            }
            Principal::Service(_) if request.except_current => {
                return Err(Refusal::invalid("except_current", "must be false for a service: it has no session").into());
            }
            Principal::Service(service) => {
                let user = named_user(request.user_id.as_deref().unwrap_or_default())?;
                (service.project, user, None, EndedBy::Service(service.key))
            }
        };
        let caller = own.map(|own| (project.clone(), own));
        let content = content(&user, own, request.except_current);
        let idempotency = request.request_id.map(|id| IdempotencyKey::new(id, content.as_bytes()));
        let order = Order { project, user, own, spares_own: request.except_current, idempotency, by, origin, now };
        let session = order.own.map(|own| Key::Session(order.project.clone(), own));
        let keys = [Key::User(order.project.clone(), order.user.clone())].into_iter().chain(session);
        let turn = self.turns.take("revoke_all_sessions", keys).await?;
        let work = move |mut tx: Tx| async move {
            let done = match revoke(&mut tx, order).await? {
                Ok(cut) => tx.commit(Ok(cut)).await,
                // Nothing was ended, so nothing stays: the request id is free for a better try.
                Err(refusal) => tx.rollback(Err(refusal)).await,
            };
            drop(turn);
            done
        };
        let outcome = self.store.transact("revoke_all_sessions", work).await?;
        if let (Err(Refusal::SessionRevoked), Some((project, own))) = (&outcome, &caller) {
            self.feed.note_ended(project, *own);
        }
        let Cut { count, is_news } = outcome?;
        if !is_news {
            // The cut-off that it rests on may be another replica's.
            self.feed.catch_up().await;
        }
        Ok(count)
    }
}

/// Locks are taken in this order: the request id, the caller's session, the user.
async fn revoke(tx: &mut Tx, order: Order) -> Result<Outcome, store::Error> {
    let Order { project, user, own, spares_own, idempotency, by, origin, now } = order;
    if let Some(key) = idempotency {
        // Before the caller's session is looked at: the first try may have ended it, and a repeat answers as the first.
        match tx.request_claim(&project, key.id, RequestOutcome::RevokedAll(0), &key.digest, now).await? {
            RequestIdStatus::New => {}
            RequestIdStatus::Repeated(RequestOutcome::RevokedAll(count)) => return Ok(Ok(Cut::before(count))),
            RequestIdStatus::Repeated(RequestOutcome::Opened(_)) | RequestIdStatus::Conflict => {
                return Ok(Err(Refusal::invalid("request_id", "was used for another request")));
            }
        }
    }
    let held = match own {
        Some(id) => tx.session_lock(&project, id).await?.map(|stored| stored.session),
        None => None,
    };
    let Some(epoch) = tx.epoch_raise(&project, &user, now).await? else {
        // Nobody ever signed in under this name, or the user was erased.
        return Ok(if own.is_some() { Err(Refusal::SessionRevoked) } else { Ok(Cut::before(0)) });
    };
    // The user's row is ours now: the epoch before this one is the one that sessions are held against.
    let Some(raised) = tx.epoch_read(&project, &user).await? else { return Ok(Ok(Cut::before(0))) };
    let before = Epoch { user: epoch - 1, ..raised };
    if own.is_some() && held.is_none_or(|session| session.user != user || !session.is_live(now, before)) {
        return Ok(Err(Refusal::SessionRevoked));
    }
    let spared = own.filter(|_| spares_own);
    let ended = |one: &store::SessionSummary| one.lifetime.is_live(now, before) && Some(one.id) != spared;
    let mut ends = tx.session_summaries(&project, &user, None).await?;
    // By a clock that is behind, too.
    let may_matter =
        |one: &store::SessionSummary| one.lifetime.is_live(now - CLOCK_SKEW_MAX, before) && Some(one.id) != spared;
    // Beyond those that were looked at, any may be live.
    let may_be_more = ends.len() >= store::SUMMARIES_MAX;
    let is_news = may_be_more || ends.iter().any(may_matter);
    ends.retain(ended);
    // Sessions in which someone else acts as the user end too, but are not the user's to know of.
    let count = ends.iter().filter(|one| own.is_none() || !one.is_impersonation).count();
    let count = i32::try_from(count).unwrap_or(i32::MAX);
    let told = spared.is_some().then(|| ends.iter().map(|one| one.id).collect());
    let told = told.filter(|told: &Vec<_>| told.len() <= ONE_BY_ONE_MAX && !may_be_more);
    if let Some(spared) = spared {
        tx.session_spare(&project, spared, epoch).await?;
    }
    if let Some(key) = idempotency {
        tx.request_answer(&project, key.id, RequestOutcome::RevokedAll(count)).await?;
    }
    let (access_expires_at, ip) = (now + ACCESS_TOKEN_TTL_MAX, origin.ip);
    let (ended, reason) = (Ended::User { user, epoch, spared }, RevokeReason::RevokedAll);
    let revocation = BulkRevocation { project, ended, reason, at: now, access_expires_at, by, ip };
    // What fell to an earlier cut-off was told then: whoever asks again and again leaves no trail of it everywhere.
    if is_news {
        let record = tx.bulk_revocation_insert(revocation.clone()).await?;
        tx.bulk_revocation_queue(&revocation, record, told).await?;
    }
    Ok(Ok(Cut { count, is_news }))
}

/// The parts of a request that a repeat must agree in. The name in front tells it from requests of another kind.
fn content(user: &UserId, own: Option<SessionId>, spares_own: bool) -> String {
    let own = own.map(|id| id.to_string()).unwrap_or_default();
    format!("RevokeAllSessions\n{}\n{own}\n{spares_own}", user.as_str())
}
