//! From the plans of Services to the table's contents, step by step.
//!
//! The planner knows what the kernel holds. [`Planner::set`] changes what should be there for one
//! Service; [`Planner::commands`] gives the transaction that brings the kernel along. Both cost
//! what the Service costs, whatever the cluster's size.

use std::collections::{BTreeMap, BTreeSet};

use linux::{
    nft::Family,
    nft_ruleset::{Chain, Command, Element, Key, Ruleset, Value, Verdict, concat},
};

use crate::{
    model::{Protocol, ServiceKey},
    plan::{Frontend, Policy, PortPlan, ServicePlan, Target},
    rules::{self, Pick, RulesConfig, admitted_key, chain_of, octets, sets, source_chain_of},
};

/// The table of one address family as it should be and as the kernel has it.
pub struct Planner {
    family: Family,
    fixed: Ruleset,
    services: BTreeMap<ServiceKey, Installed>,
    /// Who wants which element. Two Services may claim one (an external IP): the first by name
    /// has it until it lets go.
    claims: BTreeMap<Place, Vec<(ServiceKey, Value)>>,
    picks: BTreeMap<Pick, usize>,
    numbers: Numbers,
    next_endpoint: u32,
    /// What the kernel holds at the places touched since the last transaction.
    touched: BTreeMap<Place, Option<Value>>,
    touched_picks: BTreeMap<Pick, bool>,
}

/// A set's name and a key in it.
type Place = (&'static str, Key);

#[derive(Default)]
struct Installed {
    plan: ServicePlan,
    numbers: BTreeMap<PortId, u32>,
    /// Endpoints' own numbers, for ports with session affinity.
    endpoints: BTreeMap<(u32, Target), u32>,
    elements: BTreeMap<Place, Value>,
    picks: BTreeSet<Pick>,
}

type PortId = (String, Protocol);

/// Endpoints' own numbers lie above those of ports, and are not used again: what a client
/// remembers of one that is gone leads nowhere.
const FIRST_ENDPOINT: u32 = 1 << 31;

/// Even numbers for Service ports; a number is used again only after its port is gone.
struct Numbers {
    next: u32,
    free: Vec<u32>,
}

impl Planner {
    pub fn new(family: Family, config: &RulesConfig) -> Self {
        Self {
            family,
            fixed: rules::fixed(family, config),
            services: BTreeMap::new(),
            claims: BTreeMap::new(),
            picks: BTreeMap::new(),
            numbers: Numbers { next: 2, free: Vec::new() },
            next_endpoint: FIRST_ENDPOINT,
            touched: BTreeMap::new(),
            touched_picks: BTreeMap::new(),
        }
    }

    pub fn family(&self) -> Family {
        self.family
    }

    /// The plan that holds for a Service.
    pub fn plan_of(&self, key: &ServiceKey) -> Option<&ServicePlan> {
        self.services.get(key).map(|installed| &installed.plan)
    }

    pub fn keys(&self) -> impl Iterator<Item = &ServiceKey> {
        self.services.keys()
    }

    /// Sets what should hold for a Service; an empty plan removes it.
    pub fn set(&mut self, key: &ServiceKey, plan: ServicePlan) {
        if self.plan_of(key) == Some(&plan) {
            return;
        }
        let old = self.services.remove(key).unwrap_or_default();
        let mut new = Installed { numbers: self.assign(old.numbers, &plan), ..Default::default() };
        for port in &plan.ports {
            let number = new.numbers[&(port.name.clone(), port.protocol)];
            self.number_endpoints(&old.endpoints, &mut new.endpoints, port, number);
            new.elements.extend(elements(port, number, &plan, &new.endpoints));
            new.picks.extend(picks(port));
        }
        let addresses = plan.cluster_ips.iter().map(|ip| Key::one(octets(*ip)));
        new.elements.extend(addresses.map(|ip| ((sets::CLUSTER_IPS, ip), Value::None)));

        self.exchange_elements(key, &old.elements, &new.elements);
        self.exchange_picks(&old.picks, &new.picks);
        new.plan = plan;
        if new.plan != ServicePlan::default() {
            self.services.insert(key.clone(), new);
        }
    }

    /// The transaction that brings the kernel to what should be. The caller sends it, or after a
    /// failure starts over with [`Planner::ruleset`].
    pub fn commands(&mut self) -> Vec<Command> {
        let mut changes = Changes::default();
        for ((set, key), before) in std::mem::take(&mut self.touched) {
            let now = self.winner(&(set, key.clone())).cloned();
            if now == before {
                continue;
            }
            if before.is_some() {
                changes.gone.entry(set).or_default().push(key.clone());
            }
            if let Some(value) = now {
                changes.new.entry(set).or_default().push(Element { key, value });
            }
        }
        for (pick, before) in std::mem::take(&mut self.touched_picks) {
            match (before, self.picks.contains_key(&pick)) {
                (false, true) => changes.new_picks.push(pick),
                (true, false) => changes.gone_picks.push(pick),
                _ => {}
            }
        }
        changes.commands(self.family)
    }

    /// Everything that should be in the table.
    pub fn ruleset(&self) -> Ruleset {
        let mut ruleset = self.fixed.clone();
        for (place, claims) in &self.claims {
            let (set, key) = place;
            let set = ruleset.sets.get_mut(*set).expect("every set is declared");
            set.elements.insert(key.clone(), claims[0].1.clone());
        }
        let chain = |pick: &Pick| (pick.name(), pick.chain(self.family));
        ruleset.chains.extend(self.picks.keys().map(chain));
        ruleset
    }

    fn winner(&self, place: &Place) -> Option<&Value> {
        self.claims.get(place).map(|claims| &claims[0].1)
    }

    fn number_endpoints(
        &mut self,
        old: &BTreeMap<(u32, Target), u32>,
        new: &mut BTreeMap<(u32, Target), u32>,
        port: &PortPlan,
        number: u32,
    ) {
        if port.affinity_seconds.unwrap_or(0) == 0 {
            return;
        }
        for target in port.cluster.iter().chain(&port.local) {
            let key = (number, *target);
            new.entry(key).or_insert_with(|| {
                old.get(&key).copied().unwrap_or_else(|| {
                    self.next_endpoint = self.next_endpoint.wrapping_add(1).max(FIRST_ENDPOINT);
                    self.next_endpoint
                })
            });
        }
    }

    fn assign(
        &mut self,
        mut old: BTreeMap<PortId, u32>,
        plan: &ServicePlan,
    ) -> BTreeMap<PortId, u32> {
        let mut numbers = BTreeMap::new();
        for port in &plan.ports {
            let id = (port.name.clone(), port.protocol);
            let number = old.remove(&id).unwrap_or_else(|| self.numbers.take());
            numbers.insert(id, number);
        }
        self.numbers.free.extend(old.into_values());
        numbers
    }

    fn exchange_elements(
        &mut self,
        owner: &ServiceKey,
        old: &BTreeMap<Place, Value>,
        new: &BTreeMap<Place, Value>,
    ) {
        for place in old.iter().filter(|(k, v)| new.get(k) != Some(v)).map(|(k, _)| k) {
            self.touch(place);
            let claims = self.claims.get_mut(place).expect("it was claimed");
            claims.retain(|(claimant, _)| claimant != owner);
            if claims.is_empty() {
                self.claims.remove(place);
            }
        }
        for (place, value) in new.iter().filter(|(k, v)| old.get(k) != Some(v)) {
            self.touch(place);
            let claims = self.claims.entry(place.clone()).or_default();
            let position = claims.partition_point(|(claimant, _)| claimant < owner);
            claims.insert(position, (owner.clone(), value.clone()));
        }
    }

    fn exchange_picks(&mut self, old: &BTreeSet<Pick>, new: &BTreeSet<Pick>) {
        for pick in old.symmetric_difference(new) {
            let existed = self.picks.contains_key(pick);
            self.touched_picks.entry(*pick).or_insert(existed);
        }
        for pick in new.difference(old) {
            *self.picks.entry(*pick).or_insert(0) += 1;
        }
        for pick in old.difference(new) {
            let count = self.picks.get_mut(pick).expect("it was counted");
            *count -= 1;
            if *count == 0 {
                self.picks.remove(pick);
            }
        }
    }

    fn touch(&mut self, place: &Place) {
        if !self.touched.contains_key(place) {
            self.touched.insert(place.clone(), self.winner(place).cloned());
        }
    }
}

impl Numbers {
    fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.next += 2;
            self.next - 2
        })
    }
}

#[derive(Default)]
struct Changes {
    gone: BTreeMap<&'static str, Vec<Key>>,
    new: BTreeMap<&'static str, Vec<Element>>,
    new_picks: Vec<Pick>,
    gone_picks: Vec<Pick>,
}

impl Changes {
    /// Chains come before the elements that lead to them, and go after.
    fn commands(self, family: Family) -> Vec<Command> {
        let mut commands = Vec::new();
        for pick in self.new_picks {
            let (chain, rules) = (pick.name(), pick.chain(family).rules);
            commands.push(Command::AddChain { chain: chain.clone(), spec: Chain::default() });
            let add = |rule| Command::AddRule { chain: chain.clone(), rule };
            commands.extend(rules.into_iter().map(add));
        }
        for (set, keys) in self.gone {
            let spec = rules::set_spec(family, set);
            commands.push(Command::DeleteElements { set: set.to_owned(), spec, keys });
        }
        for (set, elements) in self.new {
            let spec = rules::set_spec(family, set);
            commands.push(Command::AddElements { set: set.to_owned(), spec, elements });
        }
        for pick in self.gone_picks {
            commands.push(Command::FlushChain { chain: pick.name() });
            commands.push(Command::DeleteChain { chain: pick.name() });
        }
        commands
    }
}

/// Everything that one Service port puts into the sets.
fn elements(
    port: &PortPlan,
    number: u32,
    plan: &ServicePlan,
    endpoints: &BTreeMap<(u32, Target), u32>,
) -> Vec<(Place, Value)> {
    let mut all = Vec::new();
    for frontend in &port.frontends {
        all.extend(frontend_elements(frontend, port.protocol, number, plan));
    }
    for (local, targets) in [(0, &port.cluster), (1, &port.local)] {
        let own = |target: &Target| endpoints.get(&(number, *target)).copied();
        all.extend(target_elements(port, number | local, targets, own));
    }
    for address in &port.hairpins {
        let bytes = octets(*address);
        all.push(((sets::HAIRPINS, Key::concat(&[&bytes, &bytes])), Value::None));
    }
    all
}

fn frontend_elements(
    frontend: &Frontend,
    protocol: Protocol,
    number: u32,
    plan: &ServicePlan,
) -> Vec<(Place, Value)> {
    let address = octets(frontend.address);
    let key = concat(&[&address, &[protocol as u8], &frontend.port.to_be_bytes()]);
    let mut all = match frontend.policy {
        Policy::Refuse => vec![((sets::REFUSED, Key::one(key.clone())), Value::None)],
        policy => {
            let verdict = Value::Verdict(Verdict::Goto(chain_of(policy).to_owned()));
            let id = Value::Data(number.to_ne_bytes().to_vec());
            let sources = Value::Verdict(Verdict::Goto(source_chain_of(policy).to_owned()));
            vec![
                ((sets::FRONTENDS, Key::one(key.clone())), verdict),
                ((sets::IDS, Key::one(key.clone())), id),
                ((sets::SOURCES, Key::one(key.clone())), sources),
            ]
        }
    };
    if frontend.restricted {
        all.push(((sets::RESTRICTED, Key::one(key.clone())), Value::None));
        let admitted = plan.source_ranges.iter().map(|range| admitted_key(&key, range));
        all.extend(admitted.map(|key| ((sets::ADMITTED, key), Value::None)));
    }
    all
}

fn target_elements(
    port: &PortPlan,
    number: u32,
    targets: &[Target],
    own_number: impl Fn(&Target) -> Option<u32>,
) -> Vec<(Place, Value)> {
    let Some(pick) = pick_of(port, targets) else { return Vec::new() };
    let id = number.to_ne_bytes();
    let verdict = Value::Verdict(Verdict::Goto(pick.name()));
    let mut all = vec![((sets::PICKS, Key::one(id)), verdict)];
    for (slot, target) in targets.iter().enumerate() {
        let slot = Key::concat(&[&id, &(slot as u32).to_ne_bytes()]);
        let (address, port) = (octets(target.address), target.port.to_be_bytes());
        let destination = Value::Data(concat(&[&address, &port]));
        match own_number(target).map(u32::to_ne_bytes) {
            None => all.push(((sets::ENDPOINTS, slot), destination)),
            Some(own) => all.extend([
                ((sets::SLOTS, slot), Value::Data(own.to_vec())),
                ((sets::NUMBERS, Key::one(own)), Value::None),
                ((sets::LIVE, Key::one(own)), destination),
            ]),
        }
    }
    all
}

fn picks(port: &PortPlan) -> impl Iterator<Item = Pick> {
    [&port.cluster, &port.local].into_iter().filter_map(|targets| pick_of(port, targets))
}

fn pick_of(port: &PortPlan, targets: &[Target]) -> Option<Pick> {
    let count = u32::try_from(targets.len()).ok().filter(|count| *count > 0)?;
    Some(Pick { count, affinity_seconds: port.affinity_seconds.unwrap_or(0) })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn service(number: u8) -> ServiceKey {
        ServiceKey { namespace: "default".into(), name: format!("svc-{number}") }
    }

    fn address(a: u8, b: u8) -> IpAddr {
        IpAddr::from([10, 96, a, b])
    }

    fn port_plan(seed: u64, owner: u8) -> PortPlan {
        let targets = |count: u64| {
            let target = |n| Target { address: address(200, n as u8 + owner % 3), port: 8080 };
            (0..count).map(target).collect::<Vec<_>>()
        };
        let policies =
            [Policy::Cluster, Policy::ClusterLocal, Policy::External, Policy::ExternalLocal];
        let cluster = targets(seed % 5);
        let policy =
            if cluster.is_empty() { Policy::Refuse } else { policies[(seed / 5 % 4) as usize] };
        // The second frontend is shared among services on purpose.
        let frontends = [address(0, owner), address(9, (seed / 20 % 2) as u8)]
            .map(|address| Frontend { address, port: 80, policy, restricted: seed % 7 == 0 });
        PortPlan {
            name: format!("p{}", seed % 2),
            protocol: if seed % 3 == 0 { Protocol::Udp } else { Protocol::Tcp },
            frontends: frontends.to_vec(),
            local: targets(seed % 3 % (cluster.len() as u64 + 1)),
            hairpins: cluster.iter().take(1).map(|target| target.address).collect(),
            cluster,
            affinity_seconds: (seed % 11 == 0).then_some(60),
        }
    }

    fn service_plan(seed: u64, owner: u8) -> ServicePlan {
        if seed % 6 == 0 {
            return ServicePlan::default();
        }
        ServicePlan {
            ports: vec![port_plan(seed, owner)],
            cluster_ips: vec![address(0, owner)],
            source_ranges: vec!["10.0.0.0/8".parse().unwrap()],
        }
    }

    /// What a packet to a frontend may reach, read from the ruleset as the kernel would.
    fn reachable(ruleset: &Ruleset, to: IpAddr, protocol: u8, port: u16) -> BTreeSet<Vec<u8>> {
        let key = Key::concat(&[&octets(to), &[protocol], &port.to_be_bytes()]);
        let Some(Value::Data(id)) = ruleset.sets[sets::IDS].elements.get(&key) else {
            return BTreeSet::new();
        };
        let Some(Value::Verdict(Verdict::Goto(chain))) =
            ruleset.sets[sets::PICKS].elements.get(&Key::one(id.clone()))
        else {
            return BTreeSet::new();
        };
        let count: u32 = chain.split('-').nth(1).unwrap().parse().unwrap();
        (0..count)
            .map(|slot| {
                let place = Key::concat(&[id, &slot.to_ne_bytes()]);
                let data = |set: &str, key: &Key| match ruleset.sets[set].elements.get(key) {
                    Some(Value::Data(target)) => Some(target.clone()),
                    _ => None,
                };
                data(sets::ENDPOINTS, &place)
                    .or_else(|| data(sets::LIVE, &Key::one(data(sets::SLOTS, &place)?)))
                    .expect("every slot leads to an endpoint")
            })
            .collect()
    }

    proptest! {
        #[test]
        fn commands_take_the_kernel_to_the_ruleset(
            steps in prop::collection::vec((0u8..6, 0u64..10_000, any::<bool>()), 1..60)
        ) {
            let mut planner = Planner::new(Family::Ipv4, &RulesConfig::default());
            let mut kernel = planner.ruleset();
            let fresh = kernel.clone();
            for (owner, seed, send) in steps {
                planner.set(&service(owner), service_plan(seed, owner));
                if send {
                    kernel.apply(&planner.commands()).map_err(TestCaseError::fail)?;
                    prop_assert_eq!(&kernel, &planner.ruleset());
                }
            }
            for owner in 0..6 {
                planner.set(&service(owner), ServicePlan::default());
            }
            kernel.apply(&planner.commands()).map_err(TestCaseError::fail)?;
            prop_assert_eq!(kernel, fresh, "nothing is left of services that are gone");
            prop_assert_eq!(planner.commands(), vec![]);
        }

        #[test]
        fn frontends_reach_exactly_their_endpoints(seed in 1u64..10_000) {
            let mut planner = Planner::new(Family::Ipv4, &RulesConfig::default());
            let plan = service_plan(seed, 1);
            planner.set(&service(1), plan.clone());
            let ruleset = planner.ruleset();
            for port in &plan.ports {
                for frontend in &port.frontends {
                    let found = reachable(&ruleset, frontend.address, port.protocol as u8, 80);
                    let wanted = port.cluster.iter().map(|target| {
                        concat(&[&octets(target.address), &target.port.to_be_bytes()])
                    });
                    prop_assert_eq!(found, wanted.collect::<BTreeSet<_>>());
                }
            }
        }
    }

    #[test]
    fn an_endpoint_change_touches_its_own_service_only() {
        let mut planner = Planner::new(Family::Ipv4, &RulesConfig::default());
        let with = |count: u8| ServicePlan {
            ports: vec![PortPlan {
                cluster: (0..count).map(|n| Target { address: address(200, n), port: 1 }).collect(),
                affinity_seconds: None,
                ..port_plan(5, 3)
            }],
            ..ServicePlan::default()
        };
        for owner in 0..100 {
            let mut plan = with(3);
            plan.ports[0].frontends.truncate(1);
            plan.ports[0].frontends[0].address = address(1, owner);
            planner.set(&service(owner), plan);
        }
        planner.commands();
        let mut plan = planner.plan_of(&service(7)).unwrap().clone();
        plan.ports[0].cluster.pop();
        planner.set(&service(7), plan);
        let elements: usize = planner
            .commands()
            .iter()
            .map(|command| match command {
                Command::AddElements { elements, .. } => elements.len(),
                Command::DeleteElements { keys, .. } => keys.len(),
                _ => 0,
            })
            .sum();
        // The slot that goes, and the chain of the picks: one out, one in.
        assert_eq!(elements, 3);
    }
}
