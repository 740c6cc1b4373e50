//! The smallest patch that turns the status in the API into the wanted one.

use machinery::{Map, Value};
use serde_json::Value as Json;

use crate::pod::{Pod, PodExt, PodStatus};

/// Fields that the kubelet alone writes, and that are replaced whole.
const WHOLE: [&str; 11] = [
    "phase",
    "message",
    "reason",
    "hostIP",
    "podIP",
    "startTime",
    "initContainerStatuses",
    "containerStatuses",
    "ephemeralContainerStatuses",
    "qosClass",
    "observedGeneration",
];
/// Lists that a strategic merge patch merges, with the key of their items.
const MERGED: [(&str, &str); 3] = [("conditions", "type"), ("podIPs", "ip"), ("hostIPs", "ip")];

/// A strategic merge patch with the uid as its precondition; `None` when nothing differs.
pub fn patch(pod: &Pod, wanted: &PodStatus) -> Option<Value> {
    let current = serde_json::to_value(pod.status.clone().unwrap_or_default()).ok()?;
    let wanted = serde_json::to_value(wanted).ok()?;
    let mut status = serde_json::Map::new();
    for field in WHOLE {
        let (old, new) = (current.get(field), wanted.get(field));
        if old != new {
            status.insert(field.into(), new.cloned().unwrap_or(Json::Null));
        }
    }
    for (field, key) in MERGED {
        let items = merge(current.get(field), wanted.get(field), key);
        if !items.is_empty() {
            status.insert(field.into(), Json::Array(items));
        }
    }
    if status.is_empty() {
        return None;
    }
    let mut patch = Map::new();
    patch.set_at(&["metadata", "uid"], pod.uid());
    patch.insert("status", Value::from(Json::Object(status)));
    Some(Value::Map(patch))
}

/// New and changed items, and a directive for each that is gone. Conditions of others are never
/// gone, since the wanted status carries them along.
fn merge(old: Option<&Json>, new: Option<&Json>, key: &str) -> Vec<Json> {
    let list = |value: Option<&Json>| value.and_then(Json::as_array).cloned().unwrap_or_default();
    let (old, new) = (list(old), list(new));
    let same_key = |a: &Json, b: &Json| a.get(key) == b.get(key);
    let mut items: Vec<Json> = new
        .iter()
        .filter(|item| !old.contains(item))
        .map(|item| with_nulls(item, old.iter().find(|known| same_key(known, item))))
        .collect();
    for gone in old.iter().filter(|known| !new.iter().any(|item| same_key(item, known))) {
        let key_value = gone.get(key).cloned().unwrap_or_default();
        items.push(serde_json::json!({ "$patch": "delete", key: key_value }));
    }
    items
}

/// Fields that the old item had and the new one lacks are removed by null.
fn with_nulls(item: &Json, old: Option<&Json>) -> Json {
    let mut item = item.clone();
    if let (Some(map), Some(old)) = (item.as_object_mut(), old.and_then(Json::as_object)) {
        for field in old.keys() {
            map.entry(field.clone()).or_insert(Json::Null);
        }
    }
    item
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(status: &str) -> Pod {
        serde_json::from_str(&format!(r#"{{"metadata":{{"uid":"u"}},"status":{status}}}"#)).unwrap()
    }

    fn diff(old: &str, new: &str) -> String {
        let wanted = pod(new).status.unwrap();
        let patch = patch(&pod(old), &wanted);
        patch.map_or(String::new(), |patch| {
            serde_json::to_string(patch.get("status").unwrap()).unwrap()
        })
    }

    #[test]
    fn only_what_differs_is_sent() {
        let old = r#"{"phase":"Pending","qosClass":"BestEffort"}"#;
        assert_eq!(diff(old, old), "");
        let new = r#"{"phase":"Running","qosClass":"BestEffort"}"#;
        assert_eq!(diff(old, new), r#"{"phase":"Running"}"#);
        assert_eq!(diff(r#"{"reason":"x"}"#, "{}"), r#"{"reason":null}"#);
    }

    #[test]
    fn merged_lists_name_what_changed_and_what_is_gone() {
        let old = r#"{"conditions":[{"type":"Ready","status":"False","reason":"r"},{"type":"A","status":"True"}]}"#;
        let new =
            r#"{"conditions":[{"type":"Ready","status":"True"},{"type":"A","status":"True"}]}"#;
        assert_eq!(
            diff(old, new),
            r#"{"conditions":[{"reason":null,"status":"True","type":"Ready"}]}"#
        );
        let (old, new) = (r#"{"podIPs":[{"ip":"1"}]}"#, r#"{"podIPs":[{"ip":"2"}]}"#);
        assert_eq!(diff(old, new), r#"{"podIPs":[{"ip":"2"},{"$patch":"delete","ip":"1"}]}"#);
    }
}
