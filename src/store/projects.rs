//! `projects`: tenants and their policies.

use std::time::Duration;

use diesel::ExpressionMethods as _;
use diesel::Insertable;
use diesel::QueryDsl as _;
use diesel::Queryable;
use diesel::Selectable;
use diesel::SelectableHelper as _;
use diesel::pg::data_types::PgTimestamp;
use diesel_async::RunQueryDsl as _;

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

/// A project and what it has set.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    access_token_ttl_ms: i64,
    refresh_grace_ms: i64,
    idle_ttl_ms: i64,
    strict_refresh: bool,
}

impl ProjectRow {
    fn new(project: &Project, now: Timestamp) -> Self {
        let policy = &project.policy;
        Self {
            id: project.id.as_str().to_owned(),
            created_at: to_pg(now),
            epoch: 0,
            access_token_ttl_ms: millis(policy.access_token_ttl),
            refresh_grace_ms: millis(policy.refresh_grace),
            idle_ttl_ms: millis(policy.idle_ttl),
            strict_refresh: policy.late_repeat == LateRepeat::Theft,
        }
    }

    pub(super) fn into_project(self) -> Result<Project, Error> {
        let bad = |column| Error::Inconsistent { table: "projects", column, row: self.id.clone() };
        let duration = |millis: i64, column| millis.try_into().map(Duration::from_millis).map_err(|_| bad(column));
        Ok(Project {
            id: ProjectId::parse(&self.id).ok_or_else(|| bad("id"))?,
            policy: Policy {
                access_token_ttl: duration(self.access_token_ttl_ms, "access_token_ttl_ms")?,
                refresh_grace: duration(self.refresh_grace_ms, "refresh_grace_ms")?,
                idle_ttl: duration(self.idle_ttl_ms, "idle_ttl_ms")?,
                late_repeat: if self.strict_refresh { LateRepeat::Theft } else { LateRepeat::Forgiven },
            },
        })
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
            let ProjectRow { id, access_token_ttl_ms, refresh_grace_ms, idle_ttl_ms, strict_refresh, .. } =
                ProjectRow::new(&project, Timestamp::from_micros(0));
            let update = diesel::update(projects::table.find(id)).set((
                projects::access_token_ttl_ms.eq(access_token_ttl_ms),
                projects::refresh_grace_ms.eq(refresh_grace_ms),
                projects::idle_ttl_ms.eq(idle_ttl_ms),
                projects::strict_refresh.eq(strict_refresh),
            ));
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
