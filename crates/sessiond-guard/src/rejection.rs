//! Why a request is rejected, and the response: the same as sessiond's own, over HTTP and gRPC.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::StatusCode;
use http::header;
use http_body_util::Full;
use tonic::Status;
use tonic_types::StatusExt as _;

use sessiond_core::clock::Timestamp;
use sessiond_core::id::ProjectId;
use sessiond_core::id::SessionId;
use sessiond_core::id::UserId;
use sessiond_core::reason;
use sessiond_core::reason::Reason;
use sessiond_core::session::policy::StepUp;
use sessiond_core::token::verified::VerifyError;

/// The `Retry-After` of a request that could not be decided.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a request is rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The request has no token.
    CredentialsMissing,
    /// The token is malformed, of another issuer, under an unknown key, or has a bad signature.
    UnparsableAccessToken,
    /// The signature is good, and the token has expired.
    AccessTokenExpired {
        /// When it expired.
        expired_at: Timestamp,
        /// Its project.
        project: ProjectId,
        /// Its user.
        user: UserId,
        /// Its session.
        session: SessionId,
    },
    /// The token belongs to another project.
    WrongProject {
        /// The guard's project.
        expected: String,
        /// The token's project.
        actual: String,
    },
    /// The token has not expired, but its session is revoked.
    SessionRevoked,
    /// The token has not expired and its session is not revoked, but a change of the session's claims superseded the token. The
    /// client should refresh.
    AccessTokenSuperseded,
    /// The token is accepted, but the user has not authenticated as recently or as strongly as the route requires (RFC 9470). Has
    /// the requirement.
    InsufficientUserAuthentication(StepUp),
    /// The guard cannot decide at the moment. The client should keep the token and try again.
    Unavailable(UnavailableReason),
}

/// Why a guard cannot decide on a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnavailableReason {
    /// No complete snapshot of the revocations has arrived yet.
    NoFeed,
    /// The feed is older than the maximum staleness.
    StaleFeed,
    /// A newer sessiond has withheld a revocation that could concern the token, because this release does not understand it.
    Withheld,
    /// The keys were never read, or are too old.
    NoKeys,
    /// sessiond did not answer.
    NoAnswer,
}

impl Rejection {
    /// The reason on the wire, the same as sessiond's.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::CredentialsMissing => Reason::CredentialsMissing,
            Self::UnparsableAccessToken => Reason::UnparsableAccessToken,
            Self::AccessTokenExpired { .. } => Reason::AccessTokenExpired,
            Self::WrongProject { .. } => Reason::WrongProject,
            Self::SessionRevoked => Reason::SessionRevoked,
            Self::AccessTokenSuperseded => Reason::AccessTokenSuperseded,
            Self::InsufficientUserAuthentication(_) => Reason::InsufficientUserAuthentication,
            Self::Unavailable(_) => Reason::VerificationUnavailable,
        }
    }

    /// The response to a request with these headers: a gRPC status for a gRPC client, and `google.rpc.Status` as JSON for any
    /// other.
    pub(super) fn response(&self, request_headers: &HeaderMap) -> http::Response<Full<Bytes>> {
        // Media types are case-insensitive (RFC 9110 §8.3.1).
        let is_grpc = |value: &&HeaderValue| {
            value.as_bytes().get(..GRPC.len()).is_some_and(|start| start.eq_ignore_ascii_case(GRPC))
        };
        let content_type = request_headers.get(header::CONTENT_TYPE).filter(is_grpc);
        match content_type {
            Some(content_type) => {
                let mut response: http::Response<Full<Bytes>> = Status::from(self.clone()).into_http();
                // The request's content type, so that a grpc-web client gets grpc-web.
                response.headers_mut().insert(header::CONTENT_TYPE, content_type.clone());
                response
            }
            None => self.json_response(),
        }
    }

    fn json_response(&self) -> http::Response<Full<Bytes>> {
        let (status, name, value) = self.head();
        let mut response = http::Response::new(Full::from(reason::json(&Status::from(self.clone())).to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        // The response depends on the moment.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(name, value);
        response
    }

    /// The HTTP status, and its header.
    fn head(&self) -> (StatusCode, HeaderName, HeaderValue) {
        let challenge = |text| (StatusCode::UNAUTHORIZED, header::WWW_AUTHENTICATE, HeaderValue::from_static(text));
        match self {
            // RFC 6750 §3.1: a request without a credential gets no error code.
            Self::CredentialsMissing => challenge("Bearer"),
            Self::UnparsableAccessToken
            | Self::AccessTokenExpired { .. }
            | Self::WrongProject { .. }
            | Self::SessionRevoked
            | Self::AccessTokenSuperseded => challenge(r#"Bearer error="invalid_token""#),
            Self::InsufficientUserAuthentication(required) => {
                let challenge = HeaderValue::try_from(reason::step_up_challenge(required));
                let challenge = challenge.expect("the values were checked");
                (StatusCode::UNAUTHORIZED, header::WWW_AUTHENTICATE, challenge)
            }
            Self::Unavailable(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, header::RETRY_AFTER, RETRY_AFTER.as_secs().into())
            }
        }
    }
}

/// The reason's name and message.
impl fmt::Display for Rejection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.reason().name(), self.reason().message())
    }
}

impl std::error::Error for Rejection {}

const GRPC: &[u8] = b"application/grpc";

impl From<VerifyError> for Rejection {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Unparsable | VerifyError::UnknownKey(_) => Self::UnparsableAccessToken,
            VerifyError::WrongProject { expected, actual } => Self::WrongProject { expected, actual },
            VerifyError::Expired(token) => Self::AccessTokenExpired {
                expired_at: token.expires_at(),
                project: token.project().clone(),
                user: token.user().clone(),
                session: token.session(),
            },
        }
    }
}

impl From<Rejection> for Status {
    fn from(rejection: Rejection) -> Self {
        let reason = rejection.reason();
        let metadata = match &rejection {
            Rejection::AccessTokenExpired { expired_at, project, user, session } => {
                reason::expired_token(*expired_at, project, user, *session)
            }
            Rejection::WrongProject { expected, actual } => reason::projects(expected, actual),
            Rejection::InsufficientUserAuthentication(required) => reason::step_up(required),
            Rejection::CredentialsMissing
            | Rejection::UnparsableAccessToken
            | Rejection::SessionRevoked
            | Rejection::AccessTokenSuperseded
            | Rejection::Unavailable(_) => HashMap::new(),
        };
        let mut details = reason.details(metadata);
        if let Rejection::Unavailable(_) = rejection {
            details.set_retry_info(Some(RETRY_AFTER));
        }
        Self::with_error_details(reason.code(), reason.message(), details)
    }
}
