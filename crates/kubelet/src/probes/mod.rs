//! Probes: one task per probe of a running container.
//!
//! [`Tracker`] is the pure part, thresholds and results; [`action`] asks once; [`Prober`] keeps
//! the tasks of one pod in step with its running containers. Results go to the pod's worker,
//! which alone decides what they mean.

mod action;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use client::events::EventType;
use k8s_openapi::api::core::v1::Probe;
use stdx::{Timestamp, env::AbortOnDrop};

use crate::{
    context::Context,
    pod::{Container as Spec, Pod, PodExt, Role},
    runtime_state::{Container, PodRuntime},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }

    fn of(self, spec: &Spec) -> Option<&Probe> {
        match self {
            Self::Startup => spec.startup_probe.as_ref(),
            Self::Liveness => spec.liveness_probe.as_ref(),
            Self::Readiness => spec.readiness_probe.as_ref(),
        }
    }
}

/// What one attempt found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attempt {
    Success,
    /// A success with something to say (a redirect elsewhere).
    Warning(String),
    Failure(String),
    /// The probe itself could not be made; it counts as neither, as upstream has it.
    Errored(String),
}

/// Counts attempts against the thresholds.
#[derive(Clone, Debug)]
pub struct Tracker {
    success_threshold: u32,
    failure_threshold: u32,
    in_a_row: u32,
    last: Option<bool>,
    reported: Option<bool>,
}

impl Tracker {
    pub fn new(probe: &Probe) -> Self {
        let positive = |value: Option<i32>, default: u32| {
            value.and_then(|value| u32::try_from(value).ok()).filter(|&v| v > 0).unwrap_or(default)
        };
        Self {
            success_threshold: positive(probe.success_threshold, 1),
            failure_threshold: positive(probe.failure_threshold, 3),
            in_a_row: 0,
            last: None,
            reported: None,
        }
    }

    /// Takes an attempt; the result to report when it has changed.
    pub fn observe(&mut self, success: bool) -> Option<bool> {
        if self.last == Some(success) {
            self.in_a_row = self.in_a_row.saturating_add(1);
        } else {
            self.last = Some(success);
            self.in_a_row = 1;
        }
        let threshold = if success { self.success_threshold } else { self.failure_threshold };
        if self.in_a_row < threshold || self.reported == Some(success) {
            return None;
        }
        self.reported = Some(success);
        Some(success)
    }
}

/// A changed result, on its way to the pod's worker.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub container_id: String,
    pub kind: Kind,
    pub success: bool,
}

pub type Report = Arc<dyn Fn(Outcome) + Send + Sync>;

/// The probe tasks of one pod.
#[derive(Default)]
pub struct Prober {
    tasks: BTreeMap<(String, Kind), AbortOnDrop<()>>,
}

impl Prober {
    /// Starts what is missing and ends what is over. `passed` says whether a container has passed
    /// its startup probe, before which the others wait. `ending` pods keep only readiness.
    pub fn reconcile(
        &mut self,
        context: &Arc<Context>,
        pod: &Arc<Pod>,
        runtime: &PodRuntime,
        passed: impl Fn(&Spec, &Container) -> bool,
        ending: bool,
        report: &Report,
    ) {
        let mut wanted = BTreeMap::new();
        for (spec, role) in pod.all_containers() {
            let Some(container) = runtime.latest(&spec.name).filter(|c| c.is_running()) else {
                continue;
            };
            if role == Role::Init {
                continue;
            }
            for kind in [Kind::Startup, Kind::Liveness, Kind::Readiness] {
                let Some(probe) = kind.of(spec) else { continue };
                let started = passed(spec, container);
                if (kind == Kind::Startup) == started || (ending && kind != Kind::Readiness) {
                    continue;
                }
                wanted.insert((container.id.clone(), kind), (spec, probe, container));
            }
        }
        self.tasks.retain(|key, _| wanted.contains_key(key));
        for (key, (spec, probe, container)) in wanted {
            self.tasks.entry(key.clone()).or_insert_with(|| {
                let task = ProbeTask {
                    context: context.clone(),
                    pod: pod.clone(),
                    spec: spec.clone(),
                    probe: probe.clone(),
                    kind: key.1,
                    container_id: key.0.clone(),
                    started: container.started(),
                    ips: runtime.ips().to_vec(),
                    report: report.clone(),
                };
                context.env.spawn("probe", task.run()).abort_on_drop()
            });
        }
    }
}

struct ProbeTask {
    context: Arc<Context>,
    pod: Arc<Pod>,
    spec: Spec,
    probe: Probe,
    kind: Kind,
    container_id: String,
    started: Timestamp,
    ips: Vec<String>,
    report: Report,
}

impl ProbeTask {
    async fn run(self) {
        let env = &self.context.env;
        let seconds = |value: Option<i32>, default: u64| {
            let given = value.and_then(|value| u64::try_from(value).ok());
            Duration::from_secs(given.filter(|&value| value > 0).unwrap_or(default))
        };
        let period = seconds(self.probe.period_seconds, 10);
        let limit = seconds(self.probe.timeout_seconds, 1);
        let first = self.started + seconds(self.probe.initial_delay_seconds, 0);
        env.sleep(first.since(env.now())).await;
        let mut tracker = Tracker::new(&self.probe);
        loop {
            let began = env.instant();
            let attempt = self.attempt(limit).await;
            self.tell(&attempt);
            let success = match attempt {
                Attempt::Success | Attempt::Warning(_) => Some(true),
                Attempt::Failure(_) => Some(false),
                Attempt::Errored(_) => None,
            };
            if let Some(success) = success.and_then(|success| tracker.observe(success)) {
                let container_id = self.container_id.clone();
                (self.report)(Outcome { container_id, kind: self.kind, success });
            }
            env.sleep_until(began + period).await;
        }
    }

    /// Upstream asks up to three times when the probe itself cannot be made.
    async fn attempt(&self, limit: Duration) -> Attempt {
        let mut last = Attempt::Success;
        for _ in 0..3 {
            let request = action::Request {
                context: &self.context,
                pod: &self.pod,
                container: &self.spec,
                container_id: &self.container_id,
                pod_ips: &self.ips,
                limit,
            };
            last = action::ask(&request, &self.probe).await;
            if !matches!(last, Attempt::Errored(_)) {
                break;
            }
        }
        last
    }

    fn tell(&self, attempt: &Attempt) {
        let name = self.kind.name();
        let (reason, message) = match attempt {
            Attempt::Success => return,
            Attempt::Warning(text) => ("ProbeWarning", format!("{name} probe warning: {text}")),
            Attempt::Failure(text) => ("Unhealthy", format!("{name} probe failed: {text}")),
            Attempt::Errored(text) => {
                ("Unhealthy", format!("{name} probe errored and resulted in unknown state: {text}"))
            }
        };
        self.context.container_event(
            &self.pod,
            &self.spec.name,
            EventType::Warning,
            reason,
            message,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(success: i32, failure: i32, attempts: &str) -> String {
        let probe = Probe {
            success_threshold: Some(success),
            failure_threshold: Some(failure),
            ..Probe::default()
        };
        let mut tracker = Tracker::new(&probe);
        attempts
            .chars()
            .map(|attempt| match tracker.observe(attempt == '+') {
                Some(true) => '+',
                Some(false) => '-',
                None => '.',
            })
            .collect()
    }

    #[test]
    fn thresholds_count_attempts_in_a_row() {
        for (success, failure, attempts, expected) in [
            (1, 3, "++", "+."),
            (1, 3, "+---+", "+..-+"),
            (2, 2, "+-+-++", ".....+"),
            (1, 3, "--+--+---", "..+.....-"),
            (1, 1, "-", "-"),
        ] {
            assert_eq!(run(success, failure, attempts), expected, "{success}/{failure} {attempts}");
        }
    }
}
