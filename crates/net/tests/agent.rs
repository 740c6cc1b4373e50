//! Proxy, node routes, pod network and DNS of two nodes, run as an agent runs them, fed by one
//! API, with real packets. Needs root: set GANTRY_ROOT_TESTS=1.

mod lab;

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use lab::{
    HOST, Machine,
    api::{Api, NODES, SERVICES, SLICES, endpoint, node, service, slice},
    ip, root_tests, switch,
};
use net::{
    dns::{DnsConfig, Upstreams},
    pod::{PodNetwork, PodNetworkConfig, Sandbox},
    routes::NodeNetConfig,
};
use proxy::ProxyConfig;
use serde_json::json;
use stdx::{CancellationToken, Env};

const DNS: &str = "10.96.0.10";

struct Agent {
    machine: Machine,
    name: String,
    pods: PodNetwork,
    _state: tempfile::TempDir,
}

/// Starts everything of one node on a thread of its own.
fn agent(number: u8, switch: &Machine, api: &Api, cancel: &CancellationToken) -> Agent {
    let machine = Machine::new();
    let address = format!("192.0.2.{number}");
    machine.plug(switch, "uplink", &address, 24);
    machine.set_default_route(HOST);
    let state = tempfile::tempdir().unwrap();
    let config = PodNetworkConfig {
        cni_config_dir: state.path().join("cni"),
        state_dir: state.path().join("sandboxes"),
        node_ips: vec![ip(&address)],
        ..PodNetworkConfig::default()
    };
    let env = Env::real();
    let pods = machine.run_async(|| PodNetwork::open(&env, config)).unwrap();
    let name = format!("node-{number}");
    let proxy = ProxyConfig::for_node(&name, vec![ip(&address)], vec![range()])
        .with_own_addresses([ip(DNS)]);
    let routes = NodeNetConfig::for_node(&name, vec![range()], pods.clone());
    let dns = DnsConfig { upstreams: Upstreams::Fixed(vec![]), ..DnsConfig::new(vec![ip(DNS)]) };
    let (client, cancel, namespace) = (api.client(), cancel.clone(), machine.namespace.clone());
    std::thread::spawn(move || {
        namespace.enter().unwrap();
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap().block_on(async {
            let proxy = proxy::run(env.clone(), client.clone(), proxy, cancel.clone());
            let routes = net::routes::run(env.clone(), client.clone(), routes, cancel.clone());
            let dns = net::dns::run(env.clone(), client.clone(), dns, cancel.clone());
            let (proxy, routes, dns) = futures::join!(proxy, routes, dns);
            proxy.unwrap();
            routes.unwrap();
            dns.unwrap();
        });
    });
    api.put(NODES, node(&name, &address, &format!("10.244.{number}.0/24")));
    Agent { machine, name, pods, _state: state }
}

fn range() -> ipnet::IpNet {
    lab::CLUSTER_RANGE.parse().unwrap()
}

/// The machine that hosts the nodes: balancer addresses, routes, masquerade to the outside.
fn run_host(machine: &Machine, api: &Api, cancel: &CancellationToken) {
    let ranges = vec![range(), "192.0.2.0/24".parse().unwrap()];
    let routes = NodeNetConfig::for_host(vec![range()]);
    let proxy = ProxyConfig { table: "gantry-lab".into(), ..ProxyConfig::for_host(ranges) };
    let (client, cancel, namespace) = (api.client(), cancel.clone(), machine.namespace.clone());
    std::thread::spawn(move || {
        namespace.enter().unwrap();
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap().block_on(async {
            let proxy = proxy::run(Env::real(), client.clone(), proxy, cancel.clone());
            let routes = net::routes::run(Env::real(), client, routes, cancel.clone());
            let (proxy, routes) = futures::join!(proxy, routes);
            proxy.unwrap();
            routes.unwrap();
        });
    });
}

impl Agent {
    fn pod(&self, name: &str) -> (Machine, IpAddr) {
        let machine = Machine::bare();
        let sandbox = Sandbox {
            id: name.to_owned(),
            netns: machine.path(),
            name: name.to_owned(),
            ..Sandbox::default()
        };
        // The range comes by way of the API.
        eventually("a pod range", || self.pods.ready().is_ok());
        let addresses = self.machine.run_async(|| self.pods.setup(&sandbox)).unwrap();
        machine.serve(name, 8080);
        (machine, addresses[0])
    }
}

/// Tries until it is so; each try that talks to the network paces itself.
fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let start = Env::real().instant();
    while start.elapsed() < Duration::from_secs(10) {
        if so() {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    panic!("{what} did not come about");
}

fn web(api: &Api, endpoints: &[(IpAddr, &str)]) {
    let endpoints: Vec<_> =
        endpoints.iter().map(|(ip, node)| endpoint(&ip.to_string(), node, None)).collect();
    api.put(SLICES, slice("web", &endpoints));
}

/// Asks for an A record over UDP; the address, where there is one.
fn lookup(from: &Machine, name: &str) -> Option<String> {
    use hickory_proto::{
        op::{Message, MessageType, OpCode, Query},
        rr::{Name, RecordType},
    };
    let mut message = Message::new(1, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    let socket = from.udp();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    socket.send_to(&message.to_vec().unwrap(), (ip(DNS), 53)).ok()?;
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).ok()?;
    let reply = Message::from_vec(&buffer[..length]).unwrap();
    reply.answers.first().map(|record| record.data.to_string())
}

#[test]
fn agents_follow_the_api_and_no_connection_fails_while_endpoints_roll() {
    if !root_tests() {
        return;
    }
    let (api, cancel, switch) = (Api::default(), CancellationToken::new(), switch());
    let host = Machine::new();
    host.plug(&switch, "uplink", HOST, 24);
    api.put(
        SERVICES,
        service("dns", json!({ "clusterIP": DNS, "ports": [{ "port": 53, "protocol": "UDP" }] })),
    );
    let agents = [1, 2].map(|number| agent(number, &switch, &api, &cancel));
    let [(a, a_ip), (_b, b_ip)] = ["a", "b"].map(|name| agents[0].pod(name));
    let (c, c_ip) = agents[1].pod("c");
    eventually("a route between nodes", || a.ask(&format!("{c_ip}:8080")).is_ok());

    let ports = json!([{ "name": "http", "port": 80, "nodePort": 30080 }]);
    api.put(SERVICES, service("web", json!({ "clusterIP": "10.96.0.5", "ports": ports })));
    let all = [(a_ip, "node-1"), (b_ip, "node-1"), (c_ip, "node-2")];
    web(&api, &all);
    for pod in [&a, &c] {
        eventually("the name of the service", || {
            lookup(pod, "web.default.svc.cluster.local.").as_deref() == Some("10.96.0.5")
        });
    }
    for from in [&a, &c, &agents[0].machine, &agents[1].machine] {
        eventually("the service", || from.ask("10.96.0.5:80").is_ok());
    }
    assert_eq!(agents[0].name, "node-1");

    // A firewall that starts by removing every table does not end the service.
    let node = &agents[0].machine;
    node.run(|| {
        proxy::remove(proxy::TABLE).unwrap();
        net::table::remove(net::table::TABLE).unwrap();
    });
    eventually("both tables again", || {
        let mut nft = linux::nft::Nft::open_in(&node.namespace).unwrap();
        nft.tables().unwrap().len() == 2
    });
    assert!(a.ask("10.96.0.5:80").is_ok());

    // Endpoints come and go while clients open connections from a pod, a node and the host.
    let (over, done) = (AtomicBool::new(false), Arc::new(AtomicUsize::new(0)));
    std::thread::scope(|scope| {
        let clients = [
            (&a, "10.96.0.5:80"),
            (&agents[1].machine, "10.96.0.5:80"),
            (&host, "192.0.2.1:30080"),
            (&host, "192.0.2.2:30080"),
        ];
        for (from, address) in clients {
            let (over, done) = (&over, done.clone());
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    from.ask(address).unwrap_or_else(|error| panic!("{address}: {error}"));
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut round = 0;
        while done.load(Ordering::Relaxed) < 3000 {
            round += 1;
            let few = &all[round % 3..=round % 3];
            web(&api, if round % 2 == 0 { &all } else { few });
            std::thread::park_timeout(Duration::from_millis(5));
        }
        over.store(true, Ordering::Relaxed);
    });

    api.delete(SERVICES, "default", "web");
    eventually("the end of the service", || a.ask("10.96.0.5:80").is_err());
    api.delete(NODES, "", "node-2");
    eventually("the end of the route", || a.ask(&format!("{c_ip}:8080")).is_err());
    cancel.cancel();
}

#[test]
fn the_host_of_a_cluster_serves_balancer_addresses_and_the_way_out() {
    if !root_tests() {
        return;
    }
    let (api, cancel, cluster, world) =
        (Api::default(), CancellationToken::new(), switch(), switch());
    let (host, outside) = (Machine::new(), Machine::new());
    host.plug(&cluster, "uplink", HOST, 24);
    host.plug(&world, "world", "198.51.100.1", 24);
    outside.plug(&world, "world", "198.51.100.2", 24);
    outside.serve("outside", 9000);
    host.run(|| linux::netns::set_sysctl("net/ipv4/ip_forward", "1").unwrap());
    let before = host.inventory();
    run_host(&host, &api, &cancel);
    let agents = [1, 2].map(|number| agent(number, &cluster, &api, &cancel));
    let [(a, a_ip), (c, c_ip)] = [agents[0].pod("a"), agents[1].pod("c")];

    eventually("the way out", || a.ask("198.51.100.2:9000").is_ok());
    let seen = c.ask("198.51.100.2:9000").unwrap().1;
    assert_eq!(seen, "198.51.100.1", "masqueraded by the host");
    eventually("the host's way to pods", || host.ask(&format!("{c_ip}:8080")).is_ok());
    assert_eq!(a.ask(&format!("{c_ip}:8080")).unwrap().1, a_ip.to_string(), "pods see pods");

    let mut balanced = service(
        "web",
        json!({
            "type": "LoadBalancer", "clusterIP": "10.96.0.5",
            "ports": [{ "name": "http", "port": 80, "nodePort": 30080 }],
        }),
    );
    balanced["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.200" }] } });
    api.put(SERVICES, balanced);
    web(&api, &[(a_ip, "node-1"), (c_ip, "node-2")]);
    eventually("the balancer's address", || host.ask("192.0.2.200:80").is_ok());
    let names: std::collections::BTreeSet<String> =
        (0..40).map(|_| host.ask("192.0.2.200:80").unwrap().0).collect();
    assert_eq!(names.len(), 2, "both pods answer");
    eventually("the address from a node", || agents[0].machine.ask("192.0.2.200:80").is_ok());

    // `down`: the agents are gone, the host is as it was.
    cancel.cancel();
    drop(agents);
    eventually("the end of the host's tasks", || {
        host.run(|| {
            proxy::remove("gantry-lab").unwrap();
            let scope = net::routes::Scope { tunnel: None, within: vec![range()] };
            net::routes::remove(&scope).unwrap();
        });
        host.inventory() == before
    });
}
