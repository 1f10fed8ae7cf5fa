//! `users`: the epoch of each user, and with it the project's.

use diesel::QueryableByName;
use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types as sql;

use super::Tx;
use super::columns::to_pg;
use super::error::Error;
use super::statement::statement;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::id::UserId;
use sessiond_core::session::Epoch;

impl Tx {
    /// Gives a user an epoch, unless there is one.
    pub async fn user_ensure(&mut self, project: &ProjectId, user: &UserId) -> Result<(), Error> {
        let (user, project) = (user.as_str().to_owned(), project.as_str().to_owned());
        if self.rows(UserEnsure { user: user.clone(), project: project.clone() }).await?.is_empty() {
            return Ok(());
        }
        // It may have waited for the same user to be forgotten, and have read where to begin before that.
        self.execute(UserBegin { project, user }).await.map(drop)
    }

    /// The present epochs; the user's stays as it is until the end of the transaction. `None` for an unknown user.
    pub async fn epoch_share(&mut self, project: &ProjectId, user: &UserId) -> Result<Option<Epoch>, Error> {
        let statement = EpochShare { project: project.as_str().to_owned(), user: user.as_str().to_owned() };
        Ok(self.rows(statement).await?.pop().map(EpochRow::present))
    }

    /// The present epochs, which may be raised at any time. `None` for an unknown user.
    pub async fn epoch_read(&mut self, project: &ProjectId, user: &UserId) -> Result<Option<Epoch>, Error> {
        let statement = EpochRead { project: project.as_str().to_owned(), user: user.as_str().to_owned() };
        Ok(self.rows(statement).await?.pop().map(EpochRow::present))
    }

    /// Raises a user's epoch, and returns it; `None` for an unknown user. The user's row stays locked.
    pub async fn epoch_raise(
        &mut self,
        project: &ProjectId,
        user: &UserId,
        now: Timestamp,
    ) -> Result<Option<i64>, Error> {
        let (project, user) = (project.as_str().to_owned(), user.as_str().to_owned());
        Ok(self.rows(EpochRaise { at: to_pg(now), project, user }).await?.pop())
    }

    /// Waits until no other transaction that has called this for the user is under way. Comes before every lock on a row.
    pub async fn user_queue(&mut self, project: &ProjectId, user: &UserId) -> Result<(), Error> {
        let statement = UserQueue { user: user.as_str().to_owned(), project: project.as_str().to_owned() };
        self.rows(statement).await.map(drop)
    }

    /// Forgets a user's epoch. To be called when no session of the user is left, and none can be opened.
    pub async fn user_delete(&mut self, project: &ProjectId, user: &UserId) -> Result<(), Error> {
        let statement = UserDelete { project: project.as_str().to_owned(), user: user.as_str().to_owned() };
        self.execute(statement).await.map(drop)
    }
}

statement! {
    /// Sees to it that a user has an epoch; no row when there was one.
    UserEnsure -> i64 as sql::BigInt =
    "INSERT INTO users (project_id, user_id, epoch) SELECT id, "
    [user: String as sql::Text]
    ", users_epoch_base FROM projects WHERE id = "
    [project: String as sql::Text]
    " ON CONFLICT ON CONSTRAINT users_pkey DO NOTHING RETURNING epoch"
}

statement! {
    /// Lifts a new user to where new users of the project begin at this moment.
    UserBegin -> () =
    "UPDATE users AS u SET epoch = p.users_epoch_base FROM projects AS p WHERE u.project_id = "
    [project: String as sql::Text]
    " AND u.user_id = "
    [user: String as sql::Text]
    " AND p.id = u.project_id AND u.epoch < p.users_epoch_base"
}

statement! {
    /// Reads the present epochs of a project and a user. This and a raise of the user's epoch wait for each other.
    ///
    /// The project's row is read without a lock: every session of the project would queue for it. A session that slips
    /// through while the project's epoch is raised carries the smaller one, and so is ended all the same.
    EpochShare -> EpochRow =
    "SELECT p.epoch AS project_epoch, u.epoch AS user_epoch FROM users AS u JOIN projects AS p ON p.id = u.project_id WHERE u.project_id = "
    [project: String as sql::Text]
    " AND u.user_id = "
    [user: String as sql::Text]
    " FOR SHARE OF u"
}

statement! {
    /// Reads the present epochs of a project and a user, and waits for nobody: they may be raised at any time.
    EpochRead -> EpochRow =
    "SELECT p.epoch AS project_epoch, u.epoch AS user_epoch FROM users AS u JOIN projects AS p ON p.id = u.project_id WHERE u.project_id = "
    [project: String as sql::Text]
    " AND u.user_id = "
    [user: String as sql::Text]
    ""
}

statement! {
    /// Raises a user's epoch, which ends every session opened under a smaller one.
    EpochRaise -> i64 as sql::BigInt =
    "UPDATE users SET epoch = epoch + 1, epoch_raised_at = "
    [at: PgTimestamp as sql::Timestamptz]
    " WHERE project_id = "
    [project: String as sql::Text]
    " AND user_id = "
    [user: String as sql::Text]
    " RETURNING epoch"
}

statement! {
    /// Lets those that sign the same user in take turns, where their number is limited. Released with the transaction.
    ///
    /// Not the user's row: a refresh of one of the user's sessions holds that session while it waits for the row, and to
    /// make room this would wait for the session. Two users whose names hash alike take turns too, which does no harm.
    UserQueue -> bool as sql::Bool =
    "SELECT pg_advisory_xact_lock(hashtextextended("
    [user: String as sql::Text]
    ", hashtextextended("
    [project: String as sql::Text]
    ", 7305504))) IS NOT NULL"
}

statement! {
    /// Forgets a user, and has every new one begin above that epoch.
    UserDelete -> () =
    "WITH gone AS (
         DELETE FROM users WHERE project_id = "
    [project: String as sql::Text]
    " AND user_id = "
    [user: String as sql::Text]
    " RETURNING project_id, epoch
     )
     UPDATE projects SET users_epoch_base = greatest(users_epoch_base, gone.epoch + 1) FROM gone WHERE id = gone.project_id"
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
