//! Seals every private key with the current sealing key, so that the previous one can be removed.

use super::App;
use super::Error;
use super::ProjectError;
use crate::store;
use crate::store::AuditEvent;
use crate::store::EventKind;
use crate::store::RESEAL_PAGE;
use crate::store::Tx;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::token::sealing::Purpose;
use sessiond_core::token::sealing::Sealer;
use sessiond_core::token::sealing::UnsealError;

/// The result of resealing. Revoked keys are skipped, because nothing opens them any more.
#[derive(Debug, Default)]
pub struct Resealed {
    /// How many keys only the previous sealing key opened, and are now sealed with the current one.
    pub resealed: usize,
    /// How many keys the current one already opened.
    pub present: usize,
    /// The keys that open with neither. Left unchanged.
    pub unopened: Vec<UnsealError>,
}

impl App {
    /// Reseals every project's keys with the current sealing key, in small independent transactions. If interrupted, run it
    /// again.
    ///
    /// # Errors
    ///
    /// Fails if a database operation fails; keys that were resealed before stay resealed.
    pub async fn reseal(&self) -> Result<Resealed, ProjectError> {
        let mut total = Resealed::default();
        for (project, _) in self.projects().await? {
            for purpose in [Purpose::Signing, Purpose::Refresh] {
                let mut after = None;
                while let Some(last) = self.reseal_page(purpose, &project, after, &mut total).await? {
                    after = Some(last);
                }
            }
        }
        Ok(total)
    }

    /// Reseals a page of keys in one transaction. Returns the last key of a full page, after which there may be more.
    async fn reseal_page(
        &self,
        purpose: Purpose,
        project: &ProjectId,
        after: Option<KeyId>,
        total: &mut Resealed,
    ) -> Result<Option<KeyId>, ProjectError> {
        let (sealer, project, now) = (self.keys.sealer(), project.clone(), self.clock.now());
        let work = move |mut tx: Tx| async move {
            let page = reseal(&mut tx, &sealer, purpose, &project, after, now).await?;
            tx.commit(page).await
        };
        let (page, last) = self.store.transact("reseal", work).await.map_err(Error::from)?;
        total.resealed += page.resealed;
        total.present += page.present;
        total.unopened.extend(page.unopened);
        Ok(last)
    }
}

async fn reseal(
    tx: &mut Tx,
    sealer: &Sealer,
    purpose: Purpose,
    project: &ProjectId,
    after: Option<KeyId>,
    now: Timestamp,
) -> Result<(Resealed, Option<KeyId>), store::Error> {
    // Concurrent runs take turns, and the second one finds nothing left to do.
    tx.project_lock(project).await?;
    let keys = tx.keys_page(purpose, project, after).await?;
    let last = keys.last().filter(|_| keys.len() == RESEAL_PAGE).map(|key| key.id);
    let mut page = Resealed::default();
    for key in keys {
        match sealer.reseal(purpose, project, key.id, &key.sealed) {
            Ok(Some(sealed)) => {
                tx.key_reseal(purpose, project, key.id, sealed).await?;
                let event = EventKind::KeyResealed(purpose.into(), key.id);
                tx.event_insert(&AuditEvent::by_operator(project.clone(), event, now)).await?;
                page.resealed += 1;
            }
            Ok(None) => page.present += 1,
            Err(unopened) => page.unopened.push(unopened),
        }
    }
    Ok((page, last))
}
