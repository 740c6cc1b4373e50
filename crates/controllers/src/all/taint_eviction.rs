//! Deletes pods from nodes whose `NoExecute` taints they do not tolerate, or no longer.

use std::time::Duration;

use client::{Change, Key};
use machinery::{Map, value};
use stdx::Timestamp;

use crate::{
    plan::*,
    resources::*,
    taints::{self, Taint},
    views::Pod,
};

pub const CONTROLLER: Controller = Controller {
    name: "taint-eviction-controller",
    account: "node-controller",
    primary: &PODS,
    watches: &[mapped(&NODES, pods_of_node)],
    rbac: &[allow(&PODS, &["delete"]), allow_sub(&PODS, "status", &["patch"])],
    workers: 8,
    work: Work::Reconcile(reconcile),
};

fn pods_of_node(change: &Change, world: &World) -> Vec<Key> {
    let no_execute = |node: &Option<std::sync::Arc<client::Cached>>| {
        let node = node.as_ref().and_then(|cached| cached.object().ok());
        node.map(|node| no_execute_taints(&taints::of_node(&node))).unwrap_or_default()
    };
    if no_execute(&change.old) == no_execute(&change.new) {
        return Vec::new();
    }
    let node = &change.key().name;
    let pods = world.list(&PODS).all();
    let on_it = pods.iter().filter(|c| Pod::read(c).is_some_and(|pod| pod.spec.node_name == *node));
    on_it.map(|cached| cached.key.clone()).collect()
}

fn no_execute_taints(all: &[Taint]) -> Vec<Taint> {
    all.iter().filter(|taint| taint.effect == "NoExecute").cloned().collect()
}

fn reconcile(key: &Key, world: &World, now: Timestamp) -> Plan {
    let mut plan = Plan::none();
    let Some(cached) = world.get(&PODS, key) else { return plan };
    let Some(pod) = Pod::read(&cached) else { return plan };
    if pod.spec.node_name.is_empty() || pod.is_deleting() || pod.is_finished() {
        return plan;
    }
    let memo = |taint: &Taint| format!("{} {} {}", pod.metadata.uid, taint.key, taint.value);
    let node = world.object(&NODES, &Key::new("", &pod.spec.node_name));
    let taints = node.map(|node| no_execute_taints(&taints::of_node(&node))).unwrap_or_default();
    let Some(deadline) = eviction_time(&pod, &taints, |taint| {
        taint.time_added.unwrap_or_else(|| world.since(memo(taint), now))
    }) else {
        return plan;
    };
    if now < deadline {
        plan.requeue_in(deadline.since(now));
        return plan;
    }
    taints.iter().for_each(|taint| world.forget(&memo(taint)));
    let object = tree(&PODS, &cached);
    let condition = value!([{
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "DeletionByTaintManager",
        "message": "Taint manager: deleting due to NoExecute taint",
        "lastTransitionTime": now.rfc3339(),
    }]);
    let mut patch = Map::new();
    patch.set_at(&["status", "conditions"], condition);
    plan.push(Intent::patch(&PODS, &cached, "status", patch));
    let text = format!("Marking for deletion Pod {key}");
    plan.push(Intent::delete(&PODS, &cached)).note(Note::normal(&object, "TaintManagerEviction", text));
    plan
}

/// When the pod has to go: at once for a taint that nothing tolerates, else after the shortest
/// of the times that the tolerations give. `None`: it may stay.
fn eviction_time(pod: &Pod, taints: &[Taint], since: impl Fn(&Taint) -> Timestamp) -> Option<Timestamp> {
    let mut earliest: Option<Timestamp> = None;
    for taint in taints {
        let tolerating = pod.spec.tolerations.iter().filter(|t| t.tolerates(taint)).collect::<Vec<_>>();
        if tolerating.is_empty() {
            return Some(since(taint));
        }
        let seconds = tolerating.iter().filter_map(|t| t.toleration_seconds).min();
        if let Some(seconds) = seconds {
            let at = since(taint) + Duration::from_secs(seconds.max(0) as u64);
            earliest = Some(earliest.map_or(at, |known| known.min(at)));
        }
    }
    earliest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{cached, world};

    fn plan(tolerations: machinery::Value, now: i64) -> Plan {
        let mut pod = value!({"metadata": {"namespace": "d", "name": "p", "uid": "p"}, "spec": {"nodeName": "n"}});
        pod.as_map_mut().unwrap().set_at(&["spec", "tolerations"], tolerations);
        let added = Timestamp::from_secs(100).rfc3339();
        let node = value!({"metadata": {"name": "n"}, "spec": {"taints": [
            {"key": taints::UNREACHABLE, "effect": "NoExecute", "timeAdded": added}]}});
        let world = world([(&PODS, vec![cached(pod)]), (&NODES, vec![cached(node)])]);
        reconcile(&Key::new("d", "p"), &world, Timestamp::from_secs(now))
    }

    #[test]
    fn a_pod_goes_when_its_toleration_ends() {
        let five_minutes = || value!([{"key": taints::UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]);
        let early = plan(five_minutes(), 110);
        assert_eq!((early.steps.len(), early.requeue_after), (0, Some(Duration::from_secs(290))));
        let verbs: Vec<_> = plan(five_minutes(), 400).steps.iter().map(|s| s.intent.verb()).collect();
        assert_eq!(verbs, ["patch", "delete"]);
        assert_eq!(plan(value!([]), 100).steps.len(), 2, "untolerated: at once");
        let ever = plan(value!([{"operator": "Exists"}]), 10_000);
        assert_eq!((ever.steps.len(), ever.requeue_after), (0, None));
    }
}
