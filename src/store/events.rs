//! `audit_events`: audit records that revoke nothing, and so are not in any feed. Written in the transaction that does
//! what they record.

use std::net::IpAddr;

use diesel::ExpressionMethods as _;
use diesel::Insertable;
use diesel::QueryDsl as _;
use diesel::Queryable;
use diesel::Selectable;
use diesel::SelectableHelper as _;
use diesel::pg::data_types::PgTimestamp;
use uuid::Uuid;

use super::Store;
use super::Tx;
use super::columns::actor_columns;
use super::columns::actor_of;
use super::columns::from_pg;
use super::columns::limit;
use super::columns::to_pg;
use super::error::Error;
use super::schema::audit_events;
use sessiond_core::clock;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::Bucket;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::id::UserId;
use sessiond_core::session::EndedBy;
use sessiond_core::token::sealing::Purpose;

/// The kind of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// A signing key.
    Signing,
    /// A refresh-token key.
    Refresh,
    /// A server key.
    Server,
}

impl KeyKind {
    const ALL: [Self; 3] = [Self::Signing, Self::Refresh, Self::Server];

    /// The kind's name in the audit.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Signing => "signing_key",
            Self::Refresh => "refresh_key",
            Self::Server => "server_key",
        }
    }

    /// The stored number. A number never changes its meaning.
    const fn number(self) -> i16 {
        match self {
            Self::Signing => 1,
            Self::Refresh => 2,
            Self::Server => 3,
        }
    }
}

impl From<Purpose> for KeyKind {
    fn from(purpose: Purpose) -> Self {
        match purpose {
            Purpose::Signing => Self::Signing,
            Purpose::Refresh => Self::Refresh,
        }
    }
}

/// The kind of an audit event, with its details.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// An impersonation session was opened.
    ImpersonationOpened {
        /// The session.
        session: SessionId,
        /// The user; `None` once erased.
        user: Option<String>,
        /// Who acts as the user.
        impersonator: String,
    },
    /// A refresh token was used again within the grace period, from another network or user agent.
    RefreshRepeatedElsewhere {
        /// The session.
        session: SessionId,
        /// Its user; `None` once erased.
        user: Option<String>,
    },
    /// A key was created.
    KeyCreated(KeyKind, KeyId),
    /// A key replaced the previous one as the signing key.
    KeyRotated(KeyKind, KeyId),
    /// A key was revoked, and no feed reports it.
    KeyRevoked(KeyKind, KeyId),
}

impl EventKind {
    /// The event's name in the audit.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::ImpersonationOpened { .. } => "IMPERSONATION_OPENED",
            Self::RefreshRepeatedElsewhere { .. } => "REFRESH_REPEATED_ELSEWHERE",
            Self::KeyCreated(..) => "KEY_CREATED",
            Self::KeyRotated(..) => "KEY_ROTATED",
            Self::KeyRevoked(..) => "KEY_REVOKED",
        }
    }

    /// The stored number. A number never changes its meaning.
    const fn number(&self) -> i16 {
        match self {
            Self::ImpersonationOpened { .. } => 1,
            Self::RefreshRepeatedElsewhere { .. } => 2,
            Self::KeyCreated(..) => 3,
            Self::KeyRotated(..) => 4,
            Self::KeyRevoked(..) => 5,
        }
    }

    /// The session concerned, and its user.
    pub const fn session(&self) -> Option<(SessionId, Option<&String>)> {
        match self {
            Self::ImpersonationOpened { session, user, .. } | Self::RefreshRepeatedElsewhere { session, user } => {
                Some((*session, user.as_ref()))
            }
            Self::KeyCreated(..) | Self::KeyRotated(..) | Self::KeyRevoked(..) => None,
        }
    }

    /// The key concerned.
    pub const fn key(&self) -> Option<(KeyKind, KeyId)> {
        match self {
            Self::ImpersonationOpened { .. } | Self::RefreshRepeatedElsewhere { .. } => None,
            Self::KeyCreated(kind, id) | Self::KeyRotated(kind, id) | Self::KeyRevoked(kind, id) => Some((*kind, *id)),
        }
    }

    /// Who acts as the user.
    pub const fn impersonator(&self) -> Option<&String> {
        match self {
            Self::ImpersonationOpened { impersonator, .. } => Some(impersonator),
            _ => None,
        }
    }
}

/// Which audit records to read.
#[derive(Clone, Debug)]
pub struct RecordQuery {
    /// The project.
    pub project: ProjectId,
    /// The user; `None` for the whole project.
    pub user: Option<UserId>,
    /// The maximum number of records.
    pub rows_max: usize,
}

/// A new audit record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEvent {
    /// The project.
    pub project: ProjectId,
    /// What kind.
    pub kind: EventKind,
    /// When it happened.
    pub at: Timestamp,
    /// Who did it.
    pub by: EndedBy,
    /// The client's address, if known.
    pub ip: Option<IpAddr>,
}

impl AuditEvent {
    /// A key event caused by the operator.
    pub const fn of_key(project: ProjectId, kind: EventKind, at: Timestamp) -> Self {
        Self { project, kind, at, by: EndedBy::Operator, ip: None }
    }
}

/// A stored audit record that revokes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRecord {
    /// The record's id. Ids ascend in time order, across both tables of the audit.
    pub id: Uuid,
    /// When it happened.
    pub at: Timestamp,
    /// What kind.
    pub kind: EventKind,
    /// Who did it.
    pub by: EndedBy,
    /// The client's address, if known, until addresses are swept.
    pub ip: Option<String>,
}

impl Store {
    /// Returns the newest records of this table, newest first.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn events(&self, asked: RecordQuery) -> Result<Vec<EventRecord>, Error> {
        self.idempotent("events", move |mut tx| {
            let asked = asked.clone();
            async move {
                let newest = audit_events::table
                    .filter(audit_events::project_id.eq(asked.project.as_str()))
                    .order(audit_events::id.desc())
                    .limit(limit(asked.rows_max))
                    .select(EventRow::as_select());
                let found = match &asked.user {
                    Some(user) => tx.load(newest.filter(audit_events::user_id.eq(user.as_str()))).await?,
                    None => tx.load(newest).await?,
                };
                tx.commit(found.into_iter().map(EventRow::into_record).collect::<Result<_, _>>()?).await
            }
        })
        .await
    }
}

impl Tx {
    /// Inserts an audit record.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn event_insert(&mut self, event: &AuditEvent) -> Result<(), Error> {
        // What concerns no session may be anywhere.
        let bucket = event.kind.session().map_or(Bucket::from_number(0), |(session, _)| session.bucket());
        let slot = self.slot(bucket).to_column();
        let insert =
            diesel::insert_into(audit_events::table).values((EventRow::new(event), audit_events::slot.eq(slot)));
        self.execute(insert).await.map(drop)
    }

    /// Removes a user's name and addresses from at most `rows_max` records of this table. Returns how many were
    /// changed.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn events_anonymise(
        &mut self,
        project: &ProjectId,
        user: &UserId,
        bucket: Bucket,
        rows_max: usize,
    ) -> Result<usize, Error> {
        let slot = self.slot(bucket).to_column();
        let some = audit_events::table
            .filter(audit_events::slot.eq(slot))
            .filter(audit_events::project_id.eq(project.as_str()))
            .filter(audit_events::user_id.eq(user.as_str()))
            .order(audit_events::id)
            .limit(limit(rows_max))
            .select(audit_events::id)
            .for_update();
        let ids: Vec<Uuid> = self.load(some).await?;
        let these = audit_events::table
            .filter(audit_events::project_id.eq(project.as_str()))
            .filter(audit_events::id.eq_any(ids))
            .filter(audit_events::slot.eq(slot));
        let update =
            diesel::update(these).set((audit_events::user_id.eq(None::<String>), audit_events::ip.eq(None::<String>)));
        self.execute(update).await
    }
}

#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = audit_events)]
struct EventRow {
    project_id: String,
    id: Uuid,
    at: PgTimestamp,
    kind: i16,
    session_id: Option<Uuid>,
    user_id: Option<String>,
    impersonator_id: Option<String>,
    key_kind: Option<i16>,
    key_id: Option<Uuid>,
    actor: i16,
    actor_id: Option<Uuid>,
    ip: Option<String>,
}

impl EventRow {
    fn new(event: &AuditEvent) -> Self {
        let AuditEvent { project, kind, at, by, ip } = event;
        let (actor, actor_id) = actor_columns(*by);
        let (session, key) = (kind.session(), kind.key());
        Self {
            project_id: project.as_str().to_owned(),
            id: clock::new_record_id(*at),
            at: to_pg(*at),
            kind: kind.number(),
            session_id: session.map(|(id, _)| id.as_uuid()),
            user_id: session.and_then(|(_, user)| user.cloned()),
            impersonator_id: kind.impersonator().cloned(),
            key_kind: key.map(|(kind, _)| kind.number()),
            key_id: key.map(|(_, id)| id.as_uuid()),
            actor,
            actor_id,
            ip: ip.map(|ip| ip.to_string()),
        }
    }

    fn into_record(self) -> Result<EventRecord, Error> {
        let bad = |column| Error::Inconsistent { table: "audit_events", column, row: self.id.to_string() };
        let session = || self.session_id.map(SessionId::from_uuid).ok_or_else(|| bad("session_id"));
        let key = || {
            let kind = KeyKind::ALL.into_iter().find(|kind| Some(kind.number()) == self.key_kind);
            Ok((kind.ok_or_else(|| bad("key_kind"))?, self.key_id.map(KeyId::from_uuid).ok_or_else(|| bad("key_id"))?))
        };
        let user = self.user_id.clone();
        let kind = match self.kind {
            1 => EventKind::ImpersonationOpened {
                session: session()?,
                user,
                impersonator: self.impersonator_id.clone().ok_or_else(|| bad("impersonator_id"))?,
            },
            2 => EventKind::RefreshRepeatedElsewhere { session: session()?, user },
            3 => key().map(|(kind, id)| EventKind::KeyCreated(kind, id))?,
            4 => key().map(|(kind, id)| EventKind::KeyRotated(kind, id))?,
            5 => key().map(|(kind, id)| EventKind::KeyRevoked(kind, id))?,
            _ => return Err(bad("kind")),
        };
        let by = actor_of(self.actor, self.actor_id).ok_or_else(|| bad("actor"))?;
        Ok(EventRecord { id: self.id, at: from_pg(self.at), kind, by, ip: self.ip })
    }
}
