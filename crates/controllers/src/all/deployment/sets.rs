//! A Deployment's ReplicaSets: which is the new one, and its making.

use std::sync::Arc;

use client::Cached;
use machinery::{Map, Object, Value};

use super::{Deployment, Rollout};
use crate::{
    conditions::{Condition, pruned},
    plan::*,
    pod_template::template_hash,
    resources::*,
};

pub const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
const HASH: &str = "pod-template-hash";
const HISTORY_LIMIT_CHARACTERS: usize = 2000;

/// Annotations of a Deployment that its ReplicaSets do not take over.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

#[derive(Clone)]
pub struct ReplicaSet {
    pub cached: Arc<Cached>,
    pub object: Object,
    pub replicas: i64,
    pub status_replicas: i64,
    pub available: i64,
    pub ready: i64,
    pub terminating: i64,
    pub observed_generation: i64,
}

impl ReplicaSet {
    fn read(cached: Arc<Cached>) -> Self {
        let object = tree(&REPLICA_SETS, &cached);
        let status = |field| object.i64_at(&["status", field]).unwrap_or(0);
        Self {
            replicas: object.i64_at(&["spec", "replicas"]).unwrap_or(1),
            status_replicas: status("replicas"),
            available: status("availableReplicas"),
            ready: status("readyReplicas"),
            terminating: status("terminatingReplicas"),
            observed_generation: status("observedGeneration"),
            cached,
            object,
        }
    }

    pub fn name(&self) -> &str {
        &self.cached.key.name
    }

    pub fn revision(&self) -> i64 {
        self.annotated(REVISION).unwrap_or(0)
    }

    /// The `spec.replicas` that it was last sized for.
    pub fn desired(&self) -> Option<i64> {
        self.annotated(DESIRED)
    }

    pub fn annotated_max(&self) -> Option<i64> {
        self.annotated(MAX)
    }

    fn annotated(&self, annotation: &str) -> Option<i64> {
        self.object.annotation(annotation)?.parse().ok()
    }
}

/// The new ReplicaSet, which has the Deployment's template, and all others, oldest first.
pub struct Sets {
    pub new: Option<ReplicaSet>,
    pub old: Vec<ReplicaSet>,
}

impl Sets {
    pub fn new(deployment: &Deployment, claimed: Vec<Arc<Cached>>) -> Self {
        let mut sets: Vec<ReplicaSet> = claimed.into_iter().map(ReplicaSet::read).collect();
        sets.sort_by_cached_key(|set| (set.object.creation_timestamp(), set.name().to_owned()));
        let wanted = comparable(deployment.object.at(&["spec", "template"]));
        let is_new = |set: &ReplicaSet| comparable(set.object.at(&["spec", "template"])) == wanted;
        // Of several alike, the oldest is the one.
        let new = sets.iter().position(is_new).map(|at| sets.remove(at));
        Self { new, old: sets }
    }

    pub fn all(&self) -> impl Iterator<Item = &ReplicaSet> {
        self.old.iter().chain(&self.new)
    }

    pub fn total(&self) -> i64 {
        self.all().map(|set| set.replicas).sum()
    }
}

/// A template without the label that only ReplicaSets carry.
fn comparable(template: Option<&Value>) -> Value {
    let mut template = template.cloned().unwrap_or_default();
    if let Some(map) = template.as_map_mut() {
        map.remove_at(&["metadata", "labels", HASH]);
    }
    pruned(&template)
}

impl Rollout<'_> {
    fn next_revision(&self) -> i64 {
        self.sets.old.iter().map(ReplicaSet::revision).max().unwrap_or(0) + 1
    }

    /// Brings annotations of an existing new ReplicaSet up to date, and the Deployment's revision.
    pub fn refresh_new_set(&mut self) {
        let Some(new) = self.sets.new.clone() else { return };
        let mut object = new.object.clone();
        let mut changed = self.copy_annotations(&mut object);
        changed |= raise_revision(&mut object, self.next_revision());
        let min_ready = self.deployment.object.i64_at(&["spec", "minReadySeconds"]).unwrap_or(0);
        if object.i64_at(&["spec", "minReadySeconds"]).unwrap_or(0) != min_ready {
            object.set_at(&["spec", "minReadySeconds"], min_ready);
            changed = true;
        }
        if changed {
            let update = Intent::Update { resource: &REPLICA_SETS, subresource: "", object: object.clone() };
            self.plan.push(update);
        }
        let revision = object.annotation(REVISION).unwrap_or_default().to_owned();
        self.sets.new = Some(ReplicaSet { object, ..new });
        self.set_own_revision(&revision);
    }

    fn set_own_revision(&mut self, revision: &str) {
        if self.deployment.object.annotation(REVISION) == Some(revision) {
            return;
        }
        self.deployment.object.set_at(&["metadata", "annotations", REVISION], revision);
        let object = self.deployment.object.clone();
        // Through `status`, as upstream: there an annotation does not raise the generation.
        self.plan.push(Intent::Update { resource: &DEPLOYMENTS, subresource: "status", object });
    }

    fn copy_annotations(&self, set: &mut Object) -> bool {
        let mut changed = false;
        let own = self.deployment.object.map_at(&["metadata", "annotations"]).cloned().unwrap_or_default();
        for (key, value) in own.iter().filter(|(key, _)| !NOT_COPIED.contains(&key.as_str())) {
            if set.annotation(key) != value.as_str() {
                set.set_at(&["metadata", "annotations", key], value.clone());
                changed = true;
            }
        }
        changed
    }

    /// Notes on a ReplicaSet what it is sized for. Returns whether that is news.
    pub fn note_size(&self, set: &mut Object) -> bool {
        let Deployment { replicas, max_surge, .. } = self.deployment;
        let mut changed = false;
        for (key, number) in [(DESIRED, replicas), (MAX, replicas + max_surge)] {
            let text = number.to_string();
            if set.annotation(key) != Some(&text) {
                set.set_at(&["metadata", "annotations", key], text);
                changed = true;
            }
        }
        changed
    }

    pub fn create_new_set(&mut self) {
        let collisions = self.deployment.object.i64_at(&["status", "collisionCount"]).unwrap_or(0);
        let template = self.deployment.object.at(&["spec", "template"]).cloned().unwrap_or_default();
        let hash = template_hash(&template, collisions);
        let name = set_name(&self.deployment.object, &hash);
        let named = client::Key::new(&self.key.namespace, &name);
        if self.world.get(&REPLICA_SETS, &named).is_some() {
            // It is another's, or has another template: the next hash gives another name.
            let mut status = self.deployment.status();
            status.insert("collisionCount", collisions + 1);
            self.plan.set_status(&DEPLOYMENTS, &self.deployment.object.clone(), status);
            return;
        }
        let size = self.new_size(0);
        let mut set = self.new_set(&name, &hash, template, size);
        self.copy_annotations(&mut set);
        let revision = self.next_revision();
        raise_revision(&mut set, revision);
        self.note_size(&mut set);
        self.mark_creation(&name);
        let own = &self.deployment.object;
        let failed = format!("Failed to create new replica set {name:?}: ");
        let step = self.plan.push(Intent::Create { resource: &REPLICA_SETS, object: set });
        step.failure(Note::warning(own, "ReplicaSetCreateError", failed));
        if size > 0 {
            let text = format!("Scaled up replica set {name} from 0 to {size}");
            step.note(Note::normal(own, "ScalingReplicaSet", text));
        }
        self.set_own_revision(&revision.to_string());
        if self.deployment.has_progress_deadline() {
            let text = format!("Created new replica set {name:?}");
            self.write_progressing(Condition::new("Progressing", "True", "NewReplicaSetCreated", text));
        }
    }

    /// After a failed attempt the user is told in the status, before the next attempt.
    fn mark_creation(&mut self, name: &str) {
        let failure = self.world.last_failure(self.key);
        let failure = failure.filter(|f| *f.resource == REPLICA_SETS && f.verb == "create" && !f.already_exists);
        if let Some(failure) = failure.filter(|_| self.deployment.has_progress_deadline()) {
            let text = format!("Failed to create new replica set {name:?}: {}", failure.message);
            self.write_progressing(Condition::new("Progressing", "False", "ReplicaSetCreateError", text));
        }
    }

    fn new_set(&self, name: &str, hash: &str, mut template: Value, size: i64) -> Object {
        let own = &self.deployment.object;
        if let Some(map) = template.as_map_mut() {
            map.set_at(&["metadata", "labels", HASH], hash);
        }
        let labels = template.at(&["metadata", "labels"]).cloned().unwrap_or_default();
        let mut selector = own.map_at(&["spec", "selector"]).cloned().unwrap_or_default();
        selector.set_at(&["matchLabels", HASH], hash);
        let mut set = Object::new("apps/v1", "ReplicaSet", own.namespace(), name);
        set.metadata_mut().insert("labels", labels);
        set.metadata_mut().insert("ownerReferences", vec![controller_reference(own).to_value()]);
        let spec: Map = [
            ("replicas", Value::from(size)),
            ("minReadySeconds", own.i64_at(&["spec", "minReadySeconds"]).unwrap_or(0).into()),
            ("selector", selector.into()),
            ("template", template),
        ]
        .into_iter()
        .collect();
        set.root_mut().insert("spec", spec);
        set
    }
}

fn set_name(deployment: &Object, hash: &str) -> String {
    let base = deployment.name();
    format!("{}-{hash}", &base[..base.len().min(252 - hash.len())])
}

/// Raises a ReplicaSet's revision, keeping the ones it had before.
fn raise_revision(set: &mut Object, revision: i64) -> bool {
    let old = set.annotation(REVISION).map(str::to_owned);
    let old_number = old.as_deref().and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
    if old_number >= revision {
        return false;
    }
    set.set_at(&["metadata", "annotations", REVISION], revision.to_string());
    if let Some(old) = old {
        let history = match set.annotation(REVISION_HISTORY) {
            Some(known) if !known.is_empty() => {
                let mut revisions: Vec<&str> = known.split(',').collect();
                revisions.push(&old);
                let length = |list: &[&str]| list.iter().map(|text| text.len() + 1).sum::<usize>();
                while length(&revisions) > HISTORY_LIMIT_CHARACTERS {
                    revisions.remove(0);
                }
                revisions.join(",")
            }
            _ => old,
        };
        set.set_at(&["metadata", "annotations", REVISION_HISTORY], history);
    }
    true
}
