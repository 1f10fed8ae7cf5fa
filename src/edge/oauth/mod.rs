//! OAuth 2.0 endpoints: refresh (RFC 6749 §6), revocation (RFC 7009), introspection (RFC 7662), and the metadata that describes
//! them (RFC 8414). An adapter: forms in, the API's own calls through the same layers as on every other wire, the RFCs' bodies
//! out.
//!
//! A client's id is a project, its secret a server key of that project. A client without a secret is public: it may refresh
//! and sign out, with a token that it holds.

mod client;
mod error;
mod form;
mod introspection;
mod metadata;

use axum::Json;
use axum::Router;
use axum::extract::Request;
use axum::extract::State;
use axum::middleware::Next;
use axum::middleware::from_fn;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::post;
use http::Extensions;
use http::HeaderValue;
use http::StatusCode;
use http::header;
use secrecy::ExposeSecret as _;
use serde_json::json;
use tonic::metadata::MetadataMap;
use tonic::metadata::MetadataValue;

use self::client::Scheme;
use self::error::OAuthError;
use self::error::UNCACHED;
use self::form::Form;
use super::admission::EarlyRefusal;
use super::body;
use super::grpc::GrpcService;
use crate::app::App;
use crate::app::Client;
use crate::config::Limits;
use crate::pb;
use crate::pb::session_service_client::SessionServiceClient;
use crate::rpc::status;
use crate::store::Role;
use crate::telemetry::Wire;
use sessiond_core::reason::Reason;
use sessiond_core::token::refresh;
use sessiond_core::token::server_key::ServerKey;

/// The routes, under every base path; the path of the metadata follows from the issuer.
pub(super) fn routes(app: App, grpc: GrpcService, limits: &Limits, base_paths: &[String]) -> Router {
    let endpoint = OAuthApi { sessions: SessionServiceClient::new(grpc), limits: body::BodyLimits::new(limits) };
    let under = |router: Router<OAuthApi>, base: &String| {
        let base = base.trim_end_matches('/');
        router
            .route(&format!("{base}/oauth2/token"), post(token).fallback(only_post))
            .route(&format!("{base}/oauth2/revoke"), post(revoke).fallback(only_post))
            .route(&format!("{base}/oauth2/introspect"), post(introspect).fallback(only_post))
    };
    let endpoints = base_paths.iter().fold(Router::new(), under).with_state(endpoint).layer(from_fn(challenge));
    endpoints.merge(metadata::routes(app, base_paths))
}

/// Adds a challenge to a 401 (RFC 6749 §5.2), for the scheme that the client used. A client without `Authorization` gets no
/// Basic challenge, because that makes a browser ask its user for a password; but a 401 needs some challenge (RFC 9110
/// §15.5.2).
async fn challenge(request: Request, next: Next) -> Response {
    const BASIC: HeaderValue = HeaderValue::from_static(r#"Basic realm="sessiond", charset="UTF-8""#);
    const BEARER: HeaderValue = HeaderValue::from_static(r#"Bearer realm="sessiond""#);
    const INVALID: HeaderValue = HeaderValue::from_static(
        r#"Bearer realm="sessiond", error="invalid_token", error_description="The server key is not valid here.""#,
    );
    let challenge = match client::scheme(request.headers()) {
        Some(Scheme::Basic | Scheme::Other) => BASIC,
        Some(Scheme::Bearer) => INVALID,
        None => BEARER,
    };
    let mut response = next.run(request).await;
    if response.status() == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

/// What every endpoint needs.
#[derive(Clone)]
struct OAuthApi {
    sessions: SessionServiceClient<GrpcService>,
    limits: body::BodyLimits,
}

/// A parsed request: the form, the client, and the extensions for the call. Has no `Debug`, because it holds secrets.
struct OAuthRequest {
    form: Form,
    client: Option<Client>,
    extensions: Extensions,
}

impl OAuthApi {
    /// Parses a request of any client.
    async fn read(&self, request: Request) -> Result<OAuthRequest, OAuthError> {
        if let Some(status) = EarlyRefusal::of(request.extensions()) {
            return Err(status.into());
        }
        let (parts, body) = request.into_parts();
        let mut form = Form::read(&parts.headers, body, self.limits).await?;
        let client = Some(client::named(&parts.headers, parts.extensions.get(), &mut form, Role::Service)?);
        Ok(OAuthRequest { form, client, extensions: parts.extensions })
    }

    /// Parses a request of a client that authenticates: with the key, or else with the certificate in the extensions.
    async fn read_confidential(&self, request: Request) -> Result<(OAuthRequest, Option<ServerKey>), OAuthError> {
        if let Some(status) = EarlyRefusal::of(request.extensions()) {
            return Err(status.into());
        }
        let (parts, body) = request.into_parts();
        let mut form = Form::read(&parts.headers, body, self.limits).await?;
        let (client, key) = client::confidential(&parts.headers, parts.extensions.get(), &mut form, Role::Verifier)?;
        Ok((OAuthRequest { form, client, extensions: parts.extensions }, key))
    }
}

impl OAuthRequest {
    /// A call on behalf of the client. The client and what the outer layers recorded are in the extensions, where no header can
    /// forge them.
    fn call<M>(mut self, message: M) -> tonic::Request<M> {
        self.extensions.insert(Wire::OAuth);
        if let Some(client) = self.client {
            self.extensions.insert(client);
        }
        tonic::Request::from_parts(MetadataMap::new(), self.extensions, message)
    }
}

/// RFC 6749 §6.
async fn token(State(mut endpoint): State<OAuthApi>, request: Request) -> Result<Response, OAuthError> {
    let mut asked = endpoint.read(request).await?;
    if asked.form.required("grant_type")? != "refresh_token" {
        return Err(OAuthError::UNSUPPORTED_GRANT_TYPE);
    }
    let presented = asked.form.required("refresh_token")?;
    // Our tokens have no scope, and a scope that was not granted cannot be requested.
    if asked.form.take("scope").is_some() {
        return Err(OAuthError::INVALID_SCOPE);
    }
    let call = asked.call(pb::RefreshSessionRequest { refresh_token: Some(presented) });
    let granted = endpoint.sessions.refresh_session(call).await?.into_inner();
    let body = json!({
        "access_token": granted.access_token,
        "token_type": "Bearer",
        "expires_in": granted.expires_in,
        "refresh_token": granted.refresh_token,
    });
    Ok((UNCACHED, Json(body)).into_response())
}

/// RFC 7009. Ignores the hint, as §2.1 permits: the kind of a token is visible in the token.
async fn revoke(State(mut endpoint): State<OAuthApi>, request: Request) -> Result<Response, OAuthError> {
    let mut asked = endpoint.read(request).await?;
    let presented = asked.form.required("token")?;
    let (name, text) = match presented.starts_with(refresh::PREFIX) {
        true => ("x-refresh-token", presented),
        false => ("authorization", format!("Bearer {presented}")),
    };
    let mut call = asked.call(pb::RevokeCurrentRequest {});
    // Text that no header can hold is not one of our tokens, and neither is this; but the client must still be authenticated.
    let value = MetadataValue::try_from(text).unwrap_or(MetadataValue::from_static("?"));
    call.metadata_mut().insert(name, value);
    match endpoint.sessions.revoke_current(call).await {
        Err(status) if !is_of_no_session(&status) => Err(status.into()),
        // §2.2: an invalid token counts as revoked, which is what the client wanted.
        Ok(_) | Err(_) => Ok(UNCACHED.into_response()),
    }
}

fn is_of_no_session(status: &tonic::Status) -> bool {
    matches!(status::reason_of(status), Some(Reason::UnparsableAccessToken | Reason::RefreshTokenNotFoundOrExpired))
}

/// RFC 7662. Ignores the hint too.
async fn introspect(State(mut endpoint): State<OAuthApi>, request: Request) -> Result<Response, OAuthError> {
    let (mut asked, key) = endpoint.read_confidential(request).await?;
    let token = asked.form.required("token")?;
    let mut call = asked.call(pb::IntrospectTokenRequest { token });
    if let Some(key) = key {
        let credential = format!("Bearer {}", key.expose().expose_secret());
        let credential = MetadataValue::try_from(credential).expect("a server key is letters, digits, `-` and `_`");
        call.metadata_mut().insert("authorization", credential);
    }
    let answer = endpoint.sessions.introspect_token(call).await?.into_inner();
    Ok((UNCACHED, Json(introspection::render(answer)?)).into_response())
}

/// RFC 6749 §3.2, RFC 7009 §2.1 and RFC 7662 §2.1 all say POST; axum adds `Allow`.
async fn only_post() -> OAuthError {
    OAuthError::NOT_POST
}
