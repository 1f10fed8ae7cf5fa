//! `backchannel_endpoints` and `backchannel_deliveries`: whom to tell that a session has ended, and what is still to be told.
//! Deliveries are written by the statements that end sessions.

use diesel::ExpressionMethods as _;
use diesel::QueryDsl as _;
use diesel::pg::data_types::PgTimestamp;
use diesel_async::RunQueryDsl as _;
use uuid::Uuid;

use super::Store;
use super::Tx;
use super::error::Error;
use super::revocations::actor;
use super::rows::from_pg;
use super::rows::reason_of;
use super::rows::to_pg;
use super::schema::backchannel_deliveries as deliveries;
use super::schema::backchannel_endpoints as endpoints;
use super::statements::DeliveriesClaim;
use super::statements::DeliveriesCount;
use super::statements::DeliveriesForget;
use super::statements::DeliveryDone;
use super::statements::DeliveryFailed;
use crate::clock::Timestamp;
use crate::id::ProjectId;
use crate::id::SessionId;
use crate::id::UserId;
use crate::session::EndedBy;
use crate::session::RevokeReason;
use crate::session::backchannel::Fate;
use crate::session::backchannel::Kind;

/// Who is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its id.
    pub id: Uuid,
    /// How it is told.
    pub kind: Kind,
    /// Where.
    pub url: String,
    /// The `aud` of what it is sent.
    pub audience: String,
    /// Since when.
    pub created_at: Timestamp,
}

/// What became of a new endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// It is told from now on.
    Done,
    /// There is no such project.
    NoProject,
    /// The project has the same one already, under this id.
    Already(Uuid),
    /// The project has as many as it may have.
    TooMany,
}

/// What became of an endpoint that was to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// It is told nothing from now on.
    Now,
    /// It was removed before.
    Before,
    /// The project has no such endpoint.
    Missing,
}

/// A place among the endpoints of all projects.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointPlace {
    project: String,
    endpoint: Uuid,
}

impl EndpointPlace {
    /// The place of an endpoint.
    pub fn of(project: &str, endpoint: Uuid) -> Self {
        Self { project: project.to_owned(), endpoint }
    }
}

/// Which deliveries to take.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Behind this endpoint.
    pub after: EndpointPlace,
    /// The endpoints at which something is under way here, each as often as that.
    pub under_way: Vec<Uuid>,
    /// The most for each endpoint, with what is under way there.
    pub each_max: usize,
    /// The most in all.
    pub rows_max: usize,
    /// What is due now.
    pub now: Timestamp,
    /// When an attempt that nothing more was heard of counts as lost, and another replica may begin one.
    pub lost_at: Timestamp,
}

/// A delivery that we have taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// Its project.
    pub project: ProjectId,
    /// Its id.
    pub id: Uuid,
    /// Whom to tell.
    pub endpoint: Uuid,
    /// The line of the audit that it tells of.
    pub revocation: Uuid,
    /// The session that has ended; none for all of the user's.
    pub session: Option<SessionId>,
    /// Whose; none once the user was erased and it was dead.
    pub user: Option<String>,
    /// When it ended.
    pub at: Timestamp,
    /// Why.
    pub reason: RevokeReason,
    /// Who ended it.
    pub by: EndedBy,
    /// Since when it is tried.
    pub queued_at: Timestamp,
    /// The number of the attempt that begins now, from 1 on.
    pub attempt: u32,
    /// How the endpoint is told.
    pub kind: Kind,
    /// Where.
    pub url: String,
    /// The `aud` of what it is sent.
    pub audience: String,
    /// Whether the endpoint is to be told nothing any more.
    pub is_removed: bool,
}

impl Due {
    /// Where its endpoint stands.
    pub fn place(&self) -> EndpointPlace {
        EndpointPlace::of(self.project.as_str(), self.endpoint)
    }
}

/// A delivery that nobody has yet, for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenDelivery {
    /// Its id.
    pub id: Uuid,
    /// Whom to tell.
    pub endpoint: Uuid,
    /// The session that has ended; none for all of the user's.
    pub session: Option<SessionId>,
    /// When it ended.
    pub at: Timestamp,
    /// How often it was tried.
    pub attempts: i32,
    /// When it is tried next; none once it is dead.
    pub due_at: Option<Timestamp>,
    /// When it was given up.
    pub dead_at: Option<Timestamp>,
    /// What became of the last attempt.
    pub last_error: Option<String>,
}

/// What became of a dead delivery that was to be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revived {
    /// It is tried from now on.
    Done,
    /// It is not dead: it waits, or was delivered.
    NotDead,
    /// Its endpoint was removed.
    NoEndpoint,
    /// Its user was erased, and it names no session: there is nothing to tell.
    Nameless,
    /// The project has no such delivery.
    Missing,
}

type DueColumns = (
    String,
    Uuid,
    Uuid,
    Uuid,
    Option<Uuid>,
    Option<String>,
    PgTimestamp,
    i16,
    i16,
    Option<Uuid>,
    PgTimestamp,
    i32,
    i16,
    String,
    String,
    bool,
);

type EndpointColumns = (Uuid, i16, String, String, PgTimestamp);

type DeadColumns = (Uuid, Option<Uuid>, Option<String>, Option<PgTimestamp>);

type OpenColumns =
    (Uuid, Uuid, Option<Uuid>, PgTimestamp, i32, Option<PgTimestamp>, Option<PgTimestamp>, Option<String>);

impl Store {
    /// Comes to an end when this process has queued a delivery, now or since it was last asked.
    pub async fn delivery_queued(&self) {
        self.publisher.deliveries.notified().await;
    }

    /// Writes down a new endpoint, unless the project has the same one or as many as it may have. `same` compares it with one
    /// that is there.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn endpoint_insert(
        &self,
        project: ProjectId,
        endpoint: Endpoint,
        same: impl Fn(&Endpoint, &Endpoint) -> bool + Send + 'static,
        endpoints_max: usize,
    ) -> Result<Added, Error> {
        self.transact("endpoint_insert", move |mut tx| async move {
            // Held, so that two that add one at once count each other's.
            let Some(_) = tx.project_lock(&project).await? else { return tx.commit(Added::NoProject).await };
            let present = tx.endpoints(&project).await?;
            if let Some(known) = present.iter().find(|known| same(&endpoint, known)) {
                return tx.commit(Added::Already(known.id)).await;
            }
            if present.len() >= endpoints_max {
                return tx.commit(Added::TooMany).await;
            }
            let insert = diesel::insert_into(endpoints::table).values((
                endpoints::project_id.eq(project.as_str()),
                endpoints::id.eq(endpoint.id),
                endpoints::kind.eq(kind_number(endpoint.kind)),
                endpoints::url.eq(endpoint.url),
                endpoints::audience.eq(endpoint.audience),
                endpoints::created_at.eq(to_pg(endpoint.created_at)),
            ));
            insert.execute(tx.pg()).await.map_err(|error| tx.failed(error))?;
            tx.commit(Added::Done).await
        })
        .await
    }

    /// A project's endpoints, without the removed ones, oldest first; `None` when there is no such project.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn endpoints_list(&self, project: ProjectId) -> Result<Option<Vec<Endpoint>>, Error> {
        self.transact("endpoints_list", move |mut tx| async move {
            let Some(_) = tx.project_find(&project).await? else { return tx.end_reading(None).await };
            let endpoints = tx.endpoints(&project).await?;
            tx.end_reading(Some(endpoints)).await
        })
        .await
    }

    /// Removes an endpoint. A sign-out at this moment may still queue a delivery for it; it will find the endpoint removed.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn endpoint_remove(&self, project: ProjectId, id: Uuid, now: Timestamp) -> Result<Removed, Error> {
        self.transact("endpoint_remove", move |mut tx| async move {
            let one = endpoints::table.find((project.as_str(), id));
            let update = diesel::update(one.filter(endpoints::removed_at.is_null()));
            let removed = update.set(endpoints::removed_at.eq(to_pg(now))).execute(tx.pg()).await;
            let removed = removed.map_err(|error| tx.failed(error))?;
            let known = one.select(endpoints::id).load::<Uuid>(tx.pg()).await.map_err(|error| tx.failed(error))?;
            tx.commit(match (removed, known.as_slice()) {
                (_, []) => Removed::Missing,
                (0, _) => Removed::Before,
                (_, _) => Removed::Now,
            })
            .await
        })
        .await
    }

    /// Takes deliveries that are due, in no order. Each is ours until `lost_at`.
    ///
    /// # Errors
    ///
    /// When the database is away. Safe to repeat: what the first try took is tried again once it counts as lost.
    pub async fn deliveries_claim(&self, claim: Claim) -> Result<Vec<Due>, Error> {
        self.idempotent("deliveries_claim", move |mut tx| {
            let statement = DeliveriesClaim {
                after_project: claim.after.project.clone(),
                after_endpoint: claim.after.endpoint,
                now: to_pg(claim.now),
                each_max: i64::try_from(claim.each_max).unwrap_or(i64::MAX),
                under_way: claim.under_way.clone(),
                rows_max: i64::try_from(claim.rows_max).unwrap_or(i64::MAX),
                lost_at: to_pg(claim.lost_at),
            };
            async move {
                let rows: Result<Vec<DueColumns>, _> = statement.get_results(tx.pg()).await;
                let rows = rows.map_err(|error| tx.failed(error))?;
                tx.commit(rows.into_iter().map(due).collect::<Result<_, _>>()?).await
            }
        })
        .await
    }

    /// Writes down that a receiver has a delivery.
    ///
    /// # Errors
    ///
    /// When the database is away. Then it is sent once more, under the same id.
    pub async fn delivery_done(&self, project: ProjectId, id: Uuid, now: Timestamp) -> Result<(), Error> {
        self.idempotent("delivery_done", move |mut tx| {
            let statement = DeliveryDone { at: to_pg(now), project: project.as_str().to_owned(), id };
            async move {
                statement.execute(tx.pg()).await.map_err(|error| tx.failed(error))?;
                tx.commit(()).await
            }
        })
        .await
    }

    /// Writes down what becomes of a delivery whose attempt failed. An attempt that counts as lost, and that another one has
    /// begun after, changes nothing.
    ///
    /// # Errors
    ///
    /// When the database is away. Then it is tried again once the attempt counts as lost.
    pub async fn delivery_failed(&self, due: &Due, fate: Fate, error: String, now: Timestamp) -> Result<(), Error> {
        let (due_at, dead_at) = match fate {
            Fate::Retried(at) => (Some(to_pg(at)), None),
            Fate::Dead => (None, Some(to_pg(now))),
        };
        let (project, id, attempt) = (due.project.clone(), due.id, i32::try_from(due.attempt).unwrap_or(i32::MAX));
        self.idempotent("delivery_failed", move |mut tx| {
            let (project, error) = (project.as_str().to_owned(), error.clone());
            let statement = DeliveryFailed { due_at, dead_at, error, project, id, attempt };
            async move {
                statement.execute(tx.pg()).await.map_err(|error| tx.failed(error))?;
                tx.commit(()).await
            }
        })
        .await
    }

    /// How many deliveries wait, by the kind of endpoint; of each endpoint at most so many are counted.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn deliveries_count(&self, each_max: i64) -> Result<Vec<(Kind, i64)>, Error> {
        self.idempotent("deliveries_count", move |mut tx| async move {
            let rows: Result<Vec<(i16, i64)>, _> = DeliveriesCount { each_max }.get_results(tx.pg()).await;
            let counted = |(number, count)| Ok((kind_of(number).ok_or_else(|| bad_kind("-"))?, count));
            let counts = rows.map_err(|error| tx.failed(error))?.into_iter().map(counted);
            tx.commit(counts.collect::<Result<_, _>>()?).await
        })
        .await
    }

    /// The newest deliveries of a project that nobody has, those that wait and those that are dead.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn deliveries_open(&self, project: ProjectId, rows_max: usize) -> Result<Vec<OpenDelivery>, Error> {
        let rows_max = i64::try_from(rows_max).unwrap_or(i64::MAX);
        self.idempotent("deliveries_open", move |mut tx| {
            let project = project.clone();
            async move {
                let newest = deliveries::table
                    .filter(deliveries::project_id.eq(project.as_str()))
                    .filter(deliveries::delivered_at.is_null())
                    .order(deliveries::id.desc())
                    .limit(rows_max)
                    .select((
                        deliveries::id,
                        deliveries::endpoint_id,
                        deliveries::session_id,
                        deliveries::at,
                        deliveries::attempts,
                        deliveries::due_at,
                        deliveries::dead_at,
                        deliveries::last_error,
                    ));
                let rows: Result<Vec<OpenColumns>, _> = newest.load(tx.pg()).await;
                let rows = rows.map_err(|error| tx.failed(error))?;
                tx.commit(rows.into_iter().map(open).collect()).await
            }
        })
        .await
    }

    /// Has a dead delivery tried again, as if it were queued now.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn delivery_revive(&self, project: ProjectId, id: Uuid, now: Timestamp) -> Result<Revived, Error> {
        self.transact("delivery_revive", move |mut tx| async move {
            let one = deliveries::table.find((project.as_str(), id));
            let facts = (deliveries::endpoint_id, deliveries::session_id, deliveries::user_id, deliveries::dead_at);
            let rows: Result<Vec<DeadColumns>, _> = one.select(facts).for_update().load(tx.pg()).await;
            let (endpoint, session, user) = match rows.map_err(|error| tx.failed(error))?.pop() {
                Some((endpoint, session, user, Some(_))) => (endpoint, session, user),
                Some((.., None)) => return tx.commit(Revived::NotDead).await,
                None => return tx.commit(Revived::Missing).await,
            };
            if !tx.endpoints(&project).await?.iter().any(|one| one.id == endpoint) {
                return tx.commit(Revived::NoEndpoint).await;
            }
            if session.is_none() && user.is_none() {
                return tx.commit(Revived::Nameless).await;
            }
            let update = diesel::update(one).set((
                deliveries::queued_at.eq(to_pg(now)),
                deliveries::due_at.eq(to_pg(now)),
                deliveries::dead_at.eq(None::<PgTimestamp>),
                deliveries::attempts.eq(0),
            ));
            update.execute(tx.pg()).await.map_err(|error| tx.failed(error))?;
            tx.ring_on_commit();
            tx.commit(Revived::Done).await
        })
        .await
    }
}

impl Tx {
    /// A project's endpoints, without the removed ones, oldest first.
    async fn endpoints(&mut self, project: &ProjectId) -> Result<Vec<Endpoint>, Error> {
        let query = endpoints::table
            .filter(endpoints::project_id.eq(project.as_str()))
            .filter(endpoints::removed_at.is_null())
            .order((endpoints::created_at, endpoints::id))
            .select((endpoints::id, endpoints::kind, endpoints::url, endpoints::audience, endpoints::created_at));
        let rows: Result<Vec<EndpointColumns>, _> = query.load(self.pg()).await;
        rows.map_err(|error| self.failed(error))?.into_iter().map(endpoint).collect()
    }

    /// Has some of the deliveries that name a user forget the name: those that wait once they are over, all others now.
    /// Answers with how many there were.
    pub async fn deliveries_forget(
        &mut self,
        project: &ProjectId,
        user: &UserId,
        rows_max: usize,
    ) -> Result<usize, Error> {
        let statement = DeliveriesForget {
            project: project.as_str().to_owned(),
            user: user.as_str().to_owned(),
            rows_max: i64::try_from(rows_max).unwrap_or(i64::MAX),
        };
        statement.execute(self.pg()).await.map_err(|error| self.failed(error))
    }

    /// Deletes endpoints that were removed at this moment or before. Answers with how many there were.
    pub async fn endpoints_sweep(&mut self, until: Timestamp) -> Result<usize, Error> {
        let gone = endpoints::table.filter(endpoints::removed_at.le(to_pg(until)));
        diesel::delete(gone).execute(self.pg()).await.map_err(|error| self.failed(error))
    }
}

/// What is stored for it. A number is never given a second meaning.
const fn kind_number(kind: Kind) -> i16 {
    match kind {
        Kind::Logout => 1,
        Kind::Caep => 2,
    }
}

fn kind_of(number: i16) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| kind_number(*kind) == number)
}

fn bad_kind(row: impl ToString) -> Error {
    Error::Inconsistent { table: "backchannel_endpoints", column: "kind", row: row.to_string() }
}

fn endpoint((id, kind, url, audience, created_at): EndpointColumns) -> Result<Endpoint, Error> {
    let kind = kind_of(kind).ok_or_else(|| bad_kind(id))?;
    Ok(Endpoint { id, kind, url, audience, created_at: from_pg(created_at) })
}

fn open((id, endpoint, session, at, attempts, due_at, dead_at, last_error): OpenColumns) -> OpenDelivery {
    OpenDelivery {
        id,
        endpoint,
        session: session.map(SessionId::from_uuid),
        at: from_pg(at),
        attempts,
        due_at: due_at.map(from_pg),
        dead_at: dead_at.map(from_pg),
        last_error,
    }
}

fn due(row: DueColumns) -> Result<Due, Error> {
    let (project, id, endpoint, revocation, session, user, at, reason, by, by_id, ..) = row;
    let (.., queued_at, attempts, kind, url, audience, is_removed) = row;
    let bad = |column| Error::Inconsistent { table: "backchannel_deliveries", column, row: id.to_string() };
    Ok(Due {
        project: ProjectId::parse(&project).ok_or_else(|| bad("project_id"))?,
        id,
        endpoint,
        revocation,
        session: session.map(SessionId::from_uuid),
        user,
        at: from_pg(at),
        reason: reason_of(reason).ok_or_else(|| bad("reason"))?,
        by: actor(by, by_id).ok_or_else(|| bad("actor"))?,
        queued_at: from_pg(queued_at),
        attempt: attempts.unsigned_abs(),
        kind: kind_of(kind).ok_or_else(|| bad_kind(endpoint))?,
        url,
        audience,
        is_removed,
    })
}
