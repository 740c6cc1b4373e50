//! What the node agent is told at start.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

/// The settings of one node. [`KubeletConfig::new`] has upstream's defaults.
#[derive(Clone, Debug)]
pub struct KubeletConfig {
    pub node_name: String,
    /// What the node reports as its `Hostname` address.
    pub hostname: String,
    /// `InternalIP` addresses, the primary one first.
    pub addresses: Vec<IpAddr>,
    /// Labels at registration, besides `kubernetes.io/{hostname,os,arch}`.
    pub labels: BTreeMap<String, String>,
    /// Taints at registration: key, value, effect.
    pub taints: Vec<(String, String, String)>,
    /// Where pods' volumes and this agent's certificates lie.
    pub root_dir: PathBuf,
    /// Where containers' logs lie.
    pub log_dir: PathBuf,
    /// What the machine, or this node's share of it, can hold.
    pub capacity: Capacity,
    /// What of the capacity is kept from pods.
    pub reserved: Capacity,
    /// `clusterDNS` and `clusterDomain` of pods' resolv.conf.
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// The node's own resolver configuration, for `dnsPolicy: Default`.
    pub resolv_conf: PathBuf,
    /// The cgroup under which pods' cgroups are made, `/kubepods`.
    pub cgroup_root: String,
    /// Whether containers without a seccomp profile get the runtime's default one.
    pub seccomp_default: bool,
    /// How long the node's Lease is valid, and how often it is renewed.
    pub lease_duration: Duration,
    pub lease_renew_interval: Duration,
    /// How often the node's status is sent when it has not changed.
    pub status_interval: Duration,
    /// The port that the agent's own server listens on.
    pub port: u16,
    /// Whether to make the Node object.
    pub register: bool,
    pub provider_id: String,
    /// A directory of pod manifests that run without the API server.
    pub static_pods: Option<PathBuf>,
    pub container_log_max_bytes: u64,
    pub container_log_max_files: u32,
    /// `nodeInfo.kubeletVersion`.
    pub version: String,
    /// How many images the status lists at most, the largest first.
    pub images_in_status: usize,
}

/// Amounts of the four resources that every node counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    pub ephemeral_storage_bytes: i64,
    pub pods: i64,
}

impl KubeletConfig {
    pub fn new(node_name: &str) -> Self {
        Self {
            node_name: node_name.into(),
            hostname: node_name.into(),
            addresses: Vec::new(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            root_dir: "/var/lib/kubelet".into(),
            log_dir: "/var/log/pods".into(),
            capacity: machine_capacity(),
            reserved: Capacity::default(),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            cgroup_root: "/kubepods".into(),
            seccomp_default: true,
            lease_duration: Duration::from_secs(40),
            lease_renew_interval: Duration::from_secs(10),
            status_interval: Duration::from_secs(300),
            port: 10250,
            register: true,
            provider_id: String::new(),
            static_pods: None,
            container_log_max_bytes: 10 << 20,
            container_log_max_files: 5,
            version: "v1.37.2".into(),
            images_in_status: 50,
        }
    }

    pub fn allocatable(&self) -> Capacity {
        let (all, kept) = (self.capacity, self.reserved);
        Capacity {
            cpu_milli: all.cpu_milli - kept.cpu_milli,
            memory_bytes: all.memory_bytes - kept.memory_bytes,
            // A tenth stays free for images and logs before eviction would start.
            ephemeral_storage_bytes: all.ephemeral_storage_bytes / 10 * 9
                - kept.ephemeral_storage_bytes,
            pods: all.pods - kept.pods,
        }
    }

    /// Where everything of one pod lies.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root_dir.join("pods").join(uid)
    }

    /// Where the logs of one pod lie: `NAMESPACE_NAME_UID`.
    pub fn pod_log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.log_dir.join(format!("{namespace}_{name}_{uid}"))
    }

    pub fn primary_address(&self) -> String {
        self.addresses.first().map(ToString::to_string).unwrap_or_default()
    }
}

/// The whole machine: its processors, memory and the disk under `/var/lib`.
pub fn machine_capacity() -> Capacity {
    let cpus = std::thread::available_parallelism().map_or(1, |count| count.get() as i64);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<i64>().ok());
    let disk = rustix::fs::statvfs("/var/lib").or_else(|_| rustix::fs::statvfs("/"));
    let disk_bytes = disk.map_or(0, |stat| (stat.f_blocks * stat.f_frsize) as i64);
    Capacity {
        cpu_milli: cpus * 1000,
        memory_bytes: kib.unwrap_or(0) * 1024,
        ephemeral_storage_bytes: disk_bytes,
        pods: 110,
    }
}
