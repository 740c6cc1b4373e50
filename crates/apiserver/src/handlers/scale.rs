//! The `scale` subresource: how many replicas there are and should be, the same for all kinds.

use std::sync::Arc;

use api::{GroupVersionKind, Status};
use http::Response;
use machinery::{Map, Object, Value};
use registry::{GetOptions, Resource, UpdateOptions, strategy::Scale};

use super::{no_such_method, no_such_resource, options, patch, resource::check_name};
use crate::{body::Body, negotiate::Accepted, pipeline::Call, respond, wire};

pub async fn serve(call: &mut Call, resource: &Arc<Resource>) -> Result<Response<Body>, Status> {
    let accepted = call.accepted(false)?;
    let Some(paths) = resource.strategy().scale() else { return Ok(no_such_resource()) };
    let info = call.info.clone();
    match info.verb.as_str() {
        "get" => {
            let object = resource
                .get(&info.namespace, &info.name, &GetOptions::default())
                .await?
                .object()?;
            send(&scale_of(&object, paths), &accepted)
        }
        "update" => {
            let write = options::write("UpdateOptions", &call.query)?;
            let wanted = call.read_object(&kind(), write.field_validation).await?;
            check_name(call, &wanted)?;
            let change =
                move |current: Option<&Object>| rescale(current, paths, |_| Ok(wanted.clone()));
            store(call, resource, paths, &change, &accepted).await
        }
        "patch" => {
            let patch = patch::Patch::read(call, &kind()).await?;
            if patch.is_apply() {
                return Err(Status::new(
                    501,
                    api::Reason::Unknown,
                    "server-side apply of a scale is not supported by this version",
                ));
            }
            let call = &*call;
            let change = |current: Option<&Object>| {
                rescale(current, paths, |scale| patch.apply_to(scale, call))
            };
            store(call, resource, paths, &change, &accepted).await
        }
        _ => Ok(no_such_method()),
    }
}

pub fn kind() -> GroupVersionKind {
    GroupVersionKind::new("autoscaling", "v1", "Scale")
}

async fn store(
    call: &Call,
    resource: &Arc<Resource>,
    paths: &Scale,
    change: &dyn registry::UpdateFn,
    accepted: &Accepted,
) -> Result<Response<Body>, Status> {
    let (info, admission) = (&call.info, &call.server.admission);
    let (stored, _) = resource
        .update(
            &call.context,
            &info.namespace,
            &info.name,
            "scale",
            change,
            &UpdateOptions::default(),
            admission,
        )
        .await?;
    send(&scale_of(&stored, paths), accepted)
}

fn send(scale: &Object, accepted: &Accepted) -> Result<Response<Body>, Status> {
    let body = wire::encode(scale, accepted.format, accepted.pretty)?;
    Ok(respond::bytes(200, accepted.format.media_type(), body))
}

/// The scale of an object.
fn scale_of(object: &Object, paths: &Scale) -> Object {
    let mut metadata = Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object.at(&["metadata", field]) {
            metadata.insert(field, value.clone());
        }
    }
    let number = |path: &[&str]| object.at(path).and_then(Value::as_i64).unwrap_or(0);
    let mut scale = Object::default();
    scale.set_gvk(&kind());
    scale.root_mut().insert("metadata", metadata);
    let replicas = number(paths.replicas);
    let spec: Map = [("replicas", replicas)].into_iter().filter(|(_, n)| *n != 0).collect();
    scale.root_mut().insert("spec", spec);
    scale.set_at(&["status", "replicas"], number(paths.status_replicas));
    let selector = object.at(paths.selector).map(selector_text).unwrap_or_default();
    if !selector.is_empty() {
        scale.set_at(&["status", "selector"], selector);
    }
    scale
}

/// The object with the number of replicas of a changed scale.
fn rescale(
    current: Option<&Object>,
    paths: &Scale,
    change: impl Fn(&Object) -> Result<Object, Status>,
) -> Result<Object, Status> {
    let current =
        current.ok_or_else(|| Status::internal("scale of an object that does not exist"))?;
    let scale = change(&scale_of(current, paths))?;
    let replicas = scale.i64_at(&["spec", "replicas"]).unwrap_or(0);
    if replicas < 0 {
        let cause = api::Cause {
            reason: "FieldValueInvalid".into(),
            message: format!("Invalid value: {replicas}: must be greater than or equal to 0"),
            field: "spec.replicas".into(),
        };
        return Err(Status::invalid("autoscaling", "Scale", current.name(), vec![cause]));
    }
    let mut next = current.clone();
    next.set_at(paths.replicas, replicas);
    if !scale.resource_version().is_empty() {
        next.set_resource_version(scale.resource_version());
    }
    Ok(next)
}

/// A label selector, or the plain map of replication controllers, in the query's syntax.
fn selector_text(selector: &Value) -> String {
    let Some(map) = selector.as_map() else { return String::new() };
    let structured = map.contains_key("matchLabels") || map.contains_key("matchExpressions");
    let labels =
        if structured { map.get("matchLabels").and_then(Value::as_map) } else { Some(map) };
    let mut terms: Vec<String> = labels
        .into_iter()
        .flat_map(Map::iter)
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    for expression in map.get("matchExpressions").and_then(Value::as_list).unwrap_or_default() {
        let text = |field| expression.get(field).and_then(Value::as_str).unwrap_or_default();
        let values = expression.get("values").and_then(Value::as_list).unwrap_or_default();
        let mut values: Vec<&str> = values.iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let (key, values) = (text("key"), values.join(","));
        terms.push(match text("operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    terms.sort();
    terms.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery::value;
    use registry::strategy::APPS_SCALE;

    #[test]
    fn a_scale_shows_and_changes_replicas_alone() {
        let object = Object::from_value(value!({
            "metadata": {"name": "web", "namespace": "a", "resourceVersion": "7", "labels": {"x": "y"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}, "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["b", "a"]},
            ]}},
            "status": {"replicas": 2},
        }))
        .unwrap();
        let scale = scale_of(&object, &APPS_SCALE);
        assert_eq!(scale.str_at(&["status", "selector"]), "app=web,tier in (a,b)");
        assert_eq!(
            (scale.i64_at(&["spec", "replicas"]), scale.i64_at(&["status", "replicas"])),
            (Some(3), Some(2))
        );
        let grow = |scale: &Object| {
            let mut scale = scale.clone();
            scale.set_at(&["spec", "replicas"], 5);
            Ok(scale)
        };
        let next = rescale(Some(&object), &APPS_SCALE, grow).unwrap();
        assert_eq!(next.i64_at(&["spec", "replicas"]), Some(5));
        assert_eq!(next.label("x"), Some("y"));
    }
}
