//! Deliveries to back-channel endpoints.

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

/// A delivery, as far as a sweep needs it.
#[derive(Clone, Debug)]
pub struct SweptDelivery {
    project: String,
    id: Uuid,
    /// When the session was revoked.
    pub at: Timestamp,
    /// When it was delivered.
    pub delivered_at: Option<Timestamp>,
    /// When it was abandoned.
    pub dead_at: Option<Timestamp>,
}

impl Swept for SweptDelivery {
    fn key(&self) -> (&str, String) {
        (&self.project, self.id.hyphenated().to_string())
    }

    async fn walk(tx: &mut Tx, from: &SweepPosition, rows_max: i64) -> Result<Vec<Self>, Error> {
        let rows =
            tx.rows(DeliveriesWalk { slot: from.slot, project: from.project.clone(), id: from.id(), rows_max }).await?;
        let read = |row: WalkedDelivery| Self {
            project: row.project_id,
            id: row.id,
            at: from_pg(row.at),
            delivered_at: row.delivered_at.map(from_pg),
            dead_at: row.dead_at.map(from_pg),
        };
        Ok(rows.into_iter().map(read).collect())
    }

    /// Except those that an operator has queued again.
    async fn delete(tx: &mut Tx, from: &SweepPosition, gone: &[Self], _: Timestamp) -> Result<usize, Error> {
        let (projects, ids) = super::keys(gone, |one| (&one.project, one.id));
        tx.execute(DeliveriesSweep { projects, ids, slot: from.slot }).await
    }
}

statement! {
    /// The next deliveries in key order, and when they finished.
    DeliveriesWalk -> WalkedDelivery =
    "SELECT project_id, id, at, delivered_at, dead_at FROM backchannel_deliveries WHERE slot = "
    [slot: i16 as sql::SmallInt]
    " AND (project_id, id) > ("
    [project: String as sql::Text]
    ", "
    [id: Uuid as sql::Uuid]
    ") ORDER BY project_id, id LIMIT "
    [rows_max: i64 as sql::BigInt]
    ""
}

statement! {
    /// Deletes finished deliveries.
    DeliveriesSweep -> () =
    "DELETE FROM backchannel_deliveries AS d USING unnest("
    [projects: Vec<String> as sql::Array<sql::Text>]
    ", "
    [ids: Vec<Uuid> as sql::Array<sql::Uuid>]
    ") AS a (project_id, id) WHERE d.slot = "
    [slot: i16 as sql::SmallInt]
    " AND d.project_id = a.project_id AND d.id = a.id AND d.due_at IS NULL"
}

#[derive(QueryableByName)]
struct WalkedDelivery {
    #[diesel(sql_type = sql::Text)]
    project_id: String,
    #[diesel(sql_type = sql::Uuid)]
    id: Uuid,
    #[diesel(sql_type = sql::Timestamptz)]
    at: PgTimestamp,
    #[diesel(sql_type = sql::Nullable<sql::Timestamptz>)]
    delivered_at: Option<PgTimestamp>,
    #[diesel(sql_type = sql::Nullable<sql::Timestamptz>)]
    dead_at: Option<PgTimestamp>,
}
