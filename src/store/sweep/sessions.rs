//! Ended sessions.

use diesel::QueryableByName;
use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types as sql;
use uuid::Uuid;

use super::SweepPosition;
use super::Swept;
use crate::store::Tx;
use crate::store::columns::SERVICE;
use crate::store::columns::from_pg;
use crate::store::columns::to_pg;
use crate::store::error::Error;
use crate::store::events::SESSION_CREATED;
use crate::store::statement::statement;
use sessiond_core::clock::Timestamp;
use sessiond_core::session::Epoch;
use sessiond_core::session::lifecycle::EpochRaisedAt;
use sessiond_core::session::retention::EndTimes;

/// A session, as far as a sweep needs it.
#[derive(Clone, Debug)]
pub struct SweptSession {
    project: String,
    id: Uuid,
    /// When it was opened.
    pub created_at: Timestamp,
    /// The fields that determine when it ended.
    pub end_times: EndTimes,
    /// The present epochs of its project and its user.
    pub present: Epoch,
    /// When each epoch was last raised.
    pub raised: EpochRaisedAt,
}

impl Swept for SweptSession {
    fn key(&self) -> (&str, String) {
        (&self.project, self.id.hyphenated().to_string())
    }

    async fn walk(tx: &mut Tx, from: &SweepPosition, rows_max: i64) -> Result<Vec<Self>, Error> {
        let rows =
            tx.rows(SessionsWalk { slot: from.slot, project: from.project.clone(), id: from.id(), rows_max }).await?;
        let mut rows: Vec<_> = rows.into_iter().map(WalkedSession::into_session).collect();
        // Selected in this order; the joins may have changed it.
        rows.sort_unstable_by(|one, other| (&one.project, one.id).cmp(&(&other.project, other.id)));
        Ok(rows)
    }

    async fn delete(tx: &mut Tx, from: &SweepPosition, gone: &[Self], audit_from: Timestamp) -> Result<usize, Error> {
        let slot = from.slot;
        let (projects, ids) = super::keys(gone, |one| (&one.project, one.id));
        let idle_expires_at = gone.iter().map(|one| to_pg(one.end_times.idle_expires_at)).collect();
        let user_epochs = gone.iter().map(|one| one.end_times.epoch.user).collect();
        let held = tx.rows(SessionsHold { projects, ids, idle_expires_at, user_epochs, slot }).await?;
        if held.is_empty() {
            return Ok(0);
        }
        let (projects, ids): (Vec<_>, Vec<_>) = held.into_iter().map(|row| (row.project_id, row.id)).unzip();
        let record = SessionsRecord {
            kind: SESSION_CREATED,
            actor: SERVICE,
            projects: projects.clone(),
            ids: ids.clone(),
            slot,
            audit_from: to_pg(audit_from),
        };
        tx.execute(record).await?;
        tx.execute(SessionsSweep { projects, ids, slot }).await
    }
}

statement! {
    /// The next sessions in key order, with all that determines when they ended.
    ///
    /// The inner limits keep the planner from joining whole tables for a thousand rows, as it cannot estimate how many
    /// rows there will be.
    SessionsWalk -> WalkedSession =
    "SELECT s.project_id, s.id, s.created_at, s.revoked_at, s.expires_at, s.idle_expires_at, s.project_epoch, s.user_epoch,
         coalesce(p.epoch, s.project_epoch) AS present_project_epoch, coalesce(u.epoch, s.user_epoch) AS present_user_epoch,
         p.epoch_raised_at AS project_raised_at, u.epoch_raised_at AS user_raised_at
     FROM (SELECT project_id, id, user_id, created_at, revoked_at, expires_at, idle_expires_at, project_epoch, user_epoch
         FROM sessions WHERE slot = "
    [slot: i16 as sql::SmallInt]
    " AND (project_id, id) > ("
    [project: String as sql::Text]
    ", "
    [id: Uuid as sql::Uuid]
    ") ORDER BY project_id, id LIMIT "
    [rows_max: i64 as sql::BigInt]
    ") AS s
     LEFT JOIN LATERAL (SELECT epoch, epoch_raised_at FROM projects WHERE id = s.project_id LIMIT 1) AS p ON true
     LEFT JOIN LATERAL (SELECT epoch, epoch_raised_at FROM users
         WHERE slot = $1 AND project_id = s.project_id AND user_id = s.user_id LIMIT 1) AS u ON true"
}

statement! {
    /// Locks sessions that have not changed since they were read. Locked rows are left to the next sweep.
    SessionsHold -> HeldSession =
    "SELECT s.project_id, s.id FROM unnest("
    [projects: Vec<String> as sql::Array<sql::Text>]
    ", "
    [ids: Vec<Uuid> as sql::Array<sql::Uuid>]
    ", "
    [idle_expires_at: Vec<PgTimestamp> as sql::Array<sql::Timestamptz>]
    ", "
    [user_epochs: Vec<i64> as sql::Array<sql::BigInt>]
    ") AS a (project_id, id, idle_expires_at, user_epoch)
     JOIN sessions AS s ON s.project_id = a.project_id AND s.id = a.id WHERE s.slot = "
    [slot: i16 as sql::SmallInt]
    " AND s.idle_expires_at = a.idle_expires_at AND s.user_epoch = a.user_epoch FOR UPDATE OF s SKIP LOCKED"
}

statement! {
    /// Records the creation of locked sessions.
    ///
    /// A session's row was the record of its creation, so it leaves one in the audit. Impersonations have theirs there
    /// already. The record has the session's id, which sorts by the time of creation as other records' ids do.
    SessionsRecord -> () =
    "INSERT INTO audit_events (slot, project_id, id, at, kind, session_id, user_id, actor, actor_id)
     SELECT s.slot, s.project_id, s.id, s.created_at, "
    [kind: i16 as sql::SmallInt]
    "::smallint, s.id, s.user_id, "
    [actor: i16 as sql::SmallInt]
    "::smallint, s.creator_key_id FROM unnest("
    [projects: Vec<String> as sql::Array<sql::Text>]
    ", "
    [ids: Vec<Uuid> as sql::Array<sql::Uuid>]
    ") AS a (project_id, id) JOIN sessions AS s ON s.project_id = a.project_id AND s.id = a.id WHERE s.slot = "
    [slot: i16 as sql::SmallInt]
    " AND s.creator_key_id IS NOT NULL AND s.impersonator_id IS NULL AND s.created_at > "
    [audit_from: PgTimestamp as sql::Timestamptz]
    " ON CONFLICT ON CONSTRAINT audit_events_pkey DO NOTHING"
}

statement! {
    /// Deletes locked sessions.
    SessionsSweep -> () =
    "DELETE FROM sessions AS s USING unnest("
    [projects: Vec<String> as sql::Array<sql::Text>]
    ", "
    [ids: Vec<Uuid> as sql::Array<sql::Uuid>]
    ") AS a (project_id, id) WHERE s.slot = "
    [slot: i16 as sql::SmallInt]
    " AND s.project_id = a.project_id AND s.id = a.id"
}

#[derive(QueryableByName)]
struct HeldSession {
    #[diesel(sql_type = sql::Text)]
    project_id: String,
    #[diesel(sql_type = sql::Uuid)]
    id: Uuid,
}

#[derive(QueryableByName)]
struct WalkedSession {
    #[diesel(sql_type = sql::Text)]
    project_id: String,
    #[diesel(sql_type = sql::Uuid)]
    id: Uuid,
    #[diesel(sql_type = sql::Timestamptz)]
    created_at: PgTimestamp,
    #[diesel(sql_type = sql::Nullable<sql::Timestamptz>)]
    revoked_at: Option<PgTimestamp>,
    #[diesel(sql_type = sql::Timestamptz)]
    expires_at: PgTimestamp,
    #[diesel(sql_type = sql::Timestamptz)]
    idle_expires_at: PgTimestamp,
    #[diesel(sql_type = sql::BigInt)]
    project_epoch: i64,
    #[diesel(sql_type = sql::BigInt)]
    user_epoch: i64,
    #[diesel(sql_type = sql::BigInt)]
    present_project_epoch: i64,
    #[diesel(sql_type = sql::BigInt)]
    present_user_epoch: i64,
    #[diesel(sql_type = sql::Nullable<sql::Timestamptz>)]
    project_raised_at: Option<PgTimestamp>,
    #[diesel(sql_type = sql::Nullable<sql::Timestamptz>)]
    user_raised_at: Option<PgTimestamp>,
}

impl WalkedSession {
    fn into_session(self) -> SweptSession {
        SweptSession {
            project: self.project_id,
            id: self.id,
            created_at: from_pg(self.created_at),
            end_times: EndTimes {
                revoked_at: self.revoked_at.map(from_pg),
                expires_at: from_pg(self.expires_at),
                idle_expires_at: from_pg(self.idle_expires_at),
                epoch: Epoch { project: self.project_epoch, user: self.user_epoch },
            },
            present: Epoch { project: self.present_project_epoch, user: self.present_user_epoch },
            raised: EpochRaisedAt {
                project: self.project_raised_at.map(from_pg),
                user: self.user_raised_at.map(from_pg),
            },
        }
    }
}
