//! Responses in plain text.

use axum::response::IntoResponse;
use axum::response::Response;
use http::StatusCode;
use http::header;

/// The database is unavailable.
pub(super) fn unavailable() -> Response {
    text(StatusCode::SERVICE_UNAVAILABLE, "the database is unavailable")
}

/// A response that must not be cached.
pub(super) fn text(status: StatusCode, text: impl IntoResponse) -> Response {
    (status, [(header::CACHE_CONTROL, "no-store")], text).into_response()
}
