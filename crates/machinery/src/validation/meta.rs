//! `metadata`: the rules that every object meets.

use api::{GroupVersion, names};

use super::{Errors, FieldPath, Shown, declared_json, values::validate_labels};
use crate::{Object, Value};

/// The most that keys and values of annotations may have together.
const ANNOTATIONS_MAX_BYTES: usize = 256 * 1024;
const SUBRESOURCE_MAX_BYTES: usize = 256;

/// What differs between kinds.
#[derive(Clone, Copy)]
pub struct MetaRules {
    pub namespaced: bool,
    pub name: names::NameRule,
}

/// The rules for a new object.
pub fn validate_object_meta(object: &Object, rules: MetaRules, errors: &mut Errors) {
    let path = FieldPath::root("metadata");
    let prefix = object.generate_name();
    if !prefix.is_empty() {
        errors.faults(&path.child("generateName"), prefix, (rules.name)(prefix, true));
    }
    let name = object.name();
    if name.is_empty() {
        errors.required(&path.child("name"), "name or generateName is required");
    } else {
        errors.faults(&path.child("name"), name, (rules.name)(name, false));
    }
    validate_namespace(object, rules, &path, errors);
    errors.non_negative(&path.child("generation"), object.generation());
    validate_common(object, &path, errors);
    validate_finalizers(object, &path, errors);
    validate_managed_fields(object, &path, errors);
}

fn validate_namespace(object: &Object, rules: MetaRules, path: &FieldPath, errors: &mut Errors) {
    let namespace = object.namespace();
    let path = path.child("namespace");
    match (rules.namespaced, namespace.is_empty()) {
        (true, true) => errors.required(&path, ""),
        (true, false) => errors.faults(&path, namespace, names::dns1123_label(namespace)),
        (false, false) => errors.forbidden(&path, "not allowed on this type"),
        (false, true) => {}
    }
}

fn validate_common(object: &Object, path: &FieldPath, errors: &mut Errors) {
    if let Some(labels) = object.labels() {
        validate_labels(labels, &path.child("labels"), errors);
    }
    validate_annotations(object, path, errors);
    validate_owners(object, path, errors);
}

fn validate_annotations(object: &Object, path: &FieldPath, errors: &mut Errors) {
    let Some(annotations) = object.map_at(&["metadata", "annotations"]) else { return };
    let path = path.child("annotations");
    let mut bytes = 0;
    for (key, value) in annotations.iter() {
        errors.faults(&path, key, names::qualified_name(&key.to_lowercase()));
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > ANNOTATIONS_MAX_BYTES {
        errors.too_long(&path, ANNOTATIONS_MAX_BYTES);
    }
}

fn validate_owners(object: &Object, path: &FieldPath, errors: &mut Errors) {
    let list = object.list_at(&["metadata", "ownerReferences"]);
    let path = path.child("ownerReferences");
    let mut controller = String::new();
    for (at, owner) in list.iter().enumerate() {
        validate_owner(owner, &path.index(at), errors);
        if owner.get("controller").and_then(Value::as_bool) != Some(true) {
            continue;
        }
        let text = |key| owner.get(key).and_then(Value::as_str).unwrap_or_default();
        let this = format!("{}/{}", text("kind"), text("name"));
        if controller.is_empty() {
            controller = this;
        } else {
            let detail = format!(
                "Only one reference can have Controller set to true. Found \"true\" in references for {controller} and {this}"
            );
            let shown: Vec<String> = list.iter().map(owner_text).collect();
            errors.invalid(&path, Shown(format!("[{}]", shown.join(","))), &detail);
        }
    }
}

fn validate_owner(owner: &Value, path: &FieldPath, errors: &mut Errors) {
    let text = |key| owner.get(key).and_then(Value::as_str).unwrap_or_default();
    let version = GroupVersion::parse(text("apiVersion"));
    if text("apiVersion").is_empty() {
        errors.required(&path.child("apiVersion"), "must not be empty");
    } else if version.is_none() {
        let detail = "must be <group>/<version> or <version>";
        errors.invalid(&path.child("apiVersion"), text("apiVersion"), detail);
    }
    for key in ["kind", "name", "uid"] {
        if text(key).is_empty() {
            errors.required(&path.child(key), "must not be empty");
        }
    }
    if text("apiVersion") == "v1" && text("kind") == "Event" {
        let detail = "/v1, Kind=Event is disallowed from being an owner";
        errors.invalid(path, Shown(owner_text(owner)), detail);
    }
}

fn owner_text(owner: &Value) -> String {
    declared_json(owner, "io.k8s.apimachinery.pkg.apis.meta.v1.OwnerReference")
}

fn validate_finalizers(object: &Object, path: &FieldPath, errors: &mut Errors) {
    let path = path.child("finalizers");
    let list: Vec<&str> = object.finalizers().collect();
    for finalizer in &list {
        errors.faults(&path, finalizer, names::qualified_name(finalizer));
    }
    if list.contains(&"orphan") && list.contains(&"foregroundDeletion") {
        let detail = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.invalid(&path, object.list_at(&["metadata", "finalizers"]), detail);
    }
    validate_finalizer_names(object, &path, errors);
}

/// Names without a domain are Kubernetes' own.
fn validate_finalizer_names(object: &Object, path: &FieldPath, errors: &mut Errors) {
    const STANDARD: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];
    for (at, name) in object.finalizers().enumerate() {
        if !name.contains('/') && !STANDARD.contains(&name) {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            errors.invalid(&path.index(at), name, detail);
        }
    }
}

fn validate_managed_fields(object: &Object, path: &FieldPath, errors: &mut Errors) {
    let list = path.child("managedFields");
    for (at, entry) in object.list_at(&["metadata", "managedFields"]).iter().enumerate() {
        let path = list.index(at);
        let text = |key| entry.get(key).and_then(Value::as_str).unwrap_or_default();
        match text("operation") {
            "Apply" | "Update" => {}
            "" => errors.required(&path.child("operation"), "must not be empty"),
            other => errors.not_supported(&path.child("operation"), other, &["Apply", "Update"]),
        }
        if !matches!(text("fieldsType"), "" | "FieldsV1") {
            errors.invalid(&path.child("fieldsType"), text("fieldsType"), "must be `FieldsV1`");
        }
        errors.extend(field_manager_errors(text("manager"), &path.child("manager")));
        if text("subresource").len() > SUBRESOURCE_MAX_BYTES {
            errors.too_long(&path.child("subresource"), SUBRESOURCE_MAX_BYTES);
        }
    }
}

/// The rules for a `fieldManager`.
pub fn field_manager_errors(manager: &str, path: &FieldPath) -> Errors {
    const MAX_BYTES: usize = 128;
    let mut errors = Errors::new();
    if manager.len() > MAX_BYTES {
        errors.too_long(path, MAX_BYTES);
    }
    for (at, c) in manager.char_indices().filter(|(_, c)| c.is_control()) {
        let detail = format!("invalid character U+{:04X} (at position {at})", u32::from(c));
        errors.invalid(path, manager, &detail);
    }
    errors
}

/// The rules for a change of an object.
pub fn validate_object_meta_update(new: &Object, old: &Object, errors: &mut Errors) {
    let path = FieldPath::root("metadata");
    if old.is_deleting() {
        validate_no_new_finalizers(new, old, &path, errors);
    }
    if new.resource_version().is_empty() {
        errors.invalid(&path.child("resourceVersion"), "", "must be specified for an update");
    }
    errors.non_negative(&path.child("generation"), new.generation());
    if new.generation() < old.generation() {
        errors.invalid(&path.child("generation"), new.generation(), "must not be decremented");
    }
    for field in ["name", "namespace", "uid"] {
        let text = |object: &Object| object.str_at(&["metadata", field]).to_owned();
        if text(new) != text(old) {
            errors.invalid(&path.child(field), text(new), "field is immutable");
        }
    }
    for field in ["creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        let at = ["metadata", field];
        errors.immutable(&path.child(field), new.at(&at), old.at(&at));
    }
    validate_common(new, &path, errors);
    validate_managed_fields(new, &path, errors);
    validate_finalizer_names(new, &path.child("finalizers"), errors);
}

fn validate_no_new_finalizers(new: &Object, old: &Object, path: &FieldPath, errors: &mut Errors) {
    let before: Vec<&str> = old.finalizers().collect();
    let mut added: Vec<&str> = new.finalizers().filter(|f| !before.contains(f)).collect();
    added.sort_unstable();
    added.dedup();
    if !added.is_empty() {
        let list: Vec<String> = added.iter().map(|f| format!("{f:?}")).collect();
        let detail = format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
            list.join(", ")
        );
        errors.forbidden(&path.child("finalizers"), &detail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    const NAMESPACED: MetaRules = MetaRules { namespaced: true, name: names::name_is_subdomain };

    fn object(metadata: Value) -> Object {
        Object::from_value(value!({"apiVersion": "v1", "kind": "Pod"}))
            .map(|mut object| {
                object.set_at(&["metadata"], metadata);
                object
            })
            .unwrap()
    }

    fn texts(errors: Errors) -> Vec<String> {
        errors.into_causes().iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    #[test]
    fn errors_are_those_of_the_real_server() {
        let text = include_str!("../../testdata/meta.txt");
        let mut cases: Vec<(Value, Vec<&str>)> = Vec::new();
        for line in text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
            match (line.strip_prefix("  "), cases.last_mut()) {
                (Some(error), Some((_, errors))) => errors.push(error),
                _ => cases.push((crate::json::parse(line.as_bytes()).unwrap(), Vec::new())),
            }
        }
        assert!(cases.len() > 10);
        for (metadata, mut expected) in cases {
            let mut errors = Errors::new();
            validate_object_meta(&object(metadata.clone()), NAMESPACED, &mut errors);
            let mut found = texts(errors);
            found.sort();
            expected.sort();
            assert_eq!(found, expected, "{metadata:?}");
        }
    }

    #[test]
    fn a_new_object() {
        let mut errors = Errors::new();
        let good =
            value!({"name": "a", "namespace": "b", "labels": {"a": "b"}, "finalizers": ["x/y"]});
        validate_object_meta(&object(good), NAMESPACED, &mut errors);
        assert_eq!(texts(std::mem::take(&mut errors)), [""; 0]);
        let bad = value!({
            "namespace": "b", "ownerReferences": [{"apiVersion": "a/b/c", "kind": "K", "name": "n"}],
            "annotations": {"UP/x": "", "a b": ""},
        });
        validate_object_meta(&object(bad), NAMESPACED, &mut errors);
        let texts = texts(errors);
        assert_eq!(texts[0], "metadata.name: Required value: name or generateName is required");
        assert!(
            texts[1].starts_with("metadata.annotations: Invalid value: \"a b\": name part must")
        );
        assert_eq!(
            texts[2..],
            [
                "metadata.ownerReferences[0].apiVersion: Invalid value: \"a/b/c\": must be <group>/<version> or <version>",
                "metadata.ownerReferences[0].uid: Required value: must not be empty",
            ]
        );
    }

    #[test]
    fn an_update() {
        let old = object(value!({
            "name": "a", "uid": "1", "resourceVersion": "5", "deletionTimestamp": "2026-01-01T00:00:00Z",
            "finalizers": ["a/b"],
        }));
        let new = object(value!({
            "name": "b", "uid": "1", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["c/d"],
        }));
        let mut errors = Errors::new();
        validate_object_meta_update(&new, &old, &mut errors);
        assert_eq!(
            texts(errors),
            [
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"c/d\"}",
                "metadata.resourceVersion: Invalid value: \"\": must be specified for an update",
                "metadata.name: Invalid value: \"b\": field is immutable",
            ]
        );
    }
}
