//! The fixed part of the ruleset, and the chains that pick one of N endpoints.
//!
//! A new connection takes this way, each step one hash lookup whatever the cluster's size:
//!
//! ```text
//! address . protocol . port ─▶ frontends: policy chain ─▶ ids: the port's number
//!                                         (marks for masquerade)      │
//!            endpoints: number . slot ◀── pick-N: random slot ◀── picks: number
//!                    └▶ DNAT
//! ```
//!
//! Chains exist per number of endpoints, not per Service: an endpoint that comes or goes changes
//! elements of maps alone. Even numbers list a port's endpoints anywhere, the odd number beside
//! lists those of this node. Packets of established connections never come here.

use linux::{
    nft::Family,
    nft_expr::{
        ADDRESS_LOCAL, CT_INVALID, CT_NEW, CT_STATUS_DNAT, CtKey, Expr, Found, Layer, MetaKey, Op,
        Reg, Reject, Side, Update,
    },
    nft_ruleset::{Chain, Field, Hook, Key, Kind, Rule, Ruleset, SetSpec, Value, Verdict, concat},
};

use ipnet::IpNet;

use crate::plan::Policy;

/// The bit of the packet mark that asks for masquerade, as kube-proxy's.
pub const MASQUERADE_MARK: u32 = 0x4000;

/// What the fixed part depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RulesConfig {
    /// The cluster's pod ranges: sources that need no masquerade for a cluster IP.
    pub pod_ranges: Vec<IpNet>,
    /// Host mode: sources whose packets to elsewhere are masqueraded.
    pub masquerade_sources: Vec<IpNet>,
    /// Drop packets that connection tracking cannot place (they would draw a reset).
    pub drop_invalid: bool,
}

/// Names of the sets.
pub mod sets {
    /// address . protocol . port → what to do.
    pub const FRONTENDS: &str = "frontends";
    /// address . protocol . port → the Service port's number.
    pub const IDS: &str = "ids";
    /// number → the chain that picks.
    pub const PICKS: &str = "picks";
    /// number . slot → address . port.
    pub const ENDPOINTS: &str = "endpoints";
    /// number . address . port, for ports with session affinity.
    pub const LIVE: &str = "live";
    /// client . number → address . port, filled by rules.
    pub const AFFINITY: &str = "affinity";
    /// address . protocol . port without endpoints.
    pub const REFUSED: &str = "refused";
    /// Cluster IPs, whose other ports are refused.
    pub const CLUSTER_IPS: &str = "cluster_ips";
    /// address . address of this node's pods.
    pub const HAIRPINS: &str = "hairpins";
    /// Load balancer frontends with source ranges.
    pub const RESTRICTED: &str = "restricted";
    /// ... and the sources that they admit.
    pub const ADMITTED: &str = "admitted";
    pub const POD_RANGES: &str = "pod_ranges";
    pub const MASQUERADE_SOURCES: &str = "masquerade_sources";
}

/// A chain that picks one of `count` endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pick {
    pub count: u32,
    pub local: bool,
    /// Session affinity's timeout; zero for none.
    pub affinity_seconds: u32,
}

/// Offsets and widths of one address family.
#[derive(Clone, Copy)]
pub struct Layout {
    family: Family,
    field: Field,
    bytes: u32,
    source_offset: u32,
    destination_offset: u32,
}

const AFFINITY_DEFAULT_MS: u64 = 10_800_000;
/// Where endpoints are loaded; everything below holds keys.
const TARGET: Reg = Reg(8);
/// Right below [`TARGET`], so that both make one key of [`sets::LIVE`].
const ID: Reg = Reg(7);

impl Layout {
    /// # Panics
    /// For `Inet`: a table holds addresses of one family.
    pub fn of(family: Family) -> Self {
        match family {
            Family::Ipv4 => Self {
                family,
                field: Field::Ipv4,
                bytes: 4,
                source_offset: 12,
                destination_offset: 16,
            },
            Family::Ipv6 => Self {
                family,
                field: Field::Ipv6,
                bytes: 16,
                source_offset: 8,
                destination_offset: 24,
            },
            Family::Inet => panic!("a service table holds one address family"),
        }
    }

    fn words(self) -> u32 {
        self.bytes / 4
    }

    fn source(self, to: Reg) -> Expr {
        let (offset, bytes) = (self.source_offset, self.bytes);
        Expr::Payload { base: Layer::Network, offset, bytes, to }
    }

    fn destination(self, to: Reg) -> Expr {
        let (offset, bytes) = (self.destination_offset, self.bytes);
        Expr::Payload { base: Layer::Network, offset, bytes, to }
    }

    /// Loads address . protocol . port of the destination at register 0.
    fn frontend(self) -> Vec<Expr> {
        let after = self.words();
        vec![
            Expr::Meta { key: MetaKey::TransportProtocol, to: Reg(after) },
            self.destination(Reg(0)),
            Expr::Payload { base: Layer::Transport, offset: 2, bytes: 2, to: Reg(after + 1) },
        ]
    }

    /// Loads the number of the packet's frontend at `to`.
    fn id(self, local: bool, to: Reg) -> Vec<Expr> {
        let mut exprs = self.frontend();
        exprs.push(find(sets::IDS, Reg(0), Found::Data(to)));
        if local {
            let mask = (!1u32).to_ne_bytes().to_vec();
            let xor = 1u32.to_ne_bytes().to_vec();
            exprs.push(Expr::Bitwise { from: to, to, mask, xor });
        }
        exprs
    }

    /// Goes to the chain that picks for the frontend.
    fn go_pick(self, local: bool) -> Rule {
        let mut exprs = self.id(local, ID);
        exprs.push(find(sets::PICKS, ID, Found::Verdict));
        Rule(exprs)
    }

    fn dnat(self) -> Expr {
        Expr::Dnat {
            family: self.family,
            address: TARGET,
            port: Some(Reg(TARGET.0 + self.words())),
        }
    }
}

/// The ruleset of a node that knows no Services.
pub fn fixed(family: Family, config: &RulesConfig) -> Ruleset {
    let layout = Layout::of(family);
    let mut ruleset = Ruleset::default();
    for (name, spec) in set_specs(layout.field) {
        ruleset.sets.insert(name.to_owned(), spec.empty());
    }
    for (name, ranges) in [
        (sets::POD_RANGES, &config.pod_ranges),
        (sets::MASQUERADE_SOURCES, &config.masquerade_sources),
    ] {
        let keys = range_keys(ranges, family).into_iter().map(|key| (key, Value::None));
        ruleset.sets.get_mut(name).expect("declared above").elements.extend(keys);
    }
    for (name, chain) in chains(layout, config) {
        ruleset.chains.insert(name.to_owned(), chain);
    }
    ruleset
}

fn set_specs(address: Field) -> Vec<(&'static str, SetSpec)> {
    let frontend = [address, Field::Protocol, Field::Port];
    let target = [address, Field::Port];
    let mut affinity = SetSpec::map(&[address, Field::Mark], &target);
    affinity.dynamic = true;
    affinity.timeout_ms = Some(AFFINITY_DEFAULT_MS);
    let admitted = [address, Field::Protocol, Field::Port, address];
    vec![
        (sets::FRONTENDS, SetSpec::verdict_map(&frontend)),
        (sets::IDS, SetSpec::map(&frontend, &[Field::Mark])),
        (sets::PICKS, SetSpec::verdict_map(&[Field::Mark])),
        (sets::ENDPOINTS, SetSpec::map(&[Field::Mark, Field::Mark], &target)),
        (sets::LIVE, SetSpec::set(&[Field::Mark, address, Field::Port])),
        (sets::AFFINITY, affinity),
        (sets::REFUSED, SetSpec::set(&frontend)),
        (sets::CLUSTER_IPS, SetSpec::set(&[address])),
        (sets::HAIRPINS, SetSpec::set(&[address, address])),
        (sets::RESTRICTED, SetSpec::set(&frontend)),
        (sets::ADMITTED, SetSpec::set(&admitted).with_intervals()),
        (sets::POD_RANGES, SetSpec::set(&[address]).with_intervals()),
        (sets::MASQUERADE_SOURCES, SetSpec::set(&[address]).with_intervals()),
    ]
}

/// The kind of a set, by its name.
pub fn set_spec(family: Family, name: &str) -> SetSpec {
    let specs = set_specs(Layout::of(family).field);
    let found = specs.into_iter().find(|(known, _)| *known == name);
    found.map(|(_, spec)| spec).expect("only names of `sets` are asked for")
}

fn chains(layout: Layout, config: &RulesConfig) -> Vec<(&'static str, Chain)> {
    const DESTINATION_NAT: i32 = -100;
    const BEFORE_NAT: i32 = -110;
    const FILTER: i32 = 0;
    const SOURCE_NAT: i32 = 100;
    let base = Chain::base;
    let go = |chain: &str| vec![Rule(vec![Expr::Verdict(Verdict::Jump(chain.to_owned()))])];
    let invalid = if config.drop_invalid { vec![drop_invalid()] } else { Vec::new() };
    vec![
        (
            "translate-prerouting",
            base(Kind::Nat, Hook::Prerouting, DESTINATION_NAT, go("services")),
        ),
        ("translate-output", base(Kind::Nat, Hook::Output, DESTINATION_NAT, go("services"))),
        ("admit-prerouting", base(Kind::Filter, Hook::Prerouting, BEFORE_NAT, go("admission"))),
        ("admit-output", base(Kind::Filter, Hook::Output, BEFORE_NAT, go("admission"))),
        ("refuse-prerouting", base(Kind::Filter, Hook::Prerouting, FILTER, go("refusal"))),
        ("refuse-output", base(Kind::Filter, Hook::Output, FILTER, go("refusal"))),
        ("forward", base(Kind::Filter, Hook::Forward, FILTER, invalid)),
        ("postrouting", base(Kind::Nat, Hook::Postrouting, SOURCE_NAT, postrouting(layout))),
        ("services", Chain::of(vec![services(layout)])),
        ("admission", Chain::of(admission(layout))),
        ("refusal", Chain::of(refusal(layout))),
        (chain_of(Policy::Cluster), Chain::of(vec![mark_strangers(layout), layout.go_pick(false)])),
        (
            chain_of(Policy::ClusterLocal),
            Chain::of(vec![mark_strangers(layout), layout.go_pick(true), drop_rule()]),
        ),
        (chain_of(Policy::External), Chain::of(vec![mark(Vec::new()), layout.go_pick(false)])),
        (chain_of(Policy::ExternalLocal), Chain::of(external_local(layout))),
    ]
}

/// The chain of a policy. Frontends that refuse are in a set instead.
pub fn chain_of(policy: Policy) -> &'static str {
    match policy {
        Policy::Cluster => "cluster-ip",
        Policy::ClusterLocal => "cluster-ip-local",
        Policy::External => "external",
        Policy::ExternalLocal => "external-local",
        Policy::Refuse => "refusal",
    }
}

fn services(layout: Layout) -> Rule {
    let mut exprs = layout.frontend();
    exprs.push(find(sets::FRONTENDS, Reg(0), Found::Verdict));
    Rule(exprs)
}

/// Pods and the node itself reach all endpoints through an address of policy `Local`; others
/// only those of this node.
fn external_local(layout: Layout) -> Vec<Rule> {
    let mut from_pods = vec![layout.source(Reg(0)), find(sets::POD_RANGES, Reg(0), Found::Present)];
    from_pods.extend(layout.go_pick(false).0);
    let from_node = vec![
        Expr::AddressType { of: Side::Source, to: Reg(0) },
        Expr::Compare { reg: Reg(0), op: Op::Equal, value: ADDRESS_LOCAL.to_ne_bytes().to_vec() },
        Expr::Verdict(Verdict::Goto(chain_of(Policy::External).to_owned())),
    ];
    vec![Rule(from_pods), Rule(from_node), layout.go_pick(true), drop_rule()]
}

/// Marks packets for masquerade that do not come from a pod.
fn mark_strangers(layout: Layout) -> Rule {
    mark(vec![layout.source(Reg(0)), find(sets::POD_RANGES, Reg(0), Found::Absent)])
}

fn mark(mut condition: Vec<Expr>) -> Rule {
    condition.extend(change_mark(true));
    Rule(condition)
}

fn change_mark(set: bool) -> [Expr; 3] {
    let xor = if set { MASQUERADE_MARK } else { 0 };
    [
        Expr::Meta { key: MetaKey::Mark, to: Reg(0) },
        Expr::Bitwise {
            from: Reg(0),
            to: Reg(0),
            mask: (!MASQUERADE_MARK).to_ne_bytes().to_vec(),
            xor: xor.to_ne_bytes().to_vec(),
        },
        Expr::SetMark { from: Reg(0) },
    ]
}

fn postrouting(layout: Layout) -> Vec<Rule> {
    let words = layout.words();
    let mut marked = vec![Expr::Meta { key: MetaKey::Mark, to: Reg(0) }];
    marked.extend(Expr::any_bit(Reg(0), MASQUERADE_MARK));
    marked.extend(change_mark(false));
    marked.push(Expr::Masquerade);
    let mut hairpin = vec![Expr::Ct { key: CtKey::Status, to: Reg(0) }];
    hairpin.extend(Expr::any_bit(Reg(0), CT_STATUS_DNAT));
    hairpin.extend([layout.source(Reg(0)), layout.destination(Reg(words))]);
    hairpin.extend([find(sets::HAIRPINS, Reg(0), Found::Present), Expr::Masquerade]);
    let outside = vec![
        layout.source(Reg(0)),
        find(sets::MASQUERADE_SOURCES, Reg(0), Found::Present),
        layout.destination(Reg(words)),
        find(sets::MASQUERADE_SOURCES, Reg(words), Found::Absent),
        Expr::Masquerade,
    ];
    vec![Rule(marked), Rule(hairpin), Rule(outside)]
}

fn admission(layout: Layout) -> Vec<Rule> {
    let mut restricted = layout.frontend();
    restricted.push(find(sets::RESTRICTED, Reg(0), Found::Present));
    restricted.push(layout.source(Reg(layout.words() + 2)));
    restricted.push(find(sets::ADMITTED, Reg(0), Found::Absent));
    restricted.push(Expr::Verdict(Verdict::Drop));
    vec![Rule(restricted)]
}

fn refusal(layout: Layout) -> Vec<Rule> {
    let new = || {
        let mut exprs = vec![Expr::Ct { key: CtKey::State, to: Reg(0) }];
        exprs.extend(Expr::any_bit(Reg(0), CT_NEW));
        exprs
    };
    let mut no_endpoints = new();
    no_endpoints.extend(layout.frontend());
    no_endpoints.push(find(sets::REFUSED, Reg(0), Found::Present));
    no_endpoints.push(Expr::Reject(Reject::PortUnreachable));
    let mut no_such_port = new();
    no_such_port.push(layout.destination(Reg(0)));
    no_such_port.push(find(sets::CLUSTER_IPS, Reg(0), Found::Present));
    no_such_port.push(Expr::Reject(Reject::PortUnreachable));
    vec![Rule(no_endpoints), Rule(no_such_port)]
}

fn drop_invalid() -> Rule {
    let mut exprs = vec![Expr::Ct { key: CtKey::State, to: Reg(0) }];
    exprs.extend(Expr::any_bit(Reg(0), CT_INVALID));
    exprs.push(Expr::Verdict(Verdict::Drop));
    Rule(exprs)
}

fn drop_rule() -> Rule {
    Rule(vec![Expr::Verdict(Verdict::Drop)])
}

fn find(set: &str, key: Reg, result: Found) -> Expr {
    Expr::Lookup { set: set.to_owned(), key, result }
}

impl Pick {
    pub fn name(&self) -> String {
        let local = if self.local { "-local" } else { "" };
        match self.affinity_seconds {
            0 => format!("pick{local}-{}", self.count),
            seconds => format!("affinity{local}-{}-{seconds}", self.count),
        }
    }

    pub fn chain(&self, family: Family) -> Chain {
        let layout = Layout::of(family);
        match self.affinity_seconds {
            0 => Chain::of(vec![self.at_random(layout)]),
            _ => Chain::of(vec![self.remembered(layout), self.anew(layout)]),
        }
    }

    /// Loads a random endpoint of the number at `id` at [`TARGET`]; the slot goes beside `id`.
    fn draw(&self, id: Reg) -> [Expr; 2] {
        let slot = Reg(id.0 + 1);
        let choose = match self.count {
            1 => Expr::Immediate { to: slot, value: 0u32.to_ne_bytes().to_vec() },
            modulus => Expr::Random { modulus, to: slot },
        };
        [choose, find(sets::ENDPOINTS, id, Found::Data(TARGET))]
    }

    fn at_random(&self, layout: Layout) -> Rule {
        let id = Reg(layout.words());
        let mut exprs = layout.id(self.local, ID);
        exprs.push(copy(ID, id));
        exprs.extend(self.draw(id));
        exprs.push(layout.dnat());
        Rule(exprs)
    }

    /// Loads client . number at register 0, the number at [`ID`] too.
    fn client(&self, layout: Layout) -> Vec<Expr> {
        let mut exprs = layout.id(self.local, ID);
        exprs.extend([copy(ID, Reg(layout.words())), layout.source(Reg(0))]);
        exprs
    }

    /// The endpoint that the client had, if that still serves.
    fn remembered(&self, layout: Layout) -> Rule {
        let mut exprs = self.client(layout);
        exprs.push(find(sets::AFFINITY, Reg(0), Found::Data(TARGET)));
        exprs.push(find(sets::LIVE, ID, Found::Present));
        exprs.extend([self.remember(Update::Refresh), layout.dnat()]);
        Rule(exprs)
    }

    fn anew(&self, layout: Layout) -> Rule {
        let mut exprs = self.client(layout);
        exprs.extend(self.draw(Reg(layout.words())));
        exprs.extend([self.remember(Update::Delete), self.remember(Update::Refresh)]);
        exprs.push(layout.dnat());
        Rule(exprs)
    }

    fn remember(&self, op: Update) -> Expr {
        Expr::Remember {
            set: sets::AFFINITY.to_owned(),
            op,
            key: Reg(0),
            data: Some(TARGET),
            timeout_ms: u64::from(self.affinity_seconds) * 1000,
        }
    }
}

fn copy(from: Reg, to: Reg) -> Expr {
    Expr::Bitwise { from, to, mask: vec![0xff; 4], xor: vec![0; 4] }
}

/// The keys of disjoint, sorted ranges of one family.
pub fn range_keys(ranges: &[IpNet], family: Family) -> Vec<Key> {
    let of_family = ranges.iter().filter(|net| crate::plan::of_family(net.addr(), family));
    let merged = IpNet::aggregate(&of_family.copied().collect());
    merged.iter().map(|net| Key::range(octets(net.network()), octets(net.broadcast()))).collect()
}

/// The key of a restricted frontend and one admitted range.
pub fn admitted_key(frontend: &[u8], range: &IpNet) -> Key {
    Key::range(
        concat(&[frontend, &octets(range.network())]),
        concat(&[frontend, &octets(range.broadcast())]),
    )
}

pub fn octets(address: std::net::IpAddr) -> Vec<u8> {
    match address {
        std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
        std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
