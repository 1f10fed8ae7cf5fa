//! Renders a status as an HTTP response, for requests that are not calls of the API. Same format as the transcoding layer's.

use axum::Json;
use axum::response::IntoResponse as _;
use axum::response::Response;
use http::header;
use tonic::Status;
use tonic_rest_layer::Code;
use tonic_types::StatusExt as _;

use super::retry_after::retry_after;
use sessiond_core::reason;

/// The status as JSON, with the HTTP status of its code, and `Retry-After` if it has a retry delay.
pub(super) fn answer(status: &Status) -> Response {
    let code = Code::from_number(status.code() as i32).http_status();
    let mut response = (code, Json(reason::json(status))).into_response();
    if let Some(delay) = status.get_details_retry_info().and_then(|info| info.retry_delay) {
        response.headers_mut().insert(header::RETRY_AFTER, retry_after(delay));
    }
    response
}
