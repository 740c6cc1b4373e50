//! Lists the pods behind each Service in EndpointSlices, at most 100 to a slice. An endpoint stays
//! in its slice as long as it can, so that a change of one pod is a change of one slice.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use client::{Cached, Change, Key};
use machinery::{Map, Object, Value, value};
use stdx::Timestamp;

use crate::{
    conditions,
    plan::*,
    pod_template::generated_name,
    resources::*,
    service_pods::*,
    views::Pod,
};

pub const CONTROLLER: Controller = Controller {
    name: "endpointslice-controller",
    account: "endpointslice-controller",
    primary: &SERVICES,
    watches: &[
        mapped(&ENDPOINT_SLICES, service_of_slice),
        mapped(&PODS, services_of_pod),
        mapped(&NODES, services_of_node),
    ],
    rbac: &[allow(&ENDPOINT_SLICES, &["create", "update", "delete"])],
    workers: 5,
    work: Work::Reconcile(reconcile),
};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
const ZONE: &str = "topology.kubernetes.io/zone";

fn service_of_slice(change: &Change, _: &World) -> Vec<Key> {
    let ours = change.both().filter(|slice| is_ours(slice));
    let service = ours.filter_map(|slice| {
        let name = slice.labels.str_at(&[SERVICE_NAME])?;
        Some(Key::new(&slice.key.namespace, name))
    });
    service.collect()
}

/// A node's zone is shown in the endpoints of its pods.
fn services_of_node(change: &Change, world: &World) -> Vec<Key> {
    let zone = |node: &Option<Arc<Cached>>| {
        node.as_ref().and_then(|n| n.labels.str_at(&[ZONE]).map(str::to_owned))
    };
    if zone(&change.old) == zone(&change.new) {
        return Vec::new();
    }
    world.list(&SERVICES).all().iter().map(|service| service.key.clone()).collect()
}

fn is_ours(slice: &Cached) -> bool {
    slice.labels.str_at(&[MANAGED_BY]) == Some(MANAGER)
}

fn reconcile(key: &Key, world: &World, now: Timestamp) -> Plan {
    let mut plan = Plan::none();
    // The slices of a Service that is gone fall to the garbage collector.
    let Some(service) = world.object(&SERVICES, key) else { return plan };
    if service.is_deleting() || selector(&service).is_none() {
        return plan;
    }
    let mut existing = existing_slices(&service, world);
    let pods = serving_pods(&service, world, true);
    let mut fresh = Fresh { service: &service, now, made: 0 };
    for family in families(&service) {
        let slices = existing.remove(family).unwrap_or_default();
        reconcile_family(&mut plan, &mut fresh, family, &pods, slices, world);
    }
    for slice in existing.values().flatten() {
        plan.push(Intent::delete(&ENDPOINT_SLICES, &slice.cached));
    }
    plan
}

fn families(service: &Object) -> Vec<&'static str> {
    let family = |value: &Value| match value.as_str() {
        Some("IPv6") => "IPv6",
        _ => "IPv4",
    };
    let listed: Vec<_> = service.list_at(&["spec", "ipFamilies"]).iter().map(family).collect();
    if !listed.is_empty() {
        return listed;
    }
    vec![if is_ipv6(service.str_at(&["spec", "clusterIP"])) { "IPv6" } else { "IPv4" }]
}

/// A slice of ours and what it is to hold.
struct Slice {
    cached: Arc<Cached>,
    object: Object,
    endpoints: Vec<Value>,
    changed: bool,
}

fn existing_slices(service: &Object, world: &World) -> BTreeMap<String, Vec<Slice>> {
    let mut slices: BTreeMap<String, Vec<Slice>> = BTreeMap::new();
    for cached in world.list(&ENDPOINT_SLICES).in_namespace(service.namespace()) {
        let of_service = cached.labels.str_at(&[SERVICE_NAME]) == Some(service.name());
        if !is_ours(&cached) || !of_service || cached.is_deleting() {
            continue;
        }
        let object = tree(&ENDPOINT_SLICES, &cached);
        let family = object.str_at(&["addressType"]).to_owned();
        let endpoints = object.list_at(&["endpoints"]).to_vec();
        slices.entry(family).or_default().push(Slice { cached, object, endpoints, changed: false });
    }
    slices
}

/// What makes new slices.
struct Fresh<'a> {
    service: &'a Object,
    now: Timestamp,
    made: usize,
}

impl Fresh<'_> {
    fn labels(&self) -> Map {
        let own = self.service.labels().cloned().unwrap_or_default();
        let mut labels: Map = own;
        for reserved in [SERVICE_NAME, MANAGED_BY, HEADLESS] {
            labels.remove(reserved);
        }
        if !has_address(self.service) {
            labels.insert(HEADLESS, "");
        }
        labels.insert(SERVICE_NAME, self.service.name());
        labels.insert(MANAGED_BY, MANAGER);
        labels
    }

    fn slice(&mut self, family: &str, ports: &Value, endpoints: Vec<Value>) -> Intent {
        let name = generated_name(self.service.name(), self.service.uid(), self.now, self.made);
        self.made += 1;
        let namespace = self.service.namespace();
        let mut slice = Object::new("discovery.k8s.io/v1", "EndpointSlice", namespace, &name);
        let owner = controller_reference(self.service).to_value();
        slice.metadata_mut().insert("generateName", format!("{}-", self.service.name()));
        slice.metadata_mut().insert("labels", self.labels());
        slice.metadata_mut().insert("ownerReferences", vec![owner]);
        slice.root_mut().insert("addressType", family);
        slice.root_mut().insert("endpoints", endpoints);
        slice.root_mut().insert("ports", ports.clone());
        Intent::Create { resource: &ENDPOINT_SLICES, object: slice }
    }
}

fn reconcile_family(
    plan: &mut Plan,
    fresh: &mut Fresh,
    family: &'static str,
    pods: &[Pod],
    slices: Vec<Slice>,
    world: &World,
) {
    let mut wanted = wanted_endpoints(fresh.service, family, pods, world);
    let (mut kept, mut spare) = (Vec::new(), Vec::new());
    let mut by_ports: BTreeMap<String, Vec<Slice>> = BTreeMap::new();
    for slice in slices {
        let ports = port_identity(slice.object.list_at(&["ports"]));
        if wanted.contains_key(&ports) {
            by_ports.entry(ports).or_default().push(slice);
        } else {
            spare.push(slice);
        }
    }
    let mut additions = Vec::new();
    for (identity, (ports, endpoints)) in std::mem::take(&mut wanted) {
        let mut slices = by_ports.remove(&identity).unwrap_or_default();
        let limit = world.config().max_endpoints_per_slice.max(1);
        let left = fill(&mut slices, endpoints, limit);
        additions.extend(left.chunks(limit).map(|chunk| (ports.clone(), chunk.to_vec())));
        for slice in slices {
            if slice.endpoints.is_empty() { spare.push(slice) } else { kept.push(slice) }
        }
    }
    if kept.is_empty() && additions.is_empty() {
        // A Service without endpoints has one empty slice, which tells it from one not looked at.
        additions.push((Value::from(Vec::<Value>::new()), Vec::new()));
    }
    write(plan, fresh, family, kept, spare, additions);
}

/// Spare slices take what is new before others are made; the rest of them go.
fn write(
    plan: &mut Plan,
    fresh: &mut Fresh,
    family: &str,
    mut kept: Vec<Slice>,
    mut spare: Vec<Slice>,
    additions: Vec<(Value, Vec<Value>)>,
) {
    for (ports, endpoints) in additions {
        let empty = endpoints.is_empty();
        let reusable = spare.iter().position(|s| empty && s.object.list_at(&["endpoints"]).is_empty());
        match reusable.or(if spare.is_empty() { None } else { Some(0) }) {
            Some(at) => {
                let mut slice = spare.remove(at);
                let same = conditions::same(slice.object.root().get("ports").unwrap_or(&Value::Null), &ports)
                    && slice.object.list_at(&["endpoints"]).is_empty()
                    && empty;
                slice.object.root_mut().insert("ports", ports);
                slice.endpoints = endpoints;
                slice.changed = !same;
                kept.push(slice);
            }
            None => {
                plan.push(fresh.slice(family, &ports, endpoints));
            }
        }
    }
    let labels = fresh.labels();
    for mut slice in kept {
        let relabelled = slice.object.labels() != Some(&labels);
        if !slice.changed && !relabelled {
            continue;
        }
        slice.object.metadata_mut().insert("labels", labels.clone());
        slice.object.root_mut().insert("endpoints", slice.endpoints);
        plan.push(Intent::Update { resource: &ENDPOINT_SLICES, subresource: "", object: slice.object });
    }
    for slice in spare {
        plan.push(Intent::delete(&ENDPOINT_SLICES, &slice.cached));
    }
}

/// Endpoints by what identifies them, under their ports.
type Wanted = BTreeMap<String, (Value, BTreeMap<String, Value>)>;

fn wanted_endpoints(service: &Object, family: &str, pods: &[Pod], world: &World) -> Wanted {
    let mut wanted = Wanted::new();
    for pod in pods {
        let addresses: Vec<&str> =
            addresses(pod).filter(|ip| is_ipv6(ip) == (family == "IPv6")).collect();
        if addresses.is_empty() {
            continue;
        }
        let Some(ports) = endpoint_ports(service, pod) else { continue };
        let identity = port_identity(ports.as_list().unwrap_or(&[]));
        let endpoint = endpoint(service, pod, addresses, world);
        let entry = wanted.entry(identity).or_insert_with(|| (ports, BTreeMap::new()));
        entry.1.insert(endpoint_identity(&endpoint), endpoint);
    }
    wanted
}

/// `None` when the pod has none of the ports that the Service wants.
fn endpoint_ports(service: &Object, pod: &Pod) -> Option<Value> {
    let ports = service.list_at(&["spec", "ports"]);
    if ports.is_empty() {
        return is_headless(service).then(|| Vec::<Value>::new().into());
    }
    let port = |port: &Value| {
        let text = |field| port.get(field).and_then(Value::as_str);
        let mut entry = Map::new();
        entry.insert("name", text("name").unwrap_or_default());
        entry.insert("port", target_port(pod, port)?);
        entry.insert("protocol", text("protocol").unwrap_or("TCP"));
        if let Some(protocol) = text("appProtocol") {
            entry.insert("appProtocol", protocol);
        }
        Some(entry)
    };
    Some(ports.iter().filter_map(port).collect::<Vec<Map>>().into())
}

fn port_identity(ports: &[Value]) -> String {
    let texts: BTreeSet<String> = ports.iter().map(|port| format!("{:?}", conditions::pruned(port))).collect();
    texts.into_iter().collect()
}

fn endpoint_identity(endpoint: &Value) -> String {
    let uid = endpoint.at(&["targetRef", "uid"]).and_then(Value::as_str).unwrap_or_default();
    format!("{uid} {:?}", endpoint.get("addresses"))
}

fn endpoint(service: &Object, pod: &Pod, addresses: Vec<&str>, world: &World) -> Value {
    let (serving, terminating) = (pod.is_ready(), pod.is_deleting());
    let ready = publishes_not_ready(service) || (serving && !terminating);
    let mut endpoint = Map::new();
    endpoint.insert("addresses", addresses);
    let conditions = value!({"ready": ready, "serving": serving, "terminating": terminating});
    endpoint.insert("conditions", conditions);
    endpoint.insert("targetRef", target_ref(pod));
    if let Some(hostname) = hostname(pod, service) {
        endpoint.insert("hostname", hostname);
    }
    if !pod.spec.node_name.is_empty() {
        endpoint.insert("nodeName", pod.spec.node_name.clone());
        let node = world.get(&NODES, &Key::new("", &pod.spec.node_name));
        let zone = node.as_ref().and_then(|node| node.labels.str_at(&[ZONE]));
        if let Some(zone) = zone.filter(|zone| !zone.is_empty()) {
            endpoint.insert("zone", zone);
        }
    }
    Value::Map(endpoint)
}

/// Keeps, replaces and removes endpoints where they are, then adds the new ones: first to slices
/// that change anyway, then to one that has room for all. Returns what did not fit.
fn fill(slices: &mut [Slice], mut wanted: BTreeMap<String, Value>, limit: usize) -> Vec<Value> {
    for slice in slices.iter_mut() {
        let mut endpoints = Vec::with_capacity(slice.endpoints.len());
        for old in std::mem::take(&mut slice.endpoints) {
            match wanted.remove(&endpoint_identity(&old)) {
                Some(new) => {
                    slice.changed |= !conditions::same(&old, &new);
                    endpoints.push(new);
                }
                None => slice.changed = true,
            }
        }
        slice.endpoints = endpoints;
    }
    let mut left: Vec<Value> = wanted.into_values().collect();
    slices.sort_by_key(|slice| std::cmp::Reverse(slice.endpoints.len()));
    for slice in slices.iter_mut().filter(|slice| slice.changed) {
        let room = limit.saturating_sub(slice.endpoints.len()).min(left.len());
        slice.endpoints.extend(left.drain(..room));
    }
    if !left.is_empty() {
        let fits = |slice: &&mut Slice| !slice.changed && slice.endpoints.len() + left.len() <= limit;
        if let Some(slice) = slices.iter_mut().find(fits) {
            slice.endpoints.append(&mut left);
            slice.changed = true;
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, scenario::{cached, world_with}};

    fn service() -> Cached {
        cached(value!({
            "metadata": {"namespace": "d", "name": "web", "uid": "s1", "labels": {"team": "x"}},
            "spec": {"clusterIP": "10.0.0.1", "ipFamilies": ["IPv4"], "selector": {"app": "web"},
                "ports": [{"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"}]},
        }))
    }

    fn pod(index: usize, ready: bool, deleting: bool) -> Cached {
        let status = if ready { "True" } else { "False" };
        let mut pod = value!({
            "metadata": {"namespace": "d", "name": format!("p{index}"), "uid": format!("u{index}"), "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080, "protocol": "TCP"}]}]},
            "status": {"phase": "Running", "podIP": format!("10.1.0.{index}"), "podIPs": [{"ip": format!("10.1.0.{index}")}],
                "conditions": [{"type": "Ready", "status": status}]},
        });
        if deleting {
            pod.as_map_mut().unwrap().set_at(&["metadata", "deletionTimestamp"], "2026-01-01T00:00:00Z");
        }
        cached(pod)
    }

    fn plan(pods: Vec<Cached>, slices: Vec<Cached>) -> Plan {
        let node = cached(value!({"metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z1"}}}));
        let config = Config { max_endpoints_per_slice: 3, ..Config::default() };
        let world = world_with(config, [
            (&SERVICES, vec![service()]), (&PODS, pods), (&ENDPOINT_SLICES, slices), (&NODES, vec![node]),
        ]);
        reconcile(&Key::new("d", "web"), &world, Timestamp::from_secs(1))
    }

    fn written(plan: &Plan) -> Vec<Cached> {
        let slice = |step: &Step| match &step.intent {
            Intent::Create { object, .. } | Intent::Update { object, .. } => {
                Some(cached(object.clone().into_value()))
            }
            _ => None,
        };
        plan.steps.iter().filter_map(slice).collect()
    }

    #[test]
    fn shows_ready_serving_and_terminating_with_node_zone_and_port() {
        let plan = plan(vec![pod(1, true, false), pod(2, false, false), pod(3, true, true)], vec![]);
        let slice = written(&plan)[0].object().unwrap();
        assert_eq!(slice.label("endpointslice.kubernetes.io/managed-by"), Some("endpointslice-controller.k8s.io"));
        assert_eq!(slice.label("team"), Some("x"));
        assert_eq!(slice.at(&["ports"]), Some(&value!([{"name": "http", "port": 8080, "protocol": "TCP"}])));
        let shown: Vec<Value> = slice.list_at(&["endpoints"]).iter().map(|e| e.get("conditions").unwrap().clone()).collect();
        assert_eq!(shown, [
            value!({"ready": true, "serving": true, "terminating": false}),
            value!({"ready": false, "serving": false, "terminating": false}),
            value!({"ready": false, "serving": true, "terminating": true}),
        ]);
        assert_eq!(slice.list_at(&["endpoints"])[0].get("zone"), Some(&Value::from("z1")));
    }

    #[test]
    fn an_applied_plan_leaves_nothing_to_do_and_one_pod_changes_one_slice() {
        let pods = || (1..=7).map(|i| pod(i, true, false)).collect::<Vec<_>>();
        let slices = || written(&plan(pods(), vec![]));
        assert_eq!(slices().len(), 3);
        assert!(plan(pods(), slices()).is_empty());
        let mut changed = pods();
        changed[6] = pod(7, false, false);
        assert_eq!(plan(changed, slices()).steps.len(), 1);
    }

    #[test]
    fn without_pods_one_empty_slice_remains() {
        let slices = written(&plan(vec![pod(1, true, false)], vec![]));
        let emptied = plan(vec![], slices);
        assert_eq!(emptied.steps.len(), 1, "{emptied:?}");
        let slices = written(&emptied);
        assert!(slices[0].object().unwrap().list_at(&["endpoints"]).is_empty());
        assert!(plan(vec![], slices).is_empty());
    }
}
