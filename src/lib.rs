//! The session half of auth.

/// `google.api.http` for tonic: REST requests in, gRPC frames to the inner service, JSON back.
pub mod transcode;

/// A Postgres of our own, for `sessiond dev` and the tests: it lives as long as the process that started it.
#[cfg(feature = "server")]
pub mod cluster;
