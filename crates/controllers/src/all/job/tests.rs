use super::*;
use crate::{conditions, scenario::{cached, world}};
use machinery::Value;

fn job(spec: Value, status: Value) -> Cached {
    let mut job = value!({
        "metadata": {"namespace": "d", "name": "sum", "uid": "j1"},
        "spec": {"backoffLimit": 1, "selector": {"matchLabels": {"job": "sum"}},
            "template": {"metadata": {"labels": {"job": "sum"}}, "spec": {"containers": [{"name": "c"}], "restartPolicy": "Never"}}},
    });
    let root = job.as_map_mut().unwrap();
    for (key, value) in spec.as_map().unwrap().iter() {
        root.set_at(&["spec", key], value.clone());
    }
    root.insert("status", status);
    cached(job)
}

fn pod(name: &str, phase: &str, tracked: bool) -> Cached {
    let finalizers = if tracked { value!([FINALIZER]) } else { value!([]) };
    let index = name.rsplit('-').next().unwrap_or_default();
    let mut pod = value!({
        "metadata": {"namespace": "d", "name": name, "uid": name, "labels": {"job": "sum"},
            "annotations": {"batch.kubernetes.io/job-completion-index": index},
            "creationTimestamp": "1970-01-01T00:00:00Z",
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "sum", "uid": "j1", "controller": true}]},
        "status": {"phase": phase},
    });
    pod.as_map_mut().unwrap().set_at(&["metadata", "finalizers"], finalizers);
    cached(pod)
}

fn plan(job: Cached, pods: Vec<Cached>) -> Plan {
    let world = world([(&JOBS, vec![job]), (&PODS, pods)]);
    reconcile(&Key::new("d", "sum"), &world, Timestamp::from_secs(1000))
}

fn steps(plan: &Plan) -> Vec<String> {
    let step = |s: &Step| match &s.intent {
        Intent::Create { object, .. } => format!("create {}", object.annotation(INDEX).unwrap_or("pod")),
        other => format!("{} {}", other.verb(), other.key().name),
    };
    plan.steps.iter().map(step).collect()
}

fn status(plan: &Plan) -> Object {
    let Intent::Update { object, .. } = &plan.steps[0].intent else { panic!("{plan:?}") };
    object.clone()
}

#[test]
fn a_pod_is_recorded_then_released_then_counted() {
    let spec = || value!({"completions": 2, "parallelism": 1});
    let first = plan(job(spec(), value!({})), vec![pod("a", "Succeeded", true)]);
    assert_eq!(steps(&first), ["update sum", "patch a", "create pod"]);
    let recorded = status(&first);
    assert_eq!(recorded.at(&["status", "uncountedTerminatedPods", "succeeded"]), Some(&value!(["a"])));
    assert_eq!(recorded.i64_at(&["status", "succeeded"]), Some(0));
    let released = job(spec(), recorded.root().get("status").unwrap().clone());
    let second = plan(released, vec![pod("a", "Succeeded", false), pod("b", "Running", true)]);
    assert_eq!(steps(&second), ["update sum"]);
    assert_eq!(status(&second).i64_at(&["status", "succeeded"]), Some(1));
}

#[test]
fn ends_when_all_are_counted() {
    let done = plan(job(value!({"completions": 1}), value!({"succeeded": 1})), vec![pod("a", "Succeeded", false)]);
    let object = status(&done);
    let list = object.list_at(&["status", "conditions"]);
    assert!(conditions::is_true(list, "Complete") && conditions::is_true(list, "SuccessCriteriaMet"));
    assert!(!object.str_at(&["status", "completionTime"]).is_empty());
}

#[test]
fn fails_beyond_its_limit_and_stops_what_runs() {
    let spec = value!({"completions": 3, "parallelism": 2});
    let failing = plan(job(spec, value!({"failed": 2})), vec![pod("a", "Running", true)]);
    assert_eq!(steps(&failing), ["update sum", "delete a"]);
    let list = status(&failing);
    let list = list.list_at(&["status", "conditions"]);
    assert!(conditions::is_true(list, "FailureTarget") && !conditions::is_true(list, "Failed"));
}

#[test]
fn indexes_that_are_done_or_running_are_not_made_again() {
    let spec = value!({"completions": 4, "parallelism": 4, "completionMode": "Indexed"});
    let plan = plan(job(spec, value!({"completedIndexes": "0"})), vec![pod("sum-2", "Running", true)]);
    assert_eq!(steps(&plan), ["update sum", "create 1", "create 3"]);
}

#[test]
fn a_suspended_job_has_no_pods() {
    let spec = value!({"completions": 1, "suspend": true});
    let plan = plan(job(spec, value!({})), vec![pod("a", "Running", true)]);
    assert_eq!(steps(&plan), ["update sum", "patch a", "delete a"]);
}

#[test]
fn a_failure_policy_ignores_or_ends() {
    let failed = |code: i64| {
        let mut pod = pod("a", "Failed", true).object().unwrap();
        let statuses = value!([{"name": "c", "state": {"terminated": {"exitCode": code}}}]);
        pod.set_at(&["status", "containerStatuses"], statuses);
        cached(pod.into_value())
    };
    let spec = || value!({"completions": 1, "podFailurePolicy": {"rules": [
        {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [7]}},
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}},
    ]}});
    let ignored = plan(job(spec(), value!({})), vec![failed(7)]);
    assert_eq!(status(&ignored).at(&["status", "uncountedTerminatedPods", "failed"]), None);
    let ended = status(&plan(job(spec(), value!({})), vec![failed(42)]));
    let target = conditions::find(ended.list_at(&["status", "conditions"]), "FailureTarget").unwrap();
    assert_eq!(
        target.str_at(&["message"]),
        Some("Container c for pod d/a failed with exit code 42 matching FailJob rule at index 1")
    );
    let counted = status(&plan(job(spec(), value!({})), vec![failed(1)]));
    assert_eq!(counted.at(&["status", "uncountedTerminatedPods", "failed"]), Some(&value!(["a"])));
}
