use std::process::ExitCode;

use anyhow::Context;

use super::{Outcome, existing};

/// Print a cluster's kubeconfig
#[derive(clap::Args)]
#[command(after_help = "Example: gantry kubeconfig > ~/.kube/config")]
pub struct Kubeconfig {
    /// The cluster's name
    #[arg(default_value = "gantry")]
    name: String,
    /// Print the path of the file instead
    #[arg(long)]
    path: bool,
}

impl Kubeconfig {
    pub fn run(self) -> Outcome {
        let path = existing(&self.name)?.kubeconfig();
        if self.path {
            println!("{}", path.display());
        } else {
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            print!("{text}");
        }
        Ok(ExitCode::SUCCESS)
    }
}
