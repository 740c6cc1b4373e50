//! The node's own packet filter table: masquerade of pods to the outside, host ports.

use std::{net::IpAddr, sync::Mutex, sync::PoisonError};

use ipnet::IpNet;
use linux::{
    netlink::Error,
    nft::{Family, Nft, Table},
    nft_expr::{
        ADDRESS_LOCAL, CT_NEW, CT_STATUS_DNAT, CtKey, Expr, Found, Layer, MetaKey, Op, Reg, Side,
    },
    nft_ruleset::{Chain, Field, Hook, Key, Kind, Rule, Ruleset, SetSpec, Value, concat, diff},
};

use crate::pod::PortMapping;

/// The name of the table unless configured otherwise.
pub const TABLE: &str = "gantry-net";

/// What should be in the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// This node's pods: sources to masquerade.
    pub pods: Vec<IpNet>,
    /// Destinations that see a pod's own address: the cluster's pods.
    pub cluster: Vec<IpNet>,
    pub host_ports: Vec<HostPort>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    pub mapping: PortMapping,
    pub pod: IpAddr,
}

/// The table in the kernel. Calls block for as long as the kernel takes.
pub struct NetTable {
    table: Table,
    state: Mutex<(Nft, Contents, Ruleset)>,
}

const PODS: &str = "pods";
const CLUSTER: &str = "cluster";
const HOST_PORTS: &str = "host_ports";
const HOST_PORTS_BY_ADDRESS: &str = "host_ports_by_address";
const HAIRPINS: &str = "hairpins";

impl NetTable {
    /// Replaces what an earlier run left.
    pub fn open(name: &str, contents: Contents) -> Result<Self, Error> {
        let table = Table::new(Family::Ipv4, name);
        let mut nft = Nft::open()?;
        let ruleset = ruleset(&contents);
        nft.replace(&table, &diff(&Ruleset::default(), &ruleset))?;
        Ok(Self { table, state: Mutex::new((nft, contents, ruleset)) })
    }

    /// Writes the table again when someone else removed it; says whether that was so.
    pub fn restore(&self) -> Result<bool, Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (nft, _, ruleset) = &mut *state;
        if nft.tables()?.contains(&self.table) {
            return Ok(false);
        }
        nft.replace(&self.table, &diff(&Ruleset::default(), ruleset))?;
        Ok(true)
    }

    /// Changes the contents in one transaction; after a refused one they are as before.
    pub fn change(&self, change: impl FnOnce(&mut Contents)) -> Result<(), Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (nft, contents, old) = &mut *state;
        let mut wanted = contents.clone();
        change(&mut wanted);
        let new = ruleset(&wanted);
        nft.commit(&self.table, &diff(old, &new))?;
        (*contents, *old) = (wanted, new);
        Ok(())
    }
}

/// Removes the table from this network namespace; none there is fine.
pub fn remove(name: &str) -> Result<(), Error> {
    let mut nft = Nft::open()?;
    let table = Table::new(Family::Ipv4, name);
    if nft.tables()?.contains(&table) { nft.delete(&table) } else { Ok(()) }
}

/// The table's contents as sets and chains.
pub fn ruleset(contents: &Contents) -> Ruleset {
    let target = [Field::Ipv4, Field::Port];
    let sets = [
        (PODS, SetSpec::set(&[Field::Ipv4]).with_intervals()),
        (CLUSTER, SetSpec::set(&[Field::Ipv4]).with_intervals()),
        (HOST_PORTS, SetSpec::map(&[Field::Protocol, Field::Port], &target)),
        (
            HOST_PORTS_BY_ADDRESS,
            SetSpec::map(&[Field::Ipv4, Field::Protocol, Field::Port], &target),
        ),
        (HAIRPINS, SetSpec::set(&[Field::Ipv4, Field::Ipv4])),
    ];
    let mut ruleset = Ruleset::default();
    ruleset.sets.extend(sets.map(|(name, spec)| (name.to_owned(), spec.empty())));
    for (set, ranges) in [(PODS, &contents.pods), (CLUSTER, &contents.cluster)] {
        for key in range_keys(ranges) {
            insert(&mut ruleset, set, key, Value::None);
        }
    }
    for port in &contents.host_ports {
        add_host_port(&mut ruleset, port);
    }
    ruleset.chains.extend(chains().map(|(name, chain)| (name.to_owned(), chain)));
    ruleset
}

fn add_host_port(ruleset: &mut Ruleset, port: &HostPort) {
    let (IpAddr::V4(pod), mapping) = (port.pod, &port.mapping) else { return };
    let (protocol, number) = ([mapping.protocol as u8], mapping.host_port.to_be_bytes());
    let target = Value::Data(concat(&[&pod.octets(), &mapping.container_port.to_be_bytes()]));
    match mapping.host_ip {
        Some(IpAddr::V4(host)) if !host.is_unspecified() => {
            let key = Key::concat(&[&host.octets(), &protocol, &number]);
            insert(ruleset, HOST_PORTS_BY_ADDRESS, key, target);
        }
        Some(IpAddr::V6(_)) => return,
        _ => insert(ruleset, HOST_PORTS, Key::concat(&[&protocol, &number]), target),
    }
    insert(ruleset, HAIRPINS, Key::concat(&[&pod.octets(), &pod.octets()]), Value::None);
}

fn insert(ruleset: &mut Ruleset, set: &str, key: Key, value: Value) {
    ruleset.sets.get_mut(set).expect("declared above").elements.insert(key, value);
}

fn range_keys(ranges: &[IpNet]) -> Vec<Key> {
    let v4 = ranges.iter().filter(|range| range.addr().is_ipv4()).copied().collect();
    let octets = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let key = |range: &IpNet| Key::range(octets(range.network()), octets(range.broadcast()));
    IpNet::aggregate(&v4).iter().map(key).collect()
}

/// Host ports come right before Services, so that a port in use by a pod is the pod's.
fn chains() -> [(&'static str, Chain); 5] {
    const BEFORE_SERVICES: i32 = -101;
    const BEFORE_NAT: i32 = -110;
    const SOURCE_NAT: i32 = 100;
    let base = Chain::base;
    [
        ("guard", base(Kind::Filter, Hook::Prerouting, BEFORE_NAT, vec![guard_loopback()])),
        ("prerouting", base(Kind::Nat, Hook::Prerouting, BEFORE_SERVICES, host_ports())),
        ("output", base(Kind::Nat, Hook::Output, BEFORE_SERVICES, host_ports())),
        ("postrouting", base(Kind::Nat, Hook::Postrouting, SOURCE_NAT, masquerade())),
        // Room for network policies: verdict maps by pod address.
        ("forward", base(Kind::Filter, Hook::Forward, 0, Vec::new())),
    ]
}

fn source(to: Reg) -> Expr {
    Expr::Payload { base: Layer::Network, offset: 12, bytes: 4, to }
}

fn destination(to: Reg) -> Expr {
    Expr::Payload { base: Layer::Network, offset: 16, bytes: 4, to }
}

fn find(set: &str, key: Reg, result: Found) -> Expr {
    Expr::Lookup { set: set.to_owned(), key, result }
}

/// Goes on when the address at `reg` (which it destroys) is one of 127.0.0.0/8.
fn is_loopback(reg: Reg) -> [Expr; 2] {
    [
        Expr::Bitwise { from: reg, to: reg, mask: vec![0xff, 0, 0, 0], xor: vec![0; 4] },
        Expr::Compare { reg, op: Op::Equal, value: vec![127, 0, 0, 0] },
    ]
}

fn host_ports() -> Vec<Rule> {
    let transport = |at: u32| {
        [
            Expr::Meta { key: MetaKey::TransportProtocol, to: Reg(at) },
            Expr::Payload { base: Layer::Transport, offset: 2, bytes: 2, to: Reg(at + 1) },
        ]
    };
    let dnat = Expr::Dnat { family: Family::Ipv4, address: Reg(8), port: Some(Reg(9)) };
    let local = [
        Expr::AddressType { of: Side::Destination, to: Reg(0) },
        Expr::Compare { reg: Reg(0), op: Op::Equal, value: ADDRESS_LOCAL.to_ne_bytes().to_vec() },
    ];
    let mut by_address = vec![destination(Reg(0))];
    by_address.extend(transport(1));
    by_address.extend([find(HOST_PORTS_BY_ADDRESS, Reg(0), Found::Data(Reg(8))), dnat.clone()]);
    let mut any = local.to_vec();
    any.extend(transport(0));
    any.extend([find(HOST_PORTS, Reg(0), Found::Data(Reg(8))), dnat]);
    vec![Rule(by_address), Rule(any)]
}

fn masquerade() -> Vec<Rule> {
    let translated = || {
        let mut exprs = vec![Expr::Ct { key: CtKey::Status, to: Reg(0) }];
        exprs.extend(Expr::any_bit(Reg(0), CT_STATUS_DNAT));
        exprs
    };
    let mut hairpin = translated();
    hairpin.extend([source(Reg(0)), destination(Reg(1))]);
    hairpin.extend([find(HAIRPINS, Reg(0), Found::Present), Expr::Masquerade]);
    let mut from_loopback = translated();
    from_loopback.push(source(Reg(0)));
    from_loopback.extend(is_loopback(Reg(0)));
    from_loopback.push(destination(Reg(0)));
    from_loopback.extend([find(PODS, Reg(0), Found::Present), Expr::Masquerade]);
    let outside = vec![
        source(Reg(0)),
        find(PODS, Reg(0), Found::Present),
        destination(Reg(0)),
        find(CLUSTER, Reg(0), Found::Absent),
        Expr::Masquerade,
    ];
    vec![Rule(hairpin), Rule(from_loopback), Rule(outside)]
}

/// Host ports on 127.0.0.1 need `route_localnet` on pods' devices; pods themselves must not
/// reach the node's loopback through it.
fn guard_loopback() -> Rule {
    let mut name = b"lo".to_vec();
    name.resize(16, 0);
    let mut exprs = vec![
        Expr::Meta { key: MetaKey::InputName, to: Reg(0) },
        Expr::Compare { reg: Reg(0), op: Op::NotEqual, value: name },
        destination(Reg(0)),
    ];
    exprs.extend(is_loopback(Reg(0)));
    exprs.push(Expr::Ct { key: CtKey::State, to: Reg(0) });
    exprs.extend(Expr::any_bit(Reg(0), CT_NEW));
    exprs.push(Expr::Verdict(linux::nft_ruleset::Verdict::Drop));
    Rule(exprs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::Transport;

    #[test]
    fn a_host_port_is_a_few_elements_and_goes_again() {
        let base = Contents {
            pods: vec!["10.244.1.0/24".parse().unwrap()],
            cluster: vec!["10.244.0.0/16".parse().unwrap()],
            host_ports: vec![],
        };
        let mapping = PortMapping {
            protocol: Transport::Tcp,
            host_ip: None,
            host_port: 8080,
            container_port: 80,
        };
        let mut with = base.clone();
        with.host_ports.push(HostPort { mapping, pod: "10.244.1.7".parse().unwrap() });
        let (before, after) = (ruleset(&base), ruleset(&with));
        assert_eq!(diff(&before, &after).len(), 2, "the port and its hairpin");
        let mut model = before.clone();
        model.apply(&diff(&before, &after)).unwrap();
        assert_eq!(model, after);
        model.apply(&diff(&after, &before)).unwrap();
        assert_eq!(model, before);
        model.apply(&diff(&before, &Ruleset::default())).unwrap();
        assert_eq!(model, Ruleset::default());
    }
}
