//! Stack Auth's headers. Each has two spellings, because the project was renamed: older SDKs send the first and newer ones the
//! second, and a response uses the spelling of its request.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;

use super::known_error::KnownError;

/// The prefixes of the headers.
const SPELLINGS: [&str; 2] = ["x-stack-", "x-hexclave-"];

/// The headers that pages may send. Not the secret keys, which must not be in a browser.
const FROM_PAGES: [&str; 11] = [
    "access-token",
    "access-type",
    "allow-anonymous-user",
    "allow-restricted-user",
    "branch-id",
    "client-version",
    "override-error-status",
    "project-id",
    "publishable-client-key",
    "random-nonce",
    REFRESH_TOKEN,
];

/// Other headers that the SDKs send from pages, for tunnels and tracing.
const BESIDE: [&str; 3] = ["baggage", "ngrok-skip-browser-warning", "sentry-trace"];

/// The headers that pages may read.
const TO_PAGES: [&str; 3] = [ACTUAL_STATUS, KNOWN_ERROR, REQUEST_ID];

const REFRESH_TOKEN: &str = "refresh-token";
const ACTUAL_STATUS: &str = "actual-status";
const KNOWN_ERROR: &str = "known-error";
const REQUEST_ID: &str = "request-id";

/// The refresh token's header for all other clients.
const CANONICAL_REFRESH_TOKEN: HeaderName = HeaderName::from_static("x-refresh-token");

/// The headers that a page may send, for CORS.
pub(in crate::edge) fn from_pages() -> impl Iterator<Item = HeaderName> {
    FROM_PAGES.into_iter().flat_map(spelled).chain(BESIDE.map(HeaderName::from_static))
}

/// The headers that a page may read, for CORS.
pub(in crate::edge) fn to_pages() -> impl Iterator<Item = HeaderName> {
    TO_PAGES.into_iter().flat_map(spelled)
}

fn spelled(name: &'static str) -> impl Iterator<Item = HeaderName> {
    SPELLINGS.iter().map(move |spelling| spell(spelling, name))
}

fn spell(spelling: &str, name: &str) -> HeaderName {
    HeaderName::try_from(format!("{spelling}{name}")).expect("lower-case letters and dashes are a header's name")
}

/// A header's prefix and the rest of its name; `None` if it is not Stack Auth's.
fn split(name: &HeaderName) -> Option<(&'static str, &str)> {
    SPELLINGS.iter().find_map(|spelling| Some((*spelling, name.as_str().strip_prefix(spelling)?)))
}

/// Whether a Stack Auth client sent the request: it has one of the headers. A refresh token alone does not count, because Stack
/// Auth's own pages show it without the others.
pub(super) fn is_stack_auth(headers: &HeaderMap) -> bool {
    headers.keys().filter_map(split).any(|(_, name)| name != REFRESH_TOKEN)
}

/// Renames the refresh token's header in all other requests to the one that other clients use.
pub(in crate::edge) fn rename_refresh_token(headers: &mut HeaderMap) {
    static NAMES: LazyLock<Vec<HeaderName>> = LazyLock::new(|| spelled(REFRESH_TOKEN).collect());
    for name in &*NAMES {
        if !headers.contains_key(name) {
            continue;
        }
        let values: Vec<HeaderValue> = headers.get_all(name).iter().cloned().collect();
        headers.remove(name);
        for value in values {
            headers.append(CANONICAL_REFRESH_TOKEN, value);
        }
    }
}

/// The values of a request's headers, by their names without the prefix. Has no `Debug`, because it holds tokens and keys.
pub(super) struct StackHeaders<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> StackHeaders<'a> {
    /// Reads them. An empty one counts as missing: the SDK sends an empty key if it has none.
    ///
    /// # Errors
    ///
    /// Fails if a header has two different values, in one spelling or in both, or is not text.
    pub(super) fn read(headers: &'a HeaderMap) -> Result<Self, KnownError> {
        let mut values = BTreeMap::new();
        for (name, value) in headers {
            let Some((_, name)) = split(name) else { continue };
            let text = value.to_str().map_err(|_| KnownError::schema(format!("header {name} must be ASCII")))?;
            if values.insert(name, text).is_some_and(|before| before != text) {
                return Err(KnownError::schema(format!("header {name} must not be sent with different values")));
            }
        }
        values.retain(|_, text| !text.is_empty());
        Ok(Self(values))
    }

    /// The value of a header.
    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).copied()
    }

    /// The refresh token.
    pub(super) fn refresh_token(&self) -> Option<&'a str> {
        self.get(REFRESH_TOKEN)
    }
}

/// How to render the response to a request.
#[derive(Clone)]
pub(super) struct ResponseStyle {
    spellings: Vec<&'static str>,
    /// Whether an error is sent with status 200 and its own status in a header: browser consoles log other statuses as errors.
    pub(super) overrides_status: bool,
}

impl ResponseStyle {
    /// Reads it from the request's headers. Defaults to the older spelling.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let found: Vec<(&str, &str)> = headers.keys().filter_map(split).collect();
        let mut spellings = SPELLINGS.to_vec();
        spellings.retain(|spelling| found.iter().any(|(used, _)| used == spelling));
        if spellings.is_empty() {
            spellings.push(SPELLINGS[0]);
        }
        Self { spellings, overrides_status: found.iter().any(|(_, name)| *name == "override-error-status") }
    }

    /// Sets the request's id.
    pub(super) fn set_request_id(&self, headers: &mut HeaderMap, id: &str) {
        self.set(headers, REQUEST_ID, HeaderValue::from_str(id).expect("hexadecimal digits"));
    }

    /// Sets the code of an error.
    pub(super) fn set_known_error(&self, headers: &mut HeaderMap, code: &'static str) {
        self.set(headers, KNOWN_ERROR, HeaderValue::from_static(code));
    }

    /// Sets the status that was replaced by 200.
    pub(super) fn set_actual_status(&self, headers: &mut HeaderMap, status: http::StatusCode) {
        self.set(headers, ACTUAL_STATUS, status.as_u16().into());
    }

    fn set(&self, headers: &mut HeaderMap, name: &str, value: HeaderValue) {
        for spelling in &self.spellings {
            headers.insert(spell(spelling, name), value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn any_of_its_headers_but_a_refresh_token_alone_makes_a_request_stack_auths() {
        for alone in [&[][..], &[("x-stack-refresh-token", "a")], &[("x-hexclave-refresh-token", "a")]] {
            assert!(!is_stack_auth(&headers(alone)), "{alone:?}");
        }
        assert!(!is_stack_auth(&headers(&[("x-refresh-token", "a"), ("x-stacked-up", "a"), ("authorization", "a")])));
        for named in ["x-stack-project-id", "x-hexclave-random-nonce", "x-stack-whatever"] {
            assert!(is_stack_auth(&headers(&[(named, "")])), "{named}");
            assert!(is_stack_auth(&headers(&[("x-stack-refresh-token", "a"), (named, "")])), "{named}");
        }
    }

    #[test]
    fn a_header_has_the_same_value_in_both_spellings() {
        let same = headers(&[("x-stack-project-id", "a"), ("x-hexclave-project-id", "a"), ("x-stack-nothing", "")]);
        let values = StackHeaders::read(&same).expect("the same in both");
        assert_eq!((values.get("project-id"), values.get("nothing")), (Some("a"), None));
        for other in ["x-hexclave-project-id", "x-stack-project-id"] {
            assert!(StackHeaders::read(&headers(&[("x-stack-project-id", "a"), (other, "b")])).is_err(), "{other}");
        }
    }
}
