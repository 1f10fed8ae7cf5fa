//! What is checked in, compared with what it is made of.

use std::fs;
use std::path::Path;

/// Checked in so that users of the crate compile no protos. Run with `ACCEPT=1` to write it.
#[test]
fn the_descriptors_of_google_rpc_are_those_of_the_protos() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut compiler = protox::Compiler::new([root.join("proto")]).unwrap();
    compiler.include_imports(true);
    compiler.open_files(["google/rpc/error_details.proto", "google/rpc/status.proto"]).unwrap();
    let compiled = compiler.encode_file_descriptor_set();
    let path = root.join("src/google_rpc.bin");
    if std::env::var_os("ACCEPT").is_some() {
        fs::write(&path, &compiled).unwrap();
    }
    assert!(fs::read(path).unwrap() == compiled, "not as in src/google_rpc.bin");
}
