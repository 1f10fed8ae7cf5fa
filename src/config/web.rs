//! Reads settings that name something on the web: the issuer, origins, hosts, base paths, headers. Each is trimmed and
//! normalised, or refused with a message that says what to write instead.

use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;

use http::HeaderName;

/// The longest issuer, in bytes. It is in every access token.
const ISSUER_BYTES_MAX: usize = 512;

/// The longest host name (RFC 1035 §2.3.4), in bytes.
const HOST_BYTES_MAX: usize = 253;

/// The longest base path, in bytes.
const BASE_PATH_BYTES_MAX: usize = 256;

/// A host and an optional port: the authority of a URL (RFC 3986 §3.2), without user information.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// In lower case and without a trailing dot; an IPv6 address in brackets, in the form of RFC 5952.
    pub host: String,
    /// `None` if there is no port, even after a colon.
    pub port: Option<u16>,
}

impl Authority {
    /// Reads `host`, `host:port` or `[IPv6]:port`.
    ///
    /// # Errors
    ///
    /// Returns a message that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (ip, port) = rest.split_once(']').ok_or("must close the bracket of an IPv6 address")?;
                let ip: Ipv6Addr = ip.parse().map_err(|_| "must have an IPv6 address in the brackets")?;
                (format!("[{ip}]"), port)
            }
            None => {
                let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
                (name(host)?, port)
            }
        };
        Ok(Self { host, port: read_port(port)? })
    }

    /// Whether the host is an address, not a name that could resolve to another one.
    pub fn is_address(&self) -> bool {
        self.host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
    }

    /// Whether the host is always this machine: `localhost` and the names below it (RFC 6761 §6.3), and loopback
    /// addresses.
    pub fn is_loopback(&self) -> bool {
        let ip = self.host.trim_matches(['[', ']']).parse::<IpAddr>();
        self.host == "localhost" || self.host.ends_with(".localhost") || ip.is_ok_and(|ip| ip.is_loopback())
    }
}

/// Reads a name or an IPv4 address.
fn name(text: &str) -> Result<String, String> {
    if text.contains('@') {
        return Err("must have no user and no password".to_owned());
    }
    if text.contains('*') {
        return Err("must name each host: `*` is not allowed in a name".to_owned());
    }
    if !text.is_ascii() {
        return Err("must be ASCII: write another name in punycode (`xn--…`)".to_owned());
    }
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    if name.len() > HOST_BYTES_MAX || !name.split('.').all(label) {
        return Err("must have a host name or an address, such as `app.example.org` or `[::1]`".to_owned());
    }
    Ok(name)
}

/// Reads `:` and a port, or nothing.
fn read_port(text: &str) -> Result<Option<u16>, String> {
    const WRONG: &str = "must have nothing after the host but `:` and a port of 0 to 65535";
    match text.strip_prefix(':') {
        None if text.is_empty() => Ok(None),
        Some("") => Ok(None),
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse().map(Some).map_err(|_| WRONG.to_owned())
        }
        _ => Err(WRONG.to_owned()),
    }
}

/// Reads the issuer: an http or https URL without query, fragment (RFC 8414 §2) and user. It is kept as written,
/// because verifiers compare it byte by byte; only a trailing slash is removed.
///
/// # Errors
///
/// Returns a message that says what is wrong.
pub fn issuer(text: &str) -> Result<String, String> {
    const EXAMPLE: &str = "must be an http or https URL, such as `https://sessions.example.org`";
    let text = text.trim();
    if text.len() > ISSUER_BYTES_MAX {
        return Err(format!("must have at most {ISSUER_BYTES_MAX} bytes: it is in every token"));
    }
    let (scheme, rest) = text.split_once("://").ok_or(EXAMPLE)?;
    if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return Err(EXAMPLE.to_owned());
    }
    if rest.contains('?') {
        return Err("must have no query (RFC 8414 §2)".to_owned());
    }
    if rest.contains('#') {
        return Err("must have no fragment (RFC 8414 §2)".to_owned());
    }
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    Authority::parse(authority)?;
    segments(path.trim_end_matches('/'))?;
    Ok(text.trim_end_matches('/').to_owned())
}

/// The issuer of a server that listens on `address`: a port of 0 in the setting is replaced by the real port.
pub fn issuer_at(issuer: &str, address: SocketAddr) -> String {
    let (scheme, rest) = issuer.split_once("://").unwrap_or(("http", issuer));
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    match Authority::parse(authority) {
        Ok(Authority { host, port: Some(0) }) => format!("{scheme}://{host}:{}{path}", address.port()),
        _ => issuer.to_owned(),
    }
}

/// Reads an origin (RFC 6454 §6.2): a scheme, a host, an optional port and nothing after it; or `*`. Any scheme is
/// accepted, because apps have their own: `capacitor://localhost`. Normalised as browsers send it: in lower case, and
/// without the scheme's default port.
///
/// # Errors
///
/// Returns a message that says what is wrong.
pub fn origin(text: &str) -> Result<String, String> {
    const EXAMPLE: &str = "must be a scheme and a host, such as `https://app.example.org`, or `*`";
    let text = text.trim();
    if text == "*" {
        return Ok(text.to_owned());
    }
    if text.eq_ignore_ascii_case("null") {
        return Err("must not be `null`: every sandboxed page of every site has that origin".to_owned());
    }
    let (scheme, rest) = text.split_once("://").ok_or(EXAMPLE)?;
    let scheme = scheme.to_ascii_lowercase();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    if !scheme.starts_with(|letter: char| letter.is_ascii_alphabetic()) || !scheme.bytes().all(plain) {
        return Err(EXAMPLE.to_owned());
    }
    if rest.contains(['/', '?', '#']) {
        return Err("must end with the host or the port: no path, not even `/`".to_owned());
    }
    let Authority { host, port } = Authority::parse(rest)?;
    match (scheme.as_str(), port) {
        (_, Some(0)) => Err("must have a port of 1 to 65535".to_owned()),
        (_, None) | ("http", Some(80)) | ("https", Some(443)) => Ok(format!("{scheme}://{host}")),
        (_, Some(port)) => Ok(format!("{scheme}://{host}:{port}")),
    }
}

/// Reads a host name that requests may be addressed to.
///
/// # Errors
///
/// Returns a message that says what is wrong.
pub fn host(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text == "*" {
        return Err("must be a name: to answer to every name, leave the setting out".to_owned());
    }
    if text.contains('/') {
        return Err("must be the name alone, without a scheme and a path".to_owned());
    }
    if let Ok(ip) = text.parse::<Ipv6Addr>() {
        return Ok(format!("[{ip}]"));
    }
    let Authority { host, port } = Authority::parse(text)?;
    if port.is_some() || text.ends_with(':') {
        return Err("must be the name without a port: it applies to every port".to_owned());
    }
    Ok(host)
}

/// Reads a base path: `/`, or a plain path such as `/api/v1`. A trailing slash is ignored.
///
/// # Errors
///
/// Returns a message that says what is wrong.
pub fn base_path(text: &str) -> Result<String, String> {
    let text = text.trim();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte);
    if !text.starts_with('/') || text.len() > BASE_PATH_BYTES_MAX || !text.bytes().all(plain) {
        return Err("must start with `/` and be a plain path, such as `/api/v1`".to_owned());
    }
    if text == "/" {
        return Ok(text.to_owned());
    }
    let path = text.strip_suffix('/').unwrap_or(text);
    segments(path)?;
    Ok(path.to_owned())
}

/// Checks that every proxy leaves the path as it is.
fn segments(path: &str) -> Result<(), String> {
    for segment in path.split('/').skip(1) {
        if segment.is_empty() {
            return Err("must not have an empty segment (`//`)".to_owned());
        }
        if segment == "." || segment == ".." {
            return Err("must not have the segments `.` and `..`: clients resolve them".to_owned());
        }
        if !segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.~!$&'()+,;=@".contains(&byte)) {
            return Err("must have a plain path: no spaces, no escapes".to_owned());
        }
    }
    Ok(())
}

/// Reads a header name.
///
/// # Errors
///
/// Returns a message that says what is wrong.
pub fn header_name(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text == "*" {
        return Err("must name each header: `*` would not include `authorization` (Fetch Standard)".to_owned());
    }
    let name = HeaderName::from_bytes(text.as_bytes()).map_err(|_| "must be a header name")?;
    Ok(name.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Read = fn(&str) -> Result<String, String>;

    #[track_caller]
    fn all(read: Read, good: &[(&str, &str)], bad: &[&str]) {
        for (text, expected) in good {
            assert_eq!(read(text).as_deref(), Ok(*expected), "{text:?}");
            assert_eq!(read(expected).as_deref(), Ok(*expected), "reading is idempotent: {text:?}");
        }
        for text in bad {
            let refused = read(text).expect_err(text);
            assert!(refused.starts_with("must "), "{text:?}: {refused}");
        }
    }

    /// RFC 8414 §2; otherwise the `iss` of every token would not be a URL.
    #[test]
    fn an_issuer_is_a_url_without_query_and_fragment() {
        let good = [
            ("https://x.example", "https://x.example"),
            (" https://x.example/ \n", "https://x.example"),
            ("https://x.example/auth/", "https://x.example/auth"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://[::1]:0", "http://[::1]:0"),
            // Compared byte by byte, so kept as written.
            ("https://X.example:443", "https://X.example:443"),
        ];
        let bad = [
            "",
            " ",
            "nonsense",
            "x.example",
            "//x.example",
            "https:x.example",
            "https://",
            "https:///p",
            "ftp://x",
            "https://x?x=1",
            "https://x/?",
            "https://x#f",
            "https://x/#",
            "https://u@x",
            "https://u:p@x",
            "https://x:",
            "https://x:65536",
            "https://x:-1",
            "https://x y",
            "https://x\ny",
            "https://x/a//b",
            "https://x/../y",
            "https://x/.",
            "https://x/a b",
            "https://x/%zz",
            "https://é.example",
            "https://*",
            "https://.x",
            "https://x..y",
            "https://[::1",
            "https://[x]",
            "https://::1",
            "https://x\u{0}",
            "javascript:alert(1)",
        ];
        // A port may be empty after its colon (RFC 3986 §3.2.3).
        let bad: Vec<&str> = bad.into_iter().filter(|text| *text != "https://x:").collect();
        all(issuer, &good, &bad);
        assert!(issuer(&format!("https://x/{}", "a".repeat(600))).is_err());
    }

    #[test]
    fn port_0_in_the_issuer_becomes_the_servers_port() {
        let at = "127.0.0.1:4711".parse().expect("an address");
        for (issuer, expected) in [
            ("http://127.0.0.1:0", "http://127.0.0.1:4711"),
            ("http://[::1]:0/auth", "http://[::1]:4711/auth"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("https://x.example", "https://x.example"),
        ] {
            assert_eq!(issuer_at(issuer, at), expected);
        }
    }

    #[test]
    fn an_origin_is_normalised_as_browsers_send_it() {
        let good = [
            ("*", "*"),
            ("https://app.example.org", "https://app.example.org"),
            (" HTTPS://App.Example.org\n", "https://app.example.org"),
            ("https://a:443", "https://a"),
            ("https://a:0443", "https://a"),
            ("http://a:80", "http://a"),
            ("http://a:443", "http://a:443"),
            ("http://localhost:3000", "http://localhost:3000"),
            ("http://[::1]:8080", "http://[::1]:8080"),
            ("http://[0:0::1]:80", "http://[::1]"),
            // Apps in a web view have their own schemes.
            ("capacitor://localhost", "capacitor://localhost"),
            ("ionic://localhost", "ionic://localhost"),
            ("tauri://localhost", "tauri://localhost"),
            ("chrome-extension://abcdefghijklmnop", "chrome-extension://abcdefghijklmnop"),
        ];
        let bad = [
            "",
            "null",
            "NULL",
            "app.example.org",
            "https://",
            "https://app.example.org/",
            "https://a/b",
            "https://a?",
            "https://*.example.org",
            "https://a:b",
            "https://a:0",
            "https://a:99999",
            "https://u@a",
            "file://",
            "://a",
            "1a://b",
            "https://é",
            "https://a, https://b",
            "**",
        ];
        all(origin, &good, &bad);
    }

    #[test]
    fn a_host_is_a_name_without_scheme_and_port() {
        let good = [
            ("localhost", "localhost"),
            (" Sessions.Example.ORG. ", "sessions.example.org"),
            ("127.0.0.1", "127.0.0.1"),
            ("::1", "[::1]"),
            ("[0::1]", "[::1]"),
            ("my_service", "my_service"),
        ];
        let bad = [
            "",
            "*",
            "*.example.org",
            "https://a",
            "a:8080",
            "a:",
            "a/b",
            "a b",
            "a,b",
            "u@a",
            "[::1]:80",
            "é.example",
            "a..b",
            ".",
            "[::1",
        ];
        all(host, &good, &bad);
    }

    #[test]
    fn a_base_path_is_plain_and_has_no_trailing_slash() {
        let good = [("/", "/"), ("/auth", "/auth"), ("/auth/", "/auth"), (" /api/v1/ ", "/api/v1")];
        let bad = [
            "", "auth", "//", "/a//b", "/auth//", "/../", "/..", "/.", "/a/./b", "/{x}", "/*", "/a b", "/a:b", "/%41",
            "/é",
        ];
        all(base_path, &good, &bad);
        assert!(base_path(&format!("/{}", "a".repeat(300))).is_err());
    }

    #[test]
    fn a_header_name_is_lowercased_and_checked() {
        all(header_name, &[("X-Team", "x-team"), (" traceparent ", "traceparent")], &["", "*", "a b", "a:", "é"]);
    }

    #[test]
    fn loopback_and_addresses_are_distinguished_from_names() {
        let read = |text: &str| Authority::parse(text).expect(text);
        for text in ["localhost", "LOCALHOST:80", "app.localhost", "127.0.0.1:1", "127.9.9.9", "[::1]:80"] {
            assert!(read(text).is_loopback(), "{text}");
        }
        for text in ["localhost.evil.example", "evil.example", "10.0.0.1", "[fd00::1]"] {
            assert!(!read(text).is_loopback(), "{text}");
        }
        assert!(read("10.0.0.1:80").is_address() && read("[fd00::1]").is_address() && !read("a.b").is_address());
    }
}
