//! Who owns whom, by uid.

use std::collections::BTreeSet;

use client::{Cached, Change, Key, Resource};
use machinery::OwnerReference;
use smol_str::SmolStr;
use stdx::HashMap;

use super::Item;

pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";

/// An object that exists, as far as the informers know.
#[derive(Clone, Debug)]
pub struct Node {
    pub resource: Resource,
    pub key: Key,
    pub owners: Vec<OwnerReference>,
    pub deleting: bool,
    pub foreground: bool,
    pub orphan: bool,
}

#[derive(Default)]
pub struct Graph {
    nodes: HashMap<SmolStr, Node>,
    dependents: HashMap<SmolStr, BTreeSet<SmolStr>>,
    /// Until every informer has listed, a missing owner means nothing.
    started: bool,
}

impl Graph {
    /// Takes a change in, and tells what should be looked at because of it.
    pub fn observe(&mut self, resource: &Resource, change: &Change) -> Vec<Item> {
        let mut items = Vec::new();
        let replaced = match (&change.old, &change.new) {
            (Some(old), Some(new)) => old.uid != new.uid,
            (Some(_), None) => true,
            _ => false,
        };
        if let (Some(old), true) = (&change.old, replaced) {
            self.remove(&old.uid, &mut items);
        }
        if let Some(new) = &change.new {
            self.insert(resource, new, &mut items);
        }
        items
    }

    /// From now on missing owners count. Returns those objects that lack one already.
    pub fn start(&mut self) -> Vec<SmolStr> {
        self.started = true;
        let lacking = self.nodes.iter().filter(|(_, node)| self.lacks_owner(node));
        let mut uids: Vec<SmolStr> = lacking.map(|(uid, _)| uid.clone()).collect();
        uids.sort();
        uids
    }

    pub fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// The uids and nodes of everything that names this uid as an owner.
    pub fn dependents(&self, uid: &str) -> Vec<(SmolStr, Node)> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|uid| Some((uid.clone(), self.nodes.get(uid)?.clone()))).collect()
    }

    fn lacks_owner(&self, node: &Node) -> bool {
        node.owners.iter().any(|owner| !self.is_present(owner, node))
    }

    /// Whether the graph holds the very object that a reference names.
    pub fn is_present(&self, owner: &OwnerReference, dependent: &Node) -> bool {
        self.nodes.get(&owner.uid).is_some_and(|node| {
            let same_place = !node.resource.namespaced || node.key.namespace == dependent.key.namespace;
            node.key.name == owner.name && node.resource.kind == owner.kind && same_place
        })
    }

    fn remove(&mut self, uid: &SmolStr, items: &mut Vec<Item>) {
        let Some(node) = self.nodes.remove(uid) else { return };
        self.unlink(uid, &node.owners);
        let dependents = self.dependents.get(uid).into_iter().flatten();
        items.extend(dependents.cloned().map(Item::Collect));
        // An owner may have waited for this one to be gone.
        self.wake_waiting_owners(&node.owners, items);
    }

    fn insert(&mut self, resource: &Resource, cached: &Cached, items: &mut Vec<Item>) {
        let node = read(resource, cached);
        let uid = &cached.uid;
        let old = self.nodes.insert(uid.clone(), node.clone());
        let old_owners = old.as_ref().map(|old| old.owners.clone()).unwrap_or_default();
        if old_owners != node.owners {
            self.unlink(uid, &old_owners);
            for owner in &node.owners {
                self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
            }
            self.wake_waiting_owners(&old_owners, items);
            if self.started && self.lacks_owner(&node) {
                items.push(Item::Collect(uid.clone()));
            }
        }
        let was = |flag: fn(&Node) -> bool| old.as_ref().is_some_and(|old| old.deleting && flag(old));
        if node.deleting && node.orphan && !was(|old| old.orphan) {
            items.push(Item::Orphan(uid.clone()));
        }
        if node.deleting && node.foreground && !was(|old| old.foreground) {
            items.push(Item::Collect(uid.clone()));
            let dependents = self.dependents.get(uid).into_iter().flatten();
            items.extend(dependents.cloned().map(Item::Collect));
        }
        if node.deleting && old.as_ref().is_none_or(|old| !old.deleting) {
            self.wake_waiting_owners(&node.owners, items);
        }
        if self.started && node.owners.iter().any(|owner| self.is_waiting(&owner.uid)) && old.is_none() {
            items.push(Item::Collect(uid.clone()));
        }
    }

    fn is_waiting(&self, uid: &str) -> bool {
        self.nodes.get(uid).is_some_and(|node| node.deleting && node.foreground)
    }

    fn wake_waiting_owners(&self, owners: &[OwnerReference], items: &mut Vec<Item>) {
        let waiting = owners.iter().filter(|owner| self.is_waiting(&owner.uid));
        items.extend(waiting.map(|owner| Item::Collect(owner.uid.clone())));
    }

    fn unlink(&mut self, uid: &SmolStr, owners: &[OwnerReference]) {
        for owner in owners {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
    }
}

fn read(resource: &Resource, cached: &Cached) -> Node {
    // Finalizers matter only while it is being deleted, which spares parsing all else.
    let finalizers: Vec<String> = match cached.is_deleting() {
        true => cached.object().map(|o| o.finalizers().map(str::to_owned).collect()).unwrap_or_default(),
        false => Vec::new(),
    };
    let has = |name: &str| finalizers.iter().any(|finalizer| finalizer == name);
    Node {
        resource: resource.clone(),
        key: cached.key.clone(),
        owners: cached.owners.clone(),
        deleting: cached.is_deleting(),
        foreground: has(FOREGROUND),
        orphan: has(ORPHAN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{resources::*, scenario::cached};
    use machinery::value;
    use std::sync::Arc;

    fn object(name: &str, owner: &str, finalizer: &str) -> Arc<Cached> {
        let mut object = value!({"metadata": {"namespace": "d", "name": name, "uid": name}});
        let map = object.as_map_mut().unwrap();
        if !owner.is_empty() {
            let reference = value!([{"apiVersion": "v1", "kind": "Pod", "name": owner, "uid": owner, "blockOwnerDeletion": true}]);
            map.set_at(&["metadata", "ownerReferences"], reference);
        }
        if !finalizer.is_empty() {
            map.set_at(&["metadata", "deletionTimestamp"], "2026-01-01T00:00:00Z");
            map.set_at(&["metadata", "finalizers"], value!([finalizer]));
        }
        Arc::new(cached(object))
    }

    fn change(old: Option<Arc<Cached>>, new: Option<Arc<Cached>>) -> Change {
        Change { old, new }
    }

    #[test]
    fn dependents_of_what_is_gone_are_looked_at() {
        let mut graph = Graph::default();
        graph.observe(&PODS, &change(None, Some(object("child", "parent", ""))));
        graph.observe(&PODS, &change(None, Some(object("parent", "", ""))));
        assert_eq!(graph.start(), Vec::<SmolStr>::new());
        let items = graph.observe(&PODS, &change(Some(object("parent", "", "")), None));
        assert_eq!(items, [Item::Collect("child".into())]);
        let items = graph.observe(&PODS, &change(None, Some(object("late", "parent", ""))));
        assert_eq!(items, [Item::Collect("late".into())]);
    }

    #[test]
    fn foreground_looks_at_both_and_the_last_dependent_wakes_the_owner() {
        let mut graph = Graph::default();
        graph.start();
        graph.observe(&PODS, &change(None, Some(object("parent", "", ""))));
        graph.observe(&PODS, &change(None, Some(object("child", "parent", ""))));
        let going = object("parent", "", FOREGROUND);
        let items = graph.observe(&PODS, &change(Some(object("parent", "", "")), Some(going)));
        assert_eq!(items, [Item::Collect("parent".into()), Item::Collect("child".into())]);
        let items = graph.observe(&PODS, &change(Some(object("child", "parent", "")), None));
        assert_eq!(items, [Item::Collect("parent".into())]);
    }
}
