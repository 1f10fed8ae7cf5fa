//! Statuses that tonic makes by itself have no details. This adds them, so that every answer has a reason.

use http::HeaderMap;
use http::HeaderValue;
use tonic::Code;
use tonic::Status;

use super::grpc::GrpcResponse;
use crate::rpc::status;

/// Puts our status in the place of one without details.
pub(super) fn explain(response: GrpcResponse) -> GrpcResponse {
    let headers = response.headers();
    if headers.contains_key(Status::GRPC_STATUS_DETAILS) {
        return response;
    }
    match code(headers) {
        // It says so when it does not know an encoding, and says which ones would do.
        Some(Code::Unimplemented) => match headers.get(ACCEPT_ENCODING).cloned() {
            Some(encodings) => {
                let mut response = status::unknown_encoding().into_http();
                response.headers_mut().insert(ACCEPT_ENCODING, encodings);
                response
            }
            None => status::unknown_method().into_http(),
        },
        // What came could not be read: not the encoding that was named, too large, or no message. tonic calls that an internal
        // error, out of range, or (decompressed) an exhausted resource.
        Some(Code::Internal | Code::OutOfRange | Code::ResourceExhausted) => status::undecodable().into_http(),
        _ => response,
    }
}

const ACCEPT_ENCODING: &str = "grpc-accept-encoding";

fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(HeaderValue::as_bytes).map(Code::from_bytes)
}
