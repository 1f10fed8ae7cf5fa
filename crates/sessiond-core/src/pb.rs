//! The messages and the client of `sessiond.v1`, generated from `proto/`. They are checked in, so that nobody who depends on
//! this crate needs a compiler for protos; a test of the server compares them with the protos.

#![allow(missing_docs, unreachable_pub, clippy::all, reason = "generated; the comments are in the proto")]

include!("pb/sessiond.v1.rs");
