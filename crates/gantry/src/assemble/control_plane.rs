//! API server, scheduler and controllers over one store.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use apiserver::{Server, ServerConfig, nodes::DirectDialler};
use client::{Client, leader::Election};
use cluster::pki::{Pki, Subject};
use registry::Registry;
use stdx::{CancellationToken, Env};
use store::Store;
use tokio::net::TcpListener;

use super::in_process;

/// Settings of a control plane.
#[derive(Clone, Debug)]
pub struct ControlPlaneConfig {
    pub data_dir: PathBuf,
    pub pki_dir: PathBuf,
    pub listen: Vec<SocketAddr>,
    /// Where nodes and pods find this server.
    pub advertise_address: IpAddr,
    pub pod_network: String,
    pub service_network: String,
    pub load_balancer_pool: Vec<String>,
    /// `id.secret` of a token by which nodes join; none makes no token.
    pub bootstrap_token: Option<String>,
    pub fast_failover: bool,
    /// A real etcd cluster instead of the embedded store.
    pub etcd_servers: Vec<String>,
    pub scheduler: bool,
    pub controllers: bool,
}

/// With `--fast-failover` a silent node counts as lost after this long.
const FAST_GRACE: Duration = Duration::from_secs(2);

/// Runs until cancelled.
pub async fn run(env: Env, config: ControlPlaneConfig, cancel: CancellationToken) -> Result<()> {
    let pki = Pki::at(&config.pki_dir);
    issue_certificates(&env, &pki, &config)?;
    let store = open_store(&env, &config).await?;
    let options = registry::Options {
        service_cidrs: vec![config.service_network.clone()],
        ..registry::Options::default()
    };
    let registry = Registry::open(env.clone(), store, options);
    registry.start_compaction();
    let server = Server::new(env.clone(), registry.clone(), server_config(&pki, &config)?)?;
    // Nobody is let in before what every cluster has is there: roles, namespaces, the token.
    bootstrap(&env, &registry, &server, &config).await?;
    let mut serving = Vec::new();
    for address in &config.listen {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}"))?;
        let (server, cancel) = (server.clone(), cancel.clone());
        serving.push(env.spawn("serve", async move { server.serve_tls(listener, cancel).await }));
    }
    tracing::info!(listen = ?config.listen, "the API server serves");
    if config.scheduler {
        start_scheduler(&env, &server, &config, &cancel);
    }
    if config.controllers {
        start_controllers(&env, &server, &pki, &config, &cancel)?;
    }
    cancel.cancelled().await;
    for task in serving {
        task.await;
    }
    Ok(())
}

async fn open_store(env: &Env, config: &ControlPlaneConfig) -> Result<Arc<dyn Store>> {
    if config.etcd_servers.is_empty() {
        let directory = config.data_dir.join("store");
        let embedded = store::embedded::Embedded::open(env, &directory, Default::default()).await;
        return Ok(embedded.context("cannot open the store")?);
    }
    let options = store::etcd::Options::new(config.etcd_servers.clone());
    let etcd = store::etcd::Etcd::connect(env, options).await;
    Ok(etcd.context("cannot reach etcd")?)
}

fn issue_certificates(env: &Env, pki: &Pki, config: &ControlPlaneConfig) -> Result<()> {
    pki.ensure_authority(env)?;
    let names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
    ]
    .map(str::to_owned);
    let mut addresses = vec![IpAddr::from([127, 0, 0, 1]), config.advertise_address];
    addresses.push(kubernetes_address(&config.service_network)?);
    addresses.extend(config.listen.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified()));
    addresses.sort();
    addresses.dedup();
    let server = Subject {
        common_name: "kube-apiserver",
        dns_names: &names,
        addresses: &addresses,
        serving: true,
        ..Subject::default()
    };
    // Anew at every start: addresses may have changed, and it never grows old.
    pki.issue(env, "apiserver", &server)?;
    let to_nodes = Subject { common_name: "kube-apiserver-kubelet-client", ..Subject::default() };
    pki.issue(env, "apiserver-kubelet-client", &to_nodes)?;
    Ok(())
}

/// The first address of the Services' range: the Service `kubernetes`.
fn kubernetes_address(service_network: &str) -> Result<IpAddr> {
    let network: ipnet::IpNet = service_network
        .parse()
        .with_context(|| format!("{service_network:?} is not a network such as 10.96.0.0/16"))?;
    network.hosts().next().context("the Services' network is empty")
}

fn server_config(pki: &Pki, config: &ControlPlaneConfig) -> Result<ServerConfig> {
    let ca = pki.read("ca.crt")?;
    let mut settings = ServerConfig::new(ca.clone(), pki.read("sa.key")?);
    // The CA goes along, so that a joining node can hold it against the hash in its token.
    let chain = format!("{}{ca}", pki.read("apiserver.crt")?);
    settings.serving = Some((chain, pki.read("apiserver.key")?));
    let port = config.listen.first().map_or(6443, SocketAddr::port);
    settings.external_address = format!("{}:{port}", config.advertise_address);
    settings.dialler = Arc::new(
        DirectDialler::new(
            ca.as_bytes(),
            pki.read("apiserver-kubelet-client.crt")?.as_bytes(),
            pki.read("apiserver-kubelet-client.key")?.as_bytes(),
        )
        .context("the certificate for nodes is unusable")?,
    );
    settings.advertise = Some((config.advertise_address, port));
    settings.one_of_many = !config.etcd_servers.is_empty();
    if config.fast_failover {
        settings.default_toleration_seconds = 0;
    }
    Ok(settings)
}

/// Writes what every cluster has, as the server itself.
async fn bootstrap(
    env: &Env,
    registry: &Arc<Registry>,
    server: &Arc<Server>,
    config: &ControlPlaneConfig,
) -> Result<()> {
    server.bootstrap().await.context("cannot write the roles that every cluster has")?;
    server.ready().await;
    super::discovery::ensure_cluster_objects(env, registry, config).await
}

fn start_scheduler(
    env: &Env,
    server: &Arc<Server>,
    config: &ControlPlaneConfig,
    cancel: &CancellationToken,
) {
    let client = in_process::client(server, "system:kube-scheduler");
    let task = lead(env, &client, "kube-scheduler", config, cancel, {
        let (env, client) = (env.clone(), client.clone());
        move |cancel| {
            scheduler::run(env.clone(), client.clone(), scheduler::Config::default(), cancel)
        }
    });
    env.spawn("scheduler", task);
}

fn start_controllers(
    env: &Env,
    server: &Arc<Server>,
    pki: &Pki,
    config: &ControlPlaneConfig,
    cancel: &CancellationToken,
) -> Result<()> {
    let ca = pki.read("ca.crt")?;
    let settings = controllers::Config {
        cluster_cidrs: vec![config.pod_network.clone()],
        cluster_signing: Some(controllers::config::SigningKeyPair {
            certificate: ca.clone(),
            key: pki.read("ca.key")?,
        }),
        root_ca: Some(ca),
        load_balancer_pool: config.load_balancer_pool.clone(),
        node_monitor_grace_period: if config.fast_failover {
            FAST_GRACE
        } else {
            controllers::Config::default().node_monitor_grace_period
        },
        ..controllers::Config::default()
    };
    let client = in_process::client(server, controllers::READER);
    let task = lead(env, &client, "kube-controller-manager", config, cancel, {
        let (env, server) = (env.clone(), server.clone());
        move |cancel| {
            let (env, server, settings) = (env.clone(), server.clone(), settings.clone());
            async move {
                let clients = |user: &str| in_process::client(&server, user);
                controllers::run(&env, clients, settings, cancel).await;
            }
        }
    });
    env.spawn("controllers", task);
    Ok(())
}

/// Runs a component: at once where this server is the only one, else while it leads.
fn lead<F, Fut>(
    env: &Env,
    client: &Client,
    name: &'static str,
    config: &ControlPlaneConfig,
    cancel: &CancellationToken,
    work: F,
) -> impl Future<Output = ()> + Send + use<F, Fut>
where
    F: Fn(CancellationToken) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send,
{
    let alone = config.etcd_servers.is_empty();
    let (env, client, cancel) = (env.clone(), client.clone(), cancel.clone());
    async move {
        if alone {
            return work(cancel).await;
        }
        let identity =
            format!("{}_{}", rustix::system::uname().nodename().to_string_lossy(), env.uuid());
        let election = Election::new(name, &identity);
        while !cancel.is_cancelled() {
            client::leader::run_as_leader(&env, &client, &election, &cancel, &work).await;
        }
    }
}
