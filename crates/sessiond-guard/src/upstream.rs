//! The replicas of sessiond, and what is asked of them.

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
use tonic::transport::Channel;
use tonic::transport::ClientTlsConfig;
use tonic::transport::Endpoint;
use tower::ServiceExt as _;

use super::options::ConnectError;
use super::options::GuardOptions;
use sessiond_core::id::ProjectId;
use sessiond_core::pb::IntrospectTokenRequest;
use sessiond_core::pb::IntrospectTokenResponse;
use sessiond_core::pb::session_service_client::SessionServiceClient;
use sessiond_core::token::access::Issuer;
use sessiond_core::token::server_key::ServerKey;

/// How long a replica may take to answer anything.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a replica may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How often a connection is asked whether it is still there, and how long that may take.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// How much may be on its way to us: a snapshot of a million entries must not wait for word that its last page has come.
const WINDOW_BYTES: u32 = 1024 * 1024;

/// The largest answer that is read.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// The most replicas.
const REPLICAS_MAX: usize = 64;

/// Every replica there is.
pub(super) struct Upstream {
    replicas: Vec<Replica>,
    /// The one that answered last.
    best: AtomicUsize,
    project: ProjectId,
    issuer: Issuer,
    /// The server key, as gRPC and as OAuth's endpoints want it.
    bearer: MetadataValue<Ascii>,
    basic: HeaderValue,
}

/// One of them.
pub(super) struct Replica {
    name: String,
    endpoint: Endpoint,
    channel: ArcSwap<Channel>,
    /// It was asked whom it issues tokens for.
    was_checked: AtomicBool,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum UpstreamError {
    /// None came, or none that we understand: another replica may do better, or the same one later.
    #[error("{0}")]
    NoAnswer(String),
    /// It is not for us.
    #[error(transparent)]
    Refused(ConnectError),
}

impl Upstream {
    pub(super) fn new(options: &GuardOptions, project: &ProjectId, issuer: &Issuer) -> Result<Self, ConnectError> {
        if options.endpoints.is_empty() || options.endpoints.len() > REPLICAS_MAX {
            return Err(ConnectError::Endpoints);
        }
        let replicas = options.endpoints.iter().map(|endpoint| Replica::new(endpoint)).collect::<Result<_, _>>()?;
        let key = options.server_key.expose_secret();
        // Checked before it goes anywhere: someone may have given us another secret by mistake.
        ServerKey::parse(key).ok_or(ConnectError::MalformedServerKey)?;
        let basic = STANDARD.encode(format!("{project}:{key}"));
        let mut bearer: MetadataValue<Ascii> = format!("Bearer {key}").parse().expect("a server key is ASCII");
        let mut basic = HeaderValue::try_from(format!("Basic {basic}")).expect("base64 is ASCII");
        bearer.set_sensitive(true);
        basic.set_sensitive(true);
        let (project, issuer) = (project.clone(), issuer.clone());
        Ok(Self { replicas, best: AtomicUsize::new(0), project, issuer, bearer, basic })
    }

    /// How many replicas there are.
    pub(super) const fn len(&self) -> usize {
        self.replicas.len()
    }

    /// The replica to try at this attempt: each in turn.
    pub(super) fn replica(&self, attempt: usize) -> &Replica {
        &self.replicas[attempt % self.replicas.len()]
    }

    /// A message with the server key on it.
    pub(super) fn signed<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.bearer.clone());
        request
    }

    /// Asks whom a replica issues tokens for, and whether it knows our key as one of the project: once for each replica.
    pub(super) async fn check(&self, replica: &Replica) -> Result<(), UpstreamError> {
        if replica.was_checked.load(Ordering::Relaxed) {
            return Ok(());
        }
        let issuer = self.issuer.of(self.project.as_str());
        let path = issuer.parse::<Uri>().map(|uri| uri.path().to_owned()).unwrap_or_default();
        let path = format!("/.well-known/oauth-authorization-server{path}");
        let refused = Err(UpstreamError::Refused(ConnectError::AnotherIssuer {
            endpoint: replica.name.clone(),
            issuer: issuer.clone(),
        }));
        let answer = replica.http(Method::GET, &path, None, Bytes::new()).await?;
        match answer.status() {
            StatusCode::OK => {
                // What cannot be read names no issuer: it is no answer, and not the right one either.
                let metadata: Metadata = serde_json::from_slice(answer.body()).map_err(|error| {
                    UpstreamError::NoAnswer(format!("{path} is not the issuer's metadata: {error}"))
                })?;
                if metadata.issuer != issuer {
                    return refused;
                }
            }
            StatusCode::NOT_FOUND => return refused,
            other => return Err(unexpected(&path, other)),
        }

        // RFC 7662 over Basic: the one question that names the project together with the key.
        let path = "/oauth2/introspect";
        let answer = replica.http(Method::POST, path, Some(&self.basic), Bytes::from_static(b"token=none")).await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED => {
                let (endpoint, project) = (replica.name.clone(), self.project.to_string());
                return Err(UpstreamError::Refused(ConnectError::ServerKey { endpoint, project }));
            }
            other => return Err(unexpected(path, other)),
        }
        replica.was_checked.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The project's JWK Set, from whichever replica answers, and the answer's head.
    pub(super) async fn jwks(&self) -> Result<http::Response<Bytes>, UpstreamError> {
        self.any(|replica| self.jwks_of(replica)).await
    }

    async fn jwks_of(&self, replica: &Replica) -> Result<http::Response<Bytes>, UpstreamError> {
        self.check(replica).await?;
        let path = format!("/projects/{}/.well-known/jwks.json", self.project);
        let answer = replica.http(Method::GET, &path, None, Bytes::new()).await?;
        match answer.status() {
            StatusCode::OK => Ok(answer),
            other => Err(unexpected(&path, other)),
        }
    }

    /// What a token is worth, by whichever replica answers.
    pub(super) async fn introspect(&self, token: &str) -> Result<IntrospectTokenResponse, UpstreamError> {
        self.any(|replica| self.introspect_at(replica, token)).await
    }

    async fn introspect_at(&self, replica: &Replica, token: &str) -> Result<IntrospectTokenResponse, UpstreamError> {
        self.check(replica).await?;
        let request = self.signed(IntrospectTokenRequest { token: token.to_owned() });
        let answer = timeout(ANSWER_TIMEOUT, replica.client().introspect_token(request)).await.map_err(|_| late())?;
        answer.map(tonic::Response::into_inner).map_err(|status| UpstreamError::NoAnswer(said(&status)))
    }

    /// The first answer of any replica, beginning with the one that answered last.
    async fn any<'a, T, F>(&'a self, ask: impl Fn(&'a Replica) -> F) -> Result<T, UpstreamError>
    where
        F: Future<Output = Result<T, UpstreamError>>,
    {
        let best = self.best.load(Ordering::Relaxed);
        let mut failure = None;
        for at in best..best + self.replicas.len() {
            match ask(self.replica(at)).await {
                Ok(answer) => {
                    if at != best {
                        self.best.store(at % self.replicas.len(), Ordering::Relaxed);
                    }
                    return Ok(answer);
                }
                Err(other) => failure = Some(other),
            }
        }
        Err(failure.expect("there is at least one replica"))
    }
}

impl Replica {
    fn new(address: &str) -> Result<Self, ConnectError> {
        let refused = || ConnectError::Endpoint { endpoint: address.to_owned() };
        let uri: Uri = address.parse().map_err(|_| refused())?;
        let is_secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            Some(_) | None => return Err(refused()),
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(refused());
        }
        let endpoint = Endpoint::from(uri)
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(2 * WINDOW_BYTES);
        let endpoint = if is_secure {
            let tls = ClientTlsConfig::new().with_native_roots();
            endpoint.tls_config(tls).map_err(|_| ConnectError::Certificates { endpoint: address.to_owned() })?
        } else {
            endpoint
        };
        let channel = ArcSwap::from_pointee(endpoint.connect_lazy());
        Ok(Self { name: address.to_owned(), endpoint, channel, was_checked: AtomicBool::new(false) })
    }

    /// Its address.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn client(&self) -> SessionServiceClient<Channel> {
        SessionServiceClient::new(Channel::clone(&self.channel.load()))
    }

    /// Forgets the connection, which may be one to nowhere.
    pub(super) fn reconnect(&self) {
        self.channel.store(Arc::new(self.endpoint.connect_lazy()));
        // Who answers at this address may be another one now.
        self.was_checked.store(false, Ordering::Relaxed);
    }

    /// A plain request, over the same connection.
    async fn http(
        &self,
        method: Method,
        path: &str,
        authorization: Option<&HeaderValue>,
        form: Bytes,
    ) -> Result<http::Response<Bytes>, UpstreamError> {
        let mut request = http::Request::new(Body::new(Full::new(form)));
        if method == Method::POST {
            let typed = HeaderValue::from_static("application/x-www-form-urlencoded");
            request.headers_mut().insert(header::CONTENT_TYPE, typed);
        }
        if let Some(authorization) = authorization {
            request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
        }
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(|_| UpstreamError::NoAnswer(format!("{path} is no path")))?;
        let answer = async {
            let (head, body) =
                Channel::clone(&self.channel.load()).oneshot(request).await.map_err(failed)?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| failed(&*error))?;
            Ok(http::Response::from_parts(head, body.to_bytes()))
        };
        timeout(ANSWER_TIMEOUT, answer).await.unwrap_or_else(|_| Err(late()))
    }
}

/// Of the document of RFC 8414, what matters here.
#[derive(Deserialize)]
struct Metadata {
    issuer: String,
}

fn unexpected(path: &str, status: StatusCode) -> UpstreamError {
    UpstreamError::NoAnswer(format!("{path} was answered with {status}"))
}

fn late() -> UpstreamError {
    UpstreamError::NoAnswer("there was no answer in time".to_owned())
}

fn failed(error: impl std::fmt::Display) -> UpstreamError {
    UpstreamError::NoAnswer(error.to_string())
}

/// A status, for the log: what it carries is left out.
pub(super) fn said(status: &Status) -> String {
    format!("{}: {}", status.code(), status.message())
}
