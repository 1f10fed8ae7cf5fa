//! Why a request is not let through, and how it is told: over HTTP as sessiond tells it, and over gRPC.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::HeaderValue;
use http::StatusCode;
use http::header;
use http_body_util::Full;
use serde_json::json;
use tonic::Code;
use tonic::Status;
use tonic_types::ErrorDetails;
use tonic_types::StatusExt as _;

use crate::clock::Timestamp;
use crate::id::ProjectId;
use crate::id::SessionId;
use crate::id::UserId;
use crate::token::verifier::VerifyError;

/// The domain of sessiond's reasons.
const DOMAIN: &str = "sessiond";

/// After how long a request that could not be decided may come again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a token is not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is none.
    CredentialsMissing,
    /// It is not one of ours: malformed, of another issuer, under an unknown key, with a bad signature.
    UnparsableAccessToken,
    /// It is genuine, and over.
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
    /// It is of another project.
    WrongProject {
        /// The project that is expected.
        expected: String,
        /// The project that the token names.
        actual: String,
    },
    /// It is genuine, and its session has ended.
    SessionRevoked,
    /// Whether it is good cannot be known at the moment: the caller should try again, and keep the token.
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

/// What is said of a refusal. The names and the texts are sessiond's own, so that clients branch on them alike, whoever
/// answers; a test holds them together.
struct Said {
    reason: &'static str,
    message: &'static str,
    code: Code,
    http: StatusCode,
}

impl Refusal {
    fn said(&self) -> Said {
        let unauthenticated =
            |reason, message| Said { reason, message, code: Code::Unauthenticated, http: StatusCode::UNAUTHORIZED };
        match self {
            Self::CredentialsMissing => unauthenticated("CREDENTIALS_MISSING", "No credential was presented."),
            Self::UnparsableAccessToken => {
                unauthenticated("UNPARSABLE_ACCESS_TOKEN", "The access token is not one of ours.")
            }
            Self::AccessTokenExpired { .. } => unauthenticated("ACCESS_TOKEN_EXPIRED", "The access token has expired."),
            Self::WrongProject { .. } => {
                unauthenticated("INVALID_PROJECT_FOR_ACCESS_TOKEN", "The access token is of another project.")
            }
            Self::SessionRevoked => unauthenticated("SESSION_REVOKED", "The session has ended."),
            Self::Unavailable(_) => Said {
                reason: "VERIFICATION_UNAVAILABLE",
                message: "Whether the session has ended is not known at the moment; try again.",
                code: Code::Unavailable,
                http: StatusCode::SERVICE_UNAVAILABLE,
            },
        }
    }

    /// `ErrorInfo.reason`.
    pub fn reason(&self) -> &'static str {
        self.said().reason
    }

    fn metadata(&self) -> HashMap<String, String> {
        let pairs = match self {
            Self::AccessTokenExpired { expired_at, project, user, session } => vec![
                ("expired_at_millis", expired_at.as_millis().to_string()),
                ("project_id", project.to_string()),
                ("user_id", user.as_str().to_owned()),
                ("refresh_token_id", session.to_string()),
            ],
            Self::WrongProject { expected, actual } => {
                vec![("expected_project_id", expected.clone()), ("actual_project_id", actual.clone())]
            }
            Self::CredentialsMissing | Self::UnparsableAccessToken | Self::SessionRevoked | Self::Unavailable(_) => {
                vec![]
            }
        };
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// The whole answer to a request with these headers: a status without a body to whoever speaks gRPC, and
    /// `google.rpc.Status` as JSON to everyone else.
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
        let Said { reason, message, code, http } = self.said();
        let info = json!({
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": reason,
            "domain": DOMAIN,
            "metadata": self.metadata(),
        });
        let mut details = vec![info];
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        // What is said is about one request and one moment.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        match self {
            // RFC 6750 §3.1: whoever has shown nothing is told nothing more.
            Self::CredentialsMissing => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::UnparsableAccessToken
            | Self::AccessTokenExpired { .. }
            | Self::WrongProject { .. }
            | Self::SessionRevoked => {
                let challenge = HeaderValue::from_static(r#"Bearer error="invalid_token""#);
                headers.insert(header::WWW_AUTHENTICATE, challenge);
            }
            Self::Unavailable(_) => {
                let seconds = RETRY_AFTER.as_secs();
                details.push(json!({
                    "@type": "type.googleapis.com/google.rpc.RetryInfo",
                    "retry_delay": format!("{seconds}s"),
                }));
                headers.insert(header::RETRY_AFTER, seconds.into());
            }
        }
        let body = json!({"code": i32::from(code), "message": message, "details": details});
        let mut response = http::Response::new(Full::from(body.to_string()));
        *response.status_mut() = http;
        *response.headers_mut() = headers;
        response
    }
}

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
        let Said { reason, message, code, .. } = refusal.said();
        let mut details = ErrorDetails::with_error_info(reason, DOMAIN, refusal.metadata());
        if let Refusal::Unavailable(_) = refusal {
            details.set_retry_info(Some(RETRY_AFTER));
        }
        Self::with_error_details(code, message, details)
    }
}
