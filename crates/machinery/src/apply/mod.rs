//! Server-side apply: who owns which field (`metadata.managedFields`), and what an applied
//! configuration makes of an object. The rules are those of structured merge and diff
//! (KEP-555).
//!
//! ```text
//! apply:  merge(live, config) ▸ prune what only this manager owned ▸ conflicts? ▸ managedFields
//! update: compare(live, new) ▸ changed fields move to this manager ▸ managedFields
//! ```

mod compare;
mod managed;
mod path;
mod set;
mod shape;
mod tree;

use std::sync::LazyLock;

use api::{Cause, GroupVersionKind, Reason, Status, TypeId, schema, status::Details};
use stdx::Timestamp;

pub use compare::{Comparison, compare};
pub use managed::{ManagerId, Managers, Operation, Owned};
pub use path::PathElement;
pub use set::FieldSet;
pub use shape::Node;
pub use tree::to_set;

use crate::{Map, Object, Value};

/// Who asks, and for what kind.
#[derive(Clone, Debug)]
pub struct Context<'a> {
    /// The version of the request.
    pub api_version: &'a str,
    pub node: Node<'a>,
    /// The subresource that is written; empty for the object itself.
    pub subresource: &'a str,
    /// Fields that this endpoint does not change, and so does not own: `status` on the object,
    /// `spec` on its status.
    pub ignored: FieldSet,
    pub now: Timestamp,
}

impl<'a> Context<'a> {
    /// For a built-in kind. `None` when the schema does not know it. What the endpoint ignores
    /// is the usual: `status` for the object, all but `status` for the status.
    pub fn built_in(
        gvk: &GroupVersionKind,
        api_version: &'a str,
        subresource: &'a str,
        now: Timestamp,
    ) -> Option<Self> {
        let ty = schema().kind(gvk)?.ty;
        let node = Node::Struct { id: ty, atomic: false };
        let has_status = schema()
            .resource_of_kind(gvk)
            .is_some_and(|resource| resource.subresource("status").is_some());
        let ignored = default_ignored(subresource, has_status);
        Some(Self { api_version, node, subresource, ignored, now })
    }

    /// For a custom resource by the schema of its version, or `None` when it has none.
    pub fn custom(
        schema: Option<&'a Value>,
        api_version: &'a str,
        subresource: &'a str,
        has_status: bool,
        now: Timestamp,
    ) -> Self {
        static NOTHING: Value = Value::Null;
        let node = Node::Root(schema.unwrap_or(&NOTHING));
        let ignored = default_ignored(subresource, has_status);
        Self { api_version, node, subresource, ignored, now }
    }

    /// What a new object is compared with: all its structs are there, and empty.
    fn empty_object(&self) -> Object {
        match self.node {
            Node::Struct { id, .. } => Object::from_map(crate::shape::zero_struct(id)),
            _ => Object::default(),
        }
    }

    fn id(&self, manager: &str, operation: Operation) -> ManagerId {
        ManagerId::new(manager, operation, self.api_version, self.subresource)
    }
}

fn default_ignored(subresource: &str, has_status: bool) -> FieldSet {
    match subresource {
        "" if has_status => FieldSet::of_fields(&[&["status"]]),
        "status" => FieldSet::of_fields(&[&["spec"], &["metadata", "labels"]]),
        _ => FieldSet::new(),
    }
}

/// Fields that no manager owns.
fn stripped() -> &'static FieldSet {
    static STRIPPED: LazyLock<FieldSet> = LazyLock::new(|| FieldSet::of_fields(STRIPPED_PATHS));
    &STRIPPED
}

const STRIPPED_PATHS: &[&[&str]] = &[
    &["apiVersion"],
    &["kind"],
    &["metadata"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "clusterName"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];

/// The manager that stands for all changes before an object was first applied to.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Records a create, update or patch: the changed fields become the manager's. `live` is the
/// object as it is (`None` for a create), `new` as it will be. Gives `new` with its
/// `managedFields`.
pub fn track_update(live: Option<&Object>, new: &Object, manager: &str, cx: &Context) -> Object {
    let managers = sent_or_live(live, new, cx);
    let mut new = without_managed_fields(new);
    let before = live.map_or_else(|| cx.empty_object(), without_managed_fields);
    // An object whose fields nobody tracks stays so; a client resets them by an empty entry.
    if managers.0.is_empty() && live.is_some_and(|live| !live.uid().is_empty()) {
        return new;
    }
    let id = cx.id(manager, Operation::Update);
    let managers = updated(&before, &new, managers, id, cx);
    set_managed_fields(&mut new, &managers);
    new
}

/// The entries that the request sends, else those of the live object.
fn sent_or_live(live: Option<&Object>, new: &Object, cx: &Context) -> Managers {
    let of_live = || {
        let entries = live.map(|live| live.list_at(&["metadata", "managedFields"]));
        Managers::decode(entries.unwrap_or(&[])).unwrap_or_default()
    };
    if !cx.subresource.is_empty() {
        return of_live();
    }
    let sent = new.list_at(&["metadata", "managedFields"]);
    if let [Value::Map(only)] = sent
        && only.iter().all(|(_, v)| matches!(v.as_str(), Some("")) || v.is_null())
    {
        return Managers::default();
    }
    Managers::decode(sent).filter(|managers| !managers.0.is_empty()).unwrap_or_else(of_live)
}

fn updated(
    before: &Object,
    new: &Object,
    mut managers: Managers,
    id: ManagerId,
    cx: &Context,
) -> Managers {
    let (old, new) = (before.clone().into_value(), new.clone().into_value());
    let changes = compare(&old, &new, cx.node).without(&cx.ignored);
    let mut taken = changes.modified;
    taken.absorb(changes.added);
    let own = managers.0.get(&id).map(|owned| owned.set.clone());
    for owned in managers.0.values_mut() {
        owned.set.subtract(&taken);
        owned.set.subtract(&changes.removed);
    }
    taken.subtract(stripped());
    if !taken.is_empty() {
        let mut set = own.unwrap_or_default();
        set.subtract(&changes.removed);
        set.absorb(taken);
        let owned = Owned { set, api_version: cx.api_version.into(), time: Some(cx.now) };
        managers.0.insert(id, owned);
    }
    managers.0.retain(|_, owned| !owned.set.is_empty());
    managers.cap();
    managers
}

/// Applies a configuration. Gives the object with its `managedFields`; it is the live one,
/// untouched, when nothing changes.
///
/// Fails with 400 for a configuration that cannot be applied, 409 with all conflicts when other
/// managers own fields with other values and `force` is off.
pub fn apply(
    live: Option<&Object>,
    config: &Object,
    manager: &str,
    force: bool,
    cx: &Context,
) -> Result<Object, Status> {
    check_config(config, cx)?;
    let id = cx.id(manager, Operation::Apply);
    let entries = live.map_or(&[][..], |live| live.list_at(&["metadata", "managedFields"]));
    let mut managers = Managers::decode(entries).unwrap_or_default();
    let base = live.map(without_managed_fields).unwrap_or_default();
    if managers.0.is_empty() && live.is_some() {
        let id = cx.id(BEFORE_FIRST_APPLY, Operation::Update);
        managers = updated(&cx.empty_object(), &base, managers, id, cx);
    }
    let applied = match merge_and_own(&base, config, &managers, &id, force, cx) {
        Err(conflicts) if manager == "kubectl" && !force => {
            let allowed = last_applied_set(&base, cx);
            let left: Vec<Conflict> =
                conflicts.into_iter().filter(|c| !allowed.has(&c.path)).collect();
            match left.as_slice() {
                [] => merge_and_own(&base, config, &managers, &id, true, cx),
                _ => Err(left),
            }
        }
        other => other,
    };
    let (mut object, mut managers) = applied.map_err(conflict_status)?;
    let changed = object.root() != base.root();
    if changed && let Some(owned) = managers.0.get_mut(&id) {
        owned.time = Some(cx.now);
    }
    managers.cap();
    set_managed_fields(&mut object, &managers);
    if manager == "kubectl" && object.annotation(LAST_APPLIED).is_some() {
        set_last_applied(&mut object, config);
    }
    Ok(object)
}

/// Keeps the annotation of client-side apply true, so that a user may go back to it.
fn set_last_applied(object: &mut Object, config: &Object) {
    const MAX_BYTES: usize = 256 * 1024;
    let mut config = config.clone();
    if config.annotation(LAST_APPLIED).is_some() {
        config.remove_at(&["metadata", "annotations", LAST_APPLIED]);
    }
    let text = String::from_utf8(config.to_json()).unwrap_or_default() + "\n";
    if text.len() > MAX_BYTES {
        object.remove_at(&["metadata", "annotations", LAST_APPLIED]);
    } else {
        object.set_at(&["metadata", "annotations", LAST_APPLIED], text);
    }
}

fn check_config(config: &Object, cx: &Context) -> Result<(), Status> {
    if config.at(&["metadata", "managedFields"]).is_some_and(|v| !v.is_null()) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let value = config.clone().into_value();
    let faults = tree::validate(&value, cx.node);
    let texts: Vec<String> = faults.iter().map(|f| format!("{}: {}", f.path, f.text)).collect();
    let why = match texts.as_slice() {
        [] => return Ok(()),
        [one] => one.clone(),
        many => {
            let lines: Vec<String> = many.iter().map(|text| format!("  {text}")).collect();
            format!("errors:\n{}", lines.join("\n"))
        }
    };
    let name = format!("{}/{}", config.namespace(), config.name());
    let gvk = config.gvk();
    let group = gvk.as_ref().map_or("", |gvk| gvk.group.as_str());
    let version = gvk.as_ref().map_or("", |gvk| gvk.version.as_str());
    let kind = format!("{group}/{version}, Kind={}", config.kind());
    let text = format!("failed to create typed patch object ({name}; {kind}): {why}");
    Err(Status::new(500, Reason::Unknown, text))
}

/// A field that another manager holds with another value.
struct Conflict {
    manager: ManagerId,
    path: Vec<PathElement>,
}

fn merge_and_own(
    base: &Object,
    config: &Object,
    managers: &Managers,
    id: &ManagerId,
    force: bool,
    cx: &Context,
) -> Result<(Object, Managers), Vec<Conflict>> {
    let (live, config) = (base.clone().into_value(), config.clone().into_value());
    let merged = tree::merge(&live, &config, cx.node);
    let set = to_set(&config, cx.node).recursive_difference(&cx.ignored).difference(stripped());
    let mut managers = managers.clone();
    let last = managers.0.get(id).cloned();
    let time = last.as_ref().and_then(|owned| owned.time);
    let owned = Owned { set, api_version: cx.api_version.into(), time };
    managers.0.insert(id.clone(), owned);
    let pruned = match &last {
        Some(last) => prune(&merged, &managers, &last.set, cx.node),
        None => merged,
    };
    let changes = compare(&live, &pruned, cx.node).without(&cx.ignored);
    let mut touched = changes.modified;
    touched.absorb(changes.added);
    let mut conflicts = Vec::new();
    for (other, owned) in managers.0.iter_mut().filter(|(other, _)| *other != id) {
        let lost = owned.set.intersection(&touched);
        let paths = lost.paths().into_iter();
        conflicts.extend(paths.map(|path| Conflict { manager: other.clone(), path }));
        owned.set.subtract(&lost);
        owned.set.subtract(&changes.removed);
    }
    if !force && !conflicts.is_empty() {
        return Err(conflicts);
    }
    managers.0.retain(|_, owned| !owned.set.is_empty());
    let object = Object::from_value(pruned).unwrap_or_default();
    Ok((object, managers))
}

/// Takes away what the manager's last configuration set and its new one does not, unless
/// somebody else owns it.
fn prune(merged: &Value, managers: &Managers, last: &FieldSet, node: Node) -> Value {
    let last = last.with_named_fields(node);
    let all = to_set(merged, node).with_named_fields(node);
    let pruned = tree::remove(merged, &last, node);
    let owned = managers.0.values().fold(FieldSet::new(), |sum, o| sum.union(&o.set));
    let keep = to_set(&pruned, node).with_named_fields(node).union(&owned.with_named_fields(node));
    let pruned = tree::remove(merged, &all.difference(&keep), node);
    let left = to_set(&pruned, node).with_named_fields(node);
    tree::remove(merged, &all.difference(&left).intersection(&last), node)
}

/// The fields that `kubectl apply` on the client's side set and that still have its values.
fn last_applied_set(live: &Object, cx: &Context) -> FieldSet {
    let Some(text) = live.annotation(LAST_APPLIED) else { return FieldSet::new() };
    let Ok(Some(last)) = crate::json::parse(text.as_bytes()).map(Object::from_value) else {
        return FieldSet::new();
    };
    let last = last.into_value();
    let changes = compare(&last, &live.clone().into_value(), cx.node);
    to_set(&last, cx.node)
        .difference(&changes.modified)
        .difference(&changes.added)
        .difference(&changes.removed)
}

fn conflict_status(conflicts: Vec<Conflict>) -> Status {
    let shown = |path: &[PathElement]| path.iter().map(PathElement::to_string).collect::<String>();
    let causes = conflicts.iter().map(|conflict| Cause {
        reason: "FieldManagerConflict".into(),
        message: format!("conflict with {}", conflict.manager.describe()),
        field: shown(&conflict.path),
    });
    let causes: Vec<Cause> = causes.collect();
    let message = match conflicts.as_slice() {
        [one] => format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            one.manager.describe(),
            shown(&one.path)
        ),
        many => {
            let mut lines = Vec::new();
            let mut last = None;
            for conflict in many {
                if last != Some(&conflict.manager) {
                    lines.push(format!("conflicts with {}:", conflict.manager.describe()));
                    last = Some(&conflict.manager);
                }
                lines.push(format!("- {}", shown(&conflict.path)));
            }
            format!("Apply failed with {} conflicts: {}", many.len(), lines.join("\n"))
        }
    };
    Status::new(409, Reason::Conflict, message)
        .with_details(Details { causes, ..Details::default() })
}

fn without_managed_fields(object: &Object) -> Object {
    let mut object = object.clone();
    if object.at(&["metadata", "managedFields"]).is_some() {
        object.remove_at(&["metadata", "managedFields"]);
    }
    object
}

fn set_managed_fields(object: &mut Object, managers: &Managers) {
    let entries = managers.encode();
    if entries.is_empty() {
        object.remove_at(&["metadata", "managedFields"]);
    } else {
        object.metadata_mut().insert("managedFields", entries);
    }
}

/// Whether two objects differ in nothing but the times of their `managedFields`: such a write
/// is none.
pub fn same_but_for_times(a: &Object, b: &Object) -> bool {
    if a.metadata() == b.metadata() {
        return a == b;
    }
    let timeless = |object: &Object| -> Vec<Value> {
        let entries = object.list_at(&["metadata", "managedFields"]).iter();
        entries
            .map(|entry| {
                let mut map: Map = entry.as_map().cloned().unwrap_or_default();
                map.remove("time");
                map.into()
            })
            .collect()
    };
    without_managed_fields(a) == without_managed_fields(b) && timeless(a) == timeless(b)
}

/// The type of a kind as a node, for callers that compare trees themselves.
pub fn node_of(ty: TypeId) -> Node<'static> {
    Node::Struct { id: ty, atomic: false }
}

#[cfg(test)]
mod tests;
