//! Which pages may call (Fetch Standard, CORS protocol). No cookie is ever read, so an origin that is let in gets nothing
//! that it has no token for.

use std::time::Duration;

use http::HeaderName;
use http::HeaderValue;
use http::Method;
use tower_http::cors::AllowOrigin;
use tower_http::cors::Any;
use tower_http::cors::CorsLayer;

use super::seed;

/// How long a browser may remember a preflight: a day, which is as long as any of them does.
const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);

const REQUEST_HEADERS: [&str; 7] =
    ["authorization", "content-type", "grpc-timeout", "x-grpc-web", "x-refresh-token", "x-user-agent", "last-event-id"];

const RESPONSE_HEADERS: [&str; 7] = [
    "content-type",
    "grpc-message",
    "grpc-status",
    "grpc-status-details-bin",
    "retry-after",
    "www-authenticate",
    "x-request-id",
];

/// An origin in the configuration is not one.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not an origin: write scheme and host, as in https://app.example.org")]
pub struct OriginError(String);

/// The layer; `None` when no origin is let in.
pub(super) fn layer(origins: &[String]) -> Result<Option<CorsLayer>, OriginError> {
    if origins.is_empty() {
        return Ok(None);
    }
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::from(Any)
    } else {
        AllowOrigin::list(origins.iter().map(|origin| parse(origin)).collect::<Result<Vec<_>, _>>()?)
    };
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS])
        .allow_headers(named(&REQUEST_HEADERS, seed::from_pages()))
        .expose_headers(named(&RESPONSE_HEADERS, seed::to_pages()))
        .max_age(MAX_AGE);
    Ok(Some(layer))
}

/// Our own headers, and the seed's.
fn named(ours: &[&'static str], seeds: impl Iterator<Item = HeaderName>) -> Vec<HeaderName> {
    ours.iter().copied().map(HeaderName::from_static).chain(seeds).collect()
}

/// Reads an origin (RFC 6454 §6.2): a scheme, a host, perhaps a port, and nothing behind it.
fn parse(text: &str) -> Result<HeaderValue, OriginError> {
    let refused = || OriginError(text.to_owned());
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).ok_or_else(refused)?;
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-:[]".contains(&byte);
    if host.is_empty() || !host.bytes().all(plain) {
        return Err(refused());
    }
    HeaderValue::from_str(text).map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_origin_is_an_origin() {
        for good in ["https://app.example.org", "http://localhost:3000", "http://[::1]:8080"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in ["app.example.org", "https://", "https://app.example.org/", "https://App.example.org", "null", ""] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
