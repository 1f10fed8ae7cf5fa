//! Why a request is refused, and the answer: over HTTP as sessiond answers, and over gRPC.

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
use sessiond_core::token::verifier::VerifyError;

/// When a client may repeat a request that could not be decided.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a token is not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
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
        /// The project that is expected.
        expected: String,
        /// The project that the token names.
        actual: String,
    },
    /// The token has not expired, and its session has ended.
    SessionRevoked,
    /// The guard cannot decide at the moment. The client should try again, and keep the token.
    Unavailable(Uncertainty),
}

/// Why it is not known whether a token is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uncertainty {
    /// No complete snapshot of the revocations has come yet.
    NoFeed,
    /// The last word of the feed is too old.
    StaleFeed,
    /// The keys were never read, or not for too long.
    NoKeys,
    /// sessiond was asked and did not answer.
    NoAnswer,
}

impl Refusal {
    /// The reason on the wire, which sessiond gives too.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::CredentialsMissing => Reason::CredentialsMissing,
            Self::UnparsableAccessToken => Reason::UnparsableAccessToken,
            Self::AccessTokenExpired { .. } => Reason::AccessTokenExpired,
            Self::WrongProject { .. } => Reason::WrongProject,
            Self::SessionRevoked => Reason::SessionRevoked,
            Self::Unavailable(_) => Reason::VerificationUnavailable,
        }
    }

    /// The answer to a request with these headers: a status without a body for a gRPC client, and `google.rpc.Status` as JSON
    /// for any other.
    pub(super) fn answer(&self, asked: &HeaderMap) -> http::Response<Full<Bytes>> {
        // Media types are read without regard to case (RFC 9110 §8.3.1).
        let is_grpc = |value: &&HeaderValue| {
            value.as_bytes().get(..GRPC.len()).is_some_and(|start| start.eq_ignore_ascii_case(GRPC))
        };
        let content_type = asked.get(header::CONTENT_TYPE).filter(is_grpc);
        match content_type {
            Some(content_type) => {
                let mut response: http::Response<Full<Bytes>> = Status::from(self.clone()).into_http();
                // grpc-web too: as one asks, so one is answered.
                response.headers_mut().insert(header::CONTENT_TYPE, content_type.clone());
                response
            }
            None => self.in_json(),
        }
    }

    fn in_json(&self) -> http::Response<Full<Bytes>> {
        let (status, name, value) = self.head();
        let mut response = http::Response::new(Full::from(reason::json(&Status::from(self.clone())).to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        // The answer is about one request and one moment.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(name, value);
        response
    }

    /// The HTTP status, and the header that belongs to it.
    fn head(&self) -> (StatusCode, HeaderName, HeaderValue) {
        let challenge = |text| (StatusCode::UNAUTHORIZED, header::WWW_AUTHENTICATE, HeaderValue::from_static(text));
        match self {
            // RFC 6750 §3.1: a request without a credential gets no error code.
            Self::CredentialsMissing => challenge("Bearer"),
            Self::UnparsableAccessToken
            | Self::AccessTokenExpired { .. }
            | Self::WrongProject { .. }
            | Self::SessionRevoked => challenge(r#"Bearer error="invalid_token""#),
            Self::Unavailable(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, header::RETRY_AFTER, RETRY_AFTER.as_secs().into())
            }
        }
    }
}

/// The reason and the message.
impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.reason().name(), self.reason().message())
    }
}

impl std::error::Error for Refusal {}

const GRPC: &[u8] = b"application/grpc";

impl From<VerifyError> for Refusal {
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

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let reason = refusal.reason();
        let metadata = match &refusal {
            Refusal::AccessTokenExpired { expired_at, project, user, session } => {
                reason::expired_token(*expired_at, project, user, *session)
            }
            Refusal::WrongProject { expected, actual } => reason::projects(expected, actual),
            Refusal::CredentialsMissing
            | Refusal::UnparsableAccessToken
            | Refusal::SessionRevoked
            | Refusal::Unavailable(_) => HashMap::new(),
        };
        let mut details = reason.details(metadata);
        if let Refusal::Unavailable(_) = refusal {
            details.set_retry_info(Some(RETRY_AFTER));
        }
        Self::with_error_details(reason.code(), reason.message(), details)
    }
}
