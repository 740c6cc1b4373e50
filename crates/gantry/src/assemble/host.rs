//! What the machine of a local cluster does for its network: routes to the pods, LoadBalancer
//! addresses, and masquerading towards the outside.

use std::{future::pending, time::Duration};

use client::{Client, Informer, InformerOptions, Kubeconfig};
use cluster::{ClusterConfig, Layout};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use linux::{links::Rtnl, routes::Route};
use proxy::ProxyConfig;
use stdx::{CancellationToken, Env, chain};

use super::NODES;

/// Runs beside the supervisor until cancelled.
pub async fn host_network(
    env: Env,
    layout: Layout,
    config: ClusterConfig,
    cancel: CancellationToken,
) {
    let client = loop {
        match connect(&layout) {
            Ok(client) => break client,
            Err(error) => tracing::warn!(error = %chain(&error), "cannot read the kubeconfig"),
        }
        env.sleep(Duration::from_secs(1)).await;
    };
    let _routes = keep_routes(&env, &client, &config, &cancel);
    let settings = proxy_config(&config);
    while !cancel.is_cancelled() {
        let proxy = proxy::run(env.clone(), client.clone(), settings.clone(), cancel.clone());
        if let Err(error) = proxy.await {
            tracing::error!(error = %chain(&error), "the host's load balancer failed");
        }
        cancel.run_until_cancelled(env.sleep(Duration::from_secs(1))).await;
    }
    pending::<()>().await;
}

fn connect(layout: &Layout) -> Result<Client, client::Error> {
    let connection = Kubeconfig::load(&layout.kubeconfig())?.connection("", &layout.root)?;
    Client::connect(&connection, "gantry-host")
}

fn proxy_config(config: &ClusterConfig) -> ProxyConfig {
    let (network, bits) = config.node_network();
    let nodes: Option<IpNet> = format!("{network}/{bits}").parse().ok();
    let pods: Option<IpNet> = config.pod_network().parse().ok();
    let mut settings = ProxyConfig::for_host(nodes.into_iter().chain(pods).collect());
    settings.table = cluster::host::nft_table(config);
    settings
}

/// Takes away the host's nft table of a cluster; none there is fine.
pub fn remove_host_network(config: &ClusterConfig) -> Result<(), proxy::Error> {
    proxy::remove(&cluster::host::nft_table(config))
}

/// Sets a route to each node's pods by the node's address. Routes end with the bridge.
fn keep_routes(
    env: &Env,
    client: &Client,
    config: &ClusterConfig,
    cancel: &CancellationToken,
) -> Informer {
    let options = InformerOptions::default();
    let nodes = Informer::start(env, client.clone(), &NODES, options, cancel.clone());
    let bridge = config.bridge();
    nodes.on_change(move |change| {
        let Some(Ok(node)) = change.new.as_ref().map(|cached| cached.typed::<Node>()) else { return };
        if let Err(error) = set_route(&bridge, &node) {
            tracing::error!(node = %change.key(), error = %chain(&error), "no route to the node's pods");
        }
    });
    nodes
}

fn set_route(bridge: &str, node: &Node) -> Result<(), linux::netlink::Error> {
    let range = node.spec.as_ref().and_then(|spec| spec.pod_cidr.as_ref());
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref());
    let address = addresses
        .into_iter()
        .flatten()
        .find(|address| address.type_ == "InternalIP")
        .and_then(|address| address.address.parse().ok());
    let range = range.and_then(|range| range.parse::<IpNet>().ok());
    let (Some(range), Some(gateway)) = (range, address) else { return Ok(()) };
    let mut rtnl = Rtnl::open()?;
    let Some(link) = rtnl.link(bridge)? else { return Ok(()) };
    rtnl.set_route(Route::via(range.network(), range.prefix_len(), gateway, link.index))
}
