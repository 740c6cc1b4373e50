//! Containers without requests or limits get those of their namespace's LimitRanges, and what
//! exceeds a LimitRange is refused.

use api::{Status, quantity::Quantity};
use async_trait::async_trait;
use machinery::{Map, Object, Value};
use registry::{Attributes, Operation};

use super::{Plugin, World, is, refuse};

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

    async fn validate(&self, world: &World, attributes: &Attributes<'_>) -> Result<(), Status> {
        let pod = is(attributes, Operation::Create, "", "pods");
        let claim = is(attributes, Operation::Create, "", "persistentvolumeclaims");
        let Some(object) = attributes.object.as_ref().filter(|_| pod || claim) else {
            return Ok(());
        };
        let ranges = world.data.list_cached("", "v1", "limitranges", attributes.namespace).await?;
        let faults: Vec<String> =
            ranges.iter().flat_map(|range| faults(range, object, pod)).collect();
        match faults.as_slice() {
            [] => Ok(()),
            [one] => Err(refuse(attributes, one)),
            many => Err(refuse(attributes, &format!("[{}]", many.join(", ")))),
        }
    }
}

/// Amounts of resources, in billionths.
type Amounts = std::collections::BTreeMap<String, i128>;

/// What an object asks for beyond the bounds of a range.
fn faults(range: &Object, object: &Object, is_pod: bool) -> Vec<String> {
    let mut faults = Vec::new();
    for limit in range.list_at(&["spec", "limits"]) {
        match (limit.get("type").and_then(Value::as_str).unwrap_or_default(), is_pod) {
            ("Container", true) => {
                for container in containers(object) {
                    let of = |field| amounts(container.at(&["resources", field]));
                    check(limit, "Container", &of("requests"), &of("limits"), &mut faults);
                }
            }
            ("Pod", true) => {
                let (requests, limits) = (sum(object, "requests"), sum(object, "limits"));
                check(limit, "Pod", &requests, &limits, &mut faults);
            }
            ("PersistentVolumeClaim", false) => {
                let requests = amounts(object.at(&["spec", "resources", "requests"]));
                check(limit, "PersistentVolumeClaim", &requests, &requests, &mut faults);
            }
            _ => {}
        }
    }
    faults
}

fn check(
    limit: &Value,
    kind: &str,
    requests: &Amounts,
    limits: &Amounts,
    faults: &mut Vec<String>,
) {
    let bounds = |field: &str| -> Vec<(String, String, i128)> {
        let map = limit.get(field).and_then(Value::as_map);
        let entries = map.into_iter().flat_map(Map::iter);
        entries
            .filter_map(|(name, value)| Some((name.to_string(), text(value), nanos(value)?)))
            .collect()
    };
    for (name, shown, bound) in bounds("min") {
        match requests.get(&name) {
            None => faults.push(format!(
                "minimum {name} usage per {kind} is {shown}.  No request is specified"
            )),
            Some(&amount) if amount < bound => {
                let request = show(amount);
                faults.push(format!(
                    "minimum {name} usage per {kind} is {shown}, but request is {request}"
                ));
            }
            Some(_) => {}
        }
    }
    for (name, shown, bound) in bounds("max") {
        match limits.get(&name) {
            None => faults.push(format!(
                "maximum {name} usage per {kind} is {shown}.  No limit is specified"
            )),
            Some(&amount) if amount > bound => {
                let limit = show(amount);
                faults.push(format!(
                    "maximum {name} usage per {kind} is {shown}, but limit is {limit}"
                ));
            }
            Some(_) => {}
        }
    }
    for (name, shown, bound) in bounds("maxLimitRequestRatio") {
        let ratio = match (requests.get(&name), limits.get(&name)) {
            (Some(&request), Some(&limit)) if request > 0 => limit as f64 / request as f64,
            _ => {
                faults.push(format!("{name} max limit to request ratio per {kind} is {shown}, but no request is specified or request is 0"));
                continue;
            }
        };
        if ratio > bound as f64 / 1e9 {
            faults.push(format!("{name} max limit to request ratio per {kind} is {shown}, but provided ratio is {ratio:.6}"));
        }
    }
}

fn containers(pod: &Object) -> impl Iterator<Item = &Value> {
    pod.list_at(&["spec", "containers"]).iter().chain(pod.list_at(&["spec", "initContainers"]))
}

/// What the main containers of a pod ask for together; what one of them leaves open is open.
fn sum(pod: &Object, field: &str) -> Amounts {
    let mut total = Amounts::new();
    let main = pod.list_at(&["spec", "containers"]);
    for container in main {
        for (name, amount) in amounts(container.at(&["resources", field])) {
            *total.entry(name).or_default() += amount;
        }
    }
    total.retain(|name, _| main.iter().all(|c| c.at(&["resources", field, name]).is_some()));
    total
}

fn amounts(map: Option<&Value>) -> Amounts {
    let entries = map.and_then(Value::as_map).into_iter().flat_map(Map::iter);
    entries.filter_map(|(name, value)| Some((name.to_string(), nanos(value)?))).collect()
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| format!("{value:?}"), str::to_owned)
}

fn nanos(value: &Value) -> Option<i128> {
    Quantity::parse(&text(value)).ok().map(|quantity| quantity.nanos())
}

/// An amount as a quantity: whole, or in thousandths.
fn show(amount: i128) -> String {
    let exact = if amount % 1_000_000_000 == 0 {
        (amount / 1_000_000_000).to_string()
    } else {
        format!("{}m", amount / 1_000_000)
    };
    Quantity::canonical(&exact).unwrap_or(exact)
}

/// Merges the defaults of a range's `Container` limits into containers that set none.
fn apply_defaults(range: &Object, pod: &mut Object) {
    let limits = range.list_at(&["spec", "limits"]).iter();
    for limit in
        limits.filter(|limit| limit.get("type").and_then(Value::as_str) == Some("Container"))
    {
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
                let own: Option<Map> =
                    container.at(&["resources", "limits"]).and_then(Value::as_map).cloned();
                let set_itself = own.map(|own| {
                    let from_default =
                        |key: &str, value: &Value| defaults.and_then(|d| d.get(key)) == Some(value);
                    own.iter()
                        .filter(|(k, v)| !from_default(k, v))
                        .map(|(k, v)| (k.clone(), v.clone()))
                        .collect::<Map>()
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
            Some(
                &value!({"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"cpu": "100m"}})
            )
        );
        assert_eq!(
            containers[1].get("resources"),
            Some(&value!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "2"}}))
        );
    }

    #[test]
    fn bounds_are_held() {
        let range = Object::from_value(value!({"spec": {"limits": [
            {"type": "Container", "max": {"cpu": "1"}, "min": {"memory": "1Mi"}},
            {"type": "Pod", "max": {"cpu": "1500m"}},
        ]}}))
        .unwrap();
        let pod = |cpu: &str| {
            let resources = value!({"limits": {"cpu": cpu}, "requests": {"memory": "2Mi"}});
            let mut one = Map::new();
            one.insert("resources", resources);
            let mut pod = Object::default();
            pod.set_at(&["spec", "containers"], vec![Value::Map(one.clone()), Value::Map(one)]);
            pod
        };
        assert!(faults(&range, &pod("500m"), true).is_empty());
        assert_eq!(
            faults(&range, &pod("1"), true),
            ["maximum cpu usage per Pod is 1500m, but limit is 2"]
        );
        assert_eq!(faults(&range, &pod("1200m"), true).len(), 3);
        let empty = Object::from_value(value!({"spec": {"containers": [{}]}})).unwrap();
        assert_eq!(
            faults(&range, &empty, true)[0],
            "minimum memory usage per Container is 1Mi.  No request is specified"
        );
    }
}
