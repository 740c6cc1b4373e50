//! The pod's status as the API shows it: a pure function of spec, runtime and probes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, ContainerUser, HostIP, LinuxContainerUser, PodCondition, PodIP,
    VolumeMountStatus,
};
use stdx::Timestamp;

use crate::{
    pod::{Container as Spec, Pod, PodExt, PodStatus, Qos, Role, api_time, should_restart},
    runtime_state::{Container, PodRuntime, State},
    worker::{self, Memory, Probes},
};

/// What the status depends on. The pod's own status is what was reported before.
#[derive(Clone, Copy)]
pub struct StatusInput<'a> {
    pub pod: &'a Pod,
    pub runtime: &'a PodRuntime,
    pub probes: &'a Probes,
    pub memory: &'a Memory,
    pub host_ips: &'a [String],
    /// The prefix of container ids: `containerd`, `gantry`.
    pub runtime_name: &'a str,
    pub now: Timestamp,
}

/// The status to report now.
pub fn generate(input: &StatusInput) -> PodStatus {
    let pod = input.pod;
    let old = pod.status.clone().unwrap_or_default();
    let mut status = PodStatus {
        qos_class: Some(Qos::of(pod).as_str().into()),
        start_time: old.start_time.clone().or_else(|| Some(api_time(input.now))),
        observed_generation: pod.generation(),
        host_ip: input.host_ips.first().cloned(),
        ..PodStatus::default()
    };
    let host_ips = input.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect::<Vec<_>>();
    status.host_ips = (!host_ips.is_empty()).then_some(host_ips);
    set_pod_ips(input, &old, &mut status);
    if let Some(verdict) = input.memory.verdict.as_ref().filter(|verdict| verdict.rejected) {
        status.phase = Some("Failed".into());
        status.reason = Some(verdict.reason.clone());
        status.message = Some(verdict.message.clone());
        status.conditions = old.conditions;
        return status;
    }
    let init = container_statuses(input, &[Role::Init, Role::Sidecar]);
    let mains = container_statuses(input, &[Role::Main]);
    let ephemeral = container_statuses(input, &[Role::Ephemeral]);
    let phase = phase(input, &init, &mains);
    if let Some(verdict) = &input.memory.verdict {
        status.reason = Some(verdict.reason.clone());
        status.message = Some(verdict.message.clone());
    } else if phase == "Failed" {
        status.reason = old.reason.clone();
        status.message = old.message.clone();
    }
    status.conditions = Some(conditions(input, &old, &init, &mains, phase));
    status.phase = Some(phase.into());
    status.init_container_statuses = (!init.is_empty()).then_some(init);
    status.container_statuses = (!mains.is_empty()).then_some(mains);
    status.ephemeral_container_statuses = (!ephemeral.is_empty()).then_some(ephemeral);
    status
}

/// A pod keeps the addresses it had, also after its sandbox is gone.
fn set_pod_ips(input: &StatusInput, old: &PodStatus, status: &mut PodStatus) {
    let ips: Vec<String> = if input.pod.host_network() {
        input.host_ips.to_vec()
    } else if input.runtime.ips().is_empty() {
        old.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect()
    } else {
        input.runtime.ips().to_vec()
    };
    status.pod_ip = ips.first().cloned();
    let listed: Vec<PodIP> = ips.into_iter().map(|ip| PodIP { ip }).collect();
    status.pod_ips = (!listed.is_empty()).then_some(listed);
}

/// The statuses of containers of some roles; main ones sorted by name, as upstream has them.
fn container_statuses(input: &StatusInput, roles: &[Role]) -> Vec<ContainerStatus> {
    let containers = input.pod.all_containers();
    let wanted = containers.iter().filter(|(_, role)| roles.contains(role));
    let mut statuses: Vec<_> =
        wanted.map(|(spec, role)| container_status(input, spec, *role)).collect();
    if roles.contains(&Role::Main) {
        statuses.sort_by(|a, b| a.name.cmp(&b.name));
    }
    statuses
}

fn container_status(input: &StatusInput, spec: &Spec, role: Role) -> ContainerStatus {
    let reported = reported(input.pod, &spec.name);
    let mut same_name = input.runtime.containers.iter().filter(|c| c.name == spec.name);
    let (latest, previous) = (same_name.next(), same_name.find(|c| c.state == State::Exited));
    let mut status = match latest {
        Some(container) => from_runtime(input, spec, container),
        None => unseen(input, spec, role, reported),
    };
    status.last_state = match (previous, &status.last_state) {
        (Some(previous), _) => Some(terminated(input, previous)),
        (None, Some(known)) => Some(known.clone()),
        (None, None) => reported
            .filter(|old| old.container_id == status.container_id)
            .and_then(|old| old.last_state.clone()),
    };
    show_waiting(input, spec, role, latest, &mut status);
    status.volume_mounts = volume_mounts(spec);
    set_readiness(input, spec, role, latest, &mut status);
    status
}

fn reported<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let lists = [
        &status.init_container_statuses,
        &status.container_statuses,
        &status.ephemeral_container_statuses,
    ];
    lists.into_iter().flatten().flatten().find(|status| status.name == name)
}

fn from_runtime(input: &StatusInput, spec: &Spec, container: &Container) -> ContainerStatus {
    let state = match container.state {
        State::Running => ContainerState {
            running: Some(ContainerStateRunning {
                started_at: Some(api_time(container.started())),
            }),
            ..ContainerState::default()
        },
        State::Exited => terminated(input, container),
        State::Created | State::Unknown => waiting(default_reason(input), ""),
    };
    let user = container.user.as_ref().map(|(uid, gid, groups)| ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: *uid,
            gid: *gid,
            supplemental_groups: (!groups.is_empty()).then(|| groups.clone()),
        }),
    });
    let resources = spec.resources.clone().unwrap_or_default();
    ContainerStatus {
        name: spec.name.clone(),
        image: if container.image.is_empty() {
            spec.image.clone().unwrap_or_default()
        } else {
            container.image.clone()
        },
        image_id: container.image_ref.clone(),
        container_id: Some(id(input, container)),
        restart_count: i32::try_from(container.restart_count).unwrap_or(i32::MAX),
        state: Some(state),
        user,
        allocated_resources: resources.requests.clone(),
        resources: Some(resources),
        ..ContainerStatus::default()
    }
}

/// A container that the runtime does not have: not made yet, or lost with the machine.
fn unseen(
    input: &StatusInput,
    spec: &Spec,
    role: Role,
    reported: Option<&ContainerStatus>,
) -> ContainerStatus {
    let fresh = ContainerStatus {
        name: spec.name.clone(),
        image: spec.image.clone().unwrap_or_default(),
        state: Some(waiting(default_reason(input), "")),
        ..ContainerStatus::default()
    };
    let Some(old) = reported else { return skipped_init(input, role, fresh) };
    let old_state = old.state.clone().unwrap_or_default();
    if old_state.terminated.is_some() {
        return old.clone();
    }
    let mut status = ContainerStatus {
        restart_count: old.restart_count,
        last_state: old.last_state.clone(),
        ..fresh
    };
    if old_state.running.is_some() {
        status.last_state = Some(ContainerState {
            terminated: Some(ContainerStateTerminated {
                reason: Some("ContainerStatusUnknown".into()),
                message: Some("The container ran before, but the runtime no longer has it".into()),
                exit_code: 137,
                ..ContainerStateTerminated::default()
            }),
            ..ContainerState::default()
        });
        status.restart_count += i32::from(!input.pod.is_deleting());
    }
    skipped_init(input, role, status)
}

/// An init container whose record is gone has succeeded if main containers were made after it.
fn skipped_init(input: &StatusInput, role: Role, mut status: ContainerStatus) -> ContainerStatus {
    let mains = &input.pod.spec().containers;
    let made = mains.iter().any(|spec| input.runtime.latest(&spec.name).is_some());
    if role == Role::Init && made {
        status.state = Some(ContainerState {
            terminated: Some(ContainerStateTerminated {
                reason: Some("Completed".into()),
                message: Some(
                    "The runtime no longer has the container; later ones have started".into(),
                ),
                ..ContainerStateTerminated::default()
            }),
            ..ContainerState::default()
        });
    }
    status
}

/// A container that is to be started and cannot be is shown as waiting, its end as `lastState`.
fn show_waiting(
    input: &StatusInput,
    spec: &Spec,
    role: Role,
    latest: Option<&Container>,
    status: &mut ContainerStatus,
) {
    let Some(failure) = input.memory.failures.get(&spec.name) else { return };
    let wanted = match latest {
        None => true,
        Some(c) if c.state == State::Exited => should_restart(input.pod, spec, role, c.exit_code),
        Some(c) => !c.is_running(),
    };
    if !wanted || worker::is_ending(input.pod, input.runtime, input.memory) {
        return;
    }
    if status.state.as_ref().is_some_and(|state| state.terminated.is_some()) {
        status.last_state = status.state.take();
    }
    status.state = Some(waiting(&failure.reason, &failure.message));
}

fn waiting(reason: &str, message: &str) -> ContainerState {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let waiting = ContainerStateWaiting { reason: some(reason), message: some(message) };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

fn default_reason(input: &StatusInput) -> &'static str {
    let init = input.pod.spec().init_containers.as_ref().is_some_and(|list| !list.is_empty());
    if init { "PodInitializing" } else { "ContainerCreating" }
}

fn terminated(input: &StatusInput, container: &Container) -> ContainerState {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let started = (container.started_at > 0).then(|| api_time(container.started()));
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(id(input, container)),
            exit_code: container.exit_code,
            finished_at: Some(api_time(container.finished())),
            started_at: started.or_else(|| Some(api_time(Timestamp::from_secs(0)))),
            reason: some(&container.reason),
            message: some(&container.message),
            signal: None,
        }),
        ..ContainerState::default()
    }
}

fn id(input: &StatusInput, container: &Container) -> String {
    format!("{}://{}", input.runtime_name, container.id)
}

fn volume_mounts(spec: &Spec) -> Option<Vec<VolumeMountStatus>> {
    let mounts = spec.volume_mounts.as_ref().filter(|mounts| !mounts.is_empty())?;
    let statuses = mounts.iter().map(|mount| VolumeMountStatus {
        name: mount.name.clone(),
        mount_path: mount.mount_path.clone(),
        read_only: mount.read_only,
        recursive_read_only: (mount.read_only == Some(true)).then(|| "Disabled".to_owned()),
        ..VolumeMountStatus::default()
    });
    Some(statuses.collect())
}

fn set_readiness(
    input: &StatusInput,
    spec: &Spec,
    role: Role,
    latest: Option<&Container>,
    status: &mut ContainerStatus,
) {
    let running = latest.filter(|container| container.is_running());
    let started = running.is_some_and(|c| worker::is_started(spec, c, input.probes));
    status.started = Some(started);
    status.ready = match (role, running) {
        // An init container is ready when it has done its work.
        (Role::Init, _) => {
            let state = status.state.as_ref().and_then(|state| state.terminated.as_ref());
            state.is_some_and(|state| state.exit_code == 0)
        }
        (_, Some(container)) => {
            let results = input.probes.get(&container.id).copied().unwrap_or_default();
            started && (spec.readiness_probe.is_none() || results.readiness == Some(true))
        }
        (_, None) => false,
    };
}

/// The phase, by upstream's rules.
fn phase(input: &StatusInput, init: &[ContainerStatus], mains: &[ContainerStatus]) -> &'static str {
    let pod = input.pod;
    // A phase that was final stays.
    match pod.phase() {
        "Failed" => return "Failed",
        "Succeeded" => return "Succeeded",
        _ => {}
    }
    let ending = pod.is_deleting() || input.memory.gone || input.memory.verdict.is_some();
    let nothing_runs = input.runtime.running().next().is_none();
    if input.memory.verdict.is_some() && nothing_runs {
        return "Failed";
    }
    let mut count = Counts::default();
    for (status, (spec, role)) in init.iter().zip(init_specs(pod)) {
        count.init(pod, spec, role, status);
    }
    for status in mains {
        if let Some((spec, role)) = pod.container(&status.name) {
            count.main(pod, spec, role, status);
        }
    }
    let initialized = input
        .runtime
        .sandboxes
        .first()
        .is_some_and(|sandbox| worker::is_initialized(pod, input.runtime, sandbox));
    count.phase(ending && nothing_runs, initialized)
}

fn init_specs(pod: &Pod) -> impl Iterator<Item = (&Spec, Role)> {
    let early = [Role::Init, Role::Sidecar];
    pod.all_containers().into_iter().filter(move |(_, role)| early.contains(role))
}

#[derive(Default)]
struct Counts {
    init_pending: usize,
    init_failed: usize,
    sidecars_pending: usize,
    running: usize,
    waiting: usize,
    stopped: usize,
    stopped_for_good: usize,
    succeeded: usize,
}

impl Counts {
    fn init(&mut self, pod: &Pod, spec: &Spec, role: Role, status: &ContainerStatus) {
        let state = status.state.clone().unwrap_or_default();
        let ended = state.terminated.or_else(|| status.last_state.clone()?.terminated);
        if role == Role::Sidecar {
            if state.running.is_some() {
                self.running += 1;
                self.sidecars_pending += usize::from(status.started != Some(true));
            } else if ended.is_none() {
                self.sidecars_pending += 1;
                self.waiting += 1;
            }
            return;
        }
        match ended {
            _ if state.running.is_some() => self.init_pending += 1,
            Some(end) if end.exit_code == 0 => {}
            Some(end) if !should_restart(pod, spec, role, end.exit_code) => self.init_failed += 1,
            _ => self.init_pending += 1,
        }
    }

    fn main(&mut self, pod: &Pod, spec: &Spec, role: Role, status: &ContainerStatus) {
        let state = status.state.clone().unwrap_or_default();
        if state.running.is_some() {
            self.running += 1;
            return;
        }
        let waits = state.waiting.is_some();
        let ended = state.terminated.or_else(|| status.last_state.clone()?.terminated);
        let Some(end) = ended else {
            self.waiting += 1;
            return;
        };
        self.stopped += 1;
        self.stopped_for_good += usize::from(!should_restart(pod, spec, role, end.exit_code));
        self.succeeded += usize::from(!waits && end.exit_code == 0);
    }

    fn phase(&self, torn_down: bool, initialized: bool) -> &'static str {
        if self.init_failed > 0 {
            return "Failed";
        }
        let sidecars = self.sidecars_pending > 0 && !initialized;
        if self.init_pending > 0 || sidecars || self.waiting > 0 {
            return "Pending";
        }
        if self.running > 0 {
            return "Running";
        }
        if self.stopped == 0 {
            return "Pending";
        }
        if !torn_down && self.stopped != self.stopped_for_good {
            return "Running";
        }
        if self.stopped == self.succeeded { "Succeeded" } else { "Failed" }
    }
}

fn conditions(
    input: &StatusInput,
    old: &PodStatus,
    init: &[ContainerStatus],
    mains: &[ContainerStatus],
    phase: &str,
) -> Vec<PodCondition> {
    let containers_ready = containers_ready(input, init, mains, phase);
    let ready = ready(input.pod, old, &containers_ready);
    let sandbox = input.runtime.active_sandbox();
    let has_network = sandbox.is_some_and(|s| s.host_network || !s.ips.is_empty());
    let made = [
        ("PodReadyToStartContainers", Verdict::of(has_network)),
        ("Initialized", initialized(input, init, phase)),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", Verdict::of(true)),
    ];
    let previous: BTreeMap<&str, &PodCondition> =
        old.conditions.iter().flatten().map(|c| (c.type_.as_str(), c)).collect();
    let mut conditions: Vec<PodCondition> = made
        .into_iter()
        .map(|(kind, verdict)| verdict.condition(kind, previous.get(kind).copied(), input))
        .collect();
    // Conditions of others (readiness gates, DisruptionTarget) stay as they are.
    let own: Vec<String> = conditions.iter().map(|c| c.type_.clone()).collect();
    conditions.extend(old.conditions.iter().flatten().filter(|c| !own.contains(&c.type_)).cloned());
    conditions
}

#[derive(Clone, Default)]
struct Verdict {
    holds: bool,
    reason: &'static str,
    message: String,
}

impl Verdict {
    fn of(holds: bool) -> Self {
        Self { holds, ..Self::default() }
    }

    fn condition(
        self,
        kind: &str,
        previous: Option<&PodCondition>,
        input: &StatusInput,
    ) -> PodCondition {
        let status = if self.holds { "True" } else { "False" };
        let kept = previous.filter(|previous| previous.status == status);
        PodCondition {
            type_: kind.into(),
            status: status.into(),
            last_transition_time: kept
                .and_then(|kept| kept.last_transition_time.clone())
                .or_else(|| Some(api_time(input.now))),
            last_probe_time: None,
            observed_generation: input.pod.generation(),
            reason: (!self.reason.is_empty()).then(|| self.reason.to_owned()),
            message: (!self.message.is_empty()).then_some(self.message),
        }
    }
}

fn initialized(input: &StatusInput, init: &[ContainerStatus], phase: &str) -> Verdict {
    let done = Verdict { holds: true, ..Verdict::default() };
    if phase == "Succeeded" {
        return Verdict { reason: "PodCompleted", ..done };
    }
    let mains = &input.pod.spec().containers;
    let mains_made = mains.iter().any(|spec| input.runtime.latest(&spec.name).is_some());
    let unfinished: Vec<&str> = init
        .iter()
        .zip(init_specs(input.pod))
        .filter(|(status, (_, role))| match role {
            Role::Sidecar => status.started != Some(true) && !mains_made,
            _ => !status.ready,
        })
        .map(|(status, _)| status.name.as_str())
        .collect();
    if unfinished.is_empty() {
        return done;
    }
    Verdict {
        holds: false,
        reason: "ContainersNotInitialized",
        message: format!("containers with incomplete status: [{}]", unfinished.join(" ")),
    }
}

fn containers_ready(
    input: &StatusInput,
    init: &[ContainerStatus],
    mains: &[ContainerStatus],
    phase: &str,
) -> Verdict {
    match phase {
        "Succeeded" => return Verdict { reason: "PodCompleted", ..Verdict::default() },
        "Failed" => return Verdict { reason: "PodFailed", ..Verdict::default() },
        _ => {}
    }
    let sidecars = init
        .iter()
        .zip(init_specs(input.pod))
        .filter(|(_, (_, role))| *role == Role::Sidecar)
        .map(|(status, _)| status);
    // Named in the order of the spec.
    let in_order = input
        .pod
        .spec()
        .containers
        .iter()
        .filter_map(|spec| mains.iter().find(|status| status.name == spec.name));
    let unready: Vec<&str> = sidecars
        .chain(in_order)
        .filter(|status| !status.ready)
        .map(|status| status.name.as_str())
        .collect();
    if unready.is_empty() {
        return Verdict::of(true);
    }
    Verdict {
        holds: false,
        reason: "ContainersNotReady",
        message: format!("containers with unready status: [{}]", unready.join(" ")),
    }
}

fn ready(pod: &Pod, old: &PodStatus, containers_ready: &Verdict) -> Verdict {
    if !containers_ready.holds {
        return containers_ready.clone();
    }
    let mut missing = Vec::new();
    for gate in pod.spec().readiness_gates.iter().flatten() {
        let kind = &gate.condition_type;
        let found = old.conditions.iter().flatten().find(|c| &c.type_ == kind);
        match found {
            None => missing.push(format!(
                "corresponding condition of pod readiness gate {kind:?} does not exist."
            )),
            Some(c) if c.status != "True" => missing.push(format!(
                "the status of pod readiness gate {kind:?} is not \"True\", but {}",
                c.status
            )),
            Some(_) => {}
        }
    }
    if missing.is_empty() {
        return Verdict::of(true);
    }
    Verdict { holds: false, reason: "ReadinessGatesNotReady", message: missing.join(", ") }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
