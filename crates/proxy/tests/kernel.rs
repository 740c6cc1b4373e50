//! The planner's transactions against the kernel itself, in a namespace that only this test
//! holds. Needs root: set GANTRY_ROOT_TESTS=1.

use std::{collections::BTreeMap, net::IpAddr};

use linux::{
    netns::NetNs,
    nft::{Family, Nft, Table},
    nft_ruleset::{Ruleset, Value},
};
use proxy::{
    RulesConfig,
    apply::Kernel,
    model::{Protocol, ServiceKey},
    plan::{Frontend, Policy, PortPlan, ServicePlan, Target},
    planner::Planner,
};

fn root_tests() -> bool {
    let wanted = std::env::var_os("GANTRY_ROOT_TESTS").is_some();
    if !wanted {
        eprintln!("skipped: needs root, set GANTRY_ROOT_TESTS=1");
    }
    wanted
}

fn address(family: Family, a: u8, b: u8) -> IpAddr {
    match family {
        Family::Ipv6 => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, a.into(), b.into()]),
        _ => IpAddr::from([10, 96, a, b]),
    }
}

/// One Service, different in every respect with every seed.
fn plan(family: Family, seed: u64, owner: u8) -> ServicePlan {
    if seed % 7 == 3 {
        return ServicePlan::default();
    }
    let policies = [Policy::Cluster, Policy::ClusterLocal, Policy::External, Policy::ExternalLocal];
    let cluster: Vec<Target> = (0..seed % 6)
        .map(|n| Target { address: address(family, 200, n as u8), port: 8080 })
        .collect();
    let policy =
        if cluster.is_empty() { Policy::Refuse } else { policies[(seed / 6 % 4) as usize] };
    let frontend = |a, port| Frontend {
        address: address(family, a, owner),
        port,
        policy,
        restricted: seed % 2 == 0,
    };
    ServicePlan {
        ports: vec![PortPlan {
            name: String::new(),
            protocol: [Protocol::Tcp, Protocol::Udp, Protocol::Sctp][(seed % 3) as usize],
            frontends: vec![frontend(0, 80), frontend(1, 443)],
            local: cluster.iter().take((seed % 3) as usize).copied().collect(),
            hairpins: cluster.iter().map(|target| target.address).collect(),
            cluster,
            affinity_seconds: (seed % 5 == 0).then_some(60 + (seed % 2) as u32),
        }],
        cluster_ips: vec![address(family, 0, owner)],
        source_ranges: match family {
            Family::Ipv6 => vec!["fd01::/64".parse().unwrap(), "fd02::/32".parse().unwrap()],
            _ => vec!["10.0.0.0/8".parse().unwrap(), "192.0.2.0/24".parse().unwrap()],
        },
    }
}

/// Elements of non-interval sets as the kernel and as the planner see them.
fn compare(nft: &mut Nft, table: &Table, wanted: &Ruleset) {
    let mut chains: Vec<String> = wanted.chains.keys().cloned().collect();
    chains.sort();
    assert_eq!(nft.chains(table).unwrap(), chains);
    let rules: BTreeMap<String, usize> = nft.rule_counts(table).unwrap().into_iter().collect();
    for (name, chain) in &wanted.chains {
        assert_eq!(rules.get(name).copied().unwrap_or(0), chain.rules.len(), "rules of {name}");
    }
    for (name, set) in &wanted.sets {
        let shown = nft.elements(table, name).unwrap();
        if set.spec.interval {
            let starts = shown.iter().filter(|element| !element.interval_end).count();
            assert_eq!(starts, set.elements.len(), "ranges of {name}");
            continue;
        }
        let shown: Vec<(Vec<u8>, Value)> = shown.into_iter().map(|e| (e.key, e.value)).collect();
        let wanted: Vec<(Vec<u8>, Value)> =
            set.elements.iter().map(|(key, value)| (key.from.clone(), value.clone())).collect();
        assert_eq!(shown, wanted, "elements of {name}");
    }
}

/// Firewall tools of the machine list all tables: ours must not be what they stumble over.
fn list_by_program(namespace: &NetNs) {
    let mut list = std::process::Command::new("nft");
    let output = namespace.run(move || list.args(["list", "ruleset"]).output()).unwrap();
    let Ok(output) = output else { return eprintln!("no nft program to list the table with") };
    let text = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complaints.is_empty(), "{complaints}");
    assert!(text.contains("chain services"), "{text}");
    if std::env::var_os("GANTRY_SHOW").is_some() {
        println!("{text}");
    }
}

fn follow(family: Family) {
    let namespace = NetNs::create().unwrap();
    let mut nft = Nft::open_in(&namespace).unwrap();
    let mut kernel = Kernel::open_in(&namespace).unwrap();
    let table = Table::new(family, "net-test");
    let config = RulesConfig {
        pod_ranges: vec!["10.244.0.0/16".parse().unwrap(), "fd00:1::/64".parse().unwrap()],
        masquerade_sources: vec!["10.0.0.0/8".parse().unwrap()],
        drop_invalid: true,
    };
    let mut planner = Planner::new(family, &config);
    planner.commands();
    kernel.replace(&table, &planner.ruleset()).unwrap();
    let mut seed = 11u64;
    for step in 0..120 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let owner = (seed >> 60) as u8;
        let key = ServiceKey { namespace: "n".into(), name: format!("s{owner}") };
        planner.set(&key, plan(family, seed >> 20, owner));
        if step % 3 != 2 {
            kernel.commit(&table, &planner.commands()).unwrap();
        }
        if step % 20 == 19 {
            kernel.commit(&table, &planner.commands()).unwrap();
            compare(&mut nft, &table, &planner.ruleset());
        }
    }
    kernel.replace(&table, &planner.ruleset()).unwrap();
    compare(&mut nft, &table, &planner.ruleset());
    list_by_program(&namespace);
    nft.delete(&table).unwrap();
    nft.delete(&table).unwrap();
    assert_eq!(nft.tables().unwrap(), []);
}

#[test]
fn the_kernel_follows_the_planner_in_ipv4() {
    if root_tests() {
        follow(Family::Ipv4);
    }
}

#[test]
fn the_kernel_follows_the_planner_in_ipv6() {
    if root_tests() {
        follow(Family::Ipv6);
    }
}

#[test]
fn ten_thousand_services_fit_one_transaction_and_one_more_is_quick() {
    if !root_tests() {
        return;
    }
    let namespace = NetNs::create().unwrap();
    let mut kernel = Kernel::open_in(&namespace).unwrap();
    let table = Table::new(Family::Ipv4, "net-test");
    let mut planner = Planner::new(Family::Ipv4, &RulesConfig::default());
    let service = |number: u32, endpoints: u8| {
        let [_, _, a, b] = number.to_be_bytes();
        let key = ServiceKey { namespace: "n".into(), name: format!("s{number}") };
        let mut plan = plan(Family::Ipv4, 1, 0);
        plan.source_ranges.clear();
        plan.cluster_ips = vec![IpAddr::from([10, 97, a, b])];
        plan.ports[0].frontends.truncate(1);
        plan.ports[0].frontends[0].address = IpAddr::from([10, 97, a, b]);
        plan.ports[0].frontends[0].policy = Policy::Cluster;
        let target = |n| Target { address: IpAddr::from([10, 98, n, b]), port: 80 };
        plan.ports[0].cluster = (0..endpoints).map(target).collect();
        (key, plan)
    };
    for number in 0..10_000 {
        let (key, plan) = service(number, 3);
        planner.set(&key, plan);
    }
    planner.commands();
    kernel.replace(&table, &planner.ruleset()).unwrap();
    for number in 0..20 {
        let (key, plan) = service(number * 400, 4);
        planner.set(&key, plan);
        let commands = planner.commands();
        assert!(commands.len() < 10, "a change of one service is a few commands");
        kernel.commit(&table, &commands).unwrap();
    }
}
