//! Containers without requests or limits get those of their namespace's LimitRanges.

use api::Status;
use async_trait::async_trait;
use machinery::{Map, Object, Value};
use registry::{Attributes, Operation};

use super::{Plugin, World, is};

pub struct LimitRanger;
pub const PLUGIN: LimitRanger = LimitRanger;

#[async_trait]
impl Plugin for LimitRanger {
    async fn mutate(&self, world: &World, attributes: &mut Attributes<'_>) -> Result<(), Status> {
        if !is(attributes, Operation::Create, "", "pods") {
            return Ok(());
        }
        let ranges = world.data.list_cached("", "v1", "limitranges", attributes.namespace).await?;
        let Some(pod) = &mut attributes.object else { return Ok(()) };
        for range in &ranges {
            apply_defaults(range, pod);
        }
        Ok(())
    }
}

/// Merges the defaults of a range's `Container` limits into containers that set none.
fn apply_defaults(range: &Object, pod: &mut Object) {
    let limits = range.list_at(&["spec", "limits"]).iter();
    for limit in limits.filter(|limit| limit.get("type").and_then(Value::as_str) == Some("Container")) {
        let requests = limit.get("defaultRequest").and_then(Value::as_map);
        let defaults = limit.get("default").and_then(Value::as_map);
        for list in ["initContainers", "containers"] {
            if pod.list_at(&["spec", list]).is_empty() {
                continue;
            }
            let spec = pod.root_mut().map_entry("spec");
            for container in spec.list_entry(list).iter_mut().filter_map(Value::as_map_mut) {
                merge(container, "limits", defaults);
                // A limit that the container set itself is its request too, before any default.
                let own: Option<Map> = container.at(&["resources", "limits"]).and_then(Value::as_map).cloned();
                let set_itself = own.map(|own| {
                    let from_default = |key: &str, value: &Value| defaults.and_then(|d| d.get(key)) == Some(value);
                    own.iter().filter(|(k, v)| !from_default(k, v)).map(|(k, v)| (k.clone(), v.clone())).collect::<Map>()
                });
                merge(container, "requests", set_itself.as_ref().filter(|_| requests.is_some()));
                merge(container, "requests", requests);
            }
        }
    }
}

fn merge(container: &mut Map, field: &str, defaults: Option<&Map>) {
    for (resource, quantity) in defaults.into_iter().flat_map(Map::iter) {
        let held = container.map_entry("resources").map_entry(field);
        if !held.contains_key(resource) {
            held.insert(resource.clone(), quantity.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery::value;

    #[test]
    fn defaults_fill_what_is_missing() {
        let range = Object::from_value(value!({"spec": {"limits": [{
            "type": "Container",
            "default": {"cpu": "500m", "memory": "1Gi"},
            "defaultRequest": {"cpu": "100m"},
        }]}}))
        .unwrap();
        let mut pod = Object::from_value(value!({"spec": {"containers": [
            {"name": "a"},
            {"name": "b", "resources": {"limits": {"cpu": "2"}}},
        ]}}))
        .unwrap();
        apply_defaults(&range, &mut pod);
        let containers = pod.list_at(&["spec", "containers"]);
        assert_eq!(
            containers[0].get("resources"),
            Some(&value!({"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"cpu": "100m"}}))
        );
        assert_eq!(
            containers[1].get("resources"),
            Some(&value!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "2"}}))
        );
    }
}
