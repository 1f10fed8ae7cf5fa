//! Outcomes of request ids.

use diesel::QueryableByName;
use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types as sql;
use uuid::Uuid;

use super::SweepPosition;
use super::Swept;
use crate::store::Tx;
use crate::store::columns::from_pg;
use crate::store::error::Error;
use crate::store::statement::statement;
use sessiond_core::clock::Timestamp;

/// A stored request id.
#[derive(Clone, Debug)]
pub struct SweptRequest {
    project: String,
    id: Uuid,
    /// When the request was made.
    pub created_at: Timestamp,
}

impl Swept for SweptRequest {
    /// The start of its project: older rows are deleted, so the next walk finds the following ones.
    fn key(&self) -> (&str, String) {
        (&self.project, String::new())
    }

    /// Each project's oldest rows come first.
    async fn walk(tx: &mut Tx, from: &SweepPosition, rows_max: i64) -> Result<Vec<Self>, Error> {
        // Negative and positive infinity in Postgres.
        let created_at = PgTimestamp(if from.key.is_empty() { i64::MIN } else { i64::MAX });
        let rows =
            tx.rows(RequestsWalk { slot: from.slot, project: from.project.clone(), created_at, rows_max }).await?;
        let read = |row: WalkedRequest| Self {
            project: row.project_id,
            id: row.request_id,
            created_at: from_pg(row.created_at),
        };
        Ok(rows.into_iter().map(read).collect())
    }

    async fn delete(tx: &mut Tx, from: &SweepPosition, gone: &[Self], _: Timestamp) -> Result<usize, Error> {
        let (projects, ids) = super::keys(gone, |one| (&one.project, one.id));
        tx.execute(RequestsSweep { projects, ids, slot: from.slot }).await
    }
}

statement! {
    /// The next request ids, each project's oldest first.
    RequestsWalk -> WalkedRequest =
    "SELECT project_id, request_id, created_at FROM session_requests WHERE slot = "
    [slot: i16 as sql::SmallInt]
    " AND (project_id, created_at) > ("
    [project: String as sql::Text]
    ", "
    [created_at: PgTimestamp as sql::Timestamptz]
    ") ORDER BY project_id, created_at LIMIT "
    [rows_max: i64 as sql::BigInt]
    ""
}

statement! {
    /// Deletes request ids.
    RequestsSweep -> () =
    "DELETE FROM session_requests AS r USING unnest("
    [projects: Vec<String> as sql::Array<sql::Text>]
    ", "
    [ids: Vec<Uuid> as sql::Array<sql::Uuid>]
    ") AS a (project_id, request_id) WHERE r.slot = "
    [slot: i16 as sql::SmallInt]
    " AND r.project_id = a.project_id AND r.request_id = a.request_id"
}

#[derive(QueryableByName)]
struct WalkedRequest {
    #[diesel(sql_type = sql::Text)]
    project_id: String,
    #[diesel(sql_type = sql::Uuid)]
    request_id: Uuid,
    #[diesel(sql_type = sql::Timestamptz)]
    created_at: PgTimestamp,
}
