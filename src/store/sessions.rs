//! `sessions`: one row per sign-in.

mod group;
mod revoke;
mod row;

use diesel::BoolExpressionMethods as _;
use diesel::ExpressionMethods as _;
use diesel::IntoSql as _;
use diesel::JoinOnDsl as _;
use diesel::QueryDsl as _;
use diesel::Queryable;
use diesel::Selectable;
use diesel::SelectableHelper as _;
use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types as sql;
use serde_json::Value;
use uuid::Uuid;

use super::Store;
use super::Tx;
use super::columns::SERVICE;
use super::columns::from_pg;
use super::columns::limit;
use super::columns::to_pg;
use super::error::Error;
use super::events::AuditEvent;
use super::events::EventKind;
use super::events::EventRecord;
use super::events::RecordOrder;
use super::events::RecordQuery;
use super::events::SESSION_CREATED;
use super::events::records;
use super::schema::projects;
use super::schema::sessions;
use super::schema::users;
use super::slots::by_slot;
use super::statement::statement;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::Bucket;
use sessiond_core::id::KeyId;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::id::UserId;
use sessiond_core::session::EndedBy;
use sessiond_core::session::Epoch;
use sessiond_core::session::Session;
use sessiond_core::session::lifecycle::EpochRaisedAt;
use sessiond_core::session::lifecycle::Lifetime;

pub use group::SessionRotations;
pub use revoke::Revocation;
pub use revoke::Revoked;
pub use revoke::SESSIONS_REVOKE;
pub use row::StoredSession;

use row::SessionRow;
use row::device_before_columns;
use row::labels_column;

/// A session with the present epochs of its project and user.
pub struct SessionWithEpochs {
    /// The session.
    pub stored: StoredSession,
    /// The present epoch of its project and its user.
    pub present: Epoch,
    /// When each epoch was last raised.
    pub raised: EpochRaisedAt,
}

/// The fields of a session that matter to other sign-ins of its user.
#[derive(Clone, Copy, Debug)]
pub struct SessionSummary {
    /// The session's id; ids ascend in the order of creation.
    pub id: SessionId,
    /// When it was last used.
    pub last_used_at: Timestamp,
    /// When it ends.
    pub lifetime: Lifetime,
    /// Its own epoch: access tokens of a smaller one are superseded.
    pub own_epoch: i64,
    /// Whether someone else acts as the user.
    pub is_impersonation: bool,
}

/// The most sessions of one user that are read at once: about ten milliseconds of work.
pub const SUMMARIES_MAX: usize = 10_000;

/// Which page of sessions to read.
#[derive(Clone, Debug)]
pub struct PageQuery {
    /// The project.
    pub project: ProjectId,
    /// The user and its bucket; `None` for the whole project.
    pub user: Option<(UserId, Bucket)>,
    /// Whether to include impersonation sessions. Filtered by the query and not afterwards, so that a hidden session is
    /// never the start of the next page.
    pub impersonations: bool,
    /// Only sessions older than this one.
    pub before: Option<SessionId>,
    /// The maximum number of rows.
    pub rows_max: usize,
}

/// A use of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionUse<'a> {
    /// The project.
    pub project: &'a ProjectId,
    /// The session.
    pub session: SessionId,
    /// When it was used.
    pub at: Timestamp,
}

/// Sessions joined with their users and projects. A macro, because the type of a join is very long.
macro_rules! with_epochs {
    () => {
        sessions::table
            .inner_join(
                users::table.on(users::slot
                    .eq(sessions::slot)
                    .and(users::project_id.eq(sessions::project_id))
                    .and(users::user_id.eq(sessions::user_id))),
            )
            .inner_join(projects::table.on(projects::id.eq(sessions::project_id)))
    };
}

impl Store {
    /// Returns sessions, in no particular order; unknown ids are omitted.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn sessions_find(
        &self,
        project: ProjectId,
        ids: Vec<SessionId>,
    ) -> Result<Vec<SessionWithEpochs>, Error> {
        self.idempotent("sessions_find", move |mut tx| {
            let (project, ids) = (project.clone(), ids.clone());
            async move {
                let mut found = vec![];
                for (slot, ids) in by_slot(ids, |id| tx.slot(id.bucket())) {
                    let query = with_epochs!()
                        .filter(sessions::slot.eq(slot.to_column()))
                        .filter(sessions::project_id.eq(project.as_str()))
                        .filter(sessions::id.eq_any(uuids(&ids)))
                        .select(SessionWithEpochsRow::as_select());
                    found.append(&mut tx.load(query).await?);
                }
                tx.commit(found.into_iter().map(SessionWithEpochsRow::into_session).collect::<Result<_, _>>()?).await
            }
        })
        .await
    }

    /// Returns the fields that decide whether sessions are live, and the present epochs, in no particular order.
    /// Revoked sessions are omitted.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn summaries_find(
        &self,
        project: ProjectId,
        ids: Vec<SessionId>,
    ) -> Result<Vec<(SessionSummary, Epoch)>, Error> {
        // The operation's name in the metrics, which dashboards know.
        self.idempotent("outlines_find", move |mut tx| {
            let (project, ids) = (project.clone(), ids.clone());
            async move {
                let mut found: Vec<(SummaryRow, EpochsRow)> = vec![];
                for (slot, ids) in by_slot(ids, |id| tx.slot(id.bucket())) {
                    let query = with_epochs!()
                        .filter(sessions::slot.eq(slot.to_column()))
                        .filter(sessions::project_id.eq(project.as_str()))
                        .filter(sessions::id.eq_any(uuids(&ids)))
                        .filter(sessions::revoked_at.is_null())
                        .select((SummaryRow::as_select(), EpochsRow::as_select()));
                    found.append(&mut tx.load(query).await?);
                }
                let read = |(row, epochs): (SummaryRow, EpochsRow)| (row.into_summary(), epochs.present());
                tx.commit(found.into_iter().map(read).collect()).await
            }
        })
        .await
    }

    /// Returns a session; `None` if it does not exist.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn session_find(&self, project: ProjectId, id: SessionId) -> Result<Option<SessionWithEpochs>, Error> {
        Ok(self.sessions_find(project, vec![id]).await?.pop())
    }

    /// Returns a page of sessions, newest first.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn sessions_page(&self, asked: PageQuery) -> Result<Vec<SessionWithEpochs>, Error> {
        let before = asked.before.map_or(Uuid::max(), SessionId::as_uuid);
        self.idempotent("sessions_page", move |mut tx| {
            let asked = asked.clone();
            async move {
                let page = with_epochs!()
                    .filter(sessions::project_id.eq(asked.project.as_str()))
                    .filter(sessions::id.lt(before))
                    .filter(sessions::impersonator_id.is_null().or(asked.impersonations.into_sql::<sql::Bool>()))
                    .order(sessions::id.desc())
                    .limit(limit(asked.rows_max))
                    .select(SessionWithEpochsRow::as_select());
                let found = match &asked.user {
                    Some((user, bucket)) => {
                        let slot = tx.slot(*bucket).to_column();
                        let page = page.filter(sessions::user_id.eq(user.as_str()));
                        tx.load(page.filter(sessions::slot.eq(slot))).await?
                    }
                    None => tx.load(page).await?,
                };
                tx.commit(found.into_iter().map(SessionWithEpochsRow::into_session).collect::<Result<_, _>>()?).await
            }
        })
        .await
    }

    /// Returns the records of the creation of those sessions whose rows exist. Sessions of an earlier release, and
    /// impersonations, have none here. The last id read is returned too, if there may be more.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn sessions_created(&self, asked: RecordQuery) -> Result<(Vec<EventRecord>, Option<Uuid>), Error> {
        self.idempotent("sessions_created", move |mut tx| {
            let asked = asked.clone();
            async move {
                let found: Vec<CreationRow> = records!(tx, sessions, CreationRow, &asked);
                let last = found.last().filter(|_| found.len() >= asked.rows_max).map(|row| row.id);
                tx.commit((found.into_iter().filter_map(CreationRow::into_record).collect(), last)).await
            }
        })
        .await
    }

    /// Updates the time of last use, unless a later one is stored.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn sessions_touch(&self, used: &[SessionUse<'_>]) -> Result<(), Error> {
        self.check_durable("sessions_touch")?;
        let used: Vec<_> = used.iter().map(|one| (one.project.clone(), one.session, to_pg(one.at))).collect();
        self.idempotent("sessions_touch", move |mut tx| {
            let used = used.clone();
            async move {
                for (slot, used) in by_slot(used, |(_, session, _)| tx.slot(session.bucket())) {
                    let statement = SessionsTouch {
                        projects: used.iter().map(|(project, ..)| project.as_str().to_owned()).collect(),
                        ids: used.iter().map(|(_, session, _)| session.as_uuid()).collect(),
                        at: used.iter().map(|(.., at)| *at).collect(),
                        slot: slot.to_column(),
                    };
                    tx.execute(statement).await?;
                }
                tx.commit(()).await
            }
        })
        .await
    }
}

statement! {
    /// Updates the time of last use, and on the first use of a day (UTC) also the time of the use before. Locked rows
    /// are skipped: they are in use anyway.
    SessionsTouch -> () =
    "WITH used (project_id, id, at) AS MATERIALIZED (
         SELECT s.project_id, s.id, a.at FROM unnest("
    [projects: Vec<String> as sql::Array<sql::Text>]
    ", "
    [ids: Vec<Uuid> as sql::Array<sql::Uuid>]
    ", "
    [at: Vec<PgTimestamp> as sql::Array<sql::Timestamptz>]
    ") AS a (project_id, id, at) JOIN sessions AS s ON s.project_id = a.project_id AND s.id = a.id
         WHERE s.slot = "
    [slot: i16 as sql::SmallInt]
    " AND s.revoked_at IS NULL AND s.last_used_at < a.at FOR UPDATE OF s SKIP LOCKED
     )
     UPDATE sessions AS s SET last_used_at = used.at, used_before_at = CASE
         WHEN date_trunc('day', s.last_used_at AT TIME ZONE 'UTC') < date_trunc('day', used.at AT TIME ZONE 'UTC') THEN s.last_used_at
         ELSE s.used_before_at END
     FROM used WHERE s.slot = $4 AND s.project_id = used.project_id AND s.id = used.id"
}

fn uuids(ids: &[SessionId]) -> Vec<Uuid> {
    ids.iter().map(|id| id.as_uuid()).collect()
}

impl Tx {
    /// Reads a session and locks it until the end of the transaction.
    pub async fn session_lock(&mut self, project: &ProjectId, id: SessionId) -> Result<Option<StoredSession>, Error> {
        let slot = self.slot(id.bucket()).to_column();
        let row = sessions::table.find((project.as_str(), id.as_uuid(), slot));
        let query = row.select(SessionRow::as_select()).for_update();
        self.load(query).await?.pop().map(SessionRow::into_stored).transpose()
    }

    /// Reads sessions of a project and locks them until the end of the transaction, in a fixed order that prevents
    /// deadlocks. Unknown ids are omitted.
    pub async fn sessions_lock(&mut self, project: &ProjectId, ids: &[SessionId]) -> Result<Vec<StoredSession>, Error> {
        let mut locked = vec![];
        for (slot, ids) in by_slot(ids.iter().copied(), |id| self.slot(id.bucket())) {
            let query = sessions::table
                .filter(sessions::slot.eq(slot.to_column()))
                .filter(sessions::project_id.eq(project.as_str()))
                .filter(sessions::id.eq_any(uuids(&ids)))
                .order((sessions::project_id, sessions::id))
                .select(SessionRow::as_select())
                .for_update();
            locked.append(&mut self.load(query).await?);
        }
        locked.into_iter().map(SessionRow::into_stored).collect()
    }

    /// Returns a user's sessions, newest first, including revoked ones: at most [`SUMMARIES_MAX`]. If the maximum is
    /// returned, call again with the last one as `beyond`.
    pub async fn session_summaries(
        &mut self,
        project: &ProjectId,
        user: &UserId,
        bucket: Bucket,
        beyond: Option<SessionId>,
    ) -> Result<Vec<SessionSummary>, Error> {
        let slot = self.slot(bucket).to_column();
        // Not only the live ones: among a million ended sessions, Postgres might search without limit.
        let query = sessions::table
            .filter(sessions::slot.eq(slot))
            .filter(sessions::project_id.eq(project.as_str()))
            .filter(sessions::user_id.eq(user.as_str()))
            .filter(sessions::id.lt(beyond.map_or(Uuid::max(), SessionId::as_uuid)))
            .order(sessions::id.desc())
            .select(SummaryRow::as_select())
            .limit(limit(SUMMARIES_MAX));
        Ok(self.load(query).await?.into_iter().map(SummaryRow::into_summary).collect())
    }

    /// Returns the ids of a user's oldest sessions, in any state.
    pub async fn sessions_of_user(
        &mut self,
        project: &ProjectId,
        user: &UserId,
        bucket: Bucket,
        rows_max: usize,
    ) -> Result<Vec<SessionId>, Error> {
        let slot = self.slot(bucket).to_column();
        let some = sessions::table
            .filter(sessions::slot.eq(slot))
            .filter(sessions::project_id.eq(project.as_str()))
            .filter(sessions::user_id.eq(user.as_str()))
            .order(sessions::id)
            .limit(limit(rows_max))
            .select(sessions::id);
        let ids: Vec<Uuid> = self.load(some).await?;
        Ok(ids.into_iter().map(SessionId::from_uuid).collect())
    }

    /// Deletes sessions of an erased user that are revoked. Returns how many. The audit keeps the record of their creation,
    /// without the user.
    pub async fn sessions_erase(&mut self, project: &ProjectId, ids: &[SessionId]) -> Result<usize, Error> {
        let mut deleted = 0;
        for (slot, ids) in by_slot(ids.iter().copied(), |id| self.slot(id.bucket())) {
            let these = sessions::table
                .filter(sessions::slot.eq(slot.to_column()))
                .filter(sessions::project_id.eq(project.as_str()))
                .filter(sessions::id.eq_any(uuids(&ids)));
            // Before they are recorded, as a sweep does: it may hold one, and be about to record it.
            let held = these.clone().order((sessions::project_id, sessions::id)).select(sessions::id).for_update();
            let _: Vec<Uuid> = self.load(held).await?;
            let record = SessionsErase {
                kind: SESSION_CREATED,
                actor: SERVICE,
                slot: slot.to_column(),
                project: project.as_str().to_owned(),
                ids: uuids(&ids),
            };
            self.execute(record).await?;
            deleted += self.execute(diesel::delete(these)).await?;
        }
        Ok(deleted)
    }
}

statement! {
    /// Records the creation of sessions that are about to be deleted, without the user. See also `SessionsRecord`.
    SessionsErase -> () =
    "INSERT INTO audit_events (slot, project_id, id, at, kind, session_id, actor, actor_id)
     SELECT s.slot, s.project_id, s.id, s.created_at, "
    [kind: i16 as sql::SmallInt]
    "::smallint, s.id, "
    [actor: i16 as sql::SmallInt]
    "::smallint, s.creator_key_id FROM sessions AS s WHERE s.slot = "
    [slot: i16 as sql::SmallInt]
    " AND s.project_id = "
    [project: String as sql::Text]
    " AND s.id = ANY ("
    [ids: Vec<Uuid> as sql::Array<sql::Uuid>]
    ") AND s.creator_key_id IS NOT NULL AND s.impersonator_id IS NULL
     ON CONFLICT ON CONSTRAINT audit_events_pkey DO NOTHING"
}

impl Tx {
    /// Moves a session to its user's present epoch.
    pub async fn session_spare(&mut self, project: &ProjectId, id: SessionId, epoch: i64) -> Result<(), Error> {
        let slot = self.slot(id.bucket()).to_column();
        let statement = SessionSpare { epoch, slot, project: project.as_str().to_owned(), id: id.as_uuid() };
        self.execute(statement).await.map(drop)
    }
}

statement! {
    /// Moves a session to its user's present epoch.
    SessionSpare -> () =
    "UPDATE sessions SET user_epoch = "
    [epoch: i64 as sql::BigInt]
    " WHERE slot = "
    [slot: i16 as sql::SmallInt]
    " AND project_id = "
    [project: String as sql::Text]
    " AND id = "
    [id: Uuid as sql::Uuid]
    ""
}

/// A change of a session, for the audit.
#[derive(Clone, Debug)]
pub struct SessionUpdate {
    /// Who changed it.
    pub by: EndedBy,
    /// When.
    pub at: Timestamp,
    /// What was changed; `None` if nothing was, which is not recorded.
    pub details: Option<Value>,
}

impl Tx {
    /// Stores the fields that the host application keeps with a session, and the session's own epoch, and records the update.
    pub async fn session_change(&mut self, session: &Session, update: SessionUpdate) -> Result<(), Error> {
        let statement = SessionChange {
            claims: serde_json::Value::Object(session.claims.clone()),
            labels: labels_column(session.labels.clone()),
            device_name: session.device.name.clone(),
            device_before: device_before_columns(session.device_before.as_ref()).1,
            session_epoch: session.own_epoch,
            slot: self.slot(session.id.bucket()).to_column(),
            project: session.project.as_str().to_owned(),
            id: session.id.as_uuid(),
        };
        if self.execute(statement).await? == 0 {
            return Ok(());
        }
        let Some(details) = update.details else { return Ok(()) };
        let kind = EventKind::SessionUpdated { session: session.id, user: Some(session.user.as_str().to_owned()) };
        let (project, at, by) = (session.project.clone(), update.at, update.by);
        self.event_insert(&AuditEvent { project, kind, at, by, ip: None, details: Some(details) }).await
    }
}

statement! {
    /// Updates the fields that the host application keeps with a session, and the session's own epoch.
    SessionChange -> () =
    "UPDATE sessions SET claims = "
    [claims: Value as sql::Jsonb]
    ", labels = "
    [labels: Value as sql::Jsonb]
    ", device_name = "
    [device_name: Option<String> as sql::Nullable<sql::Text>]
    ", device_before = "
    [device_before: Option<Value> as sql::Nullable<sql::Jsonb>]
    ", session_epoch = "
    [session_epoch: i64 as sql::BigInt]
    " WHERE slot = "
    [slot: i16 as sql::SmallInt]
    " AND project_id = "
    [project: String as sql::Text]
    " AND id = "
    [id: Uuid as sql::Uuid]
    ""
}

#[derive(Queryable, Selectable)]
struct SessionWithEpochsRow {
    #[diesel(embed)]
    session: SessionRow,
    #[diesel(embed)]
    epochs: EpochsRow,
}

impl SessionWithEpochsRow {
    fn into_session(self) -> Result<SessionWithEpochs, Error> {
        let (present, raised) = (self.epochs.present(), self.epochs.raised());
        Ok(SessionWithEpochs { stored: self.session.into_stored()?, present, raised })
    }
}

/// The columns of a session that record its creation.
#[derive(Queryable, Selectable)]
#[diesel(table_name = sessions)]
struct CreationRow {
    id: Uuid,
    created_at: PgTimestamp,
    user_id: String,
    impersonator_id: Option<String>,
    creator_key_id: Option<Uuid>,
}

impl CreationRow {
    /// `None` if the row does not record it.
    fn into_record(self) -> Option<EventRecord> {
        let key = self.creator_key_id.filter(|_| self.impersonator_id.is_none())?;
        let by = EndedBy::Service(KeyId::from_uuid(key));
        let kind = EventKind::SessionCreated { session: SessionId::from_uuid(self.id), user: Some(self.user_id) };
        Some(EventRecord { id: self.id, at: from_pg(self.created_at), kind, by, ip: None, details: None })
    }
}

/// The epochs of a session's project and user, and when each was last raised.
#[derive(Queryable, Selectable)]
#[diesel(table_name = projects)]
struct EpochsRow {
    #[diesel(select_expression = projects::epoch)]
    project: i64,
    #[diesel(select_expression = users::epoch)]
    user: i64,
    #[diesel(select_expression = projects::epoch_raised_at)]
    project_raised_at: Option<PgTimestamp>,
    #[diesel(select_expression = users::epoch_raised_at)]
    user_raised_at: Option<PgTimestamp>,
}

impl EpochsRow {
    const fn present(&self) -> Epoch {
        Epoch { project: self.project, user: self.user }
    }

    fn raised(&self) -> EpochRaisedAt {
        EpochRaisedAt { project: self.project_raised_at.map(from_pg), user: self.user_raised_at.map(from_pg) }
    }
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = sessions)]
struct SummaryRow {
    id: Uuid,
    project_epoch: i64,
    user_epoch: i64,
    expires_at: PgTimestamp,
    idle_expires_at: PgTimestamp,
    last_used_at: PgTimestamp,
    impersonator_id: Option<String>,
    session_epoch: i64,
    #[diesel(select_expression = sessions::revoked_at.is_not_null())]
    is_revoked: bool,
}

impl SummaryRow {
    fn into_summary(self) -> SessionSummary {
        SessionSummary {
            id: SessionId::from_uuid(self.id),
            last_used_at: from_pg(self.last_used_at),
            lifetime: Lifetime {
                epoch: Epoch { project: self.project_epoch, user: self.user_epoch },
                expires_at: from_pg(self.expires_at),
                idle_expires_at: from_pg(self.idle_expires_at),
                is_revoked: self.is_revoked,
            },
            is_impersonation: self.impersonator_id.is_some(),
            own_epoch: self.session_epoch,
        }
    }
}
