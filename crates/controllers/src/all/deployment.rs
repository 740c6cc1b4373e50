//! Rolls a template out over ReplicaSets: one per revision, the newest growing while the others
//! shrink within `maxSurge` and `maxUnavailable`.
//!
//! One reconcile does the first of these that applies, as upstream's does: make the new
//! ReplicaSet ▸ follow a change of `spec.replicas` ▸ grow the new one ▸ shrink the old ones ▸
//! tidy up; the status always.

mod progress;
mod rolling;
mod sets;

use client::{Change, Key};
use machinery::{Map, Object, Value};
use stdx::Timestamp;

use self::sets::{ReplicaSet, Sets};
use crate::{conditions, plan::*, resources::*, views::Pod};

pub const CONTROLLER: Controller = Controller {
    name: "deployment-controller",
    account: "deployment-controller",
    primary: &DEPLOYMENTS,
    watches: &[adopted_by(&REPLICA_SETS), mapped(&PODS, deployment_of_gone_pod)],
    rbac: &[
        allow(&REPLICA_SETS, &["create", "update", "patch", "delete"]),
        allow_sub(&DEPLOYMENTS, "status", &["update"]),
    ],
    workers: 5,
    work: Work::Reconcile(reconcile),
};

/// A Recreate rollout waits for the last old pod to be gone.
fn deployment_of_gone_pod(change: &Change, world: &World) -> Vec<Key> {
    let (Some(pod), None) = (&change.old, &change.new) else { return Vec::new() };
    let owner = owner_key(pod, &REPLICA_SETS).and_then(|key| world.get(&REPLICA_SETS, &key));
    owner.and_then(|set| owner_key(&set, &DEPLOYMENTS)).into_iter().collect()
}

/// A Deployment's settings, resolved.
struct Deployment {
    object: Object,
    replicas: i64,
    is_rolling: bool,
    max_surge: i64,
    max_unavailable: i64,
    paused: bool,
}

fn reconcile(key: &Key, world: &World, now: Timestamp) -> Plan {
    let mut plan = Plan::none();
    let Some(object) = world.object(&DEPLOYMENTS, key) else { return plan };
    let deployment = Deployment::read(object);
    let Some(selector) = selector_of(&deployment.object) else { return plan };
    if selector.is_empty() {
        return select_all(deployment, plan);
    }
    let candidates = world.list(&REPLICA_SETS).in_namespace(&key.namespace);
    let claimed = claim(&mut plan, &REPLICA_SETS, &deployment.object, &selector, &candidates, |_| true);
    if !plan.is_empty() {
        return plan;
    }
    let sets = Sets::new(&deployment, claimed);
    let mut rollout = Rollout { deployment, sets, world, key, now, plan };
    rollout.decide();
    rollout.plan
}

fn select_all(deployment: Deployment, mut plan: Plan) -> Plan {
    let object = &deployment.object;
    let mut status = object.map_at(&["status"]).cloned().unwrap_or_default();
    status.insert("observedGeneration", object.generation());
    if plan.set_status(&DEPLOYMENTS, object, status) {
        let text = "This deployment is selecting all pods. A non-empty selector is required.";
        plan.event(Note::warning(object, "SelectingAll", text));
    }
    plan
}

impl Deployment {
    fn read(object: Object) -> Self {
        let replicas = object.i64_at(&["spec", "replicas"]).unwrap_or(1);
        let strategy = object.str_at(&["spec", "strategy", "type"]);
        let is_rolling = strategy != "Recreate";
        let (max_surge, max_unavailable) = fenceposts(&object, replicas, is_rolling);
        let paused = object.bool_at(&["spec", "paused"]);
        Self { object, replicas, is_rolling, max_surge, max_unavailable, paused }
    }

    fn has_progress_deadline(&self) -> bool {
        let seconds = self.object.i64_at(&["spec", "progressDeadlineSeconds"]);
        seconds.is_some_and(|seconds| seconds != i64::from(i32::MAX))
    }

    fn status(&self) -> Map {
        self.object.map_at(&["status"]).cloned().unwrap_or_default()
    }

    fn progressing(&self) -> Option<&Map> {
        conditions::find(self.object.list_at(&["status", "conditions"]), "Progressing")
    }
}

/// `maxSurge` rounded up and `maxUnavailable` rounded down; not both zero, for then nothing could
/// ever move. Outside a rolling update both are zero.
fn fenceposts(object: &Object, replicas: i64, is_rolling: bool) -> (i64, i64) {
    if !is_rolling {
        return (0, 0);
    }
    let field = |name| object.at(&["spec", "strategy", "rollingUpdate", name]);
    let surge = scaled(field("maxSurge"), replicas, true).max(0);
    let mut unavailable = scaled(field("maxUnavailable"), replicas, false).max(0);
    if surge == 0 && unavailable == 0 {
        unavailable = 1;
    }
    (surge, unavailable.min(replicas))
}

/// An `IntOrString`: a number, or a percentage of `total`. Missing counts as the default, 25%.
pub fn scaled(value: Option<&Value>, total: i64, round_up: bool) -> i64 {
    let percent = |percent: i64| {
        let product = percent * total;
        if round_up { (product + 99).div_euclid(100) } else { product.div_euclid(100) }
    };
    match value {
        Some(Value::Int(number)) => *number,
        Some(Value::String(text)) => {
            let number = text.strip_suffix('%').and_then(|digits| digits.parse().ok());
            number.map_or(0, percent)
        }
        _ => percent(25),
    }
}

/// One reconcile of one Deployment.
struct Rollout<'a> {
    deployment: Deployment,
    sets: Sets,
    world: &'a World,
    key: &'a Key,
    now: Timestamp,
    plan: Plan,
}

impl Rollout<'_> {
    fn decide(&mut self) {
        if self.deployment.object.is_deleting() {
            return self.write_plain_status();
        }
        if self.mark_paused_or_resumed() {
            return;
        }
        self.refresh_new_set();
        if self.deployment.paused {
            self.follow_scale();
            self.clean_up();
            return self.write_plain_status();
        }
        if self.is_scaling() {
            self.follow_scale();
            return self.write_plain_status();
        }
        if self.deployment.is_rolling { self.roll() } else { self.recreate() }
    }

    /// Whether a ReplicaSet was last sized for another `spec.replicas`.
    fn is_scaling(&self) -> bool {
        let wanted = self.deployment.replicas;
        let mut active = self.sets.all().filter(|set| set.replicas > 0);
        active.any(|set| set.desired().is_some_and(|desired| desired != wanted))
    }

    fn recreate(&mut self) {
        let running: Vec<ReplicaSet> = self.sets.old.iter().filter(|s| s.replicas > 0).cloned().collect();
        if !running.is_empty() {
            for set in &running {
                self.scale(set, 0);
            }
            return self.write_rollout_status();
        }
        if self.old_pods_remain() {
            return self.write_rollout_status();
        }
        match self.sets.new.clone() {
            None => self.create_new_set(),
            Some(new) => {
                self.scale(&new, self.deployment.replicas);
                self.finish();
            }
        }
    }

    fn old_pods_remain(&self) -> bool {
        let pods = self.world.list(&PODS);
        let remains = |set: &ReplicaSet| {
            let mine = pods.controlled_by(&set.cached.uid);
            set.status_replicas > 0
                || mine.iter().filter_map(|c| Pod::read(c)).any(|p| !p.is_finished() && p.status.phase != "Unknown")
        };
        self.sets.old.iter().any(remains)
    }

    /// The end of a rollout's reconcile: the status, and old revisions when all is done.
    fn finish(&mut self) {
        if self.is_complete() {
            self.clean_up();
        }
        self.write_rollout_status();
    }

    /// Resizes a ReplicaSet and notes what it was sized for.
    fn scale(&mut self, set: &ReplicaSet, replicas: i64) {
        if set.replicas != replicas {
            self.resize(set, replicas);
        }
    }

    fn resize(&mut self, set: &ReplicaSet, replicas: i64) {
        let mut object = set.object.clone();
        let annotated = self.note_size(&mut object);
        if set.replicas == replicas && !annotated {
            return;
        }
        object.set_at(&["spec", "replicas"], replicas);
        let step = self.plan.push(Intent::Update { resource: &REPLICA_SETS, subresource: "", object });
        if set.replicas != replicas {
            let direction = if set.replicas < replicas { "up" } else { "down" };
            let (name, old) = (set.name(), set.replicas);
            let text = format!("Scaled {direction} replica set {name} from {old} to {replicas}");
            step.note(Note::normal(&self.deployment.object, "ScalingReplicaSet", text));
        }
    }

    /// Removes what exceeds `revisionHistoryLimit`, oldest revisions first.
    fn clean_up(&mut self) {
        let Some(limit) = self.deployment.object.i64_at(&["spec", "revisionHistoryLimit"]) else { return };
        if limit == i64::from(i32::MAX) {
            return;
        }
        let mut cleanable: Vec<&ReplicaSet> =
            self.sets.old.iter().filter(|set| !set.cached.is_deleting()).collect();
        let surplus = cleanable.len() as i64 - limit;
        cleanable.sort_by_key(|set| set.revision());
        for set in cleanable.into_iter().take(surplus.max(0) as usize) {
            let in_use = set.status_replicas != 0 || set.replicas != 0;
            if !in_use && set.object.generation() <= set.observed_generation {
                self.plan.push(Intent::delete(&REPLICA_SETS, &set.cached));
            }
        }
    }
}

#[cfg(test)]
mod tests;
