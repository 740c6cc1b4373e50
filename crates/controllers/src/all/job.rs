//! Runs pods until enough of them have succeeded.
//!
//! A finished pod is counted exactly once, however often the controller restarts: each pod has a
//! finalizer, which is removed only after the pod's uid stands in `uncountedTerminatedPods`, and
//! the uid becomes a number only after the finalizer is gone (KEP-2307).

mod failure_policy;
mod indexes;
mod outcome;

use std::{sync::Arc, time::Duration};

use client::{Cached, Key, Patch};
use machinery::{Map, Object, value};
use stdx::Timestamp;

use self::{failure_policy::Verdict, indexes::Indexes, outcome::Outcome};
use super::replicaset::deletion_order;
use crate::{
    plan::*,
    pod_template::{generated_name, pod_from_template},
    resources::*,
    views::Pod,
};

pub const CONTROLLER: Controller = Controller {
    name: "job-controller",
    account: "job-controller",
    primary: &JOBS,
    watches: &[adopted_by(&PODS)],
    rbac: &[allow(&PODS, &["create", "delete", "patch"]), allow_sub(&JOBS, "status", &["update"])],
    workers: 5,
    work: Work::Reconcile(reconcile),
};

const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const MANAGER: &str = "kubernetes.io/job-controller";
const BURST: i64 = 500;
/// After the n-th failure in a row the next pod waits 10 s times 2^(n-1), at most this long.
const LONGEST_BACKOFF: Duration = Duration::from_secs(600);

fn reconcile(key: &Key, world: &World, now: Timestamp) -> Plan {
    let mut plan = Plan::none();
    let Some(object) = world.object(&JOBS, key) else {
        release_orphans(&mut plan, key, world);
        return plan;
    };
    let managed_by = object.str_at(&["spec", "managedBy"]);
    if !managed_by.is_empty() && managed_by != MANAGER {
        return plan;
    }
    let Some(selector) = selector_of(&object) else { return plan };
    let candidates = world.list(&PODS).in_namespace(&key.namespace);
    let claimed = claim(&mut plan, &PODS, &object, &selector, &candidates, |_| true);
    if !plan.is_empty() {
        return plan;
    }
    let pods = claimed.into_iter().filter_map(|cached| Some(Member { pod: Pod::read(&cached)?, cached }));
    let mut job = Job::new(object, pods.collect(), now);
    job.decide(&mut plan);
    plan
}

/// The pods of a Job that is gone need not be counted any more.
fn release_orphans(plan: &mut Plan, key: &Key, world: &World) {
    for cached in world.list(&PODS).in_namespace(&key.namespace) {
        let of_this = owner_key(&cached, &JOBS).is_some_and(|owner| owner == *key);
        if let Some(pod) = Pod::read(&cached).filter(|_| of_this) {
            let member = Member { cached, pod };
            if member.is_tracked() {
                plan.push(member.untrack());
            }
        }
    }
}

struct Member {
    cached: Arc<Cached>,
    pod: Pod,
}

impl Member {
    fn is_tracked(&self) -> bool {
        self.pod.metadata.finalizers.iter().any(|finalizer| finalizer == FINALIZER)
    }

    fn index(&self) -> Option<i64> {
        self.pod.metadata.annotations.str_at(&[INDEX])?.parse().ok()
    }

    fn untrack(&self) -> Intent {
        let kept: Vec<&str> =
            self.pod.metadata.finalizers.iter().map(|f| f.as_str()).filter(|f| *f != FINALIZER).collect();
        let mut patch = Map::new();
        patch.set_at(&["metadata", "finalizers"], kept);
        patch.set_at(&["metadata", "uid"], self.cached.uid.clone());
        patch.set_at(&["metadata", "resourceVersion"], self.cached.revision.to_string());
        let (key, patch) = (self.cached.key.clone(), Patch::Merge(patch.into()));
        Intent::Patch { resource: &PODS, key, subresource: "", patch }
    }
}

/// One Job, its pods, and its status as it is being brought up to date.
struct Job {
    object: Object,
    pods: Vec<Member>,
    now: Timestamp,
    status: Map,
    succeeded: i64,
    failed: i64,
    uncounted_succeeded: Vec<String>,
    uncounted_failed: Vec<String>,
    completed: Indexes,
    /// The end that a pod's failure brings by the failure policy.
    failed_by_policy: Option<Outcome>,
}

impl Job {
    fn new(object: Object, pods: Vec<Member>, now: Timestamp) -> Self {
        let uids = |field| {
            let list = object.list_at(&["status", "uncountedTerminatedPods", field]).iter();
            list.filter_map(|uid| uid.as_str().map(str::to_owned)).collect()
        };
        Self {
            succeeded: object.i64_at(&["status", "succeeded"]).unwrap_or(0),
            failed: object.i64_at(&["status", "failed"]).unwrap_or(0),
            uncounted_succeeded: uids("succeeded"),
            uncounted_failed: uids("failed"),
            failed_by_policy: None,
            completed: Indexes::parse(object.str_at(&["status", "completedIndexes"])),
            status: object.map_at(&["status"]).cloned().unwrap_or_default(),
            object,
            pods,
            now,
        }
    }

    fn completions(&self) -> Option<i64> {
        self.object.i64_at(&["spec", "completions"])
    }

    fn parallelism(&self) -> i64 {
        self.object.i64_at(&["spec", "parallelism"]).unwrap_or(1)
    }

    fn is_indexed(&self) -> bool {
        self.object.str_at(&["spec", "completionMode"]) == "Indexed"
    }

    fn is_suspended(&self) -> bool {
        self.object.bool_at(&["spec", "suspend"])
    }

    fn active(&self) -> impl Iterator<Item = &Member> {
        self.pods.iter().filter(|member| member.pod.is_active())
    }

    /// Whether a pod is replaced only when it has ended, not when it is told to.
    fn replaces_only_failed(&self) -> bool {
        self.object.str_at(&["spec", "podReplacementPolicy"]) == "Failed" || self.has_failure_policy()
    }

    /// A pod that is going counts as failed at once, unless only failed ones are replaced.
    fn has_failed(&self, pod: &Pod) -> bool {
        let only_failed = self.replaces_only_failed();
        match pod.status.phase.as_str() {
            "Failed" => true,
            "Succeeded" => false,
            _ => !only_failed && pod.is_deleting(),
        }
    }

    fn decide(&mut self, plan: &mut Plan) {
        let was_finished = self.is_finished();
        let recorded = self.count();
        if was_finished || self.object.is_deleting() {
            // Nothing counts any more, but no pod may be held.
            for member in self.pods.iter().filter(|member| member.is_tracked()) {
                plan.push(member.untrack());
            }
            return;
        }
        self.start_or_stop(plan);
        let outcome = self.outcome(plan);
        self.write_counts();
        let ending = outcome.is_some();
        if let Some(outcome) = outcome {
            self.conclude(plan, outcome);
        }
        let (object, status) = (self.object.clone(), self.status.clone());
        plan.set_status(&JOBS, &object, status);
        // Only now that the status names them may they go.
        for uid in &recorded {
            if let Some(member) = self.pods.iter().find(|member| member.cached.uid == uid.as_str()) {
                plan.push(member.untrack());
            }
        }
        if ending {
            self.delete(plan, self.active().collect());
        } else if self.is_suspended() {
            self.withdraw(plan, self.active().collect());
        } else {
            self.manage(plan);
        }
    }

    /// Turns recorded uids into numbers once their finalizers are gone, and records what has
    /// finished since. Returns the uids of recorded pods whose finalizers can go.
    fn count(&mut self) -> Vec<String> {
        let tracked: Vec<String> =
            self.pods.iter().filter(|m| m.is_tracked()).map(|m| m.cached.uid.to_string()).collect();
        let settle = |uids: &mut Vec<String>| {
            let before = uids.len();
            uids.retain(|uid| tracked.contains(uid));
            (before - uids.len()) as i64
        };
        self.succeeded += settle(&mut self.uncounted_succeeded);
        self.failed += settle(&mut self.uncounted_failed);
        let mut recorded = Vec::new();
        for member in self.pods.iter().filter(|member| member.is_tracked()) {
            let uid = member.cached.uid.to_string();
            let succeeded = member.pod.status.phase == "Succeeded";
            if !succeeded && !self.has_failed(&member.pod) {
                continue;
            }
            if !succeeded {
                let verdict = self.judge_failure(&member.pod);
                if verdict != Verdict::Ignore && !self.uncounted_failed.contains(&uid) {
                    self.uncounted_failed.push(uid.clone());
                }
                if let Verdict::FailJob(outcome) = verdict {
                    self.failed_by_policy.get_or_insert(outcome);
                }
            } else if self.is_indexed() {
                let valid = |index: &i64| self.completions().is_none_or(|n| (0..n).contains(index));
                if let Some(index) = member.index().filter(valid) {
                    self.completed.insert(index);
                }
            } else if !self.uncounted_succeeded.contains(&uid) {
                self.uncounted_succeeded.push(uid.clone());
            }
            recorded.push(uid);
        }
        if self.is_indexed() {
            self.succeeded = self.completed.len();
        }
        recorded
    }

    fn total_succeeded(&self) -> i64 {
        self.succeeded + self.uncounted_succeeded.len() as i64
    }

    fn total_failed(&self) -> i64 {
        self.failed + self.uncounted_failed.len() as i64
    }

    fn write_counts(&mut self) {
        let (active, ready) = self.active().fold((0, 0), |(active, ready), member| {
            (active + 1, ready + i64::from(member.pod.is_ready()))
        });
        let ending = |m: &&Member| m.pod.is_deleting() && !m.pod.is_finished();
        let terminating = self.pods.iter().filter(ending).count() as i64;
        let counts = [
            ("active", active),
            ("ready", ready),
            ("terminating", terminating),
            ("succeeded", self.succeeded),
            ("failed", self.failed),
        ];
        for (field, count) in counts {
            self.status.insert(field, count);
        }
        let mut uncounted = Map::new();
        for (field, uids) in [("succeeded", &self.uncounted_succeeded), ("failed", &self.uncounted_failed)] {
            if !uids.is_empty() {
                uncounted.insert(field, uids.iter().map(String::as_str).collect::<Vec<_>>());
            }
        }
        self.status.insert("uncountedTerminatedPods", uncounted);
        if self.is_indexed() {
            self.status.insert("completedIndexes", self.completed.to_string());
        }
    }

    /// As many active pods as there should be.
    fn manage(&self, plan: &mut Plan) {
        let active = self.active().count() as i64;
        let ending = |m: &&Member| m.pod.is_deleting() && !m.pod.is_finished();
        let waiting = if self.replaces_only_failed() { self.pods.iter().filter(ending).count() as i64 } else { 0 };
        let wanted = match self.completions() {
            None if self.total_succeeded() > 0 => active.min(self.parallelism()),
            None => self.parallelism(),
            Some(completions) => self.parallelism().min(completions - self.total_succeeded()).max(0),
        };
        if active > wanted {
            let mut surplus: Vec<&Member> = self.active().collect();
            surplus.sort_by(|a, b| deletion_order(&a.pod, &b.pod, &Default::default(), self.now));
            surplus.truncate((active - wanted) as usize);
            return self.withdraw(plan, surplus);
        }
        let missing = (wanted - active - waiting).min(BURST);
        if missing <= 0 {
            return;
        }
        let wait = self.backoff();
        if !wait.is_zero() {
            return plan.requeue_in(wait);
        }
        let free = self.free_indexes();
        for number in 0..missing as usize {
            let index = self.is_indexed().then(|| free.get(number).copied());
            if index == Some(None) {
                return;
            }
            self.create(plan, number, index.flatten());
        }
    }

    fn free_indexes(&self) -> Vec<i64> {
        let Some(completions) = self.completions().filter(|_| self.is_indexed()) else { return Vec::new() };
        let running: Vec<i64> = self.active().filter_map(Member::index).collect();
        let free = (0..completions).filter(|index| !self.completed.contains(*index) && !running.contains(index));
        free.take(BURST as usize).collect()
    }

    /// How long the next pod has to wait because the last ones failed.
    fn backoff(&self) -> Duration {
        let mut finished: Vec<(Timestamp, bool)> =
            self.pods.iter().filter_map(|m| Some((finish_time(&m.pod)?, m.pod.status.phase == "Succeeded"))).collect();
        finished.sort();
        let failures = finished.iter().rev().take_while(|(_, succeeded)| !succeeded).count() as u32;
        let Some((last, false)) = finished.last().copied() else { return Duration::ZERO };
        let delay = stdx::backoff::Backoff::new(Duration::from_secs(10), LONGEST_BACKOFF).delay(failures);
        (last + delay).since(self.now)
    }

    fn create(&self, plan: &mut Plan, number: usize, index: Option<i64>) {
        let base = match index {
            Some(index) => format!("{}-{index}", self.object.name()),
            None => self.object.name().to_owned(),
        };
        let template = self.object.at(&["spec", "template"]).cloned().unwrap_or_default();
        let name = generated_name(&base, self.object.uid(), self.now, number);
        let mut pod = pod_from_template(&template, &self.object, &name);
        pod.metadata_mut().insert("generateName", format!("{base}-"));
        pod.metadata_mut().list_entry("finalizers").push(value!(FINALIZER));
        if let Some(index) = index {
            indexes::mark(&mut pod, self.object.name(), index);
        }
        plan.push(Intent::Create { resource: &PODS, object: pod })
            .note(Note::normal(&self.object, "SuccessfulCreate", format!("Created pod: {name}")))
            .failure(Note::warning(&self.object, "FailedCreate", "Error creating: "));
    }

    /// Deletes pods that are no longer wanted and must not count as failed.
    fn withdraw(&self, plan: &mut Plan, members: Vec<&Member>) {
        for member in members.iter().filter(|member| member.is_tracked()) {
            plan.push(member.untrack());
        }
        self.delete(plan, members);
    }

    fn delete(&self, plan: &mut Plan, members: Vec<&Member>) {
        for member in members {
            let text = format!("Deleted pod: {}", member.pod.name());
            plan.push(Intent::delete(&PODS, &member.cached))
                .note(Note::normal(&self.object, "SuccessfulDelete", text))
                .failure(Note::warning(&self.object, "FailedDelete", "Error deleting: "));
        }
    }
}

/// When a finished pod's last container ended.
fn finish_time(pod: &Pod) -> Option<Timestamp> {
    if !pod.is_finished() {
        return None;
    }
    let statuses = pod.status.container_statuses.iter();
    let ended = statuses.filter_map(|status| status.state.terminated.as_ref()?.finished_at).max();
    let unready = pod.condition("Ready").and_then(|ready| ready.last_transition_time);
    ended.or(unready).or(pod.metadata.creation_timestamp)
}


#[cfg(test)]
mod tests;
