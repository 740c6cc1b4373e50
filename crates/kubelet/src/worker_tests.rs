//! The planner against a small model of a runtime that does what it is told.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const START: i64 = 1_790_000_000;

/// A pod and everything around it; time moves by hand.
struct Model {
    pod: Pod,
    runtime: PodRuntime,
    probes: Probes,
    memory: Memory,
    in_flight: InFlight,
    now: Timestamp,
    serial: u32,
    log: Vec<String>,
}

impl Model {
    fn new(spec: &str) -> Self {
        let text = format!(
            r#"{{"metadata":{{"name":"p","namespace":"n","uid":"u","resourceVersion":"1"}},"spec":{spec}}}"#
        );
        Self {
            pod: serde_json::from_str(&text).unwrap(),
            runtime: PodRuntime::default(),
            probes: Probes::new(),
            memory: Memory { status_written: true, ..Memory::default() },
            in_flight: InFlight::default(),
            now: Timestamp::from_secs(START),
            serial: 0,
            log: Vec::new(),
        }
    }

    fn plan(&self) -> Plan {
        plan(&World {
            pod: &self.pod,
            runtime: &self.runtime,
            probes: &self.probes,
            memory: &self.memory,
            in_flight: &self.in_flight,
            now: self.now,
        })
    }

    /// Plans and applies until nothing is planned any more; the number of rounds is bounded.
    fn settle(&mut self) -> Plan {
        for _ in 0..60 {
            if is_ending(&self.pod, &self.runtime, &self.memory)
                && self.memory.ending_since.is_none()
            {
                self.memory.ending_since = Some(self.now);
            }
            let plan = self.plan();
            if plan.actions.is_empty() {
                return plan;
            }
            for action in plan.actions {
                self.apply(action);
            }
        }
        panic!("the plan never becomes empty: {:?}", self.log);
    }

    fn apply(&mut self, action: Action) {
        self.serial += 1;
        let created_at = self.now.as_nanos() as i64 + i64::from(self.serial);
        match action {
            Action::CreateSandbox { attempt, .. } => {
                self.log.push(format!("sandbox {attempt}"));
                let sandbox = Sandbox {
                    id: format!("s{attempt}"),
                    attempt,
                    ready: true,
                    created_at,
                    ips: vec!["10.0.0.1".into()],
                    host_network: false,
                };
                self.runtime.sandboxes.insert(0, sandbox);
            }
            Action::Start { name, restart_count } => {
                self.log.push(format!("start {name} {restart_count}"));
                if let Some(predecessor) = self.runtime.latest(&name).cloned() {
                    self.memory.note_start(&predecessor, self.now);
                }
                let (spec, _) = self.pod.container(&name).unwrap();
                let container = Container {
                    id: format!("{name}-{restart_count}"),
                    hash: pod::container_hash(spec),
                    sandbox_id: self.runtime.active_sandbox().unwrap().id.clone(),
                    restart_count,
                    state: State::Running,
                    created_at,
                    started_at: created_at,
                    name,
                    ..Container::default()
                };
                self.runtime.containers.insert(0, container);
            }
            Action::Kill(kill) => {
                self.log.push(format!("kill {} {}s", kill.name, kill.grace.as_secs()));
                self.exit_id(&kill.container_id, 137);
            }
            Action::StopSandbox { id } => {
                self.log.push(format!("stop {id}"));
                let found = self.runtime.sandboxes.iter_mut().find(|sandbox| sandbox.id == id);
                found.unwrap().ready = false;
            }
            Action::RemoveContainer { id } => {
                self.log.push(format!("remove {id}"));
                self.runtime.containers.retain(|container| container.id != id);
            }
            Action::RemoveSandbox { id } => {
                self.log.push(format!("remove {id}"));
                self.runtime.sandboxes.retain(|sandbox| sandbox.id != id);
            }
            Action::Clean => {
                self.log.push("clean".into());
                self.memory.cleaned = true;
            }
            Action::Delete => {
                self.log.push("delete".into());
                self.memory.deleted = true;
            }
            Action::Fail(verdict) => {
                self.log.push(format!("fail {}", verdict.reason));
                self.memory.verdict = Some(verdict);
            }
        }
    }

    fn exit(&mut self, name: &str, code: i32) {
        let id = self.runtime.latest(name).unwrap().id.clone();
        self.exit_id(&id, code);
    }

    fn exit_id(&mut self, id: &str, code: i32) {
        let finished_at = self.now.as_nanos() as i64;
        let container = self.runtime.containers.iter_mut().find(|c| c.id == id).unwrap();
        container.state = State::Exited;
        container.exit_code = code;
        container.finished_at = finished_at;
    }

    fn delete(&mut self, grace: i64) {
        let at = pod::api_time(self.now + Duration::from_secs(grace as u64));
        self.pod.metadata.deletion_timestamp = Some(at);
        self.pod.metadata.deletion_grace_period_seconds = Some(grace);
    }

    fn pass(&mut self, seconds: u64) {
        self.now = self.now + Duration::from_secs(seconds);
    }

    fn take_log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    /// Seconds until the plan wants to be made again.
    fn wakes_in(&self, plan: &Plan) -> Option<u64> {
        plan.wake_at.map(|at| at.since(self.now).as_secs())
    }
}

const ONE: &str = r#"{"containers":[{"name":"a","image":"i"}]}"#;

#[test]
fn a_crash_restarts_at_once_then_backs_off() {
    let mut model = Model::new(ONE);
    model.settle();
    assert_eq!(model.take_log(), ["sandbox 0", "start a 0"]);
    model.exit("a", 1);
    model.settle();
    assert_eq!(model.take_log(), ["start a 1"]);
    let mut waits = Vec::new();
    for _ in 0..7 {
        model.exit("a", 1);
        let plan = model.settle();
        assert_eq!(plan.backing_off["a"].reason, "CrashLoopBackOff");
        let wait = model.wakes_in(&plan).unwrap();
        waits.push(wait);
        model.pass(wait);
        model.settle();
    }
    assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300]);
    let starts: Vec<String> =
        model.take_log().into_iter().filter(|line| line.starts_with("start")).collect();
    assert_eq!(starts.last().unwrap(), "start a 8");
    // Ten minutes of running forget it all.
    model.pass(700);
    model.exit("a", 1);
    model.settle();
    assert_eq!(model.take_log().first().unwrap(), "start a 9");
}

#[test]
fn a_back_off_is_told_in_upstreams_words() {
    let mut model = Model::new(ONE);
    model.settle();
    model.exit("a", 1);
    model.settle();
    model.exit("a", 1);
    let plan = model.settle();
    assert_eq!(
        plan.backing_off["a"].message,
        "back-off 10s restarting failed container=a pod=p_n(u)"
    );
}

#[test]
fn init_containers_run_one_after_another() {
    let mut model = Model::new(
        r#"{"initContainers":[{"name":"x"},{"name":"s","restartPolicy":"Always"},{"name":"y"}],
            "containers":[{"name":"a"},{"name":"b"}]}"#,
    );
    model.settle();
    assert_eq!(model.take_log(), ["sandbox 0", "start x 0"]);
    model.exit("x", 1);
    model.settle();
    assert_eq!(model.take_log(), ["start x 1"]);
    model.exit("x", 0);
    model.settle();
    assert_eq!(model.take_log(), ["start s 0", "start y 0"]);
    model.exit("y", 0);
    model.settle();
    assert_eq!(model.take_log(), ["start a 0", "start b 0"]);
    model.exit("s", 0);
    model.settle();
    assert_eq!(model.take_log(), ["start s 1"]);
}

#[test]
fn a_sidecar_holds_the_next_until_it_has_started() {
    let mut model = Model::new(
        r#"{"initContainers":[{"name":"s","restartPolicy":"Always","startupProbe":{}}],
            "containers":[{"name":"a"}]}"#,
    );
    model.settle();
    assert_eq!(model.take_log(), ["sandbox 0", "start s 0"]);
    model
        .probes
        .insert("s-0".into(), ProbeResults { startup: Some(true), ..ProbeResults::default() });
    model.settle();
    assert_eq!(model.take_log(), ["start a 0"]);
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let mut model = Model::new(
        r#"{"restartPolicy":"Never","initContainers":[{"name":"x"}],"containers":[{"name":"a"}]}"#,
    );
    model.settle();
    model.take_log();
    model.exit("x", 3);
    model.settle();
    assert_eq!(model.take_log(), ["stop s0", "clean"]);
}

#[test]
fn deletion_stops_everything_and_then_deletes() {
    let mut model = Model::new(
        r#"{"initContainers":[{"name":"s1","restartPolicy":"Always"},{"name":"s2","restartPolicy":"Always"}],
            "containers":[{"name":"a"},{"name":"b"}]}"#,
    );
    model.settle();
    model.take_log();
    model.delete(30);
    let plan = model.settle();
    assert_eq!(
        model.take_log(),
        [
            "kill b 30s",
            "kill a 30s",
            "kill s2 30s",
            "kill s1 30s",
            "stop s0",
            "clean",
            "delete",
            "remove b-0",
            "remove a-0",
            "remove s2-0",
            "remove s1-0",
            "remove s0"
        ]
    );
    assert!(plan.over);
}

#[test]
fn a_shorter_grace_overrides_a_kill_under_way() {
    let mut model = Model::new(ONE);
    model.settle();
    model.delete(30);
    model.memory.ending_since = Some(model.now);
    let Some(Action::Kill(kill)) = model.plan().actions.pop() else { panic!("no kill") };
    assert!(kill.hook);
    model.in_flight.kills.insert(kill.container_id, model.now + kill.grace);
    assert!(model.plan().actions.is_empty());
    model.pod.metadata.deletion_grace_period_seconds = Some(0);
    let Some(Action::Kill(kill)) = model.plan().actions.pop() else { panic!("no second kill") };
    assert_eq!((kill.grace.as_secs(), kill.hook), (1, false));
}

#[test]
fn a_failed_liveness_probe_kills_and_restarts() {
    let mut model = Model::new(
        r#"{"terminationGracePeriodSeconds":7,"containers":[{"name":"a","livenessProbe":{"terminationGracePeriodSeconds":3}}]}"#,
    );
    model.settle();
    model.take_log();
    model
        .probes
        .insert("a-0".into(), ProbeResults { liveness: Some(false), ..ProbeResults::default() });
    let plan = model.plan();
    let Action::Kill(kill) = &plan.actions[0] else { panic!("no kill") };
    assert_eq!(kill.message, "Container a failed liveness probe, will be restarted");
    model.settle();
    assert_eq!(model.take_log(), ["kill a 3s", "start a 1"]);
}

#[test]
fn a_new_image_replaces_the_container() {
    let mut model = Model::new(ONE);
    model.settle();
    model.take_log();
    model.pod.spec.as_mut().unwrap().containers[0].image = Some("other".into());
    model.settle();
    assert_eq!(model.take_log(), ["kill a 30s", "start a 1"]);
}

#[test]
fn a_dead_sandbox_is_replaced() {
    let mut model = Model::new(ONE);
    model.settle();
    model.take_log();
    model.runtime.sandboxes[0].ready = false;
    model.settle();
    assert_eq!(model.take_log(), ["kill a 30s", "sandbox 1", "start a 1"]);
}

#[test]
fn the_deadline_fails_the_pod() {
    let mut model = Model::new(r#"{"activeDeadlineSeconds":60,"containers":[{"name":"a"}]}"#);
    let start = pod::api_time(model.now);
    model.pod.status =
        Some(crate::pod::PodStatus { start_time: Some(start), ..Default::default() });
    let plan = model.settle();
    assert_eq!(model.wakes_in(&plan), Some(60));
    model.take_log();
    model.pass(60);
    model.settle();
    assert_eq!(model.take_log(), ["fail DeadlineExceeded", "kill a 30s", "stop s0", "clean"]);
}

#[test]
fn old_containers_are_removed() {
    let mut model = Model::new(ONE);
    for _ in 0..4 {
        model.settle();
        model.exit("a", 1);
        model.pass(1000);
    }
    model.settle();
    let names: BTreeMap<&str, u32> =
        model.runtime.containers.iter().map(|c| (c.id.as_str(), c.restart_count)).collect();
    assert_eq!(names.into_keys().collect::<Vec<_>>(), ["a-3", "a-4"]);
}

#[derive(Clone, Debug)]
enum Step {
    Exit(usize, i32),
    Pass(u64),
    Liveness(usize),
    SandboxDies,
    Delete(i64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0usize..4, 0i32..2).prop_map(|(index, code)| Step::Exit(index, code)),
        3 => (1u64..700).prop_map(Step::Pass),
        1 => (0usize..4).prop_map(Step::Liveness),
        1 => Just(Step::SandboxDies),
        1 => (0i64..60).prop_map(Step::Delete),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever happens, applying plans comes to rest, and a pod that is deleted ends.
    #[test]
    fn applied_plans_come_to_rest(
        policy in prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")],
        steps in prop::collection::vec(step(), 1..25),
    ) {
        let mut model = Model::new(&format!(
            r#"{{"restartPolicy":"{policy}","initContainers":[{{"name":"x"}},{{"name":"s","restartPolicy":"Always"}}],
                "containers":[{{"name":"a"}},{{"name":"b"}}]}}"#
        ));
        model.settle();
        for step in steps {
            match step {
                Step::Exit(index, code) => {
                    let running: Vec<String> = model.runtime.running().map(|c| c.id.clone()).collect();
                    if let Some(id) = running.get(index) {
                        model.exit_id(&id.clone(), code);
                    }
                }
                Step::Pass(seconds) => model.pass(seconds),
                Step::Liveness(index) => {
                    let running: Vec<String> = model.runtime.running().map(|c| c.id.clone()).collect();
                    if let Some(id) = running.get(index) {
                        let failed = ProbeResults { liveness: Some(false), ..ProbeResults::default() };
                        model.probes.insert(id.clone(), failed);
                    }
                }
                Step::SandboxDies => {
                    if let Some(sandbox) = model.runtime.sandboxes.first_mut() {
                        sandbox.ready = false;
                    }
                }
                Step::Delete(grace) => model.delete(grace),
            }
            let plan = model.settle();
            prop_assert!(plan.actions.is_empty());
        }
        model.delete(30);
        prop_assert!(model.settle().over);
        prop_assert!(model.runtime.containers.is_empty() && model.runtime.sandboxes.is_empty());
    }
}
