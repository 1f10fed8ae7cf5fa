//! `server_keys`: which service may act for which project.

use std::time::Duration;

use diesel::BoolExpressionMethods as _;
use diesel::ExpressionMethods as _;
use diesel::QueryDsl as _;
use diesel::Queryable;
use diesel::Selectable;
use diesel::SelectableHelper as _;
use diesel::pg::data_types::PgTimestamp;
use uuid::Uuid;

use super::Store;
use super::columns::from_pg;
use super::columns::to_pg;
use super::error::Error;
use super::events::AuditEvent;
use super::events::EventKind;
use super::events::KeyKind;
use super::revocations::BulkRevocation;
use super::schema::server_keys;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::session::revoked::RevocationTarget;
use sessiond_core::token::certificate_name::CertificateName;
use sessiond_core::token::server_key::Digest;

/// How exact the time of a key's last use is: requests do not write, except the first one in each such period.
const USE_PRECISION: Duration = Duration::from_secs(60 * 60);

/// What a server key may do, in ascending order: each role includes the previous ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// May act on sessions and tokens.
    Service,
    /// May also change policies and keys.
    Admin,
}

impl Role {
    /// The role's name, as stored and printed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Admin => "admin",
        }
    }

    /// Parses a role's name.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Service, Self::Admin].into_iter().find(|role| role.as_str() == text)
    }
}

/// How a service proves that it has a server key.
pub enum KeyProof {
    /// By its secret, whose digest this is.
    Secret(Digest),
    /// By a client certificate with this name.
    Certificate(CertificateName),
}

/// A stored server key.
pub struct ServerKeyRow {
    /// The key's id.
    pub id: KeyId,
    /// The key's project.
    pub project: ProjectId,
    /// The key's role.
    pub role: Role,
    /// How it is proved.
    pub proof: KeyProof,
    /// When it was last used, to the hour.
    pub last_used_at: Option<Timestamp>,
    /// Whether it was revoked.
    pub is_revoked: bool,
}

impl ServerKeyRow {
    /// Whether a use now is to be recorded.
    pub fn is_use_due(&self, now: Timestamp) -> bool {
        self.last_used_at.is_none_or(|last| last < now - USE_PRECISION)
    }
}

/// The facts about a server key, without its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerKeyFacts {
    /// The key's id.
    pub id: KeyId,
    /// The key's role.
    pub role: Role,
    /// The name in the client certificates that prove it; `None` for a key with a secret.
    pub certificate_name: Option<CertificateName>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was last used, to the hour.
    pub last_used_at: Option<Timestamp>,
    /// When it was revoked: from then on it is refused.
    pub revoked_at: Option<Timestamp>,
}

impl Store {
    /// Returns a server key, which may be revoked.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn server_key_find(&self, id: KeyId) -> Result<Option<ServerKeyRow>, Error> {
        self.idempotent("server_key_find", move |mut tx| async move {
            let query = server_keys::table.filter(server_keys::id.eq(id.as_uuid())).select(KeyRow::as_select());
            let found = tx.load(query).await?.pop();
            tx.commit(found.map(KeyRow::into_key).transpose()?).await
        })
        .await
    }

    /// Returns the server keys of client certificates with any of these names that are not revoked, oldest first.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn server_keys_of_certificate(&self, names: &[CertificateName]) -> Result<Vec<ServerKeyRow>, Error> {
        let names: Vec<String> = names.iter().map(|name| name.as_str().to_owned()).collect();
        self.idempotent("server_keys_of_certificate", move |mut tx| {
            let names = names.clone();
            async move {
                let query = server_keys::table
                    .filter(server_keys::certificate_name.eq_any(names))
                    .filter(server_keys::revoked_at.is_null())
                    .order((server_keys::created_at, server_keys::id))
                    .select(KeyRow::as_select());
                let found = tx.load(query).await?;
                tx.commit(found.into_iter().map(KeyRow::into_key).collect::<Result<_, _>>()?).await
            }
        })
        .await
    }

    /// Records that a server key is in use, unless that was recorded within the last hour.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn server_key_note_use(&self, id: KeyId, now: Timestamp) -> Result<(), Error> {
        self.transact("server_key_note_use", move |mut tx| async move {
            let last = server_keys::last_used_at;
            let due =
                server_keys::table.find(id.as_uuid()).filter(last.is_null().or(last.lt(to_pg(now - USE_PRECISION))));
            tx.execute(diesel::update(due).set(last.eq(to_pg(now)))).await?;
            tx.commit(()).await
        })
        .await
    }

    /// Stores a new server key.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Conflict`] if the project does not exist, or if the name of its certificate is that of another key.
    pub async fn server_key_insert(&self, key: ServerKeyRow, now: Timestamp) -> Result<(), Error> {
        self.transact("server_key_insert", move |mut tx| async move {
            let (digest, name) = match &key.proof {
                KeyProof::Secret(digest) => (Some(digest.as_bytes().as_slice()), None),
                KeyProof::Certificate(name) => (None, Some(name.as_str())),
            };
            let insert = diesel::insert_into(server_keys::table).values((
                server_keys::id.eq(key.id.as_uuid()),
                server_keys::project_id.eq(key.project.as_str()),
                server_keys::digest.eq(digest),
                server_keys::certificate_name.eq(name),
                server_keys::role.eq(key.role.as_str()),
                server_keys::created_at.eq(to_pg(now)),
            ));
            tx.execute(insert).await?;
            let created = EventKind::KeyCreated(KeyKind::Server, key.id);
            tx.event_insert(&AuditEvent::by_operator(key.project, created, now)).await?;
            tx.commit(()).await
        })
        .await
    }

    /// Returns a project's server keys, including revoked ones, oldest first; `None` if the project does not exist.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn server_keys_list(&self, project: ProjectId) -> Result<Option<Vec<ServerKeyFacts>>, Error> {
        self.transact("server_keys_list", move |mut tx| async move {
            let Some(_) = tx.project_find(&project).await? else { return tx.end_reading(None).await };
            let query = server_keys::table
                .filter(server_keys::project_id.eq(project.as_str()))
                .select(ServerKeyFactsRow::as_select())
                .order((server_keys::created_at, server_keys::id));
            let rows = tx.load(query).await?;
            tx.end_reading(Some(rows.into_iter().map(ServerKeyFactsRow::into_facts).collect::<Result<_, _>>()?)).await
        })
        .await
    }

    /// Revokes a server key. Returns whether it was already revoked, in which case the time of revocation stays; `None`
    /// if the key does not exist.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn server_key_revoke(&self, id: KeyId, now: Timestamp) -> Result<Option<bool>, Error> {
        self.transact("server_key_revoke", move |mut tx| async move {
            let live = server_keys::table.find(id.as_uuid()).filter(server_keys::revoked_at.is_null());
            let update = diesel::update(live).set(server_keys::revoked_at.eq(to_pg(now)));
            let revoked: Option<String> = tx.load(update.returning(server_keys::project_id)).await?.pop();
            let was_revoked = revoked.is_none();
            if let Some(project) = revoked {
                let bad = || Error::Inconsistent { table: "server_keys", column: "project_id", row: id.to_string() };
                let project = ProjectId::parse(&project).ok_or_else(bad)?;
                // Ends streams that were opened with the key.
                tx.bulk_revocation_insert(BulkRevocation::of_key(project, RevocationTarget::ServerKey(id), now))
                    .await?;
            }
            let known: Vec<Uuid> = tx.load(server_keys::table.find(id.as_uuid()).select(server_keys::id)).await?;
            tx.commit((!known.is_empty()).then_some(was_revoked)).await
        })
        .await
    }
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = server_keys)]
struct KeyRow {
    id: Uuid,
    project_id: String,
    digest: Option<Vec<u8>>,
    certificate_name: Option<String>,
    role: String,
    last_used_at: Option<PgTimestamp>,
    revoked_at: Option<PgTimestamp>,
}

impl KeyRow {
    fn into_key(self) -> Result<ServerKeyRow, Error> {
        let bad = |column| Error::Inconsistent { table: "server_keys", column, row: self.id.to_string() };
        let proof = match (self.digest, self.certificate_name) {
            (Some(digest), _) => KeyProof::Secret(Digest::from_bytes(&digest).ok_or_else(|| bad("digest"))?),
            (None, name) => KeyProof::Certificate(certificate_name(name).ok_or_else(|| bad("certificate_name"))?),
        };
        Ok(ServerKeyRow {
            id: KeyId::from_uuid(self.id),
            project: ProjectId::parse(&self.project_id).ok_or_else(|| bad("project_id"))?,
            role: Role::parse(&self.role).ok_or_else(|| bad("role"))?,
            proof,
            last_used_at: self.last_used_at.map(from_pg),
            is_revoked: self.revoked_at.is_some(),
        })
    }
}

fn certificate_name(text: Option<String>) -> Option<CertificateName> {
    text.and_then(|text| CertificateName::parse(&text))
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = server_keys)]
struct ServerKeyFactsRow {
    id: Uuid,
    role: String,
    certificate_name: Option<String>,
    created_at: PgTimestamp,
    last_used_at: Option<PgTimestamp>,
    revoked_at: Option<PgTimestamp>,
}

impl ServerKeyFactsRow {
    fn into_facts(self) -> Result<ServerKeyFacts, Error> {
        let bad = |column| Error::Inconsistent { table: "server_keys", column, row: self.id.to_string() };
        let is_certified = self.certificate_name.is_some();
        let certificate_name = certificate_name(self.certificate_name);
        if is_certified && certificate_name.is_none() {
            return Err(bad("certificate_name"));
        }
        Ok(ServerKeyFacts {
            id: KeyId::from_uuid(self.id),
            role: Role::parse(&self.role).ok_or_else(|| bad("role"))?,
            certificate_name,
            created_at: from_pg(self.created_at),
            last_used_at: self.last_used_at.map(from_pg),
            revoked_at: self.revoked_at.map(from_pg),
        })
    }
}
