//! What the two endpoint controllers share: which pods serve a Service, and on which ports.

use client::{Change, Key};
use machinery::{Object, Value};

use crate::{plan::World, resources::*, selector::Selector, views::Pod};

/// The Services that a change of a pod concerns: those that select it or did, unless nothing of it
/// changed that endpoints show.
pub fn services_of_pod(change: &Change, world: &World) -> Vec<Key> {
    if let (Some(old), Some(new)) = (&change.old, &change.new)
        && old.labels == new.labels
        && shown(old) == shown(new)
    {
        return Vec::new();
    }
    let services = world.list(&SERVICES).in_namespace(&change.key().namespace);
    let selects = |service: &std::sync::Arc<client::Cached>| {
        let selector = service.object().ok().as_ref().and_then(selector)?;
        change.both().any(|pod| selector.matches(&pod.labels)).then(|| service.key.clone())
    };
    services.iter().filter_map(selects).collect()
}

#[derive(PartialEq)]
struct Shown {
    ips: Vec<String>,
    node: String,
    name: (String, String),
    state: [bool; 3],
}

fn shown(cached: &client::Cached) -> Option<Shown> {
    let pod = Pod::read(cached)?;
    Some(Shown {
        ips: addresses(&pod).map(str::to_owned).collect(),
        node: pod.spec.node_name.to_string(),
        name: (pod.spec.hostname.to_string(), pod.spec.subdomain.to_string()),
        state: [pod.is_ready(), pod.is_deleting(), pod.is_finished()],
    })
}

/// The selector of a Service whose endpoints are ours to make; `None` for the others.
pub fn selector(service: &Object) -> Option<Selector> {
    if service.str_at(&["spec", "type"]) == "ExternalName" {
        return None;
    }
    let labels = service.map_at(&["spec", "selector"])?;
    (!labels.is_empty()).then(|| Selector::of_labels(labels))
}

/// Pods that the Service selects and that have an address, by name.
pub fn serving_pods(service: &Object, world: &World, include_terminating: bool) -> Vec<Pod> {
    let Some(selector) = selector(service) else { return Vec::new() };
    let pods = world.list(&PODS).in_namespace(service.namespace());
    let selected = pods.iter().filter(|cached| selector.matches(&cached.labels));
    selected
        .filter_map(|cached| Pod::read(cached))
        .filter(|pod| !pod.is_finished() && addresses(pod).next().is_some())
        .filter(|pod| include_terminating || !pod.is_deleting())
        .collect()
}

pub fn addresses(pod: &Pod) -> impl Iterator<Item = &str> {
    let first = pod.status.pod_ips.is_empty().then_some(pod.status.pod_ip.as_str());
    let all = pod.status.pod_ips.iter().map(|ip| ip.ip.as_str());
    first.into_iter().chain(all).filter(|ip| !ip.is_empty())
}

pub fn is_ipv6(address: &str) -> bool {
    address.contains(':')
}

pub fn is_headless(service: &Object) -> bool {
    service.str_at(&["spec", "clusterIP"]) == "None"
}

/// Has a cluster address of its own.
pub fn has_address(service: &Object) -> bool {
    !matches!(service.str_at(&["spec", "clusterIP"]), "" | "None")
}

pub fn publishes_not_ready(service: &Object) -> bool {
    service.bool_at(&["spec", "publishNotReadyAddresses"])
}

/// The host name under which the Service's DNS entry names the pod.
pub fn hostname<'a>(pod: &'a Pod, service: &Object) -> Option<&'a str> {
    let named = !pod.spec.hostname.is_empty() && pod.spec.subdomain == service.name();
    named.then_some(pod.spec.hostname.as_str())
}

/// The number of a Service's port on a pod, by number or by the name of a container's port.
pub fn target_port(pod: &Pod, port: &Value) -> Option<i64> {
    let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or("TCP");
    match port.get("targetPort") {
        Some(Value::Int(number)) if *number != 0 => Some(*number),
        Some(Value::String(name)) if !name.is_empty() => {
            let sidecars = pod.spec.init_containers.iter();
            let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
            let mut ports = pod.spec.containers.iter().chain(sidecars).flat_map(|c| &c.ports);
            let named = |p: &&crate::views::ContainerPort| {
                let own = if p.protocol.is_empty() { "TCP" } else { p.protocol.as_str() };
                p.name == *name && own == protocol
            };
            ports.find(named).map(|p| p.container_port)
        }
        _ => port.get("port").and_then(Value::as_i64),
    }
}

/// `{kind, namespace, name, uid}` of a pod.
pub fn target_ref(pod: &Pod) -> Value {
    machinery::value!({
        "kind": "Pod",
        "namespace": pod.metadata.namespace,
        "name": pod.metadata.name,
        "uid": pod.metadata.uid,
    })
}
