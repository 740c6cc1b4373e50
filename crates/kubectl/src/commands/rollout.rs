//! `kubectl rollout`

mod history;
mod status;

use client::Patch;
use machinery::Map;

use super::change::ChangeOptions;
use crate::{Error, Result, select::Selection, session::Session};

/// Watch, restart or undo the rollout of a Deployment, DaemonSet or StatefulSet
#[derive(clap::Args)]
#[command(after_help = "Example: kubectl rollout status deployment/web --timeout=60s")]
pub struct Rollout {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    Status(status::Status),
    History(history::History),
    Undo(history::Undo),
    Restart(Restart),
    Pause(Pause),
    Resume(Resume),
}

impl Rollout {
    pub async fn run(self, session: &Session) -> Result<()> {
        match self.action {
            Action::Status(status) => status.run(session).await,
            Action::History(history) => history.run(session).await,
            Action::Undo(undo) => undo.run(session).await,
            Action::Restart(restart) => restart.run(session).await,
            Action::Pause(Pause { change }) => change.pause(session, true, "paused").await,
            Action::Resume(Resume { change }) => change.pause(session, false, "resumed").await,
        }
    }
}

#[derive(clap::Args)]
struct Change {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    options: ChangeOptions,
}

/// Replace all pods, as the update strategy allows
#[derive(clap::Args)]
#[command(after_help = "Example: kubectl rollout restart deployment/web")]
struct Restart {
    #[command(flatten)]
    change: Change,
}

/// Hold a Deployment's rollout
#[derive(clap::Args)]
#[command(after_help = "Example: kubectl rollout pause deployment/web")]
struct Pause {
    #[command(flatten)]
    change: Change,
}

/// Go on with a Deployment's rollout
#[derive(clap::Args)]
#[command(after_help = "Example: kubectl rollout resume deployment/web")]
struct Resume {
    #[command(flatten)]
    change: Change,
}

impl Restart {
    async fn run(self, session: &Session) -> Result<()> {
        let Change { selection, options } = self.change;
        let client = session.writer("kubectl-rollout")?;
        for item in selection.items(session).await? {
            let kind = item.info.kind.as_str();
            if !["Deployment", "DaemonSet", "StatefulSet"].contains(&kind) {
                return Err(Error::other(format!("{} restarting is not supported", item.info.resource.gvr.group_resource())));
            }
            let object = item.get(session).await?;
            if object.bool_at(&["spec", "paused"]) {
                return Err(Error::other(format!("can't restart paused {} (run rollout resume first)", kind.to_lowercase())));
            }
            let mut patch = Map::new();
            let annotation = ["spec", "template", "metadata", "annotations", "kubectl.kubernetes.io/restartedAt"];
            patch.set_at(&annotation, session.env.now().rfc3339());
            let object = options.patch(&client, &item, "", &Patch::Strategic(patch.into())).await?;
            options.report(&object, &item, "restarted")?;
        }
        Ok(())
    }
}

impl Change {
    async fn pause(self, session: &Session, paused: bool, done: &str) -> Result<()> {
        let client = session.writer("kubectl-rollout")?;
        for item in self.selection.items(session).await? {
            if item.info.kind != "Deployment" {
                let verb = if paused { "pausing" } else { "resuming" };
                return Err(Error::other(format!("{} {verb} is not supported", item.info.resource.gvr.group_resource())));
            }
            if item.get(session).await?.bool_at(&["spec", "paused"]) == paused {
                let state = if paused { "already paused" } else { "not paused" };
                return Err(Error::other(format!("{} {:?} is {state}", item.info.display_kind(), item.name)));
            }
            let mut patch = Map::new();
            patch.set_at(&["spec", "paused"], paused);
            let object = self.options.patch(&client, &item, "", &Patch::Strategic(patch.into())).await?;
            self.options.report(&object, &item, done)?;
        }
        Ok(())
    }
}
