//! `projects`: tenants and their policies.

use std::sync::Arc;
use std::time::Duration;

use diesel::AsChangeset;
use diesel::Insertable;
use diesel::QueryDsl as _;
use diesel::Queryable;
use diesel::Selectable;
use diesel::SelectableHelper as _;
use diesel::pg::data_types::PgTimestamp;
use diesel_async::RunQueryDsl as _;
use serde_json::Value;

use super::Store;
use super::error::Error;
use super::keys::SealedKey;
use super::rows::millis;
use super::rows::to_pg;
use super::schema::projects;
use crate::clock::Timestamp;
use crate::id::ProjectId;
use crate::session::Policy;
use crate::session::policy::LateRepeat;
use crate::session::policy::Overflow;
use crate::session::policy::SessionLimit;

/// A project and what it has set.
#[derive(Clone, Debug, PartialEq)]
pub struct Project {
    /// Its name.
    pub id: ProjectId,
    /// Its settings.
    pub policy: Policy,
}

#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = projects)]
pub(super) struct ProjectRow {
    id: String,
    created_at: PgTimestamp,
    epoch: i64,
    #[diesel(embed)]
    policy: PolicyColumns,
}

/// The columns that hold a policy.
#[derive(Queryable, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = projects, treat_none_as_null = true)]
pub(super) struct PolicyColumns {
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
        })
    }
}

/// What is stored for it. A number is never given a second meaning.
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
        Self { id, created_at: to_pg(now), epoch: 0, policy }
    }

    pub(super) fn into_project(self) -> Result<Project, Error> {
        let bad = || Error::Inconsistent { table: "projects", column: "id", row: self.id.clone() };
        let id = ProjectId::parse(&self.id).ok_or_else(bad)?;
        Ok(Project { id, policy: self.policy.into_policy(&self.id)? })
    }
}

impl Store {
    /// Creates a project with its first keys: at no moment is there a project that cannot sign.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`] when the name is taken or a setting is out of bounds.
    pub async fn project_insert(
        &self,
        project: Project,
        signing: SealedKey,
        refresh: SealedKey,
        now: Timestamp,
    ) -> Result<(), Error> {
        self.transact("project_insert", move |mut tx| async move {
            let insert = diesel::insert_into(projects::table).values(ProjectRow::new(&project, now));
            insert.execute(tx.pg()).await.map_err(|error| tx.failed(error))?;
            tx.signing_key_insert(&project.id, signing, now).await?;
            tx.refresh_key_insert(&project.id, refresh, now).await?;
            tx.commit(()).await
        })
        .await
    }

    /// Sets a project's policy. Whether there is such a project.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`] when a setting is out of bounds.
    pub async fn project_update(&self, project: Project) -> Result<bool, Error> {
        self.transact("project_update", move |mut tx| async move {
            let update = diesel::update(projects::table.find(project.id.as_str()));
            let update = update.set(PolicyColumns::new(&project.policy));
            let rows = update.execute(tx.pg()).await.map_err(|error| tx.failed(error))?;
            tx.commit(rows == 1).await
        })
        .await
    }
}

impl super::Tx {
    /// Every project.
    pub(super) async fn projects(&mut self) -> Result<Vec<Project>, Error> {
        let rows = projects::table.select(ProjectRow::as_select()).load(self.pg()).await;
        rows.map_err(|error| self.failed(error))?.into_iter().map(ProjectRow::into_project).collect()
    }
}
