//! A Deployment's status: counts, `Available`, `Progressing`, `ReplicaFailure`.

use std::time::Duration;

use machinery::{Map, Value, value};
use stdx::Timestamp;

use super::{Rollout, sets::ReplicaSet};
use crate::{
    conditions::{self, Condition},
    resources::*,
};

/// The counts of a status.
#[derive(Clone, Copy, PartialEq)]
struct Counts {
    replicas: i64,
    updated: i64,
    ready: i64,
    available: i64,
}

impl Rollout<'_> {
    pub fn is_complete(&self) -> bool {
        self.counts_complete(self.counts())
    }

    fn counts_complete(&self, counts: Counts) -> bool {
        let wanted = self.deployment.replicas;
        counts.updated == wanted && counts.replicas == wanted && counts.available == wanted
    }

    fn counts(&self) -> Counts {
        let sum = |field: fn(&ReplicaSet) -> i64| self.sets.all().map(field).sum();
        Counts {
            replicas: sum(|set| set.status_replicas),
            updated: self.sets.new.as_ref().map_or(0, |set| set.status_replicas),
            ready: sum(|set| set.ready),
            available: sum(|set| set.available),
        }
    }

    fn base_status(&self) -> (Map, Vec<Value>) {
        let counts = self.counts();
        let mut status = self.deployment.status();
        let unavailable = (self.sets.total() - counts.available).max(0);
        let terminating: i64 = self.sets.all().map(|set| set.terminating).sum();
        for (field, count) in [
            ("observedGeneration", self.deployment.object.generation()),
            ("replicas", counts.replicas),
            ("updatedReplicas", counts.updated),
            ("readyReplicas", counts.ready),
            ("availableReplicas", counts.available),
            ("unavailableReplicas", unavailable),
            ("terminatingReplicas", terminating),
        ] {
            status.insert(field, count);
        }
        let mut conditions = self.deployment.object.list_at(&["status", "conditions"]).to_vec();
        let enough = counts.available >= self.deployment.replicas - self.deployment.max_unavailable;
        let available = if enough {
            let text = "Deployment has minimum availability.";
            Condition::new("Available", "True", "MinimumReplicasAvailable", text)
        } else {
            let text = "Deployment does not have minimum availability.";
            Condition::new("Available", "False", "MinimumReplicasUnavailable", text)
        };
        set(&mut conditions, &available, self.now);
        (status, conditions)
    }

    /// The status without a judgement of progress: while scaling, paused or being deleted.
    pub fn write_plain_status(&mut self) {
        let (status, conditions) = self.base_status();
        self.write(status, conditions);
    }

    fn write(&mut self, mut status: Map, conditions: Vec<Value>) {
        status.insert("conditions", conditions);
        let object = self.deployment.object.clone();
        self.plan.set_status(&DEPLOYMENTS, &object, status);
    }

    /// Sets `Progressing` alone, and remembers it for what is written later in this plan.
    pub fn write_progressing(&mut self, condition: Condition) {
        let mut status = self.deployment.status();
        let mut conditions = self.deployment.object.list_at(&["status", "conditions"]).to_vec();
        set(&mut conditions, &condition, self.now);
        status.insert("conditions", conditions);
        let object = self.deployment.object.clone();
        if self.plan.set_status(&DEPLOYMENTS, &object, status.clone()) {
            self.deployment.object.root_mut().insert("status", status);
        }
    }

    /// The clock of the progress deadline stops while paused. Returns whether that was noted now.
    pub fn mark_paused_or_resumed(&mut self) -> bool {
        if !self.deployment.has_progress_deadline() {
            return false;
        }
        let reason = self.deployment.progressing().and_then(|c| c.str_at(&["reason"])).unwrap_or_default();
        if reason == "ProgressDeadlineExceeded" {
            return false;
        }
        let condition = match (self.deployment.paused, reason == "DeploymentPaused") {
            (true, false) => Condition::new("Progressing", "Unknown", "DeploymentPaused", "Deployment is paused"),
            (false, true) => Condition::new("Progressing", "Unknown", "DeploymentResumed", "Deployment is resumed"),
            _ => return false,
        };
        self.write_progressing(condition);
        true
    }

    pub fn write_rollout_status(&mut self) {
        let (status, mut conditions) = self.base_status();
        if self.deployment.has_progress_deadline() {
            self.judge_progress(&mut conditions);
        } else {
            conditions::remove(&mut conditions, "Progressing");
        }
        match self.replica_failure() {
            Some(failure) => set(&mut conditions, &failure, self.now),
            None => conditions::remove(&mut conditions, "ReplicaFailure"),
        }
        self.requeue_at_deadline(&conditions);
        self.write(status, conditions);
    }

    fn judge_progress(&mut self, conditions: &mut Vec<Value>) {
        let current = self.deployment.progressing().cloned();
        let reason = current.as_ref().and_then(|c| c.str_at(&["reason"])).unwrap_or_default();
        let counts = self.counts();
        if counts.replicas == counts.updated && reason == "NewReplicaSetAvailable" {
            return;
        }
        let what = match &self.sets.new {
            Some(set) => format!("ReplicaSet {:?}", set.name()),
            None => format!("Deployment {:?}", self.deployment.object.name()),
        };
        let progressing = |status, reason, text: &str| {
            Condition::new("Progressing", status, reason, format!("{what} {text}"))
        };
        if self.counts_complete(counts) {
            let done = progressing("True", "NewReplicaSetAvailable", "has successfully progressed.");
            set(conditions, &done, self.now);
        } else if self.has_progressed(counts) {
            // Each step forward restarts the deadline.
            let moving = progressing("True", "ReplicaSetUpdated", "is progressing.");
            set_anew(conditions, &moving, current.as_ref(), self.now);
        } else if self.has_timed_out(current.as_ref()) {
            let stuck = progressing("False", "ProgressDeadlineExceeded", "has timed out progressing.");
            set(conditions, &stuck, self.now);
        } else if let (None, Some(new)) = (current, &self.sets.new) {
            let text = format!("Found new replica set {:?}", new.name());
            set(conditions, &Condition::new("Progressing", "True", "FoundNewReplicaSet", text), self.now);
        }
    }

    fn has_progressed(&self, now: Counts) -> bool {
        let old = |field| self.deployment.object.i64_at(&["status", field]).unwrap_or(0);
        let old_outdated = old("replicas") - old("updatedReplicas");
        now.updated > old("updatedReplicas")
            || now.replicas - now.updated < old_outdated
            || now.ready > old("readyReplicas")
            || now.available > old("availableReplicas")
    }

    fn has_timed_out(&self, current: Option<&Map>) -> bool {
        let Some(current) = current else { return false };
        match current.str_at(&["reason"]) {
            Some("NewReplicaSetAvailable") => false,
            Some("ProgressDeadlineExceeded") => true,
            _ => self.deadline(current).is_some_and(|deadline| deadline < self.now),
        }
    }

    fn deadline(&self, progressing: &Map) -> Option<Timestamp> {
        let seconds = self.deployment.object.i64_at(&["spec", "progressDeadlineSeconds"])?;
        let updated = Timestamp::parse(progressing.str_at(&["lastUpdateTime"])?)?;
        Some(updated + Duration::from_secs(seconds.max(0) as u64))
    }

    /// Nothing may happen any more when a rollout is stuck: the deadline must wake us.
    fn requeue_at_deadline(&mut self, conditions: &[Value]) {
        if self.is_complete() || self.deployment.paused {
            return;
        }
        let Some(current) = conditions::find(conditions, "Progressing") else { return };
        let settled = ["NewReplicaSetAvailable", "ProgressDeadlineExceeded"];
        if current.str_at(&["reason"]).is_some_and(|reason| settled.contains(&reason)) {
            return;
        }
        if let Some(deadline) = self.deadline(current) {
            self.plan.requeue_in(deadline.since(self.now) + Duration::from_secs(1));
        }
    }

    fn replica_failure(&self) -> Option<Condition> {
        let newest_first = self.sets.new.iter().chain(&self.sets.old);
        let mut failures = newest_first.filter_map(|set| {
            let failure = conditions::find(set.object.list_at(&["status", "conditions"]), "ReplicaFailure")?;
            let text = |field| failure.str_at(&[field]).unwrap_or_default();
            let status = if text("status") == "True" { "True" } else { "False" };
            Some(Condition::new("ReplicaFailure", status, text("reason"), text("message")))
        });
        failures.next()
    }
}

/// Deployment conditions carry a `lastUpdateTime`, and stay as they are while status and reason do.
fn set(conditions: &mut Vec<Value>, condition: &Condition, now: Timestamp) {
    let current = conditions::find(conditions, condition.kind).cloned();
    let text = |field| current.as_ref().and_then(|c| c.str_at(&[field]));
    if text("status") == Some(condition.status) && text("reason") == Some(condition.reason.as_str()) {
        return;
    }
    set_anew(conditions, condition, current.as_ref(), now);
}

fn set_anew(conditions: &mut Vec<Value>, condition: &Condition, current: Option<&Map>, now: Timestamp) {
    let same_status = current.is_some_and(|c| c.str_at(&["status"]) == Some(condition.status));
    let kept = current.filter(|_| same_status).and_then(|c| c.str_at(&["lastTransitionTime"]));
    let transition = kept.map_or_else(|| now.rfc3339(), str::to_owned);
    conditions::remove(conditions, condition.kind);
    conditions.push(value!({
        "type": condition.kind,
        "status": condition.status,
        "lastUpdateTime": now.rfc3339(),
        "lastTransitionTime": transition,
        "reason": condition.reason,
        "message": condition.message,
    }));
}
