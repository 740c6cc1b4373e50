use std::process::ExitCode;

use super::Outcome;
use crate::{assemble, terminal::Output};

/// Print which version this is and which Kubernetes API it speaks
#[derive(clap::Args)]
#[command(after_help = "Example: gantry version -o json")]
pub struct Version {
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

impl Version {
    pub fn run(self) -> Outcome {
        let data = serde_json::json!({
            "gantry": assemble::VERSION,
            "kubernetes": assemble::KUBERNETES_VERSION,
        });
        if !self.output.print(&data)? {
            println!(
                "gantry {} (Kubernetes API {})",
                assemble::VERSION,
                assemble::KUBERNETES_VERSION
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}
