//! Counts how many pods of each PodDisruptionBudget may be evicted right now. The eviction
//! subresource takes from that count; this controller sets it anew.

use std::{collections::BTreeMap, time::Duration};

use client::{Change, Key};
use machinery::{Map, Object, Value};
use stdx::Timestamp;

use super::deployment::scaled;
use crate::{
    conditions::{self, Condition},
    plan::*,
    resources::*,
    selector::Selector,
    views::Pod,
};

pub const CONTROLLER: Controller = Controller {
    name: "disruption-controller",
    account: "disruption-controller",
    primary: &POD_DISRUPTION_BUDGETS,
    watches: &[
        mapped(&PODS, budgets_of_pod),
        mapped(&DEPLOYMENTS, budgets_of_namespace),
        mapped(&REPLICA_SETS, budgets_of_namespace),
        mapped(&STATEFUL_SETS, budgets_of_namespace),
        mapped(&REPLICATION_CONTROLLERS, budgets_of_namespace),
    ],
    rbac: &[allow_sub(&POD_DISRUPTION_BUDGETS, "status", &["update"])],
    workers: 2,
    work: Work::Reconcile(reconcile),
};

/// An eviction that was granted but not carried out counts for so long.
const DISRUPTION_TIMEOUT: Duration = Duration::from_secs(120);

fn budgets_of_pod(change: &Change, world: &World) -> Vec<Key> {
    let budgets = world.list(&POD_DISRUPTION_BUDGETS).in_namespace(&change.key().namespace);
    let selects = |budget: &std::sync::Arc<client::Cached>| {
        let selector = selector_of(&budget.object().ok()?)?;
        change.both().any(|pod| selector.matches(&pod.labels)).then(|| budget.key.clone())
    };
    budgets.iter().filter_map(selects).collect()
}

/// The size of a workload counts, which changes seldom.
fn budgets_of_namespace(change: &Change, world: &World) -> Vec<Key> {
    let size = |cached: &Option<std::sync::Arc<client::Cached>>| {
        cached.as_ref().and_then(|c| c.object().ok()?.i64_at(&["spec", "replicas"]))
    };
    if size(&change.old) == size(&change.new) {
        return Vec::new();
    }
    let budgets = world.list(&POD_DISRUPTION_BUDGETS).in_namespace(&change.key().namespace);
    budgets.iter().map(|budget| budget.key.clone()).collect()
}

fn reconcile(key: &Key, world: &World, now: Timestamp) -> Plan {
    let mut plan = Plan::none();
    let Some(budget) = world.object(&POD_DISRUPTION_BUDGETS, key) else { return plan };
    let pods = match Selector::parse(budget.at(&["spec", "selector"])) {
        Some(selector) => selected(&selector, key, world),
        None => Vec::new(),
    };
    let disrupted = still_disrupted(&budget, &pods, now, &mut plan);
    let healthy = |pod: &&Pod| !pod.is_deleting() && !disrupted.contains_key(pod.name()) && pod.is_ready();
    let current = pods.iter().filter(healthy).count() as i64;
    let (expected, desired) = targets(&budget, &pods, world);
    let allowed = if expected == 0 { 0 } else { (current - desired).max(0) };
    let mut status = budget.map_at(&["status"]).cloned().unwrap_or_default();
    for (field, count) in [
        ("currentHealthy", current),
        ("desiredHealthy", desired),
        ("expectedPods", expected),
        ("disruptionsAllowed", allowed),
        ("observedGeneration", budget.generation()),
    ] {
        status.insert(field, count);
    }
    status.insert("disruptedPods", disrupted);
    let mut list = budget.list_at(&["status", "conditions"]).to_vec();
    let (flag, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    set_condition(&mut list, flag, reason, budget.generation(), now);
    status.insert("conditions", list);
    plan.set_status(&POD_DISRUPTION_BUDGETS, &budget, status);
    plan
}

fn set_condition(list: &mut Vec<Value>, flag: &'static str, reason: &str, generation: i64, now: Timestamp) {
    conditions::set(list, &Condition::new("DisruptionAllowed", flag, reason, ""), now);
    for condition in list.iter_mut().filter_map(Value::as_map_mut) {
        if condition.str_at(&["type"]) == Some("DisruptionAllowed") {
            condition.insert("observedGeneration", generation);
            condition.insert("message", "");
        }
    }
}

fn selected(selector: &Selector, key: &Key, world: &World) -> Vec<Pod> {
    let pods = world.list(&PODS).in_namespace(&key.namespace);
    pods.iter().filter(|c| selector.matches(&c.labels)).filter_map(|c| Pod::read(c)).collect()
}

/// Evictions granted lately whose pods are not going yet.
fn still_disrupted(budget: &Object, pods: &[Pod], now: Timestamp, plan: &mut Plan) -> Map {
    let known = budget.map_at(&["status", "disruptedPods"]).cloned().unwrap_or_default();
    let mut kept = Map::new();
    for (name, at) in known.iter() {
        let pod = pods.iter().find(|pod| pod.metadata.name == *name && !pod.is_deleting());
        let end = at.as_str().and_then(Timestamp::parse).map(|at| at + DISRUPTION_TIMEOUT);
        if let (Some(_), Some(end)) = (pod, end.filter(|end| *end > now)) {
            plan.requeue_in(end.since(now));
            kept.insert(name.clone(), at.clone());
        }
    }
    kept
}

/// How many pods there should be, and how many of them must stay healthy.
fn targets(budget: &Object, pods: &[Pod], world: &World) -> (i64, i64) {
    let (minimum, maximum) = (budget.at(&["spec", "minAvailable"]), budget.at(&["spec", "maxUnavailable"]));
    match (maximum, minimum) {
        (Some(maximum), _) => {
            let expected = expected_scale(budget, pods, world);
            (expected, (expected - scaled(Some(maximum), expected, true)).max(0))
        }
        (None, Some(Value::Int(minimum))) => (pods.len() as i64, *minimum),
        (None, minimum) => {
            let expected = expected_scale(budget, pods, world);
            (expected, minimum.map_or(0, |minimum| scaled(Some(minimum), expected, true)))
        }
    }
}

/// The wanted sizes of all workloads that the pods belong to.
fn expected_scale(budget: &Object, pods: &[Pod], world: &World) -> i64 {
    let mut workloads: BTreeMap<String, i64> = BTreeMap::new();
    for pod in pods {
        let cached = world.get(&PODS, &Key::new(budget.namespace(), pod.name()));
        if let Some((uid, size)) = cached.and_then(|cached| workload(&cached, world)) {
            workloads.insert(uid, size);
        }
    }
    workloads.values().sum()
}

fn workload(pod: &client::Cached, world: &World) -> Option<(String, i64)> {
    let kinds = [&REPLICA_SETS, &STATEFUL_SETS, &REPLICATION_CONTROLLERS];
    let (resource, key) = kinds.into_iter().find_map(|kind| Some((kind, owner_key(pod, kind)?)))?;
    let owner = world.get(resource, &key)?;
    let deployment = owner_key(&owner, &DEPLOYMENTS).and_then(|key| world.get(&DEPLOYMENTS, &key));
    let top = deployment.unwrap_or(owner);
    let replicas = top.object().ok()?.i64_at(&["spec", "replicas"]).unwrap_or(1);
    Some((top.uid.to_string(), replicas))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{cached, world};
    use machinery::value;

    fn allowed(spec: Value, ready: usize) -> i64 {
        let mut budget = value!({"metadata": {"namespace": "d", "name": "b"}});
        let root = budget.as_map_mut().unwrap();
        root.insert("spec", spec);
        root.set_at(&["spec", "selector"], value!({"matchLabels": {"app": "web"}}));
        let pods = (0..4).map(|i| {
            let status = if i < ready { "True" } else { "False" };
            cached(value!({
                "metadata": {"namespace": "d", "name": format!("p{i}"), "labels": {"app": "web"},
                    "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": "r", "controller": true}]},
                "status": {"conditions": [{"type": "Ready", "status": status}]},
            }))
        });
        let set = cached(value!({"metadata": {"namespace": "d", "name": "rs", "uid": "r"}, "spec": {"replicas": 4}}));
        let world = world([
            (&POD_DISRUPTION_BUDGETS, vec![cached(budget)]), (&PODS, pods.collect()), (&REPLICA_SETS, vec![set]),
            (&DEPLOYMENTS, vec![]), (&STATEFUL_SETS, vec![]), (&REPLICATION_CONTROLLERS, vec![]),
        ]);
        let plan = reconcile(&Key::new("d", "b"), &world, Timestamp::default());
        let Intent::Update { object, .. } = &plan.steps[0].intent else { panic!() };
        object.i64_at(&["status", "disruptionsAllowed"]).unwrap()
    }

    #[test]
    fn counts_what_may_go() {
        assert_eq!(allowed(value!({"minAvailable": 3}), 4), 1);
        assert_eq!(allowed(value!({"minAvailable": 3}), 3), 0);
        assert_eq!(allowed(value!({"maxUnavailable": "50%"}), 4), 2);
        assert_eq!(allowed(value!({"maxUnavailable": 1}), 2), 0);
    }
}
