//! Keeps pods with stable names and volumes: `NAME-0`, `NAME-1`, ..., made in order, updated and
//! removed in reverse.

mod pod;

use std::{collections::BTreeMap, sync::Arc};

use client::{Cached, Key};
use machinery::{Object, Value};
use stdx::Timestamp;

use super::deployment::scaled;
use crate::{
    plan::*,
    resources::*,
    revisions::{self, HASH, History, Revision},
    views::Pod,
};

pub const CONTROLLER: Controller = Controller {
    name: "statefulset-controller",
    account: "statefulset-controller",
    primary: &STATEFUL_SETS,
    watches: &[adopted_by(&PODS), owned_by(&CONTROLLER_REVISIONS), reads(&PERSISTENT_VOLUME_CLAIMS)],
    rbac: &[
        allow(&PODS, &["create", "delete", "patch", "update"]),
        allow(&PERSISTENT_VOLUME_CLAIMS, &["create", "update", "delete"]),
        allow(&CONTROLLER_REVISIONS, &["create", "update", "delete"]),
        allow_sub(&STATEFUL_SETS, "status", &["update"]),
    ],
    workers: 5,
    work: Work::Reconcile(reconcile),
};

fn reconcile(key: &Key, world: &World, now: Timestamp) -> Plan {
    let mut plan = Plan::none();
    let Some(object) = world.object(&STATEFUL_SETS, key) else { return plan };
    let Some(selector) = selector_of(&object) else { return plan };
    let prefix = format!("{}-", object.name());
    let candidates = world.list(&PODS).in_namespace(&key.namespace);
    let named = |cached: &Cached| ordinal(&cached.key.name, &prefix).is_some();
    let claimed = claim(&mut plan, &PODS, &object, &selector, &candidates, named);
    if !plan.is_empty() {
        return plan;
    }
    let history = revisions::history(&mut plan, &object, world);
    let mut pods = BTreeMap::new();
    for cached in claimed {
        if let (Some(at), Some(pod)) = (ordinal(&cached.key.name, &prefix), Pod::read(&cached)) {
            pods.insert(at, Member { cached, pod });
        }
    }
    let set = Set { object, history, pods, world, now };
    if !set.object.is_deleting() {
        set.manage(&mut plan);
    }
    set.write_status(&mut plan);
    set.clean_up(&mut plan);
    plan
}

fn ordinal(name: &str, prefix: &str) -> Option<i64> {
    name.strip_prefix(prefix)?.parse().ok().filter(|at| *at >= 0)
}

struct Member {
    cached: Arc<Cached>,
    pod: Pod,
}

struct Set<'a> {
    object: Object,
    history: History,
    pods: BTreeMap<i64, Member>,
    world: &'a World,
    now: Timestamp,
}

impl Set<'_> {
    fn replicas(&self) -> i64 {
        self.object.i64_at(&["spec", "replicas"]).unwrap_or(1)
    }

    fn ordinals(&self) -> std::ops::Range<i64> {
        let start = self.object.i64_at(&["spec", "ordinals", "start"]).unwrap_or(0);
        start..start + self.replicas()
    }

    fn is_parallel(&self) -> bool {
        self.object.str_at(&["spec", "podManagementPolicy"]) == "Parallel"
    }

    fn min_ready_seconds(&self) -> i64 {
        self.object.i64_at(&["spec", "minReadySeconds"]).unwrap_or(0)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        pod.status.phase == "Running" && pod.is_available(self.min_ready_seconds(), self.now)
    }

    fn is_healthy(&self, pod: &Pod) -> bool {
        !pod.is_deleting() && self.is_available(pod)
    }

    fn rolls(&self) -> bool {
        self.object.str_at(&["spec", "updateStrategy", "type"]) != "OnDelete"
    }

    /// Pods below it keep the current revision during an update.
    fn partition(&self) -> i64 {
        self.object.i64_at(&["spec", "updateStrategy", "rollingUpdate", "partition"]).unwrap_or(0)
    }

    fn current_revision(&self) -> &Revision {
        let name = self.object.str_at(&["status", "currentRevision"]);
        let found = self.history.others.iter().map(|(revision, _)| revision).find(|r| r.name == name);
        found.unwrap_or(&self.history.current)
    }

    fn revision_for(&self, ordinal: i64) -> &Revision {
        let keeps_current = self.rolls() && ordinal < self.ordinals().start + self.partition();
        if keeps_current { self.current_revision() } else { &self.history.current }
    }

    fn is_updated(&self, pod: &Pod) -> bool {
        revision_of(pod) == self.history.current.name
    }

    /// In order, each waiting for the one before; in parallel, all at once.
    fn manage(&self, plan: &mut Plan) {
        for ordinal in self.ordinals() {
            if !self.keep(plan, ordinal) && !self.is_parallel() {
                return;
            }
        }
        if !self.remove_surplus(plan) {
            return;
        }
        if self.rolls() {
            self.roll(plan);
        }
    }

    /// Makes or remakes one member; returns whether the next may follow.
    fn keep(&self, plan: &mut Plan, ordinal: i64) -> bool {
        let Some(member) = self.pods.get(&ordinal) else {
            self.create(plan, ordinal);
            return false;
        };
        if member.pod.is_finished() && !member.pod.is_deleting() {
            let text = format!(
                "StatefulSet {} is recreating failed Pod {}",
                self.object.name(),
                member.pod.name()
            );
            plan.event(Note::warning(&self.object, "RecreatingFailedPod", text));
            self.delete(plan, member);
            return false;
        }
        if !member.pod.is_deleting() {
            self.create_claims(plan, ordinal);
        }
        if let Some(wait) = member.pod.available_in(self.min_ready_seconds(), self.now).filter(|w| !w.is_zero()) {
            plan.requeue_in(wait);
        }
        self.is_healthy(&member.pod)
    }

    /// Highest ordinal first; returns whether there is none left.
    fn remove_surplus(&self, plan: &mut Plan) -> bool {
        let wanted = self.ordinals();
        let surplus: Vec<&Member> =
            self.pods.iter().rev().filter(|(at, _)| !wanted.contains(at)).map(|(_, m)| m).collect();
        for member in &surplus {
            if !member.pod.is_deleting() {
                self.delete(plan, member);
            }
            if !self.is_parallel() {
                return false;
            }
        }
        surplus.is_empty()
    }

    /// Deletes members of older revisions, highest ordinal first, so that they are remade.
    fn roll(&self, plan: &mut Plan) {
        let wanted = self.ordinals();
        let limit = self.object.at(&["spec", "updateStrategy", "rollingUpdate", "maxUnavailable"]);
        let mut room = limit.map_or(1, |limit| scaled(Some(limit), self.replicas(), true)).max(1);
        for ordinal in (wanted.start + self.partition()..wanted.end).rev() {
            if room == 0 {
                return;
            }
            let Some(member) = self.pods.get(&ordinal) else {
                room -= 1;
                continue;
            };
            let updated = self.is_updated(&member.pod);
            if updated && self.is_healthy(&member.pod) {
                continue;
            }
            room -= 1;
            if !updated && !member.pod.is_deleting() {
                self.delete(plan, member);
            }
        }
    }

    fn delete(&self, plan: &mut Plan, member: &Member) {
        let (pod, set) = (member.pod.name(), self.object.name());
        let done = format!("delete Pod {pod} in StatefulSet {set} successful");
        let failed = format!("delete Pod {pod} in StatefulSet {set} failed error: ");
        plan.push(Intent::delete(&PODS, &member.cached))
            .note(Note::normal(&self.object, "SuccessfulDelete", done))
            .failure(Note::warning(&self.object, "FailedDelete", failed));
    }

    fn write_status(&self, plan: &mut Plan) {
        let wanted = self.ordinals();
        let count = |test: &dyn Fn(&Pod) -> bool| {
            self.pods.values().filter(|m| test(&m.pod)).count() as i64
        };
        let replicas = self.pods.len() as i64;
        let ready = count(&|pod| pod.status.phase == "Running" && pod.is_ready());
        let available = count(&|pod| self.is_available(pod));
        let updated = count(&|pod| !pod.is_deleting() && self.is_updated(pod));
        let mut current_name = self.current_revision().name.clone();
        let mut current = count(&|pod| !pod.is_deleting() && revision_of(pod) == current_name);
        let all = wanted.end - wanted.start;
        if self.rolls() && updated == all && replicas == all && ready == all {
            current_name = self.history.current.name.clone();
            current = updated;
        }
        let mut status = self.object.map_at(&["status"]).cloned().unwrap_or_default();
        for (field, number) in [
            ("replicas", replicas),
            ("readyReplicas", ready),
            ("availableReplicas", available),
            ("currentReplicas", current),
            ("updatedReplicas", updated),
            ("observedGeneration", self.object.generation()),
        ] {
            status.insert(field, number);
        }
        status.insert("currentRevision", current_name);
        status.insert("updateRevision", self.history.current.name.as_str());
        if !status.contains_key("collisionCount") {
            status.insert("collisionCount", 0);
        }
        plan.set_status(&STATEFUL_SETS, &self.object, status);
    }

    fn clean_up(&self, plan: &mut Plan) {
        let current = self.current_revision().name.clone();
        let used: Vec<&str> = self.pods.values().map(|m| revision_of(&m.pod)).collect();
        revisions::clean_up(plan, &self.object, &self.history, |revision| {
            revision.name == current || used.contains(&revision.name.as_str())
        });
    }
}

fn revision_of(pod: &Pod) -> &str {
    pod.metadata.labels.get(HASH).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests;
