//! `projects`: tenants and their policies.

use std::sync::Arc;
use std::time::Duration;

use diesel::AsChangeset;
use diesel::ExpressionMethods as _;
use diesel::Insertable;
use diesel::QueryDsl as _;
use diesel::Queryable;
use diesel::Selectable;
use diesel::SelectableHelper as _;
use diesel::dsl::case_when;
use diesel::pg::data_types::PgTimestamp;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use super::Store;
use super::Tx;
use super::columns::from_pg;
use super::columns::millis;
use super::columns::to_pg;
use super::error::Error;
use super::events::AuditEvent;
use super::events::EventKind;
use super::keys::SealedKey;
use super::schema::projects;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::session::Policy;
use sessiond_core::session::policy::CookiePolicy;
use sessiond_core::session::policy::CookieScope;
use sessiond_core::session::policy::LateRepeat;
use sessiond_core::session::policy::Overflow;
use sessiond_core::session::policy::Refreshing;
use sessiond_core::session::policy::RepeatElsewhere;
use sessiond_core::session::policy::SameSite;
use sessiond_core::session::policy::SessionLimit;
use sessiond_core::session::policy::StepUp;
use sessiond_core::token::bucket::BucketKey;
use sessiond_core::token::sealing::Purpose;

/// A project with its policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Project {
    /// The project's id.
    pub id: ProjectId,
    /// The project's policy.
    pub policy: Policy,
    /// Assigns the project's users to buckets.
    pub bucket_key: BucketKey,
}

impl Store {
    /// Creates a project with its first keys, in one transaction, so that it can always sign.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Conflict`] if the id is taken or a setting is out of bounds.
    pub async fn project_insert(
        &self,
        project: Project,
        signing: SealedKey,
        refresh: SealedKey,
        now: Timestamp,
    ) -> Result<(), Error> {
        self.transact("project_insert", move |mut tx| async move {
            tx.project_add(&project, now).await?;
            for (purpose, key) in [(Purpose::Signing, signing), (Purpose::Refresh, refresh)] {
                let created = EventKind::KeyCreated(purpose.into(), key.id);
                tx.key_insert(purpose, &project.id, key, now).await?;
                tx.event_insert(&AuditEvent::by_operator(project.id.clone(), created, now)).await?;
            }
            tx.commit(()).await
        })
        .await
    }

    /// Returns a project; `None` if it does not exist.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn project_find(&self, id: ProjectId) -> Result<Option<Project>, Error> {
        self.idempotent("project_find", move |mut tx| {
            let id = id.clone();
            async move {
                let project = tx.project_find(&id).await?;
                tx.commit(project).await
            }
        })
        .await
    }

    /// Returns all projects ordered by id, with their creation times. They are few: each replica holds them in memory.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn projects_list(&self) -> Result<Vec<(ProjectId, Timestamp)>, Error> {
        self.idempotent("projects_list", |mut tx| async move {
            let query = projects::table.select((projects::id, projects::created_at)).order(projects::id);
            let rows: Vec<(String, PgTimestamp)> = tx.load(query).await?;
            let read = |(id, created_at): (String, PgTimestamp)| {
                let bad = || Error::Inconsistent { table: "projects", column: "id", row: id.clone() };
                Ok((ProjectId::parse(&id).ok_or_else(bad)?, from_pg(created_at)))
            };
            tx.commit(rows.into_iter().map(read).collect::<Result<_, Error>>()?).await
        })
        .await
    }
}

impl Tx {
    /// Inserts a project, without keys.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Conflict`] if the id is taken or a setting is out of bounds.
    pub async fn project_add(&mut self, project: &Project, now: Timestamp) -> Result<(), Error> {
        let insert = diesel::insert_into(projects::table).values(ProjectRow::new(project, now));
        self.execute(insert).await.map(drop)
    }

    pub(super) async fn projects(&mut self) -> Result<Vec<Project>, Error> {
        let rows = self.load(projects::table.select(ProjectRow::as_select())).await?;
        rows.into_iter().map(ProjectRow::into_project).collect()
    }

    pub(super) async fn project_find(&mut self, id: &ProjectId) -> Result<Option<Project>, Error> {
        let rows = self.load(projects::table.find(id.as_str()).select(ProjectRow::as_select())).await;
        rows?.pop().map(ProjectRow::into_project).transpose()
    }

    /// Returns a project and locks its row until the end of the transaction. Changes of its policy or keys take this
    /// lock first, so that concurrent operators take turns; requests read the row without a lock and do not wait.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn project_lock(&mut self, id: &ProjectId) -> Result<Option<Project>, Error> {
        let query = projects::table.find(id.as_str()).select(ProjectRow::as_select()).for_no_key_update();
        self.load(query).await?.pop().map(ProjectRow::into_project).transpose()
    }

    /// Raises the epoch of every project, at least to `least`, which ends all existing sessions. Returns the new epoch
    /// of each project.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn project_epochs_raise(&mut self, least: i64, now: Timestamp) -> Result<Vec<(ProjectId, i64)>, Error> {
        let locked = projects::table.select(projects::id).order(projects::id).for_update();
        let ids: Vec<String> = self.load(locked).await?;
        let raised = case_when(projects::epoch.ge(least), projects::epoch + 1_i64).otherwise(least);
        let update = diesel::update(projects::table.filter(projects::id.eq_any(ids)))
            .set((projects::epoch.eq(raised), projects::epoch_raised_at.eq(to_pg(now))))
            .returning((projects::id, projects::epoch));
        let rows: Vec<(String, i64)> = self.load(update).await?;
        let read = |(id, epoch): (String, i64)| {
            let bad = || Error::Inconsistent { table: "projects", column: "id", row: id.clone() };
            Ok((ProjectId::parse(&id).ok_or_else(bad)?, epoch))
        };
        rows.into_iter().map(read).collect()
    }

    /// Raises the epoch of a project, which ends all its existing sessions. Returns the new epoch; `None` if the project does not
    /// exist.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn project_epoch_raise(&mut self, id: &ProjectId, now: Timestamp) -> Result<Option<i64>, Error> {
        let update = diesel::update(projects::table.find(id.as_str()))
            .set((projects::epoch.eq(projects::epoch + 1_i64), projects::epoch_raised_at.eq(to_pg(now))))
            .returning(projects::epoch);
        Ok(self.load(update).await?.pop())
    }

    /// Stores a project's policy, and records what the operator has changed since `before`.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Conflict`] if a setting is out of bounds.
    pub async fn project_set(&mut self, project: &Project, before: &Policy, now: Timestamp) -> Result<(), Error> {
        let update = diesel::update(projects::table.find(project.id.as_str()));
        let update = update.set(PolicyColumns::new(&project.policy));
        self.execute(update).await?;
        let pairs = before.settings().into_iter().zip(project.policy.settings());
        let changed = pairs.filter(|((_, from), (_, to))| from != to);
        let changed: Map<String, Value> =
            changed.map(|((name, from), (_, to))| (name.to_owned(), json!({ "from": from, "to": to }))).collect();
        if changed.is_empty() {
            return Ok(());
        }
        let event = AuditEvent::by_operator(project.id.clone(), EventKind::PolicyChanged, now);
        self.event_insert(&event.with(json!({ "changed": changed }))).await
    }
}

#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = projects)]
struct ProjectRow {
    id: String,
    created_at: PgTimestamp,
    epoch: i64,
    bucket_key: Vec<u8>,
    #[diesel(embed)]
    policy: PolicyColumns,
}

#[derive(Queryable, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = projects, treat_none_as_null = true)]
struct PolicyColumns {
    access_token_ttl_ms: i64,
    refresh_grace_ms: i64,
    idle_ttl_ms: i64,
    strict_refresh: bool,
    session_ttl_ms: i64,
    session_ttl_max_ms: i64,
    idle_ttl_max_ms: i64,
    sessions_max: Option<i32>,
    sessions_overflow: i16,
    default_claims: Value,
    impersonation_ttl_ms: i64,
    impersonation_ttl_max_ms: i64,
    repeat_elsewhere_ends: bool,
    refresh_needs_client: bool,
    revoke_auth_age_ms: Option<i64>,
    revoke_acr: Vec<String>,
    cookies: Option<String>,
    cookies_strict: bool,
    cookies_clear_site_data: bool,
}

impl PolicyColumns {
    fn new(policy: &Policy) -> Self {
        Self {
            access_token_ttl_ms: millis(policy.access_token_ttl),
            refresh_grace_ms: millis(policy.refresh_grace),
            idle_ttl_ms: millis(policy.idle_ttl),
            strict_refresh: policy.late_repeat == LateRepeat::Theft,
            session_ttl_ms: millis(policy.session_ttl),
            session_ttl_max_ms: millis(policy.session_ttl_max),
            idle_ttl_max_ms: millis(policy.idle_ttl_max),
            sessions_max: policy.sessions.map(|limit| i32::try_from(limit.max).unwrap_or(i32::MAX)),
            sessions_overflow: policy.sessions.map_or(1, |limit| overflow_number(limit.overflow)),
            default_claims: Value::Object((*policy.default_claims).clone()),
            impersonation_ttl_ms: millis(policy.impersonation_ttl),
            impersonation_ttl_max_ms: millis(policy.impersonation_ttl_max),
            repeat_elsewhere_ends: policy.repeat_elsewhere == RepeatElsewhere::Theft,
            refresh_needs_client: policy.refreshing == Refreshing::ByClientsAlone,
            revoke_auth_age_ms: policy.revoking.auth_age.map(millis),
            revoke_acr: policy.revoking.acr.to_vec(),
            cookies: match &policy.cookies.scope {
                CookieScope::Off => None,
                CookieScope::Host => Some(HOST.to_owned()),
                CookieScope::Domain(domain) => Some(domain.to_string()),
            },
            cookies_strict: policy.cookies.same_site == SameSite::Strict,
            cookies_clear_site_data: policy.cookies.clear_site_data,
        }
    }

    fn into_policy(self, row: &str) -> Result<Policy, Error> {
        let bad = |column| Error::Inconsistent { table: "projects", column, row: row.to_owned() };
        let duration = |millis: i64, column| millis.try_into().map(Duration::from_millis).map_err(|_| bad(column));
        let limit = |max: i32| {
            Ok(SessionLimit {
                max: max.try_into().map_err(|_| bad("sessions_max"))?,
                overflow: overflow_of(self.sessions_overflow).ok_or_else(|| bad("sessions_overflow"))?,
            })
        };
        let Value::Object(default_claims) = self.default_claims else { return Err(bad("default_claims")) };
        Ok(Policy {
            access_token_ttl: duration(self.access_token_ttl_ms, "access_token_ttl_ms")?,
            refresh_grace: duration(self.refresh_grace_ms, "refresh_grace_ms")?,
            session_ttl: duration(self.session_ttl_ms, "session_ttl_ms")?,
            session_ttl_max: duration(self.session_ttl_max_ms, "session_ttl_max_ms")?,
            idle_ttl: duration(self.idle_ttl_ms, "idle_ttl_ms")?,
            idle_ttl_max: duration(self.idle_ttl_max_ms, "idle_ttl_max_ms")?,
            late_repeat: if self.strict_refresh { LateRepeat::Theft } else { LateRepeat::Forgiven },
            sessions: self.sessions_max.map(limit).transpose()?,
            default_claims: Arc::new(default_claims),
            impersonation_ttl: duration(self.impersonation_ttl_ms, "impersonation_ttl_ms")?,
            impersonation_ttl_max: duration(self.impersonation_ttl_max_ms, "impersonation_ttl_max_ms")?,
            repeat_elsewhere: match self.repeat_elsewhere_ends {
                true => RepeatElsewhere::Theft,
                false => RepeatElsewhere::Allowed,
            },
            refreshing: match self.refresh_needs_client {
                true => Refreshing::ByClientsAlone,
                false => Refreshing::ByAnyone,
            },
            revoking: StepUp {
                auth_age: self.revoke_auth_age_ms.map(|millis| duration(millis, "revoke_auth_age_ms")).transpose()?,
                acr: self.revoke_acr.into(),
            },
            cookies: CookiePolicy {
                scope: match self.cookies {
                    None => CookieScope::Off,
                    Some(scope) if scope == HOST => CookieScope::Host,
                    Some(domain) => CookieScope::Domain(domain.into()),
                },
                same_site: if self.cookies_strict { SameSite::Strict } else { SameSite::Lax },
                clear_site_data: self.cookies_clear_site_data,
            },
        })
    }
}

/// The stored scope of cookies for one host. A domain has a dot.
const HOST: &str = "host";

/// The stored number. A number never changes its meaning.
const fn overflow_number(overflow: Overflow) -> i16 {
    match overflow {
        Overflow::Reject => 1,
        Overflow::EvictOldest => 2,
        Overflow::EvictIdle => 3,
    }
}

fn overflow_of(number: i16) -> Option<Overflow> {
    let all = [Overflow::Reject, Overflow::EvictOldest, Overflow::EvictIdle];
    all.into_iter().find(|overflow| overflow_number(*overflow) == number)
}

impl ProjectRow {
    fn new(project: &Project, now: Timestamp) -> Self {
        let (id, policy) = (project.id.as_str().to_owned(), PolicyColumns::new(&project.policy));
        Self { id, created_at: to_pg(now), epoch: 0, bucket_key: project.bucket_key.as_bytes().to_vec(), policy }
    }

    fn into_project(self) -> Result<Project, Error> {
        let bad = |column| Error::Inconsistent { table: "projects", column, row: self.id.clone() };
        let id = ProjectId::parse(&self.id).ok_or_else(|| bad("id"))?;
        let bucket_key = BucketKey::from_bytes(&self.bucket_key).ok_or_else(|| bad("bucket_key"))?;
        Ok(Project { id, policy: self.policy.into_policy(&self.id)?, bucket_key })
    }
}
