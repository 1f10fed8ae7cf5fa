//! Statements on many sessions at once: for requests that are carried out in groups.

use std::collections::HashMap;

use diesel::QueryableByName;
use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types as sql;
use serde_json::Value;
use uuid::Uuid;

use crate::store::Tx;
use crate::store::columns::to_pg;
use crate::store::error::Error;
use crate::store::sessions::row::SessionRow;
use crate::store::sessions::row::StoredSession;
use crate::store::sessions::row::chain_columns;
use crate::store::sessions::row::device_before_columns;
use crate::store::sessions::row::repeats_columns;
use crate::store::slots::by_slot;
use crate::store::statement::statement;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::Bucket;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::session::Epoch;
use sessiond_core::session::Session;
use sessiond_core::session::rotation::Chain;

/// Refreshes to record, of sessions of one slot: the columns that they change.
#[derive(Default)]
pub struct SessionRotations {
    columns: SessionsRotate,
    buckets: Vec<Bucket>,
}

impl SessionRotations {
    /// Adds a refresh: the session's last use, its device, its chain, and the expiry of its newest access token.
    pub fn push(&mut self, session: &Session, chain: &Chain, access_expires_at: Timestamp) {
        let Self { columns, buckets } = self;
        buckets.push(session.id.bucket());
        let (generation, attempts, issued_at) = chain_columns(chain);
        let (repeats, repeated_elsewhere) = repeats_columns(chain);
        let (device_changed_at, device_before) = device_before_columns(session.device_before.as_ref());
        let (first, last) = extend(&mut columns.refresh_attempts, attempts);
        columns.refresh_issued_at.extend(issued_at);
        columns.chain_first.push(first);
        columns.chain_last.push(last);
        columns.project_id.push(session.project.as_str().to_owned());
        columns.id.push(session.id.as_uuid());
        columns.last_used_at.push(to_pg(session.last_used_at));
        columns.used_before_at.push(session.used_before_at.map(to_pg));
        columns.refresh_repeats.push(repeats);
        columns.refresh_repeated_elsewhere.push(repeated_elsewhere);
        columns.idle_expires_at.push(to_pg(session.idle_expires_at));
        columns.access_expires_at.push(to_pg(access_expires_at));
        columns.refresh_generation.push(generation);
        columns.device_name.push(session.device.name.clone());
        columns.user_agent.push(session.device.user_agent.clone());
        columns.ip.push(session.device.ip.map(|ip| ip.to_string()));
        columns.device_changed_at.push(device_changed_at);
        columns.device_before.push(device_before);
    }
}

impl Tx {
    /// Reads sessions with the present epochs, and locks them, and keeps the users' epochs from changing, until the end of the
    /// transaction. Omits sessions that are unknown, and those whose row, or whose user's row, another transaction has locked.
    pub async fn sessions_lock_unlocked(
        &mut self,
        sessions: &[(&ProjectId, SessionId)],
    ) -> Result<HashMap<(ProjectId, SessionId), (StoredSession, Epoch)>, Error> {
        let mut found = HashMap::new();
        for (slot, sessions) in by_slot(sessions, |(_, id)| self.slot(id.bucket())) {
            let statement = SessionsLockUnlocked {
                projects: sessions.iter().map(|(project, _)| project.as_str().to_owned()).collect(),
                ids: sessions.iter().map(|(_, id)| id.as_uuid()).collect(),
                slot: slot.to_column(),
            };
            for UnlockedRow { session, present_project_epoch, present_user_epoch } in self.rows(statement).await? {
                let stored = session.into_stored()?;
                let present = Epoch { project: present_project_epoch, user: present_user_epoch };
                found.insert((stored.session.project.clone(), stored.session.id), (stored, present));
            }
        }
        Ok(found)
    }

    /// Records refreshes.
    pub async fn sessions_rotate(&mut self, rotations: SessionRotations) -> Result<(), Error> {
        let SessionRotations { mut columns, buckets } = rotations;
        let [first, ..] = buckets.as_slice() else { return Ok(()) };
        let slot = self.slot(*first);
        assert!(buckets.iter().all(|bucket| self.slot(*bucket) == slot), "a group is of one slot");
        columns.slot = slot.to_column();
        if self.execute(columns).await? > 0 {
            self.note_written();
        }
        Ok(())
    }

    /// Inserts new sessions, each with the server key of its creator.
    pub async fn sessions_insert(&mut self, sessions: Vec<(StoredSession, KeyId)>) -> Result<(), Error> {
        for (slot, sessions) in by_slot(sessions, |(one, _)| self.slot(one.session.id.bucket())) {
            let mut columns = SessionsInsert { slot: slot.to_column(), ..SessionsInsert::default() };
            let count = sessions.len();
            for (one, creator) in sessions {
                columns.push(SessionRow::new(one), creator);
            }
            if self.execute(columns).await? != count {
                return Err(Error::unavailable(
                    self.operation(),
                    "the database has other slots than when this server started",
                ));
            }
            self.note_written();
        }
        Ok(())
    }
}

statement! {
    /// Records refreshes. The rows are locked. Columns that are arrays themselves come as one array of all their elements, of
    /// which each row gets a part.
    #[derive(Default)]
    SessionsRotate -> () =
    "UPDATE sessions AS s SET
       last_used_at = a.last_used_at, used_before_at = a.used_before_at, refresh_repeats = a.refresh_repeats,
       refresh_repeated_elsewhere = a.refresh_repeated_elsewhere, idle_expires_at = a.idle_expires_at,
       refresh_generation = a.refresh_generation, device_name = a.device_name, user_agent = a.user_agent, ip = a.ip,
       device_changed_at = a.device_changed_at, device_before = a.device_before,
       access_expires_at = greatest(s.access_expires_at, a.access_expires_at),
       refresh_attempts = a.refresh_attempts, refresh_issued_at = a.refresh_issued_at
     FROM (SELECT u.*, ("
    [refresh_attempts: Vec<i64> as sql::Array<sql::BigInt>]
    ")[u.chain_first:u.chain_last] AS refresh_attempts, ("
    [refresh_issued_at: Vec<PgTimestamp> as sql::Array<sql::Timestamptz>]
    ")[u.chain_first:u.chain_last] AS refresh_issued_at FROM unnest("
    [project_id: Vec<String> as sql::Array<sql::Text>]
    ", "
    [id: Vec<Uuid> as sql::Array<sql::Uuid>]
    ", "
    [last_used_at: Vec<PgTimestamp> as sql::Array<sql::Timestamptz>]
    ", "
    [used_before_at: Vec<Option<PgTimestamp>> as sql::Array<sql::Nullable<sql::Timestamptz>>]
    ", "
    [refresh_repeats: Vec<i16> as sql::Array<sql::SmallInt>]
    ", "
    [refresh_repeated_elsewhere: Vec<bool> as sql::Array<sql::Bool>]
    ", "
    [idle_expires_at: Vec<PgTimestamp> as sql::Array<sql::Timestamptz>]
    ", "
    [access_expires_at: Vec<PgTimestamp> as sql::Array<sql::Timestamptz>]
    ", "
    [refresh_generation: Vec<i64> as sql::Array<sql::BigInt>]
    ", "
    [device_name: Vec<Option<String>> as sql::Array<sql::Nullable<sql::Text>>]
    ", "
    [user_agent: Vec<Option<String>> as sql::Array<sql::Nullable<sql::Text>>]
    ", "
    [ip: Vec<Option<String>> as sql::Array<sql::Nullable<sql::Text>>]
    ", "
    [device_changed_at: Vec<Option<PgTimestamp>> as sql::Array<sql::Nullable<sql::Timestamptz>>]
    ", "
    [device_before: Vec<Option<Value>> as sql::Array<sql::Nullable<sql::Jsonb>>]
    ", "
    [chain_first: Vec<i32> as sql::Array<sql::Integer>]
    ", "
    [chain_last: Vec<i32> as sql::Array<sql::Integer>]
    ") AS u (
       project_id, id, last_used_at, used_before_at, refresh_repeats, refresh_repeated_elsewhere, idle_expires_at,
       access_expires_at, refresh_generation, device_name, user_agent, ip, device_changed_at, device_before,
       chain_first, chain_last
     )) AS a WHERE s.slot = "
    [slot: i16 as sql::SmallInt]
    " AND s.project_id = a.project_id AND s.id = a.id"
}

statement! {
    /// Inserts sessions. As for [`SessionsRotate`], arrays come as one array of all elements. The row of the slot leads the
    /// statement to its node, as an array alone would not.
    #[derive(Default)]
    SessionsInsert -> () =
    "INSERT INTO sessions (
       project_id, id, user_id, project_epoch, user_epoch, created_at, last_used_at, expires_at, idle_ttl_ms,
       idle_expires_at, access_expires_at, revoked_at, revoke_reason, refresh_secret, refresh_generation,
       impersonator_id, auth_time, acr, device_name, user_agent, ip, labels, claims, used_before_at, refresh_repeats,
       refresh_repeated_elsewhere, device_changed_at, device_before, creator_key_id, refresh_attempts,
       refresh_issued_at, amr, slot
     ) SELECT
       a.project_id, a.id, a.user_id, a.project_epoch, a.user_epoch, a.created_at, a.last_used_at, a.expires_at,
       a.idle_ttl_ms, a.idle_expires_at, a.access_expires_at, a.revoked_at, a.revoke_reason, a.refresh_secret,
       a.refresh_generation, a.impersonator_id, a.auth_time, a.acr, a.device_name, a.user_agent, a.ip, a.labels,
       a.claims, a.used_before_at, a.refresh_repeats, a.refresh_repeated_elsewhere, a.device_changed_at,
       a.device_before, a.creator_key_id, ("
    [refresh_attempts: Vec<i64> as sql::Array<sql::BigInt>]
    ")[a.chain_first:a.chain_last], ("
    [refresh_issued_at: Vec<PgTimestamp> as sql::Array<sql::Timestamptz>]
    ")[a.chain_first:a.chain_last], ("
    [amr: Vec<String> as sql::Array<sql::Text>]
    ")[a.amr_first:a.amr_last], p.slot FROM slots AS p JOIN unnest("
    [project_id: Vec<String> as sql::Array<sql::Text>]
    ", "
    [id: Vec<Uuid> as sql::Array<sql::Uuid>]
    ", "
    [user_id: Vec<String> as sql::Array<sql::Text>]
    ", "
    [project_epoch: Vec<i64> as sql::Array<sql::BigInt>]
    ", "
    [user_epoch: Vec<i64> as sql::Array<sql::BigInt>]
    ", "
    [created_at: Vec<PgTimestamp> as sql::Array<sql::Timestamptz>]
    ", "
    [last_used_at: Vec<PgTimestamp> as sql::Array<sql::Timestamptz>]
    ", "
    [expires_at: Vec<PgTimestamp> as sql::Array<sql::Timestamptz>]
    ", "
    [idle_ttl_ms: Vec<i64> as sql::Array<sql::BigInt>]
    ", "
    [idle_expires_at: Vec<PgTimestamp> as sql::Array<sql::Timestamptz>]
    ", "
    [access_expires_at: Vec<PgTimestamp> as sql::Array<sql::Timestamptz>]
    ", "
    [revoked_at: Vec<Option<PgTimestamp>> as sql::Array<sql::Nullable<sql::Timestamptz>>]
    ", "
    [revoke_reason: Vec<Option<i16>> as sql::Array<sql::Nullable<sql::SmallInt>>]
    ", "
    [refresh_secret: Vec<Vec<u8>> as sql::Array<sql::Binary>]
    ", "
    [refresh_generation: Vec<i64> as sql::Array<sql::BigInt>]
    ", "
    [impersonator_id: Vec<Option<String>> as sql::Array<sql::Nullable<sql::Text>>]
    ", "
    [auth_time: Vec<Option<PgTimestamp>> as sql::Array<sql::Nullable<sql::Timestamptz>>]
    ", "
    [acr: Vec<Option<String>> as sql::Array<sql::Nullable<sql::Text>>]
    ", "
    [device_name: Vec<Option<String>> as sql::Array<sql::Nullable<sql::Text>>]
    ", "
    [user_agent: Vec<Option<String>> as sql::Array<sql::Nullable<sql::Text>>]
    ", "
    [ip: Vec<Option<String>> as sql::Array<sql::Nullable<sql::Text>>]
    ", "
    [labels: Vec<Value> as sql::Array<sql::Jsonb>]
    ", "
    [claims: Vec<Value> as sql::Array<sql::Jsonb>]
    ", "
    [used_before_at: Vec<Option<PgTimestamp>> as sql::Array<sql::Nullable<sql::Timestamptz>>]
    ", "
    [refresh_repeats: Vec<i16> as sql::Array<sql::SmallInt>]
    ", "
    [refresh_repeated_elsewhere: Vec<bool> as sql::Array<sql::Bool>]
    ", "
    [device_changed_at: Vec<Option<PgTimestamp>> as sql::Array<sql::Nullable<sql::Timestamptz>>]
    ", "
    [device_before: Vec<Option<Value>> as sql::Array<sql::Nullable<sql::Jsonb>>]
    ", "
    [creator_key_id: Vec<Uuid> as sql::Array<sql::Uuid>]
    ", "
    [chain_first: Vec<i32> as sql::Array<sql::Integer>]
    ", "
    [chain_last: Vec<i32> as sql::Array<sql::Integer>]
    ", "
    [amr_first: Vec<i32> as sql::Array<sql::Integer>]
    ", "
    [amr_last: Vec<i32> as sql::Array<sql::Integer>]
    ") AS a (
       project_id, id, user_id, project_epoch, user_epoch, created_at, last_used_at, expires_at, idle_ttl_ms,
       idle_expires_at, access_expires_at, revoked_at, revoke_reason, refresh_secret, refresh_generation,
       impersonator_id, auth_time, acr, device_name, user_agent, ip, labels, claims, used_before_at, refresh_repeats,
       refresh_repeated_elsewhere, device_changed_at, device_before, creator_key_id, chain_first, chain_last,
       amr_first, amr_last
     ) ON true WHERE p.slot = "
    [slot: i16 as sql::SmallInt]
    ""
}

impl SessionsInsert {
    fn push(&mut self, one: SessionRow, creator: KeyId) {
        self.creator_key_id.push(creator.as_uuid());
        let (first, last) = extend(&mut self.refresh_attempts, one.refresh_attempts);
        self.refresh_issued_at.extend(one.refresh_issued_at);
        self.chain_first.push(first);
        self.chain_last.push(last);
        let (first, last) = extend(&mut self.amr, one.amr);
        self.amr_first.push(first);
        self.amr_last.push(last);
        self.project_id.push(one.project_id);
        self.id.push(one.id);
        self.user_id.push(one.user_id);
        self.project_epoch.push(one.project_epoch);
        self.user_epoch.push(one.user_epoch);
        self.created_at.push(one.created_at);
        self.last_used_at.push(one.last_used_at);
        self.expires_at.push(one.expires_at);
        self.idle_ttl_ms.push(one.idle_ttl_ms);
        self.idle_expires_at.push(one.idle_expires_at);
        self.access_expires_at.push(one.access_expires_at);
        self.revoked_at.push(one.revoked_at);
        self.revoke_reason.push(one.revoke_reason);
        self.refresh_secret.push(one.refresh_secret);
        self.refresh_generation.push(one.refresh_generation);
        self.impersonator_id.push(one.impersonator_id);
        self.auth_time.push(one.auth_time);
        self.acr.push(one.acr);
        self.device_name.push(one.device_name);
        self.user_agent.push(one.user_agent);
        self.ip.push(one.ip);
        self.labels.push(one.labels);
        self.claims.push(one.claims);
        self.used_before_at.push(one.used_before_at);
        self.refresh_repeats.push(one.refresh_repeats);
        self.refresh_repeated_elsewhere.push(one.refresh_repeated_elsewhere);
        self.device_changed_at.push(one.device_changed_at);
        self.device_before.push(one.device_before);
    }
}

/// Appends a row's elements. Returns the positions of the first and the last, from 1; without elements, the last is the one
/// before the first, and Postgres takes an empty part.
fn extend<T>(all: &mut Vec<T>, elements: Vec<T>) -> (i32, i32) {
    let position = |count: usize| i32::try_from(count).expect("a group has few requests, and a row few elements");
    let first = position(all.len() + 1);
    all.extend(elements);
    (first, position(all.len()))
}

statement! {
    /// Reads sessions with the present epochs, and locks them and the users, unless another transaction has locked one of the
    /// two. A user's epoch and a refresh wait for each other, as in `EpochShare`.
    ///
    /// A lock in a subquery keeps the planner from joining in another order: without statistics it would compare every session with
    /// every user, and take seconds for a thousand of each.
    SessionsLockUnlocked -> UnlockedRow =
    "SELECT
       s.project_id, s.id, s.user_id, s.project_epoch, s.user_epoch, s.created_at, s.last_used_at, s.expires_at,
       s.idle_ttl_ms, s.idle_expires_at, s.access_expires_at, s.revoked_at, s.revoke_reason, s.refresh_secret,
       s.refresh_generation, s.refresh_attempts, s.refresh_issued_at, s.impersonator_id, s.auth_time, s.acr, s.amr,
       s.device_name, s.user_agent, s.ip, s.labels, s.claims, s.used_before_at, s.refresh_repeats,
       s.refresh_repeated_elsewhere, s.device_changed_at, s.device_before, s.session_epoch,
       p.epoch AS present_project_epoch, u.epoch AS present_user_epoch
     FROM unnest("
    [projects: Vec<String> as sql::Array<sql::Text>]
    ", "
    [ids: Vec<Uuid> as sql::Array<sql::Uuid>]
    ") AS a (project_id, id)
     CROSS JOIN LATERAL (SELECT * FROM sessions WHERE slot = "
    [slot: i16 as sql::SmallInt]
    " AND project_id = a.project_id AND id = a.id FOR UPDATE SKIP LOCKED) AS s
     CROSS JOIN LATERAL (SELECT epoch FROM users WHERE slot = $3 AND project_id = s.project_id AND user_id = s.user_id
         FOR SHARE SKIP LOCKED) AS u
     JOIN projects AS p ON p.id = s.project_id"
}

/// A session that this transaction has locked, and the present epochs.
#[derive(QueryableByName)]
struct UnlockedRow {
    #[diesel(embed)]
    session: SessionRow,
    #[diesel(sql_type = sql::BigInt)]
    present_project_epoch: i64,
    #[diesel(sql_type = sql::BigInt)]
    present_user_epoch: i64,
}
