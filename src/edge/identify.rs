//! Gives every request an id, which appears in the log, in the response's `x-request-id` and in the details of an internal
//! error. Also records the request's wire, before inner layers make all three look alike.

use std::hash::BuildHasher as _;
use std::hash::RandomState;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use axum::extract::Request;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::header;
use uuid::Uuid;

use super::media;
use super::origin;
use crate::forwarded::Trust;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that is accepted from a proxy, in bytes.
const LENGTH_MAX: usize = 128;

/// Records the request's wire, and returns its id: the one that a trusted proxy sent, so that both logs use the same id, or a
/// new one. An id from anyone else is ignored, because a client could forge it.
pub(super) fn identify(trust: &Trust, request: &mut Request) -> Arc<str> {
    let wire = media::wire(request.headers());
    request.extensions_mut().insert(wire);
    let trusted = origin::peer(request).is_some_and(|peer| trust.has(peer.to_canonical()));
    let given = if trusted { given(request.headers()) } else { None };
    given.unwrap_or_else(new_id)
}

/// A new id: 32 hexadecimal digits. A keyed hash of a number is as unlikely to repeat as random bits are, which would take a
/// system call for every request. An id is no secret.
fn new_id() -> Arc<str> {
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let half = |which: u8| KEY.hash_one((which, number));
    let id = Uuid::from_u64_pair(half(0), half(1));
    Arc::from(&*id.simple().encode_lower(&mut [0; 32]))
}

/// Adds the id to a response, and what every response says about itself.
pub(super) fn complete(headers: &mut HeaderMap, id: &str) {
    let value = HeaderValue::from_str(id).expect("plain characters are a header value");
    headers.insert(HEADER, value);
    // Responses may hold tokens (RFC 6749 §5.1); cacheable ones say so themselves.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    // JSON holds what users wrote; a browser must not take it for a page.
    headers.entry(header::X_CONTENT_TYPE_OPTIONS).or_insert(HeaderValue::from_static("nosniff"));
}

/// The id in the request, if there is exactly one and it is safe for a log and a header.
fn given(headers: &HeaderMap) -> Option<Arc<str>> {
    let mut values = headers.get_all(HEADER).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(&byte);
    let text = value.to_str().ok().filter(|text| (1..=LENGTH_MAX).contains(&text.len()))?;
    text.bytes().all(plain).then(|| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accepted_id_is_short_and_plain() {
        let given = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(HEADER, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
            }
            given(&headers).map(|id| id.to_string())
        };
        for good in
            ["4bf92f3577b34da6", "0199d4a0-7c33-7d55-9f0e-3c0f0a1b2c3d", "Root=1-67891233-abc", &"a".repeat(128)]
        {
            assert_eq!(given(&[good]).as_deref(), Some(good));
        }
        for bad in ["", "a b", "a\tb", "a\"b", "ä", "a,b", "<a>", "{a}", &"a".repeat(129)] {
            assert_eq!(given(&[bad]), None, "{bad}");
        }
        assert_eq!((given(&[]), given(&["a", "a"])), (None, None));
    }
}
