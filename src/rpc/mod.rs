//! The API's handlers, shared by all three transports: decode, one call, encode. A handler decides nothing.

mod caller;
mod cookies;
mod decode;
mod encode;
mod watch;

/// Authorizes requests for proxies.
pub mod check;

/// The status of every refusal and failure: the one table of gRPC codes and reasons.
pub mod status;

pub use check::Authorization;
pub(crate) use decode::claims;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::metadata::MetadataValue;

use crate::app::App;
use crate::app::Caller;
use crate::pb;
use crate::pb::session_service_server;
use cookies::CookieCredentials;

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

impl SessionService {
    /// The caller of a method that users may call: by cookie, if there is no other credential.
    async fn caller<M>(&self, request: &Request<M>) -> Result<Caller, Status> {
        match self.cookies(request).await? {
            Some(cookies) => cookies.caller(&self.app).await,
            None => caller::only(request).map_err(status::refused),
        }
    }

    async fn cookies<M>(&self, request: &Request<M>) -> Result<Option<CookieCredentials>, Status> {
        CookieCredentials::read(&self.app, request.metadata(), request.extensions()).await
    }
}

#[tonic::async_trait]
impl session_service_server::SessionService for SessionService {
    async fn revoke_current(&self, request: Request<pb::RevokeCurrentRequest>) -> Reply<pb::RevokeCurrentResponse> {
        let origin = caller::origin(&request);
        if let Some(cookies) = self.cookies(&request).await? {
            let ended = self.app.sign_out_browser(cookies.token_holder(), cookies.client(), origin).await;
            let ended = ended.map_err(status::of)?;
            // Another host may have planted others before the genuine one, which was not looked at then.
            cookies.check_whole()?;
            let mut response = Response::new(encode::ended(ended));
            cookies.clear(response.metadata_mut());
            return Ok(response);
        }
        let holder = caller::token_holder(request.metadata()).map_err(status::refused)?;
        let client = caller::client(request.extensions());
        let ended = self.app.revoke_current(holder, client, origin).await.map_err(status::of)?;
        Ok(Response::new(encode::ended(ended)))
    }

    async fn create_session(&self, request: Request<pb::CreateSessionRequest>) -> Reply<pb::CreateSessionResponse> {
        let caller = caller::only(&request).map_err(status::refused)?;
        let (client, origin) = (caller::client(request.extensions()), caller::origin(&request));
        let (create, cookies, key) = decode::create(request.into_inner()).map_err(status::refused)?;
        let created = self.app.create_session(caller, client, create, cookies, key, origin).await;
        let (grant, set) = created.map_err(status::of)?;
        Ok(Response::new(encode::created(grant, set.as_ref())))
    }

    async fn refresh_session(&self, request: Request<pb::RefreshSessionRequest>) -> Reply<pb::RefreshSessionResponse> {
        let (client, origin) = (caller::client(request.extensions()), caller::origin(&request));
        let has_token = request.get_ref().refresh_token.as_deref().is_some_and(|token| !token.is_empty());
        if !has_token && let Some(cookies) = self.cookies(&request).await? {
            let (presented, lifetime) = cookies.refresh_token()?;
            let refreshed = self.app.refresh_session(presented, Some(cookies.client()), origin).await;
            let grant = refreshed.map_err(status::of)?;
            let mut response = Response::new(encode::refreshed_by_cookie(&grant));
            cookies.set(&self.app, &grant, lifetime, response.metadata_mut())?;
            return Ok(response);
        }
        let (metadata, _, message) = request.into_parts();
        let presented = caller::refresh_token(&metadata, message).map_err(status::refused)?;
        let grant = self.app.refresh_session(presented, client, origin).await.map_err(status::of)?;
        Ok(Response::new(encode::refreshed(&grant)))
    }

    async fn list_sessions(&self, request: Request<pb::ListSessionsRequest>) -> Reply<pb::ListSessionsResponse> {
        let caller = self.caller(&request).await?;
        let client = caller::client(request.extensions());
        let request = decode::list(request.into_inner()).map_err(status::refused)?;
        let page = self.app.list_sessions(caller, client, request).await.map_err(status::of)?;
        Ok(Response::new(encode::page(page)))
    }

    async fn get_current_session(
        &self,
        request: Request<pb::GetCurrentSessionRequest>,
    ) -> Reply<pb::GetCurrentSessionResponse> {
        let caller = self.caller(&request).await?;
        let listed = self.app.current_session(caller).await.map_err(status::of)?;
        Ok(Response::new(encode::current(listed)))
    }

    async fn revoke_session(&self, request: Request<pb::RevokeSessionRequest>) -> Reply<pb::RevokeSessionResponse> {
        let caller = self.caller(&request).await?;
        let (client, origin) = (caller::client(request.extensions()), caller::origin(&request));
        let pb::RevokeSessionRequest { id, user_id } = request.into_inner();
        let ended = self.app.revoke_session(caller, client, &id, user_id, origin).await.map_err(status::of)?;
        Ok(Response::new(encode::revoked(ended)))
    }

    async fn revoke_all_sessions(
        &self,
        request: Request<pb::RevokeAllSessionsRequest>,
    ) -> Reply<pb::RevokeAllSessionsResponse> {
        let caller = self.caller(&request).await?;
        let origin = caller::origin(&request);
        let request = decode::revoke_all(request.into_inner()).map_err(status::refused)?;
        let revoked_count = self.app.revoke_all_sessions(caller, request, origin).await.map_err(status::of)?;
        Ok(Response::new(pb::RevokeAllSessionsResponse { revoked_count }))
    }

    async fn revoke_project_sessions(
        &self,
        request: Request<pb::RevokeProjectSessionsRequest>,
    ) -> Reply<pb::RevokeProjectSessionsResponse> {
        let caller = caller::only(&request).map_err(status::refused)?;
        let origin = caller::origin(&request);
        let request_id = decode::revoke_project(request.into_inner()).map_err(status::refused)?;
        self.app.revoke_project_sessions(caller, request_id, origin).await.map_err(status::of)?;
        Ok(Response::new(pb::RevokeProjectSessionsResponse { success: true }))
    }

    async fn update_session(&self, request: Request<pb::UpdateSessionRequest>) -> Reply<pb::UpdateSessionResponse> {
        let caller = caller::only(&request).map_err(status::refused)?;
        let (id, change) = decode::update(request.into_inner()).map_err(status::refused)?;
        let session = self.app.update_session(caller, &id, change).await.map_err(status::of)?;
        Ok(Response::new(encode::updated(session)))
    }

    async fn erase_user(&self, request: Request<pb::EraseUserRequest>) -> Reply<pb::EraseUserResponse> {
        let caller = caller::only(&request).map_err(status::refused)?;
        let origin = caller::origin(&request);
        let user_id = request.into_inner().user_id;
        let erased_session_count = self.app.erase_user(caller, &user_id, origin).await.map_err(status::of)?;
        Ok(Response::new(pb::EraseUserResponse { erased_session_count }))
    }

    async fn introspect_token(
        &self,
        request: Request<pb::IntrospectTokenRequest>,
    ) -> Reply<pb::IntrospectTokenResponse> {
        let caller = caller::only(&request).map_err(status::refused)?;
        let client = caller::client(request.extensions());
        let tokens = decode::token(request.into_inner()).map_err(status::refused)?;
        let results = self.app.introspect(caller, client, tokens).await.map_err(status::of)?;
        Ok(Response::new(results.into_iter().map(encode::introspection).next().unwrap_or_default()))
    }

    async fn batch_introspect(
        &self,
        request: Request<pb::BatchIntrospectRequest>,
    ) -> Reply<pb::BatchIntrospectResponse> {
        let caller = caller::only(&request).map_err(status::refused)?;
        let tokens = decode::tokens(request.into_inner()).map_err(status::refused)?;
        let results = self.app.introspect(caller, None, tokens).await.map_err(status::of)?;
        let items = results.into_iter().map(encode::introspection).collect();
        Ok(Response::new(pb::BatchIntrospectResponse { items }))
    }

    type WatchRevocationsStream = watch::Stream;

    async fn watch_revocations(&self, request: Request<pb::WatchRevocationsRequest>) -> Reply<watch::Stream> {
        let caller = self.caller(&request).await?;
        let pb::WatchRevocationsRequest { cursor, accepts, max_entries } = request.into_inner();
        let accepts = watch::Accepts::read(&accepts).map_err(status::refused)?;
        let entries_max = decode::entries_max(max_entries).map_err(status::refused)?;
        let watched = self.app.watch_revocations(caller, &cursor, entries_max).await;
        let (subscription, role) = watched.map_err(status::of)?;
        let mut response = Response::new(watch::stream(subscription, accepts));
        if let Some(role) = role {
            response.metadata_mut().insert(watch::KEY_ROLE, MetadataValue::from_static(role.as_str()));
        }
        Ok(response)
    }
}
