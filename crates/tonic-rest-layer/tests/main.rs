//! One binary for all integration tests: the layer over real sockets, in front of several services. This file is their table of
//! contents.

#![allow(missing_docs, unreachable_pub, reason = "a test's name and body say what it is")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

/// Every case of `conformance.json`.
mod conformance;

/// Request bodies as they arrive.
mod bodies;

/// Replies that no well-behaved service sends.
mod replies;

/// What the builder's options change.
mod options;

/// Descriptor sets that other people's builds make.
mod foreign;

/// What is printed is read back the same, field kind by field kind.
mod round_trip;

/// What one stranger's tonic service looks like behind the layer.
mod stranger;

/// The example, over a socket.
mod example;

/// The README, compared with the example.
mod readme;

/// The modules, without circles.
mod tree;

/// The rules as an OpenAPI document.
mod openapi;

/// What is checked in, compared with what it is made of.
mod generated;

/// Protos compiled at test time, a gRPC service that does as a case says, and a plain HTTP client.
mod harness;

/// The fuzzer's corpus, again.
mod corpus;
