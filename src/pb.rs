//! What `proto/` compiles to. A test compares it with the proto: see `tests/generated.rs`.

#![allow(missing_docs, unreachable_pub, clippy::all, reason = "generated; its comments are the proto's")]

include!("pb/sessiond.v1.rs");

/// The descriptors of the API and all that it imports, options and comments included.
#[cfg(feature = "server")]
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sessiond.bin"));

/// What a proxy asks: see `proto/envoy/`.
#[cfg(feature = "server")]
pub mod envoy {
    include!(concat!(env!("OUT_DIR"), "/envoy/envoy.service.auth.v3.rs"));
}
