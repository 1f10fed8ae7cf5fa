//! The generated code: the messages and the client that the guard has too, and the server's half.

#![allow(missing_docs, unreachable_pub, clippy::all, reason = "generated; the comments are in the proto")]

pub use sessiond_core::pb::*;

include!(concat!(env!("OUT_DIR"), "/server/sessiond.v1.rs"));

/// The descriptors of the API and of all that it imports, with options and comments.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sessiond.bin"));

/// The call that a proxy makes: see `proto/envoy/`.
pub mod envoy {
    include!(concat!(env!("OUT_DIR"), "/envoy/envoy.service.auth.v3.rs"));

    /// Its descriptors. It is only partly described, so they are not published.
    pub(crate) const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/envoy.bin"));
}
