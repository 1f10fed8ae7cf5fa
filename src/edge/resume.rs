//! `Last-Event-ID`: a browser's `EventSource` sends the id of the last event that it received when it reconnects (HTML §9.2.4).
//! Our event ids are cursors, so it becomes the cursor of the call.

use axum::extract::Request;
use http::HeaderMap;
use http::HeaderName;
use http::Method;
use http::Uri;
use http::uri::PathAndQuery;
use percent_encoding::NON_ALPHANUMERIC;
use percent_encoding::utf8_percent_encode;

const HEADER: HeaderName = HeaderName::from_static("last-event-id");

/// The path of the stream of revocations, below every base path.
const STREAM: &str = "/auth/revocations:watch";

/// Sets the request's `cursor` to the id. It is newer than the one in the URL, which stays the same when the browser
/// reconnects. The method checks whether it is a valid cursor.
pub(super) fn resume(request: &mut Request) {
    if request.method() == Method::GET
        && request.uri().path().ends_with(STREAM)
        && let Some(uri) = last_event_id(request.headers()).and_then(|id| with_cursor(request.uri(), id))
    {
        *request.uri_mut() = uri;
    }
}

/// The id; `None` if it is missing or empty.
fn last_event_id(headers: &HeaderMap) -> Option<&str> {
    // An id that is not text becomes an invalid cursor.
    let id = headers.get(HEADER)?.to_str().unwrap_or("?").trim();
    (!id.is_empty()).then_some(id)
}

/// The same URI with this cursor and no other.
fn with_cursor(uri: &Uri, cursor: &str) -> Option<Uri> {
    let is_other = |pair: &&str| !pair.is_empty() && pair.split('=').next() != Some("cursor");
    let cursor = format!("cursor={}", utf8_percent_encode(cursor, NON_ALPHANUMERIC));
    let query: Vec<&str> = uri.query().unwrap_or_default().split('&').filter(is_other).chain([&*cursor]).collect();
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(format!("{}?{}", uri.path(), query.join("&"))).ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_replaces_the_cursor_in_the_url() {
        for (uri, expected) in [
            ("/auth/revocations:watch", "/auth/revocations:watch?cursor=a%2Db"),
            ("/auth/revocations:watch?", "/auth/revocations:watch?cursor=a%2Db"),
            ("/auth/revocations:watch?cursor=old", "/auth/revocations:watch?cursor=a%2Db"),
            ("http://h/auth/revocations:watch?x=1&cursor=old&y", "http://h/auth/revocations:watch?x=1&y&cursor=a%2Db"),
        ] {
            let found = with_cursor(&uri.parse().expect("a URI"), "a-b").expect("a URI");
            assert_eq!(found.to_string(), expected);
        }
    }
}
