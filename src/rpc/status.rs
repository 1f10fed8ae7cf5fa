//! Every answer that is no. The only place that names a gRPC code for our own errors; how a code becomes an HTTP status
//! is the transcoding layer's table. Each status carries `google.rpc.ErrorInfo` (AIP-193).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::LazyLock;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;
use tonic::Code;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tonic_types::ErrorDetails;
use tonic_types::StatusExt as _;

use crate::app;
use crate::feed::SubscriptionEnd;
use crate::session::Refusal;
use crate::session::origin::network;
use crate::session::policy::StepUp;
use crate::session::refusal::Violation;
use crate::store;
use crate::telemetry;
use crate::telemetry::Metrics;
use crate::telemetry::Seldom;

/// The domain of our reasons.
pub const DOMAIN: &str = "sessiond";

/// After how long a caller may try again when the database is away.
const STORE_RETRY_AFTER: Duration = Duration::from_secs(1);

/// The reasons that a method need not list, because any method can answer with them.
pub const COMMON_REASONS: [Reason; 5] =
    [Reason::Schema, Reason::RateLimited, Reason::StoreUnavailable, Reason::DeadlineExceeded, Reason::Internal];

/// After how long to try to follow again.
const FEED_RETRY_AFTER: Duration = Duration::from_millis(100);

/// Makes the table of reasons: each with its name on the wire, its code, and what it says.
macro_rules! reasons {
    ($($reason:ident $name:literal $code:ident $message:literal,)*) => {
        /// Why an answer is no, in the wire's words.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "the table says what each means")]
        pub enum Reason {
            $($reason,)*
        }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &[Self] = &[$(Self::$reason,)*];

            /// `ErrorInfo.reason`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$reason => $name,)*
                }
            }

            /// The code of the status.
            pub const fn code(self) -> Code {
                match self {
                    $(Self::$reason => Code::$code,)*
                }
            }

            /// The message of the status, where there is nothing better to say.
            pub const fn message(self) -> &'static str {
                match self {
                    $(Self::$reason => $message,)*
                }
            }
        }
    };
}

// The table. The API's description prints it too.
reasons! {
    CredentialsMissing "CREDENTIALS_MISSING" Unauthenticated "No credential was presented.",
    UnparsableAccessToken "UNPARSABLE_ACCESS_TOKEN" Unauthenticated "The access token is not one of ours.",
    AccessTokenExpired "ACCESS_TOKEN_EXPIRED" Unauthenticated "The access token has expired.",
    WrongProject "INVALID_PROJECT_FOR_ACCESS_TOKEN" Unauthenticated "The access token is of another project.",
    SessionRevoked "SESSION_REVOKED" Unauthenticated "The session has ended.",
    InvalidServerKey "INVALID_SERVER_KEY" Unauthenticated "The server key is not valid.",
    RefreshTokenNotFoundOrExpired "REFRESH_TOKEN_NOT_FOUND_OR_EXPIRED" Unauthenticated
        "The refresh token was not found, or has expired.",
    ClientAuthenticationRequired "CLIENT_AUTHENTICATION_REQUIRED" Unauthenticated
        "The project takes refresh tokens only from clients that authenticate.",
    InsufficientUserAuthentication "INSUFFICIENT_USER_AUTHENTICATION" Unauthenticated
        "A more recent or a stronger authentication is required.",
    InsufficientAccessType "INSUFFICIENT_ACCESS_TYPE" PermissionDenied "Another kind of caller may do this.",
    NotYourUser "NOT_YOUR_USER" PermissionDenied "A user may ask about their own sessions only.",
    SessionNotFound "SESSION_NOT_FOUND" NotFound "The session was not found.",
    CannotDeleteCurrentSession "CANNOT_DELETE_CURRENT_SESSION" FailedPrecondition
        "This is the current session: sign out of it instead.",
    SessionLimitReached "SESSION_LIMIT_REACHED" FailedPrecondition "The user has as many sessions as the project allows.",
    ProjectNotFound "PROJECT_NOT_FOUND" NotFound "There is no such project, or none was named.",
    Schema "SCHEMA_ERROR" InvalidArgument "The request does not fit its schema.",
    RateLimited "RATE_LIMITED" ResourceExhausted "Too many requests; try again later.",
    FeedInterrupted "FEED_INTERRUPTED" Unavailable "The feed was interrupted; resume from the last cursor.",
    SubscriberTooSlow "SUBSCRIBER_TOO_SLOW" Aborted "The subscriber fell behind; resume from the last cursor.",
    StoreUnavailable "STORE_UNAVAILABLE" Unavailable "The database is unavailable; try again.",
    DeadlineExceeded "DEADLINE_EXCEEDED" DeadlineExceeded "The deadline passed.",
    MethodNotFound "METHOD_NOT_FOUND" Unimplemented "There is no such gRPC method.",
    UnsupportedEncoding "UNSUPPORTED_ENCODING" Unimplemented "Messages can be compressed with gzip, or not at all.",
    Internal "INTERNAL" Internal "Something went wrong on our side.",
}

/// The status of a refusal.
pub fn refused(refusal: Refusal) -> Status {
    let reason = reason(&refusal);
    let message = match refusal {
        Refusal::ServerKeyInBrowser => "A server key has no business in a browser.",
        _ => reason.message(),
    };
    let mut details = info(reason, metadata(&refusal));
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
    with_challenge(reason, message, details)
}

/// The reason that one of our own statuses gives; `None` for any other.
pub fn reason_of(status: &Status) -> Option<Reason> {
    let info = status.get_details_error_info()?;
    Reason::ALL.iter().copied().find(|reason| reason.name() == info.reason)
}

/// Counts a refusal, and now and then logs one that shows somebody guessing, forging or flooding: with the network, for a
/// whole address does not belong in a log.
pub fn note(metrics: &Metrics, reason: Reason, ip: Option<IpAddr>) {
    metrics.refusal(reason.name());
    let is_suspicious = matches!(
        reason,
        Reason::InvalidServerKey | Reason::UnparsableAccessToken | Reason::WrongProject | Reason::RateLimited
    );
    if is_suspicious && let Some(unsaid) = metrics.admits_refusal_line(reason.name()) {
        let network = ip.map(|ip| network(ip).to_string()).unwrap_or_default();
        let (reason, request_id) = (reason.name(), telemetry::request_id());
        tracing::warn!(reason, network, unsaid, %request_id, "request refused; more of this kind are only counted for 10 s");
    }
}

/// When the log last said that the database is unavailable.
static OUTAGE_SAID: LazyLock<Seldom> = LazyLock::new(Seldom::default);

/// The status of whatever went wrong. Failures are logged here, once, with all that caused them.
pub fn of(error: app::Error) -> Status {
    match &error {
        app::Error::Refused(refusal) => refused(refusal.clone()),
        app::Error::Store(failure) if matches!(**failure, store::Error::Unavailable { .. }) => {
            // Once an outage, not once a request: thousands of lines a second would be an outage of their own.
            if let Some(unsaid) = OUTAGE_SAID.admit() {
                let (error, request_id) = (telemetry::chain(&error), telemetry::request_id());
                tracing::warn!(error, unsaid, %request_id, "the database is unavailable; said again after 10 s");
            }
            unavailable()
        }
        app::Error::FeedInterrupted => interrupted(),
        app::Error::Store(_) | app::Error::Key(_) => {
            tracing::error!(error = %telemetry::chain(&error), request_id = %telemetry::request_id(), "internal error");
            internal()
        }
    }
}

/// The database is away: try again.
pub fn unavailable() -> Status {
    let mut details = info(Reason::StoreUnavailable, HashMap::new());
    details.set_retry_info(Some(STORE_RETRY_AFTER));
    of_reason(Reason::StoreUnavailable, details)
}

/// Nothing more to hear here: try again, here or elsewhere.
fn interrupted() -> Status {
    let mut details = info(Reason::FeedInterrupted, HashMap::new());
    details.set_retry_info(Some(FEED_RETRY_AFTER));
    of_reason(Reason::FeedInterrupted, details)
}

/// Why a stream of revocations has ended.
pub(super) fn ended(end: SubscriptionEnd) -> Status {
    match end {
        SubscriptionEnd::TooSlow { cursor } => {
            let metadata = cursor.map(|cursor| ("cursor".to_owned(), cursor)).into_iter().collect();
            of_reason(Reason::SubscriberTooSlow, info(Reason::SubscriberTooSlow, metadata))
        }
        SubscriptionEnd::Interrupted => interrupted(),
        SubscriptionEnd::SessionEnded => refused(Refusal::SessionRevoked),
        SubscriptionEnd::TokenExpired => {
            of_reason(Reason::AccessTokenExpired, info(Reason::AccessTokenExpired, HashMap::new()))
        }
        SubscriptionEnd::KeyRevoked => refused(Refusal::InvalidServerKey),
    }
}

/// Our bug: the caller gets a request id to tell us, and nothing more.
pub fn internal() -> Status {
    let metadata = HashMap::from([("request_id".to_owned(), telemetry::request_id().to_string())]);
    of_reason(Reason::Internal, info(Reason::Internal, metadata))
}

/// Too much is under way.
pub fn overloaded() -> Status {
    refused(Refusal::RateLimited { retry_after: Duration::from_secs(1) })
}

/// What came is no message of the method: tonic calls that an internal error, and it is the caller's.
pub fn undecodable() -> Status {
    refused(Violation::refuse("", "must be a message of this method, in the protobuf encoding, and not too large"))
}

/// A gRPC method or service that there is not.
pub fn unknown_method() -> Status {
    of_reason(Reason::MethodNotFound, info(Reason::MethodNotFound, HashMap::new()))
}

/// A message that is compressed in a way that is not known here.
pub fn unknown_encoding() -> Status {
    of_reason(Reason::UnsupportedEncoding, info(Reason::UnsupportedEncoding, HashMap::new()))
}

/// The request took too long; whether it did what was asked is not known.
pub fn late() -> Status {
    of_reason(Reason::DeadlineExceeded, info(Reason::DeadlineExceeded, HashMap::new()))
}

/// A status as REST prints it: `google.rpc.Status` in ProtoJSON, with as many details as ours outside of the API's own
/// methods have.
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
    let details: Vec<Value> = info.into_iter().chain(retry).collect();
    json!({"code": status.code() as i32, "message": status.message(), "details": details})
}

/// The same for an answer of the edge's own, whose reasons are the transcoding layer's.
pub fn json_of_layer(code: Code, reason: &'static str, message: &str) -> Value {
    json(&Status::with_error_details(code, message, ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new())))
}

fn info(reason: Reason, metadata: HashMap<String, String>) -> ErrorDetails {
    ErrorDetails::with_error_info(reason.name(), DOMAIN, metadata)
}

fn of_reason(reason: Reason, details: ErrorDetails) -> Status {
    with_challenge(reason, reason.message(), details)
}

/// The status, and for a 401 the challenge that every wire can show.
fn with_challenge(reason: Reason, message: &str, details: ErrorDetails) -> Status {
    let mut metadata = MetadataMap::new();
    if let Some(challenge) = challenge(reason) {
        let challenge = challenge.try_into().expect("a test holds every message to what a challenge may have in it");
        metadata.insert("www-authenticate", challenge);
    }
    Status::with_error_details_and_metadata(reason.code(), message, details, metadata)
}

/// `WWW-Authenticate` (RFC 6750 §3): names an error where a bearer credential was shown, and none where none was. `None` for
/// what is no question of credentials.
pub fn challenge(reason: Reason) -> Option<String> {
    match reason {
        Reason::CredentialsMissing | Reason::RefreshTokenNotFoundOrExpired => Some("Bearer".to_owned()),
        reason if reason.code() == Code::Unauthenticated => {
            Some(format!(r#"Bearer error="invalid_token", error_description="{}""#, reason.message()))
        }
        _ => None,
    }
}

/// The reason of each refusal.
pub const fn reason(refusal: &Refusal) -> Reason {
    match refusal {
        Refusal::CredentialsMissing => Reason::CredentialsMissing,
        Refusal::UnparsableAccessToken => Reason::UnparsableAccessToken,
        Refusal::AccessTokenExpired { .. } => Reason::AccessTokenExpired,
        Refusal::WrongProject { .. } => Reason::WrongProject,
        Refusal::SessionRevoked => Reason::SessionRevoked,
        Refusal::InvalidServerKey => Reason::InvalidServerKey,
        Refusal::RefreshTokenNotFoundOrExpired => Reason::RefreshTokenNotFoundOrExpired,
        Refusal::ClientAuthenticationRequired => Reason::ClientAuthenticationRequired,
        Refusal::InsufficientUserAuthentication(_) => Reason::InsufficientUserAuthentication,
        Refusal::InsufficientAccessType | Refusal::ServerKeyInBrowser => Reason::InsufficientAccessType,
        Refusal::NotYourUser => Reason::NotYourUser,
        Refusal::SessionNotFound => Reason::SessionNotFound,
        Refusal::CannotDeleteCurrentSession => Reason::CannotDeleteCurrentSession,
        Refusal::SessionLimitReached => Reason::SessionLimitReached,
        Refusal::ProjectNotFound => Reason::ProjectNotFound,
        Refusal::Schema(_) => Reason::Schema,
        Refusal::RateLimited { .. } => Reason::RateLimited,
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
        // Under the names that RFC 9470 §3 gives them in a challenge.
        Refusal::InsufficientUserAuthentication(StepUp { auth_age, acr }) => {
            let max_age = auth_age.map(|age| ("max_age", age.as_secs().to_string()));
            let acr_values = (!acr.is_empty()).then(|| ("acr_values", acr.join(" ")));
            max_age.into_iter().chain(acr_values).collect()
        }
        _ => vec![],
    };
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6750 §3: a quoted string of ASCII without quotation marks and backslashes.
    #[test]
    fn a_challenge_has_only_the_characters_that_one_may_have() {
        let fits = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
        for reason in Reason::ALL {
            assert!(reason.message().bytes().all(fits), "{reason:?}");
        }
    }
}
