//! Whom to tell that sessions have ended: the operator's business, from the command line.

use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use ipnet::IpNet;
use ipnet::Ipv4Net;
use ipnet::Ipv6Net;
use uuid::Uuid;

use super::App;
use super::Error;
use crate::outbound::OutboundUrl;
use crate::outbound::OutboundUrlError;
use crate::store::Endpoint;
use crate::store::EndpointAdded;
use crate::store::EndpointRemoved;
use crate::store::OpenDelivery;
use crate::store::Revived;
use sessiond_core::clock;
use sessiond_core::id::ProjectId;
use sessiond_core::session::backchannel::AUDIENCE_LENGTH_MAX;
use sessiond_core::session::backchannel::ENDPOINTS_MAX;
use sessiond_core::session::backchannel::Kind;

/// Why the operator's wish was not granted.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The URL may not be called.
    #[error(transparent)]
    Url(#[from] OutboundUrlError),
    /// The audience is out of bounds.
    #[error("the audience must be 1 to {AUDIENCE_LENGTH_MAX} bytes without control characters")]
    Audience,
    /// There is no such project.
    #[error("unknown project {0}; `sessiond project list` shows those that exist")]
    NoProject(ProjectId),
    /// The project has this endpoint already.
    #[error("project {0} has this endpoint already, as {1}: the same kind, URL and audience would be told twice")]
    Already(ProjectId, Uuid),
    /// The project has as many as it may have.
    #[error(
        "project {0} has {ENDPOINTS_MAX} endpoints, and may not have more: each sign-out writes a row for every one"
    )]
    TooMany(ProjectId),
    /// The project has no such endpoint.
    #[error("project {0} has no endpoint {1}; `sessiond backchannel list` shows those that it has")]
    Missing(ProjectId, Uuid),
    /// The project has no such delivery.
    #[error("project {0} has no delivery {1}; `sessiond backchannel deliveries` shows those that are open")]
    NoDelivery(ProjectId, Uuid),
    /// The delivery is not dead.
    #[error("delivery {0} is not dead: it waits, or was delivered")]
    NotDead(Uuid),
    /// Its endpoint is not told anything any more.
    #[error("the endpoint of delivery {0} was removed")]
    EndpointRemoved(Uuid),
    /// There is nothing left to tell.
    #[error("delivery {0} told of all sessions of a user who was erased since, and names nobody any more")]
    Nameless(Uuid),
    /// The database failed.
    #[error(transparent)]
    Failed(#[from] Error),
}

/// Every network.
const ANYWHERE: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
];

/// An endpoint to be.
#[derive(Clone, Debug)]
pub struct NewEndpoint {
    /// The project whose sessions it is told of.
    pub project: ProjectId,
    /// How.
    pub kind: Kind,
    /// Where.
    pub url: String,
    /// The `aud` of what it is sent.
    pub audience: String,
}

impl App {
    /// Has an endpoint told of every session that ends from now on.
    ///
    /// # Errors
    ///
    /// When the URL may not be called, not even with `permitted` networks, or the audience is out of bounds; when there is no
    /// such project, or it has this endpoint already or [`ENDPOINTS_MAX`]; the store's.
    pub async fn endpoint_add(&self, new: NewEndpoint, permitted: &[IpNet]) -> Result<Uuid, EndpointError> {
        let target = OutboundUrl::parse(&new.url, permitted)?;
        let fits = (1..=AUDIENCE_LENGTH_MAX).contains(&new.audience.len());
        if !fits || new.audience.chars().any(char::is_control) {
            return Err(EndpointError::Audience);
        }
        let NewEndpoint { project, kind, url, audience } = new;
        let now = self.clock.now();
        let id = clock::new_record_id(now);
        let endpoint = Endpoint { id, kind, url, audience, created_at: now };
        let same = move |one: &Endpoint, other: &Endpoint| {
            // What was added before was allowed then, wherever it leads.
            let there = OutboundUrl::parse(&other.url, &ANYWHERE);
            (one.kind, &one.audience) == (other.kind, &other.audience) && there.is_ok_and(|there| there.is(&target))
        };
        let added = self.store.endpoint_insert(project.clone(), endpoint, same, ENDPOINTS_MAX).await;
        match added.map_err(Error::from)? {
            EndpointAdded::Done => Ok(id),
            EndpointAdded::NoProject => Err(EndpointError::NoProject(project)),
            EndpointAdded::Already(id) => Err(EndpointError::Already(project, id)),
            EndpointAdded::TooMany => Err(EndpointError::TooMany(project)),
        }
    }

    /// A project's endpoints, oldest first.
    ///
    /// # Errors
    ///
    /// When there is no such project; the store's.
    pub async fn endpoints(&self, project: ProjectId) -> Result<Vec<Endpoint>, EndpointError> {
        let endpoints = self.store.endpoints_list(project.clone()).await.map_err(Error::from)?;
        endpoints.ok_or(EndpointError::NoProject(project))
    }

    /// Has an endpoint told nothing more, not even what it is still to be told. Whether it was so before.
    ///
    /// # Errors
    ///
    /// When the project has no such endpoint; the store's.
    pub async fn endpoint_remove(&self, project: ProjectId, id: Uuid) -> Result<bool, EndpointError> {
        match self.store.endpoint_remove(project.clone(), id, self.clock.now()).await.map_err(Error::from)? {
            EndpointRemoved::Now => Ok(false),
            EndpointRemoved::Before => Ok(true),
            EndpointRemoved::Missing => {
                self.known(&project).await?;
                Err(EndpointError::Missing(project, id))
            }
        }
    }

    /// The newest of what others are still to be told, or never were.
    ///
    /// # Errors
    ///
    /// When there is no such project; the store's.
    pub async fn deliveries(&self, project: ProjectId, rows_max: usize) -> Result<Vec<OpenDelivery>, EndpointError> {
        self.known(&project).await?;
        Ok(self.store.deliveries_open(project, rows_max).await.map_err(Error::from)?)
    }

    /// Has a dead delivery tried again, for as long as a new one.
    ///
    /// # Errors
    ///
    /// When there is no such delivery, or it cannot be tried again; the store's.
    pub async fn delivery_retry(&self, project: ProjectId, id: Uuid) -> Result<(), EndpointError> {
        match self.store.delivery_revive(project.clone(), id, self.clock.now()).await.map_err(Error::from)? {
            Revived::Done => Ok(()),
            Revived::NotDead => Err(EndpointError::NotDead(id)),
            Revived::NoEndpoint => Err(EndpointError::EndpointRemoved(id)),
            Revived::Nameless => Err(EndpointError::Nameless(id)),
            Revived::Missing => {
                self.known(&project).await?;
                Err(EndpointError::NoDelivery(project, id))
            }
        }
    }

    /// Refuses an unknown project: an empty list would read as good news.
    async fn known(&self, project: &ProjectId) -> Result<(), EndpointError> {
        let found = self.store.project_find(project.clone()).await.map_err(Error::from)?;
        found.map(drop).ok_or_else(|| EndpointError::NoProject(project.clone()))
    }
}
