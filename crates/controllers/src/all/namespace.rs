//! Empties a namespace that is being deleted, pods first, then lets it go.

use std::time::Duration;

use client::{Cached, Change, Client, DeleteOptions, Key, ListOptions};
use futures::FutureExt;
use machinery::Object;
use stdx::{Timestamp, chain};

use crate::{
    Error,
    conditions::{self, Condition},
    discovery::{Discovered, Discovery, discover},
    plan::*,
    resources::*,
    runner::TaskContext,
};

pub const CONTROLLER: Controller = Controller {
    name: "namespace-controller",
    account: "namespace-controller",
    primary: &NAMESPACES,
    watches: &[mapped(&PODS, namespace_of_deleted)],
    // Deleting is granted on everything.
    rbac: &[allow_sub(&NAMESPACES, "status", &["update"]), allow_sub(&NAMESPACES, "finalize", &["update"])],
    workers: 5,
    work: Work::Act(act),
};

const FINALIZER: &str = "kubernetes";
/// How long to wait before looking at content again that does not go by itself.
const REMAINING_WAIT: Duration = Duration::from_secs(5);

fn namespace_of_deleted(change: &Change, world: &World) -> Vec<Key> {
    let key = Key::new("", &change.key().namespace);
    let going = change.new.is_none() && world.get(&NAMESPACES, &key).is_some_and(|n| n.is_deleting());
    if going { vec![key] } else { Vec::new() }
}

fn act(context: TaskContext, world: World, key: Key) -> Acting {
    async move {
        let Some(cached) = world.get(&NAMESPACES, &key).filter(|cached| cached.is_deleting()) else {
            return Ok(None);
        };
        Ending { context, name: key.name.to_string() }.advance(&cached).await
    }
    .boxed()
}

/// One namespace that is going.
struct Ending {
    context: TaskContext,
    name: String,
}

/// What a round of deleting found.
#[derive(Default)]
struct Content {
    /// `resource.group has N resource instances`
    remaining: Vec<String>,
    /// Finalizers and how many objects wait for each.
    finalizers: std::collections::BTreeMap<String, usize>,
    failures: Vec<String>,
}

impl Content {
    fn is_gone(&self) -> bool {
        self.remaining.is_empty() && self.failures.is_empty()
    }
}

impl Ending {
    async fn advance(&self, cached: &Cached) -> Result<Option<Duration>, Error> {
        let namespace = tree(&NAMESPACES, cached);
        let holds = |object: &Object| {
            object.list_at(&["spec", "finalizers"]).iter().any(|f| f.as_str() == Some(FINALIZER))
        };
        if !holds(&namespace) {
            return Ok(None);
        }
        let found = discover(&self.context.client).await?;
        let content = self.empty(&found).await;
        let namespace = self.write_status(namespace, &found, &content).await?;
        if !found.failed.is_empty() || !content.is_gone() {
            return Ok(Some(REMAINING_WAIT));
        }
        self.finalize(namespace).await?;
        Ok(None)
    }

    /// Deletes everything; what pods need (their ConfigMaps, network policies, ...) after them.
    async fn empty(&self, found: &Discovery) -> Content {
        let mut content = Content::default();
        let deletable = |d: &&Discovered| d.resource.namespaced && d.can(&["delete", "list"]);
        let (pods, others): (Vec<_>, Vec<_>) =
            found.resources.iter().filter(deletable).partition(|d| d.resource == PODS);
        for resource in pods {
            self.delete_all(resource, &mut content).await;
        }
        if content.is_gone() {
            for resource in others {
                self.delete_all(resource, &mut content).await;
            }
        }
        content
    }

    async fn delete_all(&self, discovered: &Discovered, content: &mut Content) {
        if let Err(error) = self.try_delete_all(discovered, content).await {
            let ignorable = error.is_not_found() || error.status().is_some_and(|s| s.code == 405);
            if !ignorable {
                content.failures.push(chain(&error).to_string());
            }
        }
    }

    async fn try_delete_all(&self, discovered: &Discovered, content: &mut Content) -> Result<(), client::Error> {
        let client: &Client = &self.context.client;
        let resource = &discovered.resource;
        let all = ListOptions::default();
        let listed = client.list(resource, &self.name, &all).await?;
        if listed.items.is_empty() {
            return Ok(());
        }
        let options = DeleteOptions { propagation_policy: "Background", ..DeleteOptions::default() };
        if discovered.can(&["deletecollection"]) {
            client.delete_collection(resource, &self.name, &all, &options).await?;
        } else {
            for bytes in &listed.items {
                let Ok(object) = Object::from_json(bytes) else { continue };
                match client.delete(resource, &self.name, object.name(), &options).await {
                    Err(error) if !error.is_not_found() => return Err(error),
                    _ => {}
                }
            }
        }
        let left = client.list(resource, &self.name, &all).await?;
        if left.items.is_empty() {
            return Ok(());
        }
        let name = resource.gvr.group_resource();
        let name = if resource.gvr.group.is_empty() { format!("{name}.") } else { name };
        content.remaining.push(format!("{name} has {} resource instances", left.items.len()));
        for object in left.items.iter().filter_map(|bytes| Object::from_json(bytes).ok()) {
            for finalizer in object.finalizers() {
                *content.finalizers.entry(finalizer.to_owned()).or_default() += 1;
            }
        }
        Ok(())
    }

    async fn write_status(
        &self,
        mut namespace: Object,
        found: &Discovery,
        content: &Content,
    ) -> Result<Object, Error> {
        let now = self.context.env.now();
        let old = namespace.list_at(&["status", "conditions"]).to_vec();
        let new = conditions_of(old.clone(), found, content, now);
        if old == new {
            return Ok(namespace);
        }
        namespace.set_at(&["status", "conditions"], new);
        namespace.set_at(&["status", "phase"], "Terminating");
        Ok(self.context.client.update(&NAMESPACES, "status", &namespace).await?)
    }

    async fn finalize(&self, mut namespace: Object) -> Result<(), Error> {
        let left: Vec<machinery::Value> = namespace
            .list_at(&["spec", "finalizers"])
            .iter()
            .filter(|finalizer| finalizer.as_str() != Some(FINALIZER))
            .cloned()
            .collect();
        namespace.set_at(&["spec", "finalizers"], left);
        match self.context.client.update(&NAMESPACES, "finalize", &namespace).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// What `kubectl get namespace -o yaml` tells about an end that takes long.
fn conditions_of(
    mut list: Vec<machinery::Value>,
    found: &Discovery,
    content: &Content,
    now: Timestamp,
) -> Vec<machinery::Value> {
    let failed: Vec<String> = found.failed.iter().map(|(path, why)| format!("{path}: {why}")).collect();
    let failed = if failed.is_empty() {
        let text = "All resources successfully discovered";
        Condition::new("NamespaceDeletionDiscoveryFailure", "False", "ResourcesDiscovered", text)
    } else {
        let text = format!("Discovery failed for some groups, {} failing: {}", failed.len(), failed.join(", "));
        Condition::new("NamespaceDeletionDiscoveryFailure", "True", "DiscoveryFailed", text)
    };
    let parsed = Condition::new(
        "NamespaceDeletionGroupVersionParsingFailure",
        "False",
        "ParsedGroupVersions",
        "All legacy kube types successfully parsed",
    );
    let deleted = if content.failures.is_empty() {
        let text = if content.remaining.is_empty() {
            "All content successfully deleted"
        } else {
            "All content successfully deleted, may be waiting on finalization"
        };
        Condition::new("NamespaceDeletionContentFailure", "False", "ContentDeleted", text)
    } else {
        let text = format!(
            "Failed to delete all resource types, {} remaining: {}",
            content.failures.len(),
            content.failures.join(", ")
        );
        Condition::new("NamespaceDeletionContentFailure", "True", "ContentDeletionFailed", text)
    };
    let remaining = if content.remaining.is_empty() {
        Condition::new("NamespaceContentRemaining", "False", "ContentRemoved", "All content successfully removed")
    } else {
        let text = format!("Some resources are remaining: {}", content.remaining.join(", "));
        Condition::new("NamespaceContentRemaining", "True", "SomeResourcesRemain", text)
    };
    let finalizers = if content.finalizers.is_empty() {
        let text = "All content-preserving finalizers finished";
        Condition::new("NamespaceFinalizersRemaining", "False", "ContentHasNoFinalizers", text)
    } else {
        let counted = content.finalizers.iter().map(|(f, n)| format!("{f} in {n} resource instances"));
        let text = format!(
            "Some content in the namespace has finalizers remaining: {}",
            counted.collect::<Vec<_>>().join(", ")
        );
        Condition::new("NamespaceFinalizersRemaining", "True", "SomeFinalizersRemain", text)
    };
    for condition in [failed, parsed, deleted, remaining, finalizers] {
        conditions::set(&mut list, &condition, now);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_remains_is_told() {
        let mut content = Content::default();
        content.remaining.push("pods. has 2 resource instances".into());
        content.finalizers.insert("example.com/keep".into(), 1);
        let list = conditions_of(Vec::new(), &Discovery::default(), &content, Timestamp::default());
        let text = |kind| conditions::find(&list, kind).unwrap().str_at(&["message"]).unwrap().to_owned();
        assert_eq!(text("NamespaceContentRemaining"), "Some resources are remaining: pods. has 2 resource instances");
        assert!(text("NamespaceFinalizersRemaining").ends_with("example.com/keep in 1 resource instances"));
        assert!(!conditions::is_true(&list, "NamespaceDeletionDiscoveryFailure"));
    }
}
