//! Users without a session.

use std::collections::BTreeMap;

use diesel::QueryableByName;
use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types as sql;

use super::SweepPosition;
use super::Swept;
use crate::store::Tx;
use crate::store::columns::from_pg;
use crate::store::error::Error;
use crate::store::statement::statement;
use crate::store::users::UserRow;
use sessiond_core::clock::Timestamp;

/// A user.
#[derive(Clone, Debug)]
pub struct SweptUser {
    project: String,
    user: String,
    /// When the epoch was last raised.
    pub raised_at: Option<Timestamp>,
    /// Whether a session exists, in any state.
    pub has_session: bool,
}

impl Swept for SweptUser {
    fn key(&self) -> (&str, String) {
        (&self.project, self.user.clone())
    }

    async fn walk(tx: &mut Tx, from: &SweepPosition, rows_max: i64) -> Result<Vec<Self>, Error> {
        let walk = UsersWalk { slot: from.slot, project: from.project.clone(), user: from.key.clone(), rows_max };
        let read = |row: WalkedUser| Self {
            project: row.project_id,
            user: row.user_id,
            raised_at: row.epoch_raised_at.map(from_pg),
            has_session: row.has_session,
        };
        let mut rows: Vec<_> = tx.rows(walk).await?.into_iter().map(read).collect();
        rows.sort_unstable_by(|one, other| (&one.project, &one.user).cmp(&(&other.project, &other.user)));
        Ok(rows)
    }

    /// Except users who have a session by now, or whose row is locked.
    async fn delete(tx: &mut Tx, from: &SweepPosition, gone: &[Self], _: Timestamp) -> Result<usize, Error> {
        let slot = from.slot;
        let hold = UsersHold {
            projects: gone.iter().map(|one| one.project.clone()).collect(),
            users: gone.iter().map(|one| one.user.clone()).collect(),
            slot,
        };
        let held = tx.rows(hold).await?;
        let (projects, users) = held.into_iter().map(|row| (row.project_id, row.user_id)).unzip();
        // A separate statement, whose snapshot includes every sign-in before the users were locked.
        let deleted = tx.rows(UsersSweep { projects, users, slot }).await?;
        let mut epochs = BTreeMap::<String, i64>::new();
        for row in deleted.iter().filter(|row| row.epoch_raised_at.is_some()) {
            let epoch = epochs.entry(row.project_id.clone()).or_insert(row.epoch);
            *epoch = row.epoch.max(*epoch);
        }
        if !epochs.is_empty() {
            tx.users_begin_above(epochs.into_iter().collect()).await?;
        }
        Ok(deleted.len())
    }
}

statement! {
    /// The next users in key order, and whether they have sessions.
    UsersWalk -> WalkedUser =
    "SELECT u.project_id, u.user_id, u.epoch_raised_at, s.id IS NOT NULL AS has_session
     FROM (SELECT project_id, user_id, epoch_raised_at FROM users WHERE slot = "
    [slot: i16 as sql::SmallInt]
    " AND (project_id, user_id) > ("
    [project: String as sql::Text]
    ", "
    [user: String as sql::Text]
    ") ORDER BY project_id, user_id LIMIT "
    [rows_max: i64 as sql::BigInt]
    ") AS u
     LEFT JOIN LATERAL (SELECT id FROM sessions
         WHERE slot = $1 AND project_id = u.project_id AND user_id = u.user_id LIMIT 1) AS s ON true"
}

statement! {
    /// Locks users; users whose row is locked already are left to the next sweep.
    UsersHold -> UserRow =
    "SELECT u.project_id, u.user_id FROM unnest("
    [projects: Vec<String> as sql::Array<sql::Text>]
    ", "
    [users: Vec<String> as sql::Array<sql::Text>]
    ") AS a (project_id, user_id) JOIN users AS u ON u.project_id = a.project_id AND u.user_id = a.user_id
     WHERE u.slot = "
    [slot: i16 as sql::SmallInt]
    " FOR UPDATE OF u SKIP LOCKED"
}

statement! {
    /// Deletes locked users without a session, and returns their epochs.
    UsersSweep -> DeletedUser =
    "DELETE FROM users AS u USING unnest("
    [projects: Vec<String> as sql::Array<sql::Text>]
    ", "
    [users: Vec<String> as sql::Array<sql::Text>]
    ") AS a (project_id, user_id) WHERE u.slot = "
    [slot: i16 as sql::SmallInt]
    " AND u.project_id = a.project_id AND u.user_id = a.user_id AND NOT EXISTS (SELECT FROM sessions AS s
         WHERE s.slot = $3 AND s.project_id = u.project_id AND s.user_id = u.user_id)
     RETURNING u.project_id, u.epoch, u.epoch_raised_at"
}

#[derive(QueryableByName)]
struct DeletedUser {
    #[diesel(sql_type = sql::Text)]
    project_id: String,
    #[diesel(sql_type = sql::BigInt)]
    epoch: i64,
    #[diesel(sql_type = sql::Nullable<sql::Timestamptz>)]
    epoch_raised_at: Option<PgTimestamp>,
}

#[derive(QueryableByName)]
struct WalkedUser {
    #[diesel(sql_type = sql::Text)]
    project_id: String,
    #[diesel(sql_type = sql::Text)]
    user_id: String,
    #[diesel(sql_type = sql::Nullable<sql::Timestamptz>)]
    epoch_raised_at: Option<PgTimestamp>,
    #[diesel(sql_type = sql::Bool)]
    has_session: bool,
}
