//! Changes what the host application stores with a session.

use serde_json::json;

use super::App;
use super::Caller;
use super::Error;
use super::bulkhead::Key;
use super::bulkhead::Lane;
use super::cookies::does_not_fit;
use crate::store::BulkRevocation;
use crate::store::Role;
use crate::store::SessionUpdate;
use crate::store::Tx;
use sessiond_core::id::SessionId;
use sessiond_core::session::EndedBy;
use sessiond_core::session::Refusal;
use sessiond_core::session::RevokeReason;
use sessiond_core::session::Session;
use sessiond_core::session::change::Change;
use sessiond_core::session::change::changed_fields;
use sessiond_core::session::revoked::RevocationTarget;

impl App {
    /// Changes a live session of a service's project. If its earlier access tokens are superseded, the feed says so.
    ///
    /// # Errors
    ///
    /// Fails if the caller or the request is refused, with [`Refusal::SessionNotFound`] also for an ended session; or if the
    /// database operation fails. If the project uses cookies, claims are refused with which an access token would not fit into one.
    pub async fn update_session(&self, caller: Caller, id: &str, change: Change) -> Result<Session, Error> {
        let service = self.service(caller, Role::Service).await?;
        let (now, project) = (self.clock.now(), service.project.clone());
        let id = SessionId::parse(id).ok_or_else(|| Refusal::invalid("session.id", "must be a session's id"))?;
        let change = change.check().map_err(Refusal::Schema)?;
        let permit =
            self.bulkhead.acquire("update_session", Lane::Use, [Key::Session(service.project.clone(), id)]).await?;
        let snapshot = self.keys.with(|snapshot| snapshot.policy(&project).is_some()).await?;
        let has_cookies = snapshot.policy(&project).is_some_and(|policy| policy.cookies.scope.is_on());
        let app = self.clone();
        let work = move |mut tx: Tx| async move {
            // Held until the transaction ends, whether it commits or rolls back.
            let _permit = permit;
            let Some(stored) = tx.session_lock(&service.project, id).await? else {
                return tx.commit(Err(NotChanged::Unknown)).await;
            };
            let mut session = stored.session;
            let present = tx.epoch_share(&service.project, &session.user, id.bucket()).await?;
            if !present.is_some_and(|present| session.is_live(now, present)) {
                return tx.commit(Err(NotChanged::Ended)).await;
            }
            let before = session.clone();
            change.apply(&mut session);
            // Without a usable key it cannot be told, and no token is issued either.
            if has_cookies && !app.fits_cookie(&snapshot, &session, now).unwrap_or(true) {
                return tx.commit(Err(NotChanged::TooLarge)).await;
            }
            let changed = changed_fields(&before, &session);
            let details = (!changed.is_empty()).then(|| json!({ "changed": changed }));
            let by = EndedBy::Service(service.key);
            tx.session_change(&session, SessionUpdate { by, at: now, details }).await?;
            if session.own_epoch != before.own_epoch {
                tx.bulk_revocation_insert(BulkRevocation {
                    project: service.project,
                    bucket: id.bucket(),
                    ended: RevocationTarget::Superseded { id, session_epoch: session.own_epoch },
                    user: Some(session.user.clone()),
                    reason: RevokeReason::Superseded,
                    at: now,
                    access_expires_at: stored.access_expires_at,
                    by,
                    ip: None,
                })
                .await?;
            }
            tx.commit(Ok(session)).await
        };
        let changed = self.store.transact("update_session", work).await?;
        Ok(changed.map_err(|why| match why {
            NotChanged::Unknown => Refusal::SessionNotFound,
            NotChanged::Ended => {
                self.feed.note_ended(&project, id);
                Refusal::SessionNotFound
            }
            NotChanged::TooLarge => does_not_fit(),
        })?)
    }
}

/// Why a session is not changed. A value, because an error would roll back.
enum NotChanged {
    Unknown,
    Ended,
    /// Its access token would not fit into a cookie.
    TooLarge,
}
