//! Normalizes media types (RFC 9110 §8.3.1), which are case-insensitive and may have parameters. Inner layers compare gRPC's
//! types byte by byte, so they are normalized here, and types that inner layers would misread are refused.

use std::collections::HashMap;

use axum::Json;
use axum::extract::Request;
use axum::response::IntoResponse as _;
use axum::response::Response;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::Version;
use http::header;
use tonic::Code;
use tonic::Status;
use tonic_types::ErrorDetails;
use tonic_types::StatusExt as _;

use crate::telemetry::Wire;
use sessiond_core::reason;
use sessiond_core::reason::DOMAIN;

/// The framing that a request's content type declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Grpc,
    GrpcWeb,
    GrpcWebText,
    /// Another type that begins like gRPC's, or more than one type.
    Unknown,
}

impl Framing {
    /// Parses a media type without its parameters; `None` if it is not gRPC's. Whatever another reader could take for gRPC's is at
    /// least [`Framing::Unknown`]: inner layers must see no call that was not admitted as one.
    fn of(essence: &[u8]) -> Option<Self> {
        let essence = essence.trim_ascii().to_ascii_lowercase();
        let rest = essence.strip_prefix(b"application/grpc")?;
        match rest {
            b"" | b"+proto" => Some(Self::Grpc),
            b"-web" | b"-web+proto" => Some(Self::GrpcWeb),
            b"-web-text" | b"-web-text+proto" => Some(Self::GrpcWebText),
            // A different word with the same beginning.
            [b'a'..=b'z' | b'0'..=b'9', ..] => None,
            _ => Some(Self::Unknown),
        }
    }

    /// Reads a request's `Content-Type`.
    fn of_content(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(header::CONTENT_TYPE).iter().map(|value| Self::of(essence(value)));
        let first = values.next()?;
        // Two values of which one names gRPC could be read in two ways.
        values.fold(first, |seen, next| if seen.or(next).is_some() { Some(Self::Unknown) } else { None })
    }

    const fn spelling(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Grpc | Self::Unknown => "application/grpc",
            Self::GrpcWeb => "application/grpc-web+proto",
            Self::GrpcWebText => "application/grpc-web-text+proto",
        })
    }
}

/// The type without its parameters.
fn essence(value: &HeaderValue) -> &[u8] {
    value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default()
}

/// Whether a request's message is framed as gRPC or grpc-web, according to [`normalize`].
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    Framing::of_content(headers).is_some()
}

/// Whether the message is framed as text, which the headers no longer say afterwards: the caller decodes it. The answer stays in the
/// framing that the client understands.
pub(super) fn take_text_framing(headers: &mut HeaderMap) -> bool {
    if Framing::of_content(headers) != Some(Framing::GrpcWebText) {
        return false;
    }
    if accepted(headers).is_none() {
        headers.insert(header::ACCEPT, Framing::GrpcWebText.spelling());
    }
    headers.insert(header::CONTENT_TYPE, Framing::GrpcWeb.spelling());
    true
}

/// The wire of a request.
pub(super) fn wire(headers: &HeaderMap) -> Wire {
    match Framing::of_content(headers) {
        Some(Framing::Grpc | Framing::Unknown) => Wire::Grpc,
        Some(Framing::GrpcWeb | Framing::GrpcWebText) => Wire::GrpcWeb,
        None => Wire::Rest,
    }
}

/// Whether a request has gRPC's media type in the spelling that [`normalize`] gives it, and its method.
pub(super) fn is_plain_grpc(request: &Request) -> bool {
    let mut values = request.headers().get_all(header::CONTENT_TYPE).iter();
    let is_spelled = values.next().is_some_and(|value| *value == Framing::Grpc.spelling());
    is_spelled && values.next().is_none() && request.method() == Method::POST
}

/// Replaces gRPC's types by the spelling that inner layers know.
///
/// # Errors
///
/// The response to a request whose type inner layers would misread.
#[expect(clippy::result_large_err, reason = "it is returned at once")]
pub(super) fn normalize(request: &mut Request) -> Result<(), Response> {
    let Some(framing) = Framing::of_content(request.headers()) else { return Ok(()) };
    if framing == Framing::Unknown {
        let what =
            "expected application/grpc, application/grpc-web or application/grpc-web-text, with or without +proto";
        return Err(unsupported(what));
    }
    // gRPC over HTTP/2, "Requests". Inner layers do not check the method, and a request must not be carried out as another than
    // the one it was admitted as: the method decides whether to wait for a body.
    if request.method() != Method::POST {
        let what = "gRPC and grpc-web are always POST";
        let mut response = refused(StatusCode::METHOD_NOT_ALLOWED, Code::Unimplemented, "METHOD_NOT_ALLOWED", what);
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        return Err(response);
    }
    if framing == Framing::Grpc && request.version() < Version::HTTP_2 {
        let what = "gRPC needs HTTP/2; grpc-web does not";
        return Err(unsupported(what));
    }
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, framing.spelling());
    if framing != Framing::Grpc {
        let answer = accepted(headers).unwrap_or(framing);
        headers.insert(header::ACCEPT, answer.spelling());
    }
    Ok(())
}

/// The grpc-web framing that the client accepts. `None` if it names none; the response then has the request's framing.
fn accepted(headers: &HeaderMap) -> Option<Framing> {
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let ranges =
        values.flat_map(|value| value.split(',')).filter_map(|range| Framing::of(range.split(';').next()?.as_bytes()));
    ranges.into_iter().find(|framing| matches!(framing, Framing::GrpcWeb | Framing::GrpcWebText))
}

fn unsupported(what: &str) -> Response {
    refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::InvalidArgument, "UNSUPPORTED_MEDIA_TYPE", what)
}

fn refused(http: StatusCode, code: Code, reason: &'static str, message: &str) -> Response {
    let details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    (http, Json(reason::json(&Status::with_error_details(code, message, details)))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_type_is_read_in_any_case_and_with_parameters() {
        for (value, expected) in [
            ("application/grpc", Some(Framing::Grpc)),
            ("Application/gRPC+Proto ; a=b", Some(Framing::Grpc)),
            ("application/grpc-web+proto; charset=utf-8", Some(Framing::GrpcWeb)),
            ("APPLICATION/GRPC-WEB", Some(Framing::GrpcWeb)),
            ("application/grpc-web-text;q", Some(Framing::GrpcWebText)),
            ("application/grpc-Web-Text+proto", Some(Framing::GrpcWebText)),
            ("application/grpc+json", Some(Framing::Unknown)),
            ("application/grpc-web+thrift", Some(Framing::Unknown)),
            ("application/grpc-webx", Some(Framing::Unknown)),
            ("application/grpc x", Some(Framing::Unknown)),
            ("application/grpc,x", Some(Framing::Unknown)),
            ("application/grpc_x", Some(Framing::Unknown)),
            ("\tapplication/grpc\t;x", Some(Framing::Grpc)),
            ("application/grpcfoo", None),
            ("application/json", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(value));
            assert_eq!(Framing::of_content(&headers), expected, "{value}");
        }
        for (value, expected) in
            [(b"application/grpc;\xff", Framing::Grpc), (b"application/grpc\xff;", Framing::Unknown)]
        {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_bytes(value).expect("a value"));
            assert_eq!(Framing::of_content(&headers), Some(expected));
        }
        let mut both = HeaderMap::new();
        both.append(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        both.append(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        assert_eq!(Framing::of_content(&both), Some(Framing::Unknown));
        assert_eq!(Framing::of_content(&HeaderMap::new()), None);
    }

    #[test]
    fn a_response_has_the_accepted_framing() {
        for (values, expected) in [
            (&["application/grpc-web-text"][..], Some(Framing::GrpcWebText)),
            (&["*/*, Application/grpc-web-text+proto;q=0.9"], Some(Framing::GrpcWebText)),
            (&["application/grpc-web"], Some(Framing::GrpcWeb)),
            (&["*/*"], None),
            (&[], None),
        ] {
            assert_eq!(accepted(&headers(header::ACCEPT, values)), expected, "{values:?}");
        }
    }
}
