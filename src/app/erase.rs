//! Forgetting a user.

use super::App;
use super::Caller;
use super::Error;
use super::list::named_user;
use super::turns::Key;
use crate::store;
use crate::store::Revocation;
use crate::store::Role;
use crate::store::Tx;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::id::UserId;
use sessiond_core::session::EndedBy;
use sessiond_core::session::Origin;
use sessiond_core::session::Refusal;
use sessiond_core::session::RevokeReason;

/// The most rows that one transaction deletes or changes, so that none holds its locks for long.
const ROWS_MAX: usize = 500;

/// Whom to forget, and on whose word.
#[derive(Clone)]
struct Order {
    project: ProjectId,
    user: UserId,
    by: EndedBy,
    origin: Origin,
    now: Timestamp,
}

impl App {
    /// Ends every session of a user, deletes them, and takes the user's name and addresses out of the audit and out of what
    /// others were told. Answers with how many sessions were deleted.
    ///
    /// First all sessions end, then rows go, a few hundred at a time; a repeat goes on where one that failed has stopped.
    /// A sign-in meanwhile is either forgotten too, or the first of a new user of this name.
    ///
    /// # Errors
    ///
    /// A refusal of the caller or of the request; the store's.
    pub async fn erase_user(&self, caller: Caller, user_id: &str, origin: Origin) -> Result<i32, Error> {
        let service = self.service(caller).await?;
        if service.role != Role::Admin {
            return Err(Refusal::InsufficientAccessType.into());
        }
        let (user, now) = (named_user(user_id)?, self.clock.now());
        let order = Order { project: service.project, user, by: EndedBy::Service(service.key), origin, now };

        self.step(&order, |mut tx, order| async move {
            tx.epoch_raise(&order.project, &order.user, order.now).await?;
            tx.commit(()).await
        })
        .await?;
        let mut deleted = 0;
        loop {
            deleted += self.while_full(&order, delete_some).await?;
            if self.step(&order, forget).await? {
                break;
            }
        }
        self.while_full(&order, anonymise_some).await?;
        self.while_full(&order, anonymise_some_events).await?;
        self.while_full(&order, forget_in_deliveries).await?;
        Ok(i32::try_from(deleted).unwrap_or(i32::MAX))
    }

    async fn step<T, F, W>(&self, order: &Order, work: F) -> Result<T, Error>
    where
        F: FnOnce(Tx, Order) -> W + Send + 'static,
        W: Future<Output = Result<store::Done<T>, store::Error>> + Send,
        T: Send + 'static,
    {
        let order = order.clone();
        let turn = self.turns.take("erase_user", [Key::User(order.project.clone(), order.user.clone())]).await?;
        let step = move |tx| async move {
            // Kept to the end, whichever it is.
            let _turn = turn;
            work(tx, order).await
        };
        Ok(self.store.transact("erase_user", step).await?)
    }

    /// Takes steps until one finds less to do than it may. Answers with all that was done.
    async fn while_full<F, W>(&self, order: &Order, work: F) -> Result<usize, Error>
    where
        F: Fn(Tx, Order) -> W + Copy + Send + 'static,
        W: Future<Output = Result<store::Done<usize>, store::Error>> + Send,
    {
        let mut done = 0;
        loop {
            let rows = self.step(order, work).await?;
            done += rows;
            if rows < ROWS_MAX {
                return Ok(done);
            }
        }
    }
}

/// Each session is ended by itself: the user's epoch is about to be forgotten, and verifiers must hear of every one.
async fn delete_some(mut tx: Tx, order: Order) -> Result<store::Done<usize>, store::Error> {
    let Order { project, user, by, origin, now } = order;
    let some = tx.sessions_of_user(&project, &user, ROWS_MAX).await?;
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
    let rows = tx.sessions_delete(&project, &some).await?;
    tx.commit(rows).await
}

/// Deletes the user's row, unless somebody has signed in meanwhile. Whether it is gone.
async fn forget(mut tx: Tx, order: Order) -> Result<store::Done<bool>, store::Error> {
    let Order { project, user, now, .. } = order;
    // Holds the row: who is signing in now waits, and who has is seen.
    tx.epoch_raise(&project, &user, now).await?;
    if !tx.sessions_of_user(&project, &user, 1).await?.is_empty() {
        return tx.rollback(false).await;
    }
    tx.user_delete(&project, &user).await?;
    tx.commit(true).await
}

async fn anonymise_some(mut tx: Tx, order: Order) -> Result<store::Done<usize>, store::Error> {
    let rows = tx.revocations_anonymise(&order.project, &order.user, ROWS_MAX).await?;
    tx.commit(rows).await
}

async fn anonymise_some_events(mut tx: Tx, order: Order) -> Result<store::Done<usize>, store::Error> {
    let rows = tx.events_anonymise(&order.project, &order.user, ROWS_MAX).await?;
    tx.commit(rows).await
}

/// After the last of them was queued. What still waits keeps the name until it is over: without it, others could not be told.
async fn forget_in_deliveries(mut tx: Tx, order: Order) -> Result<store::Done<usize>, store::Error> {
    let rows = tx.deliveries_forget(&order.project, &order.user, ROWS_MAX).await?;
    tx.commit(rows).await
}
