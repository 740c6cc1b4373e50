use super::*;
use crate::scenario::{cached, world};
use machinery::value;

fn set(replicas: i64, image: &str, extra: Value) -> Cached {
    let mut set = value!({
        "metadata": {"namespace": "d", "name": "db", "uid": "s1", "generation": 1},
        "spec": {
            "replicas": replicas,
            "serviceName": "db",
            "selector": {"matchLabels": {"app": "db"}},
            "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c", "image": image}]}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
        },
    });
    for (key, value) in extra.as_map().unwrap().iter() {
        set.as_map_mut().unwrap().set_at(&["spec", key], value.clone());
    }
    cached(set)
}

fn revision(name: &str, image: &str, number: i64) -> Cached {
    cached(value!({
        "metadata": {"namespace": "d", "name": name, "uid": name,
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "s1", "controller": true}]},
        "revision": number,
        "data": {"spec": {"template": {"$patch": "replace", "metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c", "image": image}]}}}},
    }))
}

fn pod(name: &str, revision: &str, ready: bool) -> Cached {
    let status = if ready { "True" } else { "False" };
    cached(value!({
        "metadata": {"namespace": "d", "name": name, "uid": name, "labels": {"app": "db", "controller-revision-hash": revision},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "s1", "controller": true}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status}]},
    }))
}

fn steps(set: Cached, pods: Vec<Cached>, revisions: Vec<Cached>) -> Vec<String> {
    let world = world([
        (&STATEFUL_SETS, vec![set]), (&PODS, pods), (&CONTROLLER_REVISIONS, revisions), (&PERSISTENT_VOLUME_CLAIMS, vec![]),
    ]);
    let plan = reconcile(&Key::new("d", "db"), &world, Timestamp::default());
    let written = plan.steps.iter().filter(|s| s.intent.resource().kind != "StatefulSet");
    written.map(|s| format!("{} {}", s.intent.verb(), s.intent.key().name)).collect()
}

fn both() -> Vec<Cached> {
    vec![revision("db-1", "v1", 1), revision("db-2", "v2", 2)]
}

#[test]
fn members_come_one_by_one_with_their_claims() {
    let claims = value!({"volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]});
    let v1 = || vec![revision("db-1", "v1", 1)];
    let found = steps(set(2, "v1", claims), vec![], v1());
    assert_eq!(found, ["create data-db-0", "create db-0"]);
    let found = steps(set(2, "v1", value!({})), vec![pod("db-0", "db-1", false)], v1());
    assert_eq!(found, Vec::<String>::new(), "the first is not ready");
    let found = steps(set(2, "v1", value!({})), vec![pod("db-0", "db-1", true)], v1());
    assert_eq!(found, ["create db-1"]);
    let parallel = value!({"podManagementPolicy": "Parallel"});
    assert_eq!(steps(set(2, "v1", parallel), vec![], v1()), ["create db-0", "create db-1"]);
}

#[test]
fn updates_go_from_the_highest_and_stop_at_the_partition() {
    let all = |revision| (0..3).map(|i| pod(&format!("db-{i}"), revision, true)).collect::<Vec<_>>();
    assert_eq!(steps(set(3, "v2", value!({})), all("db-1"), both()), ["delete db-2"]);
    let mut half = all("db-1");
    half[2] = pod("db-2", "db-2", false);
    assert_eq!(steps(set(3, "v2", value!({})), half, both()), Vec::<String>::new());
    let partition = value!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 3}}});
    assert_eq!(steps(set(3, "v2", partition), all("db-1"), both()), Vec::<String>::new());
    let on_delete = value!({"updateStrategy": {"type": "OnDelete"}});
    assert_eq!(steps(set(3, "v2", on_delete), all("db-1"), both()), Vec::<String>::new());
}

#[test]
fn scaling_down_takes_the_highest_first() {
    let pods = (0..3).map(|i| pod(&format!("db-{i}"), "db-1", true)).collect();
    assert_eq!(steps(set(1, "v1", value!({})), pods, vec![revision("db-1", "v1", 1)]), ["delete db-2"]);
}
