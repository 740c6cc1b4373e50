use std::{net::IpAddr, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};

use super::{Outcome, block_on, cancelled_by_signals};
use crate::assemble::{self, AgentConfig};

/// Run a node: kubelet, proxy, DNS and container runtime in one process
#[derive(clap::Args)]
#[command(after_help = "Example:\n  gantry agent --server https://192.0.2.10:6443 \
                        --token id.secret.cahash --node-ip 192.0.2.11")]
pub struct Agent {
    /// Read the settings from a JSON file instead
    #[arg(long, conflicts_with_all = ["server", "token"])]
    config: Option<PathBuf>,
    /// The control plane, https://host:port
    #[arg(long, required_unless_present = "config")]
    server: Option<String>,
    /// The join token: id.secret.hash-of-the-CA
    #[arg(long, required_unless_present = "config", env = "GANTRY_TOKEN")]
    token: Option<String>,
    /// The node's name; by default the host name
    #[arg(long)]
    node_name: Option<String>,
    /// The node's address; by default the one that packets to the server bear
    #[arg(long)]
    node_ip: Option<IpAddr>,
    /// The address of the cluster's DNS
    #[arg(long, default_value = "10.96.0.10")]
    cluster_dns: IpAddr,
    /// The range of all pods
    #[arg(long, default_value = "10.244.0.0/16")]
    pod_network: String,
    /// Renew the node's lease so that its loss is noticed within two seconds
    #[arg(long)]
    fast_failover: bool,
    /// Use containerd or CRI-O (`unix:///run/containerd/containerd.sock`) instead of the
    /// embedded runtime
    #[arg(long)]
    container_runtime_endpoint: Option<String>,
}

impl Agent {
    pub fn run(self) -> Outcome {
        let config = self.settings()?;
        block_on(|env| async move {
            let cancel = cancelled_by_signals(&env)?;
            assemble::run_agent(env, config, cancel).await?;
            Ok(ExitCode::SUCCESS)
        })
    }

    fn settings(self) -> Result<AgentConfig> {
        if let Some(path) = &self.config {
            let text =
                std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            return serde_json::from_slice(&text)
                .with_context(|| format!("{} is malformed", path.display()));
        }
        let server = self.server.unwrap_or_default();
        let node_ip = match self.node_ip {
            Some(ip) => ip,
            None => address_towards(&server)?,
        };
        let host_name = || rustix::system::uname().nodename().to_string_lossy().to_lowercase();
        Ok(AgentConfig {
            node_name: self.node_name.unwrap_or_else(host_name),
            node_ip,
            server,
            token: self.token.unwrap_or_default(),
            cluster_dns: self.cluster_dns,
            pod_network: self.pod_network,
            fast_failover: self.fast_failover,
            container_runtime_endpoint: self.container_runtime_endpoint.unwrap_or_default(),
        })
    }
}

/// The address that this machine uses towards the server. Sends nothing.
fn address_towards(server: &str) -> Result<IpAddr> {
    let uri: http::Uri = server.parse().with_context(|| format!("{server:?} is not a URL"))?;
    let host = uri.host().context("the server's URL has no host")?;
    let port = uri.port_u16().unwrap_or(443);
    let attempt = || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.connect((host, port))?;
        socket.local_addr()
    };
    let address = attempt().with_context(|| format!("no route to {host}; say --node-ip"))?;
    Ok(address.ip())
}
