//! What a cluster adds to the machine it runs on, and how it is taken away again.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsFd,
    path::Path,
};

use linux::{
    cgroup,
    links::{Address, Rtnl, Veth},
    netns::{NetNs, set_sysctl, sysctl},
};

use crate::{ClusterConfig, Error, Layout, NodeConfig};

/// Mounts, namespaces and cgroups below these names are ours.
const FORWARDING: &str = "net/ipv4/ip_forward";
const MTU_BYTES: u32 = 1500;

/// The name of the host's nft table of a cluster.
pub fn nft_table(config: &ClusterConfig) -> String {
    format!("gantry-{}", config.name)
}

/// The lowest number whose ranges no device, route or other cluster uses.
pub fn free_index() -> Result<u8, Error> {
    let mut rtnl = Rtnl::open().map_err(|e| Error::network("open netlink", e))?;
    let mut used: BTreeSet<u8> =
        Layout::all().iter().filter_map(|layout| layout.load().ok()).map(|c| c.index).collect();
    let addresses = rtnl.addresses().map_err(|e| Error::network("list addresses", e))?;
    let routes = rtnl.routes().map_err(|e| Error::network("list routes", e))?;
    let ips = addresses.iter().map(|a| a.ip).chain(routes.iter().map(|r| r.destination));
    used.extend(ips.filter_map(index_of));
    (0..100).find(|index| !used.contains(index)).ok_or_else(|| Error::Preflight {
        problem: "every range of 10.89.0.0/16 is in use on this machine".into(),
        remedy: "remove a cluster with `gantry down`".into(),
    })
}

/// The cluster whose node or pod network holds this address.
fn index_of(ip: IpAddr) -> Option<u8> {
    match ip {
        IpAddr::V4(v4) => match v4.octets() {
            [10, 89, index, _] => Some(index),
            [10, second, ..] => second.checked_sub(128),
            _ => None,
        },
        IpAddr::V6(_) => None,
    }
}

/// Makes the bridge with the host's address and switches forwarding on.
/// Gives back whether forwarding was off.
pub fn create_network(config: &ClusterConfig) -> Result<bool, Error> {
    let fail = |what: &'static str| move |source| Error::network(what, source);
    let mut rtnl = Rtnl::open().map_err(fail("open netlink"))?;
    let name = config.bridge();
    if rtnl.link(&name).map_err(fail("find the bridge"))?.is_none() {
        rtnl.add_bridge(&name).map_err(fail("make the bridge"))?;
    }
    let bridge = rtnl.link(&name).map_err(fail("find the bridge"))?;
    let index = bridge.ok_or_else(|| Error::network("find the bridge", "it is gone"))?.index;
    let address = Address { index, ip: config.host_address().into(), prefix_bits: 24 };
    let known = rtnl.addresses().map_err(fail("list addresses"))?;
    if !known.contains(&address) {
        rtnl.add_address(address).map_err(fail("give the bridge its address"))?;
    }
    let was_off = sysctl(FORWARDING).map_err(|e| Error::system("read ip_forward", e))? == "0";
    set_sysctl(FORWARDING, "1").map_err(|e| Error::system("switch forwarding on", e))?;
    Ok(was_off)
}

/// Undoes [`create_network`]; routes over the bridge vanish with it.
pub fn remove_network(config: &ClusterConfig) -> Result<(), Error> {
    let mut rtnl = Rtnl::open().map_err(|e| Error::network("open netlink", e))?;
    for node in &config.nodes {
        // The kernel takes a dead node's end away in its own time.
        rtnl.delete_link(&config.cable(node)).map_err(|e| Error::network("remove a cable", e))?;
    }
    rtnl.delete_link(&config.bridge()).map_err(|e| Error::network("remove the bridge", e))?;
    let others = Layout::all().iter().any(|l| l.name != config.name && l.load().is_ok());
    if config.forwarding_was_off && !others {
        set_sysctl(FORWARDING, "0").map_err(|e| Error::system("switch forwarding off", e))?;
    }
    Ok(())
}

/// Plugs a node's cable: one end on the bridge, the other (`eth0`) in the namespace of `pid`.
pub fn plug(config: &ClusterConfig, node: &NodeConfig, pid: i32) -> Result<(), Error> {
    let fail = |what: &'static str| move |source| Error::network(what, source);
    let path = format!("/proc/{pid}/ns/net");
    let namespace =
        NetNs::open(Path::new(&path)).map_err(|e| Error::system("open the node's network", e))?;
    let mut rtnl = Rtnl::open().map_err(fail("open netlink"))?;
    let name = config.cable(node);
    // A node that was killed leaves its cable until the kernel has cleaned its namespace up.
    rtnl.delete_link(&name).map_err(fail("remove an old cable"))?;
    let cable = Veth {
        name: &name,
        mac: None,
        peer_name: "eth0",
        peer_mac: Some(mac_of(node.address)),
        peer_namespace: Some(namespace.as_fd()),
        mtu_bytes: MTU_BYTES,
    };
    rtnl.add_veth(&cable).map_err(fail("make a cable"))?;
    let index_of = |rtnl: &mut Rtnl, name: &str| -> Result<u32, Error> {
        let link = rtnl.link(name).map_err(fail("find a device"))?;
        link.map(|l| l.index).ok_or_else(|| Error::network("find a device", "it is gone"))
    };
    let (end, bridge) = (index_of(&mut rtnl, &name)?, index_of(&mut rtnl, &config.bridge())?);
    rtnl.set_master(end, bridge).map_err(fail("plug a cable into the bridge"))
}

/// A stable hardware address, so that neighbours' caches stay right when a node comes back.
fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x47, a, b, c, d]
}

/// The cgroup of one part of a cluster (`server`, `node-1`, …), made if need be.
pub fn cgroup(layout: &Layout, part: &str) -> Result<cgroup::Cgroup, Error> {
    let host = cgroup::Host::detect().map_err(|e| Error::system("find the cgroups", e))?;
    let group = host.cgroup(&format!("{}/{part}", layout.cgroup()));
    group.create().map_err(|e| Error::system(format!("make the cgroup {}", group.path()), e))?;
    Ok(group)
}

/// Kills everything in the cluster's cgroups and removes them, deepest first.
pub fn remove_cgroups(layout: &Layout) -> Result<(), Error> {
    let host = cgroup::Host::detect().map_err(|e| Error::system("find the cgroups", e))?;
    let group = host.cgroup(&layout.cgroup());
    let remove = || {
        for directory in group.directories() {
            kill_below(&directory)?;
        }
        for directory in group.directories() {
            remove_below(&directory)?;
        }
        Ok(())
    };
    remove().map_err(|e| Error::system(format!("remove the cgroup {}", group.path()), e))?;
    // The parent is shared by all clusters; it goes with the last one.
    for directory in host.cgroup("gantry").directories() {
        let _ = fs::remove_dir(directory);
    }
    Ok(())
}

fn kill_below(directory: &Path) -> std::io::Result<()> {
    for path in tree(directory) {
        let Ok(text) = fs::read_to_string(path.join("cgroup.procs")) else { continue };
        for pid in text.lines().filter_map(|line| line.parse::<i32>().ok()) {
            if pid > 1 && pid != std::process::id() as i32 {
                let _ = linux::process::kill(pid, 9);
            }
        }
    }
    Ok(())
}

/// Removing a group fails with EBUSY until its last process has been reaped.
fn remove_below(directory: &Path) -> std::io::Result<()> {
    const ATTEMPTS: u32 = 200;
    for path in tree(directory) {
        let mut attempt = 0;
        loop {
            match fs::remove_dir(&path) {
                Ok(()) => break,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => break,
                Err(error) if attempt == ATTEMPTS => return Err(error),
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
            }
            attempt += 1;
        }
    }
    Ok(())
}

/// A directory and all below it, deepest first.
fn tree(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    if let Ok(entries) = fs::read_dir(directory) {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.extend(tree(&entry.path()));
            }
        }
        found.push(directory.to_owned());
    }
    found
}

/// Takes away every mount below the cluster's directories.
pub fn remove_mounts(layout: &Layout) -> Result<(), Error> {
    for path in [&layout.root, &layout.run] {
        linux::mount::detach_below(path)
            .map_err(|e| Error::system(format!("unmount below {}", path.display()), e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_tell_their_cluster() {
        let index = |ip: &str| index_of(ip.parse().unwrap());
        assert_eq!(index("10.89.3.1"), Some(3));
        assert_eq!(index("10.130.7.0"), Some(2));
        assert_eq!(index("10.96.0.1"), None);
        assert_eq!(index("192.168.1.1"), None);
    }
}
