//! The mapping from gRPC codes to HTTP statuses, and the errors of the layer itself.

use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::header;
use percent_encoding::percent_decode;
use prost_reflect::prost::Message as _;
use prost_reflect::prost_types::Any;
use prost_reflect::prost_types::Duration;
use serde_json::Value;
use serde_json::json;

use crate::print;
use crate::scalar;
use crate::schema::PrintStyle;
use crate::schema::Schema;
use crate::violation::Violation;

pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_STATUS_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

/// A gRPC status code, with its HTTP status. Source: `google/rpc/code.proto`, whose comments have the mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are gRPC's own")]
pub enum Code {
    Ok = 0,
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl Code {
    /// Converts a number. Unknown numbers become `Unknown`, as in the gRPC specification.
    pub fn from_number(number: i32) -> Code {
        const CODES: [Code; 17] = [
            Code::Ok,
            Code::Cancelled,
            Code::Unknown,
            Code::InvalidArgument,
            Code::DeadlineExceeded,
            Code::NotFound,
            Code::AlreadyExists,
            Code::PermissionDenied,
            Code::ResourceExhausted,
            Code::FailedPrecondition,
            Code::Aborted,
            Code::OutOfRange,
            Code::Unimplemented,
            Code::Internal,
            Code::Unavailable,
            Code::DataLoss,
            Code::Unauthenticated,
        ];
        usize::try_from(number).ok().and_then(|number| CODES.get(number)).copied().unwrap_or(Code::Unknown)
    }

    /// Returns the HTTP status for this code. 499 is nginx's "client closed request".
    pub fn http_status(self) -> StatusCode {
        match self {
            Code::Ok => StatusCode::OK,
            Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
            Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
            Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        }
    }

    /// The code for an HTTP error without a `grpc-status`, for example of a proxy. Source: grpc's
    /// `doc/http-grpc-status-mapping.md`.
    fn from_http(status: StatusCode) -> Code {
        match status.as_u16() {
            400 => Code::Internal,
            401 => Code::Unauthenticated,
            403 => Code::PermissionDenied,
            404 => Code::Unimplemented,
            429 | 502..=504 => Code::Unavailable,
            _ => Code::Unknown,
        }
    }
}

/// A reason of an error of the layer itself: a request that it rejects, or a reply that it cannot transcode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerReason {
    /// `ErrorInfo.reason`.
    pub name: &'static str,
    /// The gRPC code in the body.
    pub code: Code,
    /// The HTTP status.
    pub status: StatusCode,
    /// When the error occurs.
    pub description: &'static str,
}

/// Returns all reasons of errors of the layer itself, without duplicates, to document them.
pub fn layer_reasons() -> Vec<LayerReason> {
    let mut reasons: Vec<LayerReason> = vec![];
    for refusal in Refusal::one_of_each() {
        let (code, status, name) = refusal.row();
        if !reasons.iter().any(|reason| reason.name == name) {
            reasons.push(LayerReason { name, code, status, description: refusal.description() });
        }
    }
    reasons
}

/// An error of the layer itself, before or after the call.
#[derive(Debug)]
pub(crate) enum Refusal {
    RouteNotFound,
    MethodNotAllowed(Vec<Method>),
    UnsupportedMediaType,
    ContentEncoding,
    /// The body did not arrive in time.
    BodyTooSlow,
    BodyTooLarge(usize),
    /// Reading the body failed. Usually the client has disconnected.
    BodyUnreadable,
    Schema(Vec<Violation>),
    /// The service's reply is not a message of the method, or has no JSON form.
    BadReply(&'static str),
}

impl Refusal {
    /// The table of the layer's errors: code, HTTP status, reason.
    pub(crate) fn row(&self) -> (Code, StatusCode, &'static str) {
        match self {
            Refusal::RouteNotFound => (Code::NotFound, StatusCode::NOT_FOUND, "ROUTE_NOT_FOUND"),
            Refusal::MethodNotAllowed(_) => (Code::Unimplemented, StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED"),
            Refusal::UnsupportedMediaType | Refusal::ContentEncoding => {
                (Code::InvalidArgument, StatusCode::UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED_MEDIA_TYPE")
            }
            Refusal::BodyTooLarge(_) => (Code::OutOfRange, StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE"),
            Refusal::BodyTooSlow => (Code::DeadlineExceeded, StatusCode::REQUEST_TIMEOUT, "BODY_TIMEOUT"),
            Refusal::BodyUnreadable => (Code::InvalidArgument, StatusCode::BAD_REQUEST, "BODY_UNREADABLE"),
            Refusal::Schema(_) => (Code::InvalidArgument, StatusCode::BAD_REQUEST, "SCHEMA_ERROR"),
            Refusal::BadReply(_) => (Code::Internal, StatusCode::INTERNAL_SERVER_ERROR, "BAD_REPLY"),
        }
    }

    /// When the error occurs, for documentation.
    pub(crate) fn description(&self) -> &'static str {
        match self {
            Refusal::RouteNotFound => "A value in the path makes it a path without a rule.",
            Refusal::MethodNotAllowed(_) => "A value in the path makes it a path without a rule for this method.",
            Refusal::UnsupportedMediaType | Refusal::ContentEncoding => {
                "The body has another media type, or a content encoding."
            }
            Refusal::BodyTooSlow => "The body took too long to arrive.",
            Refusal::BodyTooLarge(_) => "The body is too large.",
            Refusal::BodyUnreadable => "The body could not be read.",
            Refusal::Schema(_) => "The request does not fit its schema; `google.rpc.BadRequest` has the fields.",
            Refusal::BadReply(_) => "The service's reply is malformed, or has no JSON form.",
        }
    }

    /// One value of each variant, for tables.
    fn one_of_each() -> [Refusal; 9] {
        [
            Refusal::RouteNotFound,
            Refusal::MethodNotAllowed(vec![]),
            Refusal::UnsupportedMediaType,
            Refusal::ContentEncoding,
            Refusal::BodyTooSlow,
            Refusal::BodyTooLarge(1),
            Refusal::BodyUnreadable,
            Refusal::Schema(vec![]),
            Refusal::BadReply(""),
        ]
    }

    fn message(&self) -> String {
        match self {
            Refusal::RouteNotFound => "no such route".to_owned(),
            Refusal::MethodNotAllowed(_) => "no rule of this path has this method".to_owned(),
            Refusal::UnsupportedMediaType => "expected application/json".to_owned(),
            Refusal::ContentEncoding => "expected a body without a content encoding".to_owned(),
            Refusal::BodyTooSlow => "the body did not arrive in time".to_owned(),
            Refusal::BodyTooLarge(limit) => format!("the body is larger than {limit} bytes"),
            Refusal::BodyUnreadable => "the body could not be read".to_owned(),
            Refusal::Schema(violations) => match violations.first() {
                Some(Violation { field, description }) if field.is_empty() => description.clone(),
                Some(Violation { field, description }) => format!("{field}: {description}"),
                None => "the request does not fit its schema".to_owned(),
            },
            Refusal::BadReply(what) => (*what).to_owned(),
        }
    }

    /// The response. `domain` is the `ErrorInfo.domain`.
    pub(crate) fn to_error(&self, domain: &str, style: PrintStyle) -> RestError {
        let (code, status, reason) = self.row();
        let mut info = json!({
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": reason,
            "domain": domain,
        });
        if !style.omits_defaults {
            info["metadata"] = json!({});
        }
        let mut details = vec![info];
        if let Refusal::Schema(violations) = self {
            let violation = |Violation { field, description }: &Violation| match style.omits_defaults {
                true if field.is_empty() => json!({"description": description}),
                true => json!({"field": field, "description": description}),
                false => json!({"field": field, "description": description, "reason": ""}),
            };
            let name = if style.json_names { "fieldViolations" } else { "field_violations" };
            details.push(json!({
                "@type": "type.googleapis.com/google.rpc.BadRequest",
                (name): violations.iter().map(violation).collect::<Vec<Value>>(),
            }));
        }
        let mut headers = HeaderMap::new();
        match self {
            Refusal::MethodNotAllowed(methods) => drop(headers.insert(header::ALLOW, allow(methods))),
            // The accepted encodings (RFC 9110 §15.5.16).
            Refusal::ContentEncoding => {
                headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            }
            _ => {}
        }
        let details = details.iter().map(|detail| detail.to_string().into_bytes()).collect();
        RestError { status, headers, code, message: self.message(), details }
    }
}

/// The `Allow` header (RFC 9110 §10.2.1).
pub(crate) fn allow(methods: &[Method]) -> HeaderValue {
    let text = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
    // Cannot fail: methods are tokens, and tokens are valid header values.
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// An error response: a failed call, or an error of the layer itself. The argument of
/// [`RestLayerBuilder::error_body`](crate::RestLayerBuilder::error_body).
#[derive(Debug)]
pub struct RestError {
    pub(crate) status: StatusCode,
    /// The headers of the status: `Allow`, `WWW-Authenticate`, `Retry-After`.
    pub(crate) headers: HeaderMap,
    code: Code,
    message: String,
    /// Each a JSON object.
    details: Vec<Vec<u8>>,
}

impl RestError {
    /// The HTTP status of the error. If a stream fails after its first message, the response already has the status 200.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The gRPC code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The message, for developers.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The typed details, each a JSON object with `@type`.
    pub fn details(&self) -> Vec<Value> {
        self.details.iter().filter_map(|detail| serde_json::from_slice(detail).ok()).collect()
    }
}

impl RestError {
    /// Reads the error of a call from its trailers, or from the headers of a trailers-only response. `None` if the call succeeded.
    ///
    /// `status` is the HTTP status of the service's response.
    pub(crate) fn from_call_end(details: &DetailSchemas<'_>, status: StatusCode, end: &HeaderMap) -> Option<RestError> {
        let code = match end.get(GRPC_STATUS).map(|code| code.to_str().ok().and_then(|code| code.parse().ok())) {
            Some(Some(number)) => Code::from_number(number),
            Some(None) => Code::Unknown,
            // Without a status, the call was aborted. It must not look like a success.
            None if status == StatusCode::OK => Code::Internal,
            None => Code::from_http(status),
        };
        if code == Code::Ok {
            return None;
        }
        let message = match end.get(GRPC_MESSAGE) {
            Some(message) => percent_decode(message.as_bytes()).decode_utf8_lossy().into_owned(),
            None if end.contains_key(GRPC_STATUS) => String::new(),
            None => "the service gave no status".to_owned(),
        };
        let mut failure =
            RestError { status: code.http_status(), headers: HeaderMap::new(), code, message, details: Vec::new() };
        if let Some(packed) = end.get(GRPC_STATUS_DETAILS) {
            failure.unpack(details, packed);
        }
        if failure.status == StatusCode::UNAUTHORIZED {
            // A 401 must have a challenge (RFC 9110 §15.5.2). The service's own header replaces it.
            failure.headers.insert(header::WWW_AUTHENTICATE, details.challenge.clone());
        }
        Some(failure)
    }

    /// Reads the details. Skips invalid ones, so that the client still gets the status.
    fn unpack(&mut self, schemas: &DetailSchemas<'_>, packed: &HeaderValue) {
        let bytes = packed.to_str().ok().and_then(scalar::decode_base64);
        let Some(status) = bytes.and_then(|bytes| RpcStatus::decode(bytes.as_slice()).ok()) else { return };
        for detail in status.details {
            match detail.type_url.rsplit('/').next() {
                // Has stack traces, which are for operators, not for clients.
                Some("google.rpc.DebugInfo") => continue,
                Some("google.rpc.RetryInfo") => self.retry_after(&detail),
                _ => {}
            }
            self.details.extend(schemas.render(&detail));
        }
    }

    /// Sets `Retry-After` to whole seconds, rounded up so that the client does not retry too early, and at least 1.
    fn retry_after(&mut self, retry_info: &Any) {
        if let Ok(RetryInfo { retry_delay: Some(delay) }) = RetryInfo::decode(retry_info.value.as_slice()) {
            let seconds = delay.seconds.saturating_add(i64::from(delay.nanos > 0)).max(1);
            self.headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
    }

    /// `google.rpc.Status` as JSON.
    pub(crate) fn body(&self) -> Vec<u8> {
        let mut body = format!("{{\"code\":{},\"message\":{},\"details\":[", self.code as i32, json!(self.message));
        for (position, detail) in self.details.iter().enumerate() {
            if position > 0 {
                body.push(',');
            }
            body.push_str(&String::from_utf8_lossy(detail));
        }
        body.push_str("]}");
        body.into_bytes()
    }
}

/// The types of details: those of `google.rpc`, and those of the service.
pub(crate) struct DetailSchemas<'s> {
    pub google_rpc: &'s Schema,
    pub service: &'s Schema,
    /// The `WWW-Authenticate` header of a 401, unless the service sends one.
    pub challenge: &'s HeaderValue,
}

impl DetailSchemas<'_> {
    /// Prints a detail. `None` if neither schema has its type.
    fn render(&self, detail: &Any) -> Option<Vec<u8>> {
        [self.google_rpc, self.service].into_iter().find_map(|schema| {
            let mut json = Vec::new();
            print::print_detail(schema, &detail.type_url, &detail.value, &mut json).ok()?;
            Some(json)
        })
    }
}

/// The details of `google.rpc.Status`. Code and message are in the trailers.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, prost::Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;

    use super::*;

    /// The published table of HTTP statuses (google/rpc/code.proto).
    #[test]
    fn every_code_has_its_http_status() {
        let table: Vec<u16> = (0..17).map(|number| Code::from_number(number).http_status().as_u16()).collect();
        assert_eq!(table, [200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401]);
        assert_eq!(Code::from_number(17), Code::Unknown);
        assert_eq!(Code::from_number(-1), Code::Unknown);
    }

    /// The published table of the layer's errors.
    #[test]
    fn every_refusal_has_its_code_status_and_reason() {
        let refusals = Refusal::one_of_each();
        let table: Vec<String> = refusals
            .iter()
            .map(|refusal| {
                let (code, status, reason) = refusal.row();
                format!("{} {} {reason}", status.as_u16(), code as i32)
            })
            .collect();
        assert_eq!(
            table,
            [
                "404 5 ROUTE_NOT_FOUND",
                "405 12 METHOD_NOT_ALLOWED",
                "415 3 UNSUPPORTED_MEDIA_TYPE",
                "415 3 UNSUPPORTED_MEDIA_TYPE",
                "408 4 BODY_TIMEOUT",
                "413 11 BODY_TOO_LARGE",
                "400 3 BODY_UNREADABLE",
                "400 3 SCHEMA_ERROR",
                "500 13 BAD_REPLY",
            ]
        );
    }

    #[test]
    fn a_retry_delay_is_rounded_up() {
        for (seconds, nanos, expected) in [(0, 0, "1"), (0, 1, "1"), (1, 1, "2"), (30, 0, "30"), (-5, 0, "1")] {
            let info = RetryInfo { retry_delay: Some(Duration { seconds, nanos }) };
            let detail = Any { type_url: "x/google.rpc.RetryInfo".to_owned(), value: info.encode_to_vec() };
            let packed = BASE64_STANDARD.encode(RpcStatus { details: vec![detail] }.encode_to_vec());
            let mut end = HeaderMap::new();
            end.insert("grpc-status", HeaderValue::from_static("14"));
            end.insert("grpc-status-details-bin", packed.parse().unwrap());
            let schema = Schema::new(&prost_reflect::DescriptorPool::new(), PrintStyle::default());
            let details =
                DetailSchemas { google_rpc: &schema, service: &schema, challenge: &HeaderValue::from_static("Bearer") };
            let failure = RestError::from_call_end(&details, StatusCode::OK, &end).unwrap();
            assert_eq!(failure.headers[header::RETRY_AFTER], expected);
            assert_eq!(failure.body(), br#"{"code":14,"message":"","details":[]}"#);
        }
    }
}
