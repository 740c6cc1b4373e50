//! What to do next for one pod: a pure function of its spec, what the runtime has, what the
//! probes found, what was tried before, and the time.
//!
//! ```text
//!            ┌──────────── live ────────────┐        ┌───────────── ending ──────────────┐
//! admitted ─▶ sandbox ▸ init 1 … n ▸ mains ─┼─ done ─▶ kill mains ▸ kill sidecars in      ▸ clean ▸ delete
//!            └─ kill and restart, back off ─┘ deleted   reverse ▸ stop sandbox             (if deleted)
//!                                             deadline
//! ```
//!
//! Invariants: at most one step (making a sandbox or starting a container) runs at a time; kills
//! run beside each other; nothing starts in a pod that is ending; an action whose effect is
//! visible in the snapshot is never planned again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use stdx::{Timestamp, backoff::Backoff};

use crate::{
    pod::{self, Container as Spec, Pod, PodExt, Role, go_duration, should_restart},
    runtime_state::{Container, PodRuntime, Sandbox, State},
};

/// Everything a plan depends on.
#[derive(Clone, Copy)]
pub struct World<'a> {
    pub pod: &'a Pod,
    pub runtime: &'a PodRuntime,
    pub probes: &'a Probes,
    pub memory: &'a Memory,
    pub in_flight: &'a InFlight,
    pub now: Timestamp,
}

/// The latest result of each probe, by container id.
pub type Probes = BTreeMap<String, ProbeResults>;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeResults {
    pub startup: Option<bool>,
    pub liveness: Option<bool>,
    pub readiness: Option<bool>,
}

/// What the agent remembers of a pod beyond spec and runtime.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// Why the pod must end although nobody deleted it.
    pub verdict: Option<Verdict>,
    /// Why containers wait, by name: shown as their `waiting` state.
    pub failures: BTreeMap<String, Failure>,
    pub restarts: BTreeMap<String, RestartBackoff>,
    /// When the pod began to end, from which its grace counts.
    pub ending_since: Option<Timestamp>,
    /// Failed attempts to make the sandbox, and when the next may begin.
    pub sandbox_failures: u32,
    pub sandbox_retry_at: Option<Timestamp>,
    /// When a container whose start failed may be tried again.
    pub start_retry_at: BTreeMap<String, Timestamp>,
    /// Volumes are unmounted and the pod's directory is gone.
    pub cleaned: bool,
    /// The API object is gone, or is of another pod.
    pub gone: bool,
    /// The final status has been written.
    pub status_written: bool,
    pub deleted: bool,
}

/// The pod failed as a whole: rejected, evicted or past its deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub reason: String,
    pub message: String,
    /// A rejected pod never ran; its containers have no status.
    pub rejected: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: String,
    pub message: String,
}

/// How long a container must rest after its last end before it is started again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestartBackoff {
    pub hash: String,
    pub failures: u32,
    pub last_start: Timestamp,
}

/// What is being done right now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InFlight {
    pub step: bool,
    /// Containers being killed, with the moment of their SIGKILL.
    pub kills: BTreeMap<String, Timestamp>,
    pub stops: BTreeSet<String>,
    pub removals: BTreeSet<String>,
    pub cleaning: bool,
    pub deleting: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    CreateSandbox {
        attempt: u32,
        replaces: bool,
    },
    Start {
        name: String,
        restart_count: u32,
    },
    Kill(Kill),
    StopSandbox {
        id: String,
    },
    RemoveContainer {
        id: String,
    },
    RemoveSandbox {
        id: String,
    },
    /// Unmount volumes and remove the pod's directory.
    Clean,
    /// Delete the API object, now that nothing runs any more.
    Delete,
    /// The pod has run into its deadline.
    Fail(Verdict),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Kill {
    pub container_id: String,
    pub name: String,
    pub message: String,
    pub grace: Duration,
    /// Whether the container's preStop hook is to run; not for one that failed its startup.
    pub hook: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// Containers that back off, to be shown as waiting and told in an event.
    pub backing_off: BTreeMap<String, Failure>,
    /// When to plan again although nothing happened.
    pub wake_at: Option<Timestamp>,
    /// Nothing is left to do for this pod, ever.
    pub over: bool,
}

impl Plan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |known| known.min(at)));
    }
}

/// Upstream's crash-loop: at once, then after 10 s, doubling to 5 min; ten minutes of running
/// forget it.
pub const CRASH_LOOP: Backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(300));
const FORGET_AFTER: Duration = Duration::from_secs(600);
/// How long the runtime has at least to stop a container, as upstream.
const MINIMUM_GRACE: Duration = Duration::from_secs(2);
/// How many containers of one name are kept, the running one included.
const KEPT_PER_NAME: usize = 2;

/// The plan for one pod.
pub fn plan(world: &World) -> Plan {
    let mut plan = Plan::default();
    if is_ending(world.pod, world.runtime, world.memory) {
        end(world, &mut plan);
    } else {
        live(world, &mut plan);
    }
    plan
}

/// Whether the pod only has to be taken down.
pub fn is_ending(pod: &Pod, runtime: &PodRuntime, memory: &Memory) -> bool {
    pod.is_deleting()
        || memory.gone
        || memory.verdict.is_some()
        || matches!(pod.phase(), "Succeeded" | "Failed")
        || has_finished(pod, runtime)
}

/// Whether every container has ended for good.
pub fn has_finished(pod: &Pod, runtime: &PodRuntime) -> bool {
    let ended_for_good = |spec: &Spec, role: Role| {
        runtime.latest(&spec.name).is_some_and(|container| {
            container.state == State::Exited
                && !should_restart(pod, spec, role, container.exit_code)
        })
    };
    let containers = pod.all_containers();
    let of = |wanted: Role| containers.iter().filter(move |(_, role)| *role == wanted);
    let init_failed = of(Role::Init).any(|&(spec, role)| {
        ended_for_good(spec, role) && runtime.latest(&spec.name).is_some_and(|c| c.exit_code != 0)
    });
    let mut mains = of(Role::Main).peekable();
    init_failed || (mains.peek().is_some() && mains.all(|&(spec, role)| ended_for_good(spec, role)))
}

fn live(world: &World, plan: &mut Plan) {
    if let Some(verdict) = deadline(world, plan) {
        plan.actions.push(Action::Fail(verdict));
        return;
    }
    match usable_sandbox(world) {
        Some(sandbox) => {
            kill_unwanted(world, plan);
            start_next(world, sandbox, plan);
            remove_old(world, sandbox, plan);
        }
        None => replace_sandbox(world, plan),
    }
}

/// `activeDeadlineSeconds` counts from the moment the pod reached this node.
fn deadline(world: &World, plan: &mut Plan) -> Option<Verdict> {
    let seconds = world.pod.spec().active_deadline_seconds?;
    let start = world.pod.status.as_ref()?.start_time.as_ref()?;
    let at = pod::from_api_time(start) + Duration::from_secs(seconds.max(0) as u64);
    if world.now < at {
        plan.wake(at);
        return None;
    }
    Some(Verdict {
        reason: "DeadlineExceeded".into(),
        message: "Pod was active on the node longer than the specified deadline".into(),
        rejected: false,
    })
}

fn usable_sandbox<'a>(world: &World<'a>) -> Option<&'a Sandbox> {
    let sandbox = world.runtime.active_sandbox()?;
    let host_network = world.pod.host_network();
    let fits = sandbox.host_network == host_network;
    (fits && (host_network || !sandbox.ips.is_empty())).then_some(sandbox)
}

/// Takes down what is left of an unusable sandbox, then makes a new one.
fn replace_sandbox(world: &World, plan: &mut Plan) {
    let grace = world.pod.spec_grace();
    for container in world.runtime.running() {
        let message = "Pod sandbox changed, it will be killed and re-created.";
        kill(world, container, message.into(), grace, plan);
    }
    if world.runtime.running().next().is_some() {
        return;
    }
    let ready: Vec<_> = world.runtime.sandboxes.iter().filter(|sandbox| sandbox.ready).collect();
    for sandbox in &ready {
        stop(world, sandbox, plan);
    }
    if !ready.is_empty() || world.in_flight.step {
        return;
    }
    if let Some(at) = world.memory.sandbox_retry_at.filter(|&at| at > world.now) {
        plan.wake(at);
        return;
    }
    let newest = world.runtime.sandboxes.first();
    plan.actions.push(Action::CreateSandbox {
        attempt: newest.map_or(0, |sandbox| sandbox.attempt + 1),
        replaces: newest.is_some(),
    });
}

fn kill_unwanted(world: &World, plan: &mut Plan) {
    for (spec, role) in world.pod.all_containers() {
        let Some(container) = world.runtime.latest(&spec.name).filter(|c| c.is_running()) else {
            continue;
        };
        let Some((why, grace)) = why_kill(world, spec, role, container) else { continue };
        let again = should_restart(world.pod, spec, role, 137);
        let message = if again { format!("{why}, will be restarted") } else { why };
        kill(world, container, message, grace, plan);
    }
}

fn why_kill(
    world: &World,
    spec: &Spec,
    role: Role,
    container: &Container,
) -> Option<(String, Duration)> {
    let grace = world.pod.spec_grace();
    let name = &spec.name;
    let what = if role == Role::Main { "Container" } else { "Init container" };
    let results = world.probes.get(&container.id).copied().unwrap_or_default();
    let own_grace = |probe: &Option<k8s_openapi::api::core::v1::Probe>| {
        let seconds = probe.as_ref().and_then(|probe| probe.termination_grace_period_seconds);
        seconds.map_or(grace, |seconds| Duration::from_secs(seconds.max(0) as u64))
    };
    if !container.hash.is_empty() && container.hash != pod::container_hash(spec) {
        return Some((format!("{what} {name} definition changed"), grace));
    }
    if results.liveness == Some(false) {
        let why = format!("{what} {name} failed liveness probe");
        return Some((why, own_grace(&spec.liveness_probe)));
    }
    if results.startup == Some(false) {
        return Some((
            format!("{what} {name} failed startup probe"),
            own_grace(&spec.startup_probe),
        ));
    }
    None
}

/// Whether a running container has passed its startup probe, if it has one.
pub fn is_started(spec: &Spec, container: &Container, probes: &Probes) -> bool {
    let passed = || probes.get(&container.id).and_then(|results| results.startup) == Some(true);
    container.is_running() && (spec.startup_probe.is_none() || passed())
}

fn start_next(world: &World, sandbox: &Sandbox, plan: &mut Plan) {
    let mut chosen = None;
    let mut consider = |spec: &Spec, plan: &mut Plan| match next_start(world, spec, plan) {
        Some(action) if chosen.is_none() => chosen = Some(action),
        _ => {}
    };
    let containers = world.pod.all_containers();
    let initialized = is_initialized(world.pod, world.runtime, sandbox);
    for &(spec, role) in &containers {
        let here = world.runtime.latest(&spec.name).filter(|c| c.sandbox_id == sandbox.id);
        match role {
            Role::Init if initialized => {}
            Role::Init => match here {
                Some(c) if c.state == State::Exited && c.exit_code == 0 => {}
                Some(c) if c.is_running() => break,
                _ => {
                    consider(spec, plan);
                    break;
                }
            },
            Role::Sidecar => {
                let up = here.is_some_and(|c| is_started(spec, c, world.probes));
                if !here.is_some_and(Container::is_running) {
                    consider(spec, plan);
                }
                if !up && !initialized {
                    break;
                }
            }
            Role::Main | Role::Ephemeral => {
                let wanted = match world.runtime.latest(&spec.name) {
                    None => true,
                    Some(c) if c.is_running() => false,
                    Some(c) if c.state == State::Exited => {
                        should_restart(world.pod, spec, role, c.exit_code)
                    }
                    Some(_) => true,
                };
                if wanted {
                    consider(spec, plan);
                }
            }
        }
    }
    if !world.in_flight.step {
        plan.actions.extend(chosen);
    }
}

/// Whether the init containers are behind us: a main container was made in this sandbox.
pub fn is_initialized(pod: &Pod, runtime: &PodRuntime, sandbox: &Sandbox) -> bool {
    let mains = &pod.spec().containers;
    runtime
        .containers
        .iter()
        .filter(|container| container.sandbox_id == sandbox.id)
        .any(|container| mains.iter().any(|spec| spec.name == container.name))
}

/// The start of one container, unless it backs off or a kill of its predecessor is under way.
fn next_start(world: &World, spec: &Spec, plan: &mut Plan) -> Option<Action> {
    let latest = world.runtime.latest(&spec.name);
    if let Some(container) = latest {
        if world.in_flight.kills.contains_key(&container.id) {
            return None;
        }
        if let Some((until, delay)) = crash_loop(world, container) {
            let message = format!(
                "back-off {} restarting failed container={} pod={}",
                go_duration(delay),
                spec.name,
                world.pod.full_name()
            );
            let failure = Failure { reason: "CrashLoopBackOff".into(), message };
            plan.backing_off.insert(spec.name.clone(), failure);
            plan.wake(until);
            return None;
        }
    }
    if let Some(&at) = world.memory.start_retry_at.get(&spec.name) {
        if at > world.now {
            plan.wake(at);
            return None;
        }
    }
    let restart_count = match latest {
        Some(container) => container.restart_count + 1,
        None => reported_restarts(world.pod, &spec.name),
    };
    Some(Action::Start { name: spec.name.clone(), restart_count })
}

/// Until when a container that ended must rest, and how long that is.
fn crash_loop(world: &World, container: &Container) -> Option<(Timestamp, Duration)> {
    if container.state != State::Exited {
        return None;
    }
    let backoff = world.memory.restarts.get(&container.name)?;
    let finished = container.finished();
    if backoff.hash != container.hash || finished.since(backoff.last_start) > FORGET_AFTER {
        return None;
    }
    let delay = CRASH_LOOP.delay(backoff.failures);
    let until = finished + delay;
    (world.now < until).then_some((until, delay))
}

/// What the API says of a container that the runtime has forgotten (after a reboot).
fn reported_restarts(pod: &Pod, name: &str) -> u32 {
    let Some(status) = &pod.status else { return 0 };
    let lists = [&status.init_container_statuses, &status.container_statuses];
    let known = lists.into_iter().flatten().flatten().find(|status| status.name == name);
    known
        .filter(|status| status.container_id.is_some())
        .map_or(0, |status| u32::try_from(status.restart_count).unwrap_or(0) + 1)
}

impl Memory {
    /// Takes note of a container's start, so that the next failure waits longer.
    pub fn note_start(&mut self, predecessor: &Container, now: Timestamp) {
        if predecessor.state != State::Exited {
            return;
        }
        let known = self.restarts.get(&predecessor.name).filter(|known| {
            known.hash == predecessor.hash
                && predecessor.finished().since(known.last_start) <= FORGET_AFTER
        });
        let failures = known.map_or(1, |known| known.failures.saturating_add(1));
        let hash = predecessor.hash.clone();
        let backoff = RestartBackoff { hash, failures, last_start: now };
        self.restarts.insert(predecessor.name.clone(), backoff);
    }
}

/// Removes containers beyond the two newest of each name, and older sandboxes that hold none.
fn remove_old(world: &World, current: &Sandbox, plan: &mut Plan) {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut occupied = BTreeSet::from([current.id.as_str()]);
    for container in &world.runtime.containers {
        let count = seen.entry(&container.name).or_default();
        *count += 1;
        if *count > KEPT_PER_NAME && container.state == State::Exited {
            remove_container(world, &container.id, plan);
        } else {
            occupied.insert(&container.sandbox_id);
        }
    }
    for sandbox in &world.runtime.sandboxes {
        if occupied.contains(sandbox.id.as_str()) {
            continue;
        }
        if sandbox.ready {
            stop(world, sandbox, plan);
        } else {
            remove_sandbox(world, &sandbox.id, plan);
        }
    }
}

fn end(world: &World, plan: &mut Plan) {
    let since = world.memory.ending_since.unwrap_or(world.now);
    let deadline = since + ending_grace(world.pod, world.memory);
    let remaining = deadline.since(world.now);
    kill_in_order(world, remaining, plan);
    let in_flight = world.in_flight;
    let running = world.runtime.running().next().is_some();
    if running || in_flight.step || !in_flight.kills.is_empty() {
        return;
    }
    let mut stopped = true;
    for sandbox in world.runtime.sandboxes.iter().filter(|sandbox| sandbox.ready) {
        stop(world, sandbox, plan);
        stopped = false;
    }
    if !stopped {
        return;
    }
    if !world.memory.cleaned {
        if !in_flight.cleaning {
            plan.actions.push(Action::Clean);
        }
        return;
    }
    forget(world, plan);
}

/// The last part: the API object, then what the runtime still has.
fn forget(world: &World, plan: &mut Plan) {
    let gone = world.memory.gone || world.memory.deleted;
    if !world.pod.is_deleting() && !gone {
        // Logs of a finished pod stay readable until it is deleted.
        return;
    }
    if !gone {
        if world.memory.status_written && !world.in_flight.deleting {
            plan.actions.push(Action::Delete);
        }
        return;
    }
    for container in &world.runtime.containers {
        remove_container(world, &container.id, plan);
    }
    if world.runtime.containers.is_empty() {
        for sandbox in &world.runtime.sandboxes {
            remove_sandbox(world, &sandbox.id, plan);
        }
        plan.over = world.runtime.sandboxes.is_empty();
    }
}

/// How long the pod may take to end.
pub fn ending_grace(pod: &Pod, memory: &Memory) -> Duration {
    let deletion = pod.metadata.deletion_grace_period_seconds;
    match deletion {
        Some(seconds) => Duration::from_secs(seconds.max(0) as u64).max(Duration::from_secs(1)),
        None if memory.verdict.as_ref().is_some_and(|verdict| verdict.rejected) => Duration::ZERO,
        None => pod.spec_grace(),
    }
}

/// Main and init containers first, all at once; then sidecars, the last first, one by one.
fn kill_in_order(world: &World, remaining: Duration, plan: &mut Plan) {
    let role = |container: &Container| world.pod.container(&container.name).map(|(_, role)| role);
    let stopping = |container: &Container| format!("Stopping container {}", container.name);
    let mut others = false;
    for container in world.runtime.running().filter(|c| role(c) != Some(Role::Sidecar)) {
        others = true;
        kill(world, container, stopping(container), remaining, plan);
    }
    if others {
        return;
    }
    let sidecars = world.pod.spec().init_containers.iter().flatten().rev();
    let last = sidecars
        .filter(|spec| pod::is_sidecar(spec))
        .find_map(|spec| world.runtime.latest(&spec.name).filter(|c| c.is_running()));
    if let Some(container) = last {
        kill(world, container, stopping(container), remaining, plan);
    }
}

/// Kills, unless that is under way; a shorter grace than the one under way overrides it.
fn kill(world: &World, container: &Container, message: String, grace: Duration, plan: &mut Plan) {
    let grace = if is_ending(world.pod, world.runtime, world.memory) && grace < MINIMUM_GRACE {
        grace.max(Duration::from_secs(1))
    } else {
        grace
    };
    let deadline = world.now + grace;
    let slack = Duration::from_secs(1);
    if world.in_flight.kills.get(&container.id).is_some_and(|&known| deadline + slack >= known) {
        return;
    }
    plan.actions.push(Action::Kill(Kill {
        container_id: container.id.clone(),
        name: container.name.clone(),
        message,
        grace,
        hook: !world.in_flight.kills.contains_key(&container.id),
    }));
}

fn stop(world: &World, sandbox: &Sandbox, plan: &mut Plan) {
    if !world.in_flight.stops.contains(&sandbox.id) {
        plan.actions.push(Action::StopSandbox { id: sandbox.id.clone() });
    }
}

fn remove_container(world: &World, id: &str, plan: &mut Plan) {
    if !world.in_flight.removals.contains(id) {
        plan.actions.push(Action::RemoveContainer { id: id.into() });
    }
}

fn remove_sandbox(world: &World, id: &str, plan: &mut Plan) {
    if !world.in_flight.removals.contains(id) {
        plan.actions.push(Action::RemoveSandbox { id: id.into() });
    }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
