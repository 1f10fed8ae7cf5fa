//! After a restore from backup: sessions that ended after the backup was made must stay ended.

use crate::store::BulkRevocation;
use crate::store::Error;
use crate::store::Store;
use crate::store::Tx;
use sessiond_core::clock::Clock;
use sessiond_core::id::Bucket;
use sessiond_core::session::EndedBy;
use sessiond_core::session::RevokeReason;
use sessiond_core::session::policy::ACCESS_TOKEN_TTL_MAX;
use sessiond_core::session::revoked::RevocationTarget;

/// Ends every session of every project and starts a new history of the feed, so that every subscriber starts over. Returns
/// the number of projects.
///
/// # Errors
///
/// Fails if the database operation fails; nothing has changed then.
pub async fn after_restore(store: &Store, clock: &Clock) -> Result<usize, Error> {
    let now = clock.now();
    let work = move |mut tx: Tx| async move {
        // The epochs of tokens issued after the backup are unknown here. But an epoch is raised by one at a time, so it never
        // overtakes the clock in seconds: the clock is above them all, and above the epoch that an earlier restore set.
        let raised = tx.project_epochs_raise(now.as_seconds(), now).await?;
        let count = raised.len();
        for (project, epoch) in raised {
            let (ended, reason, by) = (RevocationTarget::Project { epoch }, RevokeReason::Restored, EndedBy::Operator);
            let access_expires_at = now + ACCESS_TOKEN_TTL_MAX;
            tx.bulk_revocation_insert(BulkRevocation {
                project,
                bucket: Bucket::from_number(0),
                ended,
                user: None,
                reason,
                at: now,
                access_expires_at,
                by,
                ip: None,
            })
            .await?;
        }
        tx.feed_history_insert(EndedBy::Operator, now).await?;
        tx.commit(count).await
    };
    store.transact("restored", work).await
}
