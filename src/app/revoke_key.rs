//! A compromised key, taken away: nothing under it is accepted any more, not even by a sign-out.

use super::App;
use super::Error;
use super::ProjectError;
use super::rotate_key::succeed;
use super::rotate_key::unrevoked;
use crate::store::AuditEvent;
use crate::store::BulkRevocation;
use crate::store::EventKind;
use crate::store::Tx;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::session::revoked::Ended;
use sessiond_core::token::schedule;
use sessiond_core::token::schedule::Aftermath;
use sessiond_core::token::schedule::Schedule;
use sessiond_core::token::sealing::Purpose;

/// A key is revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyRevoked {
    /// It was before, and nothing has changed.
    Before,
    /// Another key signs, as it did.
    Alone,
    /// It was to take over: this one now signs on.
    CalledOff(KeyId),
    /// It was the one that signed: now this one does.
    Replaced(KeyId),
}

impl App {
    /// Revokes a project's key. Every replica knows within [`super::keys::RELOAD_INTERVAL`]. Where it was the one that
    /// signed, another one does from the same commit on.
    ///
    /// # Errors
    ///
    /// [`ProjectError::Missing`], [`ProjectError::MissingKey`]; a key's, when ours is not the sealing key; the store's.
    pub async fn revoke_key(
        &self,
        purpose: Purpose,
        project: ProjectId,
        id: KeyId,
    ) -> Result<KeyRevoked, ProjectError> {
        self.check_sealing().await?;
        let (app, name) = (self.clone(), project.clone());
        let work = move |mut tx: Tx| async move {
            let Some(_) = tx.project_lock(&name).await? else { return tx.commit(None).await };
            let now = app.clock.now();
            let all = tx.keys_of(purpose, &name).await?;
            let outcome = match all.iter().find(|key| key.id == id) {
                None => None,
                Some(key) if key.revoked_at.is_some() => Some(KeyRevoked::Before),
                Some(_) => {
                    tx.key_revoke(purpose, &name, id, now).await?;
                    match purpose {
                        Purpose::Signing => {
                            tx.bulk_revocation_insert(BulkRevocation::of_key(name.clone(), Ended::SigningKey(id), now))
                                .await?;
                        }
                        // Nobody but the replicas knows the key, so it is for the audit alone.
                        Purpose::Refresh => {
                            let revoked = EventKind::KeyRevoked(purpose.into(), id);
                            tx.event_insert(&AuditEvent::of_key(name.clone(), revoked, now)).await?;
                        }
                    }
                    let mut others = unrevoked(&all);
                    others.retain(|(other, _)| *other != id);
                    Some(match schedule::bereave(&others, now) {
                        Aftermath::Nothing => KeyRevoked::Alone,
                        Aftermath::CalledOff(last) => {
                            for (_, schedule) in others.iter().filter(|(other, _)| *other == last) {
                                let schedule = Schedule { retired_at: None, ..*schedule };
                                tx.key_schedule(purpose, &name, last, schedule).await?;
                            }
                            KeyRevoked::CalledOff(last)
                        }
                        Aftermath::Succeed(plan) => {
                            let heir = succeed(&mut tx, &app.keys, purpose, &name, &others, &plan, now).await?;
                            KeyRevoked::Replaced(heir)
                        }
                    })
                }
            };
            tx.commit(Some(outcome)).await
        };
        match self.store.transact("revoke_key", work).await.map_err(Error::from)? {
            None => Err(ProjectError::Missing(project)),
            Some(None) => Err(ProjectError::MissingKey { project, purpose, id }),
            Some(Some(revoked)) => Ok(revoked),
        }
    }
}
