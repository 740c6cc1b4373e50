use std::{ffi::OsString, process::ExitCode};

use super::{Outcome, block_on};

/// Control a cluster with kubectl's commands
#[derive(clap::Args)]
#[command(
    disable_help_flag = true,
    after_help = "Example: gantry kubectl get pods --all-namespaces"
)]
pub struct Kubectl {
    /// Arguments of kubectl; `gantry kubectl --help` lists its commands
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

impl Kubectl {
    pub fn run(self) -> Outcome {
        block_on(|env| async move { Ok::<ExitCode, _>(kubectl::run(env, self.arguments).await) })
    }
}
