//! What every part of the agent shares.

use std::sync::{Arc, OnceLock};

use client::{Client, EventRecorder, Informer, Resource, events::EventType};
use cri::RuntimeClient;
use stdx::Env;

use crate::{
    config::KubeletConfig,
    images::Images,
    objects::Objects,
    pod::{Pod, PodExt, container_reference},
    streaming::Streaming,
    volumes::Tokens,
};

pub const PODS: Resource = Resource::namespaced("", "v1", "pods", "Pod");
pub const NODES: Resource = Resource::cluster("", "v1", "nodes", "Node");
pub const SERVICES: Resource = Resource::namespaced("", "v1", "services", "Service");
pub const RUNTIME_CLASSES: Resource =
    Resource::cluster("node.k8s.io", "v1", "runtimeclasses", "RuntimeClass");
pub const LEASES: Resource = Resource::namespaced("coordination.k8s.io", "v1", "leases", "Lease");

pub struct Context {
    pub env: Env,
    pub client: Client,
    pub config: KubeletConfig,
    pub runtime: RuntimeClient,
    pub images: Images,
    pub events: EventRecorder,
    pub objects: Objects,
    pub tokens: Tokens,
    pub services: Informer,
    pub node: Informer,
    pub streaming: Arc<dyn Streaming>,
    /// The control groups of this machine; `None` when they cannot be found.
    pub cgroups: Option<Arc<linux::cgroup::Host>>,
    /// Counts the runtime's events, for those that wait for any of them.
    pub runtime_events: tokio::sync::watch::Sender<u64>,
    /// Name and version of the runtime, once it has answered.
    pub runtime_version: OnceLock<(String, String)>,
}

impl Context {
    /// The prefix of container ids.
    pub fn runtime_name(&self) -> &str {
        self.runtime_version.get().map_or("cri", |(name, _)| name)
    }

    pub fn host_ips(&self) -> Vec<String> {
        self.config.addresses.iter().map(ToString::to_string).collect()
    }

    pub fn pod_event(&self, pod: &Pod, kind: EventType, reason: &str, message: impl Into<String>) {
        self.events.record(pod.reference(), kind, reason, message);
    }

    pub fn container_event(
        &self,
        pod: &Pod,
        container: &str,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.events.record(container_reference(pod, container), kind, reason, message);
    }
}
