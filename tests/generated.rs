//! The generated code that is checked in, so that a guard builds without a compiler for protos. Run with `ACCEPT=1` after a
//! change of the proto, before anything uses it.

use std::{fs, path::Path};

/// What the build script makes of the proto.
const MADE: &str = include_str!(concat!(env!("OUT_DIR"), "/core/sessiond.v1.rs"));

#[test]
fn the_checked_in_code_is_what_the_proto_compiles_to() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/sessiond-core/src/pb/sessiond.v1.rs");
    if std::env::var_os("ACCEPT").is_some() {
        fs::write(&path, MADE).expect("writes");
    }
    let checked_in = fs::read_to_string(&path).unwrap_or_default();
    assert!(checked_in == MADE, "crates/sessiond-core/src/pb/sessiond.v1.rs is out of date: run with ACCEPT=1");
}
