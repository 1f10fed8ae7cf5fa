//! `backchannel_endpoints`: where logout tokens and CAEP events are sent when a session ends.

use diesel::ExpressionMethods as _;
use diesel::Insertable;
use diesel::QueryDsl as _;
use diesel::Queryable;
use diesel::Selectable;
use diesel::SelectableHelper as _;
use diesel::pg::data_types::PgTimestamp;
use serde_json::Value;
use serde_json::json;
use uuid::Uuid;

use super::Store;
use super::Tx;
use super::columns::from_pg;
use super::columns::to_pg;
use super::error::Error;
use super::events::AuditEvent;
use super::events::EventKind;
use super::schema::backchannel_endpoints as endpoints;
use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::session::backchannel::EndpointKind;

/// A back-channel endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The endpoint's id.
    pub id: Uuid,
    /// The protocol.
    pub kind: EndpointKind,
    /// The URL.
    pub url: String,
    /// The `aud` of the tokens sent to it.
    pub audience: String,
    /// When it was added.
    pub created_at: Timestamp,
}

/// The outcome of [`Store::endpoint_insert`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointAdded {
    /// The endpoint was added.
    Done,
    /// The project does not exist.
    NoProject,
    /// The project already has this endpoint, with this id.
    Already(Uuid),
    /// The project has the maximum number of endpoints.
    TooMany,
}

/// The outcome of [`Store::endpoint_remove`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointRemoved {
    /// It was removed.
    Now,
    /// It had already been removed.
    Before,
    /// The project has no such endpoint.
    Missing,
}

impl Store {
    /// Adds an endpoint, unless the project has the same one or the maximum number of them. `same` compares it with an
    /// existing endpoint.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn endpoint_insert(
        &self,
        project: ProjectId,
        endpoint: Endpoint,
        same: impl Fn(&Endpoint, &Endpoint) -> bool + Send + 'static,
        endpoints_max: usize,
    ) -> Result<EndpointAdded, Error> {
        self.transact("endpoint_insert", move |mut tx| async move {
            // Locked, so that concurrent additions count each other's endpoints.
            let Some(_) = tx.project_lock(&project).await? else { return tx.commit(EndpointAdded::NoProject).await };
            let present = tx.endpoints(&project).await?;
            if let Some(known) = present.iter().find(|known| same(&endpoint, known)) {
                return tx.commit(EndpointAdded::Already(known.id)).await;
            }
            if present.len() >= endpoints_max {
                return tx.commit(EndpointAdded::TooMany).await;
            }
            let added = AuditEvent::by_operator(project.clone(), EventKind::EndpointAdded, endpoint.created_at);
            let added = added.with(audit_details(&endpoint));
            let row = EndpointRow::new(&project, endpoint);
            tx.execute(diesel::insert_into(endpoints::table).values(row)).await?;
            tx.event_insert(&added).await?;
            tx.commit(EndpointAdded::Done).await
        })
        .await
    }

    /// Returns a project's endpoints, without removed ones, oldest first; `None` if the project does not exist.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn endpoints_list(&self, project: ProjectId) -> Result<Option<Vec<Endpoint>>, Error> {
        self.transact("endpoints_list", move |mut tx| async move {
            let Some(_) = tx.project_find(&project).await? else { return tx.end_reading(None).await };
            let endpoints = tx.endpoints(&project).await?;
            tx.end_reading(Some(endpoints)).await
        })
        .await
    }

    /// Removes an endpoint. A concurrent sign-out may still queue a delivery for it; that delivery will find the
    /// endpoint removed.
    ///
    /// # Errors
    ///
    /// Fails if the database is unavailable.
    pub async fn endpoint_remove(
        &self,
        project: ProjectId,
        id: Uuid,
        now: Timestamp,
    ) -> Result<EndpointRemoved, Error> {
        self.transact("endpoint_remove", move |mut tx| async move {
            let one = endpoints::table.find((project.as_str(), id));
            let update = diesel::update(one.filter(endpoints::removed_at.is_null()));
            let removed = tx.execute(update.set(endpoints::removed_at.eq(to_pg(now)))).await?;
            let Some(known) = tx.load(one.select(EndpointRow::as_select())).await?.pop() else {
                return tx.commit(EndpointRemoved::Missing).await;
            };
            if removed == 0 {
                return tx.commit(EndpointRemoved::Before).await;
            }
            let details = audit_details(&known.into_endpoint()?);
            let event = AuditEvent::by_operator(project.clone(), EventKind::EndpointRemoved, now);
            tx.event_insert(&event.with(details)).await?;
            tx.commit(EndpointRemoved::Now).await
        })
        .await
    }
}

impl Tx {
    /// A project's endpoints, without removed ones, oldest first.
    pub(super) async fn endpoints(&mut self, project: &ProjectId) -> Result<Vec<Endpoint>, Error> {
        let query = endpoints::table
            .filter(endpoints::project_id.eq(project.as_str()))
            .filter(endpoints::removed_at.is_null())
            .order((endpoints::created_at, endpoints::id))
            .select(EndpointRow::as_select());
        self.load(query).await?.into_iter().map(EndpointRow::into_endpoint).collect()
    }

    /// Deletes endpoints that were removed at `until` or earlier. Returns how many.
    pub async fn endpoints_sweep(&mut self, until: Timestamp) -> Result<usize, Error> {
        self.execute(diesel::delete(endpoints::table.filter(endpoints::removed_at.le(to_pg(until))))).await
    }
}

/// What the audit records about an endpoint. The URL without its query, which may contain a secret.
fn audit_details(endpoint: &Endpoint) -> Value {
    let Endpoint { id, kind, url, audience, .. } = endpoint;
    let url = url.split(['?', '#']).next().unwrap_or_default();
    json!({ "endpoint_id": id.to_string(), "kind": kind.as_str(), "url": url, "audience": audience })
}

#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = endpoints)]
struct EndpointRow {
    project_id: String,
    id: Uuid,
    kind: i16,
    url: String,
    audience: String,
    created_at: PgTimestamp,
}

impl EndpointRow {
    fn new(project: &ProjectId, endpoint: Endpoint) -> Self {
        let Endpoint { id, kind, url, audience, created_at } = endpoint;
        let (project_id, kind) = (project.as_str().to_owned(), kind_number(kind));
        Self { project_id, id, kind, url, audience, created_at: to_pg(created_at) }
    }

    fn into_endpoint(self) -> Result<Endpoint, Error> {
        let Self { project_id: _, id, kind, url, audience, created_at } = self;
        Ok(Endpoint { id, kind: kind_of(kind, id)?, url, audience, created_at: from_pg(created_at) })
    }
}

/// The stored number. A number never changes its meaning.
const fn kind_number(kind: EndpointKind) -> i16 {
    match kind {
        EndpointKind::Logout => 1,
        EndpointKind::Caep => 2,
    }
}

/// Parses the stored number of a kind.
///
/// # Errors
///
/// Fails if the number is unknown.
pub(super) fn kind_of(number: i16, row: impl ToString) -> Result<EndpointKind, Error> {
    let bad = || Error::Inconsistent { table: "backchannel_endpoints", column: "kind", row: row.to_string() };
    EndpointKind::ALL.into_iter().find(|kind| kind_number(*kind) == number).ok_or_else(bad)
}
