//! The reasons of error responses on the wire: one table for the server and the guard. Also renders a status as JSON.

use std::collections::HashMap;
use std::fmt;

use serde_json::Value;
use serde_json::json;
use tonic::Code;
use tonic::Status;
use tonic_types::ErrorDetails;
use tonic_types::StatusExt as _;

use crate::clock::Timestamp;
use crate::id::ProjectId;
use crate::id::SessionId;
use crate::id::UserId;
use crate::session::CertificateProblem;
use crate::session::Refusal;
use crate::session::policy::StepUp;

/// The `ErrorInfo.domain` of every reason.
pub const DOMAIN: &str = "sessiond";

/// Defines the reasons: each with its name on the wire, its gRPC code, and its message.
macro_rules! reasons {
    ($($reason:ident $name:literal $code:ident $message:literal,)*) => {
        /// Why a request is refused or has failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "the table has the message of each")]
        pub enum Reason {
            $($reason,)*
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$reason,)*];

            /// `ErrorInfo.reason`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$reason => $name,)*
                }
            }

            /// The gRPC code.
            pub const fn code(self) -> Code {
                match self {
                    $(Self::$reason => Code::$code,)*
                }
            }

            /// The default message of the status.
            pub const fn message(self) -> &'static str {
                match self {
                    $(Self::$reason => $message,)*
                }
            }
        }
    };
}

// The OpenAPI document publishes this table.
reasons! {
    CredentialsMissing "CREDENTIALS_MISSING" Unauthenticated "No credential was presented.",
    UnparsableAccessToken "UNPARSABLE_ACCESS_TOKEN" Unauthenticated "The access token is not one of ours.",
    AccessTokenExpired "ACCESS_TOKEN_EXPIRED" Unauthenticated "The access token has expired.",
    WrongProject "INVALID_PROJECT_FOR_ACCESS_TOKEN" Unauthenticated "The access token is of another project.",
    SessionRevoked "SESSION_REVOKED" Unauthenticated "The session has ended.",
    AccessTokenSuperseded "ACCESS_TOKEN_SUPERSEDED" Unauthenticated "The access token has outdated claims; refresh it.",
    InvalidServerKey "INVALID_SERVER_KEY" Unauthenticated "The server key is not valid.",
    RefreshTokenNotFoundOrExpired "REFRESH_TOKEN_NOT_FOUND_OR_EXPIRED" Unauthenticated
        "The refresh token was not found, or has expired.",
    ClientAuthenticationRequired "CLIENT_AUTHENTICATION_REQUIRED" Unauthenticated
        "The project takes refresh tokens only from clients that authenticate.",
    InsufficientUserAuthentication "INSUFFICIENT_USER_AUTHENTICATION" Unauthenticated
        "A more recent or a stronger authentication is required.",
    InsufficientAccessType "INSUFFICIENT_ACCESS_TYPE" PermissionDenied "Another kind of caller may do this.",
    CrossOriginRequest "CROSS_ORIGIN_REQUEST" PermissionDenied "A request with a cookie must come from the same origin.",
    AmbiguousCookie "AMBIGUOUS_COOKIE" PermissionDenied "There are several cookies where one is expected.",
    NotYourUser "NOT_YOUR_USER" PermissionDenied "A user may ask about their own sessions only.",
    SessionNotFound "SESSION_NOT_FOUND" NotFound "The session was not found.",
    CannotDeleteCurrentSession "CANNOT_DELETE_CURRENT_SESSION" FailedPrecondition
        "This is the current session: sign out of it instead.",
    SessionLimitReached "SESSION_LIMIT_REACHED" FailedPrecondition "The user has as many sessions as the project allows.",
    ProjectNotFound "PROJECT_NOT_FOUND" NotFound "There is no such project, or none was named.",
    Schema "SCHEMA_ERROR" InvalidArgument "The request does not fit its schema.",
    RateLimited "RATE_LIMITED" ResourceExhausted "Too many requests; try again later.",
    FeedInterrupted "FEED_INTERRUPTED" Unavailable "The feed was interrupted; resume from the last cursor.",
    TooManyEntries "TOO_MANY_ENTRIES" FailedPrecondition
        "The project has more revocations than the subscriber can hold.",
    SubscriberTooSlow "SUBSCRIBER_TOO_SLOW" Aborted "The subscriber fell behind; resume from the last cursor.",
    VerificationUnavailable "VERIFICATION_UNAVAILABLE" Unavailable
        "Whether the session has ended is not known at the moment; try again.",
    StoreUnavailable "STORE_UNAVAILABLE" Unavailable "The database is unavailable; try again.",
    DeadlineExceeded "DEADLINE_EXCEEDED" DeadlineExceeded "The deadline passed.",
    MethodNotFound "METHOD_NOT_FOUND" Unimplemented "There is no such gRPC method.",
    UnsupportedEncoding "UNSUPPORTED_ENCODING" Unimplemented "Messages can be compressed with gzip, or not at all.",
    Internal "INTERNAL" Internal "Something went wrong on our side.",
}

impl Reason {
    /// The status details: an `ErrorInfo` with this metadata.
    pub fn details(self, metadata: HashMap<String, String>) -> ErrorDetails {
        ErrorDetails::with_error_info(self.name(), DOMAIN, metadata)
    }
}

/// The metadata of [`Reason::AccessTokenExpired`].
pub fn expired_token(
    expired_at: Timestamp,
    project: &ProjectId,
    user: &UserId,
    session: SessionId,
) -> HashMap<String, String> {
    HashMap::from([
        ("expired_at_millis".to_owned(), expired_at.as_millis().to_string()),
        ("project_id".to_owned(), project.to_string()),
        ("user_id".to_owned(), user.as_str().to_owned()),
        ("refresh_token_id".to_owned(), session.to_string()),
    ])
}

/// The metadata of [`Reason::WrongProject`].
pub fn projects(expected: &str, actual: &str) -> HashMap<String, String> {
    HashMap::from([
        ("expected_project_id".to_owned(), expected.to_owned()),
        ("actual_project_id".to_owned(), actual.to_owned()),
    ])
}

/// The metadata of [`Reason::InsufficientUserAuthentication`]: the requirement, under the parameter names of RFC 9470 §3.
pub fn step_up(required: &StepUp) -> HashMap<String, String> {
    step_up_parameters(required).map(|(name, value)| (name.to_owned(), value)).collect()
}

fn step_up_parameters(StepUp { auth_age, acr }: &StepUp) -> impl Iterator<Item = (&'static str, String)> {
    let acr_values = (!acr.is_empty()).then(|| ("acr_values", acr.join(" ")));
    let max_age = auth_age.map(|age| ("max_age", age.as_secs().to_string()));
    acr_values.into_iter().chain(max_age)
}

/// `WWW-Authenticate` of a request that does not meet a requirement (RFC 9470 §3).
pub fn step_up_challenge(required: &StepUp) -> String {
    let message = Reason::InsufficientUserAuthentication.message();
    let start = format!(r#"Bearer error="insufficient_user_authentication", error_description="{message}""#);
    step_up_parameters(required).fold(start, |challenge, (name, value)| format!(r#"{challenge}, {name}="{value}""#))
}

/// Renders a status as `google.rpc.Status` in ProtoJSON, with at most `ErrorInfo`, `RetryInfo` and `BadRequest` as details.
pub fn json(status: &Status) -> Value {
    let details = status.get_error_details();
    let info = details.error_info().map(|info| {
        json!({
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": info.reason,
            "domain": info.domain,
            "metadata": info.metadata,
        })
    });
    let retry_delay = details.retry_info().and_then(|info| info.retry_delay);
    let retry = retry_delay.map(|delay| {
        json!({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retry_delay": format!("{}s", delay.as_secs_f64())})
    });
    let violations = details.bad_request().into_iter().flat_map(|invalid| &invalid.field_violations);
    let violations: Vec<Value> =
        violations.map(|one| json!({"field": one.field, "description": one.description})).collect();
    let invalid = (!violations.is_empty())
        .then(|| json!({"@type": "type.googleapis.com/google.rpc.BadRequest", "field_violations": violations}));
    let details: Vec<Value> = info.into_iter().chain(retry).chain(invalid).collect();
    json!({"code": status.code() as i32, "message": status.message(), "details": details})
}

impl Refusal {
    /// The reason on the wire.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::CredentialsMissing => Reason::CredentialsMissing,
            Self::UnparsableAccessToken => Reason::UnparsableAccessToken,
            Self::AccessTokenExpired { .. } => Reason::AccessTokenExpired,
            Self::WrongProject { .. } => Reason::WrongProject,
            Self::SessionRevoked => Reason::SessionRevoked,
            Self::AccessTokenSuperseded => Reason::AccessTokenSuperseded,
            Self::InvalidServerKey | Self::CertificateRefused(_) => Reason::InvalidServerKey,
            Self::RefreshTokenNotFoundOrExpired => Reason::RefreshTokenNotFoundOrExpired,
            Self::ClientAuthenticationRequired => Reason::ClientAuthenticationRequired,
            Self::InsufficientUserAuthentication(_) => Reason::InsufficientUserAuthentication,
            Self::InsufficientAccessType
            | Self::InsufficientServerKey(_)
            | Self::ImpersonationNotGranted
            | Self::ServerKeyInBrowser => Reason::InsufficientAccessType,
            Self::CrossOriginRequest => Reason::CrossOriginRequest,
            Self::AmbiguousCookie => Reason::AmbiguousCookie,
            Self::NotYourUser => Reason::NotYourUser,
            Self::SessionNotFound => Reason::SessionNotFound,
            Self::CannotDeleteCurrentSession => Reason::CannotDeleteCurrentSession,
            Self::SessionLimitReached => Reason::SessionLimitReached,
            Self::ProjectNotFound => Reason::ProjectNotFound,
            Self::TooManyEntries { .. } => Reason::TooManyEntries,
            Self::Schema(_) => Reason::Schema,
            Self::RateLimited { .. } => Reason::RateLimited,
        }
    }

    /// The message of the status: the reason's, unless a more specific one exists.
    pub const fn message(&self) -> &'static str {
        match self {
            Self::ServerKeyInBrowser => "A server key has no business in a browser.",
            Self::InsufficientServerKey(_) => "The role of the server key does not allow this.",
            Self::ImpersonationNotGranted => "The server key may not open impersonations.",
            Self::CertificateRefused(CertificateProblem::Unknown) => {
                "No name in the client certificate stands for a project; `sessiond client-certificate add` adds one."
            }
            Self::CertificateRefused(CertificateProblem::Ambiguous) => {
                "The names in the client certificate stand for different projects or roles."
            }
            Self::CertificateRefused(CertificateProblem::Expired) => "The client certificate has expired.",
            _ => self.reason().message(),
        }
    }
}

/// The reason's name and the message.
impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.reason().name(), self.message())
    }
}
