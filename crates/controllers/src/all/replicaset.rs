//! Keeps `spec.replicas` pods of one template alive.

use std::{cmp::Ordering, collections::BTreeMap, sync::Arc};

use client::{Cached, Key, Resource};
use machinery::{Map, Object, Value};
use stdx::Timestamp;

use crate::{
    conditions::{self, Condition},
    plan::*,
    pod_template::{generated_name, pod_from_template},
    resources::*,
    selector::Selector,
    views::Pod,
};

pub const CONTROLLER: Controller = Controller {
    name: "replicaset-controller",
    account: "replicaset-controller",
    primary: &REPLICA_SETS,
    watches: &[adopted_by(&PODS)],
    rbac: &[allow(&PODS, &["create", "delete", "patch"]), allow_sub(&REPLICA_SETS, "status", &["update"])],
    workers: 5,
    work: Work::Reconcile(reconcile),
};

/// At most this many pods are made or deleted in one go.
const BURST: usize = 500;

fn reconcile(key: &Key, world: &World, now: Timestamp) -> Plan {
    reconcile_kind(&REPLICA_SETS, key, world, now)
}

/// The same for ReplicaSets and ReplicationControllers, which differ in name alone.
pub fn reconcile_kind(
    resource: &'static Resource,
    key: &Key,
    world: &World,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::none();
    let Some(set) = world.object(resource, key) else { return plan };
    let Some(selector) = selector_of(&set) else { return plan };
    let (candidates, terminating) = candidates(world, &set, &selector);
    let cached: Vec<Arc<Cached>> = candidates.iter().map(|(cached, _)| cached.clone()).collect();
    let claimed = claim(&mut plan, &PODS, &set, &selector, &cached, |_| true);
    let adopting = !plan.is_empty();
    let mine: Vec<(Arc<Cached>, Pod)> =
        {
        let mut claimed = claimed.iter().peekable();
        // Both are in the same order, so one pass suffices.
        let is_claimed = |c: &Arc<Cached>| claimed.next_if(|m| Arc::ptr_eq(m, c)).is_some();
        filter_cached(candidates, is_claimed)
    };
    let wanted = set.i64_at(&["spec", "replicas"]).unwrap_or(1).max(0);
    let mut status = status(&set, &mine, wanted, world, key, now, &mut plan);
    if set.kind() == "ReplicaSet" {
        status.insert("terminatingReplicas", terminating);
    }
    plan.set_status(resource, &set, status);
    // Adopted pods count from the next look on; making others now would be one too many.
    if !set.is_deleting() && !adopting {
        manage(&mut plan, &set, wanted, mine, world, now);
    }
    plan
}

/// Active pods that are the set's or could be, and how many of its own are ending. What belongs to
/// others is told by its metadata and not decoded.
fn candidates(world: &World, set: &Object, selector: &Selector) -> (Vec<(Arc<Cached>, Pod)>, i64) {
    let is_candidate = |cached: &Arc<Cached>| match cached.controller() {
        Some(owner) => owner.uid == set.uid(),
        None => selector.matches(&cached.labels),
    };
    let pods = world.list(&PODS).in_namespace(set.namespace());
    let mut terminating = 0;
    let mut active = Vec::new();
    for cached in pods.into_iter().filter(is_candidate) {
        let Some(pod) = Pod::read(&cached) else { continue };
        if pod.is_active() {
            active.push((cached, pod));
        } else if !pod.is_finished() && cached.controller().is_some() {
            terminating += 1;
        }
    }
    (active, terminating)
}

fn filter_cached(
    pods: Vec<(Arc<Cached>, Pod)>,
    mut keep: impl FnMut(&Arc<Cached>) -> bool,
) -> Vec<(Arc<Cached>, Pod)> {
    pods.into_iter().filter(|(cached, _)| keep(cached)).collect()
}

fn manage(
    plan: &mut Plan,
    set: &Object,
    wanted: i64,
    mut mine: Vec<(Arc<Cached>, Pod)>,
    world: &World,
    now: Timestamp,
) {
    let missing = wanted - mine.len() as i64;
    if missing > 0 {
        create(plan, set, (missing as usize).min(BURST), now);
    } else if missing < 0 {
        let surplus = ((-missing) as usize).min(BURST);
        let crowding = pods_per_node(set, world, &mine);
        mine.sort_by(|a, b| deletion_order(&a.1, &b.1, &crowding, now));
        for (cached, pod) in &mine[..surplus] {
            plan.push(Intent::delete(&PODS, cached))
                .note(Note::normal(set, "SuccessfulDelete", format!("Deleted pod: {}", pod.name())))
                .failure(Note::warning(set, "FailedDelete", "Error deleting: "));
        }
    }
}

fn create(plan: &mut Plan, set: &Object, count: usize, now: Timestamp) {
    let template = set.at(&["spec", "template"]).cloned().unwrap_or_default();
    for index in 0..count {
        let name = generated_name(set.name(), set.uid(), now, index);
        let mut pod = pod_from_template(&template, set, &name);
        pod.metadata_mut().insert("generateName", format!("{}-", set.name()));
        plan.push(Intent::Create { resource: &PODS, object: pod })
            .note(Note::normal(set, "SuccessfulCreate", format!("Created pod: {name}")))
            .failure(Note::warning(set, "FailedCreate", "Error creating: "));
    }
}

/// How many active pods of the same owner (a Deployment's other ReplicaSets too) each node has.
fn pods_per_node(set: &Object, world: &World, mine: &[(Arc<Cached>, Pod)]) -> BTreeMap<String, usize> {
    let mut nodes = BTreeMap::new();
    let mut count = |pod: &Pod| {
        if !pod.spec.node_name.is_empty() {
            *nodes.entry(pod.spec.node_name.to_string()).or_default() += 1;
        }
    };
    let Some(owner) = set.controller_reference() else {
        mine.iter().for_each(|(_, pod)| count(pod));
        return nodes;
    };
    let siblings = world.find(&REPLICA_SETS).map(|sets| sets.controlled_by(&owner.uid)).unwrap_or_default();
    for sibling in siblings {
        let pods = world.list(&PODS).controlled_by(&sibling.uid);
        pods.iter().filter_map(|c| Pod::read(c)).filter(Pod::is_active).for_each(|pod| count(&pod));
    }
    nodes
}

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Which pod goes first: unassigned before assigned, pending before running, unready before ready,
/// cheaper before dearer, on crowded nodes before others, lately ready before long ready, often
/// restarted before steady, young before old. Ages are compared by magnitude (KEP-2185), then by
/// uid, so that it is not always the youngest.
pub fn deletion_order(a: &Pod, b: &Pod, crowding: &BTreeMap<String, usize>, now: Timestamp) -> Ordering {
    let phase = |pod: &Pod| match pod.status.phase.as_str() {
        "Pending" => 0,
        "Running" => 2,
        _ => 1,
    };
    let cost = |pod: &Pod| -> i64 {
        let text = pod.metadata.annotations.str_at(&[DELETION_COST]);
        text.and_then(|text| text.parse::<i32>().ok()).unwrap_or(0).into()
    };
    let crowd = |pod: &Pod| crowding.get(pod.spec.node_name.as_str()).copied().unwrap_or(0);
    let ready_since = |pod: &Pod| pod.condition("Ready").and_then(|ready| ready.last_transition_time);
    (!a.spec.node_name.is_empty())
        .cmp(&!b.spec.node_name.is_empty())
        .then_with(|| phase(a).cmp(&phase(b)))
        .then_with(|| a.is_ready().cmp(&b.is_ready()))
        .then_with(|| cost(a).cmp(&cost(b)))
        .then_with(|| crowd(b).cmp(&crowd(a)))
        .then_with(|| match (a.is_ready(), ready_since(a), ready_since(b)) {
            (true, Some(x), Some(y)) => by_magnitude(x, y, now),
            _ => Ordering::Equal,
        })
        .then_with(|| b.restarts().cmp(&a.restarts()))
        .then_with(|| match (a.metadata.creation_timestamp, b.metadata.creation_timestamp) {
            (Some(x), Some(y)) => by_magnitude(x, y, now),
            (x, y) => x.is_some().cmp(&y.is_some()),
        })
        .then_with(|| a.metadata.uid.cmp(&b.metadata.uid))
}

/// Younger first, where ages within the same power of two are alike.
fn by_magnitude(a: Timestamp, b: Timestamp, now: Timestamp) -> Ordering {
    let magnitude = |since: Timestamp| now.since(since).as_nanos().checked_ilog2().unwrap_or(0);
    magnitude(a).cmp(&magnitude(b))
}

fn status(
    set: &Object,
    mine: &[(Arc<Cached>, Pod)],
    wanted: i64,
    world: &World,
    key: &Key,
    now: Timestamp,
    plan: &mut Plan,
) -> Map {
    let min_ready = set.i64_at(&["spec", "minReadySeconds"]).unwrap_or(0);
    let template_labels = set.map_at(&["spec", "template", "metadata", "labels"]).cloned().unwrap_or_default();
    let fully_labelled = |pod: &Pod| template_labels.iter().all(|(k, v)| pod.metadata.labels.get(k) == Some(v));
    let (mut labelled, mut ready, mut available) = (0, 0, 0);
    for (_, pod) in mine {
        labelled += i64::from(fully_labelled(pod));
        ready += i64::from(pod.is_ready());
        match pod.available_in(min_ready, now) {
            Some(wait) if wait.is_zero() => available += 1,
            Some(wait) => plan.requeue_in(wait),
            None => {}
        }
    }
    let mut status = set.map_at(&["status"]).cloned().unwrap_or_default();
    let counts = [
        ("replicas", mine.len() as i64),
        ("fullyLabeledReplicas", labelled),
        ("readyReplicas", ready),
        ("availableReplicas", available),
        ("observedGeneration", set.generation()),
    ];
    for (field, count) in counts {
        status.insert(field, count);
    }
    status.insert("conditions", failure_condition(set, wanted - mine.len() as i64, world, key, now));
    status
}

/// `ReplicaFailure` while the last attempt to make or delete pods has failed.
fn failure_condition(set: &Object, missing: i64, world: &World, key: &Key, now: Timestamp) -> Vec<Value> {
    let mut conditions = set.list_at(&["status", "conditions"]).to_vec();
    let failure = world.last_failure(key).filter(|failure| *failure.resource == PODS);
    match failure {
        Some(failure) if missing != 0 => {
            let reason = if missing > 0 { "FailedCreate" } else { "FailedDelete" };
            let condition = Condition::new("ReplicaFailure", "True", reason, failure.message);
            conditions::set(&mut conditions, &condition, now);
        }
        _ => conditions::remove(&mut conditions, "ReplicaFailure"),
    }
    conditions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{cached, world};
    use machinery::value;

    fn set(replicas: i64) -> Cached {
        cached(value!({
            "metadata": {"namespace": "d", "name": "web", "uid": "rs1", "resourceVersion": "1", "generation": 1},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
            },
        }))
    }

    fn pod(name: &str, owner: &str, ready: bool, node: &str) -> Cached {
        let status = if ready { "True" } else { "False" };
        let mut pod = value!({
            "metadata": {"namespace": "d", "name": name, "uid": name, "labels": {"app": "web"}},
            "spec": {"nodeName": node},
            "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": status, "lastTransitionTime": "1970-01-01T00:00:00Z"}]},
        });
        if !owner.is_empty() {
            let reference = value!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": owner, "controller": true}]);
            pod.as_map_mut().unwrap().set_at(&["metadata", "ownerReferences"], reference);
        }
        cached(pod)
    }

    fn plan(replicas: i64, pods: Vec<Cached>) -> Plan {
        let world = world([(&REPLICA_SETS, vec![set(replicas)]), (&PODS, pods)]);
        reconcile(&Key::new("d", "web"), &world, Timestamp::from_secs(100))
    }

    fn verbs(plan: &Plan) -> Vec<String> {
        plan.steps.iter().map(|s| format!("{} {}", s.intent.verb(), s.intent.resource().gvr.resource)).collect()
    }

    #[test]
    fn makes_what_is_missing_with_distinct_names() {
        let plan = plan(3, vec![pod("a", "rs1", true, "n")]);
        assert_eq!(verbs(&plan), ["update replicasets", "create pods", "create pods"]);
        let names: std::collections::BTreeSet<_> = plan.steps[1..].iter().map(|s| s.intent.key()).collect();
        assert_eq!(names.len(), 2);
    }

    #[test]
    fn deletes_the_unready_and_unassigned_first() {
        let pods = vec![pod("a", "rs1", true, "n"), pod("b", "rs1", false, "n"), pod("c", "rs1", false, "")];
        let plan = plan(1, pods);
        let deleted: Vec<String> = plan.steps[1..].iter().map(|s| s.intent.key().name.to_string()).collect();
        assert_eq!(deleted, ["c", "b"]);
    }

    #[test]
    fn adopts_orphans_before_making_others_and_leaves_strangers() {
        let plan = plan(2, vec![pod("a", "", true, "n"), pod("b", "other", true, "n")]);
        assert_eq!(verbs(&plan), ["patch pods", "update replicasets"]);
        let Intent::Patch { patch: client::Patch::Strategic(patch), .. } = &plan.steps[0].intent else { panic!() };
        assert_eq!(patch.at(&["metadata", "uid"]), Some(&Value::from("a")));
    }

    #[test]
    fn nothing_to_do_is_nothing() {
        let first = plan(1, vec![pod("a", "rs1", true, "n")]);
        let Intent::Update { object, .. } = &first.steps[0].intent else { panic!() };
        let done = cached(object.clone().into_value());
        let world = world([(&REPLICA_SETS, vec![done]), (&PODS, vec![pod("a", "rs1", true, "n")])]);
        let plan = reconcile(&Key::new("d", "web"), &world, Timestamp::from_secs(100));
        assert!(plan.is_empty(), "{plan:?}");
    }
}
