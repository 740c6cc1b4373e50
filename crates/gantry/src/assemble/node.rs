//! Kubelet, proxy, DNS, pod network and runtime on one machine.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use client::{
    Client,
    config::{Connection, Token},
};
use ipnet::IpNet;
use kubelet::{Kubelet, KubeletConfig, bootstrap};
use net::pod::{PodNetwork, PodNetworkConfig, PortMapping, Sandbox, Transport};
use runtime::Runtime;
use serde::Deserialize;
use stdx::{CancellationToken, Env, chain};

use tokio::net::TcpListener;

use super::{agent_socket, streams};

/// The user under which the node's DNS server reads Services.
pub const DNS_USER: &str = "system:gantry:dns";
const PROXY_USER: &str = "system:kube-proxy";
const PKI_DIR: &str = "/var/lib/kubelet/pki";

/// What an agent is told, by file or by flags.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentConfig {
    /// `https://host:port`
    pub server: String,
    /// `id.secret.HASH`, the hash being SHA-256 of the CA's public key.
    pub token: String,
    pub node_name: String,
    pub node_ip: IpAddr,
    pub cluster_dns: IpAddr,
    pub pod_network: String,
    #[serde(default)]
    pub fast_failover: bool,
    /// `unix:///…` of containerd or CRI-O; empty for the embedded runtime.
    #[serde(default)]
    pub container_runtime_endpoint: String,
}

/// Runs a node until cancelled. Containers go on running after that.
pub async fn run_agent(env: Env, config: AgentConfig, cancel: CancellationToken) -> Result<()> {
    let dir = Path::new(PKI_DIR);
    let connection = trusted_connection(&config, dir).await?;
    let node =
        bootstrap::connect(&env, &joining(&connection, &config)?, &config.node_name, dir, &cancel)
            .await
            .context("cannot join the cluster")?;
    let component = |user, name| {
        bootstrap::connect_component(&env, &connection, &node, user, name, dir, &cancel)
    };
    let settings = kubelet_config(&config);
    let (proxy_client, dns_client, tls) = futures::try_join!(
        component(PROXY_USER, "kube-proxy"),
        component(DNS_USER, "gantry-dns"),
        bootstrap::serving(&env, &node, &settings, &connection.ca, dir, &cancel),
    )?;
    let pods = pod_network(&env, &config).await?;
    let (endpoint, streaming, runtime) = open_runtime(&env, &config, &pods).await?;
    start_routes(&env, &proxy_client, &config, &pods, &cancel);
    start_proxy(&env, &proxy_client, &config, &cancel)?;
    start_dns(&env, &dns_client, &config, &cancel);
    let listener = TcpListener::bind((config.node_ip, settings.port))
        .await
        .with_context(|| format!("cannot listen on {}:{}", config.node_ip, settings.port))?;
    let kubelet = Arc::new(Kubelet::new(&env, node, settings, endpoint, streaming, cancel.clone()));
    start_server(&env, kubelet.server(), listener, tls, &cancel);
    if let Some(runtime) = runtime {
        start_socket(&env, &kubelet, runtime, &cancel);
    }
    tell_network_ready(&env, &kubelet, &pods, &cancel);
    kubelet.run().await;
    Ok(())
}

/// Has the kubelet look at the node again as soon as the pod network has its range: what it
/// reported before that was NotReady. Ends then.
fn tell_network_ready(
    env: &Env,
    kubelet: &Arc<Kubelet>,
    pods: &PodNetwork,
    cancel: &CancellationToken,
) {
    const STEP: Duration = Duration::from_millis(20);
    let (clock, kubelet, pods, cancel) =
        (env.clone(), kubelet.clone(), pods.clone(), cancel.clone());
    env.spawn("network ready", async move {
        while pods.ready().is_err() && !cancel.is_cancelled() {
            clock.sleep(STEP).await;
        }
        kubelet.node_changed();
    });
}

fn start_server(
    env: &Env,
    server: kubelet::server::Server,
    listener: TcpListener,
    tls: tokio::sync::watch::Receiver<Arc<rustls::ServerConfig>>,
    cancel: &CancellationToken,
) {
    let cancel = cancel.clone();
    env.spawn("kubelet server", async move { server.serve_tls(listener, tls, cancel).await });
}

fn start_socket(env: &Env, kubelet: &Arc<Kubelet>, runtime: Runtime, cancel: &CancellationToken) {
    let changed = kubelet.clone();
    let serving =
        agent_socket::serve(env.clone(), runtime, move || changed.node_changed(), cancel.clone());
    env.spawn("agent socket", async move {
        if let Err(error) = serving.await {
            tracing::error!(%error, "the agent's socket cannot be served");
        }
    });
}

/// The server with its CA, which the hash in the token vouches for the first time.
async fn trusted_connection(config: &AgentConfig, dir: &Path) -> Result<Connection> {
    let path = dir.join("ca.crt");
    let ca = match std::fs::read(&path) {
        Ok(ca) => ca,
        Err(_) => {
            let hash = config.token.rsplit('.').next().unwrap_or_default();
            let ca = client::tls::discover_ca(&config.server, hash)
                .await
                .context("cannot verify the server")?;
            std::fs::create_dir_all(dir)?;
            cluster::pki::write_private(&path, &ca)?;
            ca
        }
    };
    Ok(Connection { server: config.server.clone(), ca, ..Connection::default() })
}

fn joining(connection: &Connection, config: &AgentConfig) -> Result<Connection> {
    let (token, _) = config.token.rsplit_once('.').context("a join token is id.secret.hash")?;
    Ok(Connection { token: Some(Token::Fixed(token.to_owned())), ..connection.clone() })
}

async fn pod_network(env: &Env, config: &AgentConfig) -> Result<PodNetwork> {
    let settings =
        PodNetworkConfig { node_ips: vec![config.node_ip], ..PodNetworkConfig::default() };
    PodNetwork::open(env, settings).await.context("cannot open the pod network")
}

type OpenRuntime = (cri::Endpoint, Arc<dyn kubelet::Streaming>, Option<Runtime>);

async fn open_runtime(env: &Env, config: &AgentConfig, pods: &PodNetwork) -> Result<OpenRuntime> {
    if !config.container_runtime_endpoint.is_empty() {
        let endpoint = cri::Endpoint::connect(&config.container_runtime_endpoint)
            .await
            .with_context(|| format!("cannot use {}", config.container_runtime_endpoint))?;
        return Ok((endpoint, Arc::new(kubelet::streaming::NoStreaming), None));
    }
    let settings = runtime::Config {
        root: "/var/lib/gantry/runtime".into(),
        state: "/run/gantry/runtime".into(),
        cgroup_parent: "/gantry-pods".into(),
        shim: ["gantry".into(), "shim".into()].to_vec(),
        seccomp_profiles: PathBuf::from("/var/lib/kubelet/seccomp"),
    };
    let runtime = Runtime::open(env.clone(), settings, Arc::new(NetworkOfPods(pods.clone())))
        .await
        .context("cannot open the container runtime")?;
    let streaming = streams::Embedded { runtime: runtime.clone(), env: env.clone() };
    Ok((cri::Endpoint::in_process(Arc::new(runtime.clone())), Arc::new(streaming), Some(runtime)))
}

/// The pod network as the runtime asks for it.
struct NetworkOfPods(PodNetwork);

#[tonic::async_trait]
impl runtime::SandboxNetwork for NetworkOfPods {
    async fn setup(&self, pod: &runtime::PodNetwork) -> Result<Vec<IpAddr>, runtime::BoxError> {
        Ok(self.0.setup(&sandbox(pod)).await?)
    }

    async fn teardown(&self, pod: &runtime::PodNetwork) -> Result<(), runtime::BoxError> {
        Ok(self.0.teardown(&pod.sandbox_id).await?)
    }

    fn not_ready(&self) -> Option<String> {
        self.0.ready().err()
    }
}

fn sandbox(pod: &runtime::PodNetwork) -> Sandbox {
    let mapping = |port: &cri::v1::PortMapping| {
        let protocol = match port.protocol() {
            cri::v1::Protocol::Tcp => Transport::Tcp,
            cri::v1::Protocol::Udp => Transport::Udp,
            cri::v1::Protocol::Sctp => Transport::Sctp,
        };
        let number = |number: i32| u16::try_from(number).ok().filter(|&n| n > 0);
        Some(PortMapping {
            protocol,
            host_ip: port.host_ip.parse().ok(),
            host_port: number(port.host_port)?,
            container_port: number(port.container_port)?,
        })
    };
    Sandbox {
        id: pod.sandbox_id.clone(),
        netns: pod.netns.clone(),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        port_mappings: pod.port_mappings.iter().filter_map(mapping).collect(),
    }
}

/// The lease of a node that is to be missed quickly.
const FAST_LEASE: Duration = Duration::from_secs(2);
const FAST_RENEWAL: Duration = Duration::from_millis(500);

fn kubelet_config(config: &AgentConfig) -> KubeletConfig {
    let mut settings = KubeletConfig::new(&config.node_name);
    settings.addresses = vec![config.node_ip];
    settings.cluster_dns = vec![config.cluster_dns];
    settings.version = super::KUBERNETES_VERSION.into();
    settings.labels = BTreeMap::new();
    if config.fast_failover {
        settings.lease_duration = FAST_LEASE;
        settings.lease_renew_interval = FAST_RENEWAL;
    }
    settings
}

fn start_routes(
    env: &Env,
    client: &Client,
    config: &AgentConfig,
    pods: &PodNetwork,
    cancel: &CancellationToken,
) {
    let ranges = config.pod_network.parse::<IpNet>().into_iter().collect();
    let settings = net::routes::NodeNetConfig::for_node(&config.node_name, ranges, pods.clone());
    let (for_task, client, cancel) = (env.clone(), client.clone(), cancel.clone());
    env.spawn("routes", async move {
        if let Err(error) = net::routes::run(for_task, client, settings, cancel).await {
            tracing::error!(error = %chain(&error), "the node's routes are not kept");
        }
    });
}

fn start_proxy(
    env: &Env,
    client: &Client,
    config: &AgentConfig,
    cancel: &CancellationToken,
) -> Result<()> {
    let pods: IpNet = config.pod_network.parse().context("the pod network is no network")?;
    let mut settings =
        proxy::ProxyConfig::for_node(&config.node_name, vec![config.node_ip], vec![pods])
            .with_own_addresses([config.cluster_dns]);
    settings.healthz = Some(SocketAddr::from(([0, 0, 0, 0], 10256)));
    let (for_task, client, cancel) = (env.clone(), client.clone(), cancel.clone());
    env.spawn("proxy", async move {
        if let Err(error) = proxy::run(for_task, client, settings, cancel).await {
            tracing::error!(error = %chain(&error), "the proxy ended");
        }
    });
    Ok(())
}

fn start_dns(env: &Env, client: &Client, config: &AgentConfig, cancel: &CancellationToken) {
    let settings = net::dns::DnsConfig::new(vec![config.cluster_dns]);
    let (for_task, client, cancel) = (env.clone(), client.clone(), cancel.clone());
    env.spawn("dns", async move {
        if let Err(error) = net::dns::run(for_task, client, settings, cancel).await {
            tracing::error!(error = %chain(&error), "the DNS server ended");
        }
    });
}
