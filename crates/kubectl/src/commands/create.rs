//! `kubectl create`

use super::change::{ChangeOptions, during};
use crate::{Error, Result, manifests::Files, select::Item, session::Session};
use machinery::Object;

/// Create objects from files, or a namespace by name
#[derive(clap::Args)]
#[command(after_help = "Example: kubectl create -f web.yaml\n         kubectl create namespace staging")]
pub struct Create {
    /// With no file: `namespace NAME` (other kinds need a file)
    arguments: Vec<String>,
    #[command(flatten)]
    files: Files,
    /// Remember the file for later use of apply
    #[arg(long)]
    save_config: bool,
    #[command(flatten)]
    options: ChangeOptions,
}

impl Create {
    pub async fn run(self, session: &Session) -> Result<()> {
        let client = session.writer("kubectl-create")?;
        if self.files.is_empty() {
            let (info, object) = self.named(session).await?;
            let item = Item { info, namespace: String::new(), name: object.name().to_owned() };
            let created = self.options.create(&client, &item, &object).await.map_err(|e| {
                during(e, || "failed to create namespace".to_owned())
            })?;
            return self.options.report(&created, &item, "created");
        }
        let mut errors = Vec::new();
        for manifest in self.files.load(session).await? {
            let item = Item {
                name: manifest.object.name().to_owned(),
                info: manifest.info,
                namespace: manifest.namespace,
            };
            let object = match self.save_config {
                true => super::apply::annotated(&manifest.object),
                false => manifest.object,
            };
            let outcome = match self.options.create(&client, &item, &object).await {
                Ok(created) => self.options.report(&created, &item, "created"),
                Err(error) => Err(during(error, || format!("error when creating {:?}", manifest.source))),
            };
            errors.extend(outcome.err());
        }
        Error::collect(errors)
    }

    async fn named(&self, session: &Session) -> Result<(crate::discovery::Info, Object)> {
        match self.arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["namespace" | "ns", name] => {
                let info = session.discovery().await?.find("namespaces.v1")?;
                Ok((info, Object::new("v1", "Namespace", "", name)))
            }
            [] => Err(Error::other("must specify -f, or `namespace NAME`")),
            [kind, ..] => Err(Error::other(format!(
                "create {kind} by arguments is not supported; write the object to a file and use create -f"
            ))),
        }
    }
}
