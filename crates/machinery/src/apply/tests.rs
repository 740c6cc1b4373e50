//! Steps recorded on the real server: each has the object before, what was asked, and what came
//! of it.

use super::*;
use crate::{fields, json};

#[test]
fn owners_and_conflicts_are_upstreams() {
    let text = include_str!("../../testdata/apply.txt");
    let mut failed = Vec::new();
    for (number, line) in text.lines().filter(|l| !l.starts_with('#')).enumerate() {
        let step = json::parse(line.as_bytes()).unwrap();
        if let Err(why) = check_step(&step) {
            failed.push(format!("step {number}: {why}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

fn check_step(step: &Value) -> Result<(), String> {
    let text = |key| step.get(key).and_then(Value::as_str).unwrap_or_default();
    let expected = Object::from_value(step.get("expect").cloned().unwrap()).unwrap();
    let live = step.get("live").cloned().and_then(Object::from_value);
    let gvk = match text("op") {
        "apply" => Object::from_value(step.get("config").cloned().unwrap()).unwrap().gvk(),
        _ => expected.gvk(),
    };
    let gvk = gvk.unwrap();
    let version = gvk.api_version();
    // The recorded time of this step is the latest in the answer.
    let times = expected.list_at(&["metadata", "managedFields"]).iter();
    let times = times.filter_map(|e| Timestamp::parse(e.get("time")?.as_str()?));
    let now = times.max().unwrap_or_default();
    let cx = Context::built_in(&gvk, &version, text("subresource"), now).unwrap();
    if text("op") == "apply" {
        return check_apply(step, live, &expected, &cx);
    }
    let mut new = without_managed_fields(&expected);
    if let Some(live) = &live
        && text("manager") != "clear"
    {
        let entries = live.list_at(&["metadata", "managedFields"]).to_vec();
        new.metadata_mut().insert("managedFields", entries);
    }
    if text("manager") == "clear" {
        new.metadata_mut().insert("managedFields", vec![Value::from(Map::new())]);
    }
    same_owners(&track_update(live.as_ref(), &new, text("manager"), &cx), &expected)
}

fn check_apply(
    step: &Value,
    live: Option<Object>,
    expected: &Object,
    cx: &Context,
) -> Result<(), String> {
    let manager = step.get("manager").and_then(Value::as_str).unwrap_or_default();
    let force = step.get("force") == Some(&Value::Bool(true));
    let config = Object::from_value(step.get("config").cloned().unwrap()).unwrap();
    let result = apply(live.as_ref(), &config, manager, force, cx);
    match result {
        Ok(object) => {
            if expected.i64_at(&["code"]) == Some(422) {
                // Refused by the validation that follows.
                return Ok(());
            }
            if expected.kind() == "Status" {
                return Err(format!("applied, but upstream: {}", expected.str_at(&["message"])));
            }
            same_owners(&object, expected)?;
            if !cx.subresource.is_empty() {
                // What the endpoint does not change is put back after this.
                return Ok(());
            }
            // What is more in the answer are defaults.
            let gvk = object.gvk().unwrap();
            let ty = schema().kind(&gvk).unwrap().ty;
            let object = fields::decode(&object.into_value(), ty).map_err(|e| e.0)?.map;
            within(&object.into(), &expected.clone().into_value(), "")
        }
        Err(status) => {
            let wanted = Status::from_json(&expected.to_json()).ok_or("upstream applied it")?;
            let shown = |s: &Status| {
                format!(
                    "{} {:?} {}\n{:?}",
                    s.code,
                    s.reason,
                    s.message,
                    s.details.as_ref().map(|d| &d.causes)
                )
            };
            if shown(&status) == shown(&wanted) {
                return Ok(());
            }
            Err(format!("upstream: {}\nours:     {}", shown(&wanted), shown(&status)))
        }
    }
}

fn same_owners(object: &Object, expected: &Object) -> Result<(), String> {
    let list = |o: &Object| o.list_at(&["metadata", "managedFields"]).to_vec();
    let (ours, theirs) = (list(object), list(expected));
    if ours == theirs {
        return Ok(());
    }
    Err(format!("upstream: {theirs:?}\nours:     {ours:?}"))
}

/// Every value of `a` is in `b`.
fn within(a: &Value, b: &Value, path: &str) -> Result<(), String> {
    match (a, b) {
        (Value::Map(a), Value::Map(b)) => a.iter().try_for_each(|(key, value)| {
            let server_set = matches!(
                key.as_str(),
                "resourceVersion" | "generation" | "uid" | "creationTimestamp" | "managedFields"
            );
            match b.get(key) {
                _ if server_set => Ok(()),
                Some(other) => within(value, other, &format!("{path}.{key}")),
                None => Err(format!("upstream lacks {path}.{key}: {value:?}")),
            }
        }),
        (Value::List(a), Value::List(b)) if a.len() == b.len() => {
            a.iter().zip(b.iter()).try_for_each(|(a, b)| within(a, b, &format!("{path}[]")))
        }
        _ if a == b => Ok(()),
        _ => Err(format!("{path}: upstream {b:?}, ours {a:?}")),
    }
}

#[test]
fn custom_resources_are_owned_by_their_schema() {
    let schema = crate::value!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"],
            "items": {"type": "object", "properties": {"port": {"type": "integer"}, "name": {"type": "string"}}}},
        "plain": {"type": "array", "items": {"type": "string"}},
    }}}});
    let cx = Context::custom(Some(&schema), "x.dev/v1", "", true, Timestamp::from_secs(60));
    let config = |port: i64| {
        Object::from_value(crate::value!({
            "apiVersion": "x.dev/v1", "kind": "W", "metadata": {"name": "a", "labels": {"l": "1"}},
            "spec": {"ports": [{"port": port, "name": "n"}], "plain": ["a"]}, "status": {"x": 1},
        }))
        .unwrap()
    };
    let first = apply(None, &config(1), "m", false, &cx).unwrap();
    let expected = crate::value!([{
        "manager": "m", "operation": "Apply", "apiVersion": "x.dev/v1",
        "time": "1970-01-01T00:01:00Z", "fieldsType": "FieldsV1",
        "fieldsV1": {
            "f:metadata": {"f:labels": {"f:l": {}}},
            "f:spec": {
                "f:plain": {},
                "f:ports": {"k:{\"port\":1}": {".": {}, "f:port": {}, "f:name": {}}},
            },
        },
    }]);
    assert_eq!(first.at(&["metadata", "managedFields"]), Some(&expected));
    let second = apply(Some(&first), &config(2), "m", false, &cx).unwrap();
    assert_eq!(second.list_at(&["spec", "ports"]).len(), 1);
    let other = apply(Some(&second), &config(3), "n", false, &cx).unwrap();
    assert_eq!(other.list_at(&["spec", "ports"]).len(), 2);
}
