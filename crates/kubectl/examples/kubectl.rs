//! The commands alone, without the rest of Gantry, for trying them against any server:
//! `cargo run -p kubectl --example kubectl -- get nodes`.

use std::process::ExitCode;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    kubectl::run(stdx::Env::real(), std::env::args_os().skip(1).collect()).await
}
