//! `gantry kubectl`: the command line of Kubernetes for machines that have no kubectl.
//!
//! Flow: [`run`] parses the arguments ([`commands`] is the table, one file per command) ▸ a
//! [`session::Session`] finds the cluster ([`config`]) and what it serves ([`discovery`]) ▸
//! [`select`] or [`manifests`] turn arguments and files into objects of the server ▸ a command
//! acts on them through `client` ▸ [`output`] prints what kubectl would print.
//!
//! Invariants: what is not supported is an error, never ignored. Data goes to standard output,
//! everything else to standard error. A failure exits with 1, as kubectl's does.

mod commands;
mod config;
mod discovery;
mod error;
mod follow;
mod manifests;
mod merge;
mod output;
mod select;
mod session;

use std::{ffi::OsString, process::ExitCode};

use clap::Parser;
use stdx::Env;

pub use error::Error;

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Control a cluster with kubectl's commands.
#[derive(Parser)]
#[command(
    name = "kubectl",
    disable_version_flag = true,
    after_help = "Example: kubectl get pods --all-namespaces -o wide"
)]
struct Cli {
    #[command(flatten)]
    global: session::Global,
    #[command(subcommand)]
    command: commands::Command,
}

/// Runs one command. `arguments` are those after `kubectl`.
pub async fn run(env: Env, arguments: Vec<OsString>) -> ExitCode {
    let arguments = std::iter::once(OsString::from("kubectl")).chain(arguments);
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    let session = session::Session::new(env, cli.global);
    match cli.command.run(&session).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}
