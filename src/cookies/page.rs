//! Page loads that are not signed in: the redirect to the login page, and back.

use percent_encoding::AsciiSet;
use percent_encoding::NON_ALPHANUMERIC;
use percent_encoding::percent_decode_str;
use percent_encoding::utf8_percent_encode;

/// The longest path to return to, in bytes.
const RETURN_PATH_BYTES_MAX: usize = 2_048;

/// The longest login page, in bytes.
const LOGIN_BYTES_MAX: usize = 2_048;

/// The parameter with the path to return to.
const RETURN_TO: &str = "return_to";

const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Whether a request loads a page, so that its user can be sent to a login page: a navigation (Fetch Metadata), or for a browser
/// that does not say, a request that names HTML first.
pub fn is_page(method: &str, fetch_mode: Option<&str>, accept: Option<&str>) -> bool {
    let is_navigation = fetch_mode.map_or_else(
        || {
            accept
                .is_some_and(|accept| accept.split([',', ';']).next().is_some_and(|range| range.trim() == "text/html"))
        },
        |mode| mode == "navigate",
    );
    matches!(method, "GET" | "HEAD") && is_navigation
}

/// Where to send a user who is not signed in: the login page, with the path to return to. `None` if the login page, which the
/// proxy's configuration names, cannot be in a header, or if the request is for that page: the redirects would never end.
pub fn login_location(login: &str, path: &str) -> Option<String> {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'\\' | b'"' | b'<' | b'>');
    if login.is_empty() || login.len() > LOGIN_BYTES_MAX || !login.bytes().all(is_plain) {
        return None;
    }
    let (page, fragment) = login.split_once('#').map_or((login, None), |(page, fragment)| (page, Some(fragment)));
    let without_query = |url: &str| url.split('?').next().unwrap_or_default().to_owned();
    if without_query(page) == without_query(path) {
        return None;
    }
    let separator = if page.contains('?') { '&' } else { '?' };
    let path = utf8_percent_encode(return_path(path), ENCODED);
    let fragment = fragment.map(|fragment| format!("#{fragment}")).unwrap_or_default();
    Some(format!("{page}{separator}{RETURN_TO}={path}{fragment}"))
}

/// The path and query if they stay within the origin, otherwise `/`. Browsers read `\` like `/`, drop tabs and line breaks, and a
/// login page may decode what it is given or resolve `.` and `..`, so none of these may be in it, encoded or not.
fn return_path(path: &str) -> &str {
    let is_within = |route: &str| {
        let is_dotted = route.split('/').any(|segment| matches!(segment, "." | ".."));
        route.starts_with('/') && !route.starts_with("//") && !is_dotted
    };
    let is_clean = |text: &str| !text.contains('\\') && !text.chars().any(char::is_control);
    // Decoded twice, because what decodes it once more may be behind the login page.
    let holds = |text: &str, check: &dyn Fn(&str) -> bool| {
        let once = percent_decode_str(text).decode_utf8_lossy();
        check(text) && check(&once) && check(&percent_decode_str(&once).decode_utf8_lossy())
    };
    // Cut before it is decoded: an encoded `?` does not begin a query.
    let route = path.split(['?', '#']).next().unwrap_or_default();
    let is_plain = path.len() <= RETURN_PATH_BYTES_MAX && path.bytes().all(|byte| byte.is_ascii_graphic());
    if is_plain && holds(route, &is_within) && holds(path, &is_clean) { path } else { "/" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_path_of_the_same_origin_is_returned_to() {
        for good in [
            "/",
            "/a",
            "/a/b?c=d&e=%20f",
            "/a//b",
            "/a?to=https://x.example/",
            "/%C3%BC",
            "/a:b@c",
            "/a?b=/../c",
            "/.a/..b/c.",
        ] {
            assert_eq!(return_path(good), good);
        }
        for bad in [
            "",
            "a",
            "//evil.example",
            "/.//evil.example",
            "/%2e//evil.example",
            "/x/..//evil.example",
            "/x/%252e%252e//evil.example",
            "/x/..",
            "/%3f/%2e%2e//evil.example",
            "/%23/%2e%2e//evil.example",
            "/%253f/%252e%252e//evil.example",
            "///evil.example",
            "/\\evil.example",
            "\\\\evil.example",
            "/a\\b",
            "https://evil.example/",
            "javascript:alert(1)",
            "/%2fevil.example",
            "/%2Fevil.example",
            "/%5cevil.example",
            "/%5Cevil.example",
            "/%252fevil.example",
            "/%255cevil.example",
            "/\tevil",
            "/a\r\nset-cookie: x",
            "/%0d%0aa",
            "/%09/evil.example",
            "/%00",
            "/%250a",
            " /a",
            "/a b",
            "/ü",
            "?a",
            "%2f%2fevil.example",
        ] {
            assert_eq!(return_path(bad), "/", "{bad}");
        }
        let long = format!("/{}", "a".repeat(RETURN_PATH_BYTES_MAX));
        assert_eq!((return_path(&long), return_path(&long[1..])), ("/", "/"));
        assert_eq!(return_path(&long[..RETURN_PATH_BYTES_MAX]), &long[..RETURN_PATH_BYTES_MAX]);
    }

    #[test]
    fn the_path_is_one_parameter_of_the_login_page() {
        for (login, path, location) in [
            ("/login", "/a?b=c&d", Some("/login?return_to=%2Fa%3Fb%3Dc%26d")),
            ("/login?from=shop", "/a", Some("/login?from=shop&return_to=%2Fa")),
            ("https://id.example.org/in#top", "/a#b", Some("https://id.example.org/in?return_to=%2Fa%23b#top")),
            ("/login", "//evil.example", Some("/login?return_to=%2F")),
            ("/login", "/login?return_to=%2Fa", None),
            ("", "/a", None),
            ("/log in", "/a", None),
            ("/login\r\nset-cookie: a=b", "/a", None),
            ("/lögin", "/a", None),
        ] {
            assert_eq!(login_location(login, path).as_deref(), location, "{login} {path}");
        }
    }

    #[test]
    fn a_page_is_a_navigation() {
        let html = Some("text/html,application/xhtml+xml,*/*;q=0.8");
        for (method, mode, accept, page) in [
            ("GET", Some("navigate"), html, true),
            ("HEAD", Some("navigate"), None, true),
            ("GET", None, html, true),
            ("GET", None, Some("*/*"), false),
            ("GET", None, Some("application/json, text/html;q=0.1"), false),
            ("GET", None, None, false),
            ("GET", Some("cors"), html, false),
            ("GET", Some("no-cors"), html, false),
            ("GET", Some("websocket"), html, false),
            ("POST", Some("navigate"), html, false),
            ("DELETE", None, html, false),
        ] {
            assert_eq!(is_page(method, mode, accept), page, "{method} {mode:?} {accept:?}");
        }
    }
}
