//! What a controller is, and what it decides: the vocabulary of every file under `all/`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use client::{
    Cached, Change, Key, Lister, Patch, Resource,
    events::{EventType, ObjectReference},
};
use futures::future::BoxFuture;
use machinery::{Map, Object, OwnerReference, Value};
use stdx::Timestamp;

use crate::{
    Config, Error, conditions,
    runner::{Failure, Failures, TaskContext},
    selector::Selector,
};

/// One controller of the table. See `docs/recipes/add-a-controller.md`.
pub struct Controller {
    /// As `--controllers` names it.
    pub name: &'static str,
    /// The service account in `kube-system` whose identity writes.
    pub account: &'static str,
    /// Keys are names of this resource's objects; every change of one is its key.
    pub primary: &'static Resource,
    pub watches: &'static [Watch],
    /// What `account` must be allowed, all of it granted by the role `system:controller:ACCOUNT`.
    pub rbac: &'static [Rule],
    /// How many keys are worked on at once. With 1, no key is reconciled before the view includes
    /// the last write for any other, which allocators need.
    pub workers: usize,
    pub work: Work,
}

/// How a controller does its work.
pub enum Work {
    /// A pure decision per key; the usual case.
    Reconcile(fn(&Key, &World, Timestamp) -> Plan),
    /// An action per key that must ask the server between decisions. Returns when to look again.
    Act(fn(TaskContext, World, Key) -> Acting),
    /// A long-running task of its own, for what must ask the server between decisions.
    Task(fn(TaskContext) -> BoxFuture<'static, ()>),
}

/// An action under way; its outcome says when to look again.
pub type Acting = BoxFuture<'static, Result<Option<Duration>, Error>>;

/// Verbs on a resource (`pods`, `pods/status`) of an API group.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    pub resource: &'static Resource,
    pub subresource: &'static str,
    pub verbs: &'static [&'static str],
}

pub const fn allow(resource: &'static Resource, verbs: &'static [&'static str]) -> Rule {
    Rule { resource, subresource: "", verbs }
}

pub const fn allow_sub(
    resource: &'static Resource,
    subresource: &'static str,
    verbs: &'static [&'static str],
) -> Rule {
    Rule { resource, subresource, verbs }
}

/// A resource that the controller reads, and which keys a change of it concerns.
pub struct Watch {
    pub resource: &'static Resource,
    pub keys: Keys,
}

pub enum Keys {
    /// Read only.
    None,
    /// The primary that is the object's controller.
    Owner,
    /// The same; an object without controller concerns every primary whose selector matches.
    OwnerOrSelector,
    Map(fn(&Change, &World) -> Vec<Key>),
}

pub const fn reads(resource: &'static Resource) -> Watch {
    Watch { resource, keys: Keys::None }
}

pub const fn owned_by(resource: &'static Resource) -> Watch {
    Watch { resource, keys: Keys::Owner }
}

/// Like [`owned_by`], for controllers that adopt orphans by `spec.selector`.
pub const fn adopted_by(resource: &'static Resource) -> Watch {
    Watch { resource, keys: Keys::OwnerOrSelector }
}

pub const fn mapped(resource: &'static Resource, keys: fn(&Change, &World) -> Vec<Key>) -> Watch {
    Watch { resource, keys: Keys::Map(keys) }
}

impl Watch {
    pub(crate) fn keys_of(&self, primary: &Resource, change: &Change, world: &World) -> Vec<Key> {
        match self.keys {
            Keys::None => Vec::new(),
            Keys::Map(keys) => keys(change, world),
            Keys::Owner => change.both().filter_map(|c| owner_key(c, primary)).collect(),
            Keys::OwnerOrSelector => {
                let mut keys: Vec<Key> =
                    change.both().filter_map(|c| owner_key(c, primary)).collect();
                let orphans = change.both().filter(|c| c.controller().is_none());
                for orphan in orphans {
                    keys.extend(selecting(primary, orphan, world));
                }
                keys
            }
        }
    }
}

/// The key of the primary that controls the object, if it is of that kind.
pub fn owner_key(cached: &Cached, primary: &Resource) -> Option<Key> {
    let owner = cached.controller()?;
    let same_kind = owner.kind == primary.kind && group_of(&owner.api_version) == primary.gvr.group;
    same_kind.then(|| Key { namespace: cached.key.namespace.clone(), name: owner.name.clone() })
}

pub fn group_of(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

fn selecting(primary: &Resource, orphan: &Cached, world: &World) -> Vec<Key> {
    let matches = |candidate: &Arc<Cached>| {
        let object = candidate.object().ok()?;
        let selector = selector_of(&object)?;
        (!selector.is_empty() && selector.matches(&orphan.labels)).then(|| candidate.key.clone())
    };
    let candidates = world.list(primary).in_namespace(&orphan.key.namespace);
    candidates.iter().filter_map(matches).collect()
}

/// `spec.selector`, in whichever of its two forms the kind has.
pub fn selector_of(object: &Object) -> Option<Selector> {
    let selector = object.at(&["spec", "selector"]);
    match object.kind() {
        "ReplicationController" | "Service" => Some(Selector::of_labels(selector?.as_map()?)),
        _ => Selector::parse(selector),
    }
}

const MAX_MEMOS: usize = 10_000;

/// Everything a `reconcile` may look at.
#[derive(Clone)]
pub struct World {
    listers: Arc<BTreeMap<Resource, Lister>>,
    config: Arc<Config>,
    failures: Failures,
    first_seen: Arc<Mutex<BTreeMap<String, Timestamp>>>,
}

impl World {
    pub fn new(listers: impl IntoIterator<Item = (Resource, Lister)>, config: Arc<Config>) -> Self {
        let listers = Arc::new(listers.into_iter().collect());
        Self { listers, config, failures: Failures::default(), first_seen: Arc::default() }
    }

    pub(crate) fn failures(&self) -> &Failures {
        &self.failures
    }

    pub(crate) fn find(&self, resource: &Resource) -> Option<&Lister> {
        self.listers.get(resource)
    }

    /// The objects of a resource. Panics when the controller did not declare that it watches it.
    pub fn list(&self, resource: &Resource) -> &Lister {
        let lister = self.listers.get(resource);
        lister.unwrap_or_else(|| panic!("{} is not among the watches", resource.gvr.resource))
    }

    pub fn get(&self, resource: &Resource, key: &Key) -> Option<Arc<Cached>> {
        self.list(resource).get(key)
    }

    /// The tree of one object, with its kind (which the items of a list lack).
    pub fn object(&self, resource: &Resource, key: &Key) -> Option<Object> {
        Some(tree(resource, &*self.get(resource, key)?))
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Since when something that carries no time of its own has been so, as far as this process
    /// knows: the `now` of the first call with this name since [`World::forget`].
    pub fn since(&self, name: String, now: Timestamp) -> Timestamp {
        let mut first_seen = self.first_seen.lock().unwrap_or_else(PoisonError::into_inner);
        if first_seen.len() >= MAX_MEMOS {
            // What nobody asked to forget ended otherwise; none of it lasts a day.
            first_seen.retain(|_, at| now.since(*at) < Duration::from_secs(24 * 3600));
        }
        *first_seen.entry(name).or_insert(now)
    }

    pub fn forget(&self, name: &str) {
        self.first_seen.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// What stopped the plan before this one, if the last attempt of the key failed.
    pub fn last_failure(&self, key: &Key) -> Option<Failure> {
        self.failures.get(key)
    }
}

/// The tree of a cached object, with its kind.
pub fn tree(resource: &Resource, cached: &Cached) -> Object {
    let mut object = cached.object().unwrap_or_default();
    object.root_mut().insert("apiVersion", resource.api_version());
    object.root_mut().insert("kind", resource.kind);
    object
}

/// What is to be done for one key, in order.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// Told when every step has succeeded.
    pub events: Vec<Note>,
    /// Look again after this long even if nothing changes.
    pub requeue_after: Option<Duration>,
}

/// One write, and what to tell the user about it.
#[derive(Clone, Debug)]
pub struct Step {
    pub intent: Intent,
    pub done: Option<Note>,
    /// The error is appended to the message.
    pub failed: Option<Note>,
}

/// One write.
#[derive(Clone, Debug)]
pub enum Intent {
    /// Under a name that the plan chose, so that it can be repeated when its answer was lost.
    Create { resource: &'static Resource, object: Object },
    /// The whole tree, carrying the resourceVersion it was read at.
    Update { resource: &'static Resource, subresource: &'static str, object: Object },
    /// Carries `metadata.uid` (and a resourceVersion where it matters); made by [`Intent::patch`].
    Patch { resource: &'static Resource, key: Key, subresource: &'static str, patch: Patch },
    Delete {
        resource: &'static Resource,
        key: Key,
        uid: String,
        revision: Option<String>,
        grace_period_seconds: Option<i64>,
        propagation_policy: &'static str,
    },
}

/// An event to record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub event_type: EventType,
    pub about: ObjectReference,
    pub reason: &'static str,
    pub message: String,
}

impl Note {
    pub fn normal(about: &Object, reason: &'static str, message: impl Into<String>) -> Self {
        let about = ObjectReference::of(about);
        Self { event_type: EventType::Normal, about, reason, message: message.into() }
    }

    pub fn warning(about: &Object, reason: &'static str, message: impl Into<String>) -> Self {
        Self { event_type: EventType::Warning, ..Self::normal(about, reason, message) }
    }
}

impl Plan {
    pub fn none() -> Self {
        Self::default()
    }

    pub fn push(&mut self, intent: Intent) -> &mut Step {
        self.steps.push(Step { intent, done: None, failed: None });
        let last = self.steps.len() - 1;
        &mut self.steps[last]
    }

    pub fn event(&mut self, note: Note) {
        self.events.push(note);
    }

    /// The earliest of all such calls counts.
    pub fn requeue_in(&mut self, delay: Duration) {
        let earlier = self.requeue_after.is_none_or(|known| delay < known);
        if earlier {
            self.requeue_after = Some(delay);
        }
    }

    /// Replaces `status` (as a whole tree) if that says anything new. Returns whether it does.
    pub fn set_status(
        &mut self,
        resource: &'static Resource,
        object: &Object,
        status: Map,
    ) -> bool {
        let status = Value::Map(status);
        let old = object.root().get("status").cloned().unwrap_or_default();
        if conditions::same(&old, &status)
            || (old.is_null() && conditions::pruned(&status) == Value::from(Map::new()))
        {
            return false;
        }
        let mut object = object.clone();
        object.root_mut().insert("status", status);
        self.push(Intent::Update { resource, subresource: "status", object });
        true
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

impl Step {
    pub fn note(&mut self, note: Note) -> &mut Self {
        self.done = Some(note);
        self
    }

    pub fn failure(&mut self, note: Note) -> &mut Self {
        self.failed = Some(note);
        self
    }
}

impl Intent {
    /// A strategic merge patch of this very object and no later one of the same name.
    pub fn patch(
        resource: &'static Resource,
        target: &Cached,
        subresource: &'static str,
        mut patch: Map,
    ) -> Self {
        patch.set_at(&["metadata", "uid"], target.uid.clone());
        let patch = Patch::Strategic(Value::Map(patch));
        Self::Patch { resource, key: target.key.clone(), subresource, patch }
    }

    /// The same, if the object has not changed at all since.
    pub fn patch_at(
        resource: &'static Resource,
        target: &Cached,
        subresource: &'static str,
        mut patch: Map,
    ) -> Self {
        patch.set_at(&["metadata", "resourceVersion"], target.revision.to_string());
        Self::patch(resource, target, subresource, patch)
    }

    pub fn delete(resource: &'static Resource, target: &Cached) -> Self {
        Self::Delete {
            resource,
            key: target.key.clone(),
            uid: target.uid.to_string(),
            revision: None,
            grace_period_seconds: None,
            propagation_policy: "",
        }
    }

    pub fn resource(&self) -> &'static Resource {
        match self {
            Self::Create { resource, .. }
            | Self::Update { resource, .. }
            | Self::Patch { resource, .. }
            | Self::Delete { resource, .. } => resource,
        }
    }

    /// The verb as RBAC names it.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Create { .. } => "create",
            Self::Update { .. } => "update",
            Self::Patch { .. } => "patch",
            Self::Delete { .. } => "delete",
        }
    }

    pub fn subresource(&self) -> &'static str {
        match self {
            Self::Update { subresource, .. } | Self::Patch { subresource, .. } => subresource,
            Self::Create { .. } | Self::Delete { .. } => "",
        }
    }

    pub fn key(&self) -> Key {
        match self {
            Self::Create { object, .. } | Self::Update { object, .. } => {
                Key::new(object.namespace(), object.name())
            }
            Self::Patch { key, .. } | Self::Delete { key, .. } => key.clone(),
        }
    }
}

/// The reference that makes `owner` the controller of what it creates.
pub fn controller_reference(owner: &Object) -> OwnerReference {
    OwnerReference {
        api_version: owner.api_version().into(),
        kind: owner.kind().into(),
        name: owner.name().into(),
        uid: owner.uid().into(),
        controller: true,
        block_owner_deletion: true,
    }
}

/// A patch that makes `owner` the controller of an orphan.
pub fn adopt(resource: &'static Resource, orphan: &Cached, owner: &Object) -> Intent {
    let references = vec![controller_reference(owner).to_value()];
    let mut patch = Map::new();
    patch.set_at(&["metadata", "ownerReferences"], references);
    Intent::patch(resource, orphan, "", patch)
}

/// A patch that ends `owner`'s hold on an object that its selector no longer matches.
pub fn release(resource: &'static Resource, owned: &Cached, owner: &Object) -> Intent {
    let gone = machinery::value!([{"$patch": "delete", "uid": owner.uid()}]);
    let mut patch = Map::new();
    patch.set_at(&["metadata", "ownerReferences"], gone);
    Intent::patch(resource, owned, "", patch)
}

/// What an owner claims of the objects that could be its own, by the rules of
/// `ControllerRefManager`: owned and matching are kept, owned and no longer matching released,
/// orphaned and matching adopted. Adopted ones count from the next reconcile on.
pub fn claim(
    plan: &mut Plan,
    resource: &'static Resource,
    owner: &Object,
    selector: &Selector,
    candidates: &[Arc<Cached>],
    adoptable: impl Fn(&Cached) -> bool,
) -> Vec<Arc<Cached>> {
    let mut claimed = Vec::new();
    for candidate in candidates {
        let matches = selector.matches(&candidate.labels);
        match candidate.controller() {
            Some(reference) if reference.uid != owner.uid() => {}
            Some(_) if matches => claimed.push(candidate.clone()),
            Some(_) if !owner.is_deleting() && !candidate.is_deleting() => {
                plan.push(release(resource, candidate, owner));
            }
            None if matches
                && !owner.is_deleting()
                && !candidate.is_deleting()
                && adoptable(candidate) =>
            {
                plan.push(adopt(resource, candidate, owner));
            }
            _ => {}
        }
    }
    claimed
}
