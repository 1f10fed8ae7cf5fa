//! Requests to the replicas of sessiond.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::Uri;
use http::header;
use http_body_util::BodyExt as _;
use http_body_util::Full;
use http_body_util::Limited;
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use tokio::time::timeout;
use tonic::Request;
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::Ascii;
use tonic::metadata::MetadataValue;
use tonic::transport::Certificate;
use tonic::transport::Channel;
use tonic::transport::ClientTlsConfig;
use tonic::transport::Endpoint;
use tower::ServiceExt as _;

use super::options::ConnectError;
use super::options::GuardOptions;
use super::trace::TraceHeaders;
use sessiond_core::id::ProjectId;
use sessiond_core::pb::IntrospectTokenRequest;
use sessiond_core::pb::IntrospectTokenResponse;
use sessiond_core::pb::session_service_client::SessionServiceClient;
use sessiond_core::token::access::Issuer;
use sessiond_core::token::server_key::ServerKey;

/// How long a replica may take to respond.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a replica may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The interval and the timeout of HTTP/2 keep-alive pings.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// The HTTP/2 stream window: large, so that a snapshot of a million entries does not wait for window updates.
const WINDOW_BYTES: u32 = 1024 * 1024;

/// The largest response body that is read.
const RESPONSE_BYTES_MAX: usize = 1024 * 1024;

/// The most replicas.
const REPLICAS_MAX: usize = 64;

pub(super) struct Upstream {
    replicas: Vec<Replica>,
    /// The index of the replica that answered last.
    preferred: AtomicUsize,
    project: ProjectId,
    issuer: Issuer,
    /// The server key, as bearer credential for gRPC and as basic credential for OAuth endpoints.
    bearer: MetadataValue<Ascii>,
    basic: HeaderValue,
}

pub(super) struct Replica {
    name: String,
    endpoint: Endpoint,
    channel: ArcSwap<Channel>,
    /// Its issuer and our server key were checked.
    is_checked: AtomicBool,
}

/// Why a request to a replica failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum UpstreamError {
    /// No response, or an invalid one. Another replica may respond, or the same one later.
    #[error("{0}")]
    Unavailable(String),
    /// An error that only an operator can correct.
    #[error(transparent)]
    Misconfigured(ConnectError),
}

impl Upstream {
    pub(super) fn new(options: &GuardOptions, project: &ProjectId, issuer: &Issuer) -> Result<Self, ConnectError> {
        if options.endpoints.is_empty() || options.endpoints.len() > REPLICAS_MAX {
            return Err(ConnectError::EndpointCount);
        }
        let trusted = options.trusted_certificates.as_deref();
        // Text without any certificate would be accepted here, and then no endpoint.
        if trusted.is_some_and(|pem| !pem.contains("-----BEGIN CERTIFICATE-----")) {
            return Err(ConnectError::MalformedCertificates);
        }
        let replicas = options.endpoints.iter().map(|endpoint| Replica::new(endpoint, trusted));
        let replicas = replicas.collect::<Result<_, _>>()?;
        let key = options.server_key.expose_secret();
        // Checked before it is sent: the operator may have configured another secret by mistake.
        ServerKey::parse(key).ok_or(ConnectError::MalformedServerKey)?;
        let basic = STANDARD.encode(format!("{project}:{key}"));
        let mut bearer: MetadataValue<Ascii> = format!("Bearer {key}").parse().expect("a server key is ASCII");
        let mut basic = HeaderValue::try_from(format!("Basic {basic}")).expect("base64 is ASCII");
        bearer.set_sensitive(true);
        basic.set_sensitive(true);
        let (project, issuer) = (project.clone(), issuer.clone());
        Ok(Self { replicas, preferred: AtomicUsize::new(0), project, issuer, bearer, basic })
    }

    /// The number of replicas.
    pub(super) const fn len(&self) -> usize {
        self.replicas.len()
    }

    /// The replica for this attempt: each in turn.
    pub(super) fn replica(&self, attempt: usize) -> &Replica {
        &self.replicas[attempt % self.replicas.len()]
    }

    /// A gRPC request with the server key.
    pub(super) fn authorized<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.bearer.clone());
        request
    }

    /// Checks that a replica has the expected issuer, and accepts our server key for the project. Asks each replica once per
    /// connection.
    pub(super) async fn check(&self, replica: &Replica) -> Result<(), UpstreamError> {
        if replica.is_checked.load(Ordering::Relaxed) {
            return Ok(());
        }
        let issuer = self.issuer.of(self.project.as_str());
        let path = issuer.parse::<Uri>().map(|uri| uri.path().to_owned()).unwrap_or_default();
        let path = format!("/.well-known/oauth-authorization-server{path}");
        let wrong_issuer = Err(UpstreamError::Misconfigured(ConnectError::WrongIssuer {
            endpoint: replica.name.clone(),
            issuer: issuer.clone(),
        }));
        let response = replica.http(Method::GET, &path, None, Bytes::new()).await?;
        match response.status() {
            StatusCode::OK => {
                // Malformed metadata may be a proxy's error page, so it is not evidence of another issuer.
                let metadata: Metadata = serde_json::from_slice(response.body()).map_err(|error| {
                    UpstreamError::Unavailable(format!("{path} is not authorization server metadata: {error}"))
                })?;
                if metadata.issuer != issuer {
                    return wrong_issuer;
                }
            }
            StatusCode::NOT_FOUND => return wrong_issuer,
            other => return Err(unexpected(&path, other)),
        }

        // RFC 7662 with Basic: the one request that names the project together with the key.
        let path = "/oauth2/introspect";
        let response = replica.http(Method::POST, path, Some(&self.basic), Bytes::from_static(b"token=none")).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED => {
                let (endpoint, project) = (replica.name.clone(), self.project.to_string());
                return Err(UpstreamError::Misconfigured(ConnectError::InvalidServerKey { endpoint, project }));
            }
            other => return Err(unexpected(path, other)),
        }
        replica.is_checked.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Fetches the project's JWK Set, with the response's headers, from the first replica that answers.
    pub(super) async fn jwks(&self) -> Result<http::Response<Bytes>, UpstreamError> {
        self.first_response(|replica| self.jwks_of(replica)).await
    }

    async fn jwks_of(&self, replica: &Replica) -> Result<http::Response<Bytes>, UpstreamError> {
        self.check(replica).await?;
        let path = format!("/projects/{}/.well-known/jwks.json", self.project);
        let response = replica.http(Method::GET, &path, None, Bytes::new()).await?;
        match response.status() {
            StatusCode::OK => Ok(response),
            other => Err(unexpected(&path, other)),
        }
    }

    /// Introspects a token at the first replica that answers.
    pub(super) async fn introspect(
        &self,
        token: &str,
        trace: &TraceHeaders,
    ) -> Result<IntrospectTokenResponse, UpstreamError> {
        self.first_response(|replica| self.introspect_at(replica, token, trace)).await
    }

    async fn introspect_at(
        &self,
        replica: &Replica,
        token: &str,
        trace: &TraceHeaders,
    ) -> Result<IntrospectTokenResponse, UpstreamError> {
        self.check(replica).await?;
        let mut request = self.authorized(IntrospectTokenRequest { token: token.to_owned() });
        trace.add_to(request.metadata_mut());
        let response =
            timeout(RESPONSE_TIMEOUT, replica.client().introspect_token(request)).await.map_err(|_| timed_out())?;
        response.map(tonic::Response::into_inner).map_err(|status| UpstreamError::Unavailable(describe(&status)))
    }

    /// Sends a request to one replica after the other until one answers, beginning with the one that answered last.
    async fn first_response<'a, T, F>(&'a self, send: impl Fn(&'a Replica) -> F) -> Result<T, UpstreamError>
    where
        F: Future<Output = Result<T, UpstreamError>>,
    {
        let preferred = self.preferred.load(Ordering::Relaxed);
        let mut last_error = None;
        for at in preferred..preferred + self.replicas.len() {
            match send(self.replica(at)).await {
                Ok(response) => {
                    if at != preferred {
                        self.preferred.store(at % self.replicas.len(), Ordering::Relaxed);
                    }
                    return Ok(response);
                }
                Err(error) => last_error = Some(error),
            }
        }
        Err(last_error.expect("there is at least one replica"))
    }
}

impl Replica {
    fn new(address: &str, trusted_certificates: Option<&str>) -> Result<Self, ConnectError> {
        let invalid = || ConnectError::InvalidEndpoint { endpoint: address.to_owned() };
        let uri: Uri = address.parse().map_err(|_| invalid())?;
        let is_secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            Some(_) | None => return Err(invalid()),
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(invalid());
        }
        let endpoint = Endpoint::from(uri)
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(2 * WINDOW_BYTES);
        let endpoint = if is_secure {
            let (tls, error) = match trusted_certificates {
                Some(pem) => {
                    let authority = Certificate::from_pem(pem);
                    (ClientTlsConfig::new().ca_certificate(authority), ConnectError::MalformedCertificates)
                }
                None => {
                    let error = ConnectError::NoRootCertificates { endpoint: address.to_owned() };
                    (ClientTlsConfig::new().with_native_roots(), error)
                }
            };
            endpoint.tls_config(tls).map_err(|_| error)?
        } else {
            endpoint
        };
        let channel = ArcSwap::from_pointee(endpoint.connect_lazy());
        Ok(Self { name: address.to_owned(), endpoint, channel, is_checked: AtomicBool::new(false) })
    }

    /// The replica's base URL.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn client(&self) -> SessionServiceClient<Channel> {
        SessionServiceClient::new(Channel::clone(&self.channel.load()))
    }

    /// Replaces the connection, which may be dead.
    pub(super) fn reconnect(&self) {
        self.channel.store(Arc::new(self.endpoint.connect_lazy()));
        // Another server may respond at this address now.
        self.is_checked.store(false, Ordering::Relaxed);
    }

    /// Sends a plain HTTP request over the same connection.
    async fn http(
        &self,
        method: Method,
        path: &str,
        authorization: Option<&HeaderValue>,
        form: Bytes,
    ) -> Result<http::Response<Bytes>, UpstreamError> {
        let mut request = http::Request::new(Body::new(Full::new(form)));
        if method == Method::POST {
            let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
            request.headers_mut().insert(header::CONTENT_TYPE, form_type);
        }
        if let Some(authorization) = authorization {
            request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
        }
        *request.method_mut() = method;
        *request.uri_mut() =
            path.parse().map_err(|_| UpstreamError::Unavailable(format!("{path} is not a valid path")))?;
        let response = async {
            let (head, body) =
                Channel::clone(&self.channel.load()).oneshot(request).await.map_err(failed)?.into_parts();
            let body = Limited::new(body, RESPONSE_BYTES_MAX).collect().await.map_err(|error| failed(&*error))?;
            Ok(http::Response::from_parts(head, body.to_bytes()))
        };
        timeout(RESPONSE_TIMEOUT, response).await.unwrap_or_else(|_| Err(timed_out()))
    }
}

/// The part of RFC 8414 metadata that is checked.
#[derive(Deserialize)]
struct Metadata {
    issuer: String,
}

fn unexpected(path: &str, status: StatusCode) -> UpstreamError {
    UpstreamError::Unavailable(format!("{path} returned {status}"))
}

fn timed_out() -> UpstreamError {
    UpstreamError::Unavailable(format!("no response within {RESPONSE_TIMEOUT:?}"))
}

fn failed(error: impl std::fmt::Display) -> UpstreamError {
    UpstreamError::Unavailable(error.to_string())
}

/// A status for the log, without its details.
pub(super) fn describe(status: &Status) -> String {
    format!("{}: {}", status.code(), status.message())
}
