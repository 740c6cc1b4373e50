use std::{process::ExitCode, time::Duration};

use anyhow::bail;
use cluster::{
    Layout,
    supervisor::{self, Request},
};
use stdx::Env;

use super::{Outcome, block_on, existing};
use crate::terminal::Progress;

/// Start a stopped cluster, or revive a dead node of a running one
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  sudo gantry start\n  sudo gantry start node-2")]
pub struct Start {
    /// A node to revive; without it the whole cluster starts
    node: Option<String>,
    /// The cluster's name
    #[arg(long, default_value = "gantry")]
    name: String,
    /// How long to wait for the nodes, in seconds
    #[arg(long, default_value_t = 60)]
    timeout: u64,
}

impl Start {
    pub fn run(self) -> Outcome {
        let layout = existing(&self.name)?;
        cluster::preflight::check_root()?;
        block_on(|env| async move {
            match &self.node {
                Some(node) => start_node(&layout, node).await?,
                None => self.start_cluster(&env, &layout).await?,
            }
            Ok(ExitCode::SUCCESS)
        })
    }

    async fn start_cluster(&self, env: &Env, layout: &Layout) -> anyhow::Result<()> {
        let mut progress = Progress::new(env, false);
        let limit = Duration::from_secs(self.timeout);
        progress.step("Server");
        let config = layout.load()?;
        if supervisor::ask(layout, &Request::Status).await.is_none() {
            layout.create()?;
            super::up::start_supervisor(layout)?;
        }
        let client = super::up::connect(layout)?;
        super::up::wait_for_server(env, &client, limit).await?;
        progress.step(format!("{} node(s) Ready", config.nodes.len()));
        super::up::wait_for_nodes(env, &client, &config, limit).await?;
        progress.finish();
        Ok(())
    }
}

async fn start_node(layout: &Layout, node: &str) -> anyhow::Result<()> {
    match supervisor::ask(layout, &Request::StartNode(node.to_owned())).await {
        None => bail!("cluster {0:?} is stopped; start it with `gantry start`", layout.name),
        Some(answer) => match answer?.error {
            error if error.is_empty() => Ok(()),
            error => bail!(error),
        },
    }
}
