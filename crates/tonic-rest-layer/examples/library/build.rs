//! Compiles `proto/` without `protoc`, and writes the descriptor set that the layer reads.

use std::env;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut protos = protox::Compiler::new(["proto"])?;
    protos.include_imports(true).open_file("library.proto")?;
    // Written by protox, not re-encoded: prost would drop the rules.
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("library.bin"), protos.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        .compile_fds(protos.file_descriptor_set())?;
    Ok(())
}
