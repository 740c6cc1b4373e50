//! The built-in network: one routed pair of devices per sandbox.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
    path::Path,
};

use linux::{
    links::{Address, Mac, Rtnl, Veth},
    netns::{NetNs, set_sysctl},
    routes::Route,
};

use crate::{Error, pod::PodNetworkConfig, state::Record};

/// The start of our devices' names.
pub const DEVICE_PREFIX: &str = "gnt";
/// Every pod's gateway, on no wire and in no subnet (RFC 3927 keeps such addresses local).
pub const GATEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
pub const GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
/// Both ends' hardware addresses are locally administered; each pair is its own wire, so all
/// node ends share one.
const NODE_MAC: Mac = [0x02, 0x67, 0x6e, 0x74, 0x00, 0x01];
const POD_DEVICE: &str = "eth0";

/// Turns on what the node itself needs to forward packets of pods.
pub fn prepare_node() -> Result<(), Error> {
    sysctl("net/ipv4/ip_forward", "1")?;
    // Absent where the kernel has no IPv6.
    let _ = set_sysctl("net/ipv6/conf/all/forwarding", "1");
    Ok(())
}

/// The device's name on the node: the prefix and 48 bits of a hash of the sandbox id.
pub fn device_name(sandbox: &str) -> String {
    format!("{DEVICE_PREFIX}{:012x}", fnv(sandbox) & 0xffff_ffff_ffff)
}

/// FNV-1a, fixed for ever, because names outlive the process.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Makes the pair, addresses, neighbours and routes on both sides. What an interrupted attempt
/// left is made anew.
pub fn connect(record: &Record, netns: &Path, config: &PodNetworkConfig) -> Result<(), Error> {
    let namespace = NetNs::open(netns)
        .map_err(Error::io(format!("cannot open the network namespace {}", netns.display())))?;
    let mut node = Rtnl::open()?;
    let mut pod = Rtnl::open_in(&namespace)?;
    let device = record.device.as_deref().unwrap_or_default();
    if node.link(device)?.is_some() {
        node.delete_link(device)?;
    }
    let pod_mac = pod_mac(&record.addresses);
    node.add_veth(&Veth {
        name: device,
        mac: Some(NODE_MAC),
        peer_name: POD_DEVICE,
        peer_mac: Some(pod_mac),
        peer_namespace: Some(namespace.as_fd()),
        mtu_bytes: config.mtu_bytes,
    })?;
    let only_v4 = record.addresses.iter().all(IpAddr::is_ipv4);
    tune_device(device, only_v4, !record.port_mappings.is_empty())?;
    connect_pod(&mut pod, &namespace, &record.addresses, only_v4)?;
    let index = node.link(device)?.map_or(0, |link| link.index);
    for address in &record.addresses {
        node.set_neighbour(index, *address, pod_mac)?;
        let source = config.node_ips.iter().find(|ip| ip.is_ipv4() == address.is_ipv4()).copied();
        node.set_route(Route { source, ..Route::direct(*address, full(*address), index) })?;
    }
    Ok(())
}

/// Removes the pair, and with it addresses, neighbours and routes.
pub fn disconnect(record: &Record) -> Result<(), Error> {
    if let Some(device) = &record.device {
        Rtnl::open()?.delete_link(device)?;
    }
    Ok(())
}

/// Brings up the loopback device of a sandbox.
pub fn bring_up_loopback(netns: &Path) -> Result<(), Error> {
    let namespace = NetNs::open(netns)
        .map_err(Error::io(format!("cannot open the network namespace {}", netns.display())))?;
    let mut pod = Rtnl::open_in(&namespace)?;
    let loopback = pod.links()?.into_iter().find(|link| link.loopback);
    Ok(loopback.map_or(Ok(()), |link| pod.set_up(link.index))?)
}

fn connect_pod(
    pod: &mut Rtnl,
    namespace: &NetNs,
    addresses: &[IpAddr],
    only_v4: bool,
) -> Result<(), Error> {
    let links = pod.links()?;
    for loopback in links.iter().filter(|link| link.loopback && !link.up) {
        pod.set_up(loopback.index)?;
    }
    let index = links.iter().find(|link| link.name == POD_DEVICE).map_or(0, |link| link.index);
    let silence = || {
        if only_v4 {
            let _ = set_sysctl(&format!("net/ipv6/conf/{POD_DEVICE}/disable_ipv6"), "1");
        }
    };
    namespace.run(silence).map_err(Error::io("cannot enter the sandbox's network namespace"))?;
    for address in addresses {
        pod.add_address(Address { index, ip: *address, prefix_bits: full(*address) })?;
    }
    pod.set_up(index)?;
    for address in addresses {
        let (gateway, anywhere) = gateway_of(*address);
        pod.set_neighbour(index, gateway, NODE_MAC)?;
        pod.set_route(Route { protocol: 3, ..Route::direct(gateway, full(gateway), index) })?;
        pod.set_route(Route { protocol: 3, ..Route::via(anywhere, 0, gateway, index) })?;
    }
    Ok(())
}

fn tune_device(device: &str, only_v4: bool, host_ports: bool) -> Result<(), Error> {
    // A pod that reaches itself through a Service leaves by the device it came from.
    sysctl(&format!("net/ipv4/conf/{device}/send_redirects"), "0")?;
    if host_ports {
        // For host ports on 127.0.0.1; the table `gantry-net` keeps pods out of loopback.
        sysctl(&format!("net/ipv4/conf/{device}/route_localnet"), "1")?;
    }
    if only_v4 {
        // Spares the neighbour discovery and multicast chatter of an address nobody uses.
        let _ = set_sysctl(&format!("net/ipv6/conf/{device}/disable_ipv6"), "1");
    }
    Ok(())
}

fn sysctl(name: &str, value: &str) -> Result<(), Error> {
    set_sysctl(name, value).map_err(Error::io(format!("cannot set {name} to {value}")))
}

/// The gateway of a family, and that family's unspecified address.
fn gateway_of(address: IpAddr) -> (IpAddr, IpAddr) {
    match address {
        IpAddr::V4(_) => (GATEWAY_V4, Ipv4Addr::UNSPECIFIED.into()),
        IpAddr::V6(_) => (GATEWAY_V6, Ipv6Addr::UNSPECIFIED.into()),
    }
}

fn full(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// `0a:58` and the IPv4 address, as the CNI bridge plugin does, so that captures read well.
fn pod_mac(addresses: &[IpAddr]) -> Mac {
    match addresses.first() {
        Some(IpAddr::V4(v4)) => {
            let [a, b, c, d] = v4.octets();
            [0x0a, 0x58, a, b, c, d]
        }
        Some(IpAddr::V6(v6)) => {
            let o = v6.octets();
            [0x0a, 0x58, o[12], o[13], o[14], o[15]]
        }
        None => [0x0a, 0x58, 0, 0, 0, 1],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_fit_and_differ() {
        let names: std::collections::BTreeSet<String> =
            (0..1000).map(|n| device_name(&format!("sandbox-{n}"))).collect();
        assert_eq!(names.len(), 1000);
        assert!(names.iter().all(|name| name.len() == 15), "IFNAMSIZ allows 15 characters");
        assert_eq!(device_name("a"), device_name("a"));
    }
}
