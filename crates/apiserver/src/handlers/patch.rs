//! The four kinds of patch.

use std::sync::Arc;

use api::{GroupVersionKind, Status};
use http::Response;
use machinery::{Map, Object, Value};
use registry::{Resource, UpdateOptions};

use super::{options, resource};
use crate::{body::Body, negotiate, pipeline::Call};

const TYPES: &str = "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml";

/// A decoded patch body.
pub struct Patch {
    body: Value,
}

impl Patch {
    pub async fn read(call: &mut Call, _kind: &GroupVersionKind) -> Result<Self, Status> {
        let body = call.read_body().await?;
        match negotiate::content_type(&call.headers).as_str() {
            "application/merge-patch+json" | "application/strategic-merge-patch+json" => {
                let body = machinery::json::parse(&body).map_err(|e| Status::bad_request(e.to_string()))?;
                Ok(Self { body })
            }
            _ => Err(negotiate::unsupported(TYPES)),
        }
    }

    pub fn apply_to(&self, current: &Object) -> Result<Object, Status> {
        let mut value = current.clone().into_value();
        merge(&mut value, &self.body);
        Object::from_value(value).ok_or_else(|| Status::bad_request("not an object"))
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_map() else {
        *target = patch.clone();
        return;
    };
    if target.as_map().is_none() {
        *target = Value::Map(Map::new());
    }
    let Some(map) = target.as_map_mut() else { return };
    for (key, value) in patch.iter() {
        if value.is_null() {
            map.remove(key);
        } else {
            if !map.contains_key(key) {
                map.insert(key.clone(), Value::Null);
            }
            if let Some(inner) = map.get_mut(key) {
                merge(inner, value);
            }
        }
    }
}

pub async fn patch(call: &mut Call, resource: &Arc<Resource>) -> Result<Response<Body>, Status> {
    let accepted = call.accepted(false)?;
    options::write("PatchOptions", &call.query)?;
    let patch = Patch::read(call, &resource.info().gvk).await?;
    let change = move |current: Option<&Object>| patch.apply_to(&current.cloned().unwrap_or_default());
    let info = &call.info;
    let (stored, created) = resource
        .update(
            &call.context,
            &info.namespace,
            &info.name,
            &info.subresource,
            &change,
            &UpdateOptions::default(),
            &call.server.admission,
        )
        .await?;
    resource::send(call, resource, if created { 201 } else { 200 }, &stored, &accepted)
}
