//! The objects that every cluster has besides roles: namespaces, priority classes, the
//! `kubernetes` Service and what leads to it. Pure: what they should be, not how they are written.

use std::net::IpAddr;

use machinery::{Object, Value, value};

/// Kind, object. Written in this order when they are missing.
pub struct Desired {
    pub group: &'static str,
    pub resource: &'static str,
    pub object: Object,
    /// Brings an existing object in line; `None` leaves what exists alone.
    pub update: Option<fn(existing: &Object, desired: &Object) -> Object>,
}

/// What the cluster is told about itself.
pub struct Facts<'a> {
    pub client_ca_pem: &'a str,
    pub service_cidrs: &'a [String],
    pub advertise: Option<(IpAddr, u16)>,
    pub one_of_many: bool,
}

pub fn desired(facts: &Facts<'_>) -> Vec<Desired> {
    let mut all: Vec<Desired> =
        NAMESPACES.iter().map(|name| missing("", "namespaces", namespace(name))).collect();
    all.extend(
        PRIORITIES
            .iter()
            .map(|p| missing("scheduling.k8s.io", "priorityclasses", priority_class(p))),
    );
    all.push(Desired {
        group: "",
        resource: "configmaps",
        object: authentication(facts.client_ca_pem),
        update: Some(replace_data),
    });
    if !facts.service_cidrs.is_empty() {
        all.push(missing("networking.k8s.io", "servicecidrs", service_cidr(facts.service_cidrs)));
    }
    let port = facts.advertise.map_or(6443, |(_, port)| port);
    if let Some(ip) = facts.service_cidrs.first().and_then(|block| first_address(block)) {
        all.push(Desired {
            group: "",
            resource: "services",
            object: service(ip, port),
            update: Some(replace_ports),
        });
    }
    if let Some((ip, port)) = facts.advertise {
        let (endpoints, slice) = (endpoints(ip, port), slice(ip, port));
        let update: [fn(&Object, &Object) -> Object; 2] = if facts.one_of_many {
            [join_endpoints, join_slice]
        } else {
            [replace_subsets, replace_slice]
        };
        all.push(Desired {
            group: "",
            resource: "endpoints",
            object: endpoints,
            update: Some(update[0]),
        });
        let (group, resource) = ("discovery.k8s.io", "endpointslices");
        all.push(Desired { group, resource, object: slice, update: Some(update[1]) });
    }
    all
}

const NAMESPACES: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "default"];

/// Name, value, meaning.
const PRIORITIES: [(&str, i64, &str); 2] = [
    ("system-node-critical", 2_000_001_000, "For pods that a node cannot do without."),
    (
        "system-cluster-critical",
        2_000_000_000,
        "For pods that the cluster cannot do without; another node will do.",
    ),
];

fn missing(group: &'static str, resource: &'static str, object: Object) -> Desired {
    Desired { group, resource, object, update: None }
}

fn object(value: Value) -> Object {
    Object::from_value(value).unwrap_or_default()
}

fn namespace(name: &str) -> Object {
    Object::new("v1", "Namespace", "", name)
}

fn priority_class((name, value, description): &(&str, i64, &str)) -> Object {
    object(value!({
        "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
        "metadata": {"name": name},
        "value": value, "description": description, "preemptionPolicy": "PreemptLowerPriority",
    }))
}

/// Where extension servers learn whom to trust.
fn authentication(client_ca_pem: &str) -> Object {
    object(value!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
        "data": {"client-ca-file": client_ca_pem},
    }))
}

fn service_cidr(blocks: &[String]) -> Object {
    object(value!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": blocks},
    }))
}

fn service(ip: IpAddr, port: u16) -> Object {
    object(value!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "clusterIP": ip.to_string(), "type": "ClusterIP", "sessionAffinity": "None", "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}],
        },
    }))
}

fn endpoints(ip: IpAddr, port: u16) -> Object {
    object(value!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [{
            "addresses": [{"ip": ip.to_string()}],
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        }],
    }))
}

fn slice(ip: IpAddr, port: u16) -> Object {
    object(value!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": if ip.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [ip.to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    }))
}

fn replace_data(existing: &Object, desired: &Object) -> Object {
    let mut merged = existing.clone();
    for (key, value) in desired.map_at(&["data"]).into_iter().flat_map(|data| data.iter()) {
        merged.root_mut().map_entry("data").insert(key.clone(), value.clone());
    }
    merged
}

fn replace_ports(existing: &Object, desired: &Object) -> Object {
    let port = |object: &Object| {
        object.list_at(&["spec", "ports"]).first().and_then(|p| p.get("targetPort").cloned())
    };
    let mut merged = existing.clone();
    if port(existing) != port(desired) {
        merged.set_at(&["spec", "ports"], desired.list_at(&["spec", "ports"]).to_vec());
    }
    merged
}

fn replace(existing: &Object, desired: &Object, fields: &[&str]) -> Object {
    let mut merged = existing.clone();
    for &field in fields {
        merged.root_mut().insert(field, desired.list_at(&[field]).to_vec());
    }
    merged
}

fn replace_subsets(existing: &Object, desired: &Object) -> Object {
    replace(existing, desired, &["subsets"])
}

fn replace_slice(existing: &Object, desired: &Object) -> Object {
    replace(existing, desired, &["endpoints", "ports"])
}

/// Adds what is missing of a list, keeping what others wrote.
fn join(existing: &[Value], desired: &[Value], key: fn(&Value) -> Option<Value>) -> Vec<Value> {
    let mut joined = existing.to_vec();
    for item in desired {
        if !joined.iter().any(|held| key(held) == key(item)) {
            joined.push(item.clone());
        }
    }
    joined
}

fn join_slice(existing: &Object, desired: &Object) -> Object {
    let mut merged = existing.clone();
    let addresses = |endpoint: &Value| endpoint.get("addresses").cloned();
    let joined = join(existing.list_at(&["endpoints"]), desired.list_at(&["endpoints"]), addresses);
    merged.root_mut().insert("endpoints", joined);
    merged
}

fn join_endpoints(existing: &Object, desired: &Object) -> Object {
    let mut merged = existing.clone();
    let of = |object: &Object| -> Vec<Value> {
        let first = object
            .list_at(&["subsets"])
            .first()
            .and_then(|subset| subset.get("addresses").cloned());
        first.and_then(|list| list.as_list().map(<[Value]>::to_vec)).unwrap_or_default()
    };
    let joined = join(&of(existing), &of(desired), |address| address.get("ip").cloned());
    let mut subsets = desired.list_at(&["subsets"]).to_vec();
    if let Some(subset) = subsets.first_mut().and_then(Value::as_map_mut) {
        subset.insert("addresses", joined);
    }
    merged.root_mut().insert("subsets", subsets);
    merged
}

/// The first address of a block behind that of the network itself.
fn first_address(block: &str) -> Option<IpAddr> {
    let (base, _) = block.split_once('/')?;
    Some(match base.parse().ok()? {
        IpAddr::V4(v4) => IpAddr::V4((u32::from(v4) + 1).into()),
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) + 1).into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubernetes_service_has_the_first_address() {
        let cidrs = ["10.96.0.0/12".to_owned()];
        let advertise = Some(("192.0.2.1".parse().unwrap(), 6443));
        let facts =
            Facts { client_ca_pem: "ca", service_cidrs: &cidrs, advertise, one_of_many: false };
        let all = desired(&facts);
        let find = |resource: &str| all.iter().find(|d| d.resource == resource).unwrap();
        assert_eq!(find("services").object.str_at(&["spec", "clusterIP"]), "10.96.0.1");
        let endpoints = find("endpoints");
        assert_eq!(
            endpoints.update.unwrap()(&endpoints.object, &endpoints.object),
            endpoints.object
        );
    }

    #[test]
    fn servers_on_one_store_keep_each_others_endpoints() {
        let at =
            |ip: &str| (endpoints(ip.parse().unwrap(), 6443), slice(ip.parse().unwrap(), 6443));
        let (one, two) = (at("192.0.2.1"), at("192.0.2.2"));
        let joined = join_endpoints(&one.0, &two.0);
        let addresses =
            joined.list_at(&["subsets"])[0].get("addresses").unwrap().as_list().unwrap().len();
        assert_eq!(addresses, 2);
        assert_eq!(
            join_slice(&join_slice(&one.1, &two.1), &two.1).list_at(&["endpoints"]).len(),
            2
        );
        assert_eq!(
            replace_slice(&one.1, &two.1).list_at(&["endpoints"]),
            two.1.list_at(&["endpoints"])
        );
    }
}
