//! What the scheduler keeps of a node and of the pods on it.

use std::collections::BTreeMap;

use client::{Cached, Error, Key};
use k8s_openapi::api::core::v1 as core;
use smol_str::SmolStr;

use crate::{
    pod::{HostPort, Pod, Taint},
    resources::Resources,
    selector::{Labels, labels},
};

/// A node with the sum of what its pods hold.
#[derive(Clone, Debug, Default)]
pub struct Node {
    pub name: SmolStr,
    pub labels: Labels,
    pub unschedulable: bool,
    pub taints: Vec<Taint>,
    pub allocatable: Resources,
    /// Image names to their size in bytes.
    pub images: BTreeMap<SmolStr, i64>,
    pub requested: Resources,
    pub scored: Resources,
    pub host_ports: Vec<HostPort>,
    pub pods: BTreeMap<Key, Pod>,
    /// Pods are known on it but the node itself has not been seen (or is gone).
    pub absent: bool,
}

impl Node {
    /// The node's own facts; pods are added by [`Node::add`].
    pub fn read(cached: &Cached) -> Result<Self, Error> {
        let wire: core::Node = cached.typed()?;
        Ok(Self::from_wire(&cached.key.name, &wire))
    }

    pub fn from_wire(name: &str, wire: &core::Node) -> Self {
        let spec = wire.spec.as_ref();
        let status = wire.status.as_ref();
        let taint = |t: &core::Taint| Taint {
            key: SmolStr::from(&t.key),
            value: SmolStr::from(t.value.as_deref().unwrap_or_default()),
            effect: SmolStr::from(&t.effect),
        };
        let images = status.and_then(|s| s.images.as_ref()).into_iter().flatten();
        let images = images.flat_map(|image| {
            let size = image.size_bytes.unwrap_or(0);
            image.names.iter().flatten().map(move |name| (SmolStr::from(name), size))
        });
        Self {
            name: name.into(),
            labels: labels(wire.metadata.labels.as_ref()),
            unschedulable: spec.and_then(|s| s.unschedulable).unwrap_or(false),
            taints: spec.and_then(|s| s.taints.as_ref()).into_iter().flatten().map(taint).collect(),
            allocatable: Resources::from_list(status.and_then(|s| s.allocatable.as_ref())),
            images: images.collect(),
            ..Self::default()
        }
    }

    /// Takes the facts of a newer version, keeping the pods.
    pub fn update(&mut self, newer: Self) {
        let pods = std::mem::take(&mut self.pods);
        *self = newer;
        for pod in pods.into_values() {
            self.add(pod);
        }
    }

    pub fn add(&mut self, pod: Pod) {
        self.remove(&pod.key);
        self.requested.add(&pod.requests);
        self.scored.add(&pod.scored);
        self.host_ports.extend(pod.host_ports.iter().cloned());
        self.pods.insert(pod.key.clone(), pod);
    }

    pub fn remove(&mut self, key: &Key) -> Option<Pod> {
        let pod = self.pods.remove(key)?;
        self.requested.subtract(&pod.requests);
        self.scored.subtract(&pod.scored);
        for port in &pod.host_ports {
            if let Some(at) = self.host_ports.iter().position(|known| known == port) {
                self.host_ports.swap_remove(at);
            }
        }
        Some(pod)
    }
}
