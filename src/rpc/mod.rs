//! The wire, for all three transports at once: decode, one call, encode. A handler decides nothing.

mod caller;
mod decode;
mod encode;

/// Every answer that is no: the one table of gRPC codes and reasons.
pub mod status;

use tonic::Request;
use tonic::Response;
use tonic::Status;

use crate::app::App;
use crate::pb;
use crate::pb::session_service_server;
use crate::session::Origin;

/// The API's handlers.
#[derive(Clone)]
pub struct SessionService {
    app: App,
}

impl SessionService {
    /// Serves an app.
    pub const fn new(app: App) -> Self {
        Self { app }
    }
}

type Reply<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl session_service_server::SessionService for SessionService {
    async fn revoke_current(&self, request: Request<pb::RevokeCurrentRequest>) -> Reply<pb::RevokeCurrentResponse> {
        let holder = caller::token_holder(request.metadata()).map_err(status::refused)?;
        let ended = self.app.revoke_current(holder).await.map_err(status::of)?;
        Ok(Response::new(encode::ended(ended)))
    }

    async fn create_session(&self, request: Request<pb::CreateSessionRequest>) -> Reply<pb::CreateSessionResponse> {
        let caller = caller::only(request.metadata()).map_err(status::refused)?;
        let asked = decode::create(request.into_inner()).map_err(status::refused)?;
        let grant = self.app.create_session(caller, asked).await.map_err(status::of)?;
        Ok(Response::new(encode::created(grant)))
    }

    async fn refresh_session(&self, request: Request<pb::RefreshSessionRequest>) -> Reply<pb::RefreshSessionResponse> {
        let (metadata, mut extensions, message) = request.into_parts();
        let presented = caller::refresh_token(&metadata, message).map_err(status::refused)?;
        let origin = extensions.remove::<Origin>().unwrap_or_default();
        let grant = self.app.refresh_session(presented, origin).await.map_err(status::of)?;
        Ok(Response::new(encode::refreshed(&grant)))
    }
}
