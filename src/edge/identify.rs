//! Gives every request an id: in the log, in an answer's `x-request-id`, in the details of an internal error. And notes
//! over which wire it came, before the layers further in make all three look alike.

use std::sync::Arc;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::header;

use crate::clock;
use crate::telemetry::REQUEST_ID;
use crate::telemetry::Wire;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// Runs the request under an id of its own. One that the client sent is not taken over: it would be the client's to forge.
pub(super) async fn identify(mut request: Request, next: Next) -> Response {
    let wire = wire(request.headers());
    request.extensions_mut().insert(wire);
    let id: Arc<str> = clock::new_uuid().simple().to_string().into();
    let mut response = REQUEST_ID.scope(Arc::clone(&id), next.run(request)).await;
    let value = HeaderValue::from_str(&id).expect("hexadecimal digits are a header value");
    response.headers_mut().insert(HEADER, value);
    // Tokens travel in answers (RFC 6749 §5.1); what may be kept says so itself.
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

fn wire(headers: &HeaderMap) -> Wire {
    let content_type = headers.get(header::CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
    if content_type.starts_with(b"application/grpc-web") {
        Wire::GrpcWeb
    } else if content_type.starts_with(b"application/grpc") {
        Wire::Grpc
    } else {
        Wire::Rest
    }
}
