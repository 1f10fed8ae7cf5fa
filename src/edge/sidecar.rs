//! A guard beside a service in any language: answers forward-auth requests and Envoy's Check from its own keys and feed, without a
//! call to sessiond per request, and needs no database.
//!
//! It answers as the server does, in the same words, with two differences: it reads no cookies, and what it cannot decide is for
//! the guard's fail mode.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::extract::State;
use axum::response::IntoResponse as _;
use axum::response::Response;
use axum::routing::any;
use axum::routing::get;
use http::HeaderValue;
use http::StatusCode;
use http::header;
use http::request::Parts;
use sessiond_guard::Guard;
use sessiond_guard::Rejection;
use sessiond_guard::Stats;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpListener;
use tokio::net::UnixListener;
use tokio::net::UnixStream;
use tokio::time::sleep;
use tokio::time::timeout;
use tonic::Status;

use super::answer::answer;
use super::internal;
use super::internal::ACCEPT_RETRY;
use super::internal::InternalServer;
use super::plain::text;
use super::verify;
use super::verify::VerifyQuery;
use crate::config::SidecarAddress;
use crate::pb::envoy::AttributeContext;
use crate::pb::envoy::CheckRequest;
use crate::pb::envoy::CheckResponse;
use crate::pb::envoy::authorization_server;
use crate::pb::envoy::authorization_server::AuthorizationServer;
use crate::rpc::check;
use crate::rpc::check::Decision;
use crate::rpc::check::Denial;
use crate::rpc::check::Pass;
use crate::rpc::check::ProxiedRequest;
use crate::rpc::check::StepUpText;
use sessiond_core::id::ProjectId;
use sessiond_core::session::Refusal;

/// The largest message of Envoy's: the largest access token must fit, and cookies beside it.
const MESSAGE_BYTES_MAX: usize = 2 * internal::HEAD_BYTES_MAX;

/// How long requests in progress may take after the sidecar was told to stop.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// The guards of a sidecar, one for each project. Cheap to clone; clones share state.
#[derive(Clone)]
pub struct Sidecar(Arc<BTreeMap<ProjectId, SidecarGuard>>);

struct SidecarGuard {
    guard: Guard,
    /// The greatest age of its feed, for readiness.
    max_staleness: Duration,
}

impl Sidecar {
    /// With these guards, each with the greatest age of its feed.
    pub fn new(guards: impl IntoIterator<Item = (ProjectId, Guard, Duration)>) -> Self {
        let guards = guards.into_iter();
        Self(Arc::new(
            guards.map(|(project, guard, max_staleness)| (project, SidecarGuard { guard, max_staleness })).collect(),
        ))
    }

    /// Decides about a request.
    ///
    /// # Errors
    ///
    /// Fails if it cannot be decided now.
    async fn decide(&self, asked: &ProxiedRequest<'_>) -> Result<Decision, Status> {
        let denied = |refusal| Ok(Err(Denial { refusal, location: None, set: None }));
        let Some(guard) = self.guard(asked.project.as_deref()) else { return denied(Refusal::ProjectNotFound) };
        let required = match asked.step_up.parse() {
            Ok(required) => required,
            Err(refusal) => return denied(refusal),
        };
        let Some(token) = &asked.token else { return denied(Refusal::CredentialsMissing) };
        let verified = guard.verify(&token.0).await;
        match verified.and_then(|principal| guard.check(&principal, &required).map(|()| principal)) {
            Ok(principal) => Ok(Ok(Pass { token: principal.into(), cookies: None })),
            Err(rejection) => refusal(rejection).map_or_else(Err, denied),
        }
    }

    /// The guard of a project. The only one, if none is named.
    fn guard(&self, project: Option<&str>) -> Option<&Guard> {
        let guard = match (project, self.0.values().next()) {
            (Some(project), _) => self.0.get(&ProjectId::parse(project)?),
            (None, only) => only.filter(|_| self.0.len() == 1),
        };
        guard.map(|guard| &guard.guard)
    }

    /// Why it is not ready; empty if it is.
    fn not_ready(&self) -> Vec<String> {
        let lacks = |(project, SidecarGuard { guard, max_staleness }): (&ProjectId, &SidecarGuard)| {
            let stats = guard.stats();
            match (stats.jwks_age, stats.staleness) {
                (None, _) => Some(format!("project {project}: the keys were not read yet\n")),
                (_, None) => Some(format!("project {project}: no snapshot of the revocations has arrived yet\n")),
                (_, Some(age)) if age > *max_staleness => Some(format!("project {project}: the feed is too old\n")),
                (Some(_), Some(_)) => None,
            }
        };
        self.0.iter().filter_map(lacks).collect()
    }

    fn router(self) -> Router {
        let check = AuthorizationServer::new(self.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        // Not tonic's router: its answer to any unknown path has the status 200, which a proxy takes for permission.
        Router::new()
            .route_service("/envoy.service.auth.v3.Authorization/Check", check)
            .route("/verify", any(verify_only))
            .route("/projects/{project_id}/auth/verify", any(verify_of))
            .route("/healthz", get(|| async { text(StatusCode::OK, "alive") }))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .with_state(self)
    }
}

/// The refusal that a rejection stands for.
///
/// # Errors
///
/// Fails if the guard could not decide.
fn refusal(rejection: Rejection) -> Result<Refusal, Status> {
    Ok(match rejection {
        Rejection::CredentialsMissing => Refusal::CredentialsMissing,
        Rejection::UnparsableAccessToken => Refusal::UnparsableAccessToken,
        Rejection::AccessTokenExpired { expired_at, project, user, session } => {
            Refusal::AccessTokenExpired { expired_at, project, user, session }
        }
        Rejection::WrongProject { expected, actual } => Refusal::WrongProject { expected, actual },
        Rejection::SessionRevoked => Refusal::SessionRevoked,
        Rejection::AccessTokenSuperseded => Refusal::AccessTokenSuperseded,
        Rejection::InsufficientUserAuthentication(required) => Refusal::InsufficientUserAuthentication(required),
        undecided @ Rejection::Unavailable(_) => return Err(undecided.into()),
    })
}

async fn verify_only(State(sidecar): State<Sidecar>, request: Request) -> Response {
    verify_request(&sidecar, None, request).await
}

async fn verify_of(
    State(sidecar): State<Sidecar>,
    axum::extract::Path(project): axum::extract::Path<String>,
    request: Request,
) -> Response {
    verify_request(&sidecar, Some(project), request).await
}

/// Answers a forward-auth request, as the server does.
async fn verify_request(sidecar: &Sidecar, project: Option<String>, request: Request) -> Response {
    let (Parts { method, uri, headers, extensions, .. }, _) = request.into_parts();
    let VerifyQuery { step_up, .. } = VerifyQuery::read(uri.query());
    let asked = ProxiedRequest { project, step_up, ..verify::proxied_request(None, None, &headers, &extensions) };
    let mut response = match sidecar.decide(&asked).await {
        Ok(Ok(passed)) => verify::pass(&passed),
        Ok(Err(denial)) => verify::render(check::denied(denial)),
        Err(status) => answer(&status),
    };
    // Every answer is about one moment.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    verify::complete(response, &method)
}

#[tonic::async_trait]
impl authorization_server::Authorization for Sidecar {
    async fn check(&self, request: tonic::Request<CheckRequest>) -> Result<tonic::Response<CheckResponse>, Status> {
        let AttributeContext { request, mut context_extensions, .. } =
            request.into_inner().attributes.unwrap_or_default();
        let http = request.and_then(|request| request.http).unwrap_or_default();
        let step_up = StepUpText::take(&mut context_extensions);
        let project = context_extensions.remove("project_id");
        let asked = ProxiedRequest { project, step_up, ..check::proxied_request(&http, None) };
        // Undecided: the proxy's configuration says what it does on failure.
        let decision = self.decide(&asked).await?;
        Ok(tonic::Response::new(decision.map_or_else(check::denied, |pass| check::allowed(&pass, false))))
    }
}

async fn ready(State(sidecar): State<Sidecar>) -> Response {
    match sidecar.not_ready() {
        reasons if reasons.is_empty() => text(StatusCode::OK, "ready"),
        reasons => text(StatusCode::SERVICE_UNAVAILABLE, reasons.concat()),
    }
}

async fn metrics(State(sidecar): State<Sidecar>) -> Response {
    let stats: Vec<(&str, Stats)> =
        sidecar.0.iter().map(|(project, guard)| (project.as_str(), guard.guard.stats())).collect();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], Stats::render_by_project(&stats)).into_response()
}

/// Where a sidecar listens. A socket file is removed when this is dropped.
pub enum SidecarListener {
    /// On a port.
    Tcp(TcpListener),
    /// On a Unix socket.
    Unix(UnixListener, SocketFile),
}

/// A socket in the file system.
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl SidecarListener {
    /// Listens. Replaces a socket file that no process listens at, which a killed process has left.
    ///
    /// # Errors
    ///
    /// Fails if the address is in use, or cannot be used.
    pub async fn bind(address: &SidecarAddress) -> io::Result<Self> {
        match address {
            SidecarAddress::Tcp(address) => TcpListener::bind(address).await.map(Self::Tcp),
            SidecarAddress::Unix(path) => {
                let is_abandoned = match UnixStream::connect(path).await {
                    Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
                    // Linux says so of a regular file too, which must stay.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => is_socket(path)?,
                    Err(_) => false,
                };
                if is_abandoned {
                    std::fs::remove_file(path)?;
                }
                let listener = UnixListener::bind(path)?;
                permit_group(path)?;
                Ok(Self::Unix(listener, SocketFile(path.clone())))
            }
        }
    }

    /// The port on which it listens; `None` for a socket.
    pub fn local_addr(&self) -> Option<std::net::SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(..) => None,
        }
    }

    /// Serves until `stop` resolves, and then finishes the requests in progress. At `connections_max`, idle
    /// connections make room for new ones.
    pub async fn serve(self, sidecar: Sidecar, connections_max: usize, stop: impl Future<Output = ()>) {
        let server = InternalServer::new(sidecar.router(), connections_max);
        tokio::pin!(stop);
        loop {
            let accepted = tokio::select! {
                () = &mut stop => break,
                accepted = self.accept() => accepted,
            };
            let (stream, ip) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let slot = tokio::select! {
                () = &mut stop => break,
                slot = server.slot(ip) => slot,
            };
            tokio::spawn(slot.serve(stream));
        }
        if timeout(SHUTDOWN_TIMEOUT, server.close()).await.is_err() {
            tracing::warn!("requests in progress were cut off");
        }
    }

    async fn accept(&self) -> io::Result<(Box<dyn Stream>, IpAddr)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // Responses are small and latency matters.
                let _ = stream.set_nodelay(true);
                Ok((Box::new(stream), peer.ip()))
            }
            Self::Unix(listener, _) => Ok((Box::new(listener.accept().await?.0), Ipv4Addr::LOCALHOST.into())),
        }
    }
}

fn is_socket(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::FileTypeExt as _;
    Ok(std::fs::symlink_metadata(path)?.file_type().is_socket())
}

/// For the service's user and group. A client may ask only about tokens that it has.
fn permit_group(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}
