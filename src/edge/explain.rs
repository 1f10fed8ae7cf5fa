//! Adds details to the statuses that tonic creates, so that every response has a reason.

use http::HeaderMap;
use http::HeaderValue;
use tonic::Code;
use tonic::Status;

use super::grpc::GrpcResponse;
use crate::rpc::status;

/// Replaces a status without details by one of ours.
pub(super) fn explain(response: GrpcResponse) -> GrpcResponse {
    let headers = response.headers();
    if headers.contains_key(Status::GRPC_STATUS_DETAILS) {
        return response;
    }
    match code(headers) {
        // With this header, tonic does not support the encoding, and names those that it does.
        Some(Code::Unimplemented) => match headers.get(ACCEPT_ENCODING).cloned() {
            Some(encodings) => {
                let mut response = status::unknown_encoding().into_http();
                response.headers_mut().insert(ACCEPT_ENCODING, encodings);
                response
            }
            None => status::unknown_method().into_http(),
        },
        // The request could not be decoded: wrong encoding, too large, or malformed. tonic reports an internal error, out of
        // range, or (for a decompressed message) an exhausted resource.
        Some(Code::Internal | Code::OutOfRange | Code::ResourceExhausted) => status::undecodable().into_http(),
        _ => response,
    }
}

const ACCEPT_ENCODING: &str = "grpc-accept-encoding";

fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(HeaderValue::as_bytes).map(Code::from_bytes)
}
