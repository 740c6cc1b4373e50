//! Routes to other nodes' pods, from the Nodes of the API.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use client::{Cached, Client, Informer, InformerOptions, Resource};
use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use linux::{
    links::{Mac, Rtnl, Vxlan},
    routes::{PROTOCOL, Route},
};
use stdx::{CancellationToken, Env, backoff::Backoff, chain};
use tokio::sync::Notify;

use crate::{Error, pod::PodNetwork};

pub const NODES: Resource = Resource::cluster("", "v1", "nodes", "Node");

/// How this node reaches the pods of others.
#[derive(Clone)]
pub struct NodeNetConfig {
    /// Empty for the machine that hosts an `up` cluster, which is no node but routes to all.
    pub node_name: String,
    pub encapsulation: Encapsulation,
    /// None where there never is one; then no device is touched.
    pub tunnel: Option<Tunnel>,
    /// The ranges of all pods, where configured; otherwise those of the nodes seen.
    pub cluster_ranges: Vec<IpNet>,
    /// Is given the node's own range when the API has it.
    pub pods: Option<PodNetwork>,
}

impl NodeNetConfig {
    pub fn for_node(name: &str, cluster_ranges: Vec<IpNet>, pods: PodNetwork) -> Self {
        Self {
            node_name: name.to_owned(),
            encapsulation: Encapsulation::default(),
            tunnel: Some(Tunnel::default()),
            cluster_ranges,
            pods: Some(pods),
        }
    }

    /// The machine that hosts an `up` cluster. Only routes within `cluster_ranges` are its
    /// business, so that several clusters share a host.
    pub fn for_host(cluster_ranges: Vec<IpNet>) -> Self {
        Self {
            node_name: String::new(),
            encapsulation: Encapsulation::Never,
            tunnel: None,
            cluster_ranges,
            pods: None,
        }
    }

    fn scope(&self) -> Scope {
        let within = if self.node_name.is_empty() { self.cluster_ranges.clone() } else { vec![] };
        Scope { tunnel: self.tunnel.clone(), within }
    }
}

/// What of the kernel's state is ours to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    pub tunnel: Option<Tunnel>,
    /// Routes to these ranges only; empty for all that bear our protocol number.
    pub within: Vec<IpNet>,
}

/// When packets to another node's pods travel inside VXLAN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encapsulation {
    /// When the other node is not a neighbour on a network of this one.
    #[default]
    Auto,
    Always,
    Never,
}

/// The VXLAN device, the same on every node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    pub device: String,
    pub id: u32,
    pub port: u16,
    pub mtu_bytes: u32,
}

impl Default for Tunnel {
    fn default() -> Self {
        Self { device: "gnt-vxlan".into(), id: 103, port: 4789, mtu_bytes: 1450 }
    }
}

/// The bytes that VXLAN over IPv4 adds to a packet: Ethernet, IP, UDP and its own header.
pub const VXLAN_OVERHEAD_BYTES: u32 = 50;

/// Asks that a node is always (`"true"`) or never (`"false"`) reached through the tunnel.
pub const ENCAPSULATE_ANNOTATION: &str = "gantry.dev/encapsulate";

/// What routes need to know of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    pub addresses: Vec<IpAddr>,
    pub ranges: Vec<IpNet>,
    pub encapsulate: Option<bool>,
}

/// The routes that this node should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePlan {
    pub own_ranges: Vec<IpNet>,
    /// This node's end of the tunnel, when any route needs one.
    pub tunnel_end: Option<(IpAddr, IpAddr)>,
    pub routes: BTreeMap<IpNet, Way>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the node's address, on the same network.
    Neighbour(IpAddr),
    /// By the tunnel, to the node's address.
    Tunnel(IpAddr),
}

const RETRY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15));

/// Keeps the routes current until cancelled.
pub async fn run(
    env: Env,
    client: Client,
    config: NodeNetConfig,
    cancel: CancellationToken,
) -> Result<(), Error> {
    let options = InformerOptions::default();
    let nodes = Informer::start(&env, client, &NODES, options, cancel.child_token());
    run_with(env, &nodes, config, cancel).await
}

/// As [`run`], on an informer of Nodes that the caller keeps running.
pub async fn run_with(
    env: Env,
    nodes: &Informer,
    config: NodeNetConfig,
    cancel: CancellationToken,
) -> Result<(), Error> {
    let changed = Arc::new(Notify::new());
    let tell = changed.clone();
    nodes.on_change(move |_| tell.notify_one());
    if !nodes.synced().await {
        return if cancel.is_cancelled() { Ok(()) } else { Err(Error::Cancelled) };
    }
    if let Some(pods) = config.pods.clone() {
        let until = cancel.clone();
        env.spawn("pod network table", async move {
            if let Some(Err(error)) = until.run_until_cancelled(pods.keep_table()).await {
                tracing::warn!(error = %chain(&error), "a table lost to others comes back late");
            }
        });
    }
    let keeping = keep(env, nodes, config, &changed);
    cancel.run_until_cancelled(keeping).await;
    Ok(())
}

async fn keep(env: Env, nodes: &Informer, config: NodeNetConfig, changed: &Notify) {
    let config = Arc::new(config);
    let mut applied = None;
    let mut failures = 0;
    loop {
        let facts: BTreeMap<String, NodeFacts> =
            nodes.lister().all().iter().filter_map(|node| facts(node)).collect();
        if applied.as_ref() != Some(&facts) {
            match bring_about(&env, &config, facts.clone()).await {
                Ok(()) => {
                    failures = 0;
                    applied = Some(facts);
                }
                Err(error) => {
                    failures += 1;
                    tracing::error!(error = %chain(&error), "the routes to other nodes' pods");
                    env.sleep(RETRY.delay(failures)).await;
                    continue;
                }
            }
        }
        changed.notified().await;
    }
}

async fn bring_about(
    env: &Env,
    config: &Arc<NodeNetConfig>,
    facts: BTreeMap<String, NodeFacts>,
) -> Result<(), Error> {
    let cluster = if config.cluster_ranges.is_empty() {
        facts.values().flat_map(|node| node.ranges.iter().copied()).collect()
    } else {
        config.cluster_ranges.clone()
    };
    let own = facts.get(&config.node_name).map(|node| node.ranges.clone()).unwrap_or_default();
    if let Some(pods) = config.pods.as_ref().filter(|_| !own.is_empty()) {
        pods.set_ranges(own, cluster).await?;
    }
    let config = config.clone();
    let work = move || {
        let mut rtnl = Rtnl::open()?;
        let neighbours = neighbours(&mut rtnl, &facts)?;
        let plan = plan(&config.node_name, &facts, config.encapsulation, &neighbours);
        apply(&mut rtnl, &config.scope(), &plan)
    };
    env.blocking(work).await.unwrap_or(Err(Error::Cancelled))
}

/// A node's facts, by its name.
fn facts(cached: &Cached) -> Option<(String, NodeFacts)> {
    let node: core::Node = cached
        .typed()
        .inspect_err(|error| tracing::warn!(error = %chain(error), "a node was not understood"))
        .ok()?;
    let spec = node.spec.unwrap_or_default();
    let ranges = match spec.pod_cidrs {
        Some(ranges) if !ranges.is_empty() => ranges,
        _ => spec.pod_cidr.into_iter().collect(),
    };
    let addresses = node.status.and_then(|status| status.addresses).unwrap_or_default();
    let internal = addresses.iter().filter(|address| address.type_ == "InternalIP");
    let annotations = node.metadata.annotations.unwrap_or_default();
    Some((
        cached.key.name.to_string(),
        NodeFacts {
            addresses: internal.filter_map(|address| address.address.parse().ok()).collect(),
            ranges: ranges.iter().filter_map(|range| range.parse().ok()).collect(),
            encapsulate: annotations.get(ENCAPSULATE_ANNOTATION).and_then(|text| text.parse().ok()),
        },
    ))
}

/// The nodes' addresses that lie on a network of this machine.
fn neighbours(
    rtnl: &mut Rtnl,
    facts: &BTreeMap<String, NodeFacts>,
) -> Result<BTreeSet<IpAddr>, Error> {
    let mut found = BTreeSet::new();
    for address in facts.values().flat_map(|node| &node.addresses) {
        if rtnl.path_to(*address)?.is_some_and(|path| path.gateway.is_none()) {
            found.insert(*address);
        }
    }
    Ok(found)
}

/// Pure: where each node's pods are found.
pub fn plan(
    own: &str,
    nodes: &BTreeMap<String, NodeFacts>,
    encapsulation: Encapsulation,
    neighbours: &BTreeSet<IpAddr>,
) -> NodePlan {
    let host = NodeFacts { addresses: vec![], ranges: vec![], encapsulate: None };
    let this = match nodes.get(own) {
        Some(this) => this,
        None if own.is_empty() => &host,
        None => return NodePlan::default(),
    };
    let mut plan = NodePlan { own_ranges: this.ranges.clone(), ..NodePlan::default() };
    for (_, node) in nodes.iter().filter(|(name, _)| *name != own) {
        for range in &node.ranges {
            let same_family = |ip: &&IpAddr| ip.is_ipv4() == range.addr().is_ipv4();
            let address = node.addresses.iter().find(same_family).or(node.addresses.first());
            let Some(address) = address else { continue };
            let tunnelled = match encapsulation {
                Encapsulation::Always => true,
                Encapsulation::Never => false,
                Encapsulation::Auto => {
                    node.encapsulate.or(this.encapsulate).unwrap_or(!neighbours.contains(address))
                }
            };
            let way = if tunnelled { Way::Tunnel(*address) } else { Way::Neighbour(*address) };
            plan.routes.insert(*range, way);
        }
    }
    if plan.routes.values().any(|way| matches!(way, Way::Tunnel(_))) {
        let inner = this.ranges.first().map(IpNet::network);
        plan.tunnel_end = inner.zip(this.addresses.first().copied());
    }
    plan
}

/// Brings the kernel's routes to the plan; what is right already stays untouched.
pub fn apply(rtnl: &mut Rtnl, scope: &Scope, plan: &NodePlan) -> Result<(), Error> {
    let device = match (&scope.tunnel, plan.tunnel_end) {
        (Some(tunnel), Some((inner, outer))) => Some(ensure_tunnel(rtnl, tunnel, inner, outer)?),
        (Some(tunnel), None) => {
            rtnl.delete_link(&tunnel.device)?;
            None
        }
        (None, _) => None,
    };
    if let Some(device) = device {
        apply_tunnel_entries(rtnl, device, plan)?;
    }
    let mut wanted: Vec<Route> = Vec::new();
    for range in &plan.own_ranges {
        // Addresses without a pod answer at once, instead of bouncing between nodes.
        wanted.push(Route::refuse(range.network(), range.prefix_len()));
    }
    for (range, way) in &plan.routes {
        wanted.extend(route(rtnl, *range, *way, device)?);
    }
    let held: Vec<Route> = rtnl.routes()?.into_iter().filter(|route| scope.holds(route)).collect();
    for route in wanted.iter().filter(|route| !held.iter().any(|h| same(h, route))) {
        rtnl.set_route(*route)?;
    }
    let covered = |old: &Route| {
        wanted
            .iter()
            .any(|new| (new.destination, new.prefix_bits) == (old.destination, old.prefix_bits))
    };
    for route in held.iter().filter(|route| !covered(route)) {
        rtnl.delete_route(*route)?;
    }
    Ok(())
}

/// Removes the routes and the tunnel from this network namespace; none there is fine.
pub fn remove(scope: &Scope) -> Result<(), Error> {
    apply(&mut Rtnl::open()?, scope, &NodePlan::default())
}

impl Scope {
    /// A node's own.
    pub fn node() -> Self {
        Self { tunnel: Some(Tunnel::default()), within: Vec::new() }
    }

    /// Routes of this module, not those of pods or of another cluster.
    fn holds(&self, route: &Route) -> bool {
        let inside = |range: &IpNet| range.contains(&route.destination);
        route.protocol == PROTOCOL
            && (route.gateway.is_some() || route.unreachable)
            && (self.within.is_empty() || self.within.iter().any(inside))
    }
}

/// The kernel fills in what was left open.
fn same(held: &Route, wanted: &Route) -> bool {
    let open = |route: &Route| Route { source: None, index: 0, onlink: false, ..*route };
    let device = wanted.index == 0 || wanted.unreachable || held.index == wanted.index;
    open(held) == open(wanted) && device
}

fn route(
    rtnl: &mut Rtnl,
    range: IpNet,
    way: Way,
    device: Option<u32>,
) -> Result<Option<Route>, Error> {
    let (network, bits) = (range.network(), range.prefix_len());
    match (way, device) {
        (Way::Tunnel(_), Some(device)) => {
            // The other end's inner address is the first of its range.
            Ok(Some(Route::via(network, bits, network, device).with_onlink()))
        }
        (Way::Tunnel(_), None) => Ok(None),
        (Way::Neighbour(address), _) => {
            let path = rtnl.path_to(address)?.filter(|path| path.gateway.is_none() && !path.local);
            if path.is_none() {
                tracing::warn!(%address, %range, "no neighbour of this node; its pods are not reached");
            }
            Ok(path.map(|path| Route::via(network, bits, address, path.index)))
        }
    }
}

/// The tunnel device with this node's hardware and inner address; made anew when the node's
/// address changed.
fn ensure_tunnel(
    rtnl: &mut Rtnl,
    tunnel: &Tunnel,
    inner: IpAddr,
    outer: IpAddr,
) -> Result<u32, Error> {
    let mac = tunnel_mac(outer);
    if let Some(link) = rtnl.link(&tunnel.device)? {
        if link.kind == "vxlan" && link.mac == Some(mac) && link.mtu_bytes == tunnel.mtu_bytes {
            return add_inner_address(rtnl, link.index, inner);
        }
        rtnl.delete_link(&tunnel.device)?;
    }
    rtnl.add_vxlan(&Vxlan {
        name: &tunnel.device,
        id: tunnel.id,
        local: outer,
        port: tunnel.port,
        mac,
        mtu_bytes: tunnel.mtu_bytes,
    })?;
    let index = rtnl.link(&tunnel.device)?.map_or(0, |link| link.index);
    add_inner_address(rtnl, index, inner)
}

fn add_inner_address(rtnl: &mut Rtnl, index: u32, inner: IpAddr) -> Result<u32, Error> {
    let prefix_bits = if inner.is_ipv4() { 32 } else { 128 };
    rtnl.add_address(linux::links::Address { index, ip: inner, prefix_bits })?;
    Ok(index)
}

/// Every end's hardware address follows from its node's address, so nobody has to tell it.
fn tunnel_mac(outer: IpAddr) -> Mac {
    let last: [u8; 4] = match outer {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => {
            let o = v6.octets();
            [o[12], o[13], o[14], o[15]]
        }
    };
    [0x02, 0x67, last[0], last[1], last[2], last[3]]
}

fn apply_tunnel_entries(rtnl: &mut Rtnl, device: u32, plan: &NodePlan) -> Result<(), Error> {
    let ends: BTreeMap<IpAddr, IpAddr> = plan
        .routes
        .iter()
        .filter_map(|(range, way)| match way {
            Way::Tunnel(outer) => Some((range.network(), *outer)),
            Way::Neighbour(_) => None,
        })
        .collect();
    let forwardings: BTreeSet<(Mac, IpAddr)> =
        ends.values().map(|outer| (tunnel_mac(*outer), *outer)).collect();
    let held = rtnl.forwardings(device)?;
    for (mac, outer) in forwardings.iter().filter(|entry| !held.contains(entry)) {
        rtnl.set_forwarding(device, *mac, *outer)?;
    }
    for (mac, outer) in held.iter().filter(|entry| !forwardings.contains(*entry)) {
        rtnl.delete_forwarding(device, *mac, *outer)?;
    }
    let held = rtnl.neighbours(device)?;
    let wanted: Vec<(IpAddr, Mac)> =
        ends.iter().map(|(inner, outer)| (*inner, tunnel_mac(*outer))).collect();
    for (inner, mac) in wanted.iter().filter(|entry| !held.contains(entry)) {
        rtnl.set_neighbour(device, *inner, *mac)?;
    }
    for (inner, _) in held.iter().filter(|(inner, _)| !ends.contains_key(inner)) {
        rtnl.delete_neighbour(device, *inner)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(last: u8) -> NodeFacts {
        NodeFacts {
            addresses: vec![IpAddr::from([192, 0, 2, last])],
            ranges: vec![format!("10.244.{last}.0/24").parse().unwrap()],
            encapsulate: None,
        }
    }

    fn nodes() -> BTreeMap<String, NodeFacts> {
        [("a", 1), ("b", 2), ("c", 3)].map(|(name, last)| (name.to_owned(), node(last))).into()
    }

    #[test]
    fn neighbours_are_routed_and_others_tunnelled() {
        let near = BTreeSet::from([IpAddr::from([192, 0, 2, 2])]);
        let plan = plan("a", &nodes(), Encapsulation::Auto, &near);
        let ways: Vec<Way> = plan.routes.values().copied().collect();
        let (b, c) = (IpAddr::from([192, 0, 2, 2]), IpAddr::from([192, 0, 2, 3]));
        assert_eq!(ways, [Way::Neighbour(b), Way::Tunnel(c)]);
        let ends = (IpAddr::from([10, 244, 1, 0]), IpAddr::from([192, 0, 2, 1]));
        assert_eq!(plan.tunnel_end, Some(ends));
    }

    #[test]
    fn an_annotation_or_flag_decides_over_what_was_found() {
        let near: BTreeSet<IpAddr> = nodes().values().flat_map(|n| n.addresses.clone()).collect();
        let mut all = nodes();
        all.get_mut("b").unwrap().encapsulate = Some(true);
        let tunnelled = |plan: NodePlan| {
            plan.routes.values().filter(|way| matches!(way, Way::Tunnel(_))).count()
        };
        assert_eq!(tunnelled(plan("a", &all, Encapsulation::Auto, &near)), 1);
        assert_eq!(tunnelled(plan("a", &all, Encapsulation::Always, &near)), 2);
        assert_eq!(tunnelled(plan("a", &all, Encapsulation::Never, &BTreeSet::new())), 0);
    }

    #[test]
    fn a_host_routes_to_every_node_and_needs_no_tunnel() {
        let plan = plan("", &nodes(), Encapsulation::Never, &BTreeSet::new());
        assert_eq!((plan.routes.len(), plan.tunnel_end), (3, None));
        assert!(plan.own_ranges.is_empty());
    }

    #[test]
    fn a_node_that_the_api_does_not_know_has_no_routes() {
        let plan = plan("x", &nodes(), Encapsulation::Auto, &BTreeSet::new());
        assert_eq!(plan, NodePlan::default());
    }
}
