//! Which pages may call the API (Fetch Standard, CORS protocol). Credentials are never allowed, and a cookie counts only for a page
//! of the same origin, so an allowed origin gets only what it has a token for.

use std::time::Duration;

use http::HeaderName;
use http::HeaderValue;
use http::Method;
use tower_http::cors::AllowOrigin;
use tower_http::cors::Any;
use tower_http::cors::CorsLayer;

use super::setting::SettingError;
use super::setting::read;
use super::stack_auth;
use crate::config;

/// How long a browser may cache a preflight: a day, the longest that any browser does.
const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// The headers that the API reads, and those that tracing (W3C Trace Context) and common libraries add to a page's requests.
const REQUEST_HEADERS: [&str; 10] = [
    "authorization",
    "content-type",
    "grpc-timeout",
    "last-event-id",
    "traceparent",
    "tracestate",
    "x-grpc-web",
    "x-refresh-token",
    "x-requested-with",
    "x-user-agent",
];

/// `date` because a client's clock may be wrong, and it must know when its token expires.
const RESPONSE_HEADERS: [&str; 8] = [
    "content-type",
    "date",
    "grpc-message",
    "grpc-status",
    "grpc-status-details-bin",
    "retry-after",
    "www-authenticate",
    "x-request-id",
];

/// The layer; `None` if no origin is allowed.
pub(super) fn layer(origins: &[String], headers: &[String]) -> Result<Option<CorsLayer>, SettingError> {
    if origins.is_empty() {
        return Ok(None);
    }
    let origins = read(origins, config::origin)?;
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::from(Any)
    } else {
        AllowOrigin::list(origins.into_iter().map(|origin| HeaderValue::try_from(origin).expect("plain characters")))
    };
    let more = read(headers, config::header_name)?;
    let more = more.into_iter().map(|name| HeaderName::try_from(name).expect("the name of a header"));
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS])
        .allow_headers(named(&REQUEST_HEADERS, stack_auth::from_pages().chain(more)))
        .expose_headers(named(&RESPONSE_HEADERS, stack_auth::to_pages()))
        .max_age(MAX_AGE);
    Ok(Some(layer))
}

/// Our own headers, and others.
fn named(ours: &[&'static str], others: impl Iterator<Item = HeaderName>) -> Vec<HeaderName> {
    ours.iter().copied().map(HeaderName::from_static).chain(others).collect()
}
