//! Which names the server answers to: a page that gets a browser to resolve its own name to this address (DNS rebinding)
//! must not reach it.

use std::sync::Arc;

use axum::extract::Request;
use axum::extract::State;
use axum::middleware::Next;
use axum::response::IntoResponse as _;
use axum::response::Response;
use http::HeaderValue;
use http::StatusCode;
use http::header;

/// The names; none lets every name in.
#[derive(Clone)]
pub(super) struct Allowed(Arc<[String]>);

impl Allowed {
    /// Takes names without ports; an IPv6 address in its brackets.
    pub(super) fn new(hosts: &[String]) -> Self {
        Self(hosts.iter().map(|host| host.to_ascii_lowercase()).collect())
    }

    fn has(&self, authority: &str) -> bool {
        let host = match authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
            _ => authority,
        };
        self.0.iter().any(|allowed| allowed.eq_ignore_ascii_case(host))
    }
}

/// Lets a request for one of the names pass, and answers any other with 421 (RFC 9110 §15.5.20).
pub(super) async fn check(State(allowed): State<Allowed>, request: Request, next: Next) -> Response {
    // HTTP/2 puts the name into the URI, HTTP/1.1 into a header.
    let named = request.uri().authority().map(http::uri::Authority::as_str);
    let host = named.or_else(|| request.headers().get(header::HOST).map(HeaderValue::to_str)?.ok());
    if allowed.0.is_empty() || host.is_some_and(|host| allowed.has(host)) {
        return next.run(request).await;
    }
    (StatusCode::MISDIRECTED_REQUEST, "this server does not answer to that name\n").into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_without_their_ports() {
        let allowed = Allowed::new(&["localhost".to_owned(), "[::1]".to_owned()]);
        for good in ["localhost", "LOCALHOST:8080", "[::1]:80", "[::1]"] {
            assert!(allowed.has(good), "{good}");
        }
        for bad in ["evil.example", "localhost.evil.example:80", "::1", "", ":80", "localhost:80:80"] {
            assert!(!allowed.has(bad), "{bad}");
        }
    }
}
