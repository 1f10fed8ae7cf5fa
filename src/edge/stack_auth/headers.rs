//! Stack Auth's headers. Each has two spellings, for the project was renamed: older SDKs send the first and newer ones the
//! second, and an answer has the one that it was asked in.

use std::collections::BTreeMap;

use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;

use super::known_error::KnownError;

/// What every header begins with.
const SPELLINGS: [&str; 2] = ["x-stack-", "x-hexclave-"];

/// What pages may send. Not the keys: a secret has no business in a browser.
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

/// What else the SDKs send from pages, for tunnels and tracing on the way.
const BESIDE: [&str; 3] = ["baggage", "ngrok-skip-browser-warning", "sentry-trace"];

/// What pages may read.
const TO_PAGES: [&str; 3] = [ACTUAL_STATUS, KNOWN_ERROR, REQUEST_ID];

const REFRESH_TOKEN: &str = "refresh-token";
const ACTUAL_STATUS: &str = "actual-status";
const KNOWN_ERROR: &str = "known-error";
const REQUEST_ID: &str = "request-id";

/// The name by which everyone else sends a refresh token.
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

/// A header's spelling, and its name behind that; `None` for one that is not Stack Auth's.
fn apart(name: &HeaderName) -> Option<(&'static str, &str)> {
    SPELLINGS.iter().find_map(|spelling| Some((*spelling, name.as_str().strip_prefix(spelling)?)))
}

/// Whether a Stack Auth client sent the request: it has one of the headers. A refresh token alone is no sign, because Stack
/// Auth's own pages show it with nothing else.
pub(super) fn is_stack_auth(headers: &HeaderMap) -> bool {
    headers.keys().filter_map(apart).any(|(_, name)| name != REFRESH_TOKEN)
}

/// Gives the refresh token of any other request the name that it has everywhere else.
pub(super) fn rename_refresh_token(headers: &mut HeaderMap) {
    for name in spelled(REFRESH_TOKEN) {
        let values: Vec<HeaderValue> = headers.get_all(&name).iter().cloned().collect();
        headers.remove(&name);
        for value in values {
            headers.append(CANONICAL_REFRESH_TOKEN, value);
        }
    }
}

/// What a request's headers say, by their names without the spelling. Has no `Debug`: tokens and keys are among them.
pub(super) struct StackHeaders<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> StackHeaders<'a> {
    /// Reads them. An empty one is one that is not there: the SDK sends an empty key when it has none.
    ///
    /// # Errors
    ///
    /// Where a header says two things, in one spelling or in two, or something that is no text.
    pub(super) fn read(headers: &'a HeaderMap) -> Result<Self, KnownError> {
        let mut said = BTreeMap::new();
        for (name, value) in headers {
            let Some((_, name)) = apart(name) else { continue };
            let text = value.to_str().map_err(|_| KnownError::schema(format!("header {name} must be ASCII")))?;
            if said.insert(name, text).is_some_and(|before| before != text) {
                return Err(KnownError::schema(format!("header {name} must not be sent with different values")));
            }
        }
        said.retain(|_, text| !text.is_empty());
        Ok(Self(said))
    }

    /// What a header says.
    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).copied()
    }

    /// The refresh token.
    pub(super) fn refresh_token(&self) -> Option<&'a str> {
        self.get(REFRESH_TOKEN)
    }
}

/// How a request wants to be answered.
#[derive(Clone)]
pub(super) struct Manner {
    spellings: Vec<&'static str>,
    /// Whether a refusal's status is put aside: some browsers' consoles shout at any but 200.
    pub(super) overrides_status: bool,
}

impl Manner {
    /// As its headers say; in the older spelling where none of them says.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let found: Vec<(&str, &str)> = headers.keys().filter_map(apart).collect();
        let mut spellings = SPELLINGS.to_vec();
        spellings.retain(|spelling| found.iter().any(|(used, _)| used == spelling));
        if spellings.is_empty() {
            spellings.push(SPELLINGS[0]);
        }
        Self { spellings, overrides_status: found.iter().any(|(_, name)| *name == "override-error-status") }
    }

    /// Tells the request's id.
    pub(super) fn set_request_id(&self, headers: &mut HeaderMap, id: &str) {
        self.set(headers, REQUEST_ID, HeaderValue::from_str(id).expect("hexadecimal digits"));
    }

    /// Tells the code of a refusal.
    pub(super) fn set_known_error(&self, headers: &mut HeaderMap, code: &'static str) {
        self.set(headers, KNOWN_ERROR, HeaderValue::from_static(code));
    }

    /// Tells the status that was put aside.
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
    fn a_header_says_one_thing_in_both_spellings() {
        let same = headers(&[("x-stack-project-id", "a"), ("x-hexclave-project-id", "a"), ("x-stack-nothing", "")]);
        let said = StackHeaders::read(&same).expect("the same in both");
        assert_eq!((said.get("project-id"), said.get("nothing")), (Some("a"), None));
        for other in ["x-hexclave-project-id", "x-stack-project-id"] {
            assert!(StackHeaders::read(&headers(&[("x-stack-project-id", "a"), (other, "b")])).is_err(), "{other}");
        }
    }
}
