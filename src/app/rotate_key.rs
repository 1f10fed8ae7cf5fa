//! Rotates keys. The new key is published at once, becomes active when every verifier knows it, and the active key retires
//! at that moment.

use std::time::Duration;

use super::App;
use super::Error;
use super::ProjectError;
use super::keys::KeyCache;
use super::keys::RELOAD_INTERVAL;
use crate::store;
use crate::store::AuditEvent;
use crate::store::EventKind;
use crate::store::KeyRow;
use crate::store::Tx;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::token::jwks;
use sessiond_core::token::schedule;
use sessiond_core::token::schedule::KeyRotation;
use sessiond_core::token::schedule::MARGIN;
use sessiond_core::token::schedule::Schedule;
use sessiond_core::token::schedule::ScheduledKeys;
use sessiond_core::token::schedule::Succession;
use sessiond_core::token::schedule::Urgency;
use sessiond_core::token::sealing::Purpose;

/// How long a new key is known before it is used: a signing key, until every copy of the JWKS from before its publication
/// has expired; a refresh-token key, which only the replicas use, a few reload intervals.
const fn lead(purpose: Purpose) -> Duration {
    match purpose {
        Purpose::Signing => jwks::MAX_AGE.saturating_add(RELOAD_INTERVAL).saturating_add(MARGIN),
        Purpose::Refresh => RELOAD_INTERVAL.saturating_mul(3).saturating_add(MARGIN),
    }
}

/// A new key is in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotated {
    /// The new key.
    pub successor: KeyId,
    /// When it becomes active.
    pub from: Timestamp,
    /// The keys that retire then.
    pub retired: Vec<KeyId>,
}

impl App {
    /// Rotates a project's key of this purpose. One rotation at a time; [`Urgency::Emergency`] replaces the one in progress.
    ///
    /// # Errors
    ///
    /// [`ProjectError::Missing`], [`ProjectError::UnderWay`]; as [`App::check_sealing`]; or if the database operation fails.
    pub async fn rotate_key(
        &self,
        purpose: Purpose,
        project: ProjectId,
        urgency: Urgency,
    ) -> Result<Rotated, ProjectError> {
        self.check_sealing().await?;
        let (app, name) = (self.clone(), project.clone());
        let work = move |mut tx: Tx| async move {
            let Some(_) = tx.project_lock(&name).await? else { return tx.commit(None).await };
            // Read while the project is locked: an earlier time could lie before another operator's change.
            let now = app.clock.now();
            let keys = unrevoked(&tx.keys_of(purpose, &name).await?);
            let outcome = match schedule::rotate(&keys, now, urgency, lead(purpose)) {
                KeyRotation::UnderWay { successor, from } => Err((successor, from)),
                KeyRotation::Succeed(plan) => {
                    let successor = succeed(&mut tx, &app.keys, purpose, &name, &keys, &plan, now).await?;
                    Ok(Rotated { successor, from: plan.from, retired: plan.retire })
                }
            };
            tx.commit(Some(outcome)).await
        };
        match self.store.transact("rotate_key", work).await.map_err(Error::from)? {
            None => Err(ProjectError::Missing(project)),
            Some(Err((successor, from))) => Err(ProjectError::UnderWay { project, purpose, successor, from }),
            Some(Ok(rotated)) => Ok(rotated),
        }
    }

    /// A project's keys, including revoked ones, in the order in which they become active.
    ///
    /// # Errors
    ///
    /// Fails if the project is unknown, or if the database operation fails.
    pub async fn list_keys(&self, purpose: Purpose, project: ProjectId) -> Result<Vec<KeyRow>, ProjectError> {
        let keys = self.store.keys_list(purpose, project.clone()).await.map_err(Error::from)?;
        keys.ok_or(ProjectError::Missing(project))
    }
}

pub(super) fn unrevoked(keys: &[KeyRow]) -> Vec<(KeyId, Schedule)> {
    keys.iter().filter(|key| key.revoked_at.is_none()).map(|key| (key.id, key.schedule)).collect()
}

/// Carries out a succession, and records it in the audit. Returns the new active key.
pub(super) async fn succeed(
    tx: &mut Tx,
    cache: &KeyCache,
    purpose: Purpose,
    project: &ProjectId,
    keys: &ScheduledKeys,
    plan: &Succession,
    now: Timestamp,
) -> Result<KeyId, store::Error> {
    for (id, schedule) in keys.iter().filter(|(id, _)| plan.retire.contains(id)) {
        tx.key_schedule(purpose, project, *id, Schedule { retired_at: Some(plan.from), ..*schedule }).await?;
    }
    let schedule = Schedule::from(plan.from);
    let successor = match plan.successor {
        Some(successor) => {
            tx.key_schedule(purpose, project, successor, schedule).await?;
            successor
        }
        None => {
            let key = cache.new_key(purpose, project, schedule);
            let successor = key.id;
            tx.key_insert(purpose, project, key, now).await?;
            successor
        }
    };
    tx.event_insert(&AuditEvent::by_operator(project.clone(), EventKind::KeyRotated(purpose.into(), successor), now))
        .await?;
    Ok(successor)
}
