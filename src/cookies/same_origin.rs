//! Which requests may use a cookie: those that the application's own pages send. Decided by Fetch Metadata and `Origin`, never by
//! `Referer`, which is often missing and can be suppressed.

use crate::config::Authority;

/// The header that a client sends if it sends neither `Sec-Fetch-Site` nor `Origin`. A form, a link or an image cannot send it.
pub const CSRF_HEADER: &str = "x-sessiond-csrf";

/// The host that a request is for, as the edge determined it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host(pub String);

/// The headers by which a request is judged. A header with several values, or one that is not text, is empty.
#[derive(Clone, Copy, Debug, Default)]
pub struct FetchHeaders<'h> {
    /// `Sec-Fetch-Site`.
    pub site: Option<&'h str>,
    /// `Origin`.
    pub origin: Option<&'h str>,
    /// The host that the request is for.
    pub host: Option<&'h str>,
    /// Whether [`CSRF_HEADER`] was sent.
    pub has_csrf_header: bool,
}

impl FetchHeaders<'_> {
    /// Whether the request comes from a page of the same origin, from the user's own doing, or from a client that is no browser.
    pub fn is_same_origin(&self) -> bool {
        match (self.site, self.origin) {
            // A browser says so itself. `none`: a bookmark, the address bar.
            (Some(site), _) => matches!(site, "same-origin" | "none"),
            (None, Some(origin)) => self.host.is_some_and(|host| is_origin_of(origin, host)),
            (None, None) => self.has_csrf_header,
        }
    }
}

/// Whether a request to an application needs to come from the same origin: one with a method that may change something, or a
/// WebSocket handshake, after which the page reads and writes.
pub fn needs_same_origin(method: &str, is_web_socket: bool) -> bool {
    is_web_socket || !matches!(method, "GET" | "HEAD" | "OPTIONS")
}

/// Whether an origin is that of a host. Only `https`, because the cookies are `Secure`; on this machine also `http`, where browsers
/// treat it alike.
fn is_origin_of(origin: &str, host: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let (Ok(origin), Ok(host)) = (Authority::parse(authority), Authority::parse(host)) else { return false };
    let usual = match scheme {
        "https" => 443,
        "http" if host.is_loopback() => 80,
        _ => return false,
    };
    origin.host == host.host && origin.port.unwrap_or(usual) == host.port.unwrap_or(usual)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Option<&str> = Some("app.example.org");

    #[test]
    fn fetch_metadata_decides_where_it_is_sent() {
        for (site, passes) in [
            ("same-origin", true),
            ("none", true),
            ("same-site", false),
            ("cross-site", false),
            ("", false),
            ("Same-Origin", false),
            ("same-origin, same-origin", false),
            ("something-new", false),
        ] {
            for origin in [None, Some("https://app.example.org"), Some("https://evil.example"), Some("null")] {
                let headers = FetchHeaders { site: Some(site), origin, host: HOST, has_csrf_header: true };
                assert_eq!(headers.is_same_origin(), passes, "{headers:?}");
            }
        }
    }

    #[test]
    fn otherwise_the_origin_must_be_the_host() {
        for (origin, host, passes) in [
            ("https://app.example.org", "app.example.org", true),
            ("https://app.example.org", "app.example.org:443", true),
            ("https://APP.example.org:443", "App.Example.Org", true),
            ("https://app.example.org:8443", "app.example.org:8443", true),
            ("http://localhost:3000", "localhost:3000", true),
            ("http://127.0.0.1", "127.0.0.1:80", true),
            ("http://[::1]:3000", "[::1]:3000", true),
            ("http://app.example.org", "app.example.org", false),
            ("https://app.example.org:8443", "app.example.org", false),
            ("https://example.org", "app.example.org", false),
            ("https://evil.app.example.org", "app.example.org", false),
            ("https://app.example.org.evil.example", "app.example.org", false),
            ("https://app.example.org@evil.example", "evil.example", false),
            ("https://app.example.org/", "app.example.org", false),
            ("https://", "", false),
            ("app.example.org", "app.example.org", false),
            ("null", "app.example.org", false),
            ("", "", false),
            ("file://", "", false),
            ("http://localhost:3000", "localhost:3001", false),
            ("chrome-extension://app.example.org", "app.example.org", false),
            ("https://app.example.org", "app.example.org, evil.example", false),
        ] {
            // Another header does not help.
            let headers = FetchHeaders { site: None, origin: Some(origin), host: Some(host), has_csrf_header: true };
            assert_eq!(headers.is_same_origin(), passes, "{origin} at {host}");
        }
        let unknown = FetchHeaders { origin: Some("https://app.example.org"), ..FetchHeaders::default() };
        assert!(!unknown.is_same_origin(), "the host is unknown");
    }

    #[test]
    fn a_client_that_sends_neither_needs_a_header_of_its_own() {
        let headers = |has_csrf_header| FetchHeaders { host: HOST, has_csrf_header, ..FetchHeaders::default() };
        assert!(headers(true).is_same_origin() && !headers(false).is_same_origin());
    }

    #[test]
    fn only_safe_methods_may_come_from_elsewhere() {
        for method in ["GET", "HEAD", "OPTIONS"] {
            assert!(!needs_same_origin(method, false), "{method}");
            assert!(needs_same_origin(method, true), "{method}: a handshake");
        }
        for method in ["POST", "PUT", "PATCH", "DELETE", "CONNECT", "TRACE", "get", "", "PURGE"] {
            assert!(needs_same_origin(method, false), "{method}");
        }
    }
}
