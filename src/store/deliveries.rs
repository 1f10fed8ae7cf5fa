//! `backchannel_deliveries`: what is to be sent to endpoints, and what was. Queued by the statements that end sessions.

use diesel::ExpressionMethods as _;
use diesel::QueryDsl as _;
use diesel::Queryable;
use diesel::QueryableByName;
use diesel::Selectable;
use diesel::SelectableHelper as _;
use diesel::pg::data_types::PgTimestamp;
use diesel::sql_types as sql;
use uuid::Uuid;

use super::Store;
use super::Tx;
use super::columns::actor_of;
use super::columns::from_pg;
use super::columns::limit;
use super::columns::reason_of;
use super::columns::to_pg;
use super::endpoints::kind_of;
use super::error::Error;
use super::schema::backchannel_deliveries as deliveries;
use super::statement::statement;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::id::UserId;
use sessiond_core::session::EndedBy;
use sessiond_core::session::RevokeReason;
use sessiond_core::session::backchannel::Fate;
use sessiond_core::session::backchannel::Kind;

/// A place among the endpoints of all projects.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointPosition {
    project: String,
    endpoint: Uuid,
}

impl EndpointPosition {
    /// The place of an endpoint.
    pub fn of(project: &str, endpoint: Uuid) -> Self {
        Self { project: project.to_owned(), endpoint }
    }
}

/// Which deliveries to take.
#[derive(Clone, Debug)]
pub struct DeliveryClaim {
    /// Behind this endpoint.
    pub after: EndpointPosition,
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
pub struct DueDelivery {
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

impl DueDelivery {
    /// Where its endpoint stands.
    pub fn place(&self) -> EndpointPosition {
        EndpointPosition::of(self.project.as_str(), self.endpoint)
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

impl Store {
    /// Resolves when this process has queued a delivery, now or since this was last called.
    pub async fn delivery_queued(&self) {
        self.publisher.deliveries.notified().await;
    }

    /// Takes deliveries that are due, in no order. Each is ours until `lost_at`.
    ///
    /// # Errors
    ///
    /// When the database is away. Safe to repeat: what the first try took is tried again once it counts as lost.
    pub async fn deliveries_claim(&self, claim: DeliveryClaim) -> Result<Vec<DueDelivery>, Error> {
        self.idempotent("deliveries_claim", move |mut tx| {
            let statement = DeliveriesClaim {
                after_project: claim.after.project.clone(),
                after_endpoint: claim.after.endpoint,
                now: to_pg(claim.now),
                each_max: limit(claim.each_max),
                under_way: claim.under_way.clone(),
                rows_max: limit(claim.rows_max),
                lost_at: to_pg(claim.lost_at),
            };
            async move {
                let rows = tx.rows(statement).await?;
                tx.commit(rows.into_iter().map(DueRow::into_due).collect::<Result<_, _>>()?).await
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
                tx.execute(statement).await?;
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
    pub async fn delivery_failed(
        &self,
        due: &DueDelivery,
        fate: Fate,
        error: String,
        now: Timestamp,
    ) -> Result<(), Error> {
        let (due_at, dead_at) = match fate {
            Fate::Retried(at) => (Some(to_pg(at)), None),
            Fate::Dead => (None, Some(to_pg(now))),
        };
        let (project, id, attempt) = (due.project.clone(), due.id, i32::try_from(due.attempt).unwrap_or(i32::MAX));
        self.idempotent("delivery_failed", move |mut tx| {
            let (project, error) = (project.as_str().to_owned(), error.clone());
            let statement = DeliveryFailed { due_at, dead_at, error, project, id, attempt };
            async move {
                tx.execute(statement).await?;
                tx.commit(()).await
            }
        })
        .await
    }

    /// How many deliveries wait, by the kind of endpoint; of each endpoint at most `each_max` are counted.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn deliveries_count(&self, each_max: i64) -> Result<Vec<(Kind, i64)>, Error> {
        self.idempotent("deliveries_count", move |mut tx| async move {
            let rows = tx.rows(DeliveriesCount { each_max }).await?;
            let counts = rows.into_iter().map(|row| Ok((kind_of(row.kind, "-")?, row.waiting)));
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
        self.idempotent("deliveries_open", move |mut tx| {
            let project = project.clone();
            async move {
                let newest = deliveries::table
                    .filter(deliveries::project_id.eq(project.as_str()))
                    .filter(deliveries::delivered_at.is_null())
                    .order(deliveries::id.desc())
                    .limit(limit(rows_max))
                    .select(OpenRow::as_select());
                let rows = tx.load(newest).await?;
                tx.commit(rows.into_iter().map(OpenRow::into_open).collect()).await
            }
        })
        .await
    }

    /// Queues a dead delivery again, as if it were queued now.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn delivery_revive(&self, project: ProjectId, id: Uuid, now: Timestamp) -> Result<Revived, Error> {
        self.transact("delivery_revive", move |mut tx| async move {
            let one = deliveries::table.find((project.as_str(), id));
            let dead = match tx.load(one.select(DeadRow::as_select()).for_update()).await?.pop() {
                Some(row) if row.dead_at.is_some() => row,
                Some(_) => return tx.commit(Revived::NotDead).await,
                None => return tx.commit(Revived::Missing).await,
            };
            if !tx.endpoints(&project).await?.iter().any(|one| one.id == dead.endpoint_id) {
                return tx.commit(Revived::NoEndpoint).await;
            }
            if dead.session_id.is_none() && dead.user_id.is_none() {
                return tx.commit(Revived::Nameless).await;
            }
            let update = diesel::update(one).set((
                deliveries::queued_at.eq(to_pg(now)),
                deliveries::due_at.eq(to_pg(now)),
                deliveries::dead_at.eq(None::<PgTimestamp>),
                deliveries::attempts.eq(0),
            ));
            tx.execute(update).await?;
            tx.ring_on_commit();
            tx.commit(Revived::Done).await
        })
        .await
    }
}

impl Tx {
    /// Takes the name of a user out of deliveries: out of those that wait once they are over, out of all others now. Returns
    /// how many there were.
    pub async fn deliveries_forget(
        &mut self,
        project: &ProjectId,
        user: &UserId,
        rows_max: usize,
    ) -> Result<usize, Error> {
        let (project, user) = (project.as_str().to_owned(), user.as_str().to_owned());
        self.execute(DeliveriesForget { project, user, rows_max: limit(rows_max) }).await
    }
}

statement! {
    /// Claims deliveries that are due: for each endpoint at most `each_max`, less those that this process has under way there.
    /// Each is due again when its attempt counts as lost.
    ///
    /// From one endpoint that something waits for to the next, and not along what is due: a hundred thousand deliveries for
    /// one that does not answer are stepped over. What another replica takes at this moment is passed over.
    DeliveriesClaim -> DueRow =
    "WITH RECURSIVE waiting (project_id, endpoint_id) AS (
         (SELECT project_id, endpoint_id FROM backchannel_deliveries
          WHERE due_at IS NOT NULL AND (project_id, endpoint_id) > ("
    [after_project: String as sql::Text]
    ", "
    [after_endpoint: Uuid as sql::Uuid]
    ") ORDER BY project_id, endpoint_id LIMIT 1)
         UNION ALL
         SELECT next.project_id, next.endpoint_id FROM waiting AS w CROSS JOIN LATERAL (
             SELECT d.project_id, d.endpoint_id FROM backchannel_deliveries AS d
             WHERE d.due_at IS NOT NULL AND (d.project_id, d.endpoint_id) > (w.project_id, w.endpoint_id)
             ORDER BY d.project_id, d.endpoint_id LIMIT 1) AS next
     ), taken AS MATERIALIZED (
         SELECT d.project_id, d.endpoint_id, d.id FROM waiting AS w CROSS JOIN LATERAL (
             SELECT q.project_id, q.endpoint_id, q.id FROM backchannel_deliveries AS q
             WHERE q.project_id = w.project_id AND q.endpoint_id = w.endpoint_id AND q.due_at <= "
    [now: PgTimestamp as sql::Timestamptz]
    " ORDER BY q.due_at LIMIT greatest(0, "
    [each_max: i64 as sql::BigInt]
    " - (SELECT count(*) FROM unnest("
    [under_way: Vec<Uuid> as sql::Array<sql::Uuid>]
    ") AS u (id) WHERE u.id = w.endpoint_id)) FOR UPDATE OF q SKIP LOCKED) AS d LIMIT "
    [rows_max: i64 as sql::BigInt]
    "
     )
     UPDATE backchannel_deliveries AS d SET attempts = d.attempts + 1, due_at = "
    [lost_at: PgTimestamp as sql::Timestamptz]
    " FROM taken CROSS JOIN LATERAL (SELECT kind, url, audience, removed_at FROM backchannel_endpoints
         WHERE project_id = taken.project_id AND id = taken.endpoint_id LIMIT 1) AS e
     WHERE d.project_id = taken.project_id AND d.id = taken.id
     RETURNING d.project_id, d.id, d.endpoint_id, d.revocation_id, d.session_id, d.user_id, d.at, d.reason, d.actor,
         d.actor_id, d.queued_at, d.attempts, e.kind, e.url, e.audience, e.removed_at IS NOT NULL AS is_removed"
}

statement! {
    /// Records that a receiver has a delivery, from this replica or another. Removes the user's name.
    DeliveryDone -> () =
    "UPDATE backchannel_deliveries SET delivered_at = "
    [at: PgTimestamp as sql::Timestamptz]
    ", due_at = NULL, dead_at = NULL, last_error = NULL, user_id = NULL WHERE project_id = "
    [project: String as sql::Text]
    " AND id = "
    [id: Uuid as sql::Uuid]
    " AND delivered_at IS NULL"
}

statement! {
    /// Records that an attempt failed and when the next one is due, or that none is; unless another attempt has begun.
    DeliveryFailed -> () =
    "UPDATE backchannel_deliveries SET due_at = f.due_at, dead_at = f.dead_at, last_error = f.last_error,
         user_id = CASE WHEN f.dead_at IS NULL OR NOT user_erased THEN user_id END
     FROM (SELECT "
    [due_at: Option<PgTimestamp> as sql::Nullable<sql::Timestamptz>]
    ", "
    [dead_at: Option<PgTimestamp> as sql::Nullable<sql::Timestamptz>]
    ", "
    [error: String as sql::Text]
    ") AS f (due_at, dead_at, last_error) WHERE project_id = "
    [project: String as sql::Text]
    " AND id = "
    [id: Uuid as sql::Uuid]
    " AND attempts = "
    [attempt: i32 as sql::Integer]
    " AND backchannel_deliveries.due_at IS NOT NULL"
}

statement! {
    /// How much waits, by the kind of endpoint, counted up to a bound for each endpoint.
    DeliveriesCount -> WaitingRow =
    "WITH RECURSIVE waiting (project_id, endpoint_id) AS (
         (SELECT project_id, endpoint_id FROM backchannel_deliveries
          WHERE due_at IS NOT NULL AND (project_id, endpoint_id) > ('', '00000000-0000-0000-0000-000000000000')
          ORDER BY project_id, endpoint_id LIMIT 1)
         UNION ALL
         SELECT next.project_id, next.endpoint_id FROM waiting AS w CROSS JOIN LATERAL (
             SELECT d.project_id, d.endpoint_id FROM backchannel_deliveries AS d
             WHERE d.due_at IS NOT NULL AND (d.project_id, d.endpoint_id) > (w.project_id, w.endpoint_id)
             ORDER BY d.project_id, d.endpoint_id LIMIT 1) AS next
     )
     SELECT e.kind, sum(c.count)::bigint AS waiting FROM waiting AS w
         CROSS JOIN LATERAL (SELECT kind FROM backchannel_endpoints
             WHERE project_id = w.project_id AND id = w.endpoint_id LIMIT 1) AS e
         CROSS JOIN LATERAL (SELECT count(*) FROM (SELECT FROM backchannel_deliveries AS d
             WHERE d.project_id = w.project_id AND d.endpoint_id = w.endpoint_id AND d.due_at IS NOT NULL LIMIT "
    [each_max: i64 as sql::BigInt]
    ") AS counted) AS c GROUP BY e.kind"
}

statement! {
    /// Has deliveries forget a user who is erased: those that wait once they are over, all others now. In the order in which
    /// a sweep locks them.
    DeliveriesForget -> () =
    "UPDATE backchannel_deliveries AS d SET user_erased = true, user_id = CASE WHEN d.due_at IS NOT NULL THEN d.user_id END
     FROM (SELECT project_id, id FROM backchannel_deliveries WHERE project_id = "
    [project: String as sql::Text]
    " AND user_id = "
    [user: String as sql::Text]
    " AND NOT user_erased ORDER BY id LIMIT "
    [rows_max: i64 as sql::BigInt]
    " FOR UPDATE) AS named WHERE d.project_id = named.project_id AND d.id = named.id"
}

#[derive(QueryableByName)]
#[diesel(table_name = deliveries)]
struct DueRow {
    project_id: String,
    id: Uuid,
    endpoint_id: Uuid,
    revocation_id: Uuid,
    session_id: Option<Uuid>,
    user_id: Option<String>,
    at: PgTimestamp,
    reason: i16,
    actor: i16,
    actor_id: Option<Uuid>,
    queued_at: PgTimestamp,
    attempts: i32,
    #[diesel(sql_type = sql::SmallInt)]
    kind: i16,
    #[diesel(sql_type = sql::Text)]
    url: String,
    #[diesel(sql_type = sql::Text)]
    audience: String,
    #[diesel(sql_type = sql::Bool)]
    is_removed: bool,
}

impl DueRow {
    fn into_due(self) -> Result<DueDelivery, Error> {
        let bad = |column| Error::Inconsistent { table: "backchannel_deliveries", column, row: self.id.to_string() };
        Ok(DueDelivery {
            project: ProjectId::parse(&self.project_id).ok_or_else(|| bad("project_id"))?,
            id: self.id,
            endpoint: self.endpoint_id,
            revocation: self.revocation_id,
            session: self.session_id.map(SessionId::from_uuid),
            at: from_pg(self.at),
            reason: reason_of(self.reason).ok_or_else(|| bad("reason"))?,
            by: actor_of(self.actor, self.actor_id).ok_or_else(|| bad("actor"))?,
            user: self.user_id,
            queued_at: from_pg(self.queued_at),
            attempt: self.attempts.unsigned_abs(),
            kind: kind_of(self.kind, self.endpoint_id)?,
            url: self.url,
            audience: self.audience,
            is_removed: self.is_removed,
        })
    }
}

#[derive(QueryableByName)]
struct WaitingRow {
    #[diesel(sql_type = sql::SmallInt)]
    kind: i16,
    #[diesel(sql_type = sql::BigInt)]
    waiting: i64,
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = deliveries)]
struct OpenRow {
    id: Uuid,
    endpoint_id: Uuid,
    session_id: Option<Uuid>,
    at: PgTimestamp,
    attempts: i32,
    due_at: Option<PgTimestamp>,
    dead_at: Option<PgTimestamp>,
    last_error: Option<String>,
}

impl OpenRow {
    fn into_open(self) -> OpenDelivery {
        OpenDelivery {
            id: self.id,
            endpoint: self.endpoint_id,
            session: self.session_id.map(SessionId::from_uuid),
            at: from_pg(self.at),
            attempts: self.attempts,
            due_at: self.due_at.map(from_pg),
            dead_at: self.dead_at.map(from_pg),
            last_error: self.last_error,
        }
    }
}

/// What decides whether a delivery can be tried again.
#[derive(Queryable, Selectable)]
#[diesel(table_name = deliveries)]
struct DeadRow {
    endpoint_id: Uuid,
    session_id: Option<Uuid>,
    user_id: Option<String>,
    dead_at: Option<PgTimestamp>,
}
