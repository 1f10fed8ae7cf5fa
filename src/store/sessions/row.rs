//! The row of a session, and its conversion to and from the domain types.

use std::collections::BTreeMap;
use std::time::Duration;

use diesel::Queryable;
use diesel::QueryableByName;
use diesel::Selectable;
use diesel::pg::data_types::PgTimestamp;
use serde_json::Value;
use serde_json::json;
use uuid::Uuid;

use crate::store::columns::from_pg;
use crate::store::columns::millis;
use crate::store::columns::reason_number;
use crate::store::columns::reason_of;
use crate::store::columns::to_pg;
use crate::store::error::Error;
use crate::store::schema::sessions;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::id::UserId;
use sessiond_core::session::Epoch;
use sessiond_core::session::Session;
use sessiond_core::session::device::Device;
use sessiond_core::session::lifecycle::Authentication;
use sessiond_core::session::lifecycle::DeviceBefore;
use sessiond_core::session::lifecycle::Impersonator;
use sessiond_core::session::rotation::Chain;
use sessiond_core::session::rotation::Issue;
use sessiond_core::session::rotation::Repeats;
use sessiond_core::token::refresh::RowSecret;

/// A session with the fields that only the store needs.
pub struct StoredSession {
    /// The session.
    pub session: Session,
    /// Its chain of refresh tokens.
    pub chain: Chain,
    /// The secret from which they are derived.
    pub secret: RowSecret,
    /// The latest `exp` of its access tokens.
    pub access_expires_at: Timestamp,
}

/// A row of `sessions`.
#[derive(Queryable, QueryableByName, Selectable)]
#[diesel(table_name = sessions)]
pub(in crate::store) struct SessionRow {
    pub(super) project_id: String,
    pub(super) id: Uuid,
    pub(super) user_id: String,
    pub(super) project_epoch: i64,
    pub(super) user_epoch: i64,
    pub(super) created_at: PgTimestamp,
    pub(super) last_used_at: PgTimestamp,
    pub(super) expires_at: PgTimestamp,
    pub(super) idle_ttl_ms: i64,
    pub(super) idle_expires_at: PgTimestamp,
    pub(super) access_expires_at: PgTimestamp,
    pub(super) revoked_at: Option<PgTimestamp>,
    pub(super) revoke_reason: Option<i16>,
    pub(super) refresh_secret: Vec<u8>,
    pub(super) refresh_generation: i64,
    pub(super) refresh_attempts: Vec<i64>,
    pub(super) refresh_issued_at: Vec<PgTimestamp>,
    pub(super) impersonator_id: Option<String>,
    pub(super) auth_time: Option<PgTimestamp>,
    pub(super) acr: Option<String>,
    pub(super) amr: Vec<String>,
    pub(super) device_name: Option<String>,
    pub(super) user_agent: Option<String>,
    pub(super) ip: Option<String>,
    pub(super) labels: Value,
    pub(super) claims: Value,
    pub(super) used_before_at: Option<PgTimestamp>,
    pub(super) refresh_repeats: i16,
    pub(super) refresh_repeated_elsewhere: bool,
    pub(super) device_changed_at: Option<PgTimestamp>,
    pub(super) device_before: Option<Value>,
    pub(super) session_epoch: i64,
}

impl SessionRow {
    pub(in crate::store) fn new(stored: StoredSession) -> Self {
        let StoredSession { session, chain, secret, access_expires_at } = stored;
        let (refresh_generation, refresh_attempts, refresh_issued_at) = chain_columns(&chain);
        let (refresh_repeats, refresh_repeated_elsewhere) = repeats_columns(&chain);
        let (device_changed_at, device_before) = device_before_columns(session.device_before.as_ref());
        Self {
            project_id: session.project.as_str().to_owned(),
            id: session.id.as_uuid(),
            user_id: session.user.as_str().to_owned(),
            project_epoch: session.epoch.project,
            user_epoch: session.epoch.user,
            created_at: to_pg(session.created_at),
            last_used_at: to_pg(session.last_used_at),
            expires_at: to_pg(session.expires_at),
            idle_ttl_ms: millis(session.idle_ttl),
            idle_expires_at: to_pg(session.idle_expires_at),
            access_expires_at: to_pg(access_expires_at),
            revoked_at: session.revoked.map(|(at, _)| to_pg(at)),
            revoke_reason: session.revoked.map(|(_, reason)| reason_number(reason)),
            refresh_secret: secret.as_bytes().to_vec(),
            refresh_generation,
            refresh_attempts,
            refresh_issued_at,
            impersonator_id: session.impersonator.map(|Impersonator(id)| id),
            auth_time: session.authentication.time.map(to_pg),
            acr: session.authentication.acr,
            amr: session.authentication.amr,
            device_name: session.device.name,
            user_agent: session.device.user_agent,
            ip: session.device.ip.map(|ip| ip.to_string()),
            labels: labels_column(session.labels),
            claims: Value::Object(session.claims),
            used_before_at: session.used_before_at.map(to_pg),
            refresh_repeats,
            refresh_repeated_elsewhere,
            device_changed_at,
            device_before,
            session_epoch: session.own_epoch,
        }
    }

    /// Parses the row.
    ///
    /// # Errors
    ///
    /// Fails if a column holds a value that this server never writes.
    pub(in crate::store) fn into_stored(self) -> Result<StoredSession, Error> {
        let row = format!("{}/{}", self.project_id, self.id);
        let bad = |column| Error::Inconsistent { table: "sessions", column, row: row.clone() };
        let repeats = Repeats {
            count: self.refresh_repeats.try_into().map_err(|_| bad("refresh_repeats"))?,
            elsewhere: self.refresh_repeated_elsewhere,
        };
        let chain = read_chain(self.refresh_generation, &self.refresh_attempts, &self.refresh_issued_at, repeats);
        let revoked = match (self.revoked_at, self.revoke_reason) {
            (Some(at), Some(reason)) => Some((from_pg(at), reason_of(reason).ok_or_else(|| bad("revoke_reason"))?)),
            (None, _) | (_, None) => None,
        };
        let session = Session {
            id: SessionId::from_uuid(self.id),
            project: ProjectId::parse(&self.project_id).ok_or_else(|| bad("project_id"))?,
            user: UserId::parse(&self.user_id).ok_or_else(|| bad("user_id"))?,
            epoch: Epoch { project: self.project_epoch, user: self.user_epoch },
            own_epoch: self.session_epoch,
            created_at: from_pg(self.created_at),
            last_used_at: from_pg(self.last_used_at),
            used_before_at: self.used_before_at.map(from_pg),
            expires_at: from_pg(self.expires_at),
            idle_ttl: Duration::from_millis(self.idle_ttl_ms.try_into().map_err(|_| bad("idle_ttl_ms"))?),
            idle_expires_at: from_pg(self.idle_expires_at),
            revoked,
            impersonator: self.impersonator_id.map(Impersonator),
            authentication: Authentication { time: self.auth_time.map(from_pg), acr: self.acr, amr: self.amr },
            device: read_device(self.device_name, self.user_agent, self.ip).ok_or_else(|| bad("ip"))?,
            device_before: match self.device_changed_at.zip(self.device_before) {
                Some((at, before)) => {
                    let device = read_device_before(before).ok_or_else(|| bad("device_before"))?;
                    Some(DeviceBefore { changed_at: from_pg(at), device })
                }
                None => None,
            },
            labels: read_labels(self.labels).ok_or_else(|| bad("labels"))?,
            claims: match self.claims {
                Value::Object(claims) => claims,
                _ => return Err(bad("claims")),
            },
        };
        Ok(StoredSession {
            session,
            chain: chain.ok_or_else(|| bad("refresh_attempts"))?,
            secret: RowSecret::from_bytes(&self.refresh_secret).ok_or_else(|| bad("refresh_secret"))?,
            access_expires_at: from_pg(self.access_expires_at),
        })
    }
}

/// A chain's three columns: generation, attempts, and times of issue.
pub(in crate::store) fn chain_columns(chain: &Chain) -> (i64, Vec<i64>, Vec<PgTimestamp>) {
    let issues = chain.issues();
    let attempts = issues.iter().map(|issue| issue.attempt.into()).collect();
    (chain.generation().into(), attempts, issues.iter().map(|issue| to_pg(issue.issued_at)).collect())
}

/// The two columns on repeats of the last refresh: the count, and whether one came from elsewhere.
pub(in crate::store) fn repeats_columns(chain: &Chain) -> (i16, bool) {
    let Repeats { count, elsewhere } = chain.repeats();
    (i16::try_from(count).unwrap_or(i16::MAX), elsewhere)
}

/// The two columns on a changed device: when it changed, and the device until then.
pub(in crate::store) fn device_before_columns(before: Option<&DeviceBefore>) -> (Option<PgTimestamp>, Option<Value>) {
    let columns = |DeviceBefore { changed_at, device }: &DeviceBefore| {
        let Device { name, user_agent, ip } = device;
        (to_pg(*changed_at), json!({ "name": name, "user_agent": user_agent, "ip": ip }))
    };
    before.map(columns).unzip()
}

/// The column of labels.
pub(in crate::store) fn labels_column(labels: BTreeMap<String, String>) -> Value {
    labels.into_iter().map(|(key, value)| (key, Value::String(value))).collect()
}

fn read_chain(generation: i64, attempts: &[i64], issued_at: &[PgTimestamp], repeats: Repeats) -> Option<Chain> {
    let issue = |(attempt, issued_at): (&i64, &PgTimestamp)| {
        Some(Issue { attempt: u32::try_from(*attempt).ok()?, issued_at: from_pg(*issued_at) })
    };
    let issues = attempts.iter().zip(issued_at).map(issue).collect::<Option<_>>()?;
    Chain::from_parts(generation.try_into().ok()?, issues, repeats)
}

fn read_device_before(before: Value) -> Option<Device> {
    let Value::Object(mut before) = before else { return None };
    let mut text = |key| match before.remove(key) {
        Some(Value::String(text)) => Some(Some(text)),
        Some(Value::Null) | None => Some(None),
        Some(_) => None,
    };
    read_device(text("name")?, text("user_agent")?, text("ip")?)
}

/// Parses a device's columns; `None` if the address is malformed.
fn read_device(name: Option<String>, user_agent: Option<String>, ip: Option<String>) -> Option<Device> {
    let ip = ip.map(|ip| ip.parse()).transpose().ok()?;
    Some(Device { name, user_agent, ip })
}

fn read_labels(labels: Value) -> Option<BTreeMap<String, String>> {
    let Value::Object(labels) = labels else { return None };
    labels.into_iter().map(|(key, value)| Some((key, value.as_str()?.to_owned()))).collect()
}
