//! Lists the pods behind each Service in one Endpoints object, the older form of EndpointSlices.

use std::collections::BTreeMap;

use client::Key;
use machinery::{Map, Object, Value};
use stdx::Timestamp;

use crate::{conditions, plan::*, resources::*, service_pods::*, views::Pod};

pub const CONTROLLER: Controller = Controller {
    name: "endpoints-controller",
    account: "endpoint-controller",
    primary: &SERVICES,
    watches: &[mapped(&ENDPOINTS, same_name), mapped(&PODS, services_of_pod)],
    rbac: &[allow(&ENDPOINTS, &["create", "update", "delete"])],
    workers: 5,
    work: Work::Reconcile(reconcile),
};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const HEADLESS: &str = "service.kubernetes.io/headless";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// More addresses than this are left out, ready ones last.
const MAX_ADDRESSES: usize = 1000;

fn same_name(change: &client::Change, _: &World) -> Vec<Key> {
    vec![change.key().clone()]
}

fn reconcile(key: &Key, world: &World, _: Timestamp) -> Plan {
    let mut plan = Plan::none();
    let current = world.get(&ENDPOINTS, key);
    let Some(service) = world.object(&SERVICES, key) else {
        let left_behind = current.filter(|c| c.labels.str_at(&[MANAGED_BY]) == Some(MANAGER));
        if let Some(left_behind) = left_behind {
            plan.push(Intent::delete(&ENDPOINTS, &left_behind));
        }
        return plan;
    };
    if selector(&service).is_none() || service.is_deleting() {
        return plan;
    }
    let (subsets, truncated) = subsets(&service, world);
    let old = current.map(|cached| tree(&ENDPOINTS, &cached));
    let mut new = old.clone().unwrap_or_else(|| {
        Object::new("v1", "Endpoints", service.namespace(), service.name())
    });
    new.root_mut().insert("subsets", subsets);
    new.metadata_mut().insert("labels", labels(&service));
    new.remove_at(&["metadata", "annotations", OVER_CAPACITY]);
    if truncated {
        new.set_at(&["metadata", "annotations", OVER_CAPACITY], "truncated");
    }
    match old {
        None => plan.push(Intent::Create { resource: &ENDPOINTS, object: new }),
        Some(old) if conditions::same(&old.clone().into_value(), &new.clone().into_value()) => return plan,
        Some(_) => plan.push(Intent::Update { resource: &ENDPOINTS, subresource: "", object: new }),
    };
    plan
}

fn labels(service: &Object) -> Map {
    let mut labels = service.labels().cloned().unwrap_or_default();
    labels.remove(HEADLESS);
    if !has_address(service) {
        labels.insert(HEADLESS, "");
    }
    labels.insert(MANAGED_BY, MANAGER);
    labels
}

/// Subsets by what their addresses are: text, pod, and whether they are ready.
type Packed = BTreeMap<Vec<(String, String, bool)>, (Addresses, Vec<Value>)>;

/// An address by its text and pod, with whether it is ready.
type Addresses = BTreeMap<(String, String), (bool, Value)>;

/// Addresses with the same ports share a subset: first by port the addresses, then by equal
/// addresses the ports.
fn subsets(service: &Object, world: &World) -> (Vec<Value>, bool) {
    let publish = publishes_not_ready(service);
    let mut by_port: BTreeMap<String, (Option<Value>, Addresses)> = BTreeMap::new();
    for pod in serving_pods(service, world, publish) {
        let Some(address) = address(service, &pod) else { continue };
        let ready = publish || pod.is_ready();
        let named = (address.get("ip").and_then(Value::as_str).unwrap_or_default().to_owned(), pod.metadata.uid.to_string());
        for port in ports(service, &pod) {
            let identity = format!("{port:?}");
            let entry = by_port.entry(identity).or_insert_with(|| (port, Addresses::new()));
            entry.1.insert(named.clone(), (ready, address.clone()));
        }
    }
    let mut packed = Packed::new();
    for (port, addresses) in by_port.into_values() {
        let identity = addresses.iter().map(|((ip, uid), (ready, _))| (ip.clone(), uid.clone(), *ready)).collect();
        packed.entry(identity).or_insert_with(|| (addresses, Vec::new())).1.extend(port);
    }
    let mut room = MAX_ADDRESSES;
    let total: usize = packed.values().map(|(addresses, _)| addresses.len()).sum();
    let subsets = packed.into_values().map(|(addresses, ports)| subset(addresses, ports, &mut room)).collect();
    (subsets, total > MAX_ADDRESSES)
}

fn subset(addresses: Addresses, ports: Vec<Value>, room: &mut usize) -> Value {
    let (ready, unready): (Vec<_>, Vec<_>) = addresses.into_values().partition(|(ready, _)| *ready);
    let mut subset = Map::new();
    for (field, list) in [("addresses", ready), ("notReadyAddresses", unready)] {
        let list: Vec<Value> = list.into_iter().map(|(_, address)| address).take(*room).collect();
        *room -= list.len();
        if !list.is_empty() {
            subset.insert(field, list);
        }
    }
    if !ports.is_empty() {
        subset.insert("ports", ports);
    }
    subset.into()
}

/// The address of the Service's first family, if the pod has one.
fn address(service: &Object, pod: &Pod) -> Option<Value> {
    let families = service.list_at(&["spec", "ipFamilies"]);
    let wants_ipv6 = match families.first().and_then(Value::as_str) {
        Some(family) => family == "IPv6",
        None => is_ipv6(service.str_at(&["spec", "clusterIP"])),
    };
    let ip = addresses(pod).find(|ip| is_ipv6(ip) == wants_ipv6)?;
    let mut address = Map::new();
    address.insert("ip", ip);
    if !pod.spec.node_name.is_empty() {
        address.insert("nodeName", pod.spec.node_name.clone());
    }
    address.insert("targetRef", target_ref(pod));
    if let Some(hostname) = hostname(pod, service) {
        address.insert("hostname", hostname);
    }
    Some(address.into())
}

/// A headless Service may have no ports; its pods have one subset then.
fn ports(service: &Object, pod: &Pod) -> Vec<Option<Value>> {
    let ports = service.list_at(&["spec", "ports"]);
    if ports.is_empty() {
        return if is_headless(service) { vec![None] } else { Vec::new() };
    }
    let port = |port: &Value| {
        let text = |field| port.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
        let mut entry = Map::new();
        if let Some(name) = text("name") {
            entry.insert("name", name);
        }
        entry.insert("port", target_port(pod, port)?);
        entry.insert("protocol", text("protocol").unwrap_or("TCP"));
        if let Some(protocol) = text("appProtocol") {
            entry.insert("appProtocol", protocol);
        }
        Some(Some(Value::Map(entry)))
    };
    ports.iter().filter_map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{cached, world};
    use machinery::value;

    fn pod(name: &str, ready: &str) -> client::Cached {
        cached(value!({
            "metadata": {"namespace": "d", "name": name, "uid": name, "labels": {"app": "web"}},
            "spec": {"containers": []},
            "status": {"phase": "Running", "podIP": format!("10.0.0.{}", name.len()),
                "conditions": [{"type": "Ready", "status": ready}]},
        }))
    }

    #[test]
    fn ports_with_the_same_addresses_share_a_subset() {
        let service = cached(value!({
            "metadata": {"namespace": "d", "name": "web", "uid": "s"},
            "spec": {"clusterIP": "10.9.0.1", "selector": {"app": "web"},
                "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}]},
        }));
        let make = |old| {
            let pods = vec![pod("x", "True"), pod("yy", "False")];
            let world = world([(&SERVICES, vec![service.object().map(|o| cached(o.into_value())).unwrap()]), (&PODS, pods), (&ENDPOINTS, old)]);
            reconcile(&Key::new("d", "web"), &world, Timestamp::default())
        };
        let plan = make(vec![]);
        let Intent::Create { object, .. } = &plan.steps[0].intent else { panic!() };
        let [subset] = object.list_at(&["subsets"]) else { panic!("{object:?}") };
        assert_eq!(subset.get("ports").unwrap().as_list().unwrap().len(), 2);
        assert_eq!(subset.at(&["addresses"]).unwrap().as_list().unwrap().len(), 1);
        assert_eq!(subset.at(&["notReadyAddresses"]).unwrap().as_list().unwrap().len(), 1);
        assert!(make(vec![cached(object.clone().into_value())]).is_empty());
    }
}
