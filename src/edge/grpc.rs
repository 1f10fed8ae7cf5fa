//! What travels between the layers inside the transcoder.

use std::convert::Infallible;

use tonic::body::Body;
use tower::util::BoxCloneSyncService;

pub(super) type GrpcRequest = http::Request<Body>;
pub(super) type GrpcResponse = http::Response<Body>;

/// The gRPC services and what every call passes on its way to them, whichever wire it came over.
pub(super) type GrpcService = BoxCloneSyncService<GrpcRequest, GrpcResponse, Infallible>;
