//! The types of the layers inside the transcoder.

use tonic::body::Body;

use super::shared::SharedService;

pub(super) type GrpcRequest = http::Request<Body>;
pub(super) type GrpcResponse = http::Response<Body>;

/// The gRPC services with the layers that every call passes, on any wire.
pub(super) type GrpcService = SharedService<GrpcRequest, GrpcResponse>;
