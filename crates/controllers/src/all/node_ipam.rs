//! Gives every node its range of pod addresses out of the cluster's.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use client::Key;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use machinery::{Map, Value};
use stdx::Timestamp;

use crate::{Config, plan::*, resources::*};

pub const CONTROLLER: Controller = Controller {
    name: "node-ipam-controller",
    account: "node-controller",
    primary: &NODES,
    watches: &[],
    rbac: &[allow(&NODES, &["patch"])],
    // One at a time, so that two nodes never get the same.
    workers: 1,
    work: Work::Reconcile(reconcile),
};

fn reconcile(key: &Key, world: &World, _: Timestamp) -> Plan {
    let mut plan = Plan::none();
    let Some(cached) = world.get(&NODES, key) else { return plan };
    let node = tree(&NODES, &cached);
    if world.config().cluster_cidrs.is_empty() || node.is_deleting() || !node.str_at(&["spec", "podCIDR"]).is_empty() {
        return plan;
    }
    let taken = taken(world);
    let free: Option<Vec<Value>> = world
        .config()
        .cluster_cidrs
        .iter()
        .map(|cidr| first_free(cidr, world.config(), &taken).map(|net| Value::from(net.to_string())))
        .collect();
    let Some(ranges) = free else {
        let text = format!("Node {} status is now: CIDRNotAvailable", key.name);
        plan.event(Note::normal(&node, "CIDRNotAvailable", text));
        return plan;
    };
    let mut patch = Map::new();
    patch.set_at(&["spec", "podCIDR"], ranges[0].clone());
    patch.set_at(&["spec", "podCIDRs"], ranges);
    plan.push(Intent::patch_at(&NODES, &cached, "", patch));
    plan
}

fn taken(world: &World) -> BTreeSet<IpNet> {
    let nodes = world.list(&NODES).all();
    let ranges = nodes.iter().filter_map(|cached| cached.object().ok()).flat_map(|node| {
        let all = node.list_at(&["spec", "podCIDRs"]).to_vec();
        let first = node.at(&["spec", "podCIDR"]).cloned();
        all.into_iter().chain(first).collect::<Vec<_>>()
    });
    ranges.filter_map(|range| range.as_str()?.parse().ok()).collect()
}

/// The first range of the node's size that overlaps with none that is taken.
fn first_free(cluster_cidr: &str, config: &Config, taken: &BTreeSet<IpNet>) -> Option<IpNet> {
    let cluster: IpNet = cluster_cidr.parse().ok()?;
    let size = match cluster {
        IpNet::V4(_) => config.node_cidr_mask_size_ipv4,
        IpNet::V6(_) => config.node_cidr_mask_size_ipv6,
    };
    let overlaps = |net: &IpNet| taken.iter().any(|t| t.contains(net) || net.contains(t));
    ranges(cluster, size).find(|net| !taken.contains(net) && !overlaps(net))
}

fn ranges(cluster: IpNet, size: u8) -> Box<dyn Iterator<Item = IpNet>> {
    let bits = size.saturating_sub(cluster.prefix_len());
    let count = 1u128 << bits.min(24);
    match cluster {
        IpNet::V4(net) => {
            let first = u32::from(net.network());
            let step = 1u64 << (32 - u32::from(size.clamp(1, 32)));
            Box::new((0..count).filter_map(move |n| {
                let address = Ipv4Addr::from(first + (n as u64 * step) as u32);
                Ipv4Net::new(address, size).ok().map(IpNet::V4)
            }))
        }
        IpNet::V6(net) => {
            let first = u128::from(net.network());
            let step = 1u128 << (128 - u32::from(size.clamp(1, 128)));
            Box::new((0..count).filter_map(move |n| {
                Ipv6Net::new(Ipv6Addr::from(first + n * step), size).ok().map(IpNet::V6)
            }))
        }
    }
}

/// Every address of a pool entry: `A-B`, a CIDR or one address.
pub fn addresses_of(entry: &str) -> Box<dyn Iterator<Item = IpAddr>> {
    let number = |text: &str| text.trim().parse::<Ipv4Addr>().ok().map(u32::from);
    if let Some((first, last)) = entry.split_once('-') {
        return match (number(first), number(last)) {
            (Some(first), Some(last)) => Box::new((first..=last).map(|n| IpAddr::V4(n.into()))),
            _ => Box::new(std::iter::empty()),
        };
    }
    match entry.parse::<IpNet>() {
        Ok(net) => Box::new(net.hosts()),
        Err(_) => Box::new(entry.parse::<IpAddr>().ok().into_iter()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{cached, world_with};
    use machinery::value;

    #[test]
    fn nodes_get_the_first_free_range_of_each_family() {
        let config = Config {
            cluster_cidrs: vec!["10.8.0.0/16".into(), "fd00:8::/48".into()],
            ..Config::default()
        };
        let nodes = vec![
            cached(value!({"metadata": {"name": "a"}, "spec": {"podCIDR": "10.8.0.0/24", "podCIDRs": ["10.8.0.0/24", "fd00:8::/64"]}})),
            cached(value!({"metadata": {"name": "b", "uid": "b"}})),
        ];
        let world = world_with(config, [(&NODES, nodes)]);
        let plan = reconcile(&Key::new("", "b"), &world, Timestamp::default());
        let Intent::Patch { patch: client::Patch::Strategic(patch), .. } = &plan.steps[0].intent else { panic!() };
        assert_eq!(patch.at(&["spec", "podCIDRs"]), Some(&value!(["10.8.1.0/24", "fd00:8:0:1::/64"])));
        assert!(reconcile(&Key::new("", "a"), &world, Timestamp::default()).is_empty());
    }

    #[test]
    fn a_used_up_range_is_told() {
        let config = Config { cluster_cidrs: vec!["10.8.0.0/24".into()], ..Config::default() };
        let nodes = vec![
            cached(value!({"metadata": {"name": "a"}, "spec": {"podCIDR": "10.8.0.0/24"}})),
            cached(value!({"metadata": {"name": "b"}})),
        ];
        let plan = reconcile(&Key::new("", "b"), &world_with(config, [(&NODES, nodes)]), Timestamp::default());
        assert!(plan.is_empty());
        assert_eq!(plan.events[0].reason, "CIDRNotAvailable");
    }
}
