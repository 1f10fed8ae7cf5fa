//! The two tables of the audit: revocations, and all other events.

use std::marker::PhantomData;

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

/// An audit record.
#[derive(Clone, Debug)]
pub struct SweptLine<T> {
    project: String,
    id: Uuid,
    /// When it was written.
    pub at: Timestamp,
    /// Until when a verifier may hold an access token that it concerns.
    pub access_expires_at: Timestamp,
    /// Whether it contains an address.
    pub has_address: bool,
    table: PhantomData<T>,
}

impl<T: AuditTable> SweptLine<T> {
    /// Removes the addresses from records. Returns how many were changed.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn strip(tx: &mut Tx, from: &SweepPosition, lines: &[Self]) -> Result<usize, Error> {
        let (projects, ids) = keys(lines);
        T::strip(tx, from.slot, projects, ids).await
    }
}

impl<T: AuditTable> Swept for SweptLine<T> {
    fn key(&self) -> (&str, String) {
        (&self.project, self.id.hyphenated().to_string())
    }

    async fn walk(tx: &mut Tx, from: &SweepPosition, rows_max: i64) -> Result<Vec<Self>, Error> {
        let read = |row: LineRow| Self {
            project: row.project_id,
            id: row.id,
            at: from_pg(row.at),
            access_expires_at: from_pg(row.access_expires_at),
            has_address: row.has_address,
            table: PhantomData,
        };
        let rows = T::walk(tx, from.clone(), rows_max).await?;
        Ok(rows.into_iter().map(read).collect())
    }

    async fn delete(tx: &mut Tx, from: &SweepPosition, gone: &[Self], _: Timestamp) -> Result<usize, Error> {
        let (projects, ids) = keys(gone);
        T::delete(tx, from.slot, projects, ids).await
    }
}

fn keys<T>(lines: &[SweptLine<T>]) -> (Vec<String>, Vec<Uuid>) {
    super::keys(lines, |line| (&line.project, line.id))
}

/// A table of the audit.
pub trait AuditTable: Send + Sync + 'static {
    /// Reads the next records of a slot in key order.
    fn walk(
        tx: &mut Tx,
        from: SweepPosition,
        rows_max: i64,
    ) -> impl Future<Output = Result<Vec<LineRow>, Error>> + Send;

    /// Deletes records.
    fn delete(
        tx: &mut Tx,
        slot: i16,
        projects: Vec<String>,
        ids: Vec<Uuid>,
    ) -> impl Future<Output = Result<usize, Error>> + Send;

    /// Removes the addresses from records.
    fn strip(
        tx: &mut Tx,
        slot: i16,
        projects: Vec<String>,
        ids: Vec<Uuid>,
    ) -> impl Future<Output = Result<usize, Error>> + Send;
}

/// `revocations`.
#[derive(Clone, Debug)]
pub enum RevocationLines {}

impl AuditTable for RevocationLines {
    async fn walk(tx: &mut Tx, from: SweepPosition, rows_max: i64) -> Result<Vec<LineRow>, Error> {
        let (slot, id, project) = (from.slot, from.id(), from.project);
        tx.rows(RevocationsWalk { slot, project, id, rows_max }).await
    }

    async fn delete(tx: &mut Tx, slot: i16, projects: Vec<String>, ids: Vec<Uuid>) -> Result<usize, Error> {
        tx.execute(RevocationsSweep { projects, ids, slot }).await
    }

    async fn strip(tx: &mut Tx, slot: i16, projects: Vec<String>, ids: Vec<Uuid>) -> Result<usize, Error> {
        tx.execute(AddressesSweep { projects, ids, slot }).await
    }
}

/// `audit_events`.
#[derive(Clone, Debug)]
pub enum EventLines {}

impl AuditTable for EventLines {
    async fn walk(tx: &mut Tx, from: SweepPosition, rows_max: i64) -> Result<Vec<LineRow>, Error> {
        let (slot, id, project) = (from.slot, from.id(), from.project);
        tx.rows(EventsWalk { slot, project, id, rows_max }).await
    }

    async fn delete(tx: &mut Tx, slot: i16, projects: Vec<String>, ids: Vec<Uuid>) -> Result<usize, Error> {
        tx.execute(EventsSweep { projects, ids, slot }).await
    }

    async fn strip(tx: &mut Tx, slot: i16, projects: Vec<String>, ids: Vec<Uuid>) -> Result<usize, Error> {
        tx.execute(EventAddressesSweep { projects, ids, slot }).await
    }
}

/// A record as read from either table.
#[derive(QueryableByName)]
pub struct LineRow {
    #[diesel(sql_type = sql::Text)]
    project_id: String,
    #[diesel(sql_type = sql::Uuid)]
    id: Uuid,
    #[diesel(sql_type = sql::Timestamptz)]
    at: PgTimestamp,
    #[diesel(sql_type = sql::Timestamptz)]
    access_expires_at: PgTimestamp,
    #[diesel(sql_type = sql::Bool)]
    has_address: bool,
}

statement! {
    /// The next revocations in key order.
    RevocationsWalk -> LineRow =
    "SELECT project_id, id, at, access_expires_at, ip IS NOT NULL AS has_address FROM revocations WHERE slot = "
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
    /// Deletes revocations.
    RevocationsSweep -> () =
    "DELETE FROM revocations AS r USING unnest("
    [projects: Vec<String> as sql::Array<sql::Text>]
    ", "
    [ids: Vec<Uuid> as sql::Array<sql::Uuid>]
    ") AS a (project_id, id) WHERE r.slot = "
    [slot: i16 as sql::SmallInt]
    " AND r.project_id = a.project_id AND r.id = a.id"
}

statement! {
    /// Removes the addresses from revocations.
    AddressesSweep -> () =
    "UPDATE revocations AS r SET ip = NULL FROM unnest("
    [projects: Vec<String> as sql::Array<sql::Text>]
    ", "
    [ids: Vec<Uuid> as sql::Array<sql::Uuid>]
    ") AS a (project_id, id) WHERE r.slot = "
    [slot: i16 as sql::SmallInt]
    " AND r.project_id = a.project_id AND r.id = a.id"
}

statement! {
    /// The next other events in key order. They revoke nothing, so verifiers do not need them.
    EventsWalk -> LineRow =
    "SELECT project_id, id, at, at AS access_expires_at, ip IS NOT NULL AS has_address FROM audit_events WHERE slot = "
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
    /// Deletes other events.
    EventsSweep -> () =
    "DELETE FROM audit_events AS e USING unnest("
    [projects: Vec<String> as sql::Array<sql::Text>]
    ", "
    [ids: Vec<Uuid> as sql::Array<sql::Uuid>]
    ") AS a (project_id, id) WHERE e.slot = "
    [slot: i16 as sql::SmallInt]
    " AND e.project_id = a.project_id AND e.id = a.id"
}

statement! {
    /// Removes the addresses from other events.
    EventAddressesSweep -> () =
    "UPDATE audit_events AS e SET ip = NULL FROM unnest("
    [projects: Vec<String> as sql::Array<sql::Text>]
    ", "
    [ids: Vec<Uuid> as sql::Array<sql::Uuid>]
    ") AS a (project_id, id) WHERE e.slot = "
    [slot: i16 as sql::SmallInt]
    " AND e.project_id = a.project_id AND e.id = a.id"
}
