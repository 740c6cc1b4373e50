//! A small network of namespaces: nodes on a switch, pods on nodes, servers in pods. All of it
//! is held by descriptors and threads of the test's process and ends with them.

#![allow(dead_code)] // Each test takes what it needs of the lab.

pub mod api;

use std::{
    collections::BTreeMap,
    future::Future,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use linux::{
    links::{Address, Rtnl, Veth},
    netns::NetNs,
    nft::{Family, Nft, Table},
    routes::Route,
};
use net::{
    pod::{PodNetwork, PodNetworkConfig, PortMapping, Sandbox},
    routes::{self, Encapsulation, NodeFacts, Scope},
};
use proxy::{
    NodeView, RulesConfig,
    apply::Kernel,
    model::{Endpoint, Protocol, Service, ServiceKey, ServicePort, Slice, SlicePort, Slices},
    plan::plan,
    planner::Planner,
};
use stdx::Env;

/// The address of the host beside the nodes.
pub const HOST: &str = "192.0.2.254";
pub const TIMEOUT: Duration = Duration::from_secs(2);

pub fn root_tests() -> bool {
    let wanted = std::env::var_os("GANTRY_ROOT_TESTS").is_some();
    if !wanted {
        eprintln!("skipped: needs root, set GANTRY_ROOT_TESTS=1");
    }
    wanted
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A namespace with a wire to a switch.
pub struct Machine {
    pub namespace: Arc<NetNs>,
}

impl Machine {
    /// A namespace whose devices are another's to make.
    pub fn bare() -> Self {
        Self { namespace: Arc::new(NetNs::create().unwrap()) }
    }

    /// Where the namespace can be opened by path.
    pub fn path(&self) -> PathBuf {
        let descriptor = self.namespace.as_fd().as_raw_fd();
        format!("/proc/{}/fd/{descriptor}", std::process::id()).into()
    }

    pub fn new() -> Self {
        let namespace = NetNs::create().unwrap();
        let mut rtnl = Rtnl::open_in(&namespace).unwrap();
        let loopback = rtnl.links().unwrap().into_iter().find(|link| link.loopback).unwrap();
        rtnl.set_up(loopback.index).unwrap();
        Self { namespace: Arc::new(namespace) }
    }

    pub fn rtnl(&self) -> Rtnl {
        Rtnl::open_in(&self.namespace).unwrap()
    }

    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.namespace.run(work).unwrap()
    }

    /// Runs async work on threads that live in the namespace.
    pub fn run_async<F: Future>(&self, work: impl FnOnce() -> F + Send) -> F::Output
    where
        F::Output: Send,
    {
        self.run(|| {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            builder.enable_all().build().unwrap().block_on(work())
        })
    }

    /// Connects to a switch's bridge with an address.
    pub fn plug(&self, switch: &Machine, device: &str, address: &str, bits: u8) {
        let mut ours = self.rtnl();
        let mut theirs = switch.rtnl();
        let port = format!("p{}", address.replace('.', "-"));
        theirs
            .add_veth(&Veth {
                name: &port,
                mac: None,
                peer_name: device,
                peer_mac: None,
                peer_namespace: Some(self.namespace.as_fd()),
                mtu_bytes: 1500,
            })
            .unwrap();
        let bridge = theirs.link("br0").unwrap().unwrap().index;
        let port = theirs.link(&port).unwrap().unwrap().index;
        theirs.set_master(port, bridge).unwrap();
        let index = ours.link(device).unwrap().unwrap().index;
        ours.set_up(index).unwrap();
        ours.add_address(Address { index, ip: ip(address), prefix_bits: bits }).unwrap();
    }

    pub fn set_default_route(&self, gateway: &str) {
        let route = Route { protocol: 3, ..Route::default_v4(ip(gateway), 0) };
        self.rtnl().set_route(route).unwrap();
    }

    /// Answers every TCP connection with `name` and the client's address, and every datagram
    /// likewise.
    pub fn serve(&self, name: &str, port: u16) {
        let any = SocketAddr::from(([0, 0, 0, 0], port));
        let (tcp, udp) =
            self.run(|| (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap()));
        let (tcp_name, udp_name) = (name.to_owned(), name.to_owned());
        std::thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                let peer = stream.peer_addr().unwrap().ip();
                let _ = stream.write_all(format!("{tcp_name} {peer}").as_bytes());
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(format!("{udp_name} {}", peer.ip()).as_bytes(), peer);
            }
        });
    }

    /// What a server says: its name, and as whom it sees us.
    pub fn ask(&self, address: &str) -> io::Result<(String, String)> {
        let address: SocketAddr = address.parse().unwrap();
        self.run(|| {
            let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            split(&text)
        })
    }

    pub fn ask_udp(&self, socket: &UdpSocket, address: &str) -> io::Result<(String, String)> {
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.send_to(b"?", address)?;
        let mut buffer = [0; 64];
        let (length, _) = socket.recv_from(&mut buffer)?;
        split(&String::from_utf8_lossy(&buffer[..length]))
    }

    pub fn udp(&self) -> UdpSocket {
        self.run(|| UdpSocket::bind("0.0.0.0:0").unwrap())
    }

    /// Links, routes and tables, to be compared.
    pub fn inventory(&self) -> String {
        let mut rtnl = self.rtnl();
        let mut nft = Nft::open_in(&self.namespace).unwrap();
        let links: Vec<String> = rtnl.links().unwrap().into_iter().map(|l| l.name).collect();
        let mut routes = rtnl.routes().unwrap();
        // Link-local addresses and their routes come late and differ from device to device.
        routes.retain(|route| route.destination.is_ipv4());
        routes.sort();
        let addresses: Vec<Address> =
            rtnl.addresses().unwrap().into_iter().filter(|a| a.ip.is_ipv4()).collect();
        format!("{links:?}\n{routes:#?}\n{addresses:?}\n{:?}", nft.tables().unwrap())
    }
}

fn split(text: &str) -> io::Result<(String, String)> {
    let (name, peer) = text.split_once(' ').ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok((name.to_owned(), peer.to_owned()))
}

/// A bridge that joins machines.
pub fn switch() -> Machine {
    let machine = Machine::new();
    machine.rtnl().add_bridge("br0").unwrap();
    machine
}

pub struct Node {
    pub machine: Machine,
    pub name: String,
    pub address: String,
    pub number: u8,
    pub pods: PodNetwork,
    planner: Planner,
    kernel: Kernel,
    state: tempfile::TempDir,
}

pub const CLUSTER_RANGE: &str = "10.244.0.0/16";

impl Node {
    pub fn new(number: u8, switch: &Machine, address: &str) -> Self {
        let machine = Machine::new();
        machine.plug(switch, "uplink", address, 24);
        let state = tempfile::tempdir().unwrap();
        let pods = open_pods(&machine, &state, address);
        let config = RulesConfig {
            pod_ranges: vec![CLUSTER_RANGE.parse().unwrap()],
            drop_invalid: true,
            ..RulesConfig::default()
        };
        let mut kernel = Kernel::open_in(&machine.namespace).unwrap();
        let mut planner = Planner::new(Family::Ipv4, &config);
        planner.commands();
        kernel.replace(&table(), &planner.ruleset()).unwrap();
        let name = format!("node-{number}");
        let node =
            Self { machine, name, address: address.into(), number, pods, planner, kernel, state };
        node.give_range();
        node
    }

    fn give_range(&self) {
        let own = vec![self.range().parse().unwrap()];
        let cluster = vec![CLUSTER_RANGE.parse().unwrap()];
        self.machine.run_async(|| self.pods.set_ranges(own, cluster)).unwrap();
    }

    /// As after a restart of the agent.
    pub fn restart(&mut self) {
        self.pods = open_pods(&self.machine, &self.state, &self.address);
        self.give_range();
    }

    pub fn range(&self) -> String {
        format!("10.244.{}.0/24", self.number)
    }

    pub fn facts(&self) -> NodeFacts {
        NodeFacts {
            addresses: vec![ip(&self.address)],
            ranges: vec![self.range().parse().unwrap()],
            encapsulate: None,
        }
    }

    pub fn connect(&self, nodes: &[&Node], encapsulation: Encapsulation) {
        let facts: BTreeMap<String, NodeFacts> =
            nodes.iter().map(|node| (node.name.clone(), node.facts())).collect();
        let mut rtnl = self.machine.rtnl();
        let neighbours = facts
            .values()
            .flat_map(|node| node.addresses.clone())
            .filter(|address| {
                rtnl.path_to(*address).unwrap().is_some_and(|path| path.gateway.is_none())
            })
            .collect();
        let plan = routes::plan(&self.name, &facts, encapsulation, &neighbours);
        routes::apply(&mut rtnl, &Scope::node(), &plan).unwrap();
        // A second time changes nothing and is no error.
        routes::apply(&mut rtnl, &Scope::node(), &plan).unwrap();
    }

    pub fn pod(&self, name: &str, port_mappings: Vec<PortMapping>) -> Pod {
        let machine = Machine::bare();
        let netns = machine.path();
        let sandbox = Sandbox {
            id: format!("{name}-sandbox"),
            netns,
            name: name.into(),
            port_mappings,
            ..Sandbox::default()
        };
        let addresses = self.machine.run_async(|| self.pods.setup(&sandbox)).unwrap();
        let pod = Pod { machine, address: addresses[0], node: self.name.clone(), sandbox };
        pod.machine.serve(name, 8080);
        pod
    }

    pub fn serve(&mut self, service: &str, model: &Service, endpoints: &[Endpoint]) {
        let view = NodeView {
            name: self.name.clone(),
            node_port_addresses: vec![ip(&self.address)],
            ..NodeView::default()
        };
        let key = ServiceKey { namespace: "default".into(), name: service.into() };
        let before = self.planner.plan_of(&key).cloned().unwrap_or_default();
        let after = plan(model, &slices(model, endpoints), &view, Family::Ipv4);
        let stale = proxy::apply::stale_flows(&before, &after);
        self.planner.set(&key, after);
        self.kernel.commit(&table(), &self.planner.commands()).unwrap();
        self.kernel.forget(Family::Ipv4, &stale).unwrap();
    }

    pub fn leave(&self, pods: &[&Pod]) {
        for pod in pods.iter().filter(|pod| pod.node == self.name) {
            self.machine.run_async(|| self.pods.teardown(&pod.sandbox.id)).unwrap();
        }
        self.machine.run(|| {
            routes::remove(&Scope::node()).unwrap();
            net::table::remove(net::table::TABLE).unwrap();
            proxy::remove(proxy::TABLE).unwrap();
        });
    }
}

fn open_pods(machine: &Machine, state: &tempfile::TempDir, address: &str) -> PodNetwork {
    let config = PodNetworkConfig {
        cni_config_dir: state.path().join("cni"),
        state_dir: state.path().join("sandboxes"),
        node_ips: vec![ip(address)],
        mtu_bytes: 1450,
        ..PodNetworkConfig::default()
    };
    machine.run_async(|| async move { PodNetwork::open(&Env::real(), config).await.unwrap() })
}

fn table() -> Table {
    Table::new(Family::Ipv4, proxy::TABLE)
}

pub struct Pod {
    pub machine: Machine,
    pub address: IpAddr,
    pub node: String,
    pub sandbox: Sandbox,
}

impl Pod {
    pub fn at(&self, port: u16) -> String {
        format!("{}:{port}", self.address)
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            address: self.address,
            ready: true,
            serving: true,
            terminating: false,
            node: Some(self.node.clone()),
            zones: vec![],
            nodes: vec![],
        }
    }
}

/// A Service with the port 80 to the pods' 8080 over TCP and UDP.
pub fn service(cluster_ip: &str) -> Service {
    let port = |protocol| ServicePort {
        name: format!("{protocol:?}"),
        protocol,
        port: 80,
        node_port: Some(30080),
    };
    Service {
        cluster_ips: vec![ip(cluster_ip)],
        ports: vec![port(Protocol::Tcp), port(Protocol::Udp)],
        ..Service::default()
    }
}

fn slices(service: &Service, endpoints: &[Endpoint]) -> Slices {
    let ports = service.ports.iter().map(|port| SlicePort {
        name: port.name.clone(),
        protocol: port.protocol,
        port: 8080,
    });
    let slice = Slice { ports: ports.collect(), endpoints: endpoints.to_vec() };
    [("slice".to_owned(), slice)].into()
}
