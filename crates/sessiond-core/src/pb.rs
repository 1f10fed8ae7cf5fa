//! The messages and the client of `sessiond.v1`, generated from `proto/`. The generated code is checked in, so that dependents
//! need no proto compiler; a test of the server compares it with the proto files.

#![allow(missing_docs, unreachable_pub, clippy::all, reason = "generated; the comments are in the proto")]

include!("pb/sessiond.v1.rs");
