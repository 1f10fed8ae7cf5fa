//! `sessions`: one row per sign-in.

use std::collections::HashSet;
use std::net::IpAddr;

use diesel::BoolExpressionMethods as _;
use diesel::ExpressionMethods as _;
use diesel::IntoSql as _;
use diesel::JoinOnDsl as _;
use diesel::QueryDsl as _;
use diesel::SelectableHelper as _;
use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types::Bool;
use diesel_async::RunQueryDsl as _;
use uuid::Uuid;

use super::Place;
use super::PublishedRevocation;
use super::Store;
use super::Tx;
use super::error::Error;
use super::revocations::actor_columns;
use super::rows::SeenColumns;
use super::rows::SessionRow;
use super::rows::chain_columns;
use super::rows::device_before_columns;
use super::rows::from_pg;
use super::rows::labels_column;
use super::rows::reason_number;
use super::rows::reason_of;
use super::rows::repeats_columns;
use super::rows::seen;
use super::rows::to_pg;
use super::schema::projects;
use super::schema::sessions;
use super::schema::users;
use super::statements::SessionChange;
use super::statements::SessionRotate;
use super::statements::SessionSpare;
use super::statements::SessionsRevoke;
use super::statements::SessionsTouch;
use crate::clock;
use crate::clock::Timestamp;
use crate::id::ProjectId;
use crate::id::SessionId;
use crate::id::UserId;
use crate::session::EndedBy;
use crate::session::Epoch;
use crate::session::RevokeReason;
use crate::session::Session;
use crate::session::lifecycle::Lifetime;
use crate::session::lifecycle::Raised;
use crate::session::revoked::Ended;
use crate::session::rotation::Chain;
use crate::token::refresh::RowSecret;

/// Sessions beside their users and projects. A macro, as the next two, because the type of a join fills a page.
macro_rules! with_epochs {
    () => {
        sessions::table
            .inner_join(
                users::table.on(users::project_id.eq(sessions::project_id).and(users::user_id.eq(sessions::user_id))),
            )
            .inner_join(projects::table.on(projects::id.eq(sessions::project_id)))
    };
}

/// What a [`Seen`] is made of.
macro_rules! seen {
    () => {
        with_epochs!().select((
            SessionRow::as_select(),
            projects::epoch,
            users::epoch,
            projects::epoch_raised_at,
            users::epoch_raised_at,
        ))
    };
}

/// The columns of a [`SessionSummary`].
macro_rules! summary_columns {
    () => {
        (
            sessions::id,
            sessions::project_epoch,
            sessions::user_epoch,
            sessions::expires_at,
            sessions::idle_expires_at,
            sessions::last_used_at,
            sessions::impersonator_id,
            sessions::revoked_at.is_not_null(),
        )
    };
}

/// A session with what only we know of it.
pub struct StoredSession {
    /// The session.
    pub session: Session,
    /// Its chain of refresh tokens.
    pub chain: Chain,
    /// The random half of them.
    pub secret: RowSecret,
    /// The greatest `exp` of an access token issued.
    pub access_expires_at: Timestamp,
}

/// A session, and what its epoch is to be held against.
pub struct Seen {
    /// The session.
    pub stored: StoredSession,
    /// The present epoch of its project and its user.
    pub present: Epoch,
    /// When each was last raised.
    pub raised: Raised,
}

/// The part of a session that decides about other sign-ins of its user.
#[derive(Clone, Copy, Debug)]
pub struct SessionSummary {
    /// Its id; ids ascend in the order of creation.
    pub id: SessionId,
    /// When it was last used.
    pub last_used_at: Timestamp,
    /// When it is over.
    pub lifetime: Lifetime,
    /// Whether someone else acts as the user.
    pub is_impersonation: bool,
}

/// The most sessions of one user that are looked at in one go: some ten milliseconds' work.
pub const SUMMARIES_MAX: usize = 10_000;

type SummaryColumns = (Uuid, i64, i64, PgTimestamp, PgTimestamp, PgTimestamp, Option<String>, bool);

/// Where a page begins, and whose sessions are on it.
#[derive(Clone, Debug)]
pub struct PageQuery {
    /// The project.
    pub project: ProjectId,
    /// The user; without one, the whole project.
    pub user: Option<UserId>,
    /// Whether sessions in which someone else acts as the user are on it. Left out here and not by who reads the page:
    /// a hidden one must not be where the next page begins.
    pub impersonations: bool,
    /// The page holds older sessions than this one.
    pub before: Option<SessionId>,
    /// The most rows.
    pub rows_max: usize,
}

/// A session to end, as the audit will tell of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Revocation {
    /// Its project.
    pub project: ProjectId,
    /// The session.
    pub session: SessionId,
    /// When it ends.
    pub at: Timestamp,
    /// Why.
    pub reason: RevokeReason,
    /// Who ends it.
    pub by: EndedBy,
    /// From where, as far as is known.
    pub ip: Option<IpAddr>,
}

/// A session that was in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use<'a> {
    /// Its project.
    pub project: &'a ProjectId,
    /// The session.
    pub session: SessionId,
    /// When.
    pub at: Timestamp,
}

impl Store {
    /// Ends sessions, in one statement and so in one transaction; answers with those that were live until now. Any other
    /// had run out, had been ended before, or is unknown.
    ///
    /// # Errors
    ///
    /// When the database is away. Safe to repeat: what was ended by the first try is no longer live for the second.
    pub async fn sessions_revoke(&self, asked: Vec<Revocation>) -> Result<HashSet<(ProjectId, SessionId)>, Error> {
        self.check_durable("sessions_revoke")?;
        self.idempotent("sessions_revoke", move |mut tx| {
            let asked = asked.clone();
            async move {
                let ended = tx.sessions_revoke(&asked).await?;
                if !tx.has_written() {
                    // All had been ended before, by others: that must not be lost with the primary.
                    tx.mark().await?;
                }
                tx.commit(ended).await
            }
        })
        .await
    }

    /// Sessions as they are now, in no order; those that there are not are not among them.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn sessions_find(&self, project: ProjectId, ids: Vec<SessionId>) -> Result<Vec<Seen>, Error> {
        let ids: Vec<Uuid> = ids.into_iter().map(SessionId::as_uuid).collect();
        self.idempotent("sessions_find", move |mut tx| {
            let (project, ids) = (project.clone(), ids.clone());
            async move {
                let query = seen!().filter(sessions::project_id.eq(project.as_str())).filter(sessions::id.eq_any(ids));
                let rows: Result<Vec<SeenColumns>, _> = query.load(tx.pg()).await;
                let found = rows.map_err(|error| tx.failed(error))?;
                tx.commit(found.into_iter().map(seen).collect::<Result<_, _>>()?).await
            }
        })
        .await
    }

    /// As much of sessions as tells whether they are live, beside the present epochs, in no order.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn summaries_find(
        &self,
        project: ProjectId,
        ids: Vec<SessionId>,
    ) -> Result<Vec<(SessionSummary, Epoch)>, Error> {
        let ids: Vec<Uuid> = ids.into_iter().map(SessionId::as_uuid).collect();
        self.idempotent("outlines_find", move |mut tx| {
            let (project, ids) = (project.clone(), ids.clone());
            async move {
                let query = with_epochs!()
                    .filter(sessions::project_id.eq(project.as_str()))
                    .filter(sessions::id.eq_any(ids))
                    .filter(sessions::revoked_at.is_null())
                    .select((summary_columns!(), projects::epoch, users::epoch));
                let rows: Result<Vec<(SummaryColumns, i64, i64)>, _> = query.load(tx.pg()).await;
                let found = rows.map_err(|error| tx.failed(error))?.into_iter();
                let read = |(columns, project, user)| (summary(columns), Epoch { project, user });
                tx.commit(found.map(read).collect()).await
            }
        })
        .await
    }

    /// A session as it is now.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn session_find(&self, project: ProjectId, id: SessionId) -> Result<Option<Seen>, Error> {
        Ok(self.sessions_find(project, vec![id]).await?.pop())
    }

    /// Sessions, newest first.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn sessions_page(&self, asked: PageQuery) -> Result<Vec<Seen>, Error> {
        let rows_max = i64::try_from(asked.rows_max).unwrap_or(i64::MAX);
        let before = asked.before.map_or(Uuid::max(), SessionId::as_uuid);
        self.idempotent("sessions_page", move |mut tx| {
            let asked = asked.clone();
            async move {
                let page = seen!()
                    .filter(sessions::project_id.eq(asked.project.as_str()))
                    .filter(sessions::id.lt(before))
                    .filter(sessions::impersonator_id.is_null().or(asked.impersonations.into_sql::<Bool>()))
                    .order(sessions::id.desc())
                    .limit(rows_max);
                let rows: Result<Vec<SeenColumns>, _> = match &asked.user {
                    Some(user) => page.filter(sessions::user_id.eq(user.as_str())).load(tx.pg()).await,
                    None => page.load(tx.pg()).await,
                };
                let found = rows.map_err(|error| tx.failed(error))?;
                tx.commit(found.into_iter().map(seen).collect::<Result<_, _>>()?).await
            }
        })
        .await
    }

    /// Notes when sessions were last used, where that is later than what is noted.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn sessions_touch(&self, used: &[Use<'_>]) -> Result<(), Error> {
        let projects: Vec<String> = used.iter().map(|one| one.project.as_str().to_owned()).collect();
        let ids: Vec<Uuid> = used.iter().map(|one| one.session.as_uuid()).collect();
        let at: Vec<PgTimestamp> = used.iter().map(|one| to_pg(one.at)).collect();
        self.idempotent("sessions_touch", move |mut tx| {
            let statement = SessionsTouch { projects: projects.clone(), ids: ids.clone(), at: at.clone() };
            async move {
                statement.execute(tx.pg()).await.map_err(|error| tx.failed(error))?;
                tx.commit(()).await
            }
        })
        .await
    }
}

impl Tx {
    /// As [`Store::sessions_revoke`], within a transaction.
    pub async fn sessions_revoke(&mut self, asked: &[Revocation]) -> Result<HashSet<(ProjectId, SessionId)>, Error> {
        let statement = SessionsRevoke {
            projects: asked.iter().map(|one| one.project.as_str().to_owned()).collect(),
            ids: asked.iter().map(|one| one.session.as_uuid()).collect(),
            at: asked.iter().map(|one| to_pg(one.at)).collect(),
            reasons: asked.iter().map(|one| reason_number(one.reason)).collect(),
            records: asked.iter().map(|one| clock::new_record_id(one.at)).collect(),
            actors: asked.iter().map(|one| actor_columns(one.by).0).collect(),
            actor_ids: asked.iter().map(|one| actor_columns(one.by).1).collect(),
            ips: asked.iter().map(|one| one.ip.map(|ip| ip.to_string())).collect(),
        };
        let ended: Result<Vec<EndedColumns>, _> = statement.get_results(self.pg()).await;
        let ended = ended.map_err(|error| self.failed(error))?;
        if ended.iter().any(|(.., (_, is_queued))| *is_queued) {
            self.ring_on_commit();
        }
        if !ended.is_empty() {
            self.note_written();
        }
        let ended = ended.into_iter().map(ended_row).collect::<Result<Vec<_>, _>>()?;
        let was_live =
            ended.iter().filter(|one| one.was_live).map(|one| (one.revocation.project.clone(), one.session)).collect();
        self.will_publish(ended.into_iter().map(|one| one.revocation));
        Ok(was_live)
    }

    /// Locks a session until the end of the transaction, and reads it.
    pub async fn session_lock(&mut self, project: &ProjectId, id: SessionId) -> Result<Option<StoredSession>, Error> {
        let query = sessions::table.find((project.as_str(), id.as_uuid())).select(SessionRow::as_select()).for_update();
        let rows = query.load(self.pg()).await;
        rows.map_err(|error| self.failed(error))?.pop().map(SessionRow::into_stored).transpose()
    }

    /// Locks sessions of a project until the end of the transaction, in the one order in which many are locked, and reads
    /// them. One that there is not is not among them.
    pub async fn sessions_lock(&mut self, project: &ProjectId, ids: &[SessionId]) -> Result<Vec<StoredSession>, Error> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.as_uuid()).collect();
        let query = sessions::table
            .filter(sessions::project_id.eq(project.as_str()))
            .filter(sessions::id.eq_any(ids))
            .order((sessions::project_id, sessions::id))
            .select(SessionRow::as_select())
            .for_update();
        let rows = query.load(self.pg()).await;
        rows.map_err(|error| self.failed(error))?.into_iter().map(SessionRow::into_stored).collect()
    }

    /// A user's sessions, newest first, those that were ended among them: at most [`SUMMARIES_MAX`]. Where there are as many,
    /// there may be more, beyond the last one.
    pub async fn session_summaries(
        &mut self,
        project: &ProjectId,
        user: &UserId,
        beyond: Option<SessionId>,
    ) -> Result<Vec<SessionSummary>, Error> {
        // Not only those that are live: among a million that are over, Postgres would look for as long as it takes.
        let query = sessions::table
            .filter(sessions::project_id.eq(project.as_str()))
            .filter(sessions::user_id.eq(user.as_str()))
            .filter(sessions::id.lt(beyond.map_or(Uuid::max(), SessionId::as_uuid)))
            .order(sessions::id.desc())
            .select(summary_columns!())
            .limit(i64::try_from(SUMMARIES_MAX).unwrap_or(i64::MAX));
        let rows: Result<Vec<SummaryColumns>, _> = query.load(self.pg()).await;
        Ok(rows.map_err(|error| self.failed(error))?.into_iter().map(summary).collect())
    }

    /// Takes a session over into its user's present epoch.
    pub async fn session_spare(&mut self, project: &ProjectId, id: SessionId, epoch: i64) -> Result<(), Error> {
        let statement = SessionSpare { epoch, project: project.as_str().to_owned(), id: id.as_uuid() };
        statement.execute(self.pg()).await.map(drop).map_err(|error| self.failed(error))
    }

    /// Writes what the host application keeps with a session.
    pub async fn session_change(&mut self, session: &Session) -> Result<(), Error> {
        let statement = SessionChange {
            claims: serde_json::Value::Object(session.claims.clone()),
            labels: labels_column(session.labels.clone()),
            device_name: session.device.name.clone(),
            device_before: device_before_columns(session.device_before.as_ref()).1,
            project: session.project.as_str().to_owned(),
            id: session.id.as_uuid(),
        };
        statement.execute(self.pg()).await.map(drop).map_err(|error| self.failed(error))
    }

    /// Some of a user's sessions, oldest first, whatever their state.
    pub async fn sessions_of_user(
        &mut self,
        project: &ProjectId,
        user: &UserId,
        rows_max: usize,
    ) -> Result<Vec<SessionId>, Error> {
        let some = sessions::table
            .filter(sessions::project_id.eq(project.as_str()))
            .filter(sessions::user_id.eq(user.as_str()))
            .order(sessions::id)
            .limit(i64::try_from(rows_max).unwrap_or(i64::MAX))
            .select(sessions::id);
        let ids: Result<Vec<Uuid>, _> = some.load(self.pg()).await;
        Ok(ids.map_err(|error| self.failed(error))?.into_iter().map(SessionId::from_uuid).collect())
    }

    /// Deletes sessions that this transaction has ended, and so has locked.
    pub async fn sessions_delete(&mut self, project: &ProjectId, ids: &[SessionId]) -> Result<usize, Error> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.as_uuid()).collect();
        let these = sessions::table.filter(sessions::project_id.eq(project.as_str())).filter(sessions::id.eq_any(ids));
        diesel::delete(these).execute(self.pg()).await.map_err(|error| self.failed(error))
    }

    /// Writes a new session.
    pub async fn session_insert(&mut self, stored: StoredSession) -> Result<(), Error> {
        let insert = diesel::insert_into(sessions::table).values(SessionRow::new(stored));
        insert.execute(self.pg()).await.map_err(|error| self.failed(error))?;
        self.note_written();
        Ok(())
    }

    /// Records a refresh: the session's last use, its device and its chain, and until when its newest access token lasts.
    pub async fn session_rotate(
        &mut self,
        session: &Session,
        chain: &Chain,
        access_expires_at: Timestamp,
    ) -> Result<(), Error> {
        let (generation, attempts, issued_at) = chain_columns(chain);
        let (repeats, repeated_elsewhere) = repeats_columns(chain);
        let (device_changed_at, device_before) = device_before_columns(session.device_before.as_ref());
        let statement = SessionRotate {
            last_used_at: to_pg(session.last_used_at),
            used_before_at: session.used_before_at.map(to_pg),
            repeats,
            repeated_elsewhere,
            idle_expires_at: to_pg(session.idle_expires_at),
            access_expires_at: to_pg(access_expires_at),
            generation,
            attempts,
            issued_at,
            device_name: session.device.name.clone(),
            user_agent: session.device.user_agent.clone(),
            ip: session.device.ip.map(|ip| ip.to_string()),
            device_changed_at,
            device_before,
            project: session.project.as_str().to_owned(),
            id: session.id.as_uuid(),
        };
        if statement.execute(self.pg()).await.map_err(|error| self.failed(error))? > 0 {
            self.note_written();
        }
        Ok(())
    }
}

fn summary(columns: SummaryColumns) -> SessionSummary {
    let (id, project, user, expires_at, idle_expires_at, last_used_at, impersonator, is_revoked) = columns;
    SessionSummary {
        id: SessionId::from_uuid(id),
        last_used_at: from_pg(last_used_at),
        lifetime: Lifetime {
            epoch: Epoch { project, user },
            expires_at: from_pg(expires_at),
            idle_expires_at: from_pg(idle_expires_at),
            is_revoked,
        },
        is_impersonation: impersonator.is_some(),
    }
}

/// What the feed tells of a session that was just ended; then whether it was live until now, and whether a delivery was
/// queued.
type EndedColumns = (String, Uuid, String, bool, PgTimestamp, i16, Uuid, PgTimestamp, i64, (bool, bool));

/// A session that was just ended.
struct EndedRow {
    session: SessionId,
    was_live: bool,
    revocation: PublishedRevocation,
}

fn ended_row(columns: EndedColumns) -> Result<EndedRow, Error> {
    let (project, session, user, is_impersonation, at, reason, id, access_expires_at, xid, (was_live, _)) = columns;
    let bad = |column| Error::Inconsistent { table: "sessions", column, row: session.to_string() };
    let session = SessionId::from_uuid(session);
    let revocation = PublishedRevocation {
        place: Place { xid: xid.try_into().map_err(|_| bad("xid"))?, id },
        project: ProjectId::parse(&project).ok_or_else(|| bad("project_id"))?,
        ended: Ended::Session { id: session, is_impersonation },
        user: UserId::parse(&user),
        at: from_pg(at),
        reason: reason_of(reason).ok_or_else(|| bad("revoke_reason"))?,
        access_expires_at: from_pg(access_expires_at),
    };
    Ok(EndedRow { session, was_live, revocation })
}
