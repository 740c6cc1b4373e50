//! Makes a Job at every time of a schedule.

mod schedule;

use std::{sync::Arc, time::Duration};

use client::{Cached, Key};
use machinery::{Map, Object, Value, value};
use stdx::Timestamp;

use self::schedule::Schedule;
use crate::{conditions, plan::*, resources::*};

pub const CONTROLLER: Controller = Controller {
    name: "cronjob-controller",
    account: "cronjob-controller",
    primary: &CRON_JOBS,
    watches: &[owned_by(&JOBS)],
    rbac: &[allow(&JOBS, &["create", "delete"]), allow_sub(&CRON_JOBS, "status", &["update"])],
    workers: 5,
    work: Work::Reconcile(reconcile),
};

const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// More missed times than this are not counted one by one.
const MANY_MISSED: usize = 100;

fn reconcile(key: &Key, world: &World, now: Timestamp) -> Plan {
    let mut plan = Plan::none();
    let Some(object) = world.object(&CRON_JOBS, key) else { return plan };
    let jobs = world.list(&JOBS).controlled_by(object.uid());
    let jobs = jobs.into_iter().map(|cached| Job { object: tree(&JOBS, &cached), cached }).collect();
    let status = object.map_at(&["status"]).cloned().unwrap_or_default();
    let mut cron = CronJob { object, jobs, status, now };
    cron.note_finished(&mut plan);
    if !cron.object.is_deleting() {
        cron.run_due(&mut plan);
        cron.clean_up(&mut plan);
    }
    let CronJob { object, status, .. } = cron;
    plan.set_status(&CRON_JOBS, &object, status);
    plan
}

struct Job {
    cached: Arc<Cached>,
    object: Object,
}

impl Job {
    fn has(&self, condition: &str) -> bool {
        conditions::is_true(self.object.list_at(&["status", "conditions"]), condition)
    }

    fn is_finished(&self) -> bool {
        self.has("Complete") || self.has("Failed")
    }

    fn reference(&self) -> Value {
        value!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "namespace": self.object.namespace(),
            "name": self.object.name(),
            "uid": self.object.uid(),
            "resourceVersion": self.object.resource_version(),
        })
    }
}

struct CronJob {
    object: Object,
    jobs: Vec<Job>,
    status: Map,
    now: Timestamp,
}

impl CronJob {
    /// Brings `status.active` and `lastSuccessfulTime` up to date.
    fn note_finished(&mut self, plan: &mut Plan) {
        let known: Vec<Value> = self.status.get("active").and_then(Value::as_list).unwrap_or(&[]).to_vec();
        let mut active = Vec::new();
        for job in &self.jobs {
            let uid = Value::from(job.object.uid());
            let listed = known.iter().find(|reference| reference.get("uid") == Some(&uid));
            if !job.is_finished() {
                active.push(listed.cloned().unwrap_or_else(|| job.reference()));
            } else if listed.is_some() {
                let status = if job.has("Complete") { "Complete" } else { "Failed" };
                let text = format!("Saw completed job: {}, condition: {status}", job.object.name());
                plan.event(Note::normal(&self.object, "SawCompletedJob", text));
            }
            let completed = job.object.str_at(&["status", "completionTime"]);
            let latest = self.status.str_at(&["lastSuccessfulTime"]).and_then(Timestamp::parse);
            if job.has("Complete") && Timestamp::parse(completed) > latest {
                self.status.insert("lastSuccessfulTime", completed);
            }
        }
        self.status.insert("active", active);
    }

    fn schedule(&self, plan: &mut Plan) -> Option<Schedule> {
        let zone = self.object.str_at(&["spec", "timeZone"]);
        if !matches!(zone, "" | "UTC" | "Etc/UTC") {
            let text = format!("invalid timeZone: {zone:?}: only UTC is known here");
            plan.event(Note::warning(&self.object, "UnknownTimeZone", text));
            return None;
        }
        let text = self.object.str_at(&["spec", "schedule"]);
        match Schedule::parse(text) {
            Some(schedule) => Some(schedule),
            None => {
                let text = format!("unparseable schedule: {text:?}");
                plan.event(Note::warning(&self.object, "UnparseableSchedule", text));
                None
            }
        }
    }

    fn run_due(&mut self, plan: &mut Plan) {
        if self.object.bool_at(&["spec", "suspend"]) {
            return;
        }
        let Some(schedule) = self.schedule(plan) else { return };
        if let Some(next) = schedule.next_after(self.now) {
            plan.requeue_in(next.since(self.now));
        }
        let Some(due) = self.last_due(&schedule, plan) else { return };
        let deadline = self.deadline();
        if deadline.is_some_and(|deadline| due + deadline < self.now) {
            let text = format!("Missed scheduled time to start a job: {}", due.rfc3339());
            plan.event(Note::warning(&self.object, "MissSchedule", text));
            return;
        }
        let name = format!("{}-{}", self.object.name(), due.as_secs() / 60);
        if self.jobs.iter().any(|job| job.object.name() == name) {
            self.status.insert("lastScheduleTime", due.rfc3339());
            return;
        }
        let active: Vec<&Job> = self.jobs.iter().filter(|job| !job.is_finished()).collect();
        match self.object.str_at(&["spec", "concurrencyPolicy"]) {
            "Forbid" if !active.is_empty() => {
                let text = "Not starting job because prior execution is still running";
                plan.event(Note::normal(&self.object, "JobAlreadyActive", text));
                return;
            }
            "Replace" => active.into_iter().for_each(|job| self.delete(plan, job)),
            _ => {}
        }
        self.start(plan, &name, due);
    }

    fn deadline(&self) -> Option<Duration> {
        let seconds = self.object.i64_at(&["spec", "startingDeadlineSeconds"])?;
        Some(Duration::from_secs(seconds.max(0) as u64))
    }

    /// The latest time of the schedule that has passed since the last one acted on.
    fn last_due(&self, schedule: &Schedule, plan: &mut Plan) -> Option<Timestamp> {
        let last = self.status.str_at(&["lastScheduleTime"]).and_then(Timestamp::parse);
        let mut from = last.or_else(|| self.object.creation_timestamp())?;
        if let Some(deadline) = self.deadline() {
            from = from.max(self.now - deadline);
        }
        let mut due = None;
        let mut missed = 0;
        while let Some(next) = schedule.next_after(from).filter(|next| *next <= self.now) {
            (due, from) = (Some(next), next);
            missed += 1;
            if missed == MANY_MISSED {
                let text = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
                plan.event(Note::warning(&self.object, "TooManyMissedTimes", text));
            }
            if missed > 100_000 {
                break;
            }
        }
        due
    }

    fn start(&mut self, plan: &mut Plan, name: &str, due: Timestamp) {
        let template = self.object.at(&["spec", "jobTemplate"]).cloned().unwrap_or_default();
        let mut job = Object::new("batch/v1", "Job", self.object.namespace(), name);
        for field in ["labels", "annotations"] {
            if let Some(value) = template.at(&["metadata", field]) {
                job.metadata_mut().insert(field, value.clone());
            }
        }
        job.set_at(&["metadata", "annotations", SCHEDULED_AT], due.rfc3339());
        let owner = controller_reference(&self.object).to_value();
        job.metadata_mut().insert("ownerReferences", vec![owner]);
        job.root_mut().insert("spec", template.get("spec").cloned().unwrap_or_default());
        plan.push(Intent::Create { resource: &JOBS, object: job })
            .note(Note::normal(&self.object, "SuccessfulCreate", format!("Created job {name}")))
            .failure(Note::warning(&self.object, "FailedCreate", "Error creating job: "));
        self.status.insert("lastScheduleTime", due.rfc3339());
    }

    fn delete(&self, plan: &mut Plan, job: &Job) {
        let mut intent = Intent::delete(&JOBS, &job.cached);
        if let Intent::Delete { propagation_policy, .. } = &mut intent {
            *propagation_policy = "Background";
        }
        let text = format!("Deleted job {}", job.object.name());
        plan.push(intent)
            .note(Note::normal(&self.object, "SuccessfulDelete", text))
            .failure(Note::warning(&self.object, "FailedDelete", "Deleted job: "));
    }

    /// Deletes finished Jobs beyond the history limits, oldest first.
    fn clean_up(&self, plan: &mut Plan) {
        for (condition, field) in [("Complete", "successfulJobsHistoryLimit"), ("Failed", "failedJobsHistoryLimit")] {
            let Some(limit) = self.object.i64_at(&["spec", field]) else { continue };
            let mut finished: Vec<&Job> =
                self.jobs.iter().filter(|job| job.has(condition) && !job.cached.is_deleting()).collect();
            finished.sort_by_key(|job| {
                (Timestamp::parse(job.object.str_at(&["status", "startTime"])), job.object.name().to_owned())
            });
            let surplus = finished.len().saturating_sub(limit.max(0) as usize);
            finished.into_iter().take(surplus).for_each(|job| self.delete(plan, job));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{cached, world};

    fn cron(extra: Value, last: &str) -> Cached {
        let mut cron = value!({
            "metadata": {"namespace": "d", "name": "c", "uid": "c1", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"schedule": "*/5 * * * *", "successfulJobsHistoryLimit": 1, "jobTemplate": {"spec": {}}},
        });
        let root = cron.as_map_mut().unwrap();
        for (key, value) in extra.as_map().unwrap().iter() {
            root.set_at(&["spec", key], value.clone());
        }
        if !last.is_empty() {
            root.set_at(&["status", "lastScheduleTime"], last);
        }
        cached(cron)
    }

    fn job(name: &str, condition: &str) -> Cached {
        cached(value!({
            "metadata": {"namespace": "d", "name": name, "uid": name,
                "ownerReferences": [{"apiVersion": "batch/v1", "kind": "CronJob", "name": "c", "uid": "c1", "controller": true}]},
            "status": {"conditions": [{"type": condition, "status": "True"}]},
        }))
    }

    fn plan(cron: Cached, jobs: Vec<Cached>, now: &str) -> (Vec<String>, Plan) {
        let world = world([(&CRON_JOBS, vec![cron]), (&JOBS, jobs)]);
        let plan = reconcile(&Key::new("d", "c"), &world, Timestamp::parse(now).unwrap());
        let of_jobs = plan.steps.iter().filter(|s| *s.intent.resource() == JOBS);
        (of_jobs.map(|s| format!("{} {}", s.intent.verb(), s.intent.key().name)).collect(), plan)
    }

    #[test]
    fn starts_the_latest_due_job_once_and_wakes_for_the_next() {
        let minute = Timestamp::parse("2026-01-01T00:10:00Z").unwrap().as_secs() / 60;
        let (jobs, decided) = plan(cron(value!({}), ""), vec![], "2026-01-01T00:11:00Z");
        assert_eq!(jobs, [format!("create c-{minute}")]);
        assert_eq!(decided.requeue_after, Some(Duration::from_secs(240)));
        let (jobs, _) = plan(cron(value!({}), "2026-01-01T00:10:00Z"), vec![], "2026-01-01T00:11:00Z");
        assert_eq!(jobs, Vec::<String>::new());
    }

    #[test]
    fn concurrency_deadline_suspension_and_history_hold() {
        let forbid = value!({"concurrencyPolicy": "Forbid"});
        let now = "2026-01-01T00:11:00Z";
        assert_eq!(plan(cron(forbid, ""), vec![job("a", "Running")], now).0, Vec::<String>::new());
        let replace = value!({"concurrencyPolicy": "Replace"});
        assert_eq!(plan(cron(replace, ""), vec![job("a", "Running")], now).0.len(), 2);
        let late = value!({"startingDeadlineSeconds": 30});
        assert_eq!(plan(cron(late, ""), vec![], now).0, Vec::<String>::new());
        assert_eq!(plan(cron(value!({"suspend": true}), ""), vec![], now).0, Vec::<String>::new());
        let done = vec![job("a", "Complete"), job("b", "Complete")];
        assert_eq!(plan(cron(value!({}), now), done, now).0, ["delete a"]);
    }
}
