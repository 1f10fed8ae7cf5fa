//! Checks which host a request is for. A request that names no host or several is refused (RFC 9112 §3.2), because the server
//! and a proxy in front of it could read it differently. And a page whose own name a browser resolves to this address (DNS
//! rebinding) must not reach the API.

use std::sync::Arc;

use axum::extract::Request;
use axum::extract::State;
use axum::middleware::Next;
use axum::response::IntoResponse as _;
use axum::response::Response;
use http::HeaderMap;
use http::Method;
use http::StatusCode;
use http::Uri;
use http::Version;
use http::header;

use crate::config::Authority;
use crate::cookies::Host;
use crate::forwarded::TrustedPeer;

/// The paths of probes, which know a server's address but not its name.
const PROBES: [&str; 3] = ["/healthz", "/readyz", "/grpc.health.v1.Health/"];

/// The accepted host names.
#[derive(Clone)]
pub(super) enum Allowed {
    /// The names on the list; every name if it is empty.
    Named(Arc<[String]>),
    /// This machine's own names, and addresses: a listener on loopback has no other name.
    Loopback,
}

impl Allowed {
    /// Takes names without ports, as `config::host` spells them.
    pub(super) fn new(hosts: &[String]) -> Self {
        Self::Named(hosts.into())
    }

    fn has(&self, path: &str, host: Option<&Authority>) -> bool {
        let is_local = |host: &Authority| host.is_loopback() || host.is_address();
        match self {
            Self::Named(names) if names.is_empty() => true,
            Self::Named(names) => {
                let is_named = host.is_some_and(|host| names.contains(&host.host));
                // An address is not resolved, so a page cannot redirect it to this server. HTTP/1.0 may omit the host, but browsers do
                // not use it.
                let is_probe =
                    PROBES.iter().any(|probe| path == *probe || probe.ends_with('/') && path.starts_with(probe));
                is_named || is_probe && host.is_none_or(is_local)
            }
            Self::Loopback => host.is_none_or(is_local),
        }
    }
}

/// Passes a request for an accepted name.
pub(super) async fn check(State(allowed): State<Allowed>, request: Request, next: Next) -> Response {
    match refusal(&allowed, &request) {
        Some(refusal) => refusal,
        None => next.run(request).await,
    }
}

/// `None` for a request for an accepted name. The answer to a request for another name is 421 (RFC 9110 §15.5.20), and to one
/// without a valid host 400.
pub(super) fn refusal(allowed: &Allowed, request: &Request) -> Option<Response> {
    let (status, wrong) = match addressed(request.version(), request.uri(), request.headers()) {
        Ok(host) if allowed.has(request.uri().path(), host.as_ref()) => return None,
        Ok(_) => (StatusCode::MISDIRECTED_REQUEST, "this server does not answer to that name\n"),
        Err(wrong) => (StatusCode::BAD_REQUEST, wrong),
    };
    // An answer to HEAD has no body (RFC 9110 §9.3.2), which HTTP/2 does not see to by itself.
    let body = if request.method() == Method::HEAD { "" } else { wrong };
    Some((status, body).into_response())
}

/// Records the host that a request with a cookie is for: the page that sends it must be of that host. A trusted proxy's
/// `X-Forwarded-Host` counts before its `Host`, which may be its own name for this server.
pub(super) fn note(request: &mut Request) {
    if !request.headers().contains_key(header::COOKIE) {
        return;
    }
    let headers = request.headers();
    let is_trusted = request.extensions().get::<TrustedPeer>().is_some();
    let forwarded = headers.get("x-forwarded-host").filter(|_| is_trusted);
    let named = forwarded.or_else(|| headers.get(header::HOST)).and_then(|value| value.to_str().ok());
    let host = named.or_else(|| request.uri().authority().map(http::uri::Authority::as_str)).map(str::to_owned);
    if let Some(host) = host {
        request.extensions_mut().insert(Host(host));
    }
}

/// The host that a request is for; `None` if its version of HTTP permits that.
fn addressed(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<Option<Authority>, &'static str> {
    const MALFORMED: &str = "the host is malformed (RFC 9112, section 3.2)\n";
    // HTTP/2 puts the host into the URI, and so does HTTP/1.1 for a proxy; otherwise it is in a header.
    let in_uri = uri.authority().map(|authority| Authority::parse(authority.as_str()).map_err(|_| MALFORMED));
    let in_uri = in_uri.transpose()?;
    let mut lines = headers.get_all(header::HOST).iter();
    let in_header = lines.next().map(|line| {
        let text = line.to_str().map_err(|_| MALFORMED)?;
        Authority::parse(text).map_err(|_| MALFORMED)
    });
    let in_header = in_header.transpose()?;
    if lines.next().is_some() {
        return Err("there is more than one Host (RFC 9112, section 3.2)\n");
    }
    match (in_uri, in_header) {
        (Some(uri_host), Some(host)) if !is_same(uri.scheme_str(), &uri_host, &host) => {
            Err("the request is for one host and its Host names another\n")
        }
        (None, None) if version == Version::HTTP_11 => Err("there is no Host (RFC 9112, section 3.2)\n"),
        (Some(_), None) if version == Version::HTTP_11 => Err("there is no Host (RFC 9112, section 3.2)\n"),
        (in_uri, in_header) => Ok(in_uri.or(in_header)),
    }
}

/// Whether both are the same host: the scheme's default port may be omitted.
fn is_same(scheme: Option<&str>, one: &Authority, other: &Authority) -> bool {
    let usual = match scheme {
        Some("http") => Some(80),
        Some("https") => Some(443),
        _ => None,
    };
    one.host == other.host && one.port.or(usual) == other.port.or(usual)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Option<Authority> {
        Authority::parse(text).ok()
    }

    #[test]
    fn names_are_compared_without_their_ports() {
        let allowed = Allowed::new(&["localhost".to_owned(), "[::1]".to_owned()]);
        for good in ["localhost", "LOCALHOST:8080", "localhost.", "[::1]:80", "[::1]", "[0::1]"] {
            assert!(allowed.has("/auth/sessions", host(good).as_ref()), "{good}");
        }
        for bad in ["evil.example", "localhost.evil.example:80", "::1", "", ":80", "localhost:80:80", "127.0.0.1"] {
            assert!(!allowed.has("/auth/sessions", host(bad).as_ref()), "{bad}");
        }
    }

    #[test]
    fn probes_may_name_an_address() {
        let allowed = Allowed::new(&["sessions.example.org".to_owned()]);
        for path in ["/healthz", "/readyz", "/grpc.health.v1.Health/Check"] {
            for good in ["10.1.2.3:8080", "[fd00::1]:8080", "localhost:8080", "sessions.example.org"] {
                assert!(allowed.has(path, host(good).as_ref()), "{path} at {good}");
            }
            assert!(allowed.has(path, None), "HTTP/1.0");
            assert!(!allowed.has(path, host("evil.example").as_ref()), "{path}");
        }
        for path in ["/healthz/", "/auth/sessions", "/sessiond.v1.SessionService/RevokeCurrent", "/openapi.json"] {
            assert!(!allowed.has(path, host("10.1.2.3").as_ref()), "{path}");
        }
    }

    #[test]
    fn a_listener_on_loopback_accepts_only_local_names() {
        for (name, answered) in [("localhost:9464", true), ("127.0.0.1:1", true), ("[::1]", true), ("10.0.0.1", true)] {
            assert_eq!(Allowed::Loopback.has("/metrics", host(name).as_ref()), answered, "{name}");
        }
        assert!(!Allowed::Loopback.has("/metrics", host("evil.example").as_ref()));
        assert!(!Allowed::Loopback.has("/metrics", host("localhost.evil.example").as_ref()));
    }

    /// RFC 9112 §3.2 and RFC 9113 §8.3.1.
    #[test]
    fn a_request_names_one_host() {
        let addressed = |version, uri: &str, hosts: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(header::HOST, http::HeaderValue::from_bytes(host).expect("a value"));
            }
            addressed(version, &uri.parse().expect("a URI"), &headers).map(|host| host.map(|host| host.host))
        };
        let ok = |host: &str| Ok(Some(host.to_owned()));
        let (old, one, two) = (Version::HTTP_10, Version::HTTP_11, Version::HTTP_2);
        assert_eq!(addressed(one, "/", &[b"A.example:80"]), ok("a.example"));
        assert_eq!(addressed(old, "/", &[]), Ok(None));
        assert_eq!(addressed(one, "http://a.example/", &[b"a.example:80"]), ok("a.example"));
        assert_eq!(addressed(two, "http://a.example/", &[]), ok("a.example"));
        assert_eq!(addressed(two, "/", &[b"a.example"]), ok("a.example"));
        for (version, uri, hosts) in [
            (one, "/", &[][..]),
            (one, "/", &[&b"a"[..], b"a"]),
            (old, "/", &[b"a", b"b"]),
            (one, "/", &[b""]),
            (one, "/", &[b"a b"]),
            (one, "/", &[b"a, b"]),
            (one, "/", &[b"a/b"]),
            (one, "/", &[b"u@a"]),
            (one, "/", &[b"a:x"]),
            (one, "/", &[b"a:99999"]),
            (one, "/", &[b"[::1"]),
            (one, "/", &[b"\xff"]),
            (one, "http://a/", &[]),
            (one, "http://a/", &[b"b"]),
            (one, "http://a:81/", &[b"a"]),
            (two, "http://a/", &[b"b"]),
        ] {
            assert!(addressed(version, uri, hosts).is_err(), "{version:?} {uri} {hosts:?}");
        }
    }
}
