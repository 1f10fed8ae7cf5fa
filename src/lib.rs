//! The session half of auth.

/// `google.api.http` for tonic: REST requests in, gRPC frames to the inner service, JSON back.
pub mod transcode;
