//! The transcoding layer, over real sockets, in front of services that have nothing to do with sessions.

/// Every case of `conformance.json`.
mod conformance;

/// What one stranger's tonic service looks like behind the layer.
mod stranger;

/// Protos compiled at test time, a gRPC service that does as a case says, and a plain HTTP client.
mod harness;
