//! The network of pods: set up and taken down per sandbox, built in or by CNI plugins.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ipnet::IpNet;
use linux::nft::Changes;
use serde::{Deserialize, Serialize};
use stdx::{Env, chain};

use crate::{
    Error, builtin,
    cni::{self, Cni},
    ipam::Pool,
    state::{Record, Store},
    table::{Contents, HostPort, NetTable, TABLE},
};

/// The pod network of one node. Cheap to clone.
#[derive(Clone)]
pub struct PodNetwork(Arc<Inner>);

struct Inner {
    env: Env,
    config: PodNetworkConfig,
    store: Store,
    /// Present for the built-in network.
    table: Option<NetTable>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    records: BTreeMap<String, Record>,
    pools: Vec<Pool>,
}

#[derive(Clone, Debug)]
pub struct PodNetworkConfig {
    /// Where CNI plugins are configured; one valid file there turns the built-in network off.
    pub cni_config_dir: PathBuf,
    pub cni_bin_dirs: Vec<PathBuf>,
    /// Where this node remembers its sandboxes' networks, best on a file system that a reboot
    /// empties.
    pub state_dir: PathBuf,
    /// The node's own addresses; packets of the node to its pods bear one of them.
    pub node_ips: Vec<IpAddr>,
    /// The MTU of pods' devices.
    pub mtu_bytes: u32,
    pub table: String,
}

impl Default for PodNetworkConfig {
    fn default() -> Self {
        Self {
            cni_config_dir: "/etc/cni/net.d".into(),
            cni_bin_dirs: vec!["/opt/cni/bin".into()],
            state_dir: "/run/gantry/net".into(),
            node_ips: Vec::new(),
            mtu_bytes: 1500,
            table: TABLE.to_owned(),
        }
    }
}

/// A sandbox as the runtime describes it.
#[derive(Clone, Debug, Default)]
pub struct Sandbox {
    pub id: String,
    /// Where the sandbox's network namespace is pinned.
    pub netns: PathBuf,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub port_mappings: Vec<PortMapping>,
}

/// A port of the node that leads to a container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortMapping {
    pub protocol: Transport,
    /// Only this address of the node; none or unspecified means all.
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub container_port: u16,
}

/// Transport protocols by their IANA numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    Tcp = 6,
    Udp = 17,
    Sctp = 132,
}

impl PortMapping {
    /// From the numbers of the CRI (protocol 0 TCP, 1 UDP, 2 SCTP); `None` for a mapping that
    /// maps nothing.
    pub fn from_cri(
        protocol: i32,
        host_ip: &str,
        host_port: i32,
        container_port: i32,
    ) -> Option<Self> {
        let protocol = match protocol {
            0 => Transport::Tcp,
            1 => Transport::Udp,
            2 => Transport::Sctp,
            _ => return None,
        };
        let port = |number: i32| u16::try_from(number).ok().filter(|number| *number > 0);
        Some(Self {
            protocol,
            host_ip: host_ip.parse().ok(),
            host_port: port(host_port)?,
            container_port: port(container_port)?,
        })
    }
}

impl PodNetwork {
    /// Takes up where an earlier run of the agent left off. The built-in network is not ready
    /// before [`PodNetwork::set_ranges`] (which `routes::run` calls).
    pub async fn open(env: &Env, config: PodNetworkConfig) -> Result<Self, Error> {
        let opening = env.clone();
        env.blocking(move || Self::open_now(opening, config)).await.unwrap_or(Err(Error::Cancelled))
    }

    fn open_now(env: Env, config: PodNetworkConfig) -> Result<Self, Error> {
        let store = Store::open(env.files().clone(), &config.state_dir)?;
        let records: BTreeMap<String, Record> =
            store.load()?.into_iter().map(|record| (record.sandbox.clone(), record)).collect();
        let external = Cni::load(&config.cni_config_dir, &config.cni_bin_dirs)?.is_some();
        let table = if external {
            None
        } else {
            builtin::prepare_node()?;
            let host_ports = records.values().flat_map(host_ports).collect();
            Some(NetTable::open(&config.table, Contents { host_ports, ..Contents::default() })?)
        };
        let state = Mutex::new(State { records, pools: Vec::new() });
        Ok(Self(Arc::new(Inner { env, config, store, table, state })))
    }

    /// Gives the built-in network its ranges, one per address family, and the ranges of all pods
    /// of the cluster, which see each other's addresses.
    pub async fn set_ranges(&self, own: Vec<IpNet>, cluster: Vec<IpNet>) -> Result<(), Error> {
        let inner = self.0.clone();
        self.blocking(move || inner.set_ranges(own, cluster)).await
    }

    /// Whether pods can be set up, else why not, for the node's `NetworkReady` condition.
    pub fn ready(&self) -> Result<(), String> {
        match Cni::load(&self.0.config.cni_config_dir, &self.0.config.cni_bin_dirs) {
            Ok(Some(_)) => Ok(()),
            Err(error) => Err(chain(&error).to_string()),
            Ok(None) if self.0.state().pools.is_empty() => {
                Err("the node has not been given a pod range yet".to_owned())
            }
            Ok(None) => Ok(()),
        }
    }

    /// Connects a sandbox and gives its addresses. The same sandbox again gives the same ones.
    pub async fn setup(&self, sandbox: &Sandbox) -> Result<Vec<IpAddr>, Error> {
        if let Some(cni) = Cni::load(&self.0.config.cni_config_dir, &self.0.config.cni_bin_dirs)? {
            return self.setup_by_plugins(&cni, sandbox).await;
        }
        let (inner, sandbox) = (self.0.clone(), sandbox.clone());
        self.blocking(move || inner.setup(&sandbox)).await
    }

    /// Disconnects a sandbox and frees its addresses; one that is unknown is fine. The network
    /// namespace may be gone already.
    pub async fn teardown(&self, sandbox: &str) -> Result<(), Error> {
        let record = self.0.state().records.get(sandbox).cloned();
        let Some(record) = record else { return Ok(()) };
        if let Some(plugins) = &record.cni {
            let cni = Cni::from_record(plugins, &self.0.config.cni_bin_dirs);
            cni.delete(&self.0.env, sandbox, plugins).await?;
        }
        let inner = self.0.clone();
        self.blocking(move || inner.teardown(&record)).await
    }

    /// Takes down what belongs to none of the `live` sandboxes; gives the ids of those.
    pub async fn collect_garbage(&self, live: &BTreeSet<String>) -> Result<Vec<String>, Error> {
        let known: Vec<String> = self.0.state().records.keys().cloned().collect();
        let gone: Vec<String> = known.into_iter().filter(|id| !live.contains(id)).collect();
        for id in &gone {
            self.teardown(id).await?;
        }
        Ok(gone)
    }

    /// Writes our table again whenever another program removed it; ends with an error only.
    pub async fn keep_table(&self) -> Result<(), Error> {
        const SETTLE: Duration = Duration::from_millis(200);
        if self.0.table.is_none() {
            return Ok(());
        }
        let mut changes = Changes::open()?;
        loop {
            changes.next().await?;
            let inner = self.0.clone();
            let restore = move || match &inner.table {
                Some(table) => Ok(table.restore()?),
                None => Ok(false),
            };
            if self.blocking(restore).await? {
                tracing::warn!("the table was removed by another program and is back");
            }
            self.0.env.sleep(SETTLE).await;
        }
    }

    /// The addresses of a sandbox that is set up.
    pub fn addresses(&self, sandbox: &str) -> Option<Vec<IpAddr>> {
        self.0.state().records.get(sandbox).map(|record| record.addresses.clone())
    }

    async fn setup_by_plugins(&self, cni: &Cni, sandbox: &Sandbox) -> Result<Vec<IpAddr>, Error> {
        let known = self.0.state().records.get(&sandbox.id).cloned();
        if let Some(record) = known.filter(|record| !record.addresses.is_empty()) {
            return Ok(record.addresses);
        }
        let mut plugins = cni.record(sandbox);
        let mut record = Record {
            sandbox: sandbox.id.clone(),
            addresses: Vec::new(),
            device: None,
            port_mappings: sandbox.port_mappings.clone(),
            cni: Some(plugins.clone()),
        };
        self.remember(&record).await?;
        builtin::bring_up_loopback(&sandbox.netns)?;
        plugins.result = match cni.add(&self.0.env, &sandbox.id, &plugins).await {
            Ok(result) => result,
            Err(error) => {
                // What the plugins before the failing one made is theirs to take away.
                if let Err(again) = self.teardown(&sandbox.id).await {
                    tracing::warn!(error = %chain(&again), "CNI DEL after a failed ADD");
                }
                return Err(error);
            }
        };
        record.addresses = cni::addresses(&plugins.result);
        record.cni = Some(plugins);
        self.remember(&record).await?;
        Ok(record.addresses)
    }

    async fn remember(&self, record: &Record) -> Result<(), Error> {
        let (inner, record) = (self.0.clone(), record.clone());
        self.blocking(move || {
            inner.store.save(&record)?;
            inner.state().records.insert(record.sandbox.clone(), record);
            Ok(())
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.0.env.blocking(work).await.unwrap_or(Err(Error::Cancelled))
    }
}

impl Inner {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_ranges(&self, own: Vec<IpNet>, cluster: Vec<IpNet>) -> Result<(), Error> {
        let Some(table) = &self.table else { return Ok(()) };
        {
            let mut state = self.state();
            if state.pools.iter().map(Pool::range).ne(own.iter().copied()) {
                let mut pools: Vec<Pool> = own.iter().map(|range| Pool::new(*range)).collect();
                for address in state.records.values().flat_map(|record| &record.addresses) {
                    pools.iter_mut().for_each(|pool| pool.claim(*address));
                }
                state.pools = pools;
            }
        }
        table.change(|contents| (contents.pods, contents.cluster) = (own, cluster))?;
        Ok(())
    }

    fn setup(&self, sandbox: &Sandbox) -> Result<Vec<IpAddr>, Error> {
        let (record, new) = self.reserve(sandbox)?;
        let connected = builtin::connect(&record, &sandbox.netns, &self.config)
            .and_then(|()| self.publish(&record, true));
        if let Err(error) = connected {
            if new && let Err(again) = self.teardown(&record) {
                tracing::warn!(error = %chain(&again), "cannot undo a failed set-up");
            }
            return Err(error);
        }
        Ok(record.addresses)
    }

    /// The sandbox's record, written down; a new one takes the next addresses.
    fn reserve(&self, sandbox: &Sandbox) -> Result<(Record, bool), Error> {
        let mut state = self.state();
        if let Some(record) = state.records.get(&sandbox.id) {
            return Ok((record.clone(), false));
        }
        if state.pools.is_empty() {
            return Err(Error::NoRange);
        }
        let mut addresses = Vec::new();
        for pool in &mut state.pools {
            addresses.push(pool.take()?);
        }
        let record = Record {
            sandbox: sandbox.id.clone(),
            addresses,
            device: Some(builtin::device_name(&sandbox.id)),
            port_mappings: sandbox.port_mappings.clone(),
            cni: None,
        };
        if let Err(error) = self.store.save(&record) {
            state.free(&record.addresses);
            return Err(error);
        }
        state.records.insert(sandbox.id.clone(), record.clone());
        Ok((record, true))
    }

    fn publish(&self, record: &Record, add: bool) -> Result<(), Error> {
        let ports: Vec<HostPort> = host_ports(record).collect();
        let Some(table) = self.table.as_ref().filter(|_| !ports.is_empty()) else { return Ok(()) };
        table.change(|contents| {
            contents.host_ports.retain(|port| !ports.contains(port));
            if add {
                contents.host_ports.extend(ports);
            }
        })?;
        Ok(())
    }

    fn teardown(&self, record: &Record) -> Result<(), Error> {
        self.publish(record, false)?;
        builtin::disconnect(record)?;
        self.store.remove(&record.sandbox)?;
        let mut state = self.state();
        state.records.remove(&record.sandbox);
        state.free(&record.addresses);
        Ok(())
    }
}

impl State {
    fn free(&mut self, addresses: &[IpAddr]) {
        for pool in &mut self.pools {
            addresses.iter().for_each(|address| pool.release(*address));
        }
    }
}

fn host_ports(record: &Record) -> impl Iterator<Item = HostPort> + '_ {
    // The portmap plugin does its own.
    let builtin = record.cni.is_none();
    let pods = record.addresses.iter().filter(move |_| builtin);
    pods.flat_map(|pod| {
        let mappings = record.port_mappings.iter().filter(|mapping| mapping.host_port > 0);
        mappings.map(|mapping| HostPort { mapping: mapping.clone(), pod: *pod })
    })
}
