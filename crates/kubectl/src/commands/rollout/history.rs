//! `kubectl rollout history` and `undo`

use client::{ListOptions, Patch};
use machinery::{Map, Object, Value, value};

use crate::{
    Error, Result,
    output::{emit, table::Layout, yaml},
    select::{self, Item},
    session::Session,
};

const REVISION: &str = "deployment.kubernetes.io/revision";
const TEMPLATE_HASH: &str = "pod-template-hash";

/// List the revisions of a Deployment, DaemonSet or StatefulSet
#[derive(clap::Args)]
#[command(after_help = "Example: kubectl rollout history deployment/web")]
pub struct History {
    /// TYPE/NAME or TYPE NAME
    arguments: Vec<String>,
    /// Show the pod template of one revision
    #[arg(long, default_value_t = 0)]
    revision: i64,
}

/// Go back to an earlier revision
#[derive(clap::Args)]
#[command(after_help = "Example: kubectl rollout undo deployment/web --to-revision=3")]
pub struct Undo {
    /// TYPE/NAME or TYPE NAME
    arguments: Vec<String>,
    /// The revision to go back to; zero for the one before
    #[arg(long, default_value_t = 0)]
    to_revision: i64,
}

/// A revision of an owner: its number, why it came, and what it sets.
struct Revision {
    number: i64,
    cause: String,
    /// The pod template.
    template: Value,
    /// The strategic patch that a ControllerRevision holds; null for Deployments.
    patch: Value,
}

impl History {
    pub async fn run(self, session: &Session) -> Result<()> {
        let item = select::one(session, &self.arguments, "").await?;
        let owner = item.get(session).await?;
        let revisions = revisions(session, &item, &owner).await?;
        if self.revision > 0 {
            let found = revisions.iter().find(|r| r.number == self.revision);
            let found = found.ok_or_else(|| Error::other("unable to find the specified revision"))?;
            let text = yaml::to_string(&found.template);
            return emit(&format!("{} with revision #{}\nPod Template:\n{}", item.display(), self.revision, indented(&text)));
        }
        let header = vec!["REVISION".to_owned(), "CHANGE-CAUSE".to_owned()];
        let row = |r: &Revision| {
            vec![r.number.to_string(), if r.cause.is_empty() { "<none>".into() } else { r.cause.clone() }]
        };
        let rows = std::iter::once(header).chain(revisions.iter().map(row)).collect();
        emit(&format!("{} \n{}\n", item.display(), Layout::default().render(rows)))
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

impl Undo {
    pub async fn run(self, session: &Session) -> Result<()> {
        let item = select::one(session, &self.arguments, "").await?;
        let owner = item.get(session).await?;
        if owner.bool_at(&["spec", "paused"]) {
            return Err(Error::other(format!("you cannot rollback a paused deployment; resume it first with 'kubectl rollout resume {}' and try again", item.display())));
        }
        let mut revisions = revisions(session, &item, &owner).await?;
        let current = revisions.last().map_or(0, |r| r.number);
        let found = match self.to_revision {
            0 if revisions.len() < 2 => {
                return Err(Error::other(format!("no rollout history found for {} {:?}", item.info.kind.to_lowercase(), item.name)));
            }
            0 => revisions.len() - 2,
            wanted => revisions
                .iter()
                .position(|r| r.number == wanted)
                .ok_or_else(|| Error::other(format!("unable to find specified revision {wanted} in history")))?,
        };
        let revision = revisions.swap_remove(found);
        if revision.number == current {
            return emit(&format!("{} skipped rollback (current template already matches revision {current})\n", item.display()));
        }
        let patch = match revision.patch {
            Value::Null => Patch::Json(value_list(revision.template)),
            patch => Patch::Strategic(patch),
        };
        let client = session.writer("kubectl-rollout")?;
        client.patch(&item.info.resource, &item.namespace, &item.name, "", &patch).await?;
        emit(&format!("{} rolled back\n", item.display()))
    }
}

/// A JSON patch that replaces the whole pod template.
fn value_list(template: Value) -> Value {
    let mut operation = Map::new();
    operation.insert("op", "replace");
    operation.insert("path", "/spec/template");
    operation.insert("value", template);
    Value::from(vec![operation])
}

/// All revisions of an owner, the oldest first.
async fn revisions(session: &Session, item: &Item, owner: &Object) -> Result<Vec<Revision>> {
    let discovery = session.discovery().await?;
    let (resource, is_deployment) = match item.info.kind.as_str() {
        "Deployment" => ("replicasets.apps", true),
        "DaemonSet" | "StatefulSet" => ("controllerrevisions.apps", false),
        kind => return Err(Error::other(format!("no history viewer has been implemented for {kind:?}"))),
    };
    let info = discovery.find(resource)?;
    let list = session.client()?.list(&info.resource, &item.namespace, &ListOptions::default()).await?;
    let mut out = Vec::new();
    for bytes in &list.items {
        let object = Object::from_json(bytes).map_err(|e| Error::other(e.to_string()))?;
        let owned = |reference: &Value| reference.get("uid").and_then(Value::as_str) == Some(owner.uid());
        if !object.list_at(&["metadata", "ownerReferences"]).iter().any(owned) {
            continue;
        }
        out.extend(if is_deployment { of_replica_set(&object) } else { of_controller_revision(&object) });
    }
    out.sort_by_key(|revision| revision.number);
    Ok(out)
}

fn cause(object: &Object) -> String {
    object.str_at(&["metadata", "annotations", "kubernetes.io/change-cause"]).to_owned()
}

fn of_replica_set(object: &Object) -> Option<Revision> {
    let number = object.str_at(&["metadata", "annotations", REVISION]).parse().ok()?;
    let mut template = object.map_at(&["spec", "template"])?.clone();
    template.remove_at(&["metadata", "labels", TEMPLATE_HASH]);
    Some(Revision { number, cause: cause(object), template: template.into(), patch: Value::Null })
}

fn of_controller_revision(object: &Object) -> Option<Revision> {
    let patch = object.at(&["data"])?.clone();
    let template = patch.at(&["spec", "template"]).cloned().unwrap_or(value!({}));
    Some(Revision { number: object.i64_at(&["revision"])?, cause: cause(object), template, patch })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_set_holds_the_template_without_its_hash() {
        let set = Object::from_value(value!({
            "metadata": {"annotations": {REVISION: "7", "kubernetes.io/change-cause": "why"}},
            "spec": {"template": {"metadata": {"labels": {"app": "x", "pod-template-hash": "h"}}}},
        }))
        .unwrap();
        let revision = of_replica_set(&set).unwrap();
        assert_eq!((revision.number, revision.cause.as_str()), (7, "why"));
        assert_eq!(revision.template, value!({"metadata": {"labels": {"app": "x"}}}));
        assert!(of_replica_set(&Object::default()).is_none());
    }
}
