//! `users`: the epoch of each user, read together with the project's.

use std::collections::HashMap;

use diesel::QueryableByName;
use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types as sql;

use super::Tx;
use super::columns::to_pg;
use super::error::Error;
use super::slots::by_slot;
use super::statement::statement;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::Bucket;
use sessiond_core::id::ProjectId;
use sessiond_core::id::UserId;
use sessiond_core::session::Epoch;

impl Tx {
    /// Creates a user's epoch, unless it exists.
    pub async fn user_ensure(&mut self, project: &ProjectId, user: &UserId, bucket: Bucket) -> Result<(), Error> {
        let (user, project) = (user.as_str().to_owned(), project.as_str().to_owned());
        let slot = self.slot(bucket).to_column();
        if self.rows(UserEnsure { user: user.clone(), slot, project: project.clone() }).await?.is_empty() {
            return Ok(());
        }
        // The insert may have waited for the deletion of the same user, and have read the base epoch before that.
        self.execute(UsersBegin { projects: vec![project], users: vec![user], slot }).await.map(drop)
    }

    /// Creates the epochs of new users, and returns the present epochs of those users whose row no other transaction has locked.
    /// They do not change until the end of the transaction. Waits for no lock but that of another new user's first sign-in, and
    /// for that at most 200 ms: then it fails.
    pub async fn epochs_share_unlocked(
        &mut self,
        users: HashMap<(&ProjectId, &UserId), Bucket>,
    ) -> Result<HashMap<(ProjectId, UserId), Epoch>, Error> {
        let mut epochs = HashMap::new();
        let users: Vec<_> = users.into_iter().collect();
        for (slot, users) in by_slot(users, |(_, bucket)| self.slot(*bucket)) {
            let users = users.into_iter().map(|(user, _)| user).collect();
            epochs.extend(self.epochs_share_of_slot(users, slot.to_column()).await?);
        }
        Ok(epochs)
    }

    /// As [`Tx::epochs_share_unlocked`], for users of one slot.
    async fn epochs_share_of_slot(
        &mut self,
        mut asked: Vec<(&ProjectId, &UserId)>,
        slot: i16,
    ) -> Result<HashMap<(ProjectId, UserId), Epoch>, Error> {
        let names = |users: &[(&ProjectId, &UserId)]| -> (Vec<String>, Vec<String>) {
            users.iter().map(|(project, user)| (project.as_str().to_owned(), user.as_str().to_owned())).unzip()
        };
        let mut epochs = HashMap::new();
        // Most users are known.
        for is_last in [false, true] {
            let (projects, users) = names(&asked);
            let rows = self.rows(EpochsShareUnlocked { projects, users, slot }).await?;
            let found = rows.into_iter().filter_map(UserEpochRow::parse);
            epochs.extend(found);
            asked.retain(|(project, user)| !epochs.contains_key(&((*project).clone(), (*user).clone())));
            if is_last || asked.is_empty() {
                break;
            }
            let (projects, users) = names(&asked);
            let new = self.rows(UsersEnsure { projects, users, slot }).await?;
            if new.is_empty() {
                break;
            }
            let (projects, users) = new.into_iter().map(|new| (new.project_id, new.user_id)).unzip();
            // As in `user_ensure`.
            self.execute(UsersBegin { projects, users, slot }).await?;
        }
        Ok(epochs)
    }

    /// Returns the present epochs, and keeps the user's from changing until the end of the transaction. `None` for an
    /// unknown user.
    pub async fn epoch_share(
        &mut self,
        project: &ProjectId,
        user: &UserId,
        bucket: Bucket,
    ) -> Result<Option<Epoch>, Error> {
        let slot = self.slot(bucket).to_column();
        let statement = EpochShare { slot, project: project.as_str().to_owned(), user: user.as_str().to_owned() };
        Ok(self.rows(statement).await?.pop().map(EpochRow::present))
    }

    /// Returns the present epochs, which may be raised at any time. `None` for an unknown user.
    pub async fn epoch_read(
        &mut self,
        project: &ProjectId,
        user: &UserId,
        bucket: Bucket,
    ) -> Result<Option<Epoch>, Error> {
        let slot = self.slot(bucket).to_column();
        let statement = EpochRead { slot, project: project.as_str().to_owned(), user: user.as_str().to_owned() };
        Ok(self.rows(statement).await?.pop().map(EpochRow::present))
    }

    /// Raises a user's epoch and returns it; `None` for an unknown user. The user's row stays locked.
    pub async fn epoch_raise(
        &mut self,
        project: &ProjectId,
        user: &UserId,
        bucket: Bucket,
        now: Timestamp,
    ) -> Result<Option<i64>, Error> {
        let slot = self.slot(bucket).to_column();
        let (project, user) = (project.as_str().to_owned(), user.as_str().to_owned());
        Ok(self.rows(EpochRaise { at: to_pg(now), slot, project, user }).await?.pop())
    }

    /// Waits until no other transaction that called this for the user is in progress. Call it before locking any row.
    pub async fn user_queue(&mut self, project: &ProjectId, user: &UserId, bucket: Bucket) -> Result<(), Error> {
        let slot = self.slot(bucket).to_column();
        let statement = UserQueue { user: user.as_str().to_owned(), project: project.as_str().to_owned(), slot };
        self.rows(statement).await.map(drop)
    }

    /// Deletes a user's epoch. Call it only if the user has no session and none can be opened.
    pub async fn user_delete(&mut self, project: &ProjectId, user: &UserId, bucket: Bucket) -> Result<(), Error> {
        let slot = self.slot(bucket).to_column();
        let statement = UserDelete { slot, project: project.as_str().to_owned(), user: user.as_str().to_owned() };
        let epochs: Vec<i64> = self.rows(statement).await?;
        match epochs.into_iter().max() {
            Some(epoch) => self.users_begin_above(vec![(project.as_str().to_owned(), epoch)]).await,
            None => Ok(()),
        }
    }

    /// Makes new users of the projects start above these epochs. Call it in the transaction that deletes their users.
    pub(super) async fn users_begin_above(&mut self, epochs: Vec<(String, i64)>) -> Result<(), Error> {
        let (projects, epochs) = epochs.into_iter().unzip();
        self.execute(UsersBeginAbove { projects, epochs }).await.map(drop)
    }
}

statement! {
    /// Creates a user's epoch; returns no row if it existed.
    UserEnsure -> i64 as sql::BigInt =
    "INSERT INTO users (project_id, user_id, epoch, slot) SELECT id, "
    [user: String as sql::Text]
    ", users_epoch_base, "
    [slot: i16 as sql::SmallInt]
    "::smallint FROM projects WHERE id = "
    [project: String as sql::Text]
    " ON CONFLICT ON CONSTRAINT users_pkey DO NOTHING RETURNING epoch"
}

statement! {
    /// Creates the epochs of those users that have none, in a fixed order, so that two such statements cannot deadlock.
    /// Returns the new ones. Does not wait for a user whose row is locked.
    ///
    /// It must wait for a transaction that is about to create one of the users. If that takes longer than a few commits, it
    /// fails, so that the other users' sign-ins need not wait. The setting ends with the transaction.
    UsersEnsure -> UserRow =
    "INSERT INTO users (project_id, user_id, epoch, slot)
     SELECT p.id, a.user_id, p.users_epoch_base, $3
     FROM (SELECT pg_catalog.set_config('lock_timeout', '200ms', true)) AS wait CROSS JOIN unnest("
    [projects: Vec<String> as sql::Array<sql::Text>]
    ", "
    [users: Vec<String> as sql::Array<sql::Text>]
    ") AS a (project_id, user_id) JOIN projects AS p ON p.id = a.project_id
     WHERE NOT EXISTS (SELECT FROM users AS u WHERE u.slot = "
    [slot: i16 as sql::SmallInt]
    " AND u.project_id = a.project_id AND u.user_id = a.user_id)
     ORDER BY p.id, a.user_id
     ON CONFLICT ON CONSTRAINT users_pkey DO NOTHING RETURNING project_id, user_id"
}

statement! {
    /// Raises the epochs of new users to their projects' base epochs for new users.
    UsersBegin -> () =
    "UPDATE users AS u SET epoch = p.users_epoch_base FROM unnest("
    [projects: Vec<String> as sql::Array<sql::Text>]
    ", "
    [users: Vec<String> as sql::Array<sql::Text>]
    ") AS a (project_id, user_id) JOIN projects AS p ON p.id = a.project_id
     WHERE u.slot = "
    [slot: i16 as sql::SmallInt]
    " AND u.project_id = a.project_id AND u.user_id = a.user_id AND u.epoch < p.users_epoch_base"
}

statement! {
    /// As [`EpochShare`], for the users whose row no other transaction has locked. The lock in a subquery has the planner look each
    /// user up, whatever its statistics.
    EpochsShareUnlocked -> UserEpochRow =
    "SELECT u.project_id, u.user_id, p.epoch AS project_epoch, u.epoch AS user_epoch FROM unnest("
    [projects: Vec<String> as sql::Array<sql::Text>]
    ", "
    [users: Vec<String> as sql::Array<sql::Text>]
    ") AS a (project_id, user_id)
     CROSS JOIN LATERAL (SELECT * FROM users WHERE slot = "
    [slot: i16 as sql::SmallInt]
    " AND project_id = a.project_id AND user_id = a.user_id FOR SHARE SKIP LOCKED) AS u
     JOIN projects AS p ON p.id = u.project_id"
}

statement! {
    /// Reads the present epochs of a project and a user. It and a raise of the user's epoch wait for each other.
    ///
    /// The project's row is read without a lock: otherwise every session of the project would queue for it. A session
    /// that is opened while the project's epoch is being raised has the lower one, and so is ended as well.
    EpochShare -> EpochRow =
    "SELECT p.epoch AS project_epoch, u.epoch AS user_epoch FROM users AS u JOIN projects AS p ON p.id = u.project_id WHERE u.slot = "
    [slot: i16 as sql::SmallInt]
    " AND u.project_id = "
    [project: String as sql::Text]
    " AND u.user_id = "
    [user: String as sql::Text]
    " FOR SHARE OF u"
}

statement! {
    /// Reads the present epochs of a project and a user without waiting: they may be raised at any time.
    EpochRead -> EpochRow =
    "SELECT p.epoch AS project_epoch, u.epoch AS user_epoch FROM users AS u JOIN projects AS p ON p.id = u.project_id WHERE u.slot = "
    [slot: i16 as sql::SmallInt]
    " AND u.project_id = "
    [project: String as sql::Text]
    " AND u.user_id = "
    [user: String as sql::Text]
    ""
}

statement! {
    /// Raises a user's epoch, which ends every session opened with a lower one.
    EpochRaise -> i64 as sql::BigInt =
    "UPDATE users SET epoch = epoch + 1, epoch_raised_at = "
    [at: PgTimestamp as sql::Timestamptz]
    " WHERE slot = "
    [slot: i16 as sql::SmallInt]
    " AND project_id = "
    [project: String as sql::Text]
    " AND user_id = "
    [user: String as sql::Text]
    " RETURNING epoch"
}

statement! {
    /// Makes sign-ins of the same user take turns if the number of sessions is limited. Released at the end of the
    /// transaction.
    ///
    /// Not a lock on the user's row: a refresh locks one of the user's sessions and then waits for the row, while
    /// making room would wait for the session. Two users with the same hash take turns too, which does no harm. The lock is
    /// one of the node that has the slot.
    UserQueue -> bool as sql::Bool =
    "SELECT pg_advisory_xact_lock(hashtextextended("
    [user: String as sql::Text]
    ", hashtextextended("
    [project: String as sql::Text]
    ", 7305504))) IS NOT NULL FROM slots WHERE slot = "
    [slot: i16 as sql::SmallInt]
    ""
}

statement! {
    /// Deletes a user, and returns its epoch.
    UserDelete -> i64 as sql::BigInt =
    "DELETE FROM users WHERE slot = "
    [slot: i16 as sql::SmallInt]
    " AND project_id = "
    [project: String as sql::Text]
    " AND user_id = "
    [user: String as sql::Text]
    " RETURNING epoch"
}

statement! {
    /// Makes new users start above these epochs. Not in one statement with the deletion of the users: in a divided database,
    /// one changes a distributed table, and the other a table that is on every node.
    UsersBeginAbove -> () =
    "UPDATE projects AS p SET users_epoch_base = a.epoch + 1 FROM unnest("
    [projects: Vec<String> as sql::Array<sql::Text>]
    ", "
    [epochs: Vec<i64> as sql::Array<sql::BigInt>]
    ") AS a (project_id, epoch) WHERE p.id = a.project_id AND p.users_epoch_base <= a.epoch"
}

/// A user's key.
#[derive(QueryableByName)]
pub(super) struct UserRow {
    #[diesel(sql_type = sql::Text)]
    pub(super) project_id: String,
    #[diesel(sql_type = sql::Text)]
    pub(super) user_id: String,
}

/// A user, and the present epochs.
#[derive(QueryableByName)]
struct UserEpochRow {
    #[diesel(embed)]
    user: UserRow,
    #[diesel(embed)]
    epoch: EpochRow,
}

impl UserEpochRow {
    fn parse(self) -> Option<((ProjectId, UserId), Epoch)> {
        let user = (ProjectId::parse(&self.user.project_id)?, UserId::parse(&self.user.user_id)?);
        Some((user, self.epoch.present()))
    }
}

/// The present epochs of a project and a user.
#[derive(QueryableByName)]
struct EpochRow {
    #[diesel(sql_type = sql::BigInt)]
    project_epoch: i64,
    #[diesel(sql_type = sql::BigInt)]
    user_epoch: i64,
}

impl EpochRow {
    const fn present(self) -> Epoch {
        Epoch { project: self.project_epoch, user: self.user_epoch }
    }
}
