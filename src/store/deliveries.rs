//! `backchannel_deliveries`: pending and completed deliveries to back-channel endpoints. Queued by the statements that
//! revoke sessions.

use std::collections::BTreeMap;

use diesel::ExpressionMethods as _;
use diesel::QueryDsl as _;
use diesel::Queryable;
use diesel::QueryableByName;
use diesel::Selectable;
use diesel::SelectableHelper as _;
use diesel::dsl::exists;
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
use super::schema::slots;
use super::statement::statement;
use sessiond_core::clock;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::Bucket;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::id::UserId;
use sessiond_core::session::EndedBy;
use sessiond_core::session::RevokeReason;
use sessiond_core::session::backchannel::EndpointKind;
use sessiond_core::session::backchannel::RetryDecision;

/// A position in the order of all endpoints, across projects.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointPosition {
    project: String,
    endpoint: Uuid,
}

impl EndpointPosition {
    /// The position of an endpoint.
    pub fn of(project: &str, endpoint: Uuid) -> Self {
        Self { project: project.to_owned(), endpoint }
    }
}

/// Which deliveries to claim.
#[derive(Clone, Debug)]
pub struct DeliveryClaim {
    /// Start after this endpoint.
    pub after: EndpointPosition,
    /// The endpoints with deliveries in progress in this process, repeated for each delivery.
    pub under_way: Vec<Uuid>,
    /// The maximum for each endpoint, including those in progress there.
    pub each_max: usize,
    /// The total maximum.
    pub rows_max: usize,
    /// Claim deliveries that are due at this time.
    pub now: Timestamp,
    /// When an attempt without a result counts as lost, and another replica may start one.
    pub lost_at: Timestamp,
}

/// A claimed delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueDelivery {
    /// The project.
    pub project: ProjectId,
    /// The delivery's id.
    pub id: Uuid,
    /// The endpoint's id.
    pub endpoint: Uuid,
    /// The id of the audit record that it reports.
    pub revocation: Uuid,
    /// The revoked session; `None` for all sessions of the user.
    pub session: Option<SessionId>,
    /// The session's user; `None` if the delivery was abandoned and the user erased.
    pub user: Option<String>,
    /// When the session was revoked.
    pub at: Timestamp,
    /// Why it was revoked.
    pub reason: RevokeReason,
    /// Who revoked it.
    pub by: EndedBy,
    /// When it was queued.
    pub queued_at: Timestamp,
    /// The number of this attempt, starting at 1.
    pub attempt: u32,
    /// The protocol of the endpoint.
    pub kind: EndpointKind,
    /// The endpoint's URL.
    pub url: String,
    /// The `aud` of the token.
    pub audience: String,
    /// Whether the endpoint was removed: then nothing is sent.
    pub is_removed: bool,
    /// The slot of its row.
    slot: i16,
}

impl DueDelivery {
    /// The position of its endpoint.
    pub fn place(&self) -> EndpointPosition {
        EndpointPosition::of(self.project.as_str(), self.endpoint)
    }
}

/// A delivery that has not succeeded, for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenDelivery {
    /// The delivery's id.
    pub id: Uuid,
    /// The endpoint's id.
    pub endpoint: Uuid,
    /// The revoked session; `None` for all sessions of the user.
    pub session: Option<SessionId>,
    /// When the session was revoked.
    pub at: Timestamp,
    /// The number of attempts so far.
    pub attempts: i32,
    /// When the next attempt is due; `None` once abandoned.
    pub due_at: Option<Timestamp>,
    /// When it was abandoned.
    pub dead_at: Option<Timestamp>,
    /// The error of the last attempt.
    pub last_error: Option<String>,
}

/// The outcome of [`Store::delivery_revive`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revived {
    /// It is queued again.
    Done,
    /// It is not abandoned: it is pending or was delivered.
    NotDead,
    /// Its endpoint was removed.
    NoEndpoint,
    /// Its user was erased, and it names no session: nothing is left to report.
    Nameless,
    /// The project has no such delivery.
    Missing,
}

impl Store {
    /// Resolves when this process has queued a delivery since the last call.
    pub async fn delivery_queued(&self) {
        self.publisher.deliveries.notified().await;
    }

    /// Claims deliveries that are due, in no particular order. Each is reserved for this process until `lost_at`.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable. Safe to retry: deliveries claimed by a failed call become due again at
    /// `lost_at`.
    pub async fn deliveries_claim(&self, claim: DeliveryClaim) -> Result<Vec<DueDelivery>, Error> {
        self.check_durable("deliveries_claim")?;
        self.idempotent("deliveries_claim", move |mut tx| {
            let claim = claim.clone();
            async move {
                let (mut due, mut under_way) = (vec![], claim.under_way);
                for slot in tx.delivery_slots().await? {
                    let room = claim.rows_max - due.len();
                    if room == 0 {
                        break;
                    }
                    let statement = DeliveriesClaim {
                        slot,
                        after_project: claim.after.project.clone(),
                        after_endpoint: claim.after.endpoint,
                        now: to_pg(claim.now),
                        each_max: limit(claim.each_max),
                        under_way: under_way.clone(),
                        rows_max: limit(room),
                        lost_at: to_pg(claim.lost_at),
                    };
                    for row in tx.rows(statement).await? {
                        under_way.push(row.endpoint_id);
                        due.push(row.into_due(slot)?);
                    }
                }
                tx.commit(due).await
            }
        })
        .await
    }

    /// Marks a delivery as delivered.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable. Then it is sent again, with the same id.
    pub async fn delivery_done(&self, due: &DueDelivery, now: Timestamp) -> Result<(), Error> {
        let (slot, project, id) = (due.slot, due.project.clone(), due.id);
        self.idempotent("delivery_done", move |mut tx| {
            let statement = DeliveryDone { at: to_pg(now), slot, project: project.as_str().to_owned(), id };
            async move {
                tx.execute(statement).await?;
                tx.commit(()).await
            }
        })
        .await
    }

    /// Records the failure of an attempt, and when to retry. Has no effect if the attempt counted as lost and another
    /// one has started.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable. Then the delivery is retried once the attempt counts as lost.
    pub async fn delivery_failed(
        &self,
        due: &DueDelivery,
        fate: RetryDecision,
        error: String,
        now: Timestamp,
    ) -> Result<(), Error> {
        let (due_at, dead_at) = match fate {
            RetryDecision::RetryAt(at) => (Some(to_pg(at)), None),
            RetryDecision::Dead => (None, Some(to_pg(now))),
        };
        let (project, id, attempt) = (due.project.clone(), due.id, i32::try_from(due.attempt).unwrap_or(i32::MAX));
        let slot = due.slot;
        self.idempotent("delivery_failed", move |mut tx| {
            let (project, error) = (project.as_str().to_owned(), error.clone());
            let statement = DeliveryFailed { due_at, dead_at, error, slot, project, id, attempt };
            async move {
                tx.execute(statement).await?;
                tx.commit(()).await
            }
        })
        .await
    }

    /// Counts pending deliveries by the kind of endpoint, up to `each_max` for each endpoint of a slot.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn deliveries_count(&self, each_max: i64) -> Result<Vec<(EndpointKind, i64)>, Error> {
        self.idempotent("deliveries_count", move |mut tx| async move {
            let mut counts = BTreeMap::<i16, i64>::new();
            for slot in tx.delivery_slots().await? {
                for row in tx.rows(DeliveriesCount { slot, each_max }).await? {
                    *counts.entry(row.kind).or_default() += row.waiting;
                }
            }
            let counts = counts.into_iter().map(|(kind, waiting)| Ok((kind_of(kind, "-")?, waiting)));
            tx.commit(counts.collect::<Result<_, _>>()?).await
        })
        .await
    }

    /// Returns the newest deliveries of a project that have not succeeded, pending or abandoned.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
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

    /// Queues an abandoned delivery again, with the present time as its queue time.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn delivery_revive(&self, project: ProjectId, id: Uuid, now: Timestamp) -> Result<Revived, Error> {
        self.transact("delivery_revive", move |mut tx| async move {
            let one =
                deliveries::table.filter(deliveries::project_id.eq(project.as_str())).filter(deliveries::id.eq(id));
            let Some(slot) = tx.load::<i16, _>(one.select(deliveries::slot)).await?.pop() else {
                return tx.commit(Revived::Missing).await;
            };
            let one = one.filter(deliveries::slot.eq(slot));
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
    /// The slots that may have pending deliveries, in an order that changes, so that none waits for the others for long.
    async fn delivery_slots(&mut self) -> Result<Vec<i16>, Error> {
        let all = self.slots().all();
        if self.slots().count() == 1 {
            return Ok(vec![all.start().to_column()]);
        }
        let pending =
            deliveries::table.filter(deliveries::slot.eq(slots::slot)).filter(deliveries::due_at.is_not_null());
        let query = slots::table.filter(exists(pending)).select(slots::slot);
        let mut found: Vec<i16> = self.load(query).await?;
        let count = u32::try_from(found.len().max(1)).unwrap_or(u32::MAX);
        let first = usize::try_from(clock::random_u32() % count).unwrap_or(0);
        found.rotate_left(first);
        Ok(found)
    }

    /// Removes an erased user's name from deliveries: from pending ones when they finish, from all others now. Returns
    /// how many deliveries were found.
    pub async fn deliveries_forget(
        &mut self,
        project: &ProjectId,
        user: &UserId,
        bucket: Bucket,
        rows_max: usize,
    ) -> Result<usize, Error> {
        let (project, user) = (project.as_str().to_owned(), user.as_str().to_owned());
        let slot = self.slot(bucket).to_column();
        self.execute(DeliveriesForget { slot, project, user, rows_max: limit(rows_max) }).await
    }
}

statement! {
    /// Claims deliveries of a slot that are due: for each endpoint at most `each_max`, less those in progress in this process.
    /// Each becomes due again when its attempt counts as lost.
    ///
    /// Walks from one endpoint with pending deliveries to the next, not along the due deliveries: a hundred thousand
    /// deliveries to an unresponsive endpoint are skipped. Rows that another replica is claiming are skipped too.
    DeliveriesClaim -> DueRow =
    "WITH RECURSIVE waiting (project_id, endpoint_id) AS (
         (SELECT project_id, endpoint_id FROM backchannel_deliveries WHERE slot = "
    [slot: i16 as sql::SmallInt]
    " AND due_at IS NOT NULL AND (project_id, endpoint_id) > ("
    [after_project: String as sql::Text]
    ", "
    [after_endpoint: Uuid as sql::Uuid]
    ") ORDER BY project_id, endpoint_id LIMIT 1)
         UNION ALL
         SELECT next.project_id, next.endpoint_id FROM waiting AS w CROSS JOIN LATERAL (
             SELECT d.project_id, d.endpoint_id FROM backchannel_deliveries AS d
             WHERE d.slot = $1 AND d.due_at IS NOT NULL AND (d.project_id, d.endpoint_id) > (w.project_id, w.endpoint_id)
             ORDER BY d.project_id, d.endpoint_id LIMIT 1) AS next
     ), taken AS MATERIALIZED (
         SELECT d.project_id, d.endpoint_id, d.id FROM waiting AS w CROSS JOIN LATERAL (
             SELECT q.project_id, q.endpoint_id, q.id FROM backchannel_deliveries AS q
             WHERE q.slot = $1 AND q.project_id = w.project_id AND q.endpoint_id = w.endpoint_id AND q.due_at <= "
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
     WHERE d.slot = $1 AND d.project_id = taken.project_id AND d.id = taken.id
     RETURNING d.project_id, d.id, d.endpoint_id, d.revocation_id, d.session_id, d.user_id, d.at, d.reason, d.actor,
         d.actor_id, d.queued_at, d.attempts, e.kind, e.url, e.audience, e.removed_at IS NOT NULL AS is_removed"
}

statement! {
    /// Marks a delivery as delivered, whichever replica sent it. Removes the user's name.
    DeliveryDone -> () =
    "UPDATE backchannel_deliveries SET delivered_at = "
    [at: PgTimestamp as sql::Timestamptz]
    ", due_at = NULL, dead_at = NULL, last_error = NULL, user_id = NULL WHERE slot = "
    [slot: i16 as sql::SmallInt]
    " AND project_id = "
    [project: String as sql::Text]
    " AND id = "
    [id: Uuid as sql::Uuid]
    " AND delivered_at IS NULL"
}

statement! {
    /// Records a failed attempt, and when the next one is due, if any; unless another attempt has started.
    DeliveryFailed -> () =
    "UPDATE backchannel_deliveries SET due_at = f.due_at, dead_at = f.dead_at, last_error = f.last_error,
         user_id = CASE WHEN f.dead_at IS NULL OR NOT user_erased THEN user_id END
     FROM (SELECT "
    [due_at: Option<PgTimestamp> as sql::Nullable<sql::Timestamptz>]
    ", "
    [dead_at: Option<PgTimestamp> as sql::Nullable<sql::Timestamptz>]
    ", "
    [error: String as sql::Text]
    ") AS f (due_at, dead_at, last_error) WHERE slot = "
    [slot: i16 as sql::SmallInt]
    " AND project_id = "
    [project: String as sql::Text]
    " AND id = "
    [id: Uuid as sql::Uuid]
    " AND attempts = "
    [attempt: i32 as sql::Integer]
    " AND backchannel_deliveries.due_at IS NOT NULL"
}

statement! {
    /// Counts pending deliveries of a slot by the kind of endpoint, up to a maximum for each endpoint.
    DeliveriesCount -> WaitingRow =
    "WITH RECURSIVE waiting (project_id, endpoint_id) AS (
         (SELECT project_id, endpoint_id FROM backchannel_deliveries WHERE slot = "
    [slot: i16 as sql::SmallInt]
    " AND due_at IS NOT NULL AND (project_id, endpoint_id) > ('', '00000000-0000-0000-0000-000000000000')
          ORDER BY project_id, endpoint_id LIMIT 1)
         UNION ALL
         SELECT next.project_id, next.endpoint_id FROM waiting AS w CROSS JOIN LATERAL (
             SELECT d.project_id, d.endpoint_id FROM backchannel_deliveries AS d
             WHERE d.slot = $1 AND d.due_at IS NOT NULL AND (d.project_id, d.endpoint_id) > (w.project_id, w.endpoint_id)
             ORDER BY d.project_id, d.endpoint_id LIMIT 1) AS next
     )
     SELECT e.kind, sum(c.count)::bigint AS waiting FROM waiting AS w
         CROSS JOIN LATERAL (SELECT kind FROM backchannel_endpoints
             WHERE project_id = w.project_id AND id = w.endpoint_id LIMIT 1) AS e
         CROSS JOIN LATERAL (SELECT count(*) FROM (SELECT FROM backchannel_deliveries AS d
             WHERE d.slot = $1 AND d.project_id = w.project_id AND d.endpoint_id = w.endpoint_id AND d.due_at IS NOT NULL LIMIT "
    [each_max: i64 as sql::BigInt]
    ") AS counted) AS c GROUP BY e.kind"
}

statement! {
    /// Removes an erased user's name from deliveries: from pending ones when they finish, from all others now. Locks
    /// rows in the same order as a sweep.
    DeliveriesForget -> () =
    "UPDATE backchannel_deliveries AS d SET user_erased = true, user_id = CASE WHEN d.due_at IS NOT NULL THEN d.user_id END
     FROM (SELECT project_id, id FROM backchannel_deliveries WHERE slot = "
    [slot: i16 as sql::SmallInt]
    " AND project_id = "
    [project: String as sql::Text]
    " AND user_id = "
    [user: String as sql::Text]
    " AND NOT user_erased ORDER BY id LIMIT "
    [rows_max: i64 as sql::BigInt]
    " FOR UPDATE) AS named WHERE d.slot = $1 AND d.project_id = named.project_id AND d.id = named.id"
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
    fn into_due(self, slot: i16) -> Result<DueDelivery, Error> {
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
            slot,
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

/// The columns that decide whether a delivery can be queued again.
#[derive(Queryable, Selectable)]
#[diesel(table_name = deliveries)]
struct DeadRow {
    endpoint_id: Uuid,
    session_id: Option<Uuid>,
    user_id: Option<String>,
    dead_at: Option<PgTimestamp>,
}
