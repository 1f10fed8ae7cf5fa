//! Compiles `proto/` without `protoc`, and writes the descriptor sets that reflection, transcoding and OpenAPI read. Does
//! nothing for the guard: the code that it needs is checked in, below `src/pb/`.

#[cfg(not(feature = "server"))]
fn main() {}

#[cfg(feature = "server")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use std::env;
    use std::fs;
    use std::path::PathBuf;

    println!("cargo:rerun-if-changed=proto");
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);

    let mut api = protox::Compiler::new(["proto"])?;
    api.include_imports(true).include_source_info(true).open_file("sessiond/v1/session_service.proto")?;
    // The raw bytes: re-encoding the typed set would drop `google.api.http` and our own options without a word.
    fs::write(out_dir.join("sessiond.bin"), api.encode_file_descriptor_set())?;
    // Without comments, so that the code that is checked in changes with the API alone.
    let mut descriptors = api.file_descriptor_set();
    descriptors.file.iter_mut().for_each(|file| file.source_code_info = None);
    tonic_prost_build::configure()
        // In the order of their keys, so that the same request always has the same bytes (see `request_id`).
        .btree_map(".sessiond")
        .build_transport(false)
        // What is made of this is checked in, and a test compares the two: a guard needs no compiler and no server.
        .server_mod_attribute("sessiond.v1", "#[cfg(feature = \"server\")]")
        // Tokens travel in these; a `Debug` would carry them into a log.
        .skip_debug([
            "sessiond.v1.CreateSessionResponse",
            "sessiond.v1.RefreshSessionRequest",
            "sessiond.v1.RefreshSessionResponse",
            "sessiond.v1.IntrospectTokenRequest",
            "sessiond.v1.BatchIntrospectRequest",
        ])
        .compile_fds(descriptors)?;

    // Envoy's, in a folder of its own. The headers in it have tokens in them.
    let envoy_dir = out_dir.join("envoy");
    fs::create_dir_all(&envoy_dir)?;
    let mut envoy = protox::Compiler::new(["proto"])?;
    envoy.include_imports(true).open_file("envoy/service/auth/v3/external_auth.proto")?;
    tonic_prost_build::configure()
        .build_transport(false)
        .extern_path(".google.rpc", "::tonic_types::pb")
        .skip_debug(["envoy.service.auth.v3"])
        .out_dir(&envoy_dir)
        .compile_fds(envoy.file_descriptor_set())?;
    Ok(())
}
