//! `metadata`: what the server owns of it, and its rules.

use machinery::{
    Map, Object, Value,
    apply::{Context, track_update},
};

use super::{Target, served};
use crate::{
    ResourceInfo,
    compare::semantically_equal,
    errors::{Errors, Path},
    names,
    strategy::NameRule,
};

/// Records who owns which field. `live` is the object before the change, both in the stored
/// version. Writes without a manager (the server's own) leave owners as they are.
pub(super) fn track(target: &Target<'_>, live: Option<&Object>, object: &mut Object) {
    let manager = target.cx.field_manager.as_str();
    if manager.is_empty() || target.subresource == "binding" {
        return;
    }
    let (resource, info) = (target.resource, target.resource.info());
    let api_version = info.gvk.api_version();
    let (subresource, now) = (target.subresource, target.cx.time);
    let custom =
        || Context::custom(None, &api_version, subresource, info.has_subresource("status"), now);
    let context = if info.custom {
        None
    } else {
        Context::built_in(&info.gvk, &api_version, subresource, now)
    };
    let context = context.unwrap_or_else(custom);
    let live = live.map(|live| served(resource, live));
    let tracked = track_update(live.as_ref(), &served(resource, object), manager, &context);
    match tracked.at(&["metadata", "managedFields"]) {
        Some(fields) => object.metadata_mut().insert("managedFields", fields.clone()),
        None => object.metadata_mut().remove("managedFields"),
    };
}

/// What a client cannot change, whatever it sends.
pub(super) fn keep_system_fields(new: &mut Object, old: &Object) {
    let metadata = new.metadata_mut();
    metadata.remove("selfLink");
    for field in ["generation", "creationTimestamp"] {
        keep(metadata, old, field);
    }
    if old.is_deleting() {
        keep(metadata, old, "deletionTimestamp");
    }
    for field in ["uid", "deletionGracePeriodSeconds"] {
        if !metadata.contains_key(field) {
            keep(metadata, old, field);
        }
    }
}

fn keep(metadata: &mut Map, old: &Object, field: &str) {
    match old.at(&["metadata", field]) {
        Some(value) => metadata.insert(field, value.clone()),
        None => metadata.remove(field),
    };
}

pub(super) fn validate_new(
    info: &ResourceInfo,
    rule: NameRule,
    object: &Object,
    errors: &mut Errors,
) {
    let path = Path::new("metadata");
    if object.name().is_empty() {
        errors.required(&path.child("name"), "name or generateName is required");
    } else {
        names::check(rule, object.name(), &path.child("name"), errors);
    }
    if info.namespaced && object.namespace().is_empty() {
        errors.required(&path.child("namespace"), "");
    }
    if !info.namespaced && !object.namespace().is_empty() {
        errors.forbidden(&path.child("namespace"), "not allowed on this type");
    }
    names::labels(object.labels(), &path.child("labels"), errors);
    names::annotations(
        object.map_at(&["metadata", "annotations"]),
        &path.child("annotations"),
        errors,
    );
    owners(object, &path.child("ownerReferences"), errors);
    let finalizers = path.child("finalizers");
    for (at, name) in object.finalizers().enumerate() {
        let faults = api::names::label_key(name);
        names::report(&faults, &finalizers, name, errors);
        if faults.is_empty()
            && !info.custom
            && !name.contains('/')
            && !STANDARD_FINALIZERS.contains(&name)
        {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            errors.invalid(&finalizers.index(at), name, why);
        }
    }
}

/// Finalizers without a domain.
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];

fn owners(object: &Object, path: &Path, errors: &mut Errors) {
    let mut controllers = Vec::new();
    for (at, owner) in object.owner_references().enumerate() {
        let path = path.index(at);
        let fields = [
            ("apiVersion", &owner.api_version),
            ("kind", &owner.kind),
            ("name", &owner.name),
            ("uid", &owner.uid),
        ];
        for (field, value) in fields {
            if value.is_empty() {
                errors.required(&path.child(field), "must not be empty");
            }
        }
        if owner.controller {
            controllers.push(owner.name);
        }
    }
    if let [first, second, ..] = controllers.as_slice() {
        let value = object.at(&["metadata", "ownerReferences"]).cloned().unwrap_or_default();
        let detail = format!(
            "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {second}"
        );
        errors.invalid(path, value, &detail);
    }
}

pub(super) fn validate_update(
    info: &ResourceInfo,
    rule: NameRule,
    new: &Object,
    old: &Object,
    errors: &mut Errors,
) {
    let path = Path::new("metadata");
    // An old name may have been made under other rules.
    let rule = if new.name() == old.name() { NameRule::PathSegment } else { rule };
    validate_new(info, rule, new, errors);
    if old.is_deleting() {
        let added: Vec<String> = new
            .finalizers()
            .filter(|f| !old.finalizers().any(|o| o == *f))
            .map(|f| format!("{f:?}"))
            .collect();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.join(", ")
            );
            errors.forbidden(&path.child("finalizers"), &detail);
        }
    }
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        let (now, before) = (new.at(&["metadata", field]), old.at(&["metadata", field]));
        if !semantically_equal(now, before) {
            errors.invalid(
                &path.child(field),
                now.cloned().unwrap_or(Value::Null),
                "field is immutable",
            );
        }
    }
}
