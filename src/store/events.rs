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
use serde_json::Value;
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
use super::schema::projects;
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

/// The stored numbers of the kinds that statements write. A number never changes its meaning.
pub(super) const SESSION_CREATED: i16 = 6;
pub(super) const SESSION_UPDATED: i16 = 7;

impl From<Purpose> for KeyKind {
    fn from(purpose: Purpose) -> Self {
        match purpose {
            Purpose::Signing => Self::Signing,
            Purpose::Refresh => Self::Refresh,
        }
    }
}

/// Why an attempt with a genuine-looking credential was refused: its signature or its secret is good, or its id is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusedAttempt {
    /// An access or refresh token of a session that has ended.
    SessionRevoked,
    /// A refresh token that was replaced before.
    RefreshTokenReused,
    /// A token or a server key of another project than the one addressed.
    WrongProject,
    /// A server key that was revoked.
    ServerKeyRevoked,
    /// A server key with a known id and another secret.
    ServerKeySecret,
    /// A server key for what its role or its privileges do not allow.
    ServerKeyPrivileges,
    /// Any of them, beyond a rate limit.
    RateLimited,
}

impl RefusedAttempt {
    /// All reasons.
    pub const ALL: [Self; 7] = [
        Self::SessionRevoked,
        Self::RefreshTokenReused,
        Self::WrongProject,
        Self::ServerKeyRevoked,
        Self::ServerKeySecret,
        Self::ServerKeyPrivileges,
        Self::RateLimited,
    ];

    /// The event's name in the audit.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SessionRevoked => "REFUSED_SESSION_REVOKED",
            Self::RefreshTokenReused => "REFUSED_REFRESH_TOKEN_REUSED",
            Self::WrongProject => "REFUSED_WRONG_PROJECT",
            Self::ServerKeyRevoked => "REFUSED_SERVER_KEY_REVOKED",
            Self::ServerKeySecret => "REFUSED_SERVER_KEY_SECRET",
            Self::ServerKeyPrivileges => "REFUSED_SERVER_KEY_PRIVILEGES",
            Self::RateLimited => "REFUSED_RATE_LIMITED",
        }
    }

    /// The stored number. A number never changes its meaning.
    const fn number(self) -> i16 {
        match self {
            Self::SessionRevoked => 101,
            Self::RefreshTokenReused => 102,
            Self::WrongProject => 103,
            Self::ServerKeyRevoked => 104,
            Self::ServerKeySecret => 105,
            Self::RateLimited => 106,
            Self::ServerKeyPrivileges => 107,
        }
    }
}

/// The credential of a refused attempt, without its secret part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusedCredential {
    /// A token of this session.
    Session(SessionId),
    /// This server key.
    ServerKey(KeyId),
}

/// The kind of an audit event, with its subject.
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
    /// The privileges of a server key were narrowed.
    KeyNarrowed(KeyKind, KeyId),
    /// A key was sealed with another sealing key than before.
    KeyResealed(KeyKind, KeyId),
    /// A session was created, and is no impersonation.
    SessionCreated {
        /// The session.
        session: SessionId,
        /// Its user; `None` once erased.
        user: Option<String>,
    },
    /// The values that the host application keeps with a session were changed.
    SessionUpdated {
        /// The session.
        session: SessionId,
        /// Its user; `None` once erased.
        user: Option<String>,
    },
    /// The project's policy was changed.
    PolicyChanged,
    /// A user was erased, whose name is therefore not recorded.
    UserErased,
    /// A history of the feed began: the database was restored, or another server has taken over.
    HistoryStarted,
    /// A back-channel endpoint was added.
    EndpointAdded,
    /// A back-channel endpoint was removed.
    EndpointRemoved,
    /// Attempts were refused, within a minute. The credential is that of the last one.
    Refused(RefusedAttempt, RefusedCredential),
}

impl EventKind {
    /// The names of all kinds.
    pub fn names() -> impl Iterator<Item = &'static str> {
        let others = [
            "SESSION_CREATED",
            "IMPERSONATION_OPENED",
            "SESSION_UPDATED",
            "REFRESH_REPEATED_ELSEWHERE",
            "KEY_CREATED",
            "KEY_ROTATED",
            "KEY_REVOKED",
            "KEY_NARROWED",
            "KEY_RESEALED",
            "POLICY_CHANGED",
            "ENDPOINT_ADDED",
            "ENDPOINT_REMOVED",
            "USER_ERASED",
            "HISTORY_STARTED",
        ];
        others.into_iter().chain(RefusedAttempt::ALL.map(RefusedAttempt::as_str))
    }

    /// The event's name in the audit.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::ImpersonationOpened { .. } => "IMPERSONATION_OPENED",
            Self::RefreshRepeatedElsewhere { .. } => "REFRESH_REPEATED_ELSEWHERE",
            Self::KeyCreated(..) => "KEY_CREATED",
            Self::KeyRotated(..) => "KEY_ROTATED",
            Self::KeyRevoked(..) => "KEY_REVOKED",
            Self::KeyNarrowed(..) => "KEY_NARROWED",
            Self::KeyResealed(..) => "KEY_RESEALED",
            Self::SessionCreated { .. } => "SESSION_CREATED",
            Self::SessionUpdated { .. } => "SESSION_UPDATED",
            Self::PolicyChanged => "POLICY_CHANGED",
            Self::UserErased => "USER_ERASED",
            Self::HistoryStarted => "HISTORY_STARTED",
            Self::EndpointAdded => "ENDPOINT_ADDED",
            Self::EndpointRemoved => "ENDPOINT_REMOVED",
            Self::Refused(why, _) => why.as_str(),
        }
    }

    /// The stored number. A number never changes its meaning.
    pub(super) const fn number(&self) -> i16 {
        match self {
            Self::ImpersonationOpened { .. } => 1,
            Self::RefreshRepeatedElsewhere { .. } => 2,
            Self::KeyCreated(..) => 3,
            Self::KeyRotated(..) => 4,
            Self::KeyRevoked(..) => 5,
            Self::SessionCreated { .. } => SESSION_CREATED,
            Self::SessionUpdated { .. } => SESSION_UPDATED,
            Self::PolicyChanged => 8,
            Self::UserErased => 9,
            Self::HistoryStarted => 10,
            Self::EndpointAdded => 11,
            Self::EndpointRemoved => 12,
            Self::KeyNarrowed(..) => 13,
            Self::KeyResealed(..) => 14,
            Self::Refused(why, _) => why.number(),
        }
    }

    /// The session concerned, and its user.
    pub const fn session(&self) -> Option<(SessionId, Option<&String>)> {
        match self {
            Self::ImpersonationOpened { session, user, .. }
            | Self::RefreshRepeatedElsewhere { session, user }
            | Self::SessionCreated { session, user }
            | Self::SessionUpdated { session, user } => Some((*session, user.as_ref())),
            Self::Refused(_, RefusedCredential::Session(session)) => Some((*session, None)),
            _ => None,
        }
    }

    /// The key concerned.
    pub const fn key(&self) -> Option<(KeyKind, KeyId)> {
        match self {
            Self::KeyCreated(kind, id)
            | Self::KeyRotated(kind, id)
            | Self::KeyRevoked(kind, id)
            | Self::KeyNarrowed(kind, id)
            | Self::KeyResealed(kind, id) => Some((*kind, *id)),
            Self::Refused(_, RefusedCredential::ServerKey(id)) => Some((KeyKind::Server, *id)),
            _ => None,
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
    /// Only records with a greater id. Ids ascend in time order.
    pub after: Uuid,
    /// Only records with a smaller id.
    pub before: Uuid,
    /// Which come first.
    pub order: RecordOrder,
    /// The maximum number of records.
    pub rows_max: usize,
}

/// Which records come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordOrder {
    /// The oldest.
    OldestFirst,
    /// The newest.
    NewestFirst,
}

impl RecordQuery {
    /// The newest records, newest first.
    pub const fn newest(project: ProjectId, user: Option<UserId>, rows_max: usize) -> Self {
        let (after, before) = (Uuid::nil(), Uuid::max());
        Self { project, user, after, before, order: RecordOrder::NewestFirst, rows_max }
    }
}

/// Reads the records of a table that match a [`RecordQuery`]. A macro, because the types of the queries differ.
macro_rules! records {
    ($tx:ident, $table:ident, $row:ty, $asked:expr) => {{
        let asked = $asked;
        let some = $table::table
            .filter($table::project_id.eq(asked.project.as_str()))
            .filter($table::id.gt(asked.after))
            .filter($table::id.lt(asked.before))
            .limit(crate::store::columns::limit(asked.rows_max))
            .select(<$row>::as_select());
        match (&asked.user, asked.order) {
            (None, RecordOrder::NewestFirst) => $tx.load(some.order($table::id.desc())).await?,
            (None, RecordOrder::OldestFirst) => $tx.load(some.order($table::id.asc())).await?,
            (Some(user), RecordOrder::NewestFirst) => {
                $tx.load(some.filter($table::user_id.eq(user.as_str())).order($table::id.desc())).await?
            }
            (Some(user), RecordOrder::OldestFirst) => {
                $tx.load(some.filter($table::user_id.eq(user.as_str())).order($table::id.asc())).await?
            }
        }
    }};
}

pub(super) use records;

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
    /// What belongs to the kind alone. Never names a user.
    pub details: Option<Value>,
}

impl AuditEvent {
    /// An event caused by the operator.
    pub const fn by_operator(project: ProjectId, kind: EventKind, at: Timestamp) -> Self {
        Self { project, kind, at, by: EndedBy::Operator, ip: None, details: None }
    }

    /// The event with these details.
    #[must_use]
    pub fn with(self, details: Value) -> Self {
        Self { details: Some(details), ..self }
    }
}

/// A stored audit record that revokes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRecord {
    /// The record's id. Ids ascend in time order, across all tables of the audit.
    pub id: Uuid,
    /// When it happened.
    pub at: Timestamp,
    /// What kind.
    pub kind: EventKind,
    /// Who did it.
    pub by: EndedBy,
    /// The client's address, if known, until addresses are swept.
    pub ip: Option<String>,
    /// What belongs to the kind alone; `None` also once the user was erased.
    pub details: Option<Value>,
}

impl Store {
    /// Returns the records of this table that match.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn events(&self, asked: RecordQuery) -> Result<Vec<EventRecord>, Error> {
        self.idempotent("events", move |mut tx| {
            let asked = asked.clone();
            async move {
                let found: Vec<EventRow> = records!(tx, audit_events, EventRow, &asked);
                tx.commit(found.into_iter().map(EventRow::into_record).collect::<Result<_, _>>()?).await
            }
        })
        .await
    }

    /// Inserts audit records, in one statement.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn events_insert(&self, events: Vec<AuditEvent>) -> Result<(), Error> {
        self.transact("events_insert", move |mut tx| async move {
            let rows: Vec<EventRow> = events.iter().map(|event| tx.event_row(event)).collect();
            tx.execute(diesel::insert_into(audit_events::table).values(rows)).await?;
            tx.commit(()).await
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
        let row = self.event_row(event);
        self.execute(diesel::insert_into(audit_events::table).values(row)).await.map(drop)
    }

    fn event_row(&self, event: &AuditEvent) -> EventRow {
        // What concerns no session may be anywhere.
        let bucket = event.kind.session().map_or(Bucket::from_number(0), |(session, _)| session.bucket());
        EventRow::new(event, self.slot(bucket).to_column())
    }

    /// Inserts an audit record for every project.
    pub(super) async fn event_insert_everywhere(
        &mut self,
        kind: &EventKind,
        by: EndedBy,
        at: Timestamp,
    ) -> Result<(), Error> {
        let projects: Vec<String> = self.load(projects::table.select(projects::id)).await?;
        let record = |tx: &Self, id: &String| {
            let bad = || Error::Inconsistent { table: "projects", column: "id", row: id.clone() };
            let project = ProjectId::parse(id).ok_or_else(bad)?;
            let (ip, details) = (None, None);
            Ok(tx.event_row(&AuditEvent { project, kind: kind.clone(), at, by, ip, details }))
        };
        // A statement has at most 65,535 parameters.
        for some in projects.chunks(1_000) {
            let rows: Vec<EventRow> = some.iter().map(|id| record(self, id)).collect::<Result<_, Error>>()?;
            self.execute(diesel::insert_into(audit_events::table).values(rows)).await?;
        }
        Ok(())
    }

    /// Removes a user's name, the addresses and the details from at most `rows_max` records of this table. Returns how
    /// many were changed.
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
        // The details too: names of claims may say something about the user.
        let update = diesel::update(these).set((
            audit_events::user_id.eq(None::<String>),
            audit_events::ip.eq(None::<String>),
            audit_events::details.eq(None::<Value>),
        ));
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
    details: Option<Value>,
    slot: i16,
}

impl EventRow {
    fn new(event: &AuditEvent, slot: i16) -> Self {
        let AuditEvent { project, kind, at, by, ip, details } = event;
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
            details: details.clone(),
            slot,
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
            SESSION_CREATED => EventKind::SessionCreated { session: session()?, user },
            SESSION_UPDATED => EventKind::SessionUpdated { session: session()?, user },
            8 => EventKind::PolicyChanged,
            9 => EventKind::UserErased,
            10 => EventKind::HistoryStarted,
            11 => EventKind::EndpointAdded,
            12 => EventKind::EndpointRemoved,
            13 => key().map(|(kind, id)| EventKind::KeyNarrowed(kind, id))?,
            14 => key().map(|(kind, id)| EventKind::KeyResealed(kind, id))?,
            other => {
                let why = RefusedAttempt::ALL.into_iter().find(|why| why.number() == other);
                let credential = match self.key_id {
                    Some(key) => RefusedCredential::ServerKey(KeyId::from_uuid(key)),
                    None => RefusedCredential::Session(session()?),
                };
                EventKind::Refused(why.ok_or_else(|| bad("kind"))?, credential)
            }
        };
        let by = actor_of(self.actor, self.actor_id).ok_or_else(|| bad("actor"))?;
        Ok(EventRecord { id: self.id, at: from_pg(self.at), kind, by, ip: self.ip, details: self.details })
    }
}
