//! What the proxy knows of a Service and its endpoints: a small projection, decoded for one key.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};

/// A Service's or EndpointSlice's namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    pub namespace: String,
    pub name: String,
}

/// A Service, as far as packets are concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Empty for headless services.
    pub cluster_ips: Vec<IpAddr>,
    pub external_ips: Vec<IpAddr>,
    /// Addresses of `status.loadBalancer.ingress` that the node itself answers for.
    pub load_balancer_ips: Vec<IpAddr>,
    pub source_ranges: Vec<IpNet>,
    pub external_local: bool,
    pub internal_local: bool,
    /// `sessionAffinity: ClientIP` with its timeout.
    pub affinity_seconds: Option<u32>,
    pub health_check_node_port: Option<u16>,
    pub ports: Vec<ServicePort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
}

/// Transport protocols of Services, by their IANA numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp = 6,
    Udp = 17,
    Sctp = 132,
}

/// The endpoints that one slice contributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// The numbers behind each port name and protocol.
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub node: Option<String>,
    /// Zones that should use it, when hinted.
    pub zones: Vec<String>,
    /// Nodes that should use it, when hinted.
    pub nodes: Vec<String>,
}

/// The slices of one Service, by slice name.
pub type Slices = BTreeMap<String, Slice>;

const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// The label by which a slice names its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

impl Service {
    /// `None` when the Service is not the proxy's business: headless, ExternalName, or handed to
    /// another proxy by label.
    pub fn of(service: &core::Service) -> Option<Self> {
        let labels = service.metadata.labels.as_ref();
        let labelled = |name: &str| labels.is_some_and(|labels| labels.contains_key(name));
        let spec = service.spec.as_ref()?;
        let other_type = spec.type_.as_deref() == Some("ExternalName");
        if labelled(PROXY_NAME_LABEL) || labelled(HEADLESS_LABEL) || other_type {
            return None;
        }
        let cluster_ips = cluster_ips(spec);
        if cluster_ips.is_empty() {
            return None;
        }
        let is_local = |policy: &Option<String>| policy.as_deref() == Some("Local");
        Some(Self {
            cluster_ips,
            external_ips: addresses(spec.external_ips.as_deref().unwrap_or_default()),
            load_balancer_ips: load_balancer_ips(service),
            source_ranges: source_ranges(spec),
            external_local: is_local(&spec.external_traffic_policy),
            internal_local: is_local(&spec.internal_traffic_policy),
            affinity_seconds: affinity_seconds(spec),
            health_check_node_port: spec.health_check_node_port.and_then(port_number),
            ports: spec.ports.iter().flatten().filter_map(service_port).collect(),
        })
    }
}

fn cluster_ips(spec: &core::ServiceSpec) -> Vec<IpAddr> {
    match spec.cluster_ips.as_deref() {
        Some(list) if !list.is_empty() => addresses(list),
        _ => addresses(spec.cluster_ip.as_slice()),
    }
}

/// `None`, the word, is no address and drops out.
fn addresses(texts: &[String]) -> Vec<IpAddr> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

fn load_balancer_ips(service: &core::Service) -> Vec<IpAddr> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
    ingress
        .iter()
        .filter(|one| one.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|one| one.ip.as_ref()?.parse().ok())
        .collect()
}

fn source_ranges(spec: &core::ServiceSpec) -> Vec<IpNet> {
    let texts = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    texts.iter().filter_map(|text| text.trim().parse().ok()).collect()
}

fn affinity_seconds(spec: &core::ServiceSpec) -> Option<u32> {
    const DEFAULT_SECONDS: i32 = 10_800;
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
    let seconds = config.and_then(|c| c.timeout_seconds).unwrap_or(DEFAULT_SECONDS);
    u32::try_from(seconds).ok()
}

fn service_port(port: &core::ServicePort) -> Option<ServicePort> {
    Some(ServicePort {
        name: port.name.clone().unwrap_or_default(),
        protocol: Protocol::of(port.protocol.as_deref())?,
        port: port_number(port.port)?,
        node_port: port.node_port.and_then(port_number),
    })
}

fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number > 0)
}

impl Slice {
    pub fn of(slice: &discovery::EndpointSlice) -> Self {
        let ports = slice.ports.iter().flatten().filter_map(|port| {
            Some(SlicePort {
                name: port.name.clone().unwrap_or_default(),
                protocol: Protocol::of(port.protocol.as_deref())?,
                port: port_number(port.port?)?,
            })
        });
        Self {
            ports: ports.collect(),
            endpoints: slice.endpoints.iter().flatten().filter_map(endpoint).collect(),
        }
    }
}

fn endpoint(endpoint: &discovery::Endpoint) -> Option<Endpoint> {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    // Unset conditions read as: ready true, serving as ready, terminating false.
    let ready = conditions.ready.unwrap_or(true);
    let hints = endpoint.hints.as_ref();
    let zones = hints.and_then(|h| h.for_zones.as_ref()).into_iter().flatten();
    let nodes = hints.and_then(|h| h.for_nodes.as_ref()).into_iter().flatten();
    Some(Endpoint {
        address: endpoint.addresses.first()?.parse().ok()?,
        ready,
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
        node: endpoint.node_name.clone(),
        zones: zones.map(|zone| zone.name.clone()).collect(),
        nodes: nodes.map(|node| node.name.clone()).collect(),
    })
}

impl Protocol {
    /// An unset protocol is TCP.
    pub fn of(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }
}

impl std::fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
