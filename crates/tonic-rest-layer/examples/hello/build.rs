fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut protos = protox::Compiler::new(["proto"])?;
    protos.include_imports(true).open_file("hello.proto")?;
    let descriptors = std::env::var("OUT_DIR")? + "/hello.bin";
    std::fs::write(descriptors, protos.encode_file_descriptor_set())?;
    tonic_prost_build::configure().build_transport(false).compile_fds(protos.file_descriptor_set())?;
    Ok(())
}
