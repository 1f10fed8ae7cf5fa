//! Requests to the replicas of sessiond.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
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
use secrecy::SecretString;
use serde::Deserialize;
use tokio::time::Instant;
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
use tonic::transport::Identity;
use tower::ServiceExt as _;

use super::options::ClientCertificate;
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
    /// `None` if the certificate of the connections stands in for it.
    server_key: Option<KeyHeaders>,
}

/// The server key, as bearer credential for gRPC and as basic credential for OAuth endpoints.
struct KeyHeaders {
    bearer: MetadataValue<Ascii>,
    basic: HeaderValue,
}

pub(super) struct Replica {
    name: String,
    endpoint: ArcSwap<Endpoint>,
    identity: Option<RenewedIdentity>,
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
        let certificate = options.client_certificate.as_ref();
        if options.server_key.is_none() && certificate.is_none() {
            return Err(ConnectError::NoCredential);
        }
        let replicas = options.endpoints.iter().map(|endpoint| Replica::new(endpoint, trusted, certificate));
        let replicas = replicas.collect::<Result<_, _>>()?;
        let server_key = options.server_key.as_ref().map(|key| KeyHeaders::new(project, key)).transpose()?;
        let (project, issuer) = (project.clone(), issuer.clone());
        Ok(Self { replicas, preferred: AtomicUsize::new(0), project, issuer, server_key })
    }

    /// The number of replicas.
    pub(super) const fn len(&self) -> usize {
        self.replicas.len()
    }

    /// The replica for this attempt: each in turn.
    pub(super) fn replica(&self, attempt: usize) -> &Replica {
        &self.replicas[attempt % self.replicas.len()]
    }

    /// A gRPC request with the server key, if there is one.
    pub(super) fn authorized<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(key) = &self.server_key {
            request.metadata_mut().insert("authorization", key.bearer.clone());
        }
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

        // RFC 7662 with Basic, or with a certificate by RFC 8705: the one request that names the project together with the credential.
        let path = "/oauth2/introspect";
        let (basic, form) = match &self.server_key {
            Some(key) => (Some(&key.basic), Bytes::from_static(b"token=none")),
            // A project's name needs no encoding.
            None => (None, Bytes::from(format!("token=none&client_id={}", self.project))),
        };
        let response = replica.http(Method::POST, path, basic, form).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED => {
                let (endpoint, project) = (replica.name.clone(), self.project.to_string());
                return Err(UpstreamError::Misconfigured(match basic {
                    Some(_) => ConnectError::InvalidServerKey { endpoint, project },
                    None => ConnectError::RejectedCertificate { endpoint, project },
                }));
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

impl KeyHeaders {
    fn new(project: &ProjectId, key: &SecretString) -> Result<Self, ConnectError> {
        let key = key.expose_secret();
        // Checked before it is sent: the operator may have configured another secret by mistake.
        ServerKey::parse(key).ok_or(ConnectError::MalformedServerKey)?;
        let basic = STANDARD.encode(format!("{project}:{key}"));
        let mut bearer: MetadataValue<Ascii> = format!("Bearer {key}").parse().expect("a server key is ASCII");
        let mut basic = HeaderValue::try_from(format!("Basic {basic}")).expect("base64 is ASCII");
        bearer.set_sensitive(true);
        basic.set_sensitive(true);
        Ok(Self { bearer, basic })
    }
}

/// A client certificate whose files may be renewed.
struct RenewedIdentity {
    /// The settings without the certificate.
    endpoint: Endpoint,
    tls: ClientTlsConfig,
    files: ClientCertificate,
    used: Mutex<UsedIdentity>,
}

struct UsedIdentity {
    /// The certificate in use.
    certificate: Option<Vec<u8>>,
    /// When the files were last read.
    read_at: Instant,
}

/// How often the files of a client certificate are read, for the connections that are opened beside the stream.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(60);

impl RenewedIdentity {
    /// Reads the files. Returns the endpoint with another certificate, or `None` if it is the one in use.
    fn renewed(&self) -> Result<Option<Endpoint>, ConnectError> {
        let read = |file: &PathBuf| {
            std::fs::read(file)
                .map_err(|error| ConnectError::UnreadableCertificate { file: file.clone(), reason: error.to_string() })
        };
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.read_at = Instant::now();
        let (certificate, key) = (read(&self.files.certificate_file)?, read(&self.files.key_file)?);
        if used.certificate.as_ref() == Some(&certificate) {
            return Ok(None);
        }
        let tls = self.tls.clone().identity(Identity::from_pem(&certificate, key));
        let endpoint = self.endpoint.clone().tls_config(tls);
        let endpoint =
            endpoint.map_err(|_| ConnectError::UnusableCertificate { file: self.files.certificate_file.clone() })?;
        used.certificate = Some(certificate);
        Ok(Some(endpoint))
    }

    fn is_due(&self) -> bool {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).read_at.elapsed() >= RENEWAL_INTERVAL
    }
}

impl Replica {
    fn new(
        address: &str,
        trusted_certificates: Option<&str>,
        client_certificate: Option<&ClientCertificate>,
    ) -> Result<Self, ConnectError> {
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
        let (endpoint, identity) = if is_secure {
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
            let anonymous = endpoint.clone().tls_config(tls.clone()).map_err(|_| error)?;
            match client_certificate.cloned() {
                None => (anonymous, None),
                Some(files) => {
                    let used = Mutex::new(UsedIdentity { certificate: None, read_at: Instant::now() });
                    let identity = RenewedIdentity { endpoint, tls, files, used };
                    (identity.renewed()?.unwrap_or(anonymous), Some(identity))
                }
            }
        } else if client_certificate.is_some() {
            return Err(ConnectError::CertificateWithoutTls { endpoint: address.to_owned() });
        } else {
            (endpoint, None)
        };
        let channel = ArcSwap::from_pointee(endpoint.connect_lazy());
        let endpoint = ArcSwap::from_pointee(endpoint);
        Ok(Self { name: address.to_owned(), endpoint, identity, channel, is_checked: AtomicBool::new(false) })
    }

    /// The replica's base URL.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn client(&self) -> SessionServiceClient<Channel> {
        SessionServiceClient::new(self.channel())
    }

    /// The connection. If the client certificate was renewed, another one, which presents that.
    fn channel(&self) -> Channel {
        if self.identity.as_ref().is_some_and(RenewedIdentity::is_due) && self.renew() {
            self.channel.store(Arc::new(self.endpoint.load().connect_lazy()));
        }
        Channel::clone(&self.channel.load())
    }

    /// Replaces the connection, which may be dead. The new one presents the client certificate as it is in its files now.
    pub(super) fn reconnect(&self) {
        self.renew();
        self.channel.store(Arc::new(self.endpoint.load().connect_lazy()));
        // Another server may respond at this address now.
        self.is_checked.store(false, Ordering::Relaxed);
    }

    /// Reads the files of the client certificate. Returns whether new connections present another one from now on.
    fn renew(&self) -> bool {
        match self.identity.as_ref().map(RenewedIdentity::renewed) {
            None | Some(Ok(None)) => false,
            Some(Ok(Some(endpoint))) => {
                self.endpoint.store(Arc::new(endpoint));
                true
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "the client certificate was not renewed: the previous one stays in use");
                false
            }
        }
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
            let (head, body) = self.channel().oneshot(request).await.map_err(failed)?.into_parts();
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
