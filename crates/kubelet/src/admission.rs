//! Whether a pod that was assigned to this node can run here: the last check before it starts.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm};

use crate::{
    config::Capacity,
    pod::{Pod, PodExt},
    resources::Totals,
    worker::Verdict,
};

/// The verdict that rejects `pod`, or `None` when it may run beside `others`.
pub fn check(
    pod: &Pod,
    others: &[&Pod],
    node: Option<&Node>,
    allocatable: Capacity,
) -> Option<Verdict> {
    let refuse = |reason: &str, text: String| {
        Some(Verdict {
            reason: reason.into(),
            message: format!("Pod was rejected: {text}"),
            rejected: true,
        })
    };
    if let Some((reason, text)) = lacks(pod, others, allocatable) {
        return refuse(reason, text);
    }
    if let Some(node) = node {
        if !matches_node(pod, node) {
            return refuse(
                "NodeAffinity",
                "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
                    .into(),
            );
        }
    }
    if let Some(name) = unsafe_sysctl(pod) {
        return refuse("SysctlForbidden", format!("forbidden sysctl: {name:?} not allowlisted"));
    }
    if has_port_conflict(pod, others) {
        return refuse(
            "NodePorts",
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports".into(),
        );
    }
    None
}

/// The first resource that does not suffice.
fn lacks(pod: &Pod, others: &[&Pod], allocatable: Capacity) -> Option<(&'static str, String)> {
    let used = others.iter().map(|pod| Totals::of(pod)).fold((0, 0, 0), |sum, one| {
        (sum.0 + one.cpu_request, sum.1 + one.memory_request, sum.2 + one.ephemeral_request)
    });
    let wanted = Totals::of(pod);
    let count = others.len() as i64;
    [
        ("OutOfpods", "pods", 1, count, allocatable.pods),
        ("OutOfcpu", "cpu", wanted.cpu_request, used.0, allocatable.cpu_milli),
        ("OutOfmemory", "memory", wanted.memory_request, used.1, allocatable.memory_bytes),
        (
            "OutOfephemeral-storage",
            "ephemeral-storage",
            wanted.ephemeral_request,
            used.2,
            allocatable.ephemeral_storage_bytes,
        ),
    ]
    .into_iter()
    .find(|(_, _, wanted, used, capacity)| *wanted > 0 && wanted + used > *capacity)
    .map(|(reason, name, wanted, used, capacity)| {
        let text = format!(
            "Node didn't have enough resource: {name}, requested: {wanted}, used: {used}, capacity: {capacity}"
        );
        (reason, text)
    })
}

/// Settings that reach no further than the pod's own namespaces: upstream's safe set.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// The first setting that this node does not let pods change.
fn unsafe_sysctl(pod: &Pod) -> Option<String> {
    let security = pod.spec().security_context.as_ref()?;
    let names = security.sysctls.iter().flatten().map(|sysctl| sysctl.name.replace('/', "."));
    names.into_iter().find(|name| {
        let known = SAFE_SYSCTLS.contains(&name.as_str());
        // A pod on the node's network would change the node's own settings.
        !known || (pod.host_network() && name.starts_with("net."))
    })
}

fn has_port_conflict(pod: &Pod, others: &[&Pod]) -> bool {
    let taken: BTreeSet<_> = others.iter().flat_map(|pod| host_ports(pod)).collect();
    host_ports(pod).iter().any(|(ip, protocol, port)| {
        taken.iter().any(|(other_ip, other_protocol, other_port)| {
            let same_ip = ip == other_ip || ip == "0.0.0.0" || other_ip == "0.0.0.0";
            same_ip && protocol == other_protocol && port == other_port
        })
    })
}

fn host_ports(pod: &Pod) -> Vec<(String, String, i32)> {
    let mut ports = Vec::new();
    for (container, _) in pod.all_containers() {
        for port in container.ports.iter().flatten() {
            if let Some(number) = port.host_port.filter(|&number| number > 0) {
                let ip = port.host_ip.clone().filter(|ip| !ip.is_empty());
                let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
                ports.push((ip.unwrap_or_else(|| "0.0.0.0".into()), protocol, number));
            }
        }
    }
    ports
}

/// `nodeSelector` and the required part of the node affinity.
fn matches_node(pod: &Pod, node: &Node) -> bool {
    let empty = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&empty);
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let selector = pod.spec().node_selector.iter().flatten();
    if !selector.clone().all(|(key, value)| labels.get(key) == Some(value)) {
        return false;
    }
    let affinity =
        pod.spec().affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|required| {
        required.node_selector_terms.iter().any(|term| matches_term(term, labels, name))
    })
}

fn matches_term(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let by_name = BTreeMap::from([("metadata.name".to_owned(), name.to_owned())]);
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|requirement| matches(requirement, labels))
        && fields.iter().all(|requirement| matches(requirement, &by_name))
}

fn matches(requirement: &NodeSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let value = labels.get(&requirement.key);
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = |text: &String| text.parse::<i64>().ok();
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|value| values.contains(value)),
        "NotIn" => value.is_none_or(|value| !values.contains(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => {
            value.and_then(number).zip(values.first().and_then(number)).is_some_and(|(a, b)| a > b)
        }
        "Lt" => {
            value.and_then(number).zip(values.first().and_then(number)).is_some_and(|(a, b)| a < b)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: &str) -> Pod {
        serde_json::from_str(&format!(r#"{{"spec":{spec}}}"#)).unwrap()
    }

    const ROOM: Capacity = Capacity {
        cpu_milli: 1000,
        memory_bytes: 1 << 30,
        ephemeral_storage_bytes: 1 << 30,
        pods: 2,
    };

    fn reason(pod: &Pod, others: &[&Pod]) -> Option<String> {
        let node: Node =
            serde_json::from_str(r#"{"metadata":{"name":"n","labels":{"disk":"ssd","gen":"3"}}}"#)
                .unwrap();
        check(pod, others, Some(&node), ROOM).map(|verdict| verdict.reason)
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let small = pod(r#"{"containers":[{"name":"a","resources":{"requests":{"cpu":"600m"}}}]}"#);
        assert_eq!(reason(&small, &[]), None);
        assert_eq!(reason(&small, &[&small]).as_deref(), Some("OutOfcpu"));
        let idle = pod(r#"{"containers":[{"name":"a"}]}"#);
        assert_eq!(reason(&idle, &[&idle, &idle]).as_deref(), Some("OutOfpods"));
        let port =
            pod(r#"{"containers":[{"name":"a","ports":[{"containerPort":1,"hostPort":80}]}]}"#);
        assert_eq!(reason(&port, &[&port]).as_deref(), Some("NodePorts"));
        let odd = pod(
            r#"{"securityContext":{"sysctls":[{"name":"kernel.msgmax","value":"1"}]},"containers":[]}"#,
        );
        assert_eq!(reason(&odd, &[]).as_deref(), Some("SysctlForbidden"));
        let elsewhere = pod(r#"{"nodeSelector":{"disk":"hdd"},"containers":[]}"#);
        assert_eq!(reason(&elsewhere, &[]).as_deref(), Some("NodeAffinity"));
        let newer = pod(
            r#"{"containers":[],"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":
               {"nodeSelectorTerms":[{"matchExpressions":[{"key":"gen","operator":"Gt","values":["2"]}]}]}}}}"#,
        );
        assert_eq!(reason(&newer, &[]), None);
    }
}
