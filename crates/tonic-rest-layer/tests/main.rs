//! All integration tests, in one binary.

#![allow(missing_docs, unreachable_pub, reason = "test names document the tests")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

/// The cases of `conformance.json`.
mod conformance;

/// Request bodies in chunks, slow and aborted ones.
mod bodies;

/// Malformed and unusual replies.
mod replies;

/// The options of the builder.
mod options;

/// Unusual and invalid descriptor sets.
mod foreign;

/// Random messages, printed and read back.
mod round_trip;

/// An unmodified tonic service inside the layer.
mod stranger;

/// `examples/library`, over a socket.
mod example;

/// The code in the README, compared with `examples/hello`.
mod readme;

/// The dependencies between modules, without cycles.
mod tree;

/// The OpenAPI document.
mod openapi;

/// Generated files, compared with their sources.
mod generated;

/// Protos compiled at test time, a scripted gRPC service, and an HTTP client.
mod harness;

/// The corpus of the fuzzer.
mod corpus;
