//! What the controllers need to know of their cluster.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use client::Key;
use stdx::{HashMap, Timestamp};

use crate::metrics::Metrics;

/// The settings of one controller manager. [`Config::default`] is Kubernetes'.
#[derive(Clone)]
pub struct Config {
    /// Names of controllers to run, `*` for all; a leading `-` switches one off.
    pub controllers: Vec<String>,
    /// Ranges to cut node ranges from, at most one per family; empty: nodes bring their own.
    pub cluster_cidrs: Vec<String>,
    pub node_cidr_mask_size_ipv4: u8,
    pub node_cidr_mask_size_ipv6: u8,
    /// Certificate and key (PEM) that sign certificate requests; `None`: requests are left alone.
    pub cluster_signing: Option<SigningKeyPair>,
    pub cluster_signing_duration: Duration,
    /// The certificates (PEM) that pods trust; published as `kube-root-ca.crt`.
    pub root_ca: Option<String>,
    /// How long a node may be silent before it counts as lost.
    pub node_monitor_grace_period: Duration,
    /// How long a node may take to speak for the first time.
    pub node_startup_grace_period: Duration,
    /// How many nodes per second, per zone, may lose their pods.
    pub node_eviction_rate: f64,
    pub secondary_node_eviction_rate: f64,
    pub large_cluster_size_threshold: usize,
    pub unhealthy_zone_threshold: f64,
    /// The agents' streams; with them a cut stream makes its node lost after `stream_grace_period`.
    pub node_streams: Option<NodeStreams>,
    pub stream_grace_period: Duration,
    pub terminated_pod_gc_threshold: usize,
    /// Addresses for Services of type LoadBalancer (`10.0.0.10-10.0.0.50` or a CIDR).
    pub load_balancer_pool: Vec<String>,
    pub max_endpoints_per_slice: usize,
    /// A Service's endpoints wait this long for more changes of its pods.
    pub endpoint_updates_batch_period: Duration,
    pub metrics: Metrics,
}

/// PEM of a CA certificate and its key.
#[derive(Clone)]
pub struct SigningKeyPair {
    pub certificate: String,
    pub key: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            controllers: vec!["*".into()],
            cluster_cidrs: Vec::new(),
            node_cidr_mask_size_ipv4: 24,
            node_cidr_mask_size_ipv6: 64,
            cluster_signing: None,
            cluster_signing_duration: Duration::from_secs(365 * 24 * 3600),
            root_ca: None,
            node_monitor_grace_period: Duration::from_secs(50),
            node_startup_grace_period: Duration::from_secs(60),
            node_eviction_rate: 0.1,
            secondary_node_eviction_rate: 0.01,
            large_cluster_size_threshold: 50,
            unhealthy_zone_threshold: 0.55,
            node_streams: None,
            stream_grace_period: Duration::from_secs(2),
            terminated_pod_gc_threshold: 12_500,
            load_balancer_pool: Vec::new(),
            max_endpoints_per_slice: 100,
            endpoint_updates_batch_period: Duration::ZERO,
            metrics: Metrics::default(),
        }
    }
}

impl Config {
    pub fn is_enabled(&self, name: &str) -> bool {
        let listed = |wanted: &str| self.controllers.iter().any(|c| c == wanted);
        !listed(&format!("-{name}")) && (listed("*") || listed(name))
    }
}

type Listener = Box<dyn Fn(&Key) + Send + Sync>;

/// Which agents hold a stream to this server, kept by whoever accepts the streams. A node whose
/// agent has never had one is judged by its Lease alone. Cheap to clone.
#[derive(Clone, Default)]
pub struct NodeStreams(Arc<Streams>);

#[derive(Default)]
struct Streams {
    /// When the stream was cut, by the node's name; `None` while it is open.
    cut: Mutex<HashMap<String, Option<Timestamp>>>,
    listeners: Mutex<Vec<Listener>>,
}

impl NodeStreams {
    pub fn opened(&self, node: &str) {
        self.set(node, None);
    }

    pub fn cut(&self, node: &str, now: Timestamp) {
        self.set(node, Some(now));
    }

    /// When the node's stream was cut. `None` when it is open or there has never been one.
    pub fn cut_since(&self, node: &str) -> Option<Timestamp> {
        let cut = self.0.cut.lock().unwrap_or_else(PoisonError::into_inner);
        cut.get(node).copied().flatten()
    }

    pub(crate) fn on_change(&self, listener: impl Fn(&Key) + Send + Sync + 'static) {
        let mut listeners = self.0.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.push(Box::new(listener));
    }

    fn set(&self, node: &str, state: Option<Timestamp>) {
        self.0.cut.lock().unwrap_or_else(PoisonError::into_inner).insert(node.into(), state);
        let key = Key::new("", node);
        for listener in self.0.listeners.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            listener(&key);
        }
    }
}
