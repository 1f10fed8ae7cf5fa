//! Changes what the host application stores with a session.

use super::App;
use super::Caller;
use super::Error;
use super::bulkhead::Key;
use crate::store::Tx;
use sessiond_core::id::SessionId;
use sessiond_core::session::Refusal;
use sessiond_core::session::Session;
use sessiond_core::session::change::Change;

impl App {
    /// Changes a live session of a service's project.
    ///
    /// # Errors
    ///
    /// Fails if the caller or the request is refused, with [`Refusal::SessionNotFound`] also for an ended session; or if the
    /// database operation fails.
    pub async fn update_session(&self, caller: Caller, id: &str, change: Change) -> Result<Session, Error> {
        let service = self.service(caller).await?;
        let (now, project) = (self.clock.now(), service.project.clone());
        let id = SessionId::parse(id).ok_or_else(|| Refusal::invalid("session.id", "must be a session's id"))?;
        let change = change.check().map_err(Refusal::Schema)?;
        let permit = self.bulkhead.acquire("update_session", [Key::Session(service.project.clone(), id)]).await?;
        let work = move |mut tx: Tx| async move {
            // Held until the transaction ends, whether it commits or rolls back.
            let _permit = permit;
            let Some(stored) = tx.session_lock(&service.project, id).await? else { return tx.commit(Err(false)).await };
            let mut session = stored.session;
            let present = tx.epoch_share(&service.project, &session.user).await?;
            if !present.is_some_and(|present| session.is_live(now, present)) {
                return tx.commit(Err(true)).await;
            }
            change.apply(&mut session);
            tx.session_change(&session).await?;
            tx.commit(Ok(session)).await
        };
        let changed = self.store.transact("update_session", work).await?;
        Ok(changed.map_err(|has_ended: bool| {
            if has_ended {
                self.feed.note_ended(&project, id);
            }
            Refusal::SessionNotFound
        })?)
    }
}
