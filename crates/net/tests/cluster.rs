//! Nodes, pods and Services in namespaces, with real packets.
//! Needs root: set GANTRY_ROOT_TESTS=1.

mod lab;

use std::{collections::BTreeSet, io::ErrorKind};

use lab::{HOST, Machine, Node, Pod, ip, root_tests, service, switch};
use linux::routes::Route;
use net::{
    pod::{PortMapping, Transport},
    routes::Encapsulation,
};
use proxy::model::Service;

/// Two nodes and a host on one wire, a pod and two on them.
struct Lab {
    nodes: Vec<Node>,
    host: Machine,
    pods: Vec<Pod>,
    /// The wire lasts as long as the lab.
    _switch: Machine,
}

fn lab() -> Lab {
    let switch = switch();
    let host = Machine::new();
    host.plug(&switch, "uplink", HOST, 24);
    let nodes: Vec<Node> =
        (1..=2).map(|number| Node::new(number, &switch, &format!("192.0.2.{number}"))).collect();
    for node in &nodes {
        node.machine.set_default_route(HOST);
        node.connect(&nodes.iter().collect::<Vec<_>>(), Encapsulation::Auto);
    }
    let pods =
        vec![nodes[0].pod("a", vec![]), nodes[0].pod("b", vec![]), nodes[1].pod("c", vec![])];
    Lab { nodes, host, pods, _switch: switch }
}

impl Lab {
    fn serve(&mut self, model: &Service, pods: &[usize]) {
        let endpoints: Vec<_> = pods.iter().map(|index| self.pods[*index].endpoint()).collect();
        for node in &mut self.nodes {
            node.serve("web", model, &endpoints);
        }
    }
}

/// The names that answer when asked often enough.
fn answering(from: &Machine, address: &str) -> BTreeSet<String> {
    (0..40).map(|_| from.ask(address).unwrap().0).collect()
}

fn names(text: &str) -> BTreeSet<String> {
    text.split(' ').map(str::to_owned).collect()
}

#[test]
fn pods_nodes_and_the_outside_reach_each_other() {
    if !root_tests() {
        return;
    }
    let lab = lab();
    let [a, b, c] = &lab.pods[..] else { unreachable!() };
    let own = |pod: &Pod| pod.address.to_string();
    assert_eq!(a.machine.ask(&b.at(8080)).unwrap(), ("b".into(), own(a)), "same node");
    assert_eq!(a.machine.ask(&c.at(8080)).unwrap(), ("c".into(), own(a)), "across nodes");
    let node = &lab.nodes[0].machine;
    assert_eq!(node.ask(&a.at(8080)).unwrap().1, "192.0.2.1", "node to its own pod");
    assert_eq!(node.ask(&c.at(8080)).unwrap().1, "192.0.2.1", "node to another node's pod");
    lab.host.serve("host", 9000);
    let seen = c.machine.ask(&format!("{HOST}:9000")).unwrap();
    assert_eq!(seen, ("host".into(), "192.0.2.2".into()), "masqueraded to the outside");
    let nobody = a.machine.ask("10.244.2.200:8080").unwrap_err();
    assert_eq!(
        nobody.kind(),
        ErrorKind::HostUnreachable,
        "an address without a pod answers at once"
    );
}

#[test]
fn a_cluster_ip_reaches_every_endpoint_from_everywhere_and_itself() {
    if !root_tests() {
        return;
    }
    let mut lab = lab();
    lab.serve(&service("10.96.0.5"), &[0, 1, 2]);
    for from in [&lab.pods[0].machine, &lab.pods[2].machine, &lab.nodes[1].machine] {
        assert_eq!(answering(from, "10.96.0.5:80"), names("a b c"));
    }
    // A pod that meets itself sees the node, others see the pod.
    let a = &lab.pods[0];
    for _ in 0..20 {
        let (name, seen) = a.machine.ask("10.96.0.5:80").unwrap();
        let wanted = if name == "a" { "192.0.2.1".into() } else { a.address.to_string() };
        assert_eq!((seen, name != "a"), (wanted, name != "a"), "as seen by {name}");
    }
    let refused = a.machine.ask("10.96.0.5:81").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "another port of the address");
    lab.serve(&service("10.96.0.5"), &[2]);
    assert_eq!(answering(&lab.pods[0].machine, "10.96.0.5:80"), names("c"));
    lab.serve(&service("10.96.0.5"), &[]);
    for from in [&lab.pods[0].machine, &lab.nodes[0].machine] {
        let refused = from.ask("10.96.0.5:80").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "no endpoints");
    }
}

#[test]
fn node_ports_and_balancer_addresses_serve_the_outside() {
    if !root_tests() {
        return;
    }
    let mut lab = lab();
    let balancer = "198.51.100.7";
    let mut model = service("10.96.0.5");
    model.load_balancer_ips = vec![ip(balancer)];
    lab.serve(&model, &[0, 2]);
    let mut host = lab.host.rtnl();
    host.set_route(Route { protocol: 3, ..Route::via(ip(balancer), 32, ip("192.0.2.1"), 0) })
        .unwrap();
    for address in ["192.0.2.1:30080", "192.0.2.2:30080", "198.51.100.7:80"] {
        assert_eq!(answering(&lab.host, address), names("a c"), "{address}");
    }
    assert_eq!(answering(&lab.pods[1].machine, "192.0.2.2:30080"), names("a c"));
    assert_eq!(answering(&lab.nodes[0].machine, "198.51.100.7:80"), names("a c"));

    model.external_local = true;
    lab.serve(&model, &[0]);
    let (name, seen) = lab.host.ask("192.0.2.1:30080").unwrap();
    assert_eq!((name.as_str(), seen.as_str()), ("a", HOST), "policy Local keeps the source");
    let dropped = lab.host.ask("192.0.2.2:30080").unwrap_err();
    assert_eq!(dropped.kind(), ErrorKind::TimedOut, "a node without endpoints stays silent");
    assert_eq!(answering(&lab.pods[2].machine, "198.51.100.7:80"), names("a"), "pods reach all");
    assert_eq!(answering(&lab.nodes[1].machine, "192.0.2.2:30080"), names("a"), "nodes too");

    model.source_ranges = vec!["203.0.113.0/24".parse().unwrap()];
    lab.serve(&model, &[0]);
    let barred = lab.host.ask("198.51.100.7:80").unwrap_err();
    assert_eq!(barred.kind(), ErrorKind::TimedOut, "not among the source ranges");
    model.source_ranges.push("192.0.2.0/24".parse().unwrap());
    lab.serve(&model, &[0]);
    assert_eq!(lab.host.ask("198.51.100.7:80").unwrap().0, "a");
}

#[test]
fn a_client_stays_with_its_endpoint_until_that_is_gone() {
    if !root_tests() {
        return;
    }
    let mut lab = lab();
    let model = Service { affinity_seconds: Some(60), ..service("10.96.0.5") };
    lab.serve(&model, &[0, 1, 2]);
    let first = answering(&lab.pods[2].machine, "10.96.0.5:80");
    assert_eq!(first.len(), 1, "one client, one endpoint");
    let all = ["a", "b", "c"];
    let chosen = all.iter().position(|name| first.contains(*name)).unwrap();
    let rest: Vec<usize> = (0..3).filter(|index| *index != chosen).collect();
    lab.serve(&model, &rest);
    let second = answering(&lab.pods[2].machine, "10.96.0.5:80");
    assert!(second.len() == 1 && second != first, "{second:?} after {first:?}");
    lab.serve(&model, &[0, 1, 2]);
    assert_eq!(answering(&lab.pods[2].machine, "10.96.0.5:80"), second);
}

#[test]
fn datagrams_of_a_lost_endpoint_go_to_another() {
    if !root_tests() {
        return;
    }
    let mut lab = lab();
    lab.serve(&service("10.96.0.5"), &[0]);
    let client = lab.pods[2].machine.udp();
    let asked = |lab: &Lab| lab.pods[2].machine.ask_udp(&client, "10.96.0.5:80").map(|a| a.0);
    assert_eq!(asked(&lab).unwrap(), "a");
    lab.serve(&service("10.96.0.5"), &[1]);
    assert_eq!(asked(&lab).unwrap(), "b", "the same socket, without a timeout in between");
    lab.serve(&service("10.96.0.5"), &[]);
    assert!(asked(&lab).is_err());
    lab.serve(&service("10.96.0.5"), &[2]);
    assert_eq!(asked(&lab).unwrap(), "c");
}

#[test]
fn host_ports_lead_to_their_pod_and_end_with_it() {
    if !root_tests() {
        return;
    }
    let lab = lab();
    let mapping = |host_ip, host_port| PortMapping {
        protocol: Transport::Tcp,
        host_ip,
        host_port,
        container_port: 8080,
    };
    let mappings = vec![mapping(None, 7070), mapping(Some(ip("127.0.0.1")), 7071)];
    let node = &lab.nodes[0];
    let pod = node.pod("web", mappings);
    assert_eq!(lab.host.ask("192.0.2.1:7070").unwrap(), ("web".into(), HOST.into()));
    assert_eq!(lab.pods[2].machine.ask("192.0.2.1:7070").unwrap().0, "web");
    assert_eq!(pod.machine.ask("192.0.2.1:7070").unwrap().0, "web", "itself");
    assert_eq!(node.machine.ask("127.0.0.1:7070").unwrap().0, "web");
    assert_eq!(node.machine.ask("127.0.0.1:7071").unwrap().0, "web");
    assert!(lab.host.ask("192.0.2.1:7071").is_err(), "bound to one address only");
    node.leave(&[&pod]);
    assert!(lab.host.ask("192.0.2.1:7070").is_err());
}

#[test]
fn a_restarted_agent_knows_its_sandboxes_and_gives_no_address_twice() {
    if !root_tests() {
        return;
    }
    let mut lab = lab();
    let before = lab.pods[0].machine.ask(&lab.pods[1].at(8080)).unwrap();
    lab.nodes[0].restart();
    assert_eq!(lab.pods[0].machine.ask(&lab.pods[1].at(8080)).unwrap(), before);
    let node = &lab.nodes[0];
    let again = node.machine.run_async(|| node.pods.setup(&lab.pods[0].sandbox)).unwrap();
    assert_eq!(again, [lab.pods[0].address]);
    assert_eq!(lab.pods[1].machine.ask(&lab.pods[0].at(8080)).unwrap().0, "a");
    let new = node.pod("new", vec![]);
    assert!(lab.pods.iter().all(|pod| pod.address != new.address));
    let live = BTreeSet::from([new.sandbox.id.clone(), lab.pods[0].sandbox.id.clone()]);
    let gone = node.machine.run_async(|| node.pods.collect_garbage(&live)).unwrap();
    assert_eq!(gone, [lab.pods[1].sandbox.id.clone()]);
    assert!(new.machine.ask(&lab.pods[1].at(8080)).is_err());
}

#[test]
fn nodes_behind_a_router_meet_through_the_tunnel() {
    if !root_tests() {
        return;
    }
    let (left, right, router) = (switch(), switch(), Machine::new());
    router.plug(&left, "left", "192.0.2.254", 24);
    router.plug(&right, "right", "198.51.100.254", 24);
    router.run(|| linux::netns::set_sysctl("net/ipv4/ip_forward", "1").unwrap());
    let mut nodes = vec![
        Node::new(1, &left, "192.0.2.1"),
        Node::new(2, &left, "192.0.2.2"),
        Node::new(3, &right, "198.51.100.3"),
    ];
    for (node, gateway) in nodes.iter().zip(["192.0.2.254", "192.0.2.254", "198.51.100.254"]) {
        node.machine.set_default_route(gateway);
    }
    for node in &nodes {
        node.connect(&nodes.iter().collect::<Vec<_>>(), Encapsulation::Auto);
    }
    let pods: Vec<Pod> =
        nodes.iter().zip(["a", "b", "c"]).map(|(node, name)| node.pod(name, vec![])).collect();
    let seen = pods[0].machine.ask(&pods[2].at(8080)).unwrap();
    assert_eq!(seen, ("c".into(), pods[0].address.to_string()), "through the tunnel");
    assert_eq!(pods[0].machine.ask(&pods[1].at(8080)).unwrap().0, "b", "without it");
    assert_eq!(nodes[0].machine.ask(&pods[2].at(8080)).unwrap().0, "c", "from the node");
    let endpoints: Vec<_> = pods.iter().map(Pod::endpoint).collect();
    for node in &mut nodes {
        node.serve("web", &service("10.96.0.5"), &endpoints);
    }
    assert_eq!(answering(&pods[2].machine, "10.96.0.5:80"), names("a b c"));
    assert_eq!(answering(&nodes[2].machine, "10.96.0.5:80"), names("a b c"));
    assert!(nodes[2].machine.rtnl().link("gnt-vxlan").unwrap().is_some());

    // Node 3 leaves: nobody needs the tunnel any more.
    nodes[0].connect(&[&nodes[0], &nodes[1]], Encapsulation::Auto);
    assert_eq!(nodes[0].machine.rtnl().link("gnt-vxlan").unwrap(), None);
    assert_eq!(pods[0].machine.ask(&pods[1].at(8080)).unwrap().0, "b");
}

#[test]
fn a_node_that_leaves_is_as_it_was() {
    if !root_tests() {
        return;
    }
    let switch = switch();
    let plain = Machine::new();
    plain.plug(&switch, "uplink", "192.0.2.9", 24);
    let nodes: Vec<Node> =
        (1..=2).map(|number| Node::new(number, &switch, &format!("192.0.2.{number}"))).collect();
    nodes[0].connect(&nodes.iter().collect::<Vec<_>>(), Encapsulation::Always);
    let mapping =
        PortMapping { protocol: Transport::Udp, host_ip: None, host_port: 53, container_port: 53 };
    let pod = nodes[0].pod("a", vec![mapping]);
    let wanted = plain.inventory().replace("192.0.2.9", "192.0.2.1");
    assert_ne!(nodes[0].machine.inventory(), wanted);
    nodes[0].leave(&[&pod]);
    assert_eq!(nodes[0].machine.inventory(), wanted);
}
