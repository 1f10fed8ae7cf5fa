//! Every private key under the present sealing key, so that the previous one can go.

use super::App;
use super::Error;
use super::ProjectError;
use crate::store;
use crate::store::RESEAL_PAGE;
use crate::store::Tx;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::token::sealing::CannotOpen;
use sessiond_core::token::sealing::Purpose;
use sessiond_core::token::sealing::Sealer;

/// What there was to reseal. Revoked keys are passed over: nothing opens them any more.
#[derive(Debug, Default)]
pub struct Resealed {
    /// How many keys only the previous sealing key opened: now the present one does.
    pub resealed: usize,
    /// How many the present one opened already.
    pub present: usize,
    /// The keys that open with neither: left as they are.
    pub unopened: Vec<CannotOpen>,
}

impl App {
    /// Seals every project's keys anew under the present sealing key. In small transactions, each of which stands by
    /// itself: interrupted, it is simply run again.
    ///
    /// # Errors
    ///
    /// The store's; what was done until then stays done.
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

    /// One transaction's worth; the last key of a full page, behind which there may be more.
    async fn reseal_page(
        &self,
        purpose: Purpose,
        project: &ProjectId,
        after: Option<KeyId>,
        total: &mut Resealed,
    ) -> Result<Option<KeyId>, ProjectError> {
        let (sealer, project) = (self.keys.sealer(), project.clone());
        let work = move |mut tx: Tx| async move {
            let page = reseal(&mut tx, &sealer, purpose, &project, after).await?;
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
) -> Result<(Resealed, Option<KeyId>), store::Error> {
    // Two that reseal at once take turns, and the second finds nothing left to do.
    tx.project_lock(project).await?;
    let keys = tx.keys_page(purpose, project, after).await?;
    let last = keys.last().filter(|_| keys.len() == RESEAL_PAGE).map(|key| key.id);
    let mut page = Resealed::default();
    for key in keys {
        match sealer.reseal(purpose, project, key.id, &key.sealed) {
            Ok(Some(sealed)) => {
                tx.key_reseal(purpose, project, key.id, sealed).await?;
                page.resealed += 1;
            }
            Ok(None) => page.present += 1,
            Err(unopened) => page.unopened.push(unopened),
        }
    }
    Ok((page, last))
}
