use super::*;
use crate::scenario::{cached, world};
use client::Cached;
use machinery::value;

fn deployment(replicas: i64, image: &str, extra: Value) -> Cached {
    let mut object = value!({
        "metadata": {"namespace": "d", "name": "web", "uid": "d1", "resourceVersion": "5", "generation": 1},
        "spec": {
            "replicas": replicas,
            "progressDeadlineSeconds": 600,
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}},
        },
    });
    let root = object.as_map_mut().unwrap();
    for (key, value) in extra.as_map().unwrap().iter() {
        root.set_at(&["spec", key], value.clone());
    }
    cached(object)
}

fn set(name: &str, image: &str, replicas: i64, available: i64, revision: i64, desired: i64) -> Cached {
    cached(value!({
        "metadata": {
            "namespace": "d", "name": name, "uid": name, "resourceVersion": "7", "generation": 1,
            "creationTimestamp": format!("2026-01-01T00:00:{revision:02}Z"),
            "labels": {"app": "web", "pod-template-hash": name},
            "annotations": {
                "deployment.kubernetes.io/revision": revision.to_string(),
                "deployment.kubernetes.io/desired-replicas": desired.to_string(),
                "deployment.kubernetes.io/max-replicas": (desired + 1).to_string(),
            },
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d1", "controller": true}],
        },
        "spec": {
            "replicas": replicas,
            "template": {
                "metadata": {"labels": {"app": "web", "pod-template-hash": name}},
                "spec": {"containers": [{"name": "c", "image": image}]},
            },
        },
        "status": {"replicas": replicas, "availableReplicas": available, "readyReplicas": available, "observedGeneration": 1},
    }))
}

fn plan(deployment: Cached, sets: Vec<Cached>) -> Plan {
    let world = world([(&DEPLOYMENTS, vec![deployment]), (&REPLICA_SETS, sets), (&PODS, vec![])]);
    reconcile(&Key::new("d", "web"), &world, Timestamp::from_secs(1_800_000_000))
}

/// The sizes that a plan gives, and the sets that it deletes.
fn effects(plan: &Plan) -> Vec<String> {
    let effect = |step: &Step| match &step.intent {
        Intent::Create { object, .. } => Some(format!("create {}", object.i64_at(&["spec", "replicas"])?)),
        Intent::Update { object, resource, .. } if **resource == REPLICA_SETS => {
            Some(format!("{}={}", object.name(), object.i64_at(&["spec", "replicas"])?))
        }
        Intent::Delete { key, .. } => Some(format!("delete {}", key.name)),
        _ => None,
    };
    plan.steps.iter().filter_map(effect).collect()
}

fn progressing(plan: &Plan) -> String {
    let status = plan.steps.iter().rev().find_map(|step| match &step.intent {
        Intent::Update { subresource: "status", object, .. } => Some(object.clone()),
        _ => None,
    });
    let status = status.expect("a status is written");
    let condition = conditions::find(status.list_at(&["status", "conditions"]), "Progressing").cloned();
    condition.and_then(|c| c.str_at(&["reason"]).map(str::to_owned)).unwrap_or_default()
}

#[test]
fn the_first_set_has_revision_one_and_all_replicas() {
    let plan = plan(deployment(3, "v1", value!({})), vec![]);
    assert_eq!(effects(&plan), ["create 3"]);
    let Intent::Create { object, .. } = &plan.steps[0].intent else { panic!() };
    assert_eq!(object.annotation("deployment.kubernetes.io/revision"), Some("1"));
    let hash = object.label("pod-template-hash").unwrap();
    assert_eq!(object.name(), format!("web-{hash}"));
    assert_eq!(object.str_at(&["spec", "selector", "matchLabels", "pod-template-hash"]), hash);
    let told = plan.steps[0].done.as_ref().unwrap().message.clone();
    assert_eq!(told, format!("Scaled up replica set web-{hash} from 0 to 3"));
    assert_eq!(progressing(&plan), "NewReplicaSetCreated");
}

#[test]
fn a_rollout_surges_by_one_and_never_serves_with_fewer() {
    // (new size, new available, old size, old available) -> what is done next
    let steps = [
        ((1, 0, 3, 3), vec![]),
        ((1, 1, 3, 3), vec!["old=2"]),
        ((1, 1, 2, 2), vec!["new=2"]),
        ((2, 1, 2, 2), vec![]),
        ((2, 2, 2, 2), vec!["old=1"]),
        ((3, 3, 1, 1), vec!["old=0"]),
        ((3, 3, 0, 0), vec![]),
    ];
    for ((new, new_ready, old, old_ready), expected) in steps {
        let sets = vec![set("old", "v1", old, old_ready, 1, 3), set("new", "v2", new, new_ready, 2, 3)];
        let plan = plan(deployment(3, "v2", value!({})), sets);
        assert_eq!(effects(&plan), expected, "new {new}/{new_ready} old {old}/{old_ready}");
    }
}

#[test]
fn unhealthy_old_pods_go_first_and_a_broken_new_set_stops_the_rest() {
    let strategy = value!({"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 2}}});
    let sets = vec![set("old", "v1", 5, 3, 1, 5), set("new", "v2", 0, 0, 2, 5)];
    let found = effects(&plan(deployment(5, "v2", strategy.clone()), sets));
    assert_eq!(found, ["old=3"], "two are unavailable already, and only those go");
    let sets = vec![set("old", "v1", 3, 3, 1, 5), set("new", "v2", 2, 0, 2, 5)];
    assert_eq!(effects(&plan(deployment(5, "v2", strategy), sets)), Vec::<String>::new());
}

#[test]
fn going_back_raises_the_revision_of_the_old_set() {
    let sets = vec![set("a", "v1", 0, 0, 1, 3), set("b", "v2", 3, 3, 2, 3)];
    let plan = plan(deployment(3, "v1", value!({})), sets);
    let Intent::Update { object, .. } = &plan.steps[0].intent else { panic!("{plan:?}") };
    assert_eq!(object.name(), "a");
    assert_eq!(object.annotation("deployment.kubernetes.io/revision"), Some("3"));
    assert_eq!(object.annotation("deployment.kubernetes.io/revision-history"), Some("1"));
}

#[test]
fn scaling_in_the_middle_of_a_rollout_is_proportional() {
    let sets = vec![set("old", "v1", 8, 8, 1, 10), set("new", "v2", 3, 3, 2, 10)];
    let plan = plan(deployment(20, "v2", value!({})), sets);
    assert_eq!(effects(&plan), ["old=15", "new=6"]);
}

#[test]
fn a_single_set_takes_the_whole_change_of_scale() {
    let found = effects(&plan(deployment(5, "v1", value!({})), vec![set("a", "v1", 3, 3, 1, 3)]));
    assert_eq!(found, ["a=5"]);
}

#[test]
fn recreate_waits_for_the_old_pods() {
    let strategy = value!({"strategy": {"type": "Recreate"}});
    let found = effects(&plan(deployment(2, "v2", strategy.clone()), vec![set("a", "v1", 2, 2, 1, 2)]));
    assert_eq!(found, ["a=0"]);
    let found = effects(&plan(deployment(2, "v2", strategy), vec![set("a", "v1", 0, 0, 1, 2)]));
    assert_eq!(found, ["create 2"]);
}

#[test]
fn old_revisions_beyond_the_limit_are_deleted() {
    let sets = vec![
        set("a", "v1", 0, 0, 1, 3),
        set("b", "v2", 0, 0, 2, 3),
        set("c", "v3", 3, 3, 3, 3),
    ];
    let plan = plan(deployment(3, "v3", value!({})), sets);
    assert_eq!(effects(&plan), ["delete a"]);
    assert_eq!(progressing(&plan), "NewReplicaSetAvailable");
}

#[test]
fn a_stuck_rollout_exceeds_its_deadline() {
    let mut stuck = deployment(3, "v2", value!({})).object().unwrap();
    let condition = value!([{
        "type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated",
        "lastUpdateTime": "2020-01-01T00:00:00Z", "lastTransitionTime": "2020-01-01T00:00:00Z",
    }]);
    let status = value!({"replicas": 4, "updatedReplicas": 1, "readyReplicas": 3, "availableReplicas": 3, "conditions": condition});
    stuck.root_mut().insert("status", status);
    let sets = vec![set("old", "v1", 3, 3, 1, 3), set("new", "v2", 1, 0, 2, 3)];
    let plan = plan(cached(stuck.into_value()), sets);
    assert_eq!(progressing(&plan), "ProgressDeadlineExceeded");
    assert_eq!(effects(&plan), Vec::<String>::new(), "serving pods stay");
}
