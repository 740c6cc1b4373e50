//! The fixed part of the ruleset, and the chains that pick one of N endpoints.
//!
//! A new connection takes this way, each step one hash lookup whatever the cluster's size:
//!
//! ```text
//! prerouting, output   address . protocol . port ─▶ ids: the port's number, kept as ct mark
//!                      address . protocol . port ─▶ frontends: a policy's chain
//!                      number ─▶ picks: pick-N
//!                      number . random slot ─▶ endpoints: DNAT
//! postrouting          original address . protocol . port ─▶ sources: masquerade or not
//! ```
//!
//! Chains exist per number of endpoints, not per Service: an endpoint that comes or goes changes
//! elements of maps alone. Even numbers list a port's endpoints anywhere, the odd number beside
//! lists those of this node. With session affinity a slot leads to the endpoint's own number,
//! which `affinity` remembers for the client and `live` leads to the endpoint, so that a client
//! of an endpoint that is gone is drawn anew. Packets of established connections never come here.
//!
//! A packet that passes while a transaction takes effect may find a chain of the old state and
//! elements of the new. It is dropped rather than let through untranslated: the client sends its
//! first packet again, and no connection is tracked that leads nowhere.
//!
//! Every rule is one that the `nft` program can show: values that pass from one lookup to
//! the next rest in the connection's mark (which is cleared when the connection leaves), never in
//! a bare register. A connection to a port with session affinity loses its packet mark.

use linux::{
    nft::Family,
    nft_expr::{
        ADDRESS_LOCAL, CT_INVALID, CT_NEW, CT_STATUS_DNAT, CtKey, CtOriginalKey, Expr, Found,
        Layer, MetaKey, Op, Reg, Reject, Side, Update,
    },
    nft_ruleset::{Chain, Field, Hook, Key, Kind, Rule, Ruleset, SetSpec, Value, Verdict, concat},
};

use ipnet::IpNet;

use crate::plan::Policy;

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
    /// number . slot → an endpoint's own number, for ports with session affinity.
    pub const SLOTS: &str = "slots";
    /// The endpoints' own numbers.
    pub const NUMBERS: &str = "numbers";
    /// An endpoint's own number → address . port.
    pub const LIVE: &str = "live";
    /// client . number → an endpoint's own number, filled by rules.
    pub const AFFINITY: &str = "affinity";
    /// original address . protocol . port → whether the client's address is kept.
    pub const SOURCES: &str = "sources";
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

    /// Loads address . protocol . port that the connection was opened to at register 0.
    fn original_frontend(self) -> Vec<Expr> {
        let after = self.words();
        let destination = match self.family {
            Family::Ipv6 => CtOriginalKey::DestinationIpv6,
            _ => CtOriginalKey::DestinationIpv4,
        };
        vec![
            Expr::CtOriginal { key: destination, to: Reg(0) },
            Expr::Meta { key: MetaKey::TransportProtocol, to: Reg(after) },
            Expr::CtOriginal { key: CtOriginalKey::DestinationPort, to: Reg(after + 1) },
        ]
    }

    fn pod_source(self, found: Found) -> [Expr; 2] {
        [self.source(Reg(0)), find(sets::POD_RANGES, Reg(0), found)]
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
    let mut affinity = SetSpec::map(&[address, Field::Mark], &[Field::Mark]);
    affinity.dynamic = true;
    affinity.timeout_ms = Some(AFFINITY_DEFAULT_MS);
    let admitted = [address, Field::Protocol, Field::Port, address];
    vec![
        (sets::FRONTENDS, SetSpec::verdict_map(&frontend)),
        (sets::IDS, SetSpec::map(&frontend, &[Field::Mark])),
        (sets::PICKS, SetSpec::verdict_map(&[Field::Mark])),
        (sets::ENDPOINTS, SetSpec::map(&[Field::Mark, Field::Mark], &target)),
        (sets::SLOTS, SetSpec::map(&[Field::Mark, Field::Mark], &[Field::Mark])),
        (sets::NUMBERS, SetSpec::set(&[Field::Mark])),
        (sets::LIVE, SetSpec::map(&[Field::Mark], &target)),
        (sets::SOURCES, SetSpec::verdict_map(&frontend)),
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
    let mut forward = go("refusal");
    forward.extend(config.drop_invalid.then(drop_invalid));
    vec![
        (
            "translate-prerouting",
            base(Kind::Nat, Hook::Prerouting, DESTINATION_NAT, go("services")),
        ),
        ("translate-output", base(Kind::Nat, Hook::Output, DESTINATION_NAT, go("services"))),
        ("admit-prerouting", base(Kind::Filter, Hook::Prerouting, BEFORE_NAT, go("admission"))),
        ("admit-output", base(Kind::Filter, Hook::Output, BEFORE_NAT, go("admission"))),
        ("refuse-input", base(Kind::Filter, Hook::Input, FILTER, go("refusal"))),
        ("refuse-output", base(Kind::Filter, Hook::Output, FILTER, go("refusal"))),
        ("forward", base(Kind::Filter, Hook::Forward, FILTER, forward)),
        ("postrouting", base(Kind::Nat, Hook::Postrouting, SOURCE_NAT, postrouting(layout))),
        ("services", Chain::of(services(layout))),
        ("admission", Chain::of(admission(layout))),
        ("refusal", Chain::of(refusal(layout))),
        (chain_of(Policy::Cluster), Chain::of(vec![go_pick(), drop_rule()])),
        (chain_of(Policy::ClusterLocal), Chain::of(vec![turn_local(), go_pick(), drop_rule()])),
        (chain_of(Policy::External), Chain::of(vec![go_pick(), drop_rule()])),
        (chain_of(Policy::ExternalLocal), Chain::of(external_local(layout))),
        (
            KEEP_PODS,
            Chain::of(vec![clear_mark(), masquerade_if(&layout.pod_source(Found::Absent))]),
        ),
        (KEEP_NONE, Chain::of(vec![clear_mark(), masquerade_if(&[])])),
        (KEEP_OTHERS, Chain::of(vec![clear_mark(), masquerade_if(&from_node())])),
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

/// Masquerades everything that does not come from a pod.
const KEEP_PODS: &str = "sources-keep-pods";
/// Masquerades everything.
const KEEP_NONE: &str = "sources-keep-none";
/// Masquerades what comes from the node itself, which may have picked another node's endpoint.
const KEEP_OTHERS: &str = "sources-keep-others";

/// The chain that treats the sources of a policy's connections.
pub fn source_chain_of(policy: Policy) -> &'static str {
    match policy {
        Policy::Cluster | Policy::ClusterLocal => KEEP_PODS,
        Policy::External | Policy::Refuse => KEEP_NONE,
        Policy::ExternalLocal => KEEP_OTHERS,
    }
}

fn services(layout: Layout) -> Vec<Rule> {
    let mut number = layout.frontend();
    number.push(find(sets::IDS, Reg(0), Found::Data(TARGET)));
    number.push(Expr::SetCtMark { from: TARGET });
    let mut policy = layout.frontend();
    policy.push(find(sets::FRONTENDS, Reg(0), Found::Verdict));
    vec![Rule(number), Rule(policy)]
}

/// Pods and the node itself reach all endpoints through an address of policy `Local`; others
/// only those of this node.
fn external_local(layout: Layout) -> Vec<Rule> {
    let anywhere = |condition: &[Expr]| {
        let mut exprs = condition.to_vec();
        let chain = chain_of(Policy::Cluster).to_owned();
        exprs.push(Expr::Verdict(Verdict::Goto(chain)));
        Rule(exprs)
    };
    let from_pod = anywhere(&layout.pod_source(Found::Present));
    vec![from_pod, anywhere(&from_node()), turn_local(), go_pick(), drop_rule()]
}

fn from_node() -> [Expr; 2] {
    [
        Expr::AddressType { of: Side::Source, to: Reg(0) },
        Expr::Compare { reg: Reg(0), op: Op::Equal, value: ADDRESS_LOCAL.to_ne_bytes().to_vec() },
    ]
}

/// Goes to the chain that picks an endpoint of the number in the connection's mark.
fn go_pick() -> Rule {
    let mark = Expr::Ct { key: CtKey::Mark, to: Reg(0) };
    Rule(vec![mark, find(sets::PICKS, Reg(0), Found::Verdict)])
}

/// From the number of all endpoints to that of this node's.
fn turn_local() -> Rule {
    let (mask, xor) = ((!1u32).to_ne_bytes().to_vec(), 1u32.to_ne_bytes().to_vec());
    Rule(vec![
        Expr::Ct { key: CtKey::Mark, to: Reg(0) },
        Expr::Bitwise { from: Reg(0), to: Reg(0), mask, xor },
        Expr::SetCtMark { from: Reg(0) },
    ])
}

fn clear_mark() -> Rule {
    let zero = Expr::Immediate { to: Reg(0), value: 0u32.to_ne_bytes().to_vec() };
    Rule(vec![zero, Expr::SetCtMark { from: Reg(0) }])
}

fn masquerade_if(condition: &[Expr]) -> Rule {
    let mut exprs = condition.to_vec();
    exprs.push(Expr::Masquerade);
    Rule(exprs)
}

fn postrouting(layout: Layout) -> Vec<Rule> {
    let words = layout.words();
    let translated = || {
        let mut exprs = vec![Expr::Ct { key: CtKey::Status, to: Reg(0) }];
        exprs.extend(Expr::any_bit(Reg(0), CT_STATUS_DNAT));
        exprs
    };
    let mut hairpin = translated();
    hairpin.extend([layout.source(Reg(0)), layout.destination(Reg(words))]);
    hairpin.extend([find(sets::HAIRPINS, Reg(0), Found::Present), Expr::Masquerade]);
    let mut sources = translated();
    sources.extend(layout.original_frontend());
    sources.push(find(sets::SOURCES, Reg(0), Found::Verdict));
    let outside = vec![
        layout.source(Reg(0)),
        find(sets::MASQUERADE_SOURCES, Reg(0), Found::Present),
        layout.destination(Reg(0)),
        find(sets::MASQUERADE_SOURCES, Reg(0), Found::Absent),
        Expr::Masquerade,
    ];
    vec![Rule(hairpin), Rule(sources), Rule(outside)]
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
    no_endpoints.push(Expr::Reject(Reject::PortUnreachable(layout.family)));
    let mut no_such_port = new();
    no_such_port.push(layout.destination(Reg(0)));
    no_such_port.push(find(sets::CLUSTER_IPS, Reg(0), Found::Present));
    no_such_port.push(Expr::Reject(Reject::PortUnreachable(layout.family)));
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
        match self.affinity_seconds {
            0 => format!("pick-{}", self.count),
            seconds => format!("affinity-{}-{seconds}", self.count),
        }
    }

    pub fn chain(&self, family: Family) -> Chain {
        let layout = Layout::of(family);
        match self.affinity_seconds {
            0 => Chain::of(vec![self.at_random(layout), drop_rule()]),
            _ => Chain::of(self.by_client(layout)),
        }
    }

    /// Loads number . random slot at register 0.
    fn draw(&self) -> [Expr; 2] {
        let slot = Expr::Random { modulus: self.count, to: Reg(1) };
        [Expr::Ct { key: CtKey::Mark, to: Reg(0) }, slot]
    }

    fn at_random(&self, layout: Layout) -> Rule {
        let mut exprs = self.draw().to_vec();
        exprs.extend([find(sets::ENDPOINTS, Reg(0), Found::Data(TARGET)), layout.dnat()]);
        Rule(exprs)
    }

    /// The number moves to the packet's mark, so that the connection's can hold the endpoint's.
    fn by_client(&self, layout: Layout) -> Vec<Rule> {
        let packet_mark = |to| Expr::Meta { key: MetaKey::Mark, to };
        let connection_mark = |to| Expr::Ct { key: CtKey::Mark, to };
        let client = [layout.source(Reg(0)), packet_mark(Reg(layout.words()))];
        let move_number = vec![connection_mark(Reg(0)), Expr::SetMark { from: Reg(0) }];
        let mut remembered = client.to_vec();
        remembered.push(find(sets::AFFINITY, Reg(0), Found::Data(TARGET)));
        remembered.push(Expr::SetCtMark { from: TARGET });
        let mut still_lives =
            vec![connection_mark(Reg(0)), find(sets::NUMBERS, Reg(0), Found::Present)];
        still_lives.extend(self.finish(layout, &client));
        let move_back = vec![packet_mark(Reg(0)), Expr::SetCtMark { from: Reg(0) }];
        let mut anew = self.draw().to_vec();
        anew.push(find(sets::SLOTS, Reg(0), Found::Data(TARGET)));
        anew.push(Expr::SetCtMark { from: TARGET });
        let mut forget = client.to_vec();
        forget.extend([connection_mark(TARGET), self.remember(Update::Delete)]);
        let last = self.finish(layout, &client);
        let mut rules: Vec<Rule> =
            [move_number, remembered, still_lives, move_back, anew, forget, last].map(Rule).into();
        rules.push(drop_rule());
        rules
    }

    /// Remembers the endpoint whose number is in the connection's mark, and goes there.
    fn finish(&self, layout: Layout, client: &[Expr]) -> Vec<Expr> {
        let mut exprs = client.to_vec();
        let mark = |to| Expr::Ct { key: CtKey::Mark, to };
        exprs.extend([mark(TARGET), self.remember(Update::Refresh)]);
        exprs.push(Expr::Immediate { to: Reg(0), value: 0u32.to_ne_bytes().to_vec() });
        exprs.push(Expr::SetMark { from: Reg(0) });
        exprs.extend([mark(Reg(0)), find(sets::LIVE, Reg(0), Found::Data(TARGET)), layout.dnat()]);
        exprs
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
