use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
};

use super::{Outcome, block_on, cancelled_by_signals};
use crate::assemble::control_plane::{self, ControlPlaneConfig};

/// Run a control plane: API server, scheduler and controllers in one process
#[derive(clap::Args)]
#[command(after_help = "Example:\n  gantry server --data-dir /var/lib/gantry/server \
                        --listen 0.0.0.0:6443 --advertise-address 192.0.2.10")]
pub struct Server {
    #[command(flatten)]
    settings: Settings,
}

#[derive(clap::Args)]
pub struct Settings {
    /// Where the embedded store lies
    #[arg(long, default_value = "/var/lib/gantry/server")]
    data_dir: PathBuf,
    /// Where the CA and the certificates lie; made when missing
    #[arg(long, default_value = "/var/lib/gantry/server/pki")]
    pki_dir: PathBuf,
    /// Where to listen (repeat for more)
    #[arg(long, default_value = "0.0.0.0:6443")]
    listen: Vec<SocketAddr>,
    /// Where nodes and pods find this server
    #[arg(long)]
    advertise_address: IpAddr,
    /// The range of all pods
    #[arg(long, default_value = "10.244.0.0/16")]
    pod_network: String,
    /// The range of Services
    #[arg(long, default_value = "10.96.0.0/16")]
    service_network: String,
    /// Addresses for LoadBalancer Services: FIRST-LAST or a CIDR (repeat for more)
    #[arg(long)]
    load_balancer_pool: Vec<String>,
    /// A token `id.secret` by which nodes may join
    #[arg(long)]
    bootstrap_token: Option<String>,
    /// Notice a dead node within two seconds and replace its pods at once
    #[arg(long)]
    fast_failover: bool,
    /// Keep state in this etcd cluster instead of the embedded store (repeat for more)
    #[arg(long)]
    etcd_servers: Vec<String>,
}

impl Server {
    pub fn run(self) -> Outcome {
        self.settings.run(true, true)
    }
}

impl Settings {
    pub fn run(self, scheduler: bool, controllers: bool) -> Outcome {
        let config = ControlPlaneConfig {
            data_dir: self.data_dir,
            pki_dir: self.pki_dir,
            listen: self.listen,
            advertise_address: self.advertise_address,
            pod_network: self.pod_network,
            service_network: self.service_network,
            load_balancer_pool: self.load_balancer_pool,
            bootstrap_token: self.bootstrap_token,
            fast_failover: self.fast_failover,
            etcd_servers: self.etcd_servers,
            scheduler,
            controllers,
        };
        block_on(|env| async move {
            let cancel = cancelled_by_signals(&env)?;
            control_plane::run(env, config, cancel).await?;
            Ok(ExitCode::SUCCESS)
        })
    }
}
