//! Which addresses a Service answers on and where each leads: pure, for one Service at a time.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use linux::nft::Family;

use crate::model::{Endpoint, Protocol, Service, ServicePort, Slices};

/// What one node must know about one Service, in one address family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePlan {
    pub ports: Vec<PortPlan>,
    /// Addresses whose other ports are refused.
    pub cluster_ips: Vec<IpAddr>,
    /// Sources that may use the load balancer's addresses; empty for all.
    pub source_ranges: Vec<IpNet>,
}

/// One Service port: its frontends, and the endpoints they lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPlan {
    pub name: String,
    pub protocol: Protocol,
    pub frontends: Vec<Frontend>,
    /// Endpoints anywhere, in order.
    pub cluster: Vec<Target>,
    /// Endpoints on this node, for frontends with policy `Local`.
    pub local: Vec<Target>,
    pub affinity_seconds: Option<u32>,
    /// Addresses of this node's pods among the endpoints; they may meet themselves.
    pub hairpins: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    pub address: IpAddr,
    pub port: u16,
    pub policy: Policy,
    /// The load balancer's address, to which source ranges apply.
    pub restricted: bool,
}

/// How a frontend treats packets; each is a chain of the ruleset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Policy {
    /// Cluster IP, all endpoints.
    Cluster,
    /// Cluster IP, endpoints of this node only.
    ClusterLocal,
    /// An address known outside, all endpoints; the source is masqueraded.
    External,
    /// An address known outside, endpoints of this node only, the source is kept.
    ExternalLocal,
    /// There are no endpoints at all: refuse.
    Refuse,
}

/// An endpoint's address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    pub address: IpAddr,
    pub port: u16,
}

/// The node for which the plan is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    pub name: String,
    pub zone: Option<String>,
    /// Addresses on which node ports are served.
    pub node_port_addresses: Vec<IpAddr>,
    /// Addresses that something on the node itself answers on (cluster DNS): never translated.
    pub own_addresses: BTreeSet<IpAddr>,
    /// What of a Service is served here.
    pub serve: Serve,
}

/// A node serves all; a host outside the cluster only what the outside may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serve {
    pub cluster_ips: bool,
    pub external_ips: bool,
    pub load_balancer_ips: bool,
    pub node_ports: bool,
}

impl Default for Serve {
    fn default() -> Self {
        Self { cluster_ips: true, external_ips: true, load_balancer_ips: true, node_ports: true }
    }
}

/// Plans one Service.
pub fn plan(service: &Service, slices: &Slices, node: &NodeView, family: Family) -> ServicePlan {
    let served = |address: &&IpAddr| of_family(**address, family) && !node.owns(**address);
    let cluster_ips: Vec<IpAddr> = match node.serve.cluster_ips {
        true => service.cluster_ips.iter().filter(served).copied().collect(),
        false => Vec::new(),
    };
    let ports = service.ports.iter().map(|port| {
        let endpoints = Endpoints::of(port, service, slices, node, family);
        let mut frontends = frontends(port, service, &cluster_ips, node, family);
        if endpoints.cluster.is_empty() {
            frontends.iter_mut().for_each(|frontend| frontend.policy = Policy::Refuse);
        }
        PortPlan {
            name: port.name.clone(),
            protocol: port.protocol,
            frontends,
            cluster: endpoints.cluster,
            local: endpoints.local,
            affinity_seconds: service.affinity_seconds,
            hairpins: endpoints.hairpins,
        }
    });
    let ports = ports.filter(|port| !port.frontends.is_empty()).collect();
    let ranges = service.source_ranges.iter().filter(|range| of_family(range.addr(), family));
    ServicePlan { ports, cluster_ips, source_ranges: ranges.copied().collect() }
}

/// How many endpoints of this node can serve, for the health check node port.
pub fn local_endpoints(service: &Service, slices: &Slices, node: &NodeView) -> usize {
    let mut local = BTreeSet::new();
    for port in &service.ports {
        for family in [Family::Ipv4, Family::Ipv6] {
            let found = candidates(port, slices, family);
            let here = found.into_iter().filter(|(endpoint, _)| node.has(endpoint));
            local.extend(here.filter(|(e, _)| e.ready).map(|(e, _)| e.address));
        }
    }
    local.len()
}

impl NodeView {
    fn owns(&self, address: IpAddr) -> bool {
        self.own_addresses.contains(&address)
    }

    fn has(&self, endpoint: &Endpoint) -> bool {
        endpoint.node.as_deref() == Some(self.name.as_str())
    }
}

fn frontends(
    port: &ServicePort,
    service: &Service,
    cluster_ips: &[IpAddr],
    node: &NodeView,
    family: Family,
) -> Vec<Frontend> {
    let internal = if service.internal_local { Policy::ClusterLocal } else { Policy::Cluster };
    let external = if service.external_local { Policy::ExternalLocal } else { Policy::External };
    let list = |wanted: bool, addresses: &[IpAddr], port: u16, policy, restricted| {
        let usable = addresses
            .iter()
            .filter(|address| wanted && of_family(**address, family) && !node.owns(**address));
        usable
            .map(|address| Frontend { address: *address, port, policy, restricted })
            .collect::<Vec<_>>()
    };
    let serve = node.serve;
    let mut all = list(true, cluster_ips, port.port, internal, false);
    all.extend(list(serve.external_ips, &service.external_ips, port.port, external, false));
    let balancer = &service.load_balancer_ips;
    let restricted = !service.source_ranges.is_empty();
    all.extend(list(serve.load_balancer_ips, balancer, port.port, external, restricted));
    if let Some(node_port) = port.node_port {
        let addresses = &node.node_port_addresses;
        all.extend(list(serve.node_ports, addresses, node_port, external, false));
    }
    let mut seen = BTreeSet::new();
    all.retain(|frontend| seen.insert((frontend.address, frontend.port)));
    all
}

struct Endpoints {
    cluster: Vec<Target>,
    local: Vec<Target>,
    hairpins: Vec<IpAddr>,
}

impl Endpoints {
    fn of(
        port: &ServicePort,
        service: &Service,
        slices: &Slices,
        node: &NodeView,
        family: Family,
    ) -> Self {
        let all = candidates(port, slices, family);
        let here: Vec<_> = all.iter().copied().filter(|(e, _)| node.has(e)).collect();
        let hairpins: BTreeSet<IpAddr> = here
            .iter()
            .map(|(endpoint, _)| endpoint.address)
            .filter(|address| !node.node_port_addresses.contains(address))
            .collect();
        let needs_local = service.external_local || service.internal_local;
        Self {
            cluster: usable(&hinted(all, node)),
            local: if needs_local { usable(&here) } else { Vec::new() },
            hairpins: hairpins.into_iter().collect(),
        }
    }
}

/// Every endpoint of a Service port, with the port number that its slice gives.
fn candidates<'a>(
    port: &ServicePort,
    slices: &'a Slices,
    family: Family,
) -> Vec<(&'a Endpoint, u16)> {
    let of_port = slices.values().flat_map(|slice| {
        let numbers = slice.ports.iter();
        let wanted = numbers.filter(|p| p.name == port.name && p.protocol == port.protocol);
        wanted.flat_map(|p| slice.endpoints.iter().map(|endpoint| (endpoint, p.port)))
    });
    of_port.filter(|(endpoint, _)| of_family(endpoint.address, family)).collect()
}

/// The ready endpoints; while there are none, those that end but still serve (KEP-1669).
fn usable(endpoints: &[(&Endpoint, u16)]) -> Vec<Target> {
    let pick = |wanted: fn(&Endpoint) -> bool| -> Vec<Target> {
        let picked = endpoints.iter().filter(|(endpoint, _)| wanted(endpoint));
        let targets = picked.map(|(e, port)| Target { address: e.address, port: *port });
        targets.collect::<BTreeSet<_>>().into_iter().collect()
    };
    let ready = pick(|endpoint| endpoint.ready);
    if ready.is_empty() { pick(|endpoint| endpoint.serving && endpoint.terminating) } else { ready }
}

/// Narrows to the endpoints hinted for this node or zone, when every ready one carries such a
/// hint and at least one is for us.
fn hinted<'a>(all: Vec<(&'a Endpoint, u16)>, node: &NodeView) -> Vec<(&'a Endpoint, u16)> {
    let narrowed = |of: &dyn Fn(&Endpoint) -> &Vec<String>, ours: &str| {
        let mut ready = all.iter().filter(|(endpoint, _)| endpoint.ready).peekable();
        if ready.peek().is_none() || !ready.all(|(endpoint, _)| !of(endpoint).is_empty()) {
            return None;
        }
        let matching: Vec<(&'a Endpoint, u16)> = all
            .iter()
            .copied()
            .filter(|(endpoint, _)| of(endpoint).iter().any(|hint| hint == ours))
            .collect();
        matching.iter().any(|(endpoint, _)| endpoint.ready).then_some(matching)
    };
    let by_node = narrowed(&|endpoint| &endpoint.nodes, &node.name);
    let by_zone = || narrowed(&|endpoint| &endpoint.zones, node.zone.as_deref()?);
    by_node.or_else(by_zone).unwrap_or(all)
}

pub(crate) fn of_family(address: IpAddr, family: Family) -> bool {
    match family {
        Family::Ipv4 => address.is_ipv4(),
        Family::Ipv6 => address.is_ipv6(),
        Family::Inet => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Slice, SlicePort};

    fn service() -> Service {
        Service {
            cluster_ips: vec!["10.96.0.1".parse().unwrap()],
            ports: vec![ServicePort {
                name: "http".into(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: Some(30080),
            }],
            ..Service::default()
        }
    }

    fn endpoint(last: u8, ready: bool, terminating: bool, node: &str) -> Endpoint {
        Endpoint {
            address: IpAddr::from([10, 244, 0, last]),
            ready,
            serving: true,
            terminating,
            node: Some(node.into()),
            zones: Vec::new(),
            nodes: Vec::new(),
        }
    }

    fn slices(endpoints: Vec<Endpoint>) -> Slices {
        let port = SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 };
        [("s".to_owned(), Slice { ports: vec![port], endpoints })].into()
    }

    fn node() -> NodeView {
        NodeView {
            name: "a".into(),
            node_port_addresses: vec!["192.0.2.1".parse().unwrap()],
            ..NodeView::default()
        }
    }

    fn one(service: &Service, endpoints: Vec<Endpoint>) -> PortPlan {
        plan(service, &slices(endpoints), &node(), Family::Ipv4).ports.remove(0)
    }

    fn last_bytes(targets: &[Target]) -> Vec<u8> {
        let octets = |ip: IpAddr| match ip {
            IpAddr::V4(v4) => v4.octets()[3],
            IpAddr::V6(_) => 0,
        };
        targets.iter().map(|target| octets(target.address)).collect()
    }

    #[test]
    fn terminating_endpoints_serve_only_while_none_is_ready() {
        let ending = endpoint(1, false, true, "a");
        let port = one(&service(), vec![ending.clone(), endpoint(2, true, false, "b")]);
        assert_eq!(last_bytes(&port.cluster), [2]);
        let port = one(&service(), vec![ending, endpoint(3, false, false, "b")]);
        assert_eq!(last_bytes(&port.cluster), [1], "unready and not ending: never");
    }

    #[test]
    fn a_service_without_endpoints_is_refused_on_every_address() {
        let port = one(&service(), vec![]);
        assert_eq!(port.frontends.len(), 2);
        assert!(port.frontends.iter().all(|frontend| frontend.policy == Policy::Refuse));
    }

    #[test]
    fn local_policy_lists_the_nodes_own_endpoints() {
        let service = Service { external_local: true, ..service() };
        let ends = vec![endpoint(1, true, false, "a"), endpoint(2, true, false, "b")];
        let port = one(&service, ends);
        assert_eq!((last_bytes(&port.cluster), last_bytes(&port.local)), (vec![1, 2], vec![1]));
        let policies: Vec<Policy> = port.frontends.iter().map(|f| f.policy).collect();
        assert_eq!(policies, [Policy::Cluster, Policy::ExternalLocal]);
        assert_eq!(port.hairpins.len(), 1);
    }

    #[test]
    fn hints_narrow_only_when_all_ready_endpoints_carry_them() {
        let mut near = endpoint(1, true, false, "a");
        near.nodes = vec!["a".into()];
        let mut far = endpoint(2, true, false, "b");
        assert_eq!(last_bytes(&one(&service(), vec![near.clone(), far.clone()]).cluster), [1, 2]);
        far.nodes = vec!["b".into()];
        assert_eq!(last_bytes(&one(&service(), vec![near, far.clone()]).cluster), [1]);
        assert_eq!(last_bytes(&one(&service(), vec![far]).cluster), [2]);
    }

    #[test]
    fn addresses_that_the_node_answers_itself_are_left_alone() {
        let mut node = node();
        node.own_addresses.insert("10.96.0.1".parse().unwrap());
        let plan = plan(&service(), &slices(vec![]), &node, Family::Ipv4);
        assert_eq!(plan.cluster_ips, Vec::<IpAddr>::new());
        assert_eq!(plan.ports[0].frontends.len(), 1, "the node port stays");
    }
}
