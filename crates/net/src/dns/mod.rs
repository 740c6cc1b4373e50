//! The cluster's DNS server, one in each agent.
//!
//! Flow: informers ▸ [`world`] (a small projection) ▸ [`zone`] (pure answers by the Kubernetes
//! DNS specification) ▸ [`server`] (UDP and TCP); names elsewhere ▸ [`forward`] (the node's
//! resolvers, with a cache).
//!
//! It answers on the DNS Service's address, which each node has on its loopback device, so that
//! pods are answered by their own node. The proxy must be told to leave that address alone
//! (`ProxyConfig::with_own_addresses`).

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use client::{Client, Informer, InformerOptions, Resource};
use hickory_proto::rr::Name;
use linux::links::{Address, Rtnl};
use stdx::{CancellationToken, Env};
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::Semaphore,
};

use crate::Error;

pub mod forward;
pub mod metrics;
pub mod server;
pub mod world;
pub mod zone;

pub use forward::Upstreams;
pub use metrics::Metrics;

const SERVICES: Resource = Resource::namespaced("", "v1", "services", "Service");
const ENDPOINT_SLICES: Resource =
    Resource::namespaced("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice");

/// How one node answers.
#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// The cluster's domain, `cluster.local`.
    pub domain: String,
    /// The DNS Service's addresses.
    pub addresses: Vec<IpAddr>,
    pub port: u16,
    /// Put the addresses on the loopback device first. Off where they are there already.
    pub assign_addresses: bool,
    pub upstreams: Upstreams,
    /// How long clients may keep answers about the cluster.
    pub ttl_seconds: u32,
    /// Counts on; keep a clone to show them.
    pub metrics: Arc<Metrics>,
}

impl DnsConfig {
    pub fn new(addresses: Vec<IpAddr>) -> Self {
        Self {
            domain: "cluster.local".to_owned(),
            addresses,
            port: 53,
            assign_addresses: true,
            upstreams: Upstreams::File("/etc/resolv.conf".into()),
            ttl_seconds: 5,
            metrics: Arc::default(),
        }
    }
}

/// Questions that may wait for resolvers at a time.
const WAITING_LIMIT: usize = 1000;

/// Answers until cancelled, with informers of its own.
pub async fn run(
    env: Env,
    client: Client,
    config: DnsConfig,
    cancel: CancellationToken,
) -> Result<(), Error> {
    let informer = |resource: &Resource| {
        let options = InformerOptions::default();
        Informer::start(&env, client.clone(), resource, options, cancel.child_token())
    };
    let (services, slices) = (informer(&SERVICES), informer(&ENDPOINT_SLICES));
    run_with(env, &services, &slices, config, cancel).await
}

/// Answers until cancelled, on informers that the caller keeps running. Names of the cluster are
/// answered from the first complete lists on; until then the server does not listen, so that no
/// client is told that a name does not exist because it is not known yet.
pub async fn run_with(
    env: Env,
    services: &Informer,
    slices: &Informer,
    config: DnsConfig,
    cancel: CancellationToken,
) -> Result<(), Error> {
    if !services.synced().await || !slices.synced().await {
        return if cancel.is_cancelled() { Ok(()) } else { Err(Error::Cancelled) };
    }
    let world = world::World::follow(services, slices);
    serve(env, world, config, cancel).await
}

/// Answers from a world that the caller made.
pub async fn serve(
    env: Env,
    world: world::World,
    config: DnsConfig,
    cancel: CancellationToken,
) -> Result<(), Error> {
    if config.assign_addresses {
        assign(&config.addresses)?;
    }
    let mut name = Name::from_ascii(&config.domain).unwrap_or_else(|_| Name::root());
    name.set_fqdn(true);
    let forwarder = forward::Forwarder::new(
        &env,
        config.upstreams.clone(),
        config.addresses.clone(),
        config.metrics.clone(),
    );
    let server = server::Server {
        env: env.clone(),
        world,
        domain: Arc::new(zone::Domain { name, ttl_seconds: config.ttl_seconds }),
        forwarder,
        metrics: config.metrics.clone(),
        waiting: Arc::new(Semaphore::new(WAITING_LIMIT)),
    };
    for ip in &config.addresses {
        let address = SocketAddr::new(*ip, config.port);
        let listen = |source| Error::Listen { address, source };
        let socket = UdpSocket::bind(address).await.map_err(listen)?;
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let (datagrams, streams) = (server.clone(), server.clone());
        let (until, ending) = (cancel.clone(), cancel.clone());
        env.spawn("dns datagrams", async move {
            until.run_until_cancelled(datagrams.serve_datagrams(socket)).await;
        });
        env.spawn("dns streams", async move {
            ending.run_until_cancelled(streams.serve_streams(listener)).await;
        });
    }
    cancel.cancelled().await;
    Ok(())
}

/// Puts addresses on the loopback device, valid on this machine alone.
pub fn assign(addresses: &[IpAddr]) -> Result<(), Error> {
    let mut rtnl = Rtnl::open()?;
    for address in on_loopback(&mut rtnl, addresses)? {
        rtnl.add_host_address(address)?;
    }
    Ok(())
}

/// Takes the addresses away again; none there is fine.
pub fn remove(addresses: &[IpAddr]) -> Result<(), Error> {
    let mut rtnl = Rtnl::open()?;
    for address in on_loopback(&mut rtnl, addresses)? {
        rtnl.delete_address(address)?;
    }
    Ok(())
}

fn on_loopback(rtnl: &mut Rtnl, addresses: &[IpAddr]) -> Result<Vec<Address>, Error> {
    let loopback = rtnl.links()?.into_iter().find(|link| link.loopback);
    let index = loopback.map_or(1, |link| link.index);
    let whole = |ip: &IpAddr| if ip.is_ipv4() { 32 } else { 128 };
    Ok(addresses.iter().map(|ip| Address { index, ip: *ip, prefix_bits: whole(ip) }).collect())
}
