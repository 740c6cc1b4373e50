//! Devices, addresses, neighbours and routes in namespaces that only this test holds.
//! Needs root: set GANTRY_ROOT_TESTS=1.

use std::{net::IpAddr, os::fd::AsFd};

use linux::{
    links::{Address, Rtnl, Veth, Vxlan},
    netns::{NetNs, set_sysctl, sysctl},
    routes::Route,
};

fn root_tests() -> bool {
    let wanted = std::env::var_os("GANTRY_ROOT_TESTS").is_some();
    if !wanted {
        eprintln!("skipped: needs root, set GANTRY_ROOT_TESTS=1");
    }
    wanted
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_veth_pair_joins_two_namespaces_and_leaves_no_trace() {
    if !root_tests() {
        return;
    }
    let (left, right) = (NetNs::create().unwrap(), NetNs::create().unwrap());
    let mut a = Rtnl::open_in(&left).unwrap();
    let mut b = Rtnl::open_in(&right).unwrap();
    let before = (a.links().unwrap(), a.routes().unwrap());
    a.add_veth(&Veth {
        name: "here",
        mac: Some([2, 0, 0, 0, 0, 1]),
        peer_name: "eth0",
        peer_mac: Some([2, 0, 0, 0, 0, 2]),
        peer_namespace: Some(right.as_fd()),
        mtu_bytes: 1400,
    })
    .unwrap();
    let here = a.link("here").unwrap().expect("the pair was made");
    let index = b.link("eth0").unwrap().expect("the peer is there").index;
    b.set_up(index).unwrap();
    let there = b.link("eth0").unwrap().expect("the peer is in the other namespace");
    assert_eq!((here.mtu_bytes, here.kind.as_str(), here.up), (1400, "veth", true));
    assert_eq!(there.mac, Some([2, 0, 0, 0, 0, 2]));

    let address = Address { index: here.index, ip: ip("10.9.0.1"), prefix_bits: 24 };
    a.add_address(address).unwrap();
    a.add_address(address).unwrap();
    assert!(a.addresses().unwrap().contains(&address));
    a.set_neighbour(here.index, ip("10.9.0.2"), [2, 0, 0, 0, 0, 2]).unwrap();
    assert_eq!(a.neighbours(here.index).unwrap(), [(ip("10.9.0.2"), [2, 0, 0, 0, 0, 2])]);
    let route = Route::via(ip("10.8.0.0"), 16, ip("10.9.0.2"), here.index);
    a.set_route(route).unwrap();
    a.set_route(route).unwrap();
    assert!(a.routes().unwrap().contains(&route));
    let path = a.path_to(ip("10.8.1.1")).unwrap().expect("a route covers it");
    assert_eq!((path.gateway, path.index), (Some(ip("10.9.0.2")), here.index));
    assert_eq!(a.path_to(ip("10.7.1.1")).unwrap(), None);
    a.delete_route(route).unwrap();
    a.delete_route(route).unwrap();

    a.delete_link("here").unwrap();
    a.delete_link("here").unwrap();
    assert_eq!((a.links().unwrap(), a.routes().unwrap()), before);
    assert_eq!(b.link("eth0").unwrap(), None);
}

#[test]
fn vxlan_entries_can_be_set_listed_and_removed() {
    if !root_tests() {
        return;
    }
    let namespace = NetNs::create().unwrap();
    let mut rtnl = Rtnl::open_in(&namespace).unwrap();
    let vxlan = Vxlan {
        name: "vx",
        id: 7,
        local: ip("192.0.2.1"),
        port: 4789,
        mac: [2, 1, 1, 1, 1, 1],
        mtu_bytes: 1450,
    };
    rtnl.add_vxlan(&vxlan).unwrap();
    assert!(rtnl.add_vxlan(&vxlan).unwrap_err().is_exists());
    let index = rtnl.link("vx").unwrap().unwrap().index;
    let mac = [2, 2, 2, 2, 2, 2];
    rtnl.set_forwarding(index, mac, ip("192.0.2.2")).unwrap();
    assert_eq!(rtnl.forwardings(index).unwrap(), [(mac, ip("192.0.2.2"))]);
    rtnl.delete_forwarding(index, mac, ip("192.0.2.2")).unwrap();
    assert_eq!(rtnl.forwardings(index).unwrap(), []);
}

#[test]
fn sysctls_belong_to_the_namespace() {
    if !root_tests() {
        return;
    }
    let namespace = NetNs::create().unwrap();
    let outside = sysctl("net/ipv4/ip_forward").unwrap();
    let inside = namespace.run(|| {
        set_sysctl("net/ipv4/ip_forward", "1").unwrap();
        sysctl("net/ipv4/ip_forward").unwrap()
    });
    assert_eq!(inside.unwrap(), "1");
    assert_eq!(sysctl("net/ipv4/ip_forward").unwrap(), outside);
}
