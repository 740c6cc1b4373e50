//! Where a cluster keeps what, and what it consists of.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{Error, pki::write_private};

/// The directories of one cluster. All names come from the cluster's name.
#[derive(Clone, Debug)]
pub struct Layout {
    pub name: String,
    /// Survives reboots: configuration, keys, the store, the nodes' disks.
    pub root: PathBuf,
    /// Sockets and pids.
    pub run: PathBuf,
}

/// What `up` decided, so that every later command agrees with it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClusterConfig {
    pub name: String,
    /// Tells clusters on one machine apart: their ranges and devices are numbered by it.
    pub index: u8,
    pub api_port: u16,
    pub fast_failover: bool,
    pub nodes: Vec<NodeConfig>,
    /// What joins a node: `id.secret`.
    pub bootstrap_token: String,
    /// Whether forwarding was off before and is to be switched off again.
    pub forwarding_was_off: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeConfig {
    pub name: String,
    pub address: Ipv4Addr,
}

const STATE: &str = "/var/lib/gantry";
const RUN: &str = "/run/gantry";

impl Layout {
    pub fn of(name: &str) -> Self {
        let below = |base: &str| Path::new(base).join("clusters").join(name);
        Self { name: name.into(), root: below(STATE), run: below(RUN) }
    }

    /// The clusters that exist on this machine, by name.
    pub fn all() -> Vec<Self> {
        let Ok(entries) = fs::read_dir(Path::new(STATE).join("clusters")) else {
            return Vec::new();
        };
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names.iter().map(|name| Self::of(name)).collect()
    }

    pub fn exists(&self) -> bool {
        self.root.exists()
    }

    pub fn pki(&self) -> crate::pki::Pki {
        crate::pki::Pki::at(self.root.join("pki"))
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }

    pub fn server_data(&self) -> PathBuf {
        self.root.join("server")
    }

    pub fn log(&self, part: &str) -> PathBuf {
        self.root.join("logs").join(format!("{part}.log"))
    }

    /// The root of a node's file tree.
    pub fn node_root(&self, node: &str) -> PathBuf {
        self.root.join("nodes").join(node)
    }

    pub fn control_socket(&self) -> PathBuf {
        self.run.join("control.sock")
    }

    pub fn pid_file(&self, part: &str) -> PathBuf {
        self.run.join(format!("{part}.pid"))
    }

    /// The cgroup of the whole cluster, below each hierarchy's root.
    pub fn cgroup(&self) -> String {
        format!("gantry/{}", self.name)
    }

    pub fn load(&self) -> Result<ClusterConfig, Error> {
        let path = self.config_path();
        let text = fs::read(&path).map_err(|source| Error::io(&path, source))?;
        serde_json::from_slice(&text).map_err(|source| Error::io(&path, source.into()))
    }

    pub fn save(&self, config: &ClusterConfig) -> Result<(), Error> {
        let text = serde_json::to_vec_pretty(config)
            .map_err(|source| Error::io(&self.config_path(), source.into()))?;
        write_private(&self.config_path(), &text)
    }

    fn config_path(&self) -> PathBuf {
        self.root.join("cluster.json")
    }

    /// Makes the directories, readable by their owner alone.
    pub fn create(&self) -> Result<(), Error> {
        use std::os::unix::fs::DirBuilderExt;
        for path in [&self.root, &self.run, &self.root.join("logs"), &self.root.join("nodes")] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(|source| Error::io(path, source))?;
        }
        Ok(())
    }

    /// Removes the directories and those above that are empty then.
    pub fn remove(&self) -> Result<(), Error> {
        for path in [&self.run, &self.root] {
            match fs::remove_dir_all(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io(path, error));
                }
                _ => {}
            }
            for above in path.ancestors().skip(1).take(2) {
                // Not empty: another cluster lives there.
                if fs::remove_dir(above).is_err() {
                    break;
                }
            }
        }
        Ok(())
    }
}

impl ClusterConfig {
    /// The name of the bridge and the prefix of all devices on the host.
    pub fn bridge(&self) -> String {
        format!("gantry{}", self.index)
    }

    /// The host end of a node's cable.
    pub fn cable(&self, node: &NodeConfig) -> String {
        format!("gantry{}n{}", self.index, node.address.octets()[3])
    }

    /// The network of nodes and host, a /24.
    pub fn node_network(&self) -> (Ipv4Addr, u8) {
        (Ipv4Addr::new(10, 89, self.index, 0), 24)
    }

    /// The host's own address on the bridge, where nodes find the server.
    pub fn host_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 89, self.index, 1)
    }

    pub fn node_address(index: u8, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 89, index, 10 + number)
    }

    /// From which LoadBalancer Services take their addresses.
    pub fn load_balancer_pool(&self) -> (Ipv4Addr, Ipv4Addr) {
        let at = |last| Ipv4Addr::new(10, 89, self.index, last);
        (at(200), at(250))
    }

    pub fn pod_network(&self) -> String {
        format!("10.{}.0.0/16", 128 + u16::from(self.index))
    }

    pub fn service_network(&self) -> &'static str {
        "10.96.0.0/16"
    }

    pub fn dns_address(&self) -> IpAddr {
        Ipv4Addr::new(10, 96, 0, 10).into()
    }

    pub fn kubernetes_address(&self) -> IpAddr {
        Ipv4Addr::new(10, 96, 0, 1).into()
    }

    /// The server as the host's users reach it.
    pub fn local_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.api_port)
    }

    /// The server as nodes reach it.
    pub fn node_url(&self) -> String {
        format!("https://{}:{}", self.host_address(), self.api_port)
    }
}
