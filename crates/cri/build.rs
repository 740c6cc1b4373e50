//! Compiles the CRI v1 definition (names, numbers and types only) with `protoc`.

fn main() -> std::io::Result<()> {
    tonic_prost_build::configure()
        .emit_rerun_if_changed(true)
        .compile_protos(&["proto/runtime.v1.proto"], &["proto"])
}
