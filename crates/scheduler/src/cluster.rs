//! The cluster as the scheduler sees it, kept current change by change.

use std::collections::BTreeMap;

use client::Key;
use smol_str::SmolStr;

use crate::{node::Node, pod::Pod};

/// All nodes with their pods. Only changes touch it; a cycle reads it.
#[derive(Default)]
pub struct Cluster {
    nodes: BTreeMap<SmolStr, Node>,
    /// Where each assigned or assumed pod is.
    places: BTreeMap<Key, SmolStr>,
    /// Pods of ours that are being bound, by uid: the informer has not shown them bound yet.
    assumed: BTreeMap<Key, SmolStr>,
    /// How many pods in all have required anti-affinity; with none, nobody need look for it.
    pub anti_affine_pods: usize,
}

impl Cluster {
    /// Nodes that exist, in order of their names.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().filter(|node| !node.absent)
    }

    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name).filter(|node| !node.absent)
    }

    pub fn node_count(&self) -> usize {
        self.nodes().count()
    }

    pub fn pods(&self) -> impl Iterator<Item = (&Node, &Pod)> {
        self.nodes().flat_map(|node| node.pods.values().map(move |pod| (node, pod)))
    }

    pub fn set_node(&mut self, node: Node) {
        match self.nodes.get_mut(&node.name) {
            Some(known) => known.update(node),
            None => drop(self.nodes.insert(node.name.clone(), node)),
        }
    }

    pub fn remove_node(&mut self, name: &str) {
        if let Some(node) = self.nodes.get_mut(name) {
            // Its pods are still to be seen leaving.
            node.absent = true;
            if node.pods.is_empty() {
                self.nodes.remove(name);
            }
        }
    }

    /// A pod as the informer shows it now.
    pub fn set_pod(&mut self, pod: Pod) {
        if !pod.is_assigned() {
            // A pod that is being bound is shown unbound until the binding has been seen.
            let being_bound = self.assumed.get(&pod.key) == Some(&pod.uid) && !pod.finished;
            if !being_bound {
                self.remove_pod(&pod.key);
            }
            return;
        }
        self.assumed.remove(&pod.key);
        self.place(pod);
    }

    /// Counts a pod against its node before the API shows it there.
    pub fn assume(&mut self, pod: Pod) {
        self.assumed.insert(pod.key.clone(), pod.uid.clone());
        self.place(pod);
    }

    /// The binding failed: the pod is on no node. Nothing happens when it was seen bound.
    pub fn forget(&mut self, key: &Key) {
        if self.assumed.remove(key).is_some() {
            self.unplace(key);
        }
    }

    /// Whether a binding of the pod is under way.
    pub fn is_assumed(&self, key: &Key) -> bool {
        self.assumed.contains_key(key)
    }

    pub fn remove_pod(&mut self, key: &Key) {
        self.assumed.remove(key);
        self.unplace(key);
    }

    fn place(&mut self, pod: Pod) {
        self.unplace(&pod.key);
        self.anti_affine_pods += usize::from(!pod.anti_affinity.required.is_empty());
        self.places.insert(pod.key.clone(), pod.node_name.clone());
        let node = self.nodes.entry(pod.node_name.clone()).or_insert_with(|| Node {
            name: pod.node_name.clone(),
            absent: true,
            ..Node::default()
        });
        node.add(pod);
    }

    fn unplace(&mut self, key: &Key) {
        let Some(name) = self.places.remove(key) else { return };
        let Some(node) = self.nodes.get_mut(&name) else { return };
        if let Some(pod) = node.remove(key) {
            self.anti_affine_pods -= usize::from(!pod.anti_affinity.required.is_empty());
        }
        if node.absent && node.pods.is_empty() {
            self.nodes.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::Resources;

    fn pod(name: &str, node: &str) -> Pod {
        let requests = Resources { cpu_milli: 100, ..Resources::default() };
        Pod {
            key: Key::new("a", name),
            uid: name.into(),
            node_name: node.into(),
            requests,
            ..Pod::default()
        }
    }

    fn requested(cluster: &Cluster, node: &str) -> i64 {
        cluster.node(node).map_or(0, |n| n.requested.cpu_milli)
    }

    #[test]
    fn an_assumed_pod_counts_until_seen_or_forgotten() {
        let mut cluster = Cluster::default();
        cluster.set_node(Node { name: "n".into(), ..Node::default() });
        cluster.assume(pod("x", "n"));
        assert_eq!(requested(&cluster, "n"), 100);
        cluster.set_pod(pod("x", ""));
        assert_eq!(requested(&cluster, "n"), 100, "shown unbound, but being bound");
        cluster.forget(&Key::new("a", "x"));
        assert_eq!(requested(&cluster, "n"), 0);
        cluster.assume(pod("x", "n"));
        cluster.set_pod(pod("x", "n"));
        cluster.forget(&Key::new("a", "x"));
        assert_eq!(requested(&cluster, "n"), 100, "seen bound: the failure was of the answer only");
    }

    #[test]
    fn a_node_that_comes_back_finds_its_pods() {
        let mut cluster = Cluster::default();
        cluster.set_pod(pod("x", "n"));
        assert_eq!(cluster.node_count(), 0);
        cluster.set_node(Node { name: "n".into(), ..Node::default() });
        assert_eq!(requested(&cluster, "n"), 100);
        cluster.remove_node("n");
        assert!(cluster.node("n").is_none());
        cluster.remove_pod(&Key::new("a", "x"));
        assert!(cluster.nodes.is_empty());
    }
}
