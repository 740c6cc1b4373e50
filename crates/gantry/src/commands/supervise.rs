use std::process::ExitCode;

use anyhow::Context;

use super::{Outcome, block_on, cancelled_by_signals, existing};
use crate::assemble;

/// Keep a local cluster's server and nodes running (started by `up` and `start`)
#[derive(clap::Args)]
pub struct Supervise {
    cluster: String,
}

impl Supervise {
    pub fn run(self) -> Outcome {
        let layout = existing(&self.cluster)?;
        // Our own session, so that closing the terminal ends nothing. It fails only for a process
        // that leads a group already, and such a one has been detached by its starter.
        let _ = rustix::process::setsid();
        block_on(|env| async move {
            let cancel = cancelled_by_signals(&env)?;
            let config = layout.load()?;
            let work = assemble::host_network(env.clone(), layout.clone(), config, cancel.clone());
            cluster::supervisor::run(env, layout, cancel, work)
                .await
                .context("the supervisor failed")?;
            Ok(ExitCode::SUCCESS)
        })
    }
}
