use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use cluster::{
    Layout, host,
    supervisor::{self, Request},
};
use stdx::Env;

use super::{Outcome, block_on, existing};
use crate::{assemble, terminal::Progress};

/// Remove a cluster and everything that it added to this machine
#[derive(clap::Args)]
#[command(after_help = "Example: sudo gantry down")]
pub struct Down {
    /// The cluster's name
    #[arg(default_value = "gantry")]
    name: String,
}

impl Down {
    pub fn run(self) -> Outcome {
        let layout = existing(&self.name)?;
        cluster::preflight::check_root()?;
        block_on(|env| async move {
            let mut progress = Progress::new(&env, false);
            progress.step(format!("Removing cluster {:?}", self.name));
            remove(&env, &layout).await?;
            progress.finish();
            Ok(ExitCode::SUCCESS)
        })
    }
}

/// Stops what runs and removes what is left, whatever state the cluster is in.
pub async fn remove(env: &Env, layout: &Layout) -> Result<()> {
    halt(env, layout).await?;
    host::remove_cgroups(layout)?;
    host::remove_mounts(layout)?;
    if let Ok(config) = layout.load() {
        assemble::remove_host_network(&config).context("cannot remove the host's nft table")?;
        host::remove_network(&config)?;
    }
    layout.remove()?;
    Ok(())
}

/// Ends supervisor, server and nodes, by request and, where nobody answers, by force.
pub async fn halt(env: &Env, layout: &Layout) -> Result<()> {
    if let Some(answer) = supervisor::ask(layout, &Request::Stop).await {
        if let Ok(answer) = answer {
            let pid = answer.supervisor_pid as i32;
            let start = linux::process::start_time(pid).unwrap_or(0);
            let gone = async {
                while linux::process::is_running(pid, start) {
                    env.sleep(Duration::from_millis(10)).await;
                }
            };
            if env.timeout(Duration::from_secs(10), gone).await.is_none() {
                let _ = linux::process::kill(pid, 9);
            }
        }
    }
    kill_recorded(layout);
    Ok(())
}

/// Kills every process that a pid file still names.
fn kill_recorded(layout: &Layout) {
    let Ok(entries) = std::fs::read_dir(&layout.run) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if let Some((pid, start)) = supervisor::read_pid_file(&path) {
            if linux::process::is_running(pid, start) {
                let _ = linux::process::kill(pid, 9);
            }
        }
    }
}
