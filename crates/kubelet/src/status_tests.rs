use super::*;
use crate::{
    runtime_state::Sandbox,
    worker::{Failure, ProbeResults},
};

struct Case {
    pod: Pod,
    runtime: PodRuntime,
    probes: Probes,
    memory: Memory,
}

fn case(spec: &str) -> Case {
    let text = format!(
        r#"{{"metadata":{{"name":"p","namespace":"n","uid":"u","generation":2}},"spec":{spec}}}"#
    );
    Case {
        pod: serde_json::from_str(&text).unwrap(),
        runtime: PodRuntime {
            sandboxes: vec![Sandbox {
                id: "s".into(),
                ready: true,
                ips: vec!["10.0.0.1".into()],
                ..Sandbox::default()
            }],
            containers: Vec::new(),
        },
        probes: Probes::new(),
        memory: Memory::default(),
    }
}

impl Case {
    fn container(&mut self, name: &str, state: State, code: i32, restarts: u32) {
        self.runtime.containers.insert(
            0,
            Container {
                id: format!("{name}{restarts}"),
                name: name.into(),
                sandbox_id: "s".into(),
                state,
                exit_code: code,
                restart_count: restarts,
                created_at: 1_790_000_000_000_000_000 + i64::from(restarts),
                started_at: 1_790_000_000_000_000_000,
                finished_at: 1_790_000_001_000_000_000,
                reason: if code == 0 { "Completed".into() } else { "Error".into() },
                ..Container::default()
            },
        );
    }

    fn status(&self) -> PodStatus {
        generate(&StatusInput {
            pod: &self.pod,
            runtime: &self.runtime,
            probes: &self.probes,
            memory: &self.memory,
            host_ips: &["192.0.2.1".into()],
            runtime_name: "test",
            now: Timestamp::from_secs(1_790_000_100),
        })
    }

    /// `phase Ready=True:reason … name:state(reason)xN`, short enough to compare.
    fn summary(&self) -> String {
        let status = self.status();
        let mut words = vec![status.phase.unwrap()];
        for condition in status.conditions.iter().flatten() {
            if ["Ready", "Initialized"].contains(&condition.type_.as_str()) {
                let reason = condition.reason.clone().unwrap_or_default();
                words.push(format!("{}={}:{reason}", condition.type_, condition.status));
            }
        }
        let lists = [status.init_container_statuses, status.container_statuses];
        for status in lists.into_iter().flatten().flatten() {
            let state = status.state.unwrap();
            let shown = if state.running.is_some() {
                "running".to_owned()
            } else if let Some(ended) = state.terminated {
                format!("ended({})", ended.exit_code)
            } else {
                format!("waiting({})", state.waiting.unwrap().reason.unwrap_or_default())
            };
            let last = status.last_state.and_then(|state| state.terminated);
            let last = last.map_or(String::new(), |last| format!("<{}", last.exit_code));
            words.push(format!("{}:{shown}{last}x{}", status.name, status.restart_count));
        }
        words.join(" ")
    }
}

const TWO: &str =
    r#"{"containers":[{"name":"b","image":"i"},{"name":"a","image":"i","readinessProbe":{}}]}"#;

#[test]
fn a_pod_on_its_way() {
    let mut case = case(TWO);
    assert_eq!(
        case.summary(),
        "Pending Initialized=True: Ready=False:ContainersNotReady a:waiting(ContainerCreating)x0 b:waiting(ContainerCreating)x0"
    );
    let conditions = case.status().conditions.unwrap();
    assert_eq!(conditions[2].message.as_deref(), Some("containers with unready status: [b a]"));
    assert_eq!(conditions[0].type_, "PodReadyToStartContainers");
    assert_eq!(conditions[0].observed_generation, Some(2));
    case.container("a", State::Running, 0, 0);
    case.container("b", State::Running, 0, 0);
    assert_eq!(
        case.summary(),
        "Running Initialized=True: Ready=False:ContainersNotReady a:runningx0 b:runningx0"
    );
    case.probes
        .insert("a0".into(), ProbeResults { readiness: Some(true), ..ProbeResults::default() });
    assert_eq!(case.summary(), "Running Initialized=True: Ready=True: a:runningx0 b:runningx0");
    let status = case.status();
    assert_eq!(status.pod_ip.as_deref(), Some("10.0.0.1"));
    let first = &status.container_statuses.unwrap()[0];
    assert_eq!(first.container_id.as_deref(), Some("test://a0"));
}

#[test]
fn a_crash_loop_is_shown_as_waiting() {
    let mut case = case(r#"{"containers":[{"name":"a","image":"i"}]}"#);
    case.container("a", State::Exited, 7, 0);
    assert_eq!(
        case.summary(),
        "Running Initialized=True: Ready=False:ContainersNotReady a:ended(7)x0"
    );
    case.container("a", State::Exited, 8, 1);
    let failure = Failure { reason: "CrashLoopBackOff".into(), message: "m".into() };
    case.memory.failures.insert("a".into(), failure);
    assert_eq!(
        case.summary(),
        "Running Initialized=True: Ready=False:ContainersNotReady a:waiting(CrashLoopBackOff)<8x1"
    );
}

#[test]
fn restart_policies_decide_the_phase() {
    for (policy, code, expected) in [
        ("Never", 0, "Succeeded"),
        ("Never", 1, "Failed"),
        ("OnFailure", 0, "Succeeded"),
        ("OnFailure", 1, "Running"),
        ("Always", 0, "Running"),
    ] {
        let spec = format!(r#"{{"restartPolicy":"{policy}","containers":[{{"name":"a"}}]}}"#);
        let mut case = case(&spec);
        case.container("a", State::Exited, code, 0);
        assert_eq!(case.status().phase.unwrap(), expected, "{policy} {code}");
    }
}

#[test]
fn init_containers_come_first() {
    let mut case = case(r#"{"initContainers":[{"name":"x"}],"containers":[{"name":"a"}]}"#);
    case.container("x", State::Running, 0, 0);
    assert_eq!(
        case.summary(),
        "Pending Initialized=False:ContainersNotInitialized Ready=False:ContainersNotReady x:runningx0 a:waiting(PodInitializing)x0"
    );
    case.runtime.containers.clear();
    case.container("x", State::Exited, 0, 0);
    case.container("a", State::Running, 0, 0);
    assert_eq!(case.summary(), "Running Initialized=True: Ready=True: x:ended(0)x0 a:runningx0");
}

#[test]
fn a_rejected_pod_has_failed() {
    let mut case = case(TWO);
    case.memory.verdict = Some(crate::worker::Verdict {
        reason: "OutOfcpu".into(),
        message: "m".into(),
        rejected: true,
    });
    let status = case.status();
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref()),
        (Some("Failed"), Some("OutOfcpu"))
    );
    assert!(status.container_statuses.is_none());
}

#[test]
fn a_transition_keeps_its_time() {
    let mut case = case(TWO);
    let mut status = case.status();
    let old = api_time(Timestamp::from_secs(5));
    for condition in status.conditions.iter_mut().flatten() {
        condition.last_transition_time = Some(old.clone());
    }
    case.pod.status = Some(status.clone());
    assert_eq!(case.status(), status);
}

#[test]
fn a_deleted_pod_ends_in_a_final_phase() {
    let mut case = case(r#"{"containers":[{"name":"a"}]}"#);
    case.container("a", State::Exited, 137, 0);
    case.pod.metadata.deletion_timestamp = Some(api_time(Timestamp::from_secs(5)));
    assert_eq!(case.status().phase.unwrap(), "Failed");
    case.runtime.containers.clear();
    case.container("a", State::Exited, 0, 0);
    assert_eq!(case.status().phase.unwrap(), "Succeeded");
}
