//! Deletes finished Jobs after their `ttlSecondsAfterFinished`.

use std::time::Duration;

use client::Key;
use machinery::{Object, Value};
use stdx::Timestamp;

use crate::{plan::*, resources::*};

pub const CONTROLLER: Controller = Controller {
    name: "ttl-after-finished-controller",
    account: "ttl-after-finished-controller",
    primary: &JOBS,
    watches: &[],
    rbac: &[allow(&JOBS, &["delete"])],
    workers: 2,
    work: Work::Reconcile(reconcile),
};

fn reconcile(key: &Key, world: &World, now: Timestamp) -> Plan {
    let mut plan = Plan::none();
    let Some(cached) = world.get(&JOBS, key).filter(|cached| !cached.is_deleting()) else { return plan };
    let job = tree(&JOBS, &cached);
    let ttl = job.i64_at(&["spec", "ttlSecondsAfterFinished"]);
    let (Some(ttl), Some(finished)) = (ttl, finished_at(&job)) else { return plan };
    let end = finished + Duration::from_secs(ttl.max(0) as u64);
    if now < end {
        plan.requeue_in(end.since(now));
        return plan;
    }
    let mut intent = Intent::delete(&JOBS, &cached);
    if let Intent::Delete { propagation_policy, .. } = &mut intent {
        *propagation_policy = "Foreground";
    }
    plan.push(intent);
    plan
}

fn finished_at(job: &Object) -> Option<Timestamp> {
    let finished = |c: &&Value| {
        let text = |field| c.get(field).and_then(Value::as_str).unwrap_or_default();
        ["Complete", "Failed"].contains(&text("type")) && text("status") == "True"
    };
    let condition = job.list_at(&["status", "conditions"]).iter().find(finished)?;
    Timestamp::parse(condition.get("lastTransitionTime")?.as_str()?)
}
