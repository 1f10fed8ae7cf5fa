//! Stack Auth's errors: one table, and the translation of our own reasons. The SDKs build an error from the code and its
//! details, so each code has the details that its constructor reads.

use std::borrow::Cow;
use std::time::Duration;

use http::StatusCode;
use serde_json::Value;
use serde_json::json;
use tonic::Status;
use tonic_types::ErrorDetails;
use tonic_types::StatusExt as _;

use super::access_type::AccessType;
use crate::edge::body::BodyError;
use crate::rpc::status;
use sessiond_core::reason::Reason;

/// An error response.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct KnownError {
    kind: ErrorCode,
    error: Cow<'static, str>,
    details: Option<Value>,
    /// How long to wait before a retry.
    pub(super) retry_after: Option<Duration>,
}

/// An error code, and its HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ErrorCode {
    code: &'static str,
    status: StatusCode,
}

/// Defines the table.
macro_rules! kinds {
    ($($kind:ident $status:ident,)*) => {
        impl ErrorCode {
            $(const $kind: Self = Self { code: stringify!($kind), status: StatusCode::$status };)*
        }
    };
}

kinds! {
    ACCESS_TOKEN_EXPIRED UNAUTHORIZED,
    ACCESS_TYPE_REQUIRED BAD_REQUEST,
    ACCESS_TYPE_WITHOUT_PROJECT_ID BAD_REQUEST,
    ADMIN_AUTHENTICATION_REQUIRED UNAUTHORIZED,
    CANNOT_DELETE_CURRENT_SESSION BAD_REQUEST,
    CANNOT_GET_OWN_USER_WITHOUT_USER BAD_REQUEST,
    CURRENT_PROJECT_NOT_FOUND BAD_REQUEST,
    DEADLINE_EXCEEDED GATEWAY_TIMEOUT,
    INSUFFICIENT_ACCESS_TYPE UNAUTHORIZED,
    INSUFFICIENT_USER_AUTHENTICATION UNAUTHORIZED,
    INTERNAL INTERNAL_SERVER_ERROR,
    INVALID_ACCESS_TYPE BAD_REQUEST,
    INVALID_PROJECT_FOR_ACCESS_TOKEN UNAUTHORIZED,
    INVALID_SECRET_SERVER_KEY UNAUTHORIZED,
    INVALID_SUPER_SECRET_ADMIN_KEY UNAUTHORIZED,
    NOT_YOUR_USER FORBIDDEN,
    PROJECT_KEY_WITHOUT_ACCESS_TYPE BAD_REQUEST,
    RATE_LIMITED TOO_MANY_REQUESTS,
    REFRESH_TOKEN_NOT_FOUND_OR_EXPIRED UNAUTHORIZED,
    SCHEMA_ERROR BAD_REQUEST,
    SERVER_AUTHENTICATION_REQUIRED UNAUTHORIZED,
    SESSION_LIMIT_REACHED BAD_REQUEST,
    SESSION_NOT_FOUND NOT_FOUND,
    STORE_UNAVAILABLE SERVICE_UNAVAILABLE,
    UNPARSABLE_ACCESS_TOKEN UNAUTHORIZED,
}

impl KnownError {
    fn new(kind: ErrorCode, error: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, error: error.into(), details: None, retry_after: None }
    }

    fn with(self, details: Value) -> Self {
        Self { details: Some(details), ..self }
    }

    /// The request is invalid; the message says why.
    pub(super) fn schema(message: impl Into<Cow<'static, str>>) -> Self {
        let message = message.into();
        let details = json!({"message": message});
        Self::new(ErrorCode::SCHEMA_ERROR, message).with(details)
    }

    /// A body could not be read.
    pub(super) fn unread(unread: &BodyError) -> Self {
        let (status, message) = match unread {
            BodyError::TooSlow => (StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive"),
            BodyError::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "the body is too large"),
            BodyError::CutOff => (StatusCode::BAD_REQUEST, "the body ended early"),
        };
        let mut error = Self::schema(message);
        error.kind.status = status;
        error
    }

    /// The path has only one method, and this is another.
    pub(super) fn only_post() -> Self {
        let mut error = Self::schema("this endpoint takes POST");
        error.kind.status = StatusCode::METHOD_NOT_ALLOWED;
        error
    }

    /// The access type is missing.
    pub(super) fn access_type_required() -> Self {
        Self::new(
            ErrorCode::ACCESS_TYPE_REQUIRED,
            "The header x-stack-access-type must be 'client', 'server' or 'admin'.",
        )
    }

    /// A key is present, but the access type is missing.
    pub(super) fn key_without_access_type() -> Self {
        let error = "There is a key, and no header x-stack-access-type: it must be 'client', 'server' or 'admin'.";
        Self::new(ErrorCode::PROJECT_KEY_WITHOUT_ACCESS_TYPE, error)
    }

    /// The access type is unknown.
    pub(super) fn invalid_access_type(named: &str) -> Self {
        let error = "The header x-stack-access-type must be 'client', 'server' or 'admin'.";
        Self::new(ErrorCode::INVALID_ACCESS_TYPE, error).with(json!({"accessType": named}))
    }

    /// The project is missing.
    pub(super) fn access_type_without_project(access_type: AccessType) -> Self {
        let error = "There is a header x-stack-access-type, and no x-stack-project-id.";
        Self::new(ErrorCode::ACCESS_TYPE_WITHOUT_PROJECT_ID, error).with(json!({"request_type": access_type.name()}))
    }

    /// The project is unknown, or its name is malformed.
    pub(super) fn no_such_project(named: &str) -> Self {
        let error = "There is no such project as x-stack-project-id says.";
        Self::new(ErrorCode::CURRENT_PROJECT_NOT_FOUND, error).with(json!({"project_id": named}))
    }

    /// The service's key is missing.
    pub(super) fn key_required(access_type: AccessType) -> Self {
        match access_type {
            AccessType::Client | AccessType::Server => {
                Self::new(ErrorCode::SERVER_AUTHENTICATION_REQUIRED, "The secret server key must be provided.")
            }
            AccessType::Admin => {
                Self::new(ErrorCode::ADMIN_AUTHENTICATION_REQUIRED, "The super secret admin key must be provided.")
            }
        }
    }

    /// The key is not one of the project's.
    pub(super) fn invalid_key(access_type: AccessType, project: &str) -> Self {
        let kind = match access_type {
            AccessType::Client | AccessType::Server => ErrorCode::INVALID_SECRET_SERVER_KEY,
            AccessType::Admin => ErrorCode::INVALID_SUPER_SECRET_ADMIN_KEY,
        };
        Self::new(kind, "The key is not valid for this project.").with(json!({"project_id": project}))
    }

    /// A key came from a browser, where it is public. The only use of this code that is not a 401.
    pub(super) fn key_in_browser() -> Self {
        let mut error = Self::insufficient(AccessType::Server, &[AccessType::Client]);
        error.kind.status = StatusCode::FORBIDDEN;
        error.error = "A server key has no business in a browser.".into();
        error
    }

    /// The operation is for other kinds of callers.
    pub(super) fn insufficient(actual: AccessType, allowed: &[AccessType]) -> Self {
        let allowed: Vec<&str> = allowed.iter().copied().map(AccessType::name).collect();
        let details = json!({"actual_access_type": actual.name(), "allowed_access_types": allowed});
        Self::new(ErrorCode::INSUFFICIENT_ACCESS_TYPE, "Another kind of caller may do this.").with(details)
    }

    /// The user is `me`, but no user is signed in.
    pub(super) fn nobody_is_me() -> Self {
        Self::new(ErrorCode::CANNOT_GET_OWN_USER_WITHOUT_USER, "The user is 'me', and there is no access token of one.")
    }

    /// Translates one of our own refusals, for a caller of this access type and project.
    pub(super) fn of(status: &Status, access_type: AccessType, project: &str) -> Self {
        let details = status.get_error_details();
        let with_message = |kind| Self::new(kind, status.message().to_owned());
        let error = match status::reason_of(status) {
            // The SDK refreshes and retries. For an ended session the refresh fails, and the SDK signs out.
            Some(
                Reason::CredentialsMissing
                | Reason::AccessTokenExpired
                | Reason::AccessTokenSuperseded
                | Reason::SessionRevoked,
            ) => with_message(ErrorCode::ACCESS_TOKEN_EXPIRED).with(expiry(&details)),
            Some(Reason::UnparsableAccessToken) => with_message(ErrorCode::UNPARSABLE_ACCESS_TOKEN),
            Some(Reason::WrongProject) => {
                with_message(ErrorCode::INVALID_PROJECT_FOR_ACCESS_TOKEN).with(projects(&details))
            }
            Some(Reason::InvalidServerKey) => Self::invalid_key(access_type, project),
            Some(Reason::RefreshTokenNotFoundOrExpired) => Self::no_refresh_token(),
            Some(Reason::ClientAuthenticationRequired) => Self::key_required(AccessType::Server),
            Some(Reason::InsufficientUserAuthentication) => with_message(ErrorCode::INSUFFICIENT_USER_AUTHENTICATION),
            Some(Reason::InsufficientAccessType) => {
                Self::insufficient(access_type, &[AccessType::Server, AccessType::Admin])
            }
            Some(Reason::NotYourUser) => with_message(ErrorCode::NOT_YOUR_USER),
            Some(Reason::SessionNotFound) => with_message(ErrorCode::SESSION_NOT_FOUND),
            Some(Reason::CannotDeleteCurrentSession) => with_message(ErrorCode::CANNOT_DELETE_CURRENT_SESSION),
            Some(Reason::SessionLimitReached) => with_message(ErrorCode::SESSION_LIMIT_REACHED),
            Some(Reason::ProjectNotFound) => Self::no_such_project(project),
            Some(Reason::Schema) => Self::schema(violations(&details)),
            Some(Reason::RateLimited) => with_message(ErrorCode::RATE_LIMITED),
            Some(Reason::StoreUnavailable | Reason::FeedInterrupted | Reason::VerificationUnavailable) => {
                with_message(ErrorCode::STORE_UNAVAILABLE)
            }
            Some(Reason::DeadlineExceeded) => with_message(ErrorCode::DEADLINE_EXCEEDED),
            Some(
                Reason::CrossOriginRequest
                | Reason::AmbiguousCookie
                | Reason::SubscriberTooSlow
                | Reason::TooManyEntries
                | Reason::MethodNotFound
                | Reason::UnsupportedEncoding
                | Reason::Internal,
            )
            | None => Self::new(ErrorCode::INTERNAL, Reason::Internal.message()),
        };
        let retry_after = details.retry_info().and_then(|info| info.retry_delay);
        Self { retry_after, ..error }
    }

    /// The refresh token does not work, for any reason. The SDK then treats the user as signed out.
    pub(super) fn no_refresh_token() -> Self {
        let reason = Reason::RefreshTokenNotFoundOrExpired;
        Self::new(ErrorCode::REFRESH_TOKEN_NOT_FOUND_OR_EXPIRED, reason.message())
    }

    /// Its HTTP status.
    pub(super) const fn status(&self) -> StatusCode {
        self.kind.status
    }

    /// The code for the header, equal to the body's. `None` for errors that the SDKs recognize by their status: they retry after a
    /// 429 unless a header says that the error is a known one.
    pub(super) fn code(&self) -> Option<&'static str> {
        let is_known_by_status = self.kind == ErrorCode::RATE_LIMITED || self.kind.status.is_server_error();
        (!is_known_by_status).then_some(self.kind.code)
    }

    /// The body.
    pub(super) fn body(self) -> Value {
        let mut body = json!({"code": self.kind.code, "error": self.error});
        if let Some(details) = self.details {
            body["details"] = details;
        }
        body
    }
}

/// When an access token expired, and whose it was; nulls if unknown.
fn expiry(details: &ErrorDetails) -> Value {
    let metadata = |name| details.error_info().and_then(|info| info.metadata.get(name));
    let millis: Option<i64> = metadata("expired_at_millis").and_then(|millis| millis.parse().ok());
    json!({
        "expired_at_millis": millis,
        "project_id": metadata("project_id"),
        "user_id": metadata("user_id"),
        "refresh_token_id": metadata("refresh_token_id"),
    })
}

fn projects(details: &ErrorDetails) -> Value {
    let metadata = |name| details.error_info().and_then(|info| info.metadata.get(name));
    json!({"expected_project_id": metadata("expected_project_id"), "actual_project_id": metadata("actual_project_id")})
}

/// The violations of all fields, in one line.
fn violations(details: &ErrorDetails) -> String {
    let violations = details.bad_request().map(|bad| bad.field_violations.as_slice()).unwrap_or_default();
    let violations: Vec<String> =
        violations.iter().map(|violation| format!("{} {}", violation.field, violation.description)).collect();
    if violations.is_empty() { Reason::Schema.message().to_owned() } else { violations.join("; ") }
}
