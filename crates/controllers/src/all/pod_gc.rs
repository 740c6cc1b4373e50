//! Removes pods that nobody else will: of nodes that are gone or out of service, deleted before
//! they were scheduled, and finished ones beyond a number.

use std::time::Duration;

use client::{Cached, Change, Key};
use machinery::{Map, value};
use stdx::Timestamp;

use crate::{conditions, plan::*, resources::*, taints, views::Pod};

pub const CONTROLLER: Controller = Controller {
    name: "pod-garbage-collector-controller",
    account: "pod-garbage-collector",
    primary: &PODS,
    watches: &[mapped(&NODES, pods_of_node)],
    rbac: &[allow(&PODS, &["delete"]), allow_sub(&PODS, "status", &["patch"])],
    workers: 2,
    work: Work::Reconcile(reconcile),
};

/// A node that was just deleted may be registered again at once.
const NODE_QUARANTINE: Duration = Duration::from_secs(40);

fn pods_of_node(change: &Change, world: &World) -> Vec<Key> {
    let ends = change.old.is_none() || change.new.is_none();
    let out = |cached: &Cached| cached.object().is_ok_and(|node| is_out_of_service(&node));
    if !ends && !change.new.as_ref().is_some_and(|node| out(node)) {
        return Vec::new();
    }
    let node = &change.key().name;
    let pods = world.list(&PODS).all();
    let on_it = pods.iter().filter(|c| Pod::read(c).is_some_and(|pod| pod.spec.node_name == *node));
    on_it.map(|cached| cached.key.clone()).collect()
}

fn is_out_of_service(node: &machinery::Object) -> bool {
    let tainted = taints::of_node(node).iter().any(|taint| taint.key == taints::OUT_OF_SERVICE);
    tainted && !conditions::is_true(node.list_at(&["status", "conditions"]), "Ready")
}

fn reconcile(key: &Key, world: &World, now: Timestamp) -> Plan {
    let mut plan = Plan::none();
    let Some(cached) = world.get(&PODS, key) else { return plan };
    let Some(pod) = Pod::read(&cached) else { return plan };
    if pod.spec.node_name.is_empty() {
        if pod.is_deleting() {
            remove(&mut plan, &cached, &pod, None, now);
        }
        return plan;
    }
    let absent = format!("absent {}", pod.spec.node_name);
    let Some(node) = world.object(&NODES, &Key::new("", &pod.spec.node_name)) else {
        let gone_at = world.since(absent, now) + NODE_QUARANTINE;
        if now < gone_at {
            plan.requeue_in(gone_at.since(now));
        } else {
            remove(&mut plan, &cached, &pod, Some("PodGC: node no longer exists"), now);
        }
        return plan;
    };
    world.forget(&absent);
    if pod.is_deleting() && is_out_of_service(&node) {
        remove(&mut plan, &cached, &pod, Some("PodGC: node is out of service"), now);
    } else if pod.is_finished() && is_surplus(&pod, world) {
        remove(&mut plan, &cached, &pod, None, now);
    }
    plan
}

/// Deletes at once, first saying why where the pod had not finished by itself.
fn remove(plan: &mut Plan, cached: &Cached, pod: &Pod, why: Option<&str>, now: Timestamp) {
    if let Some(message) = why.filter(|_| !pod.is_finished()) {
        let condition = value!([{
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "DeletionByPodGC",
            "message": message,
            "lastTransitionTime": now.rfc3339(),
        }]);
        let mut patch = Map::new();
        patch.set_at(&["status", "phase"], "Failed");
        patch.set_at(&["status", "conditions"], condition);
        plan.push(Intent::patch(&PODS, cached, "status", patch));
    }
    let mut intent = Intent::delete(&PODS, cached);
    if let Intent::Delete { grace_period_seconds, .. } = &mut intent {
        *grace_period_seconds = Some(0);
    }
    plan.push(intent);
}

/// Whether there are so many finished pods that this one, as one of the oldest, should go.
fn is_surplus(pod: &Pod, world: &World) -> bool {
    let threshold = world.config().terminated_pod_gc_threshold;
    if threshold == 0 || world.list(&PODS).len() <= threshold {
        return false;
    }
    let age = |pod: &Pod| (pod.metadata.creation_timestamp, pod.metadata.name.clone());
    let own = age(pod);
    let pods = world.list(&PODS).all();
    let finished = pods.iter().filter_map(|c| Pod::read(c)).filter(Pod::is_finished);
    finished.filter(|other| age(other) > own).count() >= threshold
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{cached, world};

    #[test]
    fn a_pod_of_a_node_that_is_gone_goes_after_a_while() {
        let pod = cached(value!({"metadata": {"namespace": "d", "name": "p", "uid": "p"}, "spec": {"nodeName": "n"}, "status": {"phase": "Running"}}));
        let world = world([(&PODS, vec![pod]), (&NODES, vec![])]);
        let at = |seconds| reconcile(&Key::new("d", "p"), &world, Timestamp::from_secs(seconds));
        assert_eq!(at(0).requeue_after, Some(NODE_QUARANTINE));
        let plan = at(40);
        let verbs: Vec<_> = plan.steps.iter().map(|s| s.intent.verb()).collect();
        assert_eq!(verbs, ["patch", "delete"]);
        assert!(matches!(plan.steps[1].intent, Intent::Delete { grace_period_seconds: Some(0), .. }));
    }

    #[test]
    fn deleted_before_it_was_scheduled_it_goes_at_once() {
        let pod = |meta: machinery::Value| {
            let world = world([(&PODS, vec![cached(value!({"metadata": meta}))]), (&NODES, vec![])]);
            reconcile(&Key::new("d", "p"), &world, Timestamp::default()).steps.len()
        };
        assert_eq!(pod(value!({"namespace": "d", "name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"})), 1);
        assert_eq!(pod(value!({"namespace": "d", "name": "p"})), 0);
    }
}
