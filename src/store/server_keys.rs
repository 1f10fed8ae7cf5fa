//! `server_keys`: which service may act for which project.

use std::time::Duration;

use diesel::BoolExpressionMethods as _;
use diesel::ExpressionMethods as _;
use diesel::QueryDsl as _;
use diesel::Queryable;
use diesel::Selectable;
use diesel::SelectableHelper as _;
use diesel::pg::data_types::PgTimestamp;
use serde_json::Value;
use serde_json::json;
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
    /// May follow the project's revocations and introspect tokens.
    Verifier,
    /// May also create, list, change and revoke sessions.
    Service,
    /// May also open impersonations, erase users, and sign everybody out.
    Admin,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 3] = [Self::Verifier, Self::Service, Self::Admin];

    /// The role's name, as stored and printed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Verifier => "verifier",
            Self::Service => "service",
            Self::Admin => "admin",
        }
    }

    /// Parses a role's name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }
}

/// What a server key may do, and until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Privileges {
    /// The role.
    pub role: Role,
    /// Whether a key with the role `service` may open impersonations. Means nothing for the other roles.
    pub may_impersonate: bool,
    /// When the key expires; `None` for never. Half-open: at this moment exactly, it has expired.
    pub expires_at: Option<Timestamp>,
}

impl From<Role> for Privileges {
    /// The least privileges with the role, without an end.
    fn from(role: Role) -> Self {
        Self { role, may_impersonate: false, expires_at: None }
    }
}

impl Privileges {
    /// Whether the key may open sessions in which someone else acts as the user.
    pub fn allows_impersonation(&self) -> bool {
        match self.role {
            Role::Verifier => false,
            Role::Service => self.may_impersonate,
            Role::Admin => true,
        }
    }

    /// Whether the key has expired.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|expires_at| expires_at <= now)
    }

    /// What remains of them within these limits: the lesser role, the earlier end, and no impersonation unless both allow it.
    #[must_use]
    pub fn narrowed(self, limits: &Narrowing) -> Self {
        let role = limits.role.map_or(self.role, |role| role.min(self.role));
        Self {
            role,
            // An admin may open impersonations, so as a service it keeps that.
            may_impersonate: self.allows_impersonation() && !limits.ends_impersonation && role >= Role::Service,
            expires_at: self.expires_at.into_iter().chain(limits.expires_at).min(),
        }
    }
}

/// Limits to apply to a server key. They only ever take away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Narrowing {
    /// The greatest role.
    pub role: Option<Role>,
    /// Whether the key may no longer open impersonations.
    pub ends_impersonation: bool,
    /// The latest end.
    pub expires_at: Option<Timestamp>,
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
    /// What it may do, and until when.
    pub privileges: Privileges,
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
    /// What it may do, and until when.
    pub privileges: Privileges,
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
    /// Returns a server key, which may be revoked or expired.
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
                server_keys::role.eq(key.privileges.role.as_str()),
                server_keys::may_impersonate.eq(key.privileges.may_impersonate),
                server_keys::expires_at.eq(key.privileges.expires_at.map(to_pg)),
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

    /// Narrows what a server key may do. Returns its privileges before and after; `None` if the key does not exist. The audit
    /// records a change.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn server_key_narrow(
        &self,
        id: KeyId,
        limits: Narrowing,
        now: Timestamp,
    ) -> Result<Option<(Privileges, Privileges)>, Error> {
        self.transact("server_key_narrow", move |mut tx| async move {
            let query = server_keys::table.find(id.as_uuid()).select(KeyRow::as_select()).for_no_key_update();
            let Some(key) = tx.load(query).await?.pop().map(KeyRow::into_key).transpose()? else {
                return tx.commit(None).await;
            };
            let (before, after) = (key.privileges, key.privileges.narrowed(&limits));
            if before != after {
                let update = diesel::update(server_keys::table.find(id.as_uuid())).set((
                    server_keys::role.eq(after.role.as_str()),
                    server_keys::may_impersonate.eq(after.may_impersonate),
                    server_keys::expires_at.eq(after.expires_at.map(to_pg)),
                ));
                tx.execute(update).await?;
                let event = AuditEvent::by_operator(key.project, EventKind::KeyNarrowed(KeyKind::Server, id), now);
                tx.event_insert(&event.with(json!({ "changed": changes(&before, &after) }))).await?;
            }
            tx.commit(Some((before, after))).await
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

/// The privileges that differ, by name.
fn changes(before: &Privileges, after: &Privileges) -> Value {
    let texts = |of: &Privileges| {
        let expires_at = of.expires_at.map_or(Value::Null, |at| at.to_string().into());
        [
            ("role", Value::from(of.role.as_str())),
            ("impersonation", of.allows_impersonation().into()),
            ("expires_at", expires_at),
        ]
    };
    let pairs = texts(before).into_iter().zip(texts(after)).filter(|((_, from), (_, to))| from != to);
    pairs.map(|((name, from), (_, to))| (name.to_owned(), json!({ "from": from, "to": to }))).collect()
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = server_keys)]
struct KeyRow {
    id: Uuid,
    project_id: String,
    digest: Option<Vec<u8>>,
    certificate_name: Option<String>,
    role: String,
    may_impersonate: bool,
    expires_at: Option<PgTimestamp>,
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
            privileges: Privileges {
                role: Role::parse(&self.role).ok_or_else(|| bad("role"))?,
                may_impersonate: self.may_impersonate,
                expires_at: self.expires_at.map(from_pg),
            },
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
    may_impersonate: bool,
    expires_at: Option<PgTimestamp>,
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
            privileges: Privileges {
                role: Role::parse(&self.role).ok_or_else(|| bad("role"))?,
                may_impersonate: self.may_impersonate,
                expires_at: self.expires_at.map(from_pg),
            },
            certificate_name,
            created_at: from_pg(self.created_at),
            last_used_at: self.last_used_at.map(from_pg),
            revoked_at: self.revoked_at.map(from_pg),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Option<Timestamp> {
        Some(Timestamp::from_seconds(seconds))
    }

    #[test]
    fn narrowing_only_takes_away() {
        let roles = || [None].into_iter().chain(Role::ALL.map(Some));
        for role in Role::ALL {
            for (may_impersonate, expires_at) in [(false, None), (true, at(5)), (true, None), (false, at(9))] {
                let before = Privileges { role, may_impersonate, expires_at };
                for (limit, ends_impersonation) in roles().flat_map(|role| [(role, false), (role, true)]) {
                    for until in [None, at(4), at(7)] {
                        let limits = Narrowing { role: limit, ends_impersonation, expires_at: until };
                        let after = before.narrowed(&limits);
                        assert!(after.role <= before.role && limit.is_none_or(|limit| after.role <= limit));
                        assert!(
                            before.allows_impersonation() || !after.allows_impersonation(),
                            "{before:?} {limits:?}"
                        );
                        for moment in (0..12).map(Timestamp::from_seconds) {
                            assert!(after.is_expired(moment) || !before.is_expired(moment), "{before:?} {limits:?}");
                        }
                        assert_eq!(after.narrowed(&limits), after, "again changes nothing");
                    }
                }
                assert_eq!(before.narrowed(&Narrowing::default()).role, role);
            }
        }
    }

    #[test]
    fn an_admin_narrowed_to_a_service_keeps_impersonation_unless_that_is_ended() {
        let admin = Privileges::from(Role::Admin);
        let to_service = Narrowing { role: Some(Role::Service), ..Narrowing::default() };
        assert!(admin.narrowed(&to_service).allows_impersonation());
        let without = Narrowing { ends_impersonation: true, ..to_service };
        assert!(!admin.narrowed(&without).allows_impersonation());
        assert!(!Privileges::from(Role::Service).allows_impersonation());
    }

    #[test]
    fn a_key_expires_half_open() {
        let key = Privileges { expires_at: at(5), ..Role::Verifier.into() };
        assert!(!key.is_expired(Timestamp::from_micros(4_999_999)) && key.is_expired(Timestamp::from_seconds(5)));
        assert!(!Privileges::from(Role::Admin).is_expired(Timestamp::from_seconds(i64::from(u32::MAX))));
    }
}
