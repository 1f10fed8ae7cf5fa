//! Converts headers to metadata and back, without the headers of one connection or one encoding.

use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::header;

/// Headers of one connection (RFC 9110 §7.6.1), which are never passed on.
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
    )
}

/// Turns a request's headers into metadata, in place.
///
/// Removes hop-by-hop headers and those named by `Connection`; `content-*`, which describes the JSON, not the frame; `grpc-*`
/// except `grpc-timeout`, because compression and status are between gRPC peers; `*-bin`, which gRPC reads as base64; `Expect`; and
/// method overrides, so that a proxy and the service cannot disagree about the method.
pub(crate) fn to_metadata(headers: &mut HeaderMap) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    // Removed separately because nearly every request has it.
    headers.remove(header::CONTENT_LENGTH);
    remove(headers, |name| {
        is_hop_by_hop(name)
            || (name.starts_with("content-") && name != "content-type")
            || (name.starts_with("grpc-") && name != "grpc-timeout")
            || name.ends_with("-bin")
            || matches!(name, "expect" | "x-http-method-override" | "x-http-method" | "x-method-override")
    });
}

/// Removes the headers named by `Connection` and those that are `unwanted`. Keeps `te` and `content-type`, which the layer has set.
fn remove(headers: &mut HeaderMap, unwanted: impl Fn(&str) -> bool) {
    if headers.contains_key(header::CONNECTION) {
        for name in named_by_connection(headers) {
            if name != header::TE && name != header::CONTENT_TYPE {
                headers.remove(name);
            }
        }
        headers.remove(header::CONNECTION);
    }
    // Usually empty, and then it does not allocate.
    let unwanted: Vec<HeaderName> =
        headers.keys().filter(|name| **name != header::TE && unwanted(name.as_str())).cloned().collect();
    for name in unwanted {
        headers.remove(name);
    }
}

/// The header names in `Connection: close, x-secret`, which are for the next hop only.
fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect()
}

/// Turns the metadata of a reply into headers, in place, and appends the trailing metadata. Removes hop-by-hop headers, those named
/// by `Connection`, `grpc-*`, `*-bin`, and those that describe the frame.
///
/// Keeps the content type, which the caller replaces.
pub(crate) fn from_metadata(headers: &mut HeaderMap, trailers: &HeaderMap) {
    let unwanted = |name: &str| {
        is_hop_by_hop(name)
            || name.starts_with("grpc-")
            || name.ends_with("-bin")
            || matches!(name, "content-length" | "content-encoding")
    };
    headers.remove(header::TE);
    remove(headers, unwanted);
    for (name, value) in trailers {
        // Appended: gRPC clients also get initial and trailing metadata of the same name.
        if !unwanted(name.as_str()) && name != header::CONTENT_TYPE {
            headers.append(name, value.clone());
        }
    }
}

/// Whether this is a gRPC or grpc-web request.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    headers.get(header::CONTENT_TYPE).is_some_and(|value| {
        let value = value.as_bytes();
        value.len() >= GRPC.len()
            && value[..GRPC.len()].eq_ignore_ascii_case(GRPC)
            && matches!(value.get(GRPC.len()), None | Some(b'+' | b'-' | b';' | b' '))
    })
}

/// Whether the content is JSON: `application/json` or `application/*+json`, in UTF-8 (RFC 8259 §8.1).
///
/// Any other type, and a missing one, is not JSON: a browser sends `text/plain` and forms to other origins without a CORS
/// preflight.
pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    if value.as_bytes() == b"application/json" {
        return true;
    }
    let Ok(value) = value.to_str() else { return false };
    let mut parts = value.split(';').map(|part| part.trim().to_ascii_lowercase());
    let essence = parts.next().unwrap_or_default();
    let json =
        essence.strip_prefix("application/").is_some_and(|subtype| subtype == "json" || subtype.ends_with("+json"));
    json && parts.all(|parameter| match parameter.split_once('=') {
        Some(("charset", charset)) => matches!(charset.trim_matches('"'), "utf-8" | "utf8"),
        _ => true,
    })
}

/// Whether the content has no encoding: no `Content-Encoding`, or `identity`.
pub(crate) fn is_unencoded(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .all(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity"))
}

/// Whether `Accept` names server-sent events. A wildcard is not enough.
pub(crate) fn wants_events(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|range| {
            let mut parts = range.split(';').map(str::trim);
            let named = parts.next().is_some_and(|range| range.eq_ignore_ascii_case("text/event-stream"));
            let refused = |part: &str| {
                let weight = part.strip_prefix("q=").or_else(|| part.strip_prefix("Q="));
                weight.and_then(|weight| weight.parse::<f32>().ok()) == Some(0.0)
            };
            named && !parts.any(refused)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn metadata_has_no_hop_by_hop_and_no_grpc_headers() {
        let mut headers = headers(&[
            ("connection", "close, X-Hop"),
            ("x-hop", "1"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("content-length", "3"),
            ("content-encoding", "identity"),
            ("grpc-encoding", "gzip"),
            ("grpc-accept-encoding", "gzip"),
            ("grpc-status", "0"),
            ("grpc-timeout", "1S"),
            ("trace-bin", "AA"),
            ("x-http-method-override", "DELETE"),
            ("authorization", "Bearer t"),
        ]);
        to_metadata(&mut headers);
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["authorization", "content-type", "grpc-timeout", "te"]);
        assert_eq!(headers["te"], "trailers");
    }

    #[test]
    fn a_reply_keeps_initial_and_trailing_metadata_without_hop_by_hop_headers() {
        let mut initial = headers(&[
            ("content-type", "application/grpc"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("te", "trailers"),
            ("grpc-encoding", "identity"),
            ("trace-bin", "AA"),
            ("x-both", "initial"),
        ]);
        let trailing =
            headers(&[("grpc-status", "0"), ("trace-bin", "AA"), ("x-both", "trailing"), ("content-length", "7")]);
        from_metadata(&mut initial, &trailing);
        let mut names: Vec<_> = initial.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-type", "x-both"]);
        assert_eq!(initial.get_all("x-both").iter().collect::<Vec<_>>(), ["initial", "trailing"]);
    }

    #[test]
    fn json_is_recognised_by_its_content_type() {
        for value in ["application/json", "Application/JSON; charset=UTF-8", "application/merge-patch+json"] {
            assert!(is_json(&headers(&[("content-type", value)])), "{value}");
        }
        for value in ["text/plain", "text/json", "application/jsonp", "application/json; charset=latin1", ""] {
            assert!(!is_json(&headers(&[("content-type", value)])), "{value}");
        }
        assert!(!is_json(&HeaderMap::new()));
        assert!(!is_json(&headers(&[("content-type", "application/json"), ("content-type", "text/plain")])));
    }

    #[test]
    fn grpc_is_recognised_by_its_content_type() {
        for value in ["application/grpc", "application/grpc+proto", "application/grpc-web-text", "Application/gRPC;x=y"]
        {
            assert!(is_grpc(&headers(&[("content-type", value)])), "{value}");
        }
        for value in ["application/grpcfoo", "application/json", "application/gr"] {
            assert!(!is_grpc(&headers(&[("content-type", value)])), "{value}");
        }
    }

    #[test]
    fn events_need_an_explicit_accept() {
        for value in ["text/event-stream", "application/json, text/event-stream;q=0.5"] {
            assert!(wants_events(&headers(&[("accept", value)])), "{value}");
        }
        for value in ["*/*", "text/*", "text/event-stream;q=0", "application/x-ndjson"] {
            assert!(!wants_events(&headers(&[("accept", value)])), "{value}");
        }
    }
}
