//! The status of every refusal and failure. The table of reasons, with the gRPC code of each, is [`sessiond_core::reason`]; how a
//! code becomes an HTTP status is the transcoding layer's table. Each status carries `google.rpc.ErrorInfo` (AIP-193).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::LazyLock;
use std::time::Duration;

use tonic::Code;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tonic_types::ErrorDetails;
use tonic_types::StatusExt as _;

use crate::app;
use crate::feed::SubscriptionEnd;
use crate::store;
use crate::telemetry;
use crate::telemetry::LogLimiter;
use crate::telemetry::Metrics;
use sessiond_core::reason;
use sessiond_core::reason::Reason;
use sessiond_core::session::Refusal;
use sessiond_core::session::origin::network;

/// How long a caller should wait before it retries if the database is unavailable.
const STORE_RETRY_AFTER: Duration = Duration::from_secs(1);

/// The reasons that a method need not list, because any method can return them.
pub const COMMON_REASONS: [Reason; 5] =
    [Reason::Schema, Reason::RateLimited, Reason::StoreUnavailable, Reason::DeadlineExceeded, Reason::Internal];

/// How long a subscriber should wait before it resumes.
const FEED_RETRY_AFTER: Duration = Duration::from_millis(100);

/// The status of a refusal.
pub fn refused(refusal: Refusal) -> Status {
    with_challenge(refusal.reason(), refusal.message(), details(&refusal), challenge(&refusal))
}

fn details(refusal: &Refusal) -> ErrorDetails {
    let reason = refusal.reason();
    match refusal {
        Refusal::AccessTokenExpired { expired_at, project, user, session } => {
            reason.details(reason::expired_token(*expired_at, project, user, *session))
        }
        Refusal::WrongProject { expected, actual } => reason.details(reason::projects(expected, actual)),
        Refusal::InsufficientUserAuthentication(required) => reason.details(reason::step_up(required)),
        Refusal::InsufficientServerKey(least) => {
            reason.details(HashMap::from([("least_role".to_owned(), (*least).to_owned())]))
        }
        Refusal::TooManyEntries { entries, entries_max } => reason.details(HashMap::from([
            ("entries".to_owned(), entries.to_string()),
            ("max_entries".to_owned(), entries_max.to_string()),
        ])),
        Refusal::Schema(violations) => {
            let mut details = reason.details(HashMap::new());
            for violation in violations {
                details.add_bad_request_violation(violation.field, violation.expected);
            }
            details
        }
        Refusal::RateLimited { retry_after } => {
            let mut details = reason.details(HashMap::new());
            details.set_retry_info(Some(*retry_after));
            details
        }
        Refusal::CredentialsMissing
        | Refusal::UnparsableAccessToken
        | Refusal::SessionRevoked
        | Refusal::AccessTokenSuperseded
        | Refusal::InvalidServerKey
        | Refusal::CertificateRefused(_)
        | Refusal::RefreshTokenNotFoundOrExpired
        | Refusal::ClientAuthenticationRequired
        | Refusal::InsufficientAccessType
        | Refusal::ImpersonationNotGranted
        | Refusal::ServerKeyInBrowser
        | Refusal::CrossOriginRequest
        | Refusal::AmbiguousCookie
        | Refusal::SessionNotFound
        | Refusal::NotYourUser
        | Refusal::CannotDeleteCurrentSession
        | Refusal::SessionLimitReached
        | Refusal::ProjectNotFound => reason.details(HashMap::new()),
    }
}

/// The reason in one of our own statuses; `None` for any other.
pub fn reason_of(status: &Status) -> Option<Reason> {
    let info = status.get_details_error_info()?;
    Reason::ALL.iter().copied().find(|reason| reason.name() == info.reason)
}

/// Counts a refusal. Logs refusals that suggest guessing, forging or flooding, at a limited rate and with the network only,
/// because a full address does not belong in a log.
pub fn note(metrics: &Metrics, reason: Reason, ip: Option<IpAddr>) {
    metrics.refusal(reason.name());
    let is_suspicious = matches!(
        reason,
        Reason::InvalidServerKey | Reason::UnparsableAccessToken | Reason::WrongProject | Reason::RateLimited
    );
    if is_suspicious && let Some(suppressed) = metrics.admits_refusal_line(reason.name()) {
        let network = ip.map(|ip| network(ip).to_string()).unwrap_or_default();
        let (reason, request_id) = (reason.name(), telemetry::request_id());
        tracing::warn!(reason, network, suppressed, %request_id, "request refused (logged every 10 s at most)");
    }
}

/// Limits the log lines about the unavailable database.
static OUTAGE_LOG: LazyLock<LogLimiter> = LazyLock::new(LogLimiter::default);

/// The status of an error. Failures are logged here, once, with their whole chain of causes.
pub fn of(error: app::Error) -> Status {
    match &error {
        app::Error::Refused(refusal) => refused(refusal.clone()),
        app::Error::Store(failure) if matches!(**failure, store::Error::Unavailable { .. }) => {
            // Not once per request: thousands of lines a second would be an outage of their own.
            if let Some(suppressed) = OUTAGE_LOG.admit() {
                let (error, request_id) = (telemetry::chain(&error), telemetry::request_id());
                tracing::warn!(error, suppressed, %request_id, "the database is unavailable (logged every 10 s at most)");
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

/// The database is unavailable: retry.
pub fn unavailable() -> Status {
    let mut details = Reason::StoreUnavailable.details(HashMap::new());
    details.set_retry_info(Some(STORE_RETRY_AFTER));
    of_reason(Reason::StoreUnavailable, details)
}

/// The feed was interrupted: resume, here or at another replica.
fn interrupted() -> Status {
    let mut details = Reason::FeedInterrupted.details(HashMap::new());
    details.set_retry_info(Some(FEED_RETRY_AFTER));
    of_reason(Reason::FeedInterrupted, details)
}

/// The status that ends a stream of revocations.
pub(super) fn ended(end: SubscriptionEnd) -> Status {
    match end {
        SubscriptionEnd::TooSlow { cursor } => {
            let metadata = cursor.map(|cursor| ("cursor".to_owned(), cursor)).into_iter().collect();
            of_reason(Reason::SubscriberTooSlow, Reason::SubscriberTooSlow.details(metadata))
        }
        SubscriptionEnd::Interrupted => interrupted(),
        SubscriptionEnd::SessionEnded => refused(Refusal::SessionRevoked),
        SubscriptionEnd::TokenExpired => {
            of_reason(Reason::AccessTokenExpired, Reason::AccessTokenExpired.details(HashMap::new()))
        }
        SubscriptionEnd::KeyRevoked => refused(Refusal::InvalidServerKey),
    }
}

/// An internal error: the caller gets only a request id to report.
pub fn internal() -> Status {
    let metadata = HashMap::from([("request_id".to_owned(), telemetry::request_id().to_string())]);
    of_reason(Reason::Internal, Reason::Internal.details(metadata))
}

/// Too many requests are in progress.
pub fn overloaded() -> Status {
    refused(Refusal::RateLimited { retry_after: Duration::from_secs(1) })
}

/// The body is not a message of the method. tonic reports an internal error, but the caller is at fault.
pub fn undecodable() -> Status {
    refused(Refusal::invalid("", "must be a message of this method, in the protobuf encoding, and not too large"))
}

/// The gRPC method or service is unknown.
pub fn unknown_method() -> Status {
    of_reason(Reason::MethodNotFound, Reason::MethodNotFound.details(HashMap::new()))
}

/// The message is compressed with an unsupported encoding.
pub fn unknown_encoding() -> Status {
    of_reason(Reason::UnsupportedEncoding, Reason::UnsupportedEncoding.details(HashMap::new()))
}

/// The request took too long; whether it was carried out is unknown.
pub fn late() -> Status {
    of_reason(Reason::DeadlineExceeded, Reason::DeadlineExceeded.details(HashMap::new()))
}

fn of_reason(reason: Reason, details: ErrorDetails) -> Status {
    with_challenge(reason, reason.message(), details, challenge_of(reason))
}

/// A status, with a challenge if it is a 401.
fn with_challenge(reason: Reason, message: &str, details: ErrorDetails, challenge: Option<String>) -> Status {
    let mut metadata = MetadataMap::new();
    if let Some(challenge) = challenge {
        let challenge = challenge.try_into().expect("a test checks that every message fits in a challenge");
        metadata.insert("www-authenticate", challenge);
    }
    Status::with_error_details_and_metadata(reason.code(), message, details, metadata)
}

/// `WWW-Authenticate` of a refusal: that of its reason, with the requirement if the user has to authenticate again (RFC 9470 §3).
pub fn challenge(refusal: &Refusal) -> Option<String> {
    match refusal {
        Refusal::InsufficientUserAuthentication(required) => Some(reason::step_up_challenge(required)),
        _ => challenge_of(refusal.reason()),
    }
}

/// `WWW-Authenticate` (RFC 6750 §3): names an error only if a bearer credential was presented. `None` unless the reason
/// concerns credentials.
fn challenge_of(reason: Reason) -> Option<String> {
    if reason.code() != Code::Unauthenticated {
        return None;
    }
    let is_without_bearer = matches!(reason, Reason::CredentialsMissing | Reason::RefreshTokenNotFoundOrExpired);
    Some(match is_without_bearer {
        true => "Bearer".to_owned(),
        false => format!(r#"Bearer error="invalid_token", error_description="{}""#, reason.message()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6750 §3: a quoted string of ASCII without quotation marks and backslashes.
    #[test]
    fn a_challenge_has_only_allowed_characters() {
        let fits = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
        for reason in Reason::ALL {
            assert!(reason.message().bytes().all(fits), "{reason:?}");
        }
    }
}
