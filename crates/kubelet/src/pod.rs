//! Reading a pod: the questions that every part of the node asks of its spec.

use std::time::Duration;

use client::events::ObjectReference;
use k8s_openapi::api::core::v1::ContainerRestartRule;
pub use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use sha2::{Digest, Sha256};
use stdx::Timestamp;

use crate::quantity::ResourceList;

/// Accessors of a pod that the API server has accepted, so names, uid and spec are there.
pub trait PodExt {
    fn uid(&self) -> &str;
    fn name(&self) -> &str;
    fn namespace(&self) -> &str;
    fn spec(&self) -> &PodSpec;
    /// `name_namespace(uid)`, as messages name a pod.
    fn full_name(&self) -> String;
    fn is_deleting(&self) -> bool;
    fn host_network(&self) -> bool;
    fn restart_policy(&self) -> &str;
    /// Init containers, then main ones, with whether they are init containers.
    fn all_containers(&self) -> Vec<(&Container, Role)>;
    fn container(&self, name: &str) -> Option<(&Container, Role)>;
    fn reference(&self) -> ObjectReference;
    fn phase(&self) -> &str;
    fn generation(&self) -> Option<i64>;
    fn spec_grace(&self) -> Duration;
}

/// What a container is in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Runs to completion before the next one.
    Init,
    /// An init container with `restartPolicy: Always`: starts in order, lives as long as the pod.
    Sidecar,
    Main,
    /// Added to a running pod for debugging; never restarted.
    Ephemeral,
}

static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);

impl PodExt for Pod {
    fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    fn spec(&self) -> &PodSpec {
        self.spec.as_ref().unwrap_or(&EMPTY)
    }

    fn full_name(&self) -> String {
        format!("{}_{}({})", self.name(), self.namespace(), self.uid())
    }

    fn is_deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    fn host_network(&self) -> bool {
        self.spec().host_network == Some(true)
    }

    fn restart_policy(&self) -> &str {
        self.spec().restart_policy.as_deref().unwrap_or("Always")
    }

    fn all_containers(&self) -> Vec<(&Container, Role)> {
        let spec = self.spec();
        let init = spec.init_containers.iter().flatten().map(|container| {
            let role = if is_sidecar(container) { Role::Sidecar } else { Role::Init };
            (container, role)
        });
        let mains = spec.containers.iter().map(|container| {
            let role = if is_ephemeral(container) { Role::Ephemeral } else { Role::Main };
            (container, role)
        });
        init.chain(mains).collect()
    }

    fn container(&self, name: &str) -> Option<(&Container, Role)> {
        self.all_containers().into_iter().find(|(container, _)| container.name == name)
    }

    fn reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: "v1".into(),
            kind: "Pod".into(),
            namespace: self.namespace().into(),
            name: self.name().into(),
            uid: self.uid().into(),
            resource_version: self.metadata.resource_version.clone().unwrap_or_default(),
            field_path: String::new(),
        }
    }

    fn phase(&self) -> &str {
        self.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
    }

    fn generation(&self) -> Option<i64> {
        self.metadata.generation.filter(|&generation| generation > 0)
    }

    fn spec_grace(&self) -> Duration {
        Duration::from_secs(self.spec().termination_grace_period_seconds.unwrap_or(30).max(0) as u64)
    }
}

pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Marks an ephemeral container among the main ones; no policy of the API has this name.
const EPHEMERAL: &str = "Ephemeral";

fn is_ephemeral(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some(EPHEMERAL)
}

/// Reads a pod as the agent works with it: ephemeral containers stand behind the main ones,
/// marked, so that every part treats them alike.
pub fn take_in(mut pod: Pod) -> Pod {
    let Some(spec) = &mut pod.spec else { return pod };
    for ephemeral in spec.ephemeral_containers.iter().flatten() {
        let converted = serde_json::to_value(ephemeral).and_then(serde_json::from_value);
        match converted {
            Ok(container) => spec
                .containers
                .push(Container { restart_policy: Some(EPHEMERAL.into()), ..container }),
            Err(error) => tracing::error!(%error, "an ephemeral container cannot be read"),
        }
    }
    pod
}

/// The pod as the API has it.
pub fn give_back(pod: &Pod) -> Pod {
    let mut pod = pod.clone();
    if let Some(spec) = &mut pod.spec {
        spec.containers.retain(|container| !is_ephemeral(container));
    }
    pod
}

/// The object reference of one container, `spec.containers{name}` as events write it.
pub fn container_reference(pod: &Pod, name: &str) -> ObjectReference {
    let list = match pod.container(name) {
        Some((_, Role::Main)) => "containers",
        Some((_, Role::Ephemeral)) => "ephemeralContainers",
        _ => "initContainers",
    };
    ObjectReference { field_path: format!("spec.{list}{{{name}}}"), ..pod.reference() }
}

/// Whether a container that ended with `exit_code` is to run again, by its own policy and rules
/// (KEP-5307), else by the pod's. An init container treats `Always` as `OnFailure`.
pub fn should_restart(pod: &Pod, container: &Container, role: Role, exit_code: i32) -> bool {
    if role == Role::Ephemeral {
        return false;
    }
    if let Some(rules) = &container.restart_policy_rules {
        if let Some(rule) = rules.iter().find(|rule| rule_matches(rule, exit_code)) {
            return rule.action.starts_with("Restart");
        }
    }
    let policy = container.restart_policy.as_deref().unwrap_or(pod.restart_policy());
    match (policy, role) {
        ("Never", _) => false,
        ("Always", Role::Main | Role::Sidecar) => true,
        _ => exit_code != 0,
    }
}

fn rule_matches(rule: &ContainerRestartRule, exit_code: i32) -> bool {
    let Some(codes) = &rule.exit_codes else { return false };
    let listed = codes.values.as_ref().is_some_and(|values| values.contains(&exit_code));
    if codes.operator == "NotIn" { !listed } else { listed }
}

/// Identifies what would need a container to be replaced: its name and image.
pub fn container_hash(container: &Container) -> String {
    let image = container.image.as_deref().unwrap_or_default();
    let digest = Sha256::digest(format!("{}\0{image}", container.name));
    digest[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The pod's class of service, as the API server writes it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    pub fn of(pod: &Pod) -> Self {
        let written = pod.status.as_ref().and_then(|status| status.qos_class.as_deref());
        match written {
            Some("Guaranteed") => Self::Guaranteed,
            Some("Burstable") => Self::Burstable,
            Some("BestEffort") => Self::BestEffort,
            _ => Self::compute(pod),
        }
    }

    fn compute(pod: &Pod) -> Self {
        let containers = pod.all_containers();
        let set = |list: Option<&ResourceList>, name: &str| {
            list.and_then(|list| list.get(name)).is_some_and(|quantity| quantity.0 != "0")
        };
        let mut any = false;
        let mut guaranteed = true;
        for (container, _) in containers {
            let resources = container.resources.as_ref();
            let limits = resources.and_then(|r| r.limits.as_ref());
            let requests = resources.and_then(|r| r.requests.as_ref());
            for name in ["cpu", "memory"] {
                any |= set(limits, name) || set(requests, name);
                let equal = requests.and_then(|r| r.get(name)).is_none_or(|request| {
                    limits.and_then(|l| l.get(name)).is_some_and(|limit| limit == request)
                });
                guaranteed &= set(limits, name) && equal;
            }
        }
        match (any, guaranteed) {
            (false, _) => Self::BestEffort,
            (true, true) => Self::Guaranteed,
            (true, false) => Self::Burstable,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// Wall-clock time as the API writes it, in whole seconds.
pub fn api_time(time: Timestamp) -> Time {
    let seconds = jiff::Timestamp::from_second(time.as_secs());
    Time(seconds.unwrap_or(jiff::Timestamp::UNIX_EPOCH))
}

pub fn from_api_time(time: &Time) -> Timestamp {
    Timestamp::from_nanos(time.0.as_nanosecond())
}

/// A duration as Go prints it: `10s`, `1m20s`, `1.5s`, `250ms`.
pub fn go_duration(duration: Duration) -> String {
    if duration.is_zero() {
        return "0s".into();
    }
    let trim = |value: f64| {
        let text = format!("{value:.9}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    if duration < Duration::from_micros(1) {
        return format!("{}ns", duration.as_nanos());
    }
    if duration < Duration::from_millis(1) {
        return format!("{}µs", trim(duration.as_nanos() as f64 / 1e3));
    }
    if duration < Duration::from_secs(1) {
        return format!("{}ms", trim(duration.as_nanos() as f64 / 1e6));
    }
    let (hours, minutes) = (duration.as_secs() / 3600, duration.as_secs() / 60 % 60);
    let seconds = trim(duration.as_secs_f64() - (duration.as_secs() / 60 * 60) as f64);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_in_go() {
        for (millis, text) in
            [(10_000, "10s"), (80_000, "1m20s"), (300_000, "5m0s"), (1500, "1.5s"), (250, "250ms")]
        {
            assert_eq!(go_duration(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn class_of_service_follows_requests_and_limits() {
        let pod = |resources: &str| -> Pod {
            let text =
                format!(r#"{{"spec":{{"containers":[{{"name":"a","resources":{resources}}}]}}}}"#);
            serde_json::from_str(&text).unwrap()
        };
        assert_eq!(Qos::of(&pod("{}")), Qos::BestEffort);
        assert_eq!(Qos::of(&pod(r#"{"requests":{"cpu":"1"}}"#)), Qos::Burstable);
        let full = r#"{"requests":{"cpu":"1","memory":"1Gi"},"limits":{"cpu":"1","memory":"1Gi"}}"#;
        assert_eq!(Qos::of(&pod(full)), Qos::Guaranteed);
    }
}
