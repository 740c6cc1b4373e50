//! `kubectl cordon` and `kubectl uncordon`

use client::Patch;
use machinery::Map;

use super::change::DryRun;
use crate::{Error, Result, output::emit, select::Selection, session::Session};

#[derive(clap::Args)]
struct Nodes {
    /// Names of nodes
    nodes: Vec<String>,
    /// Label selector of nodes
    #[arg(short = 'l', long, default_value = "")]
    selector: String,
    /// none, client or server
    #[arg(long, default_value = "none", num_args = 0..=1, default_missing_value = "client")]
    dry_run: DryRun,
}

/// Let no new pods onto nodes
#[derive(clap::Args)]
#[command(after_help = "Example: kubectl cordon node-1")]
pub struct Cordon {
    #[command(flatten)]
    nodes: Nodes,
}

/// Let new pods onto nodes again
#[derive(clap::Args)]
#[command(after_help = "Example: kubectl uncordon node-1")]
pub struct Uncordon {
    #[command(flatten)]
    nodes: Nodes,
}

impl Cordon {
    pub async fn run(self, session: &Session) -> Result<()> {
        self.nodes.set(session, true).await
    }
}

impl Uncordon {
    pub async fn run(self, session: &Session) -> Result<()> {
        self.nodes.set(session, false).await
    }
}

impl Nodes {
    async fn set(self, session: &Session, unschedulable: bool) -> Result<()> {
        if self.nodes.is_empty() && self.selector.is_empty() {
            return Err(Error::other("the name of a node, or --selector, is needed"));
        }
        let names = self.nodes.iter().map(|name| name.strip_prefix("node/").unwrap_or(name).to_owned());
        let arguments = std::iter::once("nodes".to_owned()).chain(names).collect();
        let selection = Selection { arguments, selector: self.selector, ..Selection::default() };
        let done = if unschedulable { "cordoned" } else { "uncordoned" };
        let client = session.writer("kubectl")?;
        let options = super::change::ChangeOptions { dry_run: self.dry_run, ..Default::default() };
        let mut errors = Vec::new();
        for item in selection.items(session).await? {
            let node = match item.get(session).await {
                Ok(node) => node,
                Err(error) => {
                    errors.push(error);
                    continue;
                }
            };
            if node.bool_at(&["spec", "unschedulable"]) == unschedulable {
                emit(&format!("{} already {done}\n", item.display()))?;
                continue;
            }
            let mut patch = Map::new();
            patch.set_at(&["spec", "unschedulable"], unschedulable);
            match options.patch(&client, &item, "", &Patch::Strategic(patch.into())).await {
                Ok(_) => emit(&format!("{} {done}{}\n", item.display(), self.dry_run.suffix()))?,
                Err(error) => errors.push(error),
            }
        }
        Error::collect(errors)
    }
}
