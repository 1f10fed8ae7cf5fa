//! Ends every session of a project at once: raises the project's epoch, which ends every session that was created under a smaller
//! one.

use uuid::Uuid;

use super::App;
use super::Caller;
use super::Error;
use super::idempotency::IdempotencyKey;
use crate::store::BulkRevocation;
use crate::store::RequestIdStatus;
use crate::store::RequestOutcome;
use crate::store::Role;
use crate::store::Tx;
use sessiond_core::id::Bucket;
use sessiond_core::session::EndedBy;
use sessiond_core::session::Origin;
use sessiond_core::session::Refusal;
use sessiond_core::session::RevokeReason;
use sessiond_core::session::policy::ACCESS_TOKEN_TTL_MAX;
use sessiond_core::session::revoked::RevocationTarget;

/// All that a repeat has in common with the first request: the method's name distinguishes it from other requests.
const CONTENT: &[u8] = b"RevokeProjectSessions";

impl App {
    /// Ends every session of a service's project. One that is created at the same time may end too. A repeat with the same
    /// `request_id` ends nothing more.
    ///
    /// # Errors
    ///
    /// Fails if the caller or the request is refused, or if the database operation fails.
    pub async fn revoke_project_sessions(
        &self,
        caller: Caller,
        request_id: Option<Uuid>,
        origin: Origin,
    ) -> Result<(), Error> {
        let service = self.service(caller, Role::Admin).await?;
        let now = self.clock.now();
        let idempotency = request_id.map(|id| IdempotencyKey::new(id, CONTENT));
        // Concerns no single user, so it may be anywhere.
        let bucket = Bucket::from_number(0);
        let work = move |mut tx: Tx| async move {
            let project = service.project;
            if let Some(key) = idempotency {
                let outcome = RequestOutcome::RevokedAll(0);
                match tx.request_claim(&project, bucket, key.id, outcome, &key.digest, now).await? {
                    RequestIdStatus::New => {}
                    RequestIdStatus::Repeated(RequestOutcome::RevokedAll(_)) => return tx.commit(Ok(true)).await,
                    RequestIdStatus::Repeated(RequestOutcome::Opened(_)) | RequestIdStatus::Conflict => {
                        return tx.rollback(Err(Refusal::invalid("request_id", "was used for another request"))).await;
                    }
                }
            }
            if let Some(epoch) = tx.project_epoch_raise(&project, now).await? {
                tx.bulk_revocation_insert(BulkRevocation {
                    project,
                    bucket,
                    ended: RevocationTarget::Project { epoch },
                    user: None,
                    reason: RevokeReason::RevokedAll,
                    at: now,
                    access_expires_at: now + ACCESS_TOKEN_TTL_MAX,
                    by: EndedBy::Service(service.key),
                    ip: origin.ip,
                })
                .await?;
            }
            tx.commit(Ok(false)).await
        };
        let is_repeat = self.store.transact("revoke_project_sessions", work).await??;
        if is_repeat {
            // The first one may have been answered by another replica.
            self.feed.catch_up().await;
        }
        Ok(())
    }
}
