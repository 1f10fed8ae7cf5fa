//! Revokes sessions: the single statement behind every sign-out.

use std::collections::HashSet;
use std::net::IpAddr;

use diesel::QueryableByName;
use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types as sql;
use uuid::Uuid;

use crate::store::Done;
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
use crate::store::slots::Slot;
use crate::store::slots::by_slot;
use crate::store::statement::statement;
use crate::store::writers::Writer;
use crate::store::writers::WriterId;
use crate::telemetry::request;
use crate::telemetry::trace::Span;
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

/// The operation's name in metrics and errors.
pub const SESSIONS_REVOKE: &str = "sessions_revoke";

statement! {
    /// Revokes those sessions of one slot that are not revoked yet, writes audit records, and queues deliveries, by a function of
    /// the database (see the migration `sign_out_function`). Returns for each session whether it was live until now, and whether
    /// anything was queued. Sign-outs of many callers share one call. If `waits` is false, sessions that another transaction has
    /// locked are returned as such.
    ///
    /// A session that has expired, or that a raised epoch ended, is revoked nevertheless: a concurrent refresh may have
    /// read an earlier time, and must not revive it. Rows are locked in a fixed order, whatever the plan, so that two
    /// calls cannot deadlock. A project has few endpoints: the limit makes Postgres look up those of the
    /// project, however many there are in total. If the writer cannot go on (see `WriterLock`), the call fails.
    SessionsRevoke -> RevokedRow =
    "SELECT project_id, id, user_id, is_impersonation, at, reason, record, access_expires_at, seq, was_live, is_queued, is_locked
     FROM sessions_revoke("
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
    ", "
    [last: i32 as sql::Integer]
    ", "
    [writer: i64 as sql::BigInt]
    ", "
    [slot: i16 as sql::SmallInt]
    ", "
    [waits: bool as sql::Bool]
    ")"
}

impl SessionsRevoke {
    /// Binds the revocations to the parameters.
    fn new(slot: Slot, asked: &[&Revocation], writer: Writer, waits: bool) -> Self {
        Self {
            projects: asked.iter().map(|one| one.project.as_str().to_owned()).collect(),
            ids: asked.iter().map(|one| one.session.as_uuid()).collect(),
            at: asked.iter().map(|one| to_pg(one.at)).collect(),
            reasons: asked.iter().map(|one| reason_number(one.reason)).collect(),
            records: asked.iter().map(|one| clock::new_record_id(one.at)).collect(),
            actors: asked.iter().map(|one| actor_columns(one.by).0).collect(),
            actor_ids: asked.iter().map(|one| actor_columns(one.by).1).collect(),
            ips: asked.iter().map(|one| one.ip.map(|ip| ip.to_string())).collect(),
            last: i32::try_from(writer.last()).unwrap_or(i32::MAX),
            writer: writer.id().to_column(),
            slot: slot.to_column(),
            waits,
        }
    }
}

/// What became of the sessions that one statement was to revoke. The others had expired, were revoked before, or are unknown.
#[derive(Debug, Default)]
pub struct Revoked {
    /// The sessions that were live until now.
    pub live: HashSet<(ProjectId, SessionId)>,
    /// The sessions that another transaction has locked. Nothing was done about them.
    pub locked: HashSet<(ProjectId, SessionId)>,
}

impl Store {
    /// Revokes sessions, those of one slot in one statement, and so in one transaction. Returns those that were live until now; the others
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
        self.check_durable(SESSIONS_REVOKE)?;
        self.idempotent(SESSIONS_REVOKE, move |mut tx| {
            let _ = &held;
            let asked = asked.clone();
            async move {
                let live = tx.sessions_revoke(&asked).await?;
                tx.commit_revoked(live).await
            }
        })
        .await
    }

    /// As [`Store::sessions_revoke`], but does not wait for sessions that another transaction has locked. Each session
    /// may be named once. Runs on the caller's task: if that is dropped, it is unknown whether anything was revoked.
    ///
    /// # Errors
    ///
    /// As [`Store::sessions_revoke`].
    pub async fn sessions_revoke_unlocked(&self, asked: &[Revocation]) -> Result<Revoked, Error> {
        self.check_durable(SESSIONS_REVOKE)?;
        let work = |mut tx: Tx| async move {
            let mut revoked = Revoked::default();
            for (slot, asked) in by_slot(asked, |one| tx.slot(one.session.bucket())) {
                let writer = tx.writer(slot).await?;
                let rows = tx.rows(SessionsRevoke::new(slot, &asked, writer, false)).await?;
                tx.note_revoked(&mut revoked, rows, slot, writer.id())?;
            }
            tx.commit_revoked(revoked).await
        };
        let span = request::child_span(SESSIONS_REVOKE);
        let parent = span.as_ref().map(Span::parent);
        self.attached(SESSIONS_REVOKE, span, self.single(SESSIONS_REVOKE, parent, work)).await
    }
}

impl Tx {
    /// As [`Store::sessions_revoke`], within a transaction.
    pub async fn sessions_revoke(&mut self, asked: &[Revocation]) -> Result<HashSet<(ProjectId, SessionId)>, Error> {
        let mut revoked = Revoked::default();
        for (slot, asked) in by_slot(asked, |one| self.slot(one.session.bucket())) {
            let writer = self.writer(slot).await?;
            let rows = self.rows(SessionsRevoke::new(slot, &asked, writer, true)).await?;
            self.note_revoked(&mut revoked, rows, slot, writer.id())?;
        }
        Ok(revoked.live)
    }

    /// Commits a statement that revokes.
    async fn commit_revoked<T>(mut self, value: T) -> Result<Done<T>, Error> {
        if !self.has_written() {
            // All were revoked before, by others: the answer must not be lost with the primary.
            self.mark().await?;
        }
        self.commit(value).await
    }

    /// Notes what to publish and whom to wake after the commit, and the numbers that the writer has used.
    fn note_revoked(
        &mut self,
        revoked: &mut Revoked,
        rows: Vec<RevokedRow>,
        slot: Slot,
        writer: WriterId,
    ) -> Result<(), Error> {
        let mut published = vec![];
        for row in rows {
            let session = (row.project()?, SessionId::from_uuid(row.id));
            if row.is_locked {
                revoked.locked.insert(session);
                continue;
            }
            if row.is_queued {
                self.ring_on_commit();
            }
            self.note_written();
            if row.was_live == Some(true) {
                revoked.live.insert(session);
            }
            published.push(row.into_published(writer)?);
        }
        self.note_numbers(slot, u32::try_from(published.len()).unwrap_or(u32::MAX));
        self.will_publish(published);
        Ok(())
    }
}

/// A session that was just revoked, or that another transaction has locked. The latter has only an id.
#[derive(QueryableByName)]
struct RevokedRow {
    #[diesel(sql_type = sql::Text)]
    project_id: String,
    #[diesel(sql_type = sql::Uuid)]
    id: Uuid,
    #[diesel(sql_type = sql::Nullable<sql::Text>)]
    user_id: Option<String>,
    #[diesel(sql_type = sql::Nullable<sql::Bool>)]
    is_impersonation: Option<bool>,
    #[diesel(sql_type = sql::Nullable<sql::Timestamptz>)]
    at: Option<PgTimestamp>,
    #[diesel(sql_type = sql::Nullable<sql::SmallInt>)]
    reason: Option<i16>,
    /// The id of the audit record.
    #[diesel(sql_type = sql::Nullable<sql::Uuid>)]
    record: Option<Uuid>,
    #[diesel(sql_type = sql::Nullable<sql::Timestamptz>)]
    access_expires_at: Option<PgTimestamp>,
    /// The writer's number.
    #[diesel(sql_type = sql::Nullable<sql::Integer>)]
    seq: Option<i32>,
    /// Whether it was live until now.
    #[diesel(sql_type = sql::Nullable<sql::Bool>)]
    was_live: Option<bool>,
    /// Whether the statement queued a delivery, for any session.
    #[diesel(sql_type = sql::Bool)]
    is_queued: bool,
    /// Whether it was not revoked, because another transaction has locked it.
    #[diesel(sql_type = sql::Bool)]
    is_locked: bool,
}

impl RevokedRow {
    fn bad(&self, column: &'static str) -> Error {
        Error::Inconsistent { table: "sessions", column, row: self.id.to_string() }
    }

    fn project(&self) -> Result<ProjectId, Error> {
        ProjectId::parse(&self.project_id).ok_or_else(|| self.bad("project_id"))
    }

    fn into_published(self, writer: WriterId) -> Result<PublishedRevocation, Error> {
        let is_impersonation = self.is_impersonation.ok_or_else(|| self.bad("impersonator_id"))?;
        let seq = self.seq.and_then(|seq| seq.try_into().ok());
        Ok(PublishedRevocation {
            place: FeedPlace {
                writer,
                seq: seq.ok_or_else(|| self.bad("seq"))?,
                id: self.record.ok_or_else(|| self.bad("record"))?,
            },
            project: self.project()?,
            ended: RevocationTarget::Session { id: SessionId::from_uuid(self.id), is_impersonation },
            user: self.user_id.as_deref().and_then(UserId::parse),
            at: from_pg(self.at.ok_or_else(|| self.bad("revoked_at"))?),
            reason: self.reason.and_then(reason_of).ok_or_else(|| self.bad("revoke_reason"))?,
            access_expires_at: from_pg(self.access_expires_at.ok_or_else(|| self.bad("access_expires_at"))?),
        })
    }
}
