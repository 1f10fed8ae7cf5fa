//! Every answer that is no. The only place that names a gRPC code for our own errors; how a code becomes an HTTP status
//! is the transcoding layer's table. Each status carries `google.rpc.ErrorInfo` (AIP-193).

use std::collections::HashMap;
use std::time::Duration;

use tonic::Code;
use tonic::Status;
use tonic_types::ErrorDetails;
use tonic_types::StatusExt as _;

use crate::app;
use crate::session::Refusal;
use crate::session::refusal::Violation;
use crate::store;
use crate::telemetry;

/// The domain of our reasons.
pub const DOMAIN: &str = "sessiond";

/// After how long a caller may try again when the database is away.
const STORE_RETRY_AFTER: Duration = Duration::from_secs(1);

/// The reasons that a method need not list, because any method can answer with them.
pub const COMMON_REASONS: [&str; 5] =
    ["SCHEMA_ERROR", "RATE_LIMITED", "STORE_UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL"];

/// The status of a refusal.
pub fn refused(refusal: Refusal) -> Status {
    let (code, reason, message) = describe(&refusal);
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, DOMAIN, metadata(&refusal));
    match refusal {
        Refusal::Schema(violations) => {
            for violation in violations {
                details.add_bad_request_violation(violation.field, violation.expected);
            }
        }
        Refusal::RateLimited { retry_after } => {
            details.set_retry_info(Some(retry_after));
        }
        _ => {}
    }
    Status::with_error_details(code, message, details)
}

/// The status of whatever went wrong. Failures are logged here, once, with all that caused them.
pub fn of(error: app::Error) -> Status {
    match &error {
        app::Error::Refused(refusal) => refused(refusal.clone()),
        app::Error::Store(failure) if matches!(**failure, store::Error::Unavailable { .. }) => {
            tracing::warn!(error = %telemetry::chain(&error), request_id = %telemetry::request_id(), "the database is unavailable");
            unavailable()
        }
        app::Error::Store(_) | app::Error::Key(_) => {
            tracing::error!(error = %telemetry::chain(&error), request_id = %telemetry::request_id(), "internal error");
            internal()
        }
    }
}

/// The database is away: try again.
pub fn unavailable() -> Status {
    let mut details = ErrorDetails::with_error_info("STORE_UNAVAILABLE", DOMAIN, HashMap::new());
    details.set_retry_info(Some(STORE_RETRY_AFTER));
    Status::with_error_details(Code::Unavailable, "The database is unavailable; try again.", details)
}

/// Our bug: the caller gets a request id to tell us, and nothing more.
pub fn internal() -> Status {
    let metadata = HashMap::from([("request_id".to_owned(), telemetry::request_id().to_string())]);
    let details = ErrorDetails::with_error_info("INTERNAL", DOMAIN, metadata);
    Status::with_error_details(Code::Internal, "Something went wrong on our side.", details)
}

/// Too much is under way.
pub fn overloaded() -> Status {
    refused(Refusal::RateLimited { retry_after: Duration::from_secs(1) })
}

/// What came is no message of the method: tonic calls that an internal error, and it is the caller's.
pub fn undecodable() -> Status {
    refused(Violation::refuse("", "must be a message of this method, in the protobuf encoding, and not too large"))
}

/// The request took too long; whether it did what was asked is not known.
pub fn late() -> Status {
    let details = ErrorDetails::with_error_info("DEADLINE_EXCEEDED", DOMAIN, HashMap::new());
    Status::with_error_details(Code::DeadlineExceeded, "The deadline passed.", details)
}

/// The table.
const fn describe(refusal: &Refusal) -> (Code, &'static str, &'static str) {
    match refusal {
        Refusal::CredentialsMissing => (Code::Unauthenticated, "CREDENTIALS_MISSING", "No credential was presented."),
        Refusal::UnparsableAccessToken => {
            (Code::Unauthenticated, "UNPARSABLE_ACCESS_TOKEN", "The access token is not one of ours.")
        }
        Refusal::AccessTokenExpired { .. } => {
            (Code::Unauthenticated, "ACCESS_TOKEN_EXPIRED", "The access token has expired.")
        }
        Refusal::WrongProject { .. } => (
            Code::Unauthenticated,
            "INVALID_PROJECT_FOR_ACCESS_TOKEN",
            "The access token is of another project than its key.",
        ),
        Refusal::SessionRevoked => (Code::Unauthenticated, "SESSION_REVOKED", "The session has ended."),
        Refusal::InvalidServerKey => (Code::Unauthenticated, "INVALID_SERVER_KEY", "The server key is not valid."),
        Refusal::RefreshTokenNotFoundOrExpired => (
            Code::Unauthenticated,
            "REFRESH_TOKEN_NOT_FOUND_OR_EXPIRED",
            "The refresh token was not found, or has expired.",
        ),
        Refusal::InsufficientAccessType => {
            (Code::PermissionDenied, "INSUFFICIENT_ACCESS_TYPE", "Another kind of caller may do this.")
        }
        Refusal::ServerKeyInBrowser => {
            (Code::PermissionDenied, "INSUFFICIENT_ACCESS_TYPE", "A server key has no business in a browser.")
        }
        Refusal::SessionNotFound => (Code::NotFound, "SESSION_NOT_FOUND", "The session was not found."),
        Refusal::Schema(_) => (Code::InvalidArgument, "SCHEMA_ERROR", "The request does not fit its schema."),
        Refusal::RateLimited { .. } => (Code::ResourceExhausted, "RATE_LIMITED", "Too many requests; try again later."),
    }
}

fn metadata(refusal: &Refusal) -> HashMap<String, String> {
    let pairs: Vec<(&str, String)> = match refusal {
        Refusal::AccessTokenExpired { expired_at, project, user, session } => vec![
            ("expired_at_millis", expired_at.as_millis().to_string()),
            ("project_id", project.to_string()),
            ("user_id", user.as_str().to_owned()),
            ("refresh_token_id", session.to_string()),
        ],
        Refusal::WrongProject { expected, actual } => {
            vec![("expected_project_id", expected.clone()), ("actual_project_id", actual.clone())]
        }
        _ => vec![],
    };
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
