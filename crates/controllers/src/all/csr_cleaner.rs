//! Removes certificate requests that are settled or that nobody settled.

use std::time::Duration;

use client::Key;
use machinery::{Object, Value};
use stdx::Timestamp;

use crate::{certificates::has, plan::*, resources::*};

pub const CONTROLLER: Controller = Controller {
    name: "certificatesigningrequest-cleaner-controller",
    account: "certificate-controller",
    primary: &CERTIFICATE_SIGNING_REQUESTS,
    watches: &[],
    rbac: &[allow(&CERTIFICATE_SIGNING_REQUESTS, &["delete"])],
    workers: 1,
    work: Work::Reconcile(reconcile),
};

const SETTLED: Duration = Duration::from_secs(3600);
const PENDING: Duration = Duration::from_secs(24 * 3600);

fn reconcile(key: &Key, world: &World, now: Timestamp) -> Plan {
    let mut plan = Plan::none();
    let Some(cached) = world.get(&CERTIFICATE_SIGNING_REQUESTS, key) else { return plan };
    let object = tree(&CERTIFICATE_SIGNING_REQUESTS, &cached);
    let Some(end) = end(&object) else { return plan };
    if now < end {
        plan.requeue_in(end.since(now));
    } else {
        plan.push(Intent::delete(&CERTIFICATE_SIGNING_REQUESTS, &cached));
    }
    plan
}

fn end(object: &Object) -> Option<Timestamp> {
    let issued = !object.str_at(&["status", "certificate"]).is_empty();
    let settled = |kind: &str| {
        let conditions = object.list_at(&["status", "conditions"]);
        let found = conditions.iter().find(|c| c.get("type").and_then(Value::as_str) == Some(kind))?;
        let at = Timestamp::parse(found.get("lastUpdateTime")?.as_str()?)?;
        Some(at + if kind == "Approved" && !issued { PENDING } else { SETTLED })
    };
    let created = object.creation_timestamp()? + PENDING;
    let known = ["Denied", "Failed", "Approved"].into_iter().filter(|kind| has(object, kind));
    known.filter_map(settled).min().or(Some(created))
}
