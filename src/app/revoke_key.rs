//! Revokes compromised keys. Tokens of a revoked key are not accepted any more, not even for a sign-out.

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
use sessiond_core::session::revoked::RevocationTarget;
use sessiond_core::token::schedule;
use sessiond_core::token::schedule::AfterRevocation;
use sessiond_core::token::schedule::Schedule;
use sessiond_core::token::sealing::Purpose;

/// The key is revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyRevoked {
    /// It was revoked before; nothing has changed.
    Before,
    /// It was not the active key, which stays active.
    Alone,
    /// It was to take over: this key, the active one, no longer retires.
    CalledOff(KeyId),
    /// It was the active key: this key is active now.
    Replaced(KeyId),
}

impl App {
    /// Revokes a project's key. Takes effect on every replica within [`super::keys::RELOAD_INTERVAL`]. If it was the active key,
    /// the same commit makes another one active.
    ///
    /// # Errors
    ///
    /// [`ProjectError::Missing`], [`ProjectError::MissingKey`]; as [`App::check_sealing`]; or if the database operation
    /// fails.
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
                            tx.bulk_revocation_insert(BulkRevocation::of_key(
                                name.clone(),
                                RevocationTarget::SigningKey(id),
                                now,
                            ))
                            .await?;
                        }
                        // Only the replicas use the key, so it is recorded in the audit but not published.
                        Purpose::Refresh => {
                            let revoked = EventKind::KeyRevoked(purpose.into(), id);
                            tx.event_insert(&AuditEvent::by_operator(name.clone(), revoked, now)).await?;
                        }
                    }
                    let mut others = unrevoked(&all);
                    others.retain(|(other, _)| *other != id);
                    Some(match schedule::after_revocation(&others, now) {
                        AfterRevocation::Unchanged => KeyRevoked::Alone,
                        AfterRevocation::Unretire(last) => {
                            for (_, schedule) in others.iter().filter(|(other, _)| *other == last) {
                                let schedule = Schedule { retired_at: None, ..*schedule };
                                tx.key_schedule(purpose, &name, last, schedule).await?;
                            }
                            KeyRevoked::CalledOff(last)
                        }
                        AfterRevocation::Succeed(plan) => {
                            let successor = succeed(&mut tx, &app.keys, purpose, &name, &others, &plan, now).await?;
                            KeyRevoked::Replaced(successor)
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
