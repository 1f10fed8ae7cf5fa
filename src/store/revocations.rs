//! `revocations`: audit records of who revoked what, when, why and from where. Those of single sessions are written by
//! the statement that revokes the sessions.

use std::net::IpAddr;

use diesel::ExpressionMethods as _;
use diesel::QueryDsl as _;
use diesel::Queryable;
use diesel::Selectable;
use diesel::SelectableHelper as _;
use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types as sql;
use uuid::Uuid;

use super::Store;
use super::Tx;
use super::columns::actor_columns;
use super::columns::actor_of;
use super::columns::from_pg;
use super::columns::limit;
use super::columns::reason_number;
use super::columns::reason_of;
use super::columns::to_pg;
use super::error::Error;
use super::events::KeyKind;
use super::events::RecordOrder;
use super::events::RecordQuery;
use super::events::records;
use super::publish::FeedPlace;
use super::publish::PublishedRevocation;
use super::schema::revocations;
use super::statement::statement;
use sessiond_core::clock;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::Bucket;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::id::UserId;
use sessiond_core::session::EndedBy;
use sessiond_core::session::RevokeReason;
use sessiond_core::session::policy::ACCESS_TOKEN_TTL_MAX;
use sessiond_core::session::revoked::RevocationTarget;

/// The revocation of many sessions at once, or of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BulkRevocation {
    /// The project.
    pub project: ProjectId,
    /// The user's bucket; any, if it concerns no single user.
    pub bucket: Bucket,
    /// What is revoked.
    pub ended: RevocationTarget,
    /// The user of a session whose tokens are superseded. For the revocation of a user, `ended` names it.
    pub user: Option<UserId>,
    /// Why.
    pub reason: RevokeReason,
    /// When.
    pub at: Timestamp,
    /// Until when a verifier may hold an access token that it revokes.
    pub access_expires_at: Timestamp,
    /// Who revokes.
    pub by: EndedBy,
    /// The client's address, if known.
    pub ip: Option<IpAddr>,
}

impl BulkRevocation {
    /// The revocation of a key by the operator.
    pub fn of_key(project: ProjectId, key: RevocationTarget, at: Timestamp) -> Self {
        // The longest that an access token signed with it may be valid.
        let access_expires_at = at + ACCESS_TOKEN_TTL_MAX;
        let (reason, by) = (RevokeReason::KeyRevoked, EndedBy::Operator);
        // Concerns no user, so it may be anywhere.
        let bucket = Bucket::from_number(0);
        Self { project, bucket, ended: key, user: None, reason, at, access_expires_at, by, ip: None }
    }
}

/// An audit record of a revocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevocationRecord {
    /// The record's id. Ids ascend in time order.
    pub id: Uuid,
    /// When it was revoked.
    pub at: Timestamp,
    /// Why it was revoked.
    pub reason: RevokeReason,
    /// The revoked session, or the one whose tokens were superseded; `None` if more than one was revoked.
    pub session: Option<SessionId>,
    /// The one session that was not revoked with the others.
    pub spared: Option<SessionId>,
    /// The key that was revoked.
    pub key: Option<KeyId>,
    /// The kind of that key.
    pub key_kind: Option<KeyKind>,
    /// The session's user; `None` for a whole project, and once the user is erased.
    pub user: Option<String>,
    /// Who revoked it.
    pub by: EndedBy,
    /// The client's address, if known, until addresses are swept.
    pub ip: Option<String>,
}

impl Store {
    /// Returns the records that match.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn revocations(&self, asked: RecordQuery) -> Result<Vec<RevocationRecord>, Error> {
        self.idempotent("revocations", move |mut tx| {
            let asked = asked.clone();
            async move {
                let found: Vec<RecordRow> = records!(tx, revocations, RecordRow, &asked);
                tx.commit(found.into_iter().map(RecordRow::into_record).collect::<Result<_, _>>()?).await
            }
        })
        .await
    }
}

impl Tx {
    /// Inserts a record. Returns its id.
    pub async fn bulk_revocation_insert(&mut self, revocation: BulkRevocation) -> Result<Uuid, Error> {
        let BulkRevocation { project, bucket, ended, user, reason, at, access_expires_at, by, ip } = revocation;
        let slot = self.slot(bucket);
        let (actor, actor_id) = actor_columns(by);
        let (id, parts) = (clock::new_record_id(at), EndedColumns::of(&ended));
        let user = parts.user.cloned().or(user);
        let writer = self.writer(slot).await?;
        self.writer_lock(writer).await?;
        let place = FeedPlace { writer: writer.id(), seq: writer.last() + 1, id };
        let insert = diesel::insert_into(revocations::table).values((
            revocations::project_id.eq(project.as_str()),
            revocations::id.eq(id),
            revocations::at.eq(to_pg(at)),
            revocations::reason.eq(reason_number(reason)),
            revocations::session_id.eq(parts.session),
            revocations::is_impersonation.eq(parts.is_impersonation),
            revocations::user_epoch.eq(parts.user_epoch),
            revocations::spared_session_id.eq(parts.spared),
            revocations::user_id.eq(user.as_ref().map(UserId::as_str)),
            revocations::project_epoch.eq(parts.project_epoch),
            revocations::signing_key_id.eq(parts.signing_key),
            revocations::server_key_id.eq(parts.server_key),
            revocations::superseded_session_id.eq(parts.superseded),
            revocations::session_epoch.eq(parts.session_epoch),
            revocations::access_expires_at.eq(to_pg(access_expires_at)),
            revocations::actor.eq(actor),
            revocations::actor_id.eq(actor_id),
            revocations::ip.eq(ip.map(|ip| ip.to_string())),
            revocations::writer.eq(place.writer.to_column()),
            revocations::seq.eq(i32::try_from(place.seq).unwrap_or(i32::MAX)),
            revocations::slot.eq(slot.to_column()),
        ));
        self.execute(insert).await?;
        self.note_numbers(slot, 1);
        self.will_publish([PublishedRevocation { place, project, ended, user, at, reason, access_expires_at }]);
        Ok(id)
    }

    /// Queues deliveries for the revocation of a user: one for each named session, or one for the user. Queues nothing
    /// for more than one user, nor for superseded tokens, whose session continues.
    pub async fn bulk_revocation_queue(
        &mut self,
        revocation: &BulkRevocation,
        record: Uuid,
        sessions: Option<Vec<SessionId>>,
    ) -> Result<(), Error> {
        let Some(user) = EndedColumns::of(&revocation.ended).user else { return Ok(()) };
        let (actor, actor_id) = actor_columns(revocation.by);
        let queue = BulkRevocationQueue {
            record,
            user: user.as_str().to_owned(),
            at: to_pg(revocation.at),
            reason: reason_number(revocation.reason),
            actor,
            actor_id,
            sessions: sessions.map_or_else(|| vec![None], |ids| ids.into_iter().map(|id| Some(id.as_uuid())).collect()),
            project: revocation.project.as_str().to_owned(),
            slot: self.slot(revocation.bucket).to_column(),
        };
        if self.execute(queue).await? > 0 {
            self.ring_on_commit();
        }
        Ok(())
    }

    /// Removes a user's name and addresses from at most `rows_max` records. Returns how many were changed.
    pub async fn revocations_anonymise(
        &mut self,
        project: &ProjectId,
        user: &UserId,
        bucket: Bucket,
        rows_max: usize,
    ) -> Result<usize, Error> {
        let slot = self.slot(bucket).to_column();
        let some = revocations::table
            .filter(revocations::slot.eq(slot))
            .filter(revocations::project_id.eq(project.as_str()))
            .filter(revocations::user_id.eq(user.as_str()))
            .order(revocations::id)
            .limit(limit(rows_max))
            .select(revocations::id)
            .for_update();
        let ids: Vec<Uuid> = self.load(some).await?;
        let these =
            revocations::table.filter(revocations::project_id.eq(project.as_str())).filter(revocations::id.eq_any(ids));
        let these = these.filter(revocations::slot.eq(slot));
        let update =
            diesel::update(these).set((revocations::user_id.eq(None::<String>), revocations::ip.eq(None::<String>)));
        self.execute(update).await
    }
}

statement! {
    /// Queues deliveries to each endpoint of the project: one for each session, where null stands for the user.
    ///
    /// A delivery's id is a UUIDv7 with the time of the audit record that it reports, and random bits.
    BulkRevocationQueue -> () =
    "INSERT INTO backchannel_deliveries (project_id, id, endpoint_id, revocation_id, session_id, user_id, at, reason,
         actor, actor_id, queued_at, due_at, slot)
     SELECT e.project_id, overlay(gen_random_uuid()::text PLACING left(c.record::text, 15) FROM 1)::uuid, e.id,
         c.record, s.id, c.user_id, c.at, c.reason, c.actor, c.actor_id, c.at, c.at, c.slot
     FROM (SELECT "
    [record: Uuid as sql::Uuid]
    ", "
    [user: String as sql::Text]
    ", "
    [at: PgTimestamp as sql::Timestamptz]
    ", "
    [reason: i16 as sql::SmallInt]
    ", "
    [actor: i16 as sql::SmallInt]
    ", "
    [actor_id: Option<Uuid> as sql::Nullable<sql::Uuid>]
    ", "
    [slot: i16 as sql::SmallInt]
    "::smallint) AS c (record, user_id, at, reason, actor, actor_id, slot) CROSS JOIN backchannel_endpoints AS e CROSS JOIN unnest("
    [sessions: Vec<Option<Uuid>> as sql::Array<sql::Nullable<sql::Uuid>>]
    ") AS s (id) WHERE e.project_id = "
    [project: String as sql::Text]
    " AND e.removed_at IS NULL"
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = revocations)]
struct RecordRow {
    id: Uuid,
    at: PgTimestamp,
    reason: i16,
    session_id: Option<Uuid>,
    superseded_session_id: Option<Uuid>,
    spared_session_id: Option<Uuid>,
    signing_key_id: Option<Uuid>,
    server_key_id: Option<Uuid>,
    user_id: Option<String>,
    actor: i16,
    actor_id: Option<Uuid>,
    ip: Option<String>,
}

impl RecordRow {
    fn into_record(self) -> Result<RevocationRecord, Error> {
        let bad = |column| Error::Inconsistent { table: "revocations", column, row: self.id.to_string() };
        let key_kind = self.signing_key_id.map(|_| KeyKind::Signing);
        Ok(RevocationRecord {
            id: self.id,
            at: from_pg(self.at),
            reason: reason_of(self.reason).ok_or_else(|| bad("reason"))?,
            session: self.session_id.or(self.superseded_session_id).map(SessionId::from_uuid),
            spared: self.spared_session_id.map(SessionId::from_uuid),
            key: self.signing_key_id.or(self.server_key_id).map(KeyId::from_uuid),
            key_kind: key_kind.or(self.server_key_id.map(|_| KeyKind::Server)),
            by: actor_of(self.actor, self.actor_id).ok_or_else(|| bad("actor"))?,
            user: self.user_id,
            ip: self.ip,
        })
    }
}

/// The columns that record what was revoked.
#[derive(Default)]
struct EndedColumns<'a> {
    session: Option<Uuid>,
    is_impersonation: bool,
    user: Option<&'a UserId>,
    user_epoch: Option<i64>,
    spared: Option<Uuid>,
    project_epoch: Option<i64>,
    signing_key: Option<Uuid>,
    server_key: Option<Uuid>,
    superseded: Option<Uuid>,
    session_epoch: Option<i64>,
}

impl<'a> EndedColumns<'a> {
    fn of(ended: &'a RevocationTarget) -> Self {
        match ended {
            RevocationTarget::Session { id, is_impersonation } => {
                Self { session: Some(id.as_uuid()), is_impersonation: *is_impersonation, ..Self::default() }
            }
            RevocationTarget::User { user, epoch, spared } => Self {
                user: Some(user),
                user_epoch: Some(*epoch),
                spared: spared.map(SessionId::as_uuid),
                ..Self::default()
            },
            RevocationTarget::Project { epoch } => Self { project_epoch: Some(*epoch), ..Self::default() },
            RevocationTarget::SigningKey(key) => Self { signing_key: Some(key.as_uuid()), ..Self::default() },
            RevocationTarget::ServerKey(key) => Self { server_key: Some(key.as_uuid()), ..Self::default() },
            RevocationTarget::Superseded { id, session_epoch } => {
                Self { superseded: Some(id.as_uuid()), session_epoch: Some(*session_epoch), ..Self::default() }
            }
        }
    }
}
