//! Stack Auth's API, for its SDKs. An adapter: its headers in, the API's own calls through the same layers as on every other
//! wire, its bodies out. Inner layers do not know it, and it handles no other routes.
//!
//! Credentials are in headers of their own, and `authorization` is not read. The access type names the kind of caller, and
//! credentials of another kind are ignored.

mod access_type;
mod caller;
mod grant;
mod headers;
mod known_error;

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::Request;
use axum::response::IntoResponse as _;
use axum::response::Response;
use http::Extensions;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::Uri;
use http::header;
use prost_types::Timestamp;
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;
use tonic::Status;
use tonic::metadata::Ascii;
use tonic::metadata::MetadataMap;
use tonic::metadata::MetadataValue;
use tower::Service as _;

pub(super) use self::headers::from_pages;
pub(super) use self::headers::rename_refresh_token;
pub(super) use self::headers::to_pages;

use self::access_type::AccessType;
use self::caller::StackCaller;
use self::grant::TokenRequest;
use self::headers::ResponseStyle;
use self::headers::StackHeaders;
use self::known_error::KnownError;
use super::admission::EarlyRefusal;
use super::body;
use super::grpc::GrpcService;
use super::retry_after::retry_after;
use super::shared::SharedService;
use crate::app::Client;
use crate::config::Limits;
use crate::pb;
use crate::pb::session_service_client::SessionServiceClient;
use crate::rpc::status;
use crate::telemetry;
use crate::telemetry::Wire;
use sessiond_core::reason::Reason;
use sessiond_core::session::listing::PAGE_SIZE_MAX;
use sessiond_core::token::server_key::ServerKey;

/// The path where the SDKs expect the API. The grant is only there; the other routes are under every base path.
const PREFIX: &str = "/api/v1";
const GRANT: &str = "/auth/oauth/token";

/// The error for a malformed body of a session to create.
const CREATE_BODY: &str =
    "the body must have user_id, a text, and may have expires_in_millis, a whole number, and is_impersonation";

/// The route of a request.
#[derive(Debug, PartialEq, Eq)]
enum Route {
    /// A refresh in OAuth's form.
    Grant,
    /// The path of the grant with another method.
    NoGrant,
    /// An operation on sessions.
    Sessions(Operation),
}

/// An operation on sessions.
#[derive(Debug, PartialEq, Eq)]
enum Operation {
    SignOut,
    Refresh,
    List,
    /// Ends the session with this id.
    Revoke(String),
    Create,
}

/// Translates Stack Auth's requests into calls.
#[derive(Clone)]
pub(super) struct Adapter {
    sessions: SessionServiceClient<GrpcService>,
    limits: body::BodyLimits,
    base_paths: Arc<[String]>,
}

/// Answers requests of Stack Auth clients, and passes on all others to the API.
pub(super) async fn adapt(
    adapter: &Adapter,
    mut request: Request,
    mut api: SharedService<Request, Response>,
) -> Response {
    let Some(route) = adapter.route(&request) else {
        rename_refresh_token(request.headers_mut());
        let Ok(response) = api.call(request).await;
        return response;
    };
    let style = ResponseStyle::of(request.headers());
    match adapter.clone().answer(route, request).await {
        Ok(body) => render(&style, body),
        Err(error) => refuse(&style, error),
    }
}

impl Adapter {
    /// Calls this service.
    pub(super) fn new(grpc: GrpcService, limits: &Limits, base_paths: &[String]) -> Self {
        let base_paths = base_paths.iter().map(|base| base.trim_end_matches('/').to_owned()).collect();
        Self { sessions: SessionServiceClient::new(grpc), limits: body::BodyLimits::new(limits), base_paths }
    }

    /// The route of a request; `None` if it is another client's.
    fn route(&self, request: &Request) -> Option<Route> {
        let (method, path) = (request.method(), request.uri().path());
        match self.base_paths.iter().find_map(|base| route(base, method, path.strip_prefix(base.as_str())?))? {
            // The SDKs send a grant without any of their headers.
            grant @ (Route::Grant | Route::NoGrant) => Some(grant),
            sessions @ Route::Sessions(_) => headers::is_stack_auth(request.headers()).then_some(sessions),
        }
    }

    async fn answer(mut self, route: Route, request: Request) -> Result<Value, KnownError> {
        let (parts, body) = request.into_parts();
        if let Some(status) = EarlyRefusal::of(&parts.extensions) {
            return Err(KnownError::of(&status, AccessType::Client, ""));
        }
        let asked = match route {
            Route::Grant => return self.grant(&parts.headers, body, parts.extensions).await,
            Route::NoGrant => return Err(KnownError::only_post()),
            Route::Sessions(asked) => asked,
        };
        let stack_headers = StackHeaders::read(&parts.headers)?;
        let call =
            StackCall { caller: StackCaller::read(&parts.headers, &stack_headers)?, extensions: parts.extensions };
        match asked {
            Operation::SignOut => self.sign_out(&call).await,
            Operation::Refresh => self.refresh(&call).await,
            Operation::List => self.list(&call, user_named(&parts.uri)?).await,
            Operation::Revoke(id) => self.revoke(&call, id, user_named(&parts.uri)?).await,
            Operation::Create => self.create(&call, &parts.headers, body).await,
        }
    }

    /// Ends the session of every genuine token in the request. Does not read the body: the SDKs send an empty object.
    async fn sign_out(&mut self, call: &StackCall<'_>) -> Result<Value, KnownError> {
        let StackCaller { access_token, refresh_token, .. } = call.caller;
        let mut request = call.request(call.caller.client(), pb::RevokeCurrentRequest {});
        if let Some(token) = access_token {
            request.metadata_mut().insert("authorization", bearer(token));
        }
        if let Some(token) = refresh_token {
            request.metadata_mut().insert("x-refresh-token", ascii(token));
        }
        match self.sessions.revoke_current(request).await {
            Ok(_) => Ok(json!({"success": true})),
            // Does not reveal that a refresh token belongs to another project.
            Err(status) if access_token.is_none() && status::reason_of(&status) == Some(Reason::WrongProject) => {
                Err(KnownError::no_refresh_token())
            }
            Err(status) => Err(call.refused(&status)),
        }
    }

    async fn refresh(&mut self, call: &StackCall<'_>) -> Result<Value, KnownError> {
        let presented =
            call.caller.refresh_token.ok_or_else(|| KnownError::schema("header refresh-token must be there"))?;
        let message = pb::RefreshSessionRequest { refresh_token: Some(presented.to_owned()) };
        let request = call.request(call.caller.client(), message);
        let granted = self.sessions.refresh_session(request).await.map_err(|status| call.refused(&status))?;
        let granted = granted.into_inner();
        Ok(json!({
            "access_token": granted.access_token,
            "refresh_token": granted.refresh_token,
            "token_type": "Bearer",
            "expires_in": granted.expires_in,
            // The one scope that the SDKs ask for.
            "scope": "legacy",
        }))
    }

    /// Lists the first page, of the largest size: Stack Auth does not paginate.
    async fn list(&mut self, call: &StackCall<'_>, user: Option<String>) -> Result<Value, KnownError> {
        let user = user.ok_or_else(|| KnownError::schema("query parameter user_id must be there"))?;
        let message = pb::ListSessionsRequest {
            user_id: Some(user.clone()),
            page_size: Some(PAGE_SIZE_MAX),
            ..pb::ListSessionsRequest::default()
        };
        let request = call.about(Some(&user), message)?;
        let page = self.sessions.list_sessions(request).await.map_err(|status| call.refused(&status))?.into_inner();
        let items: Vec<Value> = page.items.into_iter().map(item).collect();
        Ok(json!({"items": items, "is_paginated": false}))
    }

    async fn revoke(&mut self, call: &StackCall<'_>, id: String, user: Option<String>) -> Result<Value, KnownError> {
        let message = pb::RevokeSessionRequest { id, user_id: user.clone() };
        let request = call.about(user.as_deref(), message)?;
        self.sessions.revoke_session(request).await.map_err(|status| call.refused(&status))?;
        Ok(json!({"success": true}))
    }

    async fn create(&mut self, call: &StackCall<'_>, headers: &HeaderMap, body: Body) -> Result<Value, KnownError> {
        let Some(key) = &call.caller.key else {
            return Err(KnownError::insufficient(call.caller.access_type, &[AccessType::Server, AccessType::Admin]));
        };
        if !body::is_a(headers, body::JSON) {
            return Err(KnownError::schema("the body must be JSON, and say so"));
        }
        let read = body::read(body, self.limits).await.map_err(|unread| KnownError::unread(&unread))?;
        // The parser's error is not returned: it might quote the body.
        let create: CreateBody = serde_json::from_slice(&read).map_err(|_| KnownError::schema(CREATE_BODY))?;
        let message = pb::CreateSessionRequest {
            user_id: create.user_id,
            expires_in_millis: create.expires_in_millis,
            is_impersonation: create.is_impersonation,
            // Stack Auth does not name the impersonator; only the access type is known.
            impersonator_id: create.is_impersonation.then(|| call.caller.access_type.name().to_owned()),
            ..pb::CreateSessionRequest::default()
        };
        let request = call.as_service(key, message);
        let created = self.sessions.create_session(request).await.map_err(|status| call.refused(&status))?;
        let pb::CreateSessionResponse { access_token, refresh_token, .. } = created.into_inner();
        Ok(json!({"refresh_token": refresh_token, "access_token": access_token}))
    }

    /// RFC 6749 §6, but with Stack Auth's errors.
    async fn grant(&mut self, headers: &HeaderMap, body: Body, extensions: Extensions) -> Result<Value, KnownError> {
        let grant = TokenRequest::read(headers, body, self.limits).await?;
        let call = StackCall { caller: grant.caller(headers)?, extensions };
        self.refresh(&call).await
    }
}

/// A session to create.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateBody {
    user_id: String,
    expires_in_millis: Option<i64>,
    #[serde(default)]
    is_impersonation: bool,
}

/// A call to make. Has no `Debug`, because it holds secrets.
struct StackCall<'a> {
    caller: StackCaller<'a>,
    /// What the outer layers recorded about the request.
    extensions: Extensions,
}

impl StackCall<'_> {
    /// A call without a credential. The client is in the extensions, where no header can forge it.
    fn request<M>(&self, client: Client, message: M) -> tonic::Request<M> {
        let mut extensions = self.extensions.clone();
        extensions.insert(Wire::StackAuth);
        extensions.insert(client);
        tonic::Request::from_parts(MetadataMap::new(), extensions, message)
    }

    fn as_service<M>(&self, key: &ServerKey, message: M) -> tonic::Request<M> {
        let mut request = self.request(self.caller.named(), message);
        request.metadata_mut().insert("authorization", bearer(key.expose().expose_secret()));
        request
    }

    /// A call with the credential for the named user: the service's key if there is one, but the user's own token for `me`.
    fn about<M>(&self, user: Option<&str>, message: M) -> Result<tonic::Request<M>, KnownError> {
        let StackCaller { access_token, key, .. } = &self.caller;
        let is_me = user == Some("me");
        if let Some(key) = key.as_ref().filter(|_| !is_me) {
            return Ok(self.as_service(key, message));
        }
        let mut request = self.request(self.caller.client(), message);
        match access_token {
            Some(token) => drop(request.metadata_mut().insert("authorization", bearer(token))),
            None if is_me => return Err(KnownError::nobody_is_me()),
            None => {}
        }
        Ok(request)
    }

    fn refused(&self, status: &Status) -> KnownError {
        KnownError::of(status, self.caller.access_type, self.caller.project.as_str())
    }
}

/// The route of a path below a base path.
fn route(base: &str, method: &Method, path: &str) -> Option<Route> {
    let asked = match (method, path) {
        (&Method::POST, GRANT) if base.ends_with(PREFIX) => return Some(Route::Grant),
        (_, GRANT) if base.ends_with(PREFIX) => return Some(Route::NoGrant),
        (&Method::DELETE, "/auth/sessions/current") => Operation::SignOut,
        (&Method::POST, "/auth/sessions/current/refresh") => Operation::Refresh,
        (&Method::GET, "/auth/sessions") => Operation::List,
        (&Method::POST, "/auth/sessions") => Operation::Create,
        (&Method::DELETE, path) => {
            let id = path.strip_prefix("/auth/sessions/").filter(|id| !id.is_empty() && !id.contains('/'))?;
            // Stack Auth accepts a UUID in capitals.
            Operation::Revoke(id.to_ascii_lowercase())
        }
        _ => return None,
    };
    Some(Route::Sessions(asked))
}

/// The user that a query names.
fn user_named(uri: &Uri) -> Result<Option<String>, KnownError> {
    let query = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    let mut named = query.filter(|(name, _)| name == "user_id").map(|(_, value)| value.into_owned());
    match (named.next(), named.next()) {
        (user, None) => Ok(user.filter(|user| !user.is_empty())),
        (_, Some(_)) => Err(KnownError::schema("query parameter user_id must be there once")),
    }
}

/// A session as Stack Auth lists it: times in milliseconds.
fn item(session: pb::Session) -> Value {
    let mut item = json!({
        "id": session.id,
        "user_id": session.user_id,
        "created_at": session.created_at.map(millis),
        "last_used_at": session.last_used_at.map(millis),
        "is_impersonation": session.is_impersonation,
        "is_current_session": session.is_current_session,
    });
    if !session.ip.is_empty() {
        item["last_used_at_end_user_ip_info"] = json!({"ip": session.ip});
    }
    item
}

fn millis(time: Timestamp) -> i64 {
    time.seconds * 1_000 + i64::from(time.nanos / 1_000_000)
}

fn bearer(token: &str) -> MetadataValue<Ascii> {
    ascii(&format!("Bearer {token}"))
}

fn ascii(text: &str) -> MetadataValue<Ascii> {
    MetadataValue::try_from(text).expect("it was text in a header")
}

/// A response, with the headers of every response.
fn render(style: &ResponseStyle, body: Value) -> Response {
    let mut response = Json(body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store, max-age=0"));
    style.set_request_id(headers, &telemetry::request_id());
    response
}

/// An error response. A server error keeps its status, even if the request asked for 200.
fn refuse(style: &ResponseStyle, error: KnownError) -> Response {
    let (status, code, delay) = (error.status(), error.code(), error.retry_after);
    let mut response = render(style, error.body());
    let headers = response.headers_mut();
    if let Some(code) = code {
        style.set_known_error(headers, code);
    }
    if let Some(delay) = delay {
        headers.insert(header::RETRY_AFTER, retry_after(delay));
    }
    if style.overrides_status && status.is_client_error() {
        style.set_actual_status(headers, status);
        return response;
    }
    // Each of these has a header that must come with it (RFC 9110 §15.5.2, §15.5.6).
    match status {
        StatusCode::UNAUTHORIZED => drop(headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
        StatusCode::METHOD_NOT_ALLOWED => drop(headers.insert(header::ALLOW, HeaderValue::from_static("POST"))),
        _ => {}
    }
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_stack_auths_own_routes_are_handled() {
        let sessions = |asked| Some(Route::Sessions(asked));
        let cases = [
            ("", "DELETE", "/auth/sessions/current", sessions(Operation::SignOut)),
            ("", "POST", "/auth/sessions/current/refresh", sessions(Operation::Refresh)),
            ("", "GET", "/auth/sessions", sessions(Operation::List)),
            ("", "POST", "/auth/sessions", sessions(Operation::Create)),
            ("", "DELETE", "/auth/sessions/AB-1", sessions(Operation::Revoke("ab-1".to_owned()))),
            ("/api/v1", "POST", "/auth/oauth/token", Some(Route::Grant)),
            ("/there/api/v1", "GET", "/auth/oauth/token", Some(Route::NoGrant)),
            ("", "POST", "/auth/oauth/token", None),
            ("", "GET", "/auth/sessions/current", None),
            ("", "PATCH", "/auth/sessions/x", None),
            ("", "DELETE", "/auth/sessions/", None),
            ("", "DELETE", "/auth/sessions/x/y", None),
            ("", "DELETE", "/auth/sessions", None),
            ("", "POST", "/auth/sessions:revokeAll", None),
            ("", "GET", "/projects/demo/auth/verify", None),
        ];
        for (base, method, path, expected) in cases {
            let method = Method::from_bytes(method.as_bytes()).expect("a method");
            assert_eq!(route(base, &method, path), expected, "{method} {base}{path}");
        }
    }
}
