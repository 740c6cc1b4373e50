//! The kube-proxy role: Services as nftables maps over netlink.
//!
//! Flow: informers of Services and EndpointSlices ▸ [`model`] (a small projection, decoded for
//! the key at hand) ▸ [`plan`] (pure: which address leads where, on this node) ▸ [`planner`]
//! (pure: set elements and chains, the difference to what the kernel has) ▸ [`apply`] (one
//! nftables transaction). [`rules`] draws the path of a packet.
//!
//! Entry points: [`run`] for a node's agent; [`run_with`] when the process has the informers
//! already (DNS wants the same ones); [`ProxyConfig::for_host`] with either for the machine that
//! hosts an `up` cluster; [`remove`] takes the tables away. A run that ends leaves the tables in
//! place, so that a restarted agent interrupts nothing.
//!
//! Invariants: a change of one endpoint touches elements of its own Service alone; the first
//! packet of a connection costs a fixed number of hash lookups; only tables of the configured
//! name are ever touched; every change is one transaction, so no packet meets half of it.

use std::{collections::BTreeSet, net::IpAddr};

use client::{Client, Informer, InformerOptions, Resource};
use ipnet::IpNet;
use linux::nft::{Family, Nft, Table};
use stdx::{CancellationToken, Env};

pub mod apply;
pub mod health;
pub mod model;
pub mod plan;
pub mod planner;
pub mod rules;
pub mod run;

pub use plan::{NodeView, Serve};
pub use rules::RulesConfig;

pub const SERVICES: Resource = Resource::namespaced("", "v1", "services", "Service");
pub const ENDPOINT_SLICES: Resource =
    Resource::namespaced("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice");

/// The name of our tables unless configured otherwise.
pub const TABLE: &str = "gantry";

/// How one node, or the host of an `up` cluster, serves Services.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// The name of the tables, one per family.
    pub table: String,
    pub families: Vec<Family>,
    pub node: NodeView,
    pub rules: RulesConfig,
    /// Serve `healthCheckNodePort`s. Off on a host outside the cluster.
    pub health_checks: bool,
    /// Where `/healthz` and `/livez` of the proxy are served (kube-proxy: `0.0.0.0:10256`).
    pub healthz: Option<std::net::SocketAddr>,
}

impl ProxyConfig {
    /// A node: everything is served.
    pub fn for_node(name: &str, node_ips: Vec<IpAddr>, pod_ranges: Vec<IpNet>) -> Self {
        Self {
            table: TABLE.to_owned(),
            families: vec![Family::Ipv4],
            node: NodeView {
                name: name.to_owned(),
                node_port_addresses: node_ips,
                ..NodeView::default()
            },
            rules: RulesConfig { pod_ranges, drop_invalid: true, ..RulesConfig::default() },
            health_checks: true,
            healthz: None,
        }
    }

    /// The machine that hosts an `up` cluster: load balancer addresses alone, and packets of
    /// `cluster_ranges` (nodes and pods) to the outside are masqueraded. Node ports are served
    /// on the addresses in `node.node_port_addresses` when `node.serve.node_ports` is set.
    pub fn for_host(cluster_ranges: Vec<IpNet>) -> Self {
        let serve = Serve {
            cluster_ips: false,
            external_ips: false,
            load_balancer_ips: true,
            node_ports: false,
        };
        Self {
            table: TABLE.to_owned(),
            families: vec![Family::Ipv4],
            node: NodeView { serve, ..NodeView::default() },
            rules: RulesConfig {
                pod_ranges: cluster_ranges.clone(),
                masquerade_sources: cluster_ranges,
                drop_invalid: false,
            },
            health_checks: false,
            healthz: None,
        }
    }

    /// Addresses that the node answers on by itself (cluster DNS), never to be translated.
    pub fn with_own_addresses(mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        self.node.own_addresses = addresses.into_iter().collect::<BTreeSet<_>>();
        self
    }

    pub(crate) fn table_of(&self, family: Family) -> Table {
        Table::new(family, &self.table)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot program the packet filter")]
    Netlink(#[from] linux::netlink::Error),
    #[error("cannot listen on {address}")]
    Listen { address: std::net::SocketAddr, source: std::io::Error },
    #[error("the informers ended before their first list")]
    Cancelled,
}

/// Runs the proxy until cancelled, with informers of its own.
pub async fn run(
    env: Env,
    client: Client,
    config: ProxyConfig,
    cancel: CancellationToken,
) -> Result<(), Error> {
    let options = InformerOptions {
        label_selector: "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name"
            .to_owned(),
        ..InformerOptions::default()
    };
    let informer = |resource: &Resource| {
        Informer::start(&env, client.clone(), resource, options.clone(), cancel.child_token())
    };
    let (services, slices) = (informer(&SERVICES), informer(&ENDPOINT_SLICES));
    run_with(env, &services, &slices, config, cancel).await
}

pub use run::run_with;

/// Removes our tables from this network namespace; none there is fine.
pub fn remove(table: &str) -> Result<(), Error> {
    let mut nft = Nft::open()?;
    for family in [Family::Ipv4, Family::Ipv6, Family::Inet] {
        let ours = Table::new(family, table);
        if nft.tables()?.contains(&ours) {
            nft.delete(&ours)?;
        }
    }
    Ok(())
}
