//! The pod network of a node: addresses, devices, routes, and cluster DNS.
//!
//! Entry points, all for the agent of one node, in its network namespace:
//! - [`pod::PodNetwork::open`], then `setup` and `teardown` per sandbox: the built-in network, or
//!   the CNI plugins of `/etc/cni/net.d` when there are any;
//! - [`routes::run`] watches Nodes: gives the pod network its range (`Node.spec.podCIDRs`) and
//!   keeps the routes to other nodes' pods;
//! - [`dns::run`] answers the cluster's names on the DNS service address.
//!
//! How a pod hangs (nothing here is a bridge, so every packet passes the node's forwarding path
//! and is translated there):
//!
//! ```text
//! pod namespace                 node namespace
//! eth0 10.244.1.7/32            gnt0123456789ab (no address)
//! default via 169.254.1.1  ◀──▶ 10.244.1.7 dev gnt0123456789ab
//! neighbour 169.254.1.1         neighbour 10.244.1.7            both permanent: no ARP
//! ```
//!
//! Other nodes' pods are reached `via` the node where it is a neighbour, else through one VXLAN
//! device whose neighbours and forwarding entries are written, not learned. The table
//! `gantry-net` holds masquerade of pods to the outside and host ports; the proxy's table is its
//! own. Network policies will hang verdict maps by pod address into a forward chain of that
//! table.
//!
//! Invariants: an address is written down before it is used and free only after its device is
//! gone; set-up of the same sandbox twice gives the same addresses; with an external CNI none of
//! this touches the node.

pub mod builtin;
pub mod cni;
pub mod dns;

pub mod ipam;
pub mod pod;
pub mod routes;
pub mod state;
pub mod table;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot set up the network")]
    Netlink(#[from] linux::netlink::Error),
    #[error("{what}")]
    Io { what: String, source: std::io::Error },
    #[error("the node has no pod range yet")]
    NoRange,
    #[error("no free address in {0}")]
    Exhausted(ipnet::IpNet),
    #[error("{plugin} ({command}): {message}")]
    Cni { plugin: String, command: &'static str, message: String },
    #[error("the network state in {path} cannot be read")]
    State { path: String, source: serde_json::Error },
    #[error("cannot listen on {address}")]
    Listen { address: std::net::SocketAddr, source: std::io::Error },
    #[error("the work was cancelled")]
    Cancelled,
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
