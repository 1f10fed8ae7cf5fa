//! Erases users.

use serde_json::json;

use super::App;
use super::Caller;
use super::Error;
use super::bulkhead::Key;
use super::bulkhead::Lane;
use super::list::named_user;
use crate::store;
use crate::store::AuditEvent;
use crate::store::EventKind;
use crate::store::Revocation;
use crate::store::Role;
use crate::store::Tx;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::Bucket;
use sessiond_core::id::ProjectId;
use sessiond_core::id::UserId;
use sessiond_core::session::EndedBy;
use sessiond_core::session::Origin;
use sessiond_core::session::RevokeReason;

/// The most rows that one transaction deletes or changes, so that none holds its locks for long.
const ROWS_MAX: usize = 500;

/// The user to erase, and what the audit records about it.
#[derive(Clone)]
struct Erasure {
    project: ProjectId,
    user: UserId,
    by: EndedBy,
    origin: Origin,
    now: Timestamp,
    bucket: Bucket,
}

impl App {
    /// Ends and deletes every session of a user, and removes the user's id and addresses from the audit and from deliveries.
    /// Last, records that a user was erased.
    /// Returns the number of deleted sessions.
    ///
    /// First all sessions end, then rows are deleted, a few hundred at a time; a repeat resumes where a failed call stopped.
    /// A concurrent sign-in is either erased too, or becomes the first session of a new user with this id.
    ///
    /// # Errors
    ///
    /// Fails if the caller or the request is refused, or if the database operation fails.
    pub async fn erase_user(&self, caller: Caller, user_id: &str, origin: Origin) -> Result<i32, Error> {
        let service = self.service(caller, Role::Admin).await?;
        let (user, now) = (named_user(user_id)?, self.clock.now());
        let bucket = self.bucket(&service.project, &user).await?;
        let erasure =
            Erasure { project: service.project, user, bucket, by: EndedBy::Service(service.key), origin, now };

        self.step(&erasure, |mut tx, erasure| async move {
            tx.epoch_raise(&erasure.project, &erasure.user, erasure.bucket, erasure.now).await?;
            tx.commit(()).await
        })
        .await?;
        let mut deleted = 0;
        loop {
            deleted += self.while_full(&erasure, delete_some).await?;
            if self.step(&erasure, delete_user).await? {
                break;
            }
        }
        self.while_full(&erasure, anonymise_revocations).await?;
        self.while_full(&erasure, anonymise_events).await?;
        self.while_full(&erasure, anonymise_deliveries).await?;
        self.step(&erasure, move |mut tx, Erasure { project, by, now, .. }| async move {
            let details = Some(json!({ "sessions": deleted }));
            let kind = EventKind::UserErased;
            tx.event_insert(&AuditEvent { project, kind, at: now, by, ip: None, details }).await?;
            tx.commit(()).await
        })
        .await?;
        Ok(i32::try_from(deleted).unwrap_or(i32::MAX))
    }

    async fn step<T, F, W>(&self, erasure: &Erasure, work: F) -> Result<T, Error>
    where
        F: FnOnce(Tx, Erasure) -> W + Send + 'static,
        W: Future<Output = Result<store::Done<T>, store::Error>> + Send,
        T: Send + 'static,
    {
        let erasure = erasure.clone();
        let permit = self
            .bulkhead
            .acquire("erase_user", Lane::Revoke, [Key::User(erasure.project.clone(), erasure.user.clone())])
            .await?;
        let step = move |tx| async move {
            // Held until the transaction ends, whether it commits or rolls back.
            let _permit = permit;
            work(tx, erasure).await
        };
        Ok(self.store.transact("erase_user", step).await?)
    }

    /// Repeats a step until one changes fewer than [`ROWS_MAX`] rows. Returns the total.
    async fn while_full<F, W>(&self, erasure: &Erasure, work: F) -> Result<usize, Error>
    where
        F: Fn(Tx, Erasure) -> W + Copy + Send + 'static,
        W: Future<Output = Result<store::Done<usize>, store::Error>> + Send,
    {
        let mut done = 0;
        loop {
            let rows = self.step(erasure, work).await?;
            done += rows;
            if rows < ROWS_MAX {
                return Ok(done);
            }
        }
    }
}

/// Publishes a revocation for each session: the user's epoch is about to be deleted, so it cannot revoke them.
async fn delete_some(mut tx: Tx, erasure: Erasure) -> Result<store::Done<usize>, store::Error> {
    let Erasure { project, user, by, origin, now, bucket } = erasure;
    let some = tx.sessions_of_user(&project, &user, bucket, ROWS_MAX).await?;
    let end = |session| Revocation {
        project: project.clone(),
        session,
        at: now,
        reason: RevokeReason::Erased,
        by,
        ip: origin.ip,
    };
    let ends: Vec<_> = some.iter().copied().map(end).collect();
    tx.sessions_revoke(&ends).await?;
    let rows = tx.sessions_erase(&project, &some).await?;
    tx.commit(rows).await
}

/// Deletes the user's row unless the user has signed in meanwhile. Returns whether it was deleted.
async fn delete_user(mut tx: Tx, erasure: Erasure) -> Result<store::Done<bool>, store::Error> {
    let Erasure { project, user, now, bucket, .. } = erasure;
    // Locks the row: a concurrent sign-in waits, and a finished one is visible.
    tx.epoch_raise(&project, &user, bucket, now).await?;
    if !tx.sessions_of_user(&project, &user, bucket, 1).await?.is_empty() {
        return tx.rollback(false).await;
    }
    tx.user_delete(&project, &user, bucket).await?;
    tx.commit(true).await
}

async fn anonymise_revocations(mut tx: Tx, erasure: Erasure) -> Result<store::Done<usize>, store::Error> {
    let rows = tx.revocations_anonymise(&erasure.project, &erasure.user, erasure.bucket, ROWS_MAX).await?;
    tx.commit(rows).await
}

async fn anonymise_events(mut tx: Tx, erasure: Erasure) -> Result<store::Done<usize>, store::Error> {
    let rows = tx.events_anonymise(&erasure.project, &erasure.user, erasure.bucket, ROWS_MAX).await?;
    tx.commit(rows).await
}

/// Called after the last delivery was queued. A pending delivery keeps the user's id until it finishes, because it could not be
/// sent without.
async fn anonymise_deliveries(mut tx: Tx, erasure: Erasure) -> Result<store::Done<usize>, store::Error> {
    let rows = tx.deliveries_forget(&erasure.project, &erasure.user, erasure.bucket, ROWS_MAX).await?;
    tx.commit(rows).await
}
