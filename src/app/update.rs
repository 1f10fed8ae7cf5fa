//! Changing what the host application keeps with a session.

use super::App;
use super::Caller;
use super::Error;
use super::turns::Key;
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
    /// A refusal of the caller or of the request; [`Refusal::SessionNotFound`] also for one that has ended; the store's.
    pub async fn update_session(&self, caller: Caller, id: &str, change: Change) -> Result<Session, Error> {
        let service = self.service(caller).await?;
        let (now, project) = (self.clock.now(), service.project.clone());
        let id = SessionId::parse(id).ok_or_else(|| Refusal::invalid("session.id", "must be a session's id"))?;
        let change = change.check().map_err(Refusal::Schema)?;
        let turn = self.turns.take("update_session", [Key::Session(service.project.clone(), id)]).await?;
        let work = move |mut tx: Tx| async move {
            // Kept to the end, whichever it is.
            let _turn = turn;
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
