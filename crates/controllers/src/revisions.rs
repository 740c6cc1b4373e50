//! ControllerRevisions: the templates that a DaemonSet or StatefulSet has had.

use std::sync::Arc;

use client::Cached;
use machinery::{Map, Object, Value};

use crate::{conditions::pruned, plan::*, pod_template::template_hash, resources::*};

pub const HASH: &str = "controller-revision-hash";

/// One template that its owner had or has.
#[derive(Clone)]
pub struct Revision {
    pub name: String,
    pub number: i64,
    /// The value of the label [`HASH`] on pods of a DaemonSet. StatefulSets use the name.
    pub hash: String,
    pub template: Value,
}

/// The template's revision, made or brought to the top if need be, and all others, oldest first.
pub struct History {
    pub current: Revision,
    pub others: Vec<(Revision, Arc<Cached>)>,
}

/// Reads the history, and plans what makes the owner's template its newest revision.
pub fn history(plan: &mut Plan, owner: &Object, world: &World) -> History {
    let cached = world.list(&CONTROLLER_REVISIONS).controlled_by(owner.uid());
    let mut known: Vec<(Revision, Arc<Cached>)> =
        cached.into_iter().filter_map(|c| Some((read(&c)?, c))).collect();
    known.sort_by_key(|(revision, cached)| (revision.number, cached.key.clone()));
    let wanted = pruned(owner.at(&["spec", "template"]).unwrap_or(&Value::Null));
    let newest = known.last().map_or(0, |(revision, _)| revision.number);
    let found = known.iter().rposition(|(revision, _)| pruned(&revision.template) == wanted);
    let Some(at) = found else {
        let current = create(plan, owner, newest + 1, world);
        return History { current, others: known };
    };
    let (mut current, cached) = known.remove(at);
    if current.number < newest {
        current.number = newest + 1;
        let mut object = tree(&CONTROLLER_REVISIONS, &cached);
        object.root_mut().insert("revision", current.number);
        plan.push(Intent::Update { resource: &CONTROLLER_REVISIONS, subresource: "", object });
    }
    History { current, others: known }
}

fn read(cached: &Cached) -> Option<Revision> {
    let object = cached.object().ok()?;
    let mut template = object.at(&["data", "spec", "template"])?.clone();
    if let Some(map) = template.as_map_mut() {
        map.remove("$patch");
    }
    Some(Revision {
        name: object.name().to_owned(),
        number: object.i64_at(&["revision"]).unwrap_or(0),
        hash: object.label(HASH).unwrap_or_default().to_owned(),
        template,
    })
}

fn create(plan: &mut Plan, owner: &Object, number: i64, world: &World) -> Revision {
    let template = owner.at(&["spec", "template"]).cloned().unwrap_or_default();
    let mut collisions = owner.i64_at(&["status", "collisionCount"]).unwrap_or(0);
    let mut hash = template_hash(&template, collisions);
    // A name taken by something else gives way to the next hash.
    while world
        .get(
            &CONTROLLER_REVISIONS,
            &client::Key::new(owner.namespace(), &format!("{}-{hash}", owner.name())),
        )
        .is_some()
    {
        collisions += 1;
        hash = template_hash(&template, collisions);
    }
    let name = format!("{}-{hash}", owner.name());
    let mut labels: Map =
        template.at(&["metadata", "labels"]).and_then(Value::as_map).cloned().unwrap_or_default();
    labels.insert(HASH, hash.as_str());
    let mut patched = template.as_map().cloned().unwrap_or_default();
    patched.insert("$patch", "replace");
    let mut object = Object::new("apps/v1", "ControllerRevision", owner.namespace(), &name);
    if let Some(annotations) = owner.at(&["metadata", "annotations"]) {
        object.metadata_mut().insert("annotations", annotations.clone());
    }
    object.metadata_mut().insert("labels", labels);
    object.metadata_mut().insert("ownerReferences", vec![controller_reference(owner).to_value()]);
    object.set_at(&["data", "spec", "template"], patched);
    object.root_mut().insert("revision", number);
    plan.push(Intent::Create { resource: &CONTROLLER_REVISIONS, object });
    Revision { name, number, hash, template }
}

/// Deletes revisions beyond `revisionHistoryLimit` that no pod has any more, oldest first.
pub fn clean_up(
    plan: &mut Plan,
    owner: &Object,
    history: &History,
    is_used: impl Fn(&Revision) -> bool,
) {
    let limit = owner.i64_at(&["spec", "revisionHistoryLimit"]).unwrap_or(10).max(0) as usize;
    let unused: Vec<_> = history.others.iter().filter(|(revision, _)| !is_used(revision)).collect();
    let surplus = unused.len().saturating_sub(limit);
    for (_, cached) in &unused[..surplus] {
        plan.push(Intent::delete(&CONTROLLER_REVISIONS, cached));
    }
}
