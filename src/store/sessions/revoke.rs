//! Revokes sessions: the single statement behind every sign-out.

use std::collections::HashSet;
use std::net::IpAddr;

use diesel::QueryableByName;
use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types as sql;
use uuid::Uuid;

use crate::store::Store;
use crate::store::Tx;
use crate::store::columns::actor_columns;
use crate::store::columns::from_pg;
use crate::store::columns::reason_number;
use crate::store::columns::reason_of;
use crate::store::columns::to_pg;
use crate::store::error::Error;
use crate::store::publish::FeedPlace;
use crate::store::publish::PublishedRevocation;
use crate::store::statement::statement;
use sessiond_core::clock;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::id::UserId;
use sessiond_core::session::EndedBy;
use sessiond_core::session::RevokeReason;
use sessiond_core::session::revoked::RevocationTarget;

/// A session to revoke, with the fields of its audit record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Revocation {
    /// The session's project.
    pub project: ProjectId,
    /// The session.
    pub session: SessionId,
    /// When it is revoked.
    pub at: Timestamp,
    /// Why.
    pub reason: RevokeReason,
    /// Who revokes it.
    pub by: EndedBy,
    /// The client's address, if known.
    pub ip: Option<IpAddr>,
}

impl Store {
    /// Revokes sessions in one statement, and so in one transaction. Returns those that were live until now; the others
    /// had expired, were revoked before, or are unknown. `held` is dropped once the database is done with the
    /// operation, even if the caller is gone.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable. Safe to retry: sessions revoked by the first attempt are no longer live
    /// for the second.
    pub async fn sessions_revoke(
        &self,
        asked: Vec<Revocation>,
        held: impl Send + Sync + 'static,
    ) -> Result<HashSet<(ProjectId, SessionId)>, Error> {
        self.check_durable("sessions_revoke")?;
        self.idempotent("sessions_revoke", move |mut tx| {
            let _ = &held;
            let asked = asked.clone();
            async move {
                let ended = tx.sessions_revoke(&asked).await?;
                if !tx.has_written() {
                    // All were revoked before, by others: the answer must not be lost with the primary.
                    tx.mark().await?;
                }
                tx.commit(ended).await
            }
        })
        .await
    }
}

impl Tx {
    /// As [`Store::sessions_revoke`], within a transaction.
    pub async fn sessions_revoke(&mut self, asked: &[Revocation]) -> Result<HashSet<(ProjectId, SessionId)>, Error> {
        let statement = SessionsRevoke {
            projects: asked.iter().map(|one| one.project.as_str().to_owned()).collect(),
            ids: asked.iter().map(|one| one.session.as_uuid()).collect(),
            at: asked.iter().map(|one| to_pg(one.at)).collect(),
            reasons: asked.iter().map(|one| reason_number(one.reason)).collect(),
            records: asked.iter().map(|one| clock::new_record_id(one.at)).collect(),
            actors: asked.iter().map(|one| actor_columns(one.by).0).collect(),
            actor_ids: asked.iter().map(|one| actor_columns(one.by).1).collect(),
            ips: asked.iter().map(|one| one.ip.map(|ip| ip.to_string())).collect(),
        };
        let ended = self.rows(statement).await?;
        if ended.iter().any(|row| row.is_queued) {
            self.ring_on_commit();
        }
        if !ended.is_empty() {
            self.note_written();
        }
        let mut was_live = HashSet::new();
        let mut revocations = vec![];
        for row in ended {
            let (is_live, id) = (row.was_live, SessionId::from_uuid(row.id));
            let one = row.into_published()?;
            if is_live {
                was_live.insert((one.project.clone(), id));
            }
            revocations.push(one);
        }
        self.will_publish(revocations);
        Ok(was_live)
    }
}

statement! {
    /// Revokes those sessions that are not revoked yet, writes audit records, and queues deliveries. Returns for each
    /// session whether it was live until now, and whether anything was queued. Sign-outs of many callers share one
    /// statement.
    ///
    /// A session that has expired, or that a raised epoch ended, is revoked nevertheless: a concurrent refresh may have
    /// read an earlier time, and must not revive it. Rows are locked in a fixed order, whatever the plan, so that two
    /// such statements cannot deadlock. A project has few endpoints: the limit makes Postgres look up those of the
    /// project, however many there are in total.
    SessionsRevoke -> EndedRow =
    "WITH asked (project_id, id, at, reason, record, actor, actor_id, ip) AS MATERIALIZED (
         SELECT s.project_id, s.id, a.at, a.reason, a.record, a.actor, a.actor_id, a.ip FROM unnest("
    [projects: Vec<String> as sql::Array<sql::Text>]
    ", "
    [ids: Vec<Uuid> as sql::Array<sql::Uuid>]
    ", "
    [at: Vec<PgTimestamp> as sql::Array<sql::Timestamptz>]
    ", "
    [reasons: Vec<i16> as sql::Array<sql::SmallInt>]
    ", "
    [records: Vec<Uuid> as sql::Array<sql::Uuid>]
    ", "
    [actors: Vec<i16> as sql::Array<sql::SmallInt>]
    ", "
    [actor_ids: Vec<Option<Uuid>> as sql::Array<sql::Nullable<sql::Uuid>>]
    ", "
    [ips: Vec<Option<String>> as sql::Array<sql::Nullable<sql::Text>>]
    ") AS a (project_id, id, at, reason, record, actor, actor_id, ip)
         JOIN sessions AS s ON s.project_id = a.project_id AND s.id = a.id
         WHERE s.revoked_at IS NULL ORDER BY s.project_id, s.id FOR UPDATE OF s
     ), ended AS (
         UPDATE sessions AS s SET revoked_at = asked.at, revoke_reason = asked.reason FROM asked
         WHERE s.project_id = asked.project_id AND s.id = asked.id AND s.revoked_at IS NULL
         RETURNING s.project_id, s.id, s.user_id, s.impersonator_id IS NOT NULL AS is_impersonation, s.access_expires_at,
           asked.at, asked.reason, asked.record, asked.actor,
           asked.actor_id, asked.ip, s.expires_at > asked.at AND s.idle_expires_at > asked.at
             AND NOT EXISTS (SELECT FROM users AS u
                 WHERE u.project_id = s.project_id AND u.user_id = s.user_id AND u.epoch > s.user_epoch)
             AND NOT EXISTS (SELECT FROM projects AS p WHERE p.id = s.project_id AND p.epoch > s.project_epoch) AS was_live
     ), recorded AS (
         INSERT INTO revocations (project_id, id, at, reason, session_id, user_id, is_impersonation, access_expires_at,
           actor, actor_id, ip)
         SELECT project_id, record, at, reason, id, user_id, is_impersonation, access_expires_at, actor, actor_id, ip
         FROM ended
     ), queued AS (
         INSERT INTO backchannel_deliveries (project_id, id, endpoint_id, revocation_id, session_id, user_id, at, reason,
           actor, actor_id, queued_at, due_at)
         SELECT e.project_id, overlay(gen_random_uuid()::text PLACING left(ended.record::text, 15) FROM 1)::uuid, e.id,
           ended.record, ended.id, ended.user_id, ended.at, ended.reason, ended.actor, ended.actor_id, ended.at, ended.at
         FROM ended CROSS JOIN LATERAL (SELECT project_id, id FROM backchannel_endpoints
             WHERE project_id = ended.project_id AND removed_at IS NULL LIMIT 100) AS e
         RETURNING id
     )
     SELECT project_id, id, user_id, is_impersonation, at, reason, record, access_expires_at,
       pg_current_xact_id()::text::bigint AS xid, was_live, EXISTS (SELECT FROM queued) AS is_queued FROM ended"
}

/// A session that was just revoked.
#[derive(QueryableByName)]
struct EndedRow {
    #[diesel(sql_type = sql::Text)]
    project_id: String,
    #[diesel(sql_type = sql::Uuid)]
    id: Uuid,
    #[diesel(sql_type = sql::Text)]
    user_id: String,
    #[diesel(sql_type = sql::Bool)]
    is_impersonation: bool,
    #[diesel(sql_type = sql::Timestamptz)]
    at: PgTimestamp,
    #[diesel(sql_type = sql::SmallInt)]
    reason: i16,
    /// The id of the audit record.
    #[diesel(sql_type = sql::Uuid)]
    record: Uuid,
    #[diesel(sql_type = sql::Timestamptz)]
    access_expires_at: PgTimestamp,
    #[diesel(sql_type = sql::BigInt)]
    xid: i64,
    /// Whether it was live until now.
    #[diesel(sql_type = sql::Bool)]
    was_live: bool,
    /// Whether the statement queued a delivery, for any session.
    #[diesel(sql_type = sql::Bool)]
    is_queued: bool,
}

impl EndedRow {
    fn into_published(self) -> Result<PublishedRevocation, Error> {
        let bad = |column| Error::Inconsistent { table: "sessions", column, row: self.id.to_string() };
        Ok(PublishedRevocation {
            place: FeedPlace { xid: self.xid.try_into().map_err(|_| bad("xid"))?, id: self.record },
            project: ProjectId::parse(&self.project_id).ok_or_else(|| bad("project_id"))?,
            ended: RevocationTarget::Session {
                id: SessionId::from_uuid(self.id),
                is_impersonation: self.is_impersonation,
            },
            user: UserId::parse(&self.user_id),
            at: from_pg(self.at),
            reason: reason_of(self.reason).ok_or_else(|| bad("revoke_reason"))?,
            access_expires_at: from_pg(self.access_expires_at),
        })
    }
}
