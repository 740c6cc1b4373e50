//! `kubectl apply`

use client::{Client, Patch};
use machinery::{Map, Object, Value};

use super::change::{ChangeOptions, DryRun, during};
use crate::{
    Error, Result,
    manifests::{Files, Manifest},
    merge,
    select::Item,
    session::Session,
};

/// The annotation in which an object remembers what its file said.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Make objects what files say they are
#[derive(clap::Args)]
#[command(after_help = "Example: kubectl apply -f web.yaml")]
pub struct Apply {
    #[command(flatten)]
    files: Files,
    /// Let the server merge, by field owner
    #[arg(long)]
    server_side: bool,
    /// With --server-side: take over fields that others own
    #[arg(long)]
    force_conflicts: bool,
    /// The owner of the fields with --server-side
    #[arg(long, default_value = "kubectl")]
    field_manager: String,
    #[command(flatten)]
    options: ChangeOptions,
}

impl Apply {
    pub async fn run(self, session: &Session) -> Result<()> {
        if self.files.is_empty() {
            return Err(Error::other("must specify -f"));
        }
        let mut errors = Vec::new();
        for manifest in self.files.load(session).await? {
            let outcome = match self.server_side {
                true => self.on_server(session, manifest).await,
                false => self.here(session, manifest).await,
            };
            errors.extend(outcome.err());
        }
        Error::collect(errors)
    }

    async fn on_server(&self, session: &Session, manifest: Manifest) -> Result<()> {
        let client = session.writer(&self.field_manager)?;
        let item = item_of(&manifest)?;
        let patch = Patch::Apply { object: manifest.object, force: self.force_conflicts };
        let object = self.options.patch(&client, &item, "", &patch).await?;
        self.options.report(&object, &item, "serverside-applied")
    }

    async fn here(&self, session: &Session, manifest: Manifest) -> Result<()> {
        let client = session.writer("kubectl-client-side-apply")?;
        let item = item_of(&manifest)?;
        let modified = annotated(&manifest.object);
        let resource = &item.info.resource;
        let found = client.find(resource, &item.namespace, &item.name).await.map_err(Error::from);
        let found = found.map_err(|e| {
            during(e, || format!("error when retrieving current configuration of {:?} from {:?}", item.display(), manifest.source))
        })?;
        let Some(current) = found else {
            let created = self.options.create(&client, &item, &modified).await;
            let created = created.map_err(|e| during(e, || format!("error when creating {:?}", manifest.source)))?;
            return self.options.report(&created, &item, "created");
        };
        let applied = self.update(&client, &item, &modified, current).await;
        applied.map_err(|e| during(e, || format!("error when applying patch for {:?}", manifest.source)))
    }

    async fn update(&self, client: &Client, item: &Item, modified: &Object, current: Object) -> Result<()> {
        let original = match current.at(&["metadata", "annotations", LAST_APPLIED]).and_then(Value::as_str) {
            Some(text) => machinery::json::parse(text.as_bytes()).ok().and_then(|v| v.as_map().cloned()),
            None => {
                eprintln!(
                    "Warning: {} lacks the annotation {LAST_APPLIED}, which apply needs to know what to remove; it is added now",
                    item.display()
                );
                None
            }
        };
        let ty = api::schema().kind(&item.info.gvk()).map(|kind| kind.ty);
        let change =
            merge::three_way(&original.unwrap_or_default(), modified.root(), current.root(), ty);
        if change.is_empty() {
            return self.options.report(&current, item, "unchanged");
        }
        let patch = match ty {
            Some(_) => Patch::Strategic(change.into()),
            None => Patch::Merge(change.into()),
        };
        let object = self.options.patch(client, item, "", &patch).await?;
        // A non-canonical spelling in the file (`1000m`) makes a patch that changes nothing.
        let kept = object.resource_version() == current.resource_version();
        let unchanged = kept && self.options.dry_run == DryRun::None;
        self.options.report(&object, item, if unchanged { "unchanged" } else { "configured" })
    }
}

fn item_of(manifest: &Manifest) -> Result<Item> {
    if manifest.object.name().is_empty() {
        return Err(Error::other(format!("{:?}: apply needs metadata.name; use create for generateName", manifest.source)));
    }
    Ok(Item {
        info: manifest.info.clone(),
        namespace: manifest.namespace.clone(),
        name: manifest.object.name().to_owned(),
    })
}

/// The object of a file with the annotation that holds it.
pub fn annotated(object: &Object) -> Object {
    let mut object = object.clone();
    // Written by generators, never meant.
    if object.at(&["metadata", "creationTimestamp"]).is_some_and(Value::is_null) {
        object.remove_at(&["metadata", "creationTimestamp"]);
    }
    object.remove_at(&["metadata", "annotations", LAST_APPLIED]);
    if object.map_at(&["metadata", "annotations"]).is_none() {
        object.set_at(&["metadata", "annotations"], Map::new());
    }
    let text = String::from_utf8_lossy(&object.to_json()).into_owned();
    let text = text.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026") + "\n";
    object.set_at(&["metadata", "annotations", LAST_APPLIED], text);
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery::value;

    #[test]
    fn the_annotation_is_that_of_kubectl() {
        let object = Object::from_value(value!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "<x>&"},
            "metadata": {"name": "c", "namespace": "n", "creationTimestamp": null},
        }))
        .unwrap();
        let first = annotated(&object);
        assert_eq!(
            first.str_at(&["metadata", "annotations", LAST_APPLIED]),
            "{\"apiVersion\":\"v1\",\"data\":{\"a\":\"\\u003cx\\u003e\\u0026\"},\"kind\":\"ConfigMap\",\"metadata\":{\"annotations\":{},\"name\":\"c\",\"namespace\":\"n\"}}\n"
        );
        assert_eq!(annotated(&first), first, "it does not hold itself");
    }
}
