//! Error responses as in RFC 6749 §5.2 and RFC 7009 §2.2.1: one table, and the translation of our own reasons.

use std::time::Duration;

use axum::Json;
use axum::response::IntoResponse;
use axum::response::Response;
use http::HeaderName;
use http::HeaderValue;
use http::StatusCode;
use http::header;
use serde_json::json;
use tonic::Status;
use tonic_types::StatusExt as _;

use crate::edge::retry_after::retry_after;
use crate::rpc::status;
use sessiond_core::reason::Reason;

/// Tokens must not be cached (RFC 6749 §5.1). HTTP/1.0 knows only the second header.
pub(super) const UNCACHED: [(HeaderName, HeaderValue); 2] = [
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (header::PRAGMA, HeaderValue::from_static("no-cache")),
];

/// How long to wait before a retry, by default.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// An error response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OAuthError {
    status: StatusCode,
    error: &'static str,
    /// For the client's developer: ASCII without quotation marks and backslashes (RFC 6749 §5.2).
    description: &'static str,
    retry_after: Option<Duration>,
}

/// Defines the table.
macro_rules! errors {
    ($($name:ident $status:ident $error:literal $description:literal,)*) => {
        impl OAuthError {
            $(pub(super) const $name: Self = Self {
                status: StatusCode::$status, error: $error, description: $description, retry_after: None,
            };)*

            #[cfg(test)]
            const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

errors! {
    NOT_POST METHOD_NOT_ALLOWED "invalid_request" "This endpoint takes POST.",
    NOT_A_FORM BAD_REQUEST "invalid_request" "The body must be a form: application/x-www-form-urlencoded.",
    CUT_OFF BAD_REQUEST "invalid_request" "The body ended early.",
    TOO_SLOW REQUEST_TIMEOUT "invalid_request" "The body took too long to arrive.",
    TOO_LARGE PAYLOAD_TOO_LARGE "invalid_request" "The body is too large.",
    REPEATED BAD_REQUEST "invalid_request" "A parameter is there more than once.",
    MISSING BAD_REQUEST "invalid_request" "A required parameter is missing.",
    MALFORMED BAD_REQUEST "invalid_request" "A parameter is malformed.",
    TWO_CLIENTS BAD_REQUEST "invalid_request" "The client names or authenticates itself in more than one way.",
    INVALID_CLIENT UNAUTHORIZED "invalid_client" "There is no such client, or its secret is not one of its server keys.",
    NO_CLIENT UNAUTHORIZED "invalid_client" "Client authentication is missing.",
    OTHER_SCHEME UNAUTHORIZED "invalid_client" "Clients authenticate with HTTP Basic, or in the body.",
    IN_A_BROWSER UNAUTHORIZED "invalid_client" "A server key has no business in a browser.",
    INVALID_GRANT BAD_REQUEST "invalid_grant" "The token was not found, or has expired.",
    NOT_YOURS BAD_REQUEST "invalid_grant" "The token was issued to another client.",
    INVALID_SCOPE BAD_REQUEST "invalid_scope" "No scope was granted, so none can be asked for.",
    UNSUPPORTED_GRANT_TYPE BAD_REQUEST "unsupported_grant_type" "The one grant type here is refresh_token.",
    UNSUPPORTED_TOKEN_TYPE BAD_REQUEST "unsupported_token_type" "Access tokens and refresh tokens can be revoked here, and server keys cannot.",
    // The RFCs name these two only for the authorization endpoint (RFC 6749 §4.1.2.1).
    TOO_MANY TOO_MANY_REQUESTS "temporarily_unavailable" "Too many requests; try again later.",
    UNAVAILABLE SERVICE_UNAVAILABLE "temporarily_unavailable" "Whether the token is still good is not known; try again.",
    SERVER_ERROR INTERNAL_SERVER_ERROR "server_error" "Something went wrong on our side.",
}

impl From<Status> for OAuthError {
    fn from(status: Status) -> Self {
        let error = match status::reason_of(&status) {
            Some(Reason::InvalidServerKey) => Self::INVALID_CLIENT,
            Some(Reason::ClientAuthenticationRequired) => Self::NO_CLIENT,
            Some(Reason::RefreshTokenNotFoundOrExpired) => Self::INVALID_GRANT,
            Some(Reason::WrongProject) => Self::NOT_YOURS,
            // Only a sign-out can get the wrong kind of credential.
            Some(Reason::InsufficientAccessType) => Self::UNSUPPORTED_TOKEN_TYPE,
            Some(Reason::Schema) => Self::MALFORMED,
            Some(Reason::RateLimited) => Self::TOO_MANY,
            Some(
                Reason::StoreUnavailable
                | Reason::FeedInterrupted
                | Reason::VerificationUnavailable
                | Reason::DeadlineExceeded,
            ) => Self::UNAVAILABLE,
            Some(
                Reason::CredentialsMissing
                | Reason::UnparsableAccessToken
                | Reason::AccessTokenExpired
                | Reason::SessionRevoked
                | Reason::AccessTokenSuperseded
                | Reason::InsufficientUserAuthentication
                | Reason::SessionNotFound
                | Reason::NotYourUser
                | Reason::CrossOriginRequest
                | Reason::AmbiguousCookie
                | Reason::CannotDeleteCurrentSession
                | Reason::SessionLimitReached
                | Reason::SubscriberTooSlow
                | Reason::TooManyEntries
                | Reason::ProjectNotFound
                | Reason::MethodNotFound
                | Reason::UnsupportedEncoding
                | Reason::Internal,
            )
            | None => Self::SERVER_ERROR,
        };
        let retry_after = status.get_details_retry_info().and_then(|info| info.retry_delay);
        Self { retry_after, ..error }
    }
}

impl IntoResponse for OAuthError {
    fn into_response(self) -> Response {
        let body = json!({"error": self.error, "error_description": self.description});
        let mut response = (self.status, UNCACHED, Json(body)).into_response();
        let headers = response.headers_mut();
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            let delay = self.retry_after.unwrap_or(RETRY_AFTER);
            headers.insert(header::RETRY_AFTER, retry_after(delay));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sessiond_core::session::Refusal;

    #[test]
    fn a_description_has_only_allowed_characters() {
        for error in OAuthError::ALL {
            let fits = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
            assert!(error.description.bytes().all(fits), "{error:?}");
        }
    }

    #[test]
    fn temporary_errors_have_retry_after() {
        let refused = |millis| status::refused(Refusal::RateLimited { retry_after: Duration::from_millis(millis) });
        for (status, http, seconds) in [
            (refused(0), 429, "1"),
            (refused(1_000), 429, "1"),
            (refused(1_001), 429, "2"),
            (status::unavailable(), 503, "1"),
            (status::late(), 503, "1"),
        ] {
            let response = OAuthError::from(status).into_response();
            assert_eq!(
                (response.status().as_u16(), &response.headers()["retry-after"]),
                (http, &HeaderValue::from_static(seconds))
            );
        }
        for status in [status::internal(), Status::unimplemented("no details")] {
            let response = OAuthError::from(status).into_response();
            assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
            assert!(!response.headers().contains_key("retry-after"));
        }
    }
}
