//! Requests and limits as the kernel counts them: shares, quotas, bytes, and who dies first.

use cri::v1::LinuxContainerResources;

use crate::{
    config::KubeletConfig,
    pod::{Container, Pod, PodExt, Qos, Role},
    quantity,
};

/// The quota's period in microseconds.
const PERIOD_US: i64 = 100_000;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
const MIN_QUOTA_US: i64 = 1000;

/// What the runtime is told for one container.
pub fn of_container(
    pod: &Pod,
    container: &Container,
    config: &KubeletConfig,
) -> LinuxContainerResources {
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|resources| resources.limits.as_ref());
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    let cpu_limit = quantity::milli_of(limits, "cpu");
    let asked = requests.is_some_and(|requests| requests.contains_key("cpu"));
    // Without a request the limit counts as one.
    let cpu_request = if asked { quantity::milli_of(requests, "cpu") } else { cpu_limit };
    LinuxContainerResources {
        cpu_period: if cpu_limit > 0 { PERIOD_US } else { 0 },
        cpu_quota: quota(cpu_limit),
        cpu_shares: shares(cpu_request),
        memory_limit_in_bytes: quantity::whole_of(limits, "memory"),
        oom_score_adj: oom_score_adj(pod, container, config),
        ..LinuxContainerResources::default()
    }
}

/// What all containers of a pod may use together, for the pod's own cgroup.
pub fn of_pod(pod: &Pod) -> LinuxContainerResources {
    let total = Totals::of(pod);
    LinuxContainerResources {
        cpu_period: if total.all_cpu_limited { PERIOD_US } else { 0 },
        cpu_quota: if total.all_cpu_limited { quota(total.cpu_limit) } else { 0 },
        cpu_shares: shares(total.cpu_request),
        memory_limit_in_bytes: if total.all_memory_limited { total.memory_limit } else { 0 },
        ..LinuxContainerResources::default()
    }
}

/// Sums over a pod: main containers and sidecars together, or the largest init container.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    pub cpu_request: i64,
    pub cpu_limit: i64,
    pub memory_request: i64,
    pub memory_limit: i64,
    pub ephemeral_request: i64,
    pub all_cpu_limited: bool,
    pub all_memory_limited: bool,
}

impl Totals {
    pub fn of(pod: &Pod) -> Self {
        let mut steady =
            Self { all_cpu_limited: true, all_memory_limited: true, ..Self::default() };
        let mut peak = Self::default();
        for (container, role) in pod.all_containers() {
            let one = Self::of_one(container);
            if role == Role::Init {
                peak = peak.max(steady.plus(one));
                steady.all_cpu_limited &= one.all_cpu_limited;
                steady.all_memory_limited &= one.all_memory_limited;
            } else {
                steady = steady.plus(one);
            }
        }
        let limited = (steady.all_cpu_limited, steady.all_memory_limited);
        let overhead = pod.spec().overhead.as_ref();
        let mut total = peak.max(steady);
        (total.all_cpu_limited, total.all_memory_limited) = limited;
        total.cpu_request += quantity::milli_of(overhead, "cpu");
        total.cpu_limit += quantity::milli_of(overhead, "cpu");
        total.memory_request += quantity::whole_of(overhead, "memory");
        total.memory_limit += quantity::whole_of(overhead, "memory");
        total
    }

    fn of_one(container: &Container) -> Self {
        let resources = container.resources.as_ref();
        let limits = resources.and_then(|resources| resources.limits.as_ref());
        let requests = resources.and_then(|resources| resources.requests.as_ref());
        let limit = |name: &str| quantity::milli_of(limits, name);
        let request = |name: &str| match requests.and_then(|r| r.get(name)) {
            Some(_) => quantity::milli_of(requests, name),
            None => limit(name),
        };
        Self {
            cpu_request: request("cpu"),
            cpu_limit: limit("cpu"),
            memory_request: request("memory") / 1000,
            memory_limit: limit("memory") / 1000,
            ephemeral_request: request("ephemeral-storage") / 1000,
            all_cpu_limited: limit("cpu") > 0,
            all_memory_limited: limit("memory") > 0,
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            cpu_request: self.cpu_request + other.cpu_request,
            cpu_limit: self.cpu_limit + other.cpu_limit,
            memory_request: self.memory_request + other.memory_request,
            memory_limit: self.memory_limit + other.memory_limit,
            ephemeral_request: self.ephemeral_request + other.ephemeral_request,
            all_cpu_limited: self.all_cpu_limited && other.all_cpu_limited,
            all_memory_limited: self.all_memory_limited && other.all_memory_limited,
        }
    }

    fn max(self, other: Self) -> Self {
        Self {
            cpu_request: self.cpu_request.max(other.cpu_request),
            cpu_limit: self.cpu_limit.max(other.cpu_limit),
            memory_request: self.memory_request.max(other.memory_request),
            memory_limit: self.memory_limit.max(other.memory_limit),
            ephemeral_request: self.ephemeral_request.max(other.ephemeral_request),
            ..self
        }
    }
}

fn shares(milli_cpu: i64) -> i64 {
    if milli_cpu == 0 {
        return MIN_SHARES;
    }
    (milli_cpu * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

fn quota(milli_cpu: i64) -> i64 {
    if milli_cpu == 0 {
        return 0;
    }
    (milli_cpu * PERIOD_US / 1000).max(MIN_QUOTA_US)
}

/// Guaranteed pods die last, best-effort ones first, the others by their share of the memory.
pub fn oom_score_adj(pod: &Pod, container: &Container, config: &KubeletConfig) -> i64 {
    const NODE_CRITICAL: i32 = 2_000_001_000;
    if pod.spec().priority.is_some_and(|priority| priority >= NODE_CRITICAL) {
        return -997;
    }
    match Qos::of(pod) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
            let request = quantity::whole_of(requests, "memory");
            let capacity = config.capacity.memory_bytes.max(1);
            (1000 - 1000 * request / capacity).clamp(3, 999)
        }
    }
}

/// The pod's cgroup: `/kubepods/burstable/podUID`.
pub fn cgroup_parent(pod: &Pod, config: &KubeletConfig) -> String {
    cgroup_of(Qos::of(pod), pod.uid(), config)
}

/// The cgroup of a pod of some class.
pub fn cgroup_of(class: Qos, uid: &str, config: &KubeletConfig) -> String {
    let class = match class {
        Qos::Guaranteed => "",
        Qos::Burstable => "/burstable",
        Qos::BestEffort => "/besteffort",
    };
    format!("{}{class}/pod{uid}", config.cgroup_root.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: &str) -> Pod {
        serde_json::from_str(&format!(r#"{{"metadata":{{"uid":"u"}},"spec":{spec}}}"#)).unwrap()
    }

    #[test]
    fn shares_and_quotas() {
        assert_eq!((shares(0), shares(1), shares(1000)), (2, 2, 1024));
        assert_eq!((quota(0), quota(1), quota(500)), (0, 1000, 50_000));
    }

    #[test]
    fn an_init_container_counts_by_its_peak() {
        let pod = pod(r#"{"initContainers":[{"name":"i","resources":{"requests":{"cpu":"3"}}},
                {"name":"s","restartPolicy":"Always","resources":{"requests":{"cpu":"1"}}}],
                "containers":[{"name":"a","resources":{"requests":{"cpu":"1"}}}]}"#);
        assert_eq!(Totals::of(&pod).cpu_request, 3000);
    }

    #[test]
    fn the_cgroup_follows_the_class() {
        let config = KubeletConfig::new("n");
        let best = pod(r#"{"containers":[{"name":"a"}]}"#);
        assert_eq!(cgroup_parent(&best, &config), "/kubepods/besteffort/podu");
        assert_eq!(oom_score_adj(&best, &best.spec().containers[0], &config), 1000);
    }
}
