//! When a Job starts, pauses and ends.

use std::time::Duration;

use machinery::{Map, Value, value};
use stdx::Timestamp;

use super::{Job, Member};
use crate::{conditions, plan::*};

/// How a Job ends, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub succeeded: bool,
    pub reason: String,
    pub message: String,
}

impl Outcome {
    fn failed(reason: &str, message: &str) -> Self {
        Self { succeeded: false, reason: reason.into(), message: message.into() }
    }
}

impl Job {
    pub fn is_finished(&self) -> bool {
        let list = self.object.list_at(&["status", "conditions"]);
        ["Complete", "Failed"].iter().any(|kind| conditions::is_true(list, kind))
    }

    fn conditions(&self) -> Vec<Value> {
        self.status.get("conditions").and_then(Value::as_list).unwrap_or(&[]).to_vec()
    }

    /// Adds a condition, or changes its status; a condition that says the same stays as it is.
    fn set_condition(&mut self, kind: &str, status: &str, reason: &str, message: &str) -> bool {
        let mut list = self.conditions();
        let known = conditions::find(&list, kind);
        if known.is_some_and(|known| known.str_at(&["status"]) == Some(status)) {
            return false;
        }
        let now = self.now.rfc3339();
        conditions::remove(&mut list, kind);
        list.push(value!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastProbeTime": now, "lastTransitionTime": now,
        }));
        self.status.insert("conditions", list);
        true
    }

    fn start_time(&self) -> Option<Timestamp> {
        Timestamp::parse(self.status.str_at(&["startTime"])?)
    }

    pub fn start_or_stop(&mut self, plan: &mut Plan) {
        if self.is_suspended() {
            if self.set_condition("Suspended", "True", "JobSuspended", "Job suspended") {
                plan.event(Note::normal(&self.object, "Suspended", "Job suspended"));
            }
            self.status.remove("startTime");
            return;
        }
        if conditions::is_true(&self.conditions(), "Suspended") {
            self.set_condition("Suspended", "False", "JobResumed", "Job resumed");
            self.status.remove("startTime");
            plan.event(Note::normal(&self.object, "Resumed", "Job resumed"));
        }
        if self.start_time().is_none() {
            self.status.insert("startTime", self.now.rfc3339());
        }
    }

    /// How the Job ends, if it is decided; an end decided before stands.
    pub fn outcome(&self, plan: &mut Plan) -> Option<Outcome> {
        self.decided()
            .or_else(|| self.failed_by_policy.clone())
            .or_else(|| self.exceeded_limit())
           .or_else(|| self.exceeded_deadline(plan)).or_else(|| self.reached())
    }

    fn decided(&self) -> Option<Outcome> {
        let list = self.conditions();
        let read = |map: &Map, succeeded| {
            let text = |field| map.str_at(&[field]).unwrap_or_default().to_owned();
            Outcome { succeeded, reason: text("reason"), message: text("message") }
        };
        let failed = conditions::find(&list, "FailureTarget").map(|map| read(map, false));
        failed.or_else(|| conditions::find(&list, "SuccessCriteriaMet").map(|map| read(map, true)))
    }

    fn exceeded_limit(&self) -> Option<Outcome> {
        let limit = self.object.i64_at(&["spec", "backoffLimit"]).unwrap_or(6);
        let in_place = self.object.str_at(&["spec", "template", "spec", "restartPolicy"]) == "OnFailure";
        let restarts: i64 = self.active().map(|member| member.pod.restarts()).sum();
        let restarted_too_often = in_place && restarts > 0 && restarts >= limit;
        if self.total_failed() > limit || restarted_too_often {
            return Some(Outcome::failed("BackoffLimitExceeded", "Job has reached the specified backoff limit"));
        }
        None
    }

    fn exceeded_deadline(&self, plan: &mut Plan) -> Option<Outcome> {
        let seconds = self.object.i64_at(&["spec", "activeDeadlineSeconds"]).filter(|_| !self.is_suspended())?;
        let end = self.start_time()? + Duration::from_secs(seconds.max(0) as u64);
        if self.now < end {
            plan.requeue_in(end.since(self.now));
            return None;
        }
        Some(Outcome::failed("DeadlineExceeded", "Job was active longer than specified deadline"))
    }

    fn reached(&self) -> Option<Outcome> {
        let active = self.active().count();
        let enough = match self.completions() {
            Some(completions) => self.total_succeeded() >= completions,
            None => self.total_succeeded() > 0 && active == 0,
        };
        enough.then(|| Outcome {
            succeeded: true,
            reason: "CompletionsReached".into(),
            message: "Reached expected number of succeeded pods".into(),
        })
    }

    /// Says what the end will be, and says it is over when every pod has ended and been counted.
    pub fn conclude(&mut self, plan: &mut Plan, outcome: Outcome) {
        let Outcome { succeeded, reason, message } = outcome;
        let target = if succeeded { "SuccessCriteriaMet" } else { "FailureTarget" };
        self.set_condition(target, "True", &reason, &message);
        let running = |member: &Member| !member.pod.is_finished();
        let uncounted = !self.uncounted_succeeded.is_empty() || !self.uncounted_failed.is_empty();
        if self.pods.iter().any(running) || uncounted {
            return;
        }
        let end = if succeeded { "Complete" } else { "Failed" };
        self.set_condition(end, "True", &reason, &message);
        if succeeded {
            self.status.insert("completionTime", self.now.rfc3339());
            plan.event(Note::normal(&self.object, "Completed", "Job completed"));
        } else {
            let reasons = ["DeadlineExceeded", "PodFailurePolicy"];
            let known = reasons.into_iter().find(|known| reason == *known);
            plan.event(Note::warning(&self.object, known.unwrap_or("BackoffLimitExceeded"), message));
        }
    }
}
