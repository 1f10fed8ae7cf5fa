//! What travels between the layers inside the transcoder.

use tonic::body::Body;

use super::shared::SharedService;

pub(super) type GrpcRequest = http::Request<Body>;
pub(super) type GrpcResponse = http::Response<Body>;

/// The gRPC services and what every call passes on its way to them, whichever wire it came over.
pub(super) type GrpcService = SharedService<GrpcRequest, GrpcResponse>;
