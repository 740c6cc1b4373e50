//! Acting on one item of the graph.

use std::sync::Arc;

use client::{DeleteOptions, Patch, Resource};
use machinery::{Map, Object, OwnerReference, Value, value};
use stdx::chain;

use super::{
    Item, Shared,
    graph::{FOREGROUND, Node, ORPHAN},
};
use crate::{Error, runner::TaskContext};

pub struct Collector {
    pub context: TaskContext,
    pub shared: Arc<Shared>,
}

/// What an object's owners are, as the server says now.
#[derive(Default)]
struct Owners {
    /// There, and not waiting for this one.
    solid: Vec<OwnerReference>,
    absent: Vec<OwnerReference>,
    /// Being deleted in the foreground, waiting for this one.
    waiting: Vec<OwnerReference>,
}

impl Collector {
    pub async fn work(&self) {
        let queue = &self.shared.queue;
        while let Some(item) = queue.next().await {
            let outcome = match &item {
                Item::Collect(uid) => self.collect(uid).await,
                Item::Orphan(uid) => self.orphan(uid).await,
            };
            match outcome {
                Ok(()) => queue.forget(&item),
                Err(error) => {
                    tracing::debug!(?item, error = %chain(&error), "will be tried again");
                    queue.add_failed(item.clone());
                }
            }
            queue.done(&item);
        }
    }

    fn node(&self, uid: &str) -> Option<Node> {
        self.shared.graph().get(uid).cloned()
    }

    async fn collect(&self, uid: &str) -> Result<(), Error> {
        let Some(node) = self.node(uid) else { return Ok(()) };
        if node.deleting && node.foreground {
            return self.finish_foreground(uid, &node).await;
        }
        if node.deleting {
            return Ok(());
        }
        let Some(latest) = self.read(&node, uid).await? else { return Ok(()) };
        let Some(owners) = self.classify(&node, &latest).await? else { return Ok(()) };
        if !owners.solid.is_empty() {
            return self.drop_owners(&node, &latest, &[owners.absent, owners.waiting].concat()).await;
        }
        if owners.absent.is_empty() && owners.waiting.is_empty() {
            return Ok(());
        }
        let has_dependents = !self.shared.graph().dependents(uid).is_empty();
        if !owners.waiting.is_empty() && has_dependents {
            // Its own dependents go first too; a circle of waiting is broken.
            self.unblock_circle(uid).await?;
            return self.delete(&node, &latest, "Foreground").await;
        }
        let has = |name: &str| latest.finalizers().any(|finalizer| finalizer == name);
        let policy = match () {
            () if has(ORPHAN) => "Orphan",
            () if has(FOREGROUND) => "Foreground",
            () => "Background",
        };
        self.delete(&node, &latest, policy).await
    }

    /// The object as the server has it; `None` when it is gone or another of its name is there.
    async fn read(&self, node: &Node, uid: &str) -> Result<Option<Object>, Error> {
        let key = &node.key;
        let found = self.context.client.find(&node.resource, &key.namespace, &key.name).await?;
        Ok(found.filter(|object| object.uid() == uid))
    }

    /// `None` when a reference makes no sense, so nothing may be concluded from it.
    async fn classify(&self, node: &Node, latest: &Object) -> Result<Option<Owners>, Error> {
        let mut owners = Owners::default();
        for reference in latest.owner_references() {
            let Some(resource) = self.resource_of(&reference)? else { continue };
            if resource.namespaced && !node.resource.namespaced {
                tracing::warn!(object = %node.key, owner = %reference.name, "owned from within a namespace");
                return Ok(None);
            }
            let namespace = if resource.namespaced { node.key.namespace.as_str() } else { "" };
            let owner = self.context.client.find(&resource, namespace, &reference.name).await?;
            match owner.filter(|owner| owner.uid() == reference.uid) {
                None => owners.absent.push(reference),
                Some(owner) if waits(&owner) => owners.waiting.push(reference),
                Some(_) => owners.solid.push(reference),
            }
        }
        Ok(Some(owners))
    }

    /// The resource that a reference means, asked of the last discovery.
    fn resource_of(&self, reference: &OwnerReference) -> Result<Option<Resource>, Error> {
        let discovery = self.shared.discovery();
        match discovery.of_kind(&reference.api_version, &reference.kind) {
            Some(resource) => Ok(Some(resource.clone())),
            None => Err(Error::UnknownKind {
                api_version: reference.api_version.to_string(),
                kind: reference.kind.to_string(),
            }),
        }
    }

    /// Deletes this very object, as it was when decided on.
    async fn delete(&self, node: &Node, latest: &Object, policy: &'static str) -> Result<(), Error> {
        let options = DeleteOptions {
            uid: Some(latest.uid().to_owned()),
            resource_version: Some(latest.resource_version().to_owned()),
            propagation_policy: policy,
            ..DeleteOptions::default()
        };
        let key = &node.key;
        tracing::info!(resource = %node.resource.gvr.resource, %key, policy, "collecting");
        match self.context.client.delete(&node.resource, &key.namespace, &key.name, &options).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// An owner that waits goes when nothing blocks it any more.
    async fn finish_foreground(&self, uid: &str, node: &Node) -> Result<(), Error> {
        let dependents = self.shared.graph().dependents(uid);
        let blocking: Vec<_> = dependents.into_iter().filter(|(_, d)| blocks(d, uid)).collect();
        if blocking.is_empty() {
            return self.remove_finalizer(node, uid, FOREGROUND).await;
        }
        for (dependent, node) in blocking {
            if !node.deleting {
                self.shared.queue.add(Item::Collect(dependent));
            }
        }
        Ok(())
    }

    async fn unblock_circle(&self, uid: &str) -> Result<(), Error> {
        let dependents = self.shared.graph().dependents(uid);
        for (dependent_uid, dependent) in dependents {
            if !(dependent.deleting && dependent.foreground) {
                continue;
            }
            let Some(latest) = self.read(&dependent, &dependent_uid).await? else { continue };
            let references = latest.owner_references().map(|mut reference| {
                reference.block_owner_deletion = false;
                reference.to_value()
            });
            let references: Vec<Value> = references.collect();
            self.patch_owners(&dependent, &latest, references).await?;
        }
        Ok(())
    }

    async fn drop_owners(&self, node: &Node, latest: &Object, gone: &[OwnerReference]) -> Result<(), Error> {
        if gone.is_empty() {
            return Ok(());
        }
        let is_kept = |reference: &OwnerReference| gone.iter().all(|g| g.uid != reference.uid);
        let kept = latest.list_at(&["metadata", "ownerReferences"]).iter();
        let kept = kept.filter(|v| OwnerReference::read(v).is_none_or(|r| is_kept(&r)));
        self.patch_owners(node, latest, kept.cloned().collect()).await
    }

    /// A merge patch, because extension kinds know no strategic one.
    async fn patch_owners(&self, node: &Node, latest: &Object, references: Vec<Value>) -> Result<(), Error> {
        let mut patch = Map::new();
        patch.set_at(&["metadata", "ownerReferences"], references);
        self.patch(node, latest, patch).await
    }

    async fn patch(&self, node: &Node, latest: &Object, mut patch: Map) -> Result<(), Error> {
        patch.set_at(&["metadata", "uid"], latest.uid());
        patch.set_at(&["metadata", "resourceVersion"], latest.resource_version());
        let patch = Patch::Merge(patch.into());
        let key = &node.key;
        match self.context.client.patch(&node.resource, &key.namespace, &key.name, "", &patch).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn orphan(&self, uid: &str) -> Result<(), Error> {
        let Some(node) = self.node(uid).filter(|node| node.deleting && node.orphan) else { return Ok(()) };
        let dependents = self.shared.graph().dependents(uid);
        for (dependent_uid, dependent) in dependents {
            let Some(latest) = self.read(&dependent, &dependent_uid).await? else { continue };
            let gone: Vec<OwnerReference> =
                latest.owner_references().filter(|reference| reference.uid == uid).collect();
            self.drop_owners(&dependent, &latest, &gone).await?;
        }
        self.remove_finalizer(&node, uid, ORPHAN).await
    }

    async fn remove_finalizer(&self, node: &Node, uid: &str, finalizer: &str) -> Result<(), Error> {
        let Some(latest) = self.read(node, uid).await? else { return Ok(()) };
        let kept: Vec<&str> = latest.finalizers().filter(|known| *known != finalizer).collect();
        if kept.len() == latest.finalizers().count() {
            return Ok(());
        }
        let kept = value!(kept);
        let mut patch = Map::new();
        patch.set_at(&["metadata", "finalizers"], kept);
        self.patch(node, &latest, patch).await
    }
}

fn waits(owner: &Object) -> bool {
    owner.is_deleting() && owner.finalizers().any(|finalizer| finalizer == FOREGROUND)
}

fn blocks(dependent: &Node, owner: &str) -> bool {
    dependent.owners.iter().any(|reference| reference.uid == owner && reference.block_owner_deletion)
}
