//! The session half of auth.

/// Names.
#[cfg(feature = "server")]
pub mod id;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod clock;
#[cfg(feature = "server")]
pub mod pb;
#[cfg(feature = "server")]
pub mod telemetry;
#[cfg(feature = "server")]
pub mod token;
#[cfg(feature = "server")]
pub mod session;
#[cfg(feature = "server")]
pub mod store;
#[cfg(feature = "server")]
pub mod app;
#[cfg(feature = "server")]
pub mod rpc;
#[cfg(feature = "server")]
pub mod edge;
/// `google.api.http` for tonic: REST requests in, gRPC frames to the inner service, JSON back.
pub mod transcode;

/// A Postgres of our own, for `sessiond dev` and the tests: it lives as long as the process that started it.
#[cfg(feature = "server")]
pub mod cluster;
