//! Compiles `proto/` without `protoc`, and writes the descriptor sets that reflection, transcoding and OpenAPI read.

use std::env;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    let dir = |name: &str| {
        let dir = out_dir.join(name);
        fs::create_dir_all(&dir).map(|()| dir)
    };

    let mut api = protox::Compiler::new(["proto"])?;
    api.include_imports(true).include_source_info(true).open_file("sessiond/v1/session_service.proto")?;
    // The raw bytes: re-encoding the typed set would drop `google.api.http` and our own options without a word.
    fs::write(out_dir.join("sessiond.bin"), api.encode_file_descriptor_set())?;
    // Without comments, so that the code that is checked in changes with the API alone.
    let mut descriptors = api.file_descriptor_set();
    descriptors.file.iter_mut().for_each(|file| file.source_code_info = None);
    // The messages and the client are checked in, in `sessiond-core`; a test compares them with these.
    tonic_prost_build::configure()
        // In the order of their keys, so that the same request always has the same bytes (see `request_id`).
        .btree_map(".sessiond")
        .build_transport(false)
        .build_server(false)
        // Tokens travel in these; a `Debug` would carry them into a log.
        .skip_debug([
            "sessiond.v1.CreateSessionResponse",
            "sessiond.v1.RefreshSessionRequest",
            "sessiond.v1.RefreshSessionResponse",
            "sessiond.v1.IntrospectTokenRequest",
            "sessiond.v1.BatchIntrospectRequest",
        ])
        .out_dir(dir("core")?)
        .compile_fds(descriptors.clone())?;
    tonic_prost_build::configure()
        .build_transport(false)
        .build_client(false)
        .extern_path(".sessiond.v1", "::sessiond_core::pb")
        .out_dir(dir("server")?)
        .compile_fds(descriptors)?;

    // Envoy's. The headers in it have tokens in them.
    let mut envoy = protox::Compiler::new(["proto"])?;
    envoy.include_imports(true).open_file("envoy/service/auth/v3/external_auth.proto")?;
    fs::write(out_dir.join("envoy.bin"), envoy.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        .build_transport(false)
        .extern_path(".google.rpc", "::tonic_types::pb")
        .skip_debug(["envoy.service.auth.v3"])
        .out_dir(dir("envoy")?)
        .compile_fds(envoy.file_descriptor_set())?;
    Ok(())
}
