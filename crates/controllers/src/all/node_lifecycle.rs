//! Notices nodes that have gone silent, and marks every node with taints that say what is wrong.
//!
//! A node is alive as long as its Lease is renewed within `node_monitor_grace_period`; the time
//! counts from when this process saw the renewal. Where agents hold streams, a cut stream counts
//! as silence after `stream_grace_period`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use client::{Cached, Change, Key};
use machinery::{Map, Object, Value, value};
use stdx::Timestamp;

use crate::{
    conditions::{self, Condition},
    plan::*,
    resources::*,
    taints::{self, Taint},
    views::Pod,
};

pub const CONTROLLER: Controller = Controller {
    name: "node-lifecycle-controller",
    account: "node-controller",
    primary: &NODES,
    watches: &[mapped(&LEASES, node_of_lease), mapped(&NODES, silent_nodes), reads(&PODS)],
    rbac: &[
        allow(&NODES, &["patch"]),
        allow_sub(&NODES, "status", &["update"]),
        allow_sub(&PODS, "status", &["patch"]),
    ],
    // One at a time: the rate of evictions is one over all nodes.
    workers: 1,
    work: Work::Reconcile(reconcile),
};

const LEASE_NAMESPACE: &str = "kube-node-lease";
const JUDGED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

fn node_of_lease(change: &Change, _: &World) -> Vec<Key> {
    let key = change.key();
    if key.namespace == LEASE_NAMESPACE { vec![Key::new("", &key.name)] } else { Vec::new() }
}

/// Whether a silent node's pods may go depends on how many other nodes are well.
fn silent_nodes(change: &Change, world: &World) -> Vec<Key> {
    let ready = |node: &Option<Arc<Cached>>| {
        node.as_ref().and_then(|n| n.object().ok()).map(|n| ready_status(&n).to_owned())
    };
    if ready(&change.old) == ready(&change.new) {
        return Vec::new();
    }
    let nodes = world.list(&NODES).all();
    let silent = nodes.iter().filter(|n| n.object().is_ok_and(|n| ready_status(&n) != "True"));
    silent.map(|node| node.key.clone()).collect()
}

fn ready_status(node: &Object) -> &str {
    let ready = conditions::find(node.list_at(&["status", "conditions"]), "Ready");
    ready.and_then(|ready| ready.str_at(&["status"])).unwrap_or_default()
}

fn reconcile(key: &Key, world: &World, now: Timestamp) -> Plan {
    let mut plan = Plan::none();
    let Some(cached) = world.get(&NODES, key) else { return plan };
    let mut node = tree(&NODES, &cached);
    let deadline = deadline(&node, key, world, now);
    if now < deadline {
        plan.requeue_in(deadline.since(now));
    } else {
        mark_unknown(&mut plan, &mut node, now);
    }
    if ready_status(&node) == "Unknown" {
        mark_pods_not_ready(&mut plan, key, world, now);
    }
    retaint(&mut plan, &node, &cached, world, now);
    plan
}

/// When the node counts as lost if nothing more is heard of it.
fn deadline(node: &Object, key: &Key, world: &World, now: Timestamp) -> Timestamp {
    let config = world.config();
    let lease = world.get(&LEASES, &Key::new(LEASE_NAMESPACE, &key.name));
    let heard = lease.map(|lease| lease.received);
    let by_silence = match heard {
        Some(heard) => heard + config.node_monitor_grace_period,
        None => {
            let made = node.creation_timestamp().unwrap_or(now);
            let spoke = conditions::find(node.list_at(&["status", "conditions"]), "Ready")
                .and_then(|ready| Timestamp::parse(ready.str_at(&["lastHeartbeatTime"])?));
            let startup = made + config.node_startup_grace_period;
            spoke.map_or(startup, |at| at + config.node_monitor_grace_period)
        }
    };
    let cut = config.node_streams.as_ref().and_then(|streams| streams.cut_since(&key.name));
    match cut.map(|cut| cut + config.stream_grace_period) {
        // A Lease renewed since then says that the agent reaches another server.
        Some(by_stream) if heard.is_none_or(|heard| heard <= by_stream) => by_stream.min(by_silence),
        _ => by_silence,
    }
}

/// The agent says nothing any more, so nobody knows.
fn mark_unknown(plan: &mut Plan, node: &mut Object, now: Timestamp) {
    let was_ready = ready_status(node) == "True";
    let mut list = node.list_at(&["status", "conditions"]).to_vec();
    for kind in JUDGED {
        let known = conditions::find(&list, kind).cloned();
        if known.as_ref().and_then(|c| c.str_at(&["status"])) == Some("Unknown") {
            continue;
        }
        let (reason, message) = match &known {
            Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
            None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
        };
        let heartbeat = known.as_ref().and_then(|c| c.str_at(&["lastHeartbeatTime"]).map(str::to_owned));
        let heartbeat = heartbeat.or_else(|| node.creation_timestamp().map(Timestamp::rfc3339));
        conditions::set(&mut list, &Condition::new(kind, "Unknown", reason, message), now);
        let set = list.iter_mut().find(|c| c.get("type").and_then(Value::as_str) == Some(kind));
        if let (Some(map), Some(heartbeat)) = (set.and_then(Value::as_map_mut), heartbeat) {
            map.insert("lastHeartbeatTime", heartbeat);
        }
    }
    let mut status = node.map_at(&["status"]).cloned().unwrap_or_default();
    status.insert("conditions", list);
    if plan.set_status(&NODES, node, status.clone()) {
        node.root_mut().insert("status", status);
        if was_ready {
            let text = format!("Node {} status is now: NodeNotReady", node.name());
            plan.event(Note::normal(node, "NodeNotReady", text));
        }
    }
}

/// Nobody vouches for the pods of a silent node, so they must not serve.
fn mark_pods_not_ready(plan: &mut Plan, key: &Key, world: &World, now: Timestamp) {
    for cached in world.list(&PODS).all() {
        let Some(pod) = Pod::read(&cached) else { continue };
        if pod.spec.node_name != key.name || !pod.is_ready() {
            continue;
        }
        let ready = value!([{"type": "Ready", "status": "False", "lastTransitionTime": now.rfc3339()}]);
        let mut patch = Map::new();
        patch.set_at(&["status", "conditions"], ready);
        plan.push(Intent::patch(&PODS, &cached, "status", patch))
            .note(Note::warning(&tree(&PODS, &cached), "NodeNotReady", "Node is not ready"));
    }
}

fn retaint(plan: &mut Plan, node: &Object, cached: &Cached, world: &World, now: Timestamp) {
    let old = taints::of_node(node);
    let mut new: Vec<Taint> = old.iter().filter(|taint| !is_ours(taint)).cloned().collect();
    new.extend(scheduling_taints(node));
    let wanted = match ready_status(node) {
        "Unknown" => Some(taints::UNREACHABLE),
        "False" | "" => Some(taints::NOT_READY),
        _ => None,
    };
    if let Some(key) = wanted {
        let held = old.iter().find(|taint| taint.is(key, "NoExecute")).cloned();
        match may_evict(node, held.as_ref(), world, now) {
            Verdict::Now => {
                let fresh = Taint { time_added: Some(now), ..Taint::new(key, "NoExecute") };
                new.push(held.unwrap_or(fresh));
            }
            Verdict::In(wait) => plan.requeue_in(wait),
            Verdict::No => {}
        }
    }
    let same = old.len() == new.len() && old.iter().all(|taint| new.contains(taint));
    if !same {
        let list: Vec<Value> = new.iter().map(Taint::to_value).collect();
        let mut patch = Map::new();
        patch.set_at(&["spec", "taints"], list);
        plan.push(Intent::patch_at(&NODES, cached, "", patch));
    }
}

fn is_ours(taint: &Taint) -> bool {
    let condition_keys = [
        taints::NOT_READY,
        taints::UNREACHABLE,
        taints::UNSCHEDULABLE,
        taints::MEMORY_PRESSURE,
        taints::DISK_PRESSURE,
        taints::PID_PRESSURE,
        taints::NETWORK_UNAVAILABLE,
    ];
    match taint.effect.as_str() {
        "NoSchedule" => condition_keys.contains(&taint.key.as_str()),
        "NoExecute" => [taints::NOT_READY, taints::UNREACHABLE].contains(&taint.key.as_str()),
        _ => false,
    }
}

fn scheduling_taints(node: &Object) -> Vec<Taint> {
    let list = node.list_at(&["status", "conditions"]);
    let status = |kind| conditions::find(list, kind).and_then(|c| c.str_at(&["status"])).unwrap_or("");
    let wanted = [
        (taints::NOT_READY, status("Ready") == "False"),
        (taints::UNREACHABLE, status("Ready") == "Unknown"),
        (taints::MEMORY_PRESSURE, status("MemoryPressure") == "True"),
        (taints::DISK_PRESSURE, status("DiskPressure") == "True"),
        (taints::PID_PRESSURE, status("PIDPressure") == "True"),
        (taints::NETWORK_UNAVAILABLE, status("NetworkUnavailable") == "True"),
        (taints::UNSCHEDULABLE, node.bool_at(&["spec", "unschedulable"])),
    ];
    wanted.iter().filter(|(_, is)| *is).map(|(key, _)| Taint::new(key, "NoSchedule")).collect()
}

enum Verdict {
    Now,
    In(Duration),
    No,
}

/// How the nodes of one zone are.
#[derive(Default)]
struct Zone {
    ready: usize,
    not_ready: usize,
    /// When a node of it last lost its pods.
    last_eviction: Option<Timestamp>,
}

/// Nodes lose their pods one by one, at the zone's rate; when every zone is dark the fault is
/// likely our own, and none does.
fn may_evict(node: &Object, held: Option<&Taint>, world: &World, now: Timestamp) -> Verdict {
    let zones = zones(world);
    if zones.values().all(|zone| zone.ready == 0) && zones.values().map(|z| z.not_ready).sum::<usize>() > 0 {
        return Verdict::No;
    }
    if held.is_some() {
        return Verdict::Now;
    }
    let default = Zone::default();
    let zone = zones.get(&zone_of(node)).unwrap_or(&default);
    let rate = eviction_rate(zone, world);
    if rate <= 0.0 {
        return Verdict::No;
    }
    let next = zone.last_eviction.map(|last| last + Duration::from_secs_f64(1.0 / rate));
    match next {
        Some(next) if next > now => Verdict::In(next.since(now)),
        _ => Verdict::Now,
    }
}

/// Nodes per second that may lose their pods.
fn eviction_rate(zone: &Zone, world: &World) -> f64 {
    let config = world.config();
    let total = zone.ready + zone.not_ready;
    let disrupted = zone.not_ready > 2
        && zone.ready > 0
        && zone.not_ready as f64 / total as f64 >= config.unhealthy_zone_threshold;
    match disrupted {
        false => config.node_eviction_rate,
        true if total > config.large_cluster_size_threshold => config.secondary_node_eviction_rate,
        true => 0.0,
    }
}

fn zones(world: &World) -> BTreeMap<String, Zone> {
    let mut zones: BTreeMap<String, Zone> = BTreeMap::new();
    for cached in world.list(&NODES).all() {
        let Ok(node) = cached.object() else { continue };
        let zone = zones.entry(zone_of(&node)).or_default();
        if ready_status(&node) == "True" { zone.ready += 1 } else { zone.not_ready += 1 }
        let evicting = taints::of_node(&node).into_iter().filter(|t| t.effect == "NoExecute" && is_ours(t));
        let latest = evicting.filter_map(|taint| taint.time_added).max();
        zone.last_eviction = zone.last_eviction.max(latest);
    }
    zones
}

fn zone_of(node: &Object) -> String {
    let label = |key| node.label(key).unwrap_or_default();
    format!("{}:\0:{}", label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, NodeStreams, scenario::{cached, world_with}};

    fn node(name: &str, ready: &str, evicted_at: Option<i64>) -> Cached {
        let taints: Vec<Value> = evicted_at
            .map(|at| Taint { time_added: Some(Timestamp::from_secs(at)), ..Taint::new(taints::UNREACHABLE, "NoExecute") }.to_value())
            .into_iter()
            .collect();
        cached(value!({
            "metadata": {"name": name, "uid": name, "resourceVersion": "3"},
            "spec": {},
            "status": {"conditions": [{"type": "Ready", "status": ready, "lastHeartbeatTime": "1970-01-01T00:00:00Z"}]},
        }))
        .object()
        .map(|mut o| { o.set_at(&["spec", "taints"], taints); cached(o.into_value()) })
        .unwrap()
    }

    fn lease(name: &str, heard: i64) -> Cached {
        let mut lease = cached(value!({"metadata": {"namespace": "kube-node-lease", "name": name}}));
        lease.received = Timestamp::from_secs(heard);
        lease
    }

    fn pod() -> Cached {
        cached(value!({
            "metadata": {"namespace": "d", "name": "p", "uid": "p"}, "spec": {"nodeName": "a"},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        }))
    }

    fn plan(config: Config, nodes: Vec<Cached>, heard: i64, now: i64) -> Plan {
        let world = world_with(config, [(&NODES, nodes), (&LEASES, vec![lease("a", heard)]), (&PODS, vec![pod()])]);
        reconcile(&Key::new("", "a"), &world, Timestamp::from_secs(now))
    }

    fn taints_of(plan: &Plan) -> Vec<String> {
        let patches = plan.steps.iter().filter_map(|step| match &step.intent {
            Intent::Patch { patch: client::Patch::Strategic(patch), resource, .. } if **resource == NODES => patch.at(&["spec", "taints"]),
            _ => None,
        });
        let text = |t: &Value| format!("{}:{}", t.get("key").unwrap().as_str().unwrap(), t.get("effect").unwrap().as_str().unwrap());
        patches.flat_map(|list| list.as_list().unwrap().iter().map(text).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn a_node_heard_of_lately_is_left_alone_until_its_deadline() {
        let plan = plan(Config::default(), vec![node("a", "True", None), node("b", "True", None)], 100, 130);
        assert!(plan.is_empty());
        assert_eq!(plan.requeue_after, Some(Duration::from_secs(20)));
    }

    #[test]
    fn silence_makes_it_unknown_its_pods_unready_and_taints_it() {
        let plan = plan(Config::default(), vec![node("a", "True", None), node("b", "True", None)], 100, 151);
        assert_eq!(taints_of(&plan), ["node.kubernetes.io/unreachable:NoSchedule", "node.kubernetes.io/unreachable:NoExecute"]);
        let verbs: Vec<_> = plan.steps.iter().map(|s| (s.intent.verb(), s.intent.resource().kind)).collect();
        assert_eq!(verbs, [("update", "Node"), ("patch", "Pod"), ("patch", "Node")]);
    }

    #[test]
    fn a_second_node_waits_for_the_rate_and_a_dark_cluster_evicts_nobody() {
        let nodes = vec![node("a", "Unknown", None), node("b", "True", None), node("c", "Unknown", Some(145))];
        let waiting = plan(Config::default(), nodes, 100, 151);
        assert_eq!(taints_of(&waiting), ["node.kubernetes.io/unreachable:NoSchedule"]);
        assert_eq!(waiting.requeue_after, Some(Duration::from_secs(4)));
        let dark = plan(Config::default(), vec![node("a", "True", None)], 100, 151);
        let again = plan(Config::default(), vec![node("a", "Unknown", None)], 100, 151);
        assert_eq!(taints_of(&again), ["node.kubernetes.io/unreachable:NoSchedule"]);
        assert!(!dark.is_empty());
    }

    #[test]
    fn a_cut_stream_counts_sooner_unless_the_lease_goes_on() {
        let streams = NodeStreams::default();
        streams.cut("a", Timestamp::from_secs(120));
        let config = || Config { node_streams: Some(streams.clone()), ..Config::default() };
        let nodes = || vec![node("a", "True", None), node("b", "True", None)];
        assert_eq!(plan(config(), nodes(), 115, 121).requeue_after, Some(Duration::from_secs(1)));
        assert!(!plan(config(), nodes(), 115, 122).is_empty());
        assert!(plan(config(), nodes(), 125, 126).is_empty());
    }
}
