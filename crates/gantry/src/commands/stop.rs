use std::process::ExitCode;

use super::{Outcome, block_on, existing};
use crate::{assemble, terminal::Progress};

/// Stop a cluster, keeping all of its state
#[derive(clap::Args)]
#[command(after_help = "Example: sudo gantry stop && sudo gantry start")]
pub struct Stop {
    /// The cluster's name
    #[arg(default_value = "gantry")]
    name: String,
}

impl Stop {
    pub fn run(self) -> Outcome {
        let layout = existing(&self.name)?;
        cluster::preflight::check_root()?;
        block_on(|env| async move {
            let mut progress = Progress::new(&env, false);
            progress.step(format!("Stopping cluster {:?}", self.name));
            super::down::halt(&env, &layout).await?;
            cluster::host::remove_cgroups(&layout)?;
            cluster::host::remove_mounts(&layout)?;
            let config = layout.load()?;
            assemble::remove_host_network(&config)?;
            cluster::host::remove_network(&config)?;
            progress.finish();
            Ok(ExitCode::SUCCESS)
        })
    }
}
