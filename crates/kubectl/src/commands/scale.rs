//! `kubectl scale`

use client::Patch;
use machinery::Map;

use super::change::ChangeOptions;
use crate::{Error, Result, select::Selection, session::Session};

/// Set the number of replicas
#[derive(clap::Args)]
#[command(after_help = "Example: kubectl scale deployment/web --replicas=3")]
pub struct Scale {
    #[command(flatten)]
    selection: Selection,
    /// How many replicas there are to be
    #[arg(long)]
    replicas: i64,
    /// Only when there are this many now; negative for any
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    current_replicas: i64,
    #[command(flatten)]
    options: ChangeOptions,
}

impl Scale {
    pub async fn run(self, session: &Session) -> Result<()> {
        if self.replicas < 0 {
            return Err(Error::other("The --replicas=COUNT flag is required, and COUNT must be greater than or equal to 0"));
        }
        let client = session.writer("kubectl")?;
        for item in self.selection.items(session).await? {
            if !item.info.subresources.iter().any(|s| s == "scale") {
                return Err(Error::other(format!("cannot scale {}: it has no scale", item.info.resource.gvr.group_resource())));
            }
            if self.current_replicas >= 0 {
                let found = item.get(session).await?.i64_at(&["spec", "replicas"]).unwrap_or(0);
                if found != self.current_replicas {
                    return Err(Error::other(format!("Expected replicas to be {}, was {found}", self.current_replicas)));
                }
            }
            let mut patch = Map::new();
            patch.set_at(&["spec", "replicas"], self.replicas);
            let mut object = self.options.patch(&client, &item, "scale", &Patch::Merge(patch.into())).await?;
            if !self.options.output.is_empty() {
                object = item.get(session).await?;
            }
            self.options.report(&object, &item, "scaled")?;
        }
        Ok(())
    }
}
