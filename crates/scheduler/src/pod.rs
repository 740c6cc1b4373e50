//! What the scheduler keeps of a pod.

use client::{Cached, Error, Key};
use k8s_openapi::api::core::v1 as core;
use smol_str::SmolStr;

use crate::{
    resources::Resources,
    selector::{LabelSelector, Labels, NodeTerm, labels},
};

/// A projection of a pod. Amounts that the pod leaves open count as in [`Pod::scored`].
#[derive(Clone, Debug, Default)]
pub struct Pod {
    pub key: Key,
    pub uid: SmolStr,
    pub revision: i64,
    pub labels: Labels,
    pub scheduler_name: SmolStr,
    /// Empty until bound.
    pub node_name: SmolStr,
    pub nominated_node_name: SmolStr,
    pub priority: i32,
    pub preempts: bool,
    pub requests: Resources,
    /// The requests with 100m CPU and 200 MiB for every container that names none: what scores
    /// count, so that pods without requests spread too.
    pub scored: Resources,
    pub host_ports: Vec<HostPort>,
    pub tolerations: Vec<Toleration>,
    pub node_selector: Labels,
    /// Required node affinity: one of the terms must match. `None`: no requirement.
    pub required_nodes: Option<Vec<NodeTerm>>,
    pub preferred_nodes: Vec<(i64, NodeTerm)>,
    pub affinity: PodTerms,
    pub anti_affinity: PodTerms,
    pub spread: Vec<SpreadConstraint>,
    pub images: Vec<SmolStr>,
    pub gates: Vec<SmolStr>,
    pub owner: Option<(SmolStr, SmolStr)>,
    /// Nothing runs any more: it holds no resources.
    pub finished: bool,
    pub deleting: bool,
    /// The PodScheduled condition says Unschedulable with this message.
    pub unschedulable_message: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// `0.0.0.0` stands for every address.
    pub ip: SmolStr,
    pub protocol: SmolStr,
    pub port: i32,
}

impl HostPort {
    pub fn clashes(&self, other: &Self) -> bool {
        const ANY: &str = "0.0.0.0";
        let same_ip = self.ip == other.ip || self.ip == ANY || other.ip == ANY;
        self.port == other.port && self.protocol == other.protocol && same_ip
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toleration {
    pub key: SmolStr,
    pub exists: bool,
    pub value: SmolStr,
    pub effect: SmolStr,
}

/// A taint of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    pub key: SmolStr,
    pub value: SmolStr,
    pub effect: SmolStr,
}

impl Toleration {
    pub fn tolerates(&self, taint: &Taint) -> bool {
        let effect = self.effect.is_empty() || self.effect == taint.effect;
        let key = (self.key.is_empty() && self.exists) || self.key == taint.key;
        effect && key && (self.exists || self.value == taint.value)
    }
}

/// Required and preferred terms of pod affinity or anti-affinity.
#[derive(Clone, Debug, Default)]
pub struct PodTerms {
    pub required: Vec<PodTerm>,
    pub preferred: Vec<(i64, PodTerm)>,
}

#[derive(Clone, Debug)]
pub struct PodTerm {
    pub selector: LabelSelector,
    pub namespaces: Vec<SmolStr>,
    /// Every namespace (an empty namespace selector).
    pub all_namespaces: bool,
    pub topology_key: SmolStr,
}

impl PodTerm {
    pub fn matches(&self, pod: &Pod) -> bool {
        let namespace = self.all_namespaces || self.namespaces.contains(&pod.key.namespace);
        namespace && self.selector.matches(&pod.labels)
    }
}

#[derive(Clone, Debug)]
pub struct SpreadConstraint {
    pub max_skew: i64,
    pub topology_key: SmolStr,
    /// `DoNotSchedule`; else the constraint only scores.
    pub hard: bool,
    pub selector: LabelSelector,
    pub min_domains: i64,
    pub honor_affinity: bool,
    pub honor_taints: bool,
}

const DEFAULT_CPU_MILLI: i64 = 100;
const DEFAULT_MEMORY_BYTES: i64 = 200 << 20;

impl Pod {
    pub fn read(cached: &Cached) -> Result<Self, Error> {
        let wire: core::Pod = cached.typed()?;
        let mut pod = Self::from_wire(&wire);
        pod.key = cached.key.clone();
        pod.uid = cached.uid.clone();
        pod.revision = cached.revision;
        pod.owner = cached.controller().map(|owner| (owner.kind.clone(), owner.uid.clone()));
        pod.deleting = cached.is_deleting();
        Ok(pod)
    }

    pub fn from_wire(wire: &core::Pod) -> Self {
        let empty = core::PodSpec::default();
        let spec = wire.spec.as_ref().unwrap_or(&empty);
        let text = |value: &Option<String>| SmolStr::from(value.as_deref().unwrap_or_default());
        let namespace = text(&wire.metadata.namespace);
        let affinity = spec.affinity.as_ref();
        let node_affinity = affinity.and_then(|a| a.node_affinity.as_ref());
        let pod_affinity = affinity.and_then(|a| a.pod_affinity.as_ref());
        let pod_anti = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
        let pod_labels = labels(wire.metadata.labels.as_ref());
        Self {
            key: Key { namespace: namespace.clone(), name: text(&wire.metadata.name) },
            uid: text(&wire.metadata.uid),
            scheduler_name: text(&spec.scheduler_name),
            node_name: text(&spec.node_name),
            nominated_node_name: wire
                .status
                .as_ref()
                .map(|s| text(&s.nominated_node_name))
                .unwrap_or_default(),
            priority: spec.priority.unwrap_or(0),
            preempts: spec.preemption_policy.as_deref() != Some("Never"),
            requests: requests(spec, false),
            scored: requests(spec, true),
            host_ports: host_ports(spec),
            tolerations: spec.tolerations.iter().flatten().map(toleration).collect(),
            node_selector: labels(spec.node_selector.as_ref()),
            required_nodes: node_affinity
                .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())
                .map(|s| s.node_selector_terms.iter().map(NodeTerm::read).collect()),
            preferred_nodes: node_affinity
                .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref())
                .into_iter()
                .flatten()
                .map(|t| (i64::from(t.weight), NodeTerm::read(&t.preference)))
                .collect(),
            affinity: PodTerms {
                required: terms(
                    pod_affinity.and_then(|a| {
                        a.required_during_scheduling_ignored_during_execution.as_ref()
                    }),
                    &namespace,
                ),
                preferred: weighted(
                    pod_affinity.and_then(|a| {
                        a.preferred_during_scheduling_ignored_during_execution.as_ref()
                    }),
                    &namespace,
                ),
            },
            anti_affinity: PodTerms {
                required: terms(
                    pod_anti.and_then(|a| {
                        a.required_during_scheduling_ignored_during_execution.as_ref()
                    }),
                    &namespace,
                ),
                preferred: weighted(
                    pod_anti.and_then(|a| {
                        a.preferred_during_scheduling_ignored_during_execution.as_ref()
                    }),
                    &namespace,
                ),
            },
            spread: spec
                .topology_spread_constraints
                .iter()
                .flatten()
                .map(|c| spread(c, &pod_labels))
                .collect(),
            labels: pod_labels,
            images: spec
                .containers
                .iter()
                .filter_map(|c| c.image.as_ref())
                .map(SmolStr::from)
                .collect(),
            gates: spec.scheduling_gates.iter().flatten().map(|g| SmolStr::from(&g.name)).collect(),
            finished: matches!(phase(wire), "Succeeded" | "Failed"),
            unschedulable_message: unschedulable(wire),
            ..Self::default()
        }
    }

    /// Whether the pod holds its node's resources.
    pub fn is_assigned(&self) -> bool {
        !self.node_name.is_empty() && !self.finished
    }

    pub fn tolerates(&self, taint: &Taint) -> bool {
        self.tolerations.iter().any(|toleration| toleration.tolerates(taint))
    }
}

fn phase(pod: &core::Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

fn unschedulable(pod: &core::Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let scheduled = conditions.iter().find(|c| c.type_ == "PodScheduled" && c.status == "False")?;
    scheduled.message.clone()
}

fn toleration(wire: &core::Toleration) -> Toleration {
    let text = |value: &Option<String>| SmolStr::from(value.as_deref().unwrap_or_default());
    Toleration {
        key: text(&wire.key),
        exists: wire.operator.as_deref() == Some("Exists"),
        value: text(&wire.value),
        effect: text(&wire.effect),
    }
}

fn host_ports(spec: &core::PodSpec) -> Vec<HostPort> {
    let sidecars = spec.init_containers.iter().flatten().filter(|c| is_sidecar(c));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let number = port.host_port.filter(|&number| number > 0)?;
            let ip = port.host_ip.as_deref().filter(|ip| !ip.is_empty()).unwrap_or("0.0.0.0");
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            Some(HostPort { ip: ip.into(), protocol: protocol.into(), port: number })
        })
        .collect()
}

fn is_sidecar(container: &core::Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// What a pod needs at its peak: the sum of its containers and sidecars, or more where an init
/// container (beside the sidecars started before it) needs more; pod-level requests go before;
/// overhead is added (KEP-753, KEP-2837).
fn requests(spec: &core::PodSpec, scored: bool) -> Resources {
    let of = |container: &core::Container| {
        let list = container.resources.as_ref().and_then(|r| r.requests.as_ref());
        let mut amounts = Resources::from_list(list);
        if scored {
            let named = |name: &str| list.is_some_and(|l| l.contains_key(name));
            if !named("cpu") {
                amounts.cpu_milli = DEFAULT_CPU_MILLI;
            }
            if !named("memory") {
                amounts.memory_bytes = DEFAULT_MEMORY_BYTES;
            }
        }
        amounts
    };
    let mut total = Resources::default();
    for container in &spec.containers {
        total.add(&of(container));
    }
    let (mut sidecars, mut peak) = (Resources::default(), Resources::default());
    for container in spec.init_containers.iter().flatten() {
        let amounts = of(container);
        if is_sidecar(container) {
            total.add(&amounts);
            sidecars.add(&amounts);
            peak.raise_to(&sidecars);
        } else {
            let mut beside = sidecars.clone();
            beside.add(&amounts);
            peak.raise_to(&beside);
        }
    }
    total.raise_to(&peak);
    if let Some(list) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        let whole = Resources::from_list(Some(list));
        if list.contains_key("cpu") {
            total.cpu_milli = whole.cpu_milli;
        }
        if list.contains_key("memory") {
            total.memory_bytes = whole.memory_bytes;
        }
    }
    total.add(&Resources::from_list(spec.overhead.as_ref()));
    total
}

fn term(wire: &core::PodAffinityTerm, namespace: &SmolStr) -> PodTerm {
    let mut namespaces: Vec<SmolStr> =
        wire.namespaces.iter().flatten().map(SmolStr::from).collect();
    if namespaces.is_empty() && wire.namespace_selector.is_none() {
        namespaces.push(namespace.clone());
    }
    PodTerm {
        selector: LabelSelector::read(wire.label_selector.as_ref()),
        namespaces,
        all_namespaces: wire.namespace_selector.is_some(),
        topology_key: SmolStr::from(&wire.topology_key),
    }
}

fn terms(wire: Option<&Vec<core::PodAffinityTerm>>, namespace: &SmolStr) -> Vec<PodTerm> {
    wire.into_iter().flatten().map(|t| term(t, namespace)).collect()
}

fn weighted(
    wire: Option<&Vec<core::WeightedPodAffinityTerm>>,
    namespace: &SmolStr,
) -> Vec<(i64, PodTerm)> {
    let list = wire.into_iter().flatten();
    list.map(|t| (i64::from(t.weight), term(&t.pod_affinity_term, namespace))).collect()
}

fn spread(wire: &core::TopologySpreadConstraint, own: &Labels) -> SpreadConstraint {
    let mut selector = wire.label_selector.clone().unwrap_or_default();
    for key in wire.match_label_keys.iter().flatten() {
        if let Some(value) = own.get(key.as_str()) {
            selector.match_labels.get_or_insert_default().insert(key.clone(), value.to_string());
        }
    }
    SpreadConstraint {
        max_skew: i64::from(wire.max_skew),
        topology_key: SmolStr::from(&wire.topology_key),
        hard: wire.when_unsatisfiable == "DoNotSchedule",
        selector: LabelSelector::read(Some(&selector)),
        min_domains: i64::from(wire.min_domains.unwrap_or(1)),
        honor_affinity: wire.node_affinity_policy.as_deref() != Some("Ignore"),
        honor_taints: wire.node_taints_policy.as_deref() == Some("Honor"),
    }
}
