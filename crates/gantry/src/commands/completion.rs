use std::process::ExitCode;

use clap::CommandFactory;

use super::Outcome;

/// Print a completion script for your shell
#[derive(clap::Args)]
#[command(after_help = "Example: gantry completion bash > /etc/bash_completion.d/gantry")]
pub struct Completion {
    /// Which shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

impl Completion {
    pub fn run(self) -> Outcome {
        clap_complete::generate(
            self.shell,
            &mut crate::Cli::command(),
            "gantry",
            &mut std::io::stdout(),
        );
        Ok(ExitCode::SUCCESS)
    }
}
