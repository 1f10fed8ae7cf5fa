//! Generated files in the repository, compared with their sources.

use std::fs;
use std::path::Path;

/// In the repository so that users of the crate do not compile protos. Run with `ACCEPT=1` to update it.
#[test]
fn the_descriptors_of_google_rpc_are_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut compiler = protox::Compiler::new([root.join("proto")]).unwrap();
    compiler.include_imports(true);
    compiler.open_files(["google/rpc/error_details.proto", "google/rpc/status.proto"]).unwrap();
    let compiled = compiler.encode_file_descriptor_set();
    let path = root.join("src/google_rpc.bin");
    if std::env::var_os("ACCEPT").is_some() {
        fs::write(&path, &compiled).unwrap();
    }
    assert!(fs::read(path).unwrap() == compiled, "src/google_rpc.bin is out of date; run with ACCEPT=1");
}
