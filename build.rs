//! Compiles `proto/symphony/v1` with the pure-Rust protox, so that no C++ `protoc` is needed for our own protocol.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut files: Vec<PathBuf> = std::fs::read_dir("proto/symphony/v1")?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    let descriptors = protox::compile(files, ["proto"])?;
    // The paths of all methods, so that a test can hold the table of admission against them.
    let mut methods = Vec::new();
    for file in &descriptors.file {
        for service in &file.service {
            let path = |method: &str| format!("/{}.{}/{method}", file.package(), service.name());
            methods.extend(service.method.iter().map(|method| path(method.name())));
        }
    }
    std::fs::write(PathBuf::from(std::env::var("OUT_DIR")?).join("methods.rs"), format!("&{methods:?}"))?;
    // Most volumes have neither, and objects are to be about as large as one another.
    let rare = [".symphony.v1.VolumeSpec.image", ".symphony.v1.VolumeSpec.moving"];
    let builder = rare.into_iter().fold(tonic_prost_build::configure(), |builder, field| builder.boxed(field));
    builder.compile_fds(descriptors)?;
    Ok(())
}
