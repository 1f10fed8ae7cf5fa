//! Back-channel endpoints and their deliveries, as the operator manages them from the command line.

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
use sessiond_core::session::backchannel::EndpointKind;

/// Why an operation on endpoints or deliveries failed.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The URL is malformed, or not permitted.
    #[error(transparent)]
    Url(#[from] OutboundUrlError),
    /// The audience is out of bounds.
    #[error("the audience must be 1 to {AUDIENCE_LENGTH_MAX} bytes without control characters")]
    Audience,
    /// The project is unknown.
    #[error("unknown project {0}; `sessiond project list` shows those that exist")]
    NoProject(ProjectId),
    /// The project has this endpoint already.
    #[error(
        "project {0} already has this endpoint, as {1}: the same kind, URL and audience would get each delivery twice"
    )]
    Already(ProjectId, Uuid),
    /// The project has [`ENDPOINTS_MAX`] endpoints.
    #[error(
        "project {0} has {ENDPOINTS_MAX} endpoints, which is the maximum: each sign-out writes a row for every one"
    )]
    TooMany(ProjectId),
    /// The project has no such endpoint.
    #[error("project {0} has no endpoint {1}; `sessiond backchannel list` lists its endpoints")]
    Missing(ProjectId, Uuid),
    /// The project has no such delivery.
    #[error("project {0} has no delivery {1}; `sessiond backchannel deliveries` lists its open ones")]
    NoDelivery(ProjectId, Uuid),
    /// The delivery is not dead.
    #[error("delivery {0} is not dead: it is pending, or was delivered")]
    NotDead(Uuid),
    /// The endpoint of the delivery was removed.
    #[error("the endpoint of delivery {0} was removed")]
    EndpointRemoved(Uuid),
    /// The delivery has no subject any more.
    #[error("delivery {0} was about all sessions of a user who has been erased since, so it has no subject any more")]
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

/// An endpoint to add.
#[derive(Clone, Debug)]
pub struct NewEndpoint {
    /// The project whose revocations it receives.
    pub project: ProjectId,
    /// What it receives: logout tokens or CAEP events.
    pub kind: EndpointKind,
    /// The URL to send them to.
    pub url: String,
    /// The `aud` claim of the tokens.
    pub audience: String,
}

impl App {
    /// Adds an endpoint. It receives every revocation from now on.
    ///
    /// # Errors
    ///
    /// Fails if the URL is not allowed, even with the `permitted` networks, or the audience is out of bounds; if the project
    /// is unknown, already has this endpoint, or has [`ENDPOINTS_MAX`]; or if the database operation fails.
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
            // An existing endpoint was checked when it was added, so any address is accepted here.
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
    /// Fails if the project is unknown, or if the database operation fails.
    pub async fn endpoints(&self, project: ProjectId) -> Result<Vec<Endpoint>, EndpointError> {
        let endpoints = self.store.endpoints_list(project.clone()).await.map_err(Error::from)?;
        endpoints.ok_or(EndpointError::NoProject(project))
    }

    /// Removes an endpoint; its pending deliveries are not sent. Returns whether it was already removed.
    ///
    /// # Errors
    ///
    /// Fails if the project has no such endpoint, or if the database operation fails.
    pub async fn endpoint_remove(&self, project: ProjectId, id: Uuid) -> Result<bool, EndpointError> {
        match self.store.endpoint_remove(project.clone(), id, self.clock.now()).await.map_err(Error::from)? {
            EndpointRemoved::Now => Ok(false),
            EndpointRemoved::Before => Ok(true),
            EndpointRemoved::Missing => {
                self.check_project_exists(&project).await?;
                Err(EndpointError::Missing(project, id))
            }
        }
    }

    /// The newest deliveries that are pending or dead.
    ///
    /// # Errors
    ///
    /// Fails if the project is unknown, or if the database operation fails.
    pub async fn deliveries(&self, project: ProjectId, rows_max: usize) -> Result<Vec<OpenDelivery>, EndpointError> {
        self.check_project_exists(&project).await?;
        Ok(self.store.deliveries_open(project, rows_max).await.map_err(Error::from)?)
    }

    /// Retries a dead delivery, for as long as a new one.
    ///
    /// # Errors
    ///
    /// Fails if the delivery is unknown or cannot be retried, or if the database operation fails.
    pub async fn delivery_retry(&self, project: ProjectId, id: Uuid) -> Result<(), EndpointError> {
        match self.store.delivery_revive(project.clone(), id, self.clock.now()).await.map_err(Error::from)? {
            Revived::Done => Ok(()),
            Revived::NotDead => Err(EndpointError::NotDead(id)),
            Revived::NoEndpoint => Err(EndpointError::EndpointRemoved(id)),
            Revived::Nameless => Err(EndpointError::Nameless(id)),
            Revived::Missing => {
                self.check_project_exists(&project).await?;
                Err(EndpointError::NoDelivery(project, id))
            }
        }
    }

    /// Refuses an unknown project. An empty list would wrongly suggest that all is well.
    async fn check_project_exists(&self, project: &ProjectId) -> Result<(), EndpointError> {
        let found = self.store.project_find(project.clone()).await.map_err(Error::from)?;
        found.map(drop).ok_or_else(|| EndpointError::NoProject(project.clone()))
    }
}
