//! Ingresses, network policies, and the objects of address allocation.

use api::names;
use machinery::{Map, Object, Value};

use super::{
    apps::validate_label_selector,
    cells::{load_balancer, selector, text_or},
};
use crate::{
    edit::{each, list, maps, or, spec, text},
    errors::{Errors, Path},
    facts::{Facts, PLAIN},
    names::report,
    table::{AGE, Column, NAME},
};

static INGRESS_COLUMNS: [Column; 6] = [
    NAME,
    Column::text("Class", |o, _| text_or(o, &["spec", "ingressClassName"], "<none>")),
    Column::text("Hosts", |o, _| hosts(o).into()),
    Column::text("Address", |o, _| load_balancer(o).into()),
    Column::text("Ports", |o, _| {
        if o.list_at(&["spec", "tls"]).is_empty() { "80".into() } else { "80, 443".into() }
    }),
    AGE,
];

fn hosts(ingress: &Object) -> String {
    const MOST: usize = 3;
    let rules = ingress.list_at(&["spec", "rules"]);
    let (mut shown, mut more) = (Vec::new(), false);
    for rule in rules.iter().filter_map(Value::as_map) {
        more |= shown.len() == MOST;
        let host = text(rule, "host");
        if !more && !host.is_empty() {
            shown.push(host);
        }
    }
    match (shown.is_empty(), more) {
        (true, _) => "*".into(),
        (false, false) => shown.join(","),
        (false, true) => format!("{} + {} more...", shown.join(","), rules.len() - MOST),
    }
}

pub(crate) const INGRESSES: Facts = Facts {
    validate: |ingress, errors| {
        let path = Path::new("spec");
        let empty = Map::new();
        let spec = ingress.map_at(&["spec"]).unwrap_or(&empty);
        if list(spec, "rules").is_empty() && spec.get("defaultBackend").is_none_or(Value::is_null) {
            let value = spec.get("rules").cloned().unwrap_or_default();
            errors.invalid(&path, value, "either `defaultBackend` or `rules` must be specified");
        }
        if let Some(backend) = spec.get("defaultBackend").and_then(Value::as_map) {
            ingress_backend(backend, &path.child("defaultBackend"), errors);
        }
        for (at, rule) in maps(spec, "rules").enumerate() {
            ingress_rule(rule, &path.child("rules").index(at), errors);
        }
        for (at, tls) in maps(spec, "tls").enumerate() {
            for (n, host) in list(tls, "hosts").iter().filter_map(Value::as_str).enumerate() {
                let path = path.child("tls").index(at).child("hosts").index(n);
                host_name(host, &path, errors);
            }
        }
    },
    generation: true,
    initial_status: |_| Some(machinery::value!({"loadBalancer": {}})),
    columns: &INGRESS_COLUMNS,
    ..PLAIN
};

fn host_name(host: &str, path: &Path, errors: &mut Errors) {
    let faults = match host.contains('*') {
        true => names::wildcard_dns1123_subdomain(host),
        false => names::dns1123_subdomain(host),
    };
    report(&faults, path, host, errors);
}

fn ingress_rule(rule: &Map, path: &Path, errors: &mut Errors) {
    let host = text(rule, "host");
    if host.parse::<std::net::IpAddr>().is_ok() {
        errors.invalid(&path.child("host"), host, "must be a DNS name, not an IP address");
    } else if !host.is_empty() {
        host_name(host, &path.child("host"), errors);
    }
    let Some(http) = rule.get("http").and_then(Value::as_map) else { return };
    let path = path.child("http").child("paths");
    if list(http, "paths").is_empty() {
        errors.required(&path, "");
    }
    for (at, entry) in maps(http, "paths").enumerate() {
        let path = path.index(at);
        let target = text(entry, "path");
        match text(entry, "pathType") {
            "" => errors.required(&path.child("pathType"), "pathType must be specified"),
            "Exact" | "Prefix" => {
                if !target.starts_with('/') {
                    errors.invalid(&path.child("path"), target, "must be an absolute path");
                }
                for bad in ["//", "/./", "/../", "%2f", "%2F"] {
                    if target.contains(bad) {
                        errors.invalid(
                            &path.child("path"),
                            target,
                            &format!("must not contain '{bad}'"),
                        );
                    }
                }
            }
            "ImplementationSpecific" => {
                if !target.is_empty() && !target.starts_with('/') {
                    errors.invalid(&path.child("path"), target, "must be an absolute path");
                }
            }
            other => {
                let known = ["Exact", "ImplementationSpecific", "Prefix"];
                errors.not_supported(&path.child("pathType"), other, &known);
            }
        }
        match entry.get("backend").and_then(Value::as_map) {
            Some(backend) => ingress_backend(backend, &path.child("backend"), errors),
            None => errors.required(&path.child("backend"), ""),
        }
    }
}

fn ingress_backend(backend: &Map, path: &Path, errors: &mut Errors) {
    let resource = backend.get("resource").is_some_and(|v| !v.is_null());
    match backend.get("service").and_then(Value::as_map) {
        Some(_) if resource => {
            errors.invalid(path, "", "cannot set both resource and service backends");
        }
        None => {}
        Some(service) => {
            let (backend, path) = (path, path.child("service"));
            match text(service, "name") {
                "" => errors.required(&path.child("name"), ""),
                name => report(
                    &names::name_is_1035_label(name, false),
                    &path.child("name"),
                    name,
                    errors,
                ),
            }
            let empty = Map::new();
            let port = service.get("port").and_then(Value::as_map).unwrap_or(&empty);
            let (name, number) =
                (text(port, "name"), port.get("number").and_then(Value::as_i64).unwrap_or(0));
            if !name.is_empty() && number != 0 {
                errors.invalid(&path, "", "cannot set both port name & port number");
            } else if !name.is_empty() {
                report(&names::port_name(name), &path.child("port").child("name"), name, errors);
            } else if number != 0 {
                for fault in names::port_number(number) {
                    errors.invalid(&path.child("port").child("number"), number, &fault);
                }
            } else {
                errors.required(backend, "port name or number is required");
            }
        }
    }
}

const DEFAULT_CLASS: &str = "ingressclass.kubernetes.io/is-default-class";

static CLASS_COLUMNS: [Column; 4] = [
    Column {
        cell: |o, _| match o.annotation(DEFAULT_CLASS) {
            Some("true") => format!("{} (default)", o.name()).into(),
            _ => o.name().into(),
        },
        ..NAME
    },
    Column::text("Controller", |o, _| o.str_at(&["spec", "controller"]).into()),
    Column::text("Parameters", |o, _| {
        let parameter = |field| o.str_at(&["spec", "parameters", field]);
        if o.at(&["spec", "parameters"]).is_none() {
            return "<none>".into();
        }
        match parameter("apiGroup") {
            "" => format!("{}/{}", parameter("kind"), parameter("name")).into(),
            group => format!("{}.{group}/{}", parameter("kind"), parameter("name")).into(),
        }
    }),
    AGE,
];

pub(crate) const INGRESS_CLASSES: Facts = Facts {
    default: |class| {
        spec(class, |spec| {
            crate::edit::inside(spec, "parameters", |parameters| {
                or(parameters, "scope", "Cluster")
            });
        });
    },
    validate_update: |_, new, old, errors| {
        let path = Path::new("spec").child("controller");
        errors.immutable(&path, new.at(&["spec", "controller"]), old.at(&["spec", "controller"]));
    },
    generation: true,
    columns: &CLASS_COLUMNS,
    ..PLAIN
};

static POLICY_COLUMNS: [Column; 3] =
    [NAME, Column::text("Pod-Selector", |o, _| selector(o, &["spec", "podSelector"])), AGE];

pub(crate) const NETWORK_POLICIES: Facts = Facts {
    default: |policy| {
        spec(policy, |spec| {
            for field in ["ingress", "egress"] {
                each(spec, field, |rule| each(rule, "ports", |port| or(port, "protocol", "TCP")));
            }
            if list(spec, "policyTypes").is_empty() {
                let egress = !list(spec, "egress").is_empty();
                let types = if egress { vec!["Ingress", "Egress"] } else { vec!["Ingress"] };
                spec.insert("policyTypes", types);
            }
        });
    },
    validate: |policy, errors| {
        let path = Path::new("spec");
        if let Some(selector) = policy.map_at(&["spec", "podSelector"]) {
            validate_label_selector(selector, &path.child("podSelector"), errors);
        }
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            for (at, rule) in
                policy.list_at(&["spec", direction]).iter().filter_map(Value::as_map).enumerate()
            {
                policy_rule(rule, peers, &path.child(direction).index(at), errors);
            }
        }
        for (at, kind) in
            policy.list_at(&["spec", "policyTypes"]).iter().filter_map(Value::as_str).enumerate()
        {
            errors.one_of(&path.child("policyTypes").index(at), kind, &["Ingress", "Egress"]);
        }
    },
    generation: true,
    columns: &POLICY_COLUMNS,
    ..PLAIN
};

fn policy_rule(rule: &Map, peers: &str, path: &Path, errors: &mut Errors) {
    for (at, port) in maps(rule, "ports").enumerate() {
        let path = path.child("ports").index(at);
        errors.one_of(&path.child("protocol"), text(port, "protocol"), &["TCP", "UDP", "SCTP"]);
        if port.get("port").is_some_and(|port| !port.is_null()) {
            super::pod_validation::port_or_name(port.get("port"), &path.child("port"), errors);
        }
    }
    for (at, peer) in maps(rule, peers).enumerate() {
        let path = path.child(peers).index(at);
        let has = |field: &str| peer.get(field).is_some_and(|v| !v.is_null());
        let pods = has("podSelector") || has("namespaceSelector");
        if !pods && !has("ipBlock") {
            errors.required(&path, "must specify a peer");
        }
        if pods && has("ipBlock") {
            errors.forbidden(&path, "may not specify both ipBlock and another peer");
        }
        if let Some(block) = peer.get("ipBlock").and_then(Value::as_map) {
            let cidr = text(block, "cidr");
            if cidr.is_empty() {
                errors.required(&path.child("ipBlock").child("cidr"), "");
            } else if crate::allocation::Block::parse(cidr).is_none() {
                let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
                errors.invalid(&path.child("ipBlock").child("cidr"), cidr, why);
            }
        }
    }
}

static CIDR_COLUMNS: [Column; 3] = [
    NAME,
    Column::text("CIDRs", |o, _| {
        let all: Vec<&str> =
            o.list_at(&["spec", "cidrs"]).iter().filter_map(Value::as_str).collect();
        all.join(",").into()
    }),
    AGE,
];

pub(crate) const SERVICE_CIDRS: Facts = Facts {
    validate: |cidr, errors| {
        let path = Path::new("spec").child("cidrs");
        if cidr.list_at(&["spec", "cidrs"]).is_empty() {
            errors.required(&path, "at least one CIDR required");
        }
        for (at, text) in
            cidr.list_at(&["spec", "cidrs"]).iter().filter_map(Value::as_str).enumerate()
        {
            if crate::allocation::Block::parse(text).is_none() {
                let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
                errors.invalid(&path.index(at), text, why);
            }
        }
    },
    columns: &CIDR_COLUMNS,
    ..PLAIN
};

static ADDRESS_COLUMNS: [Column; 2] = [
    NAME,
    Column::text("ParentRef", |o, _| {
        let parent = |field| o.str_at(&["spec", "parentRef", field]).to_owned();
        let resource = match parent("group").as_str() {
            "" => parent("resource"),
            group => format!("{}.{group}", parent("resource")),
        };
        let parts = [resource, parent("namespace"), parent("name")];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/").into()
    }),
];

pub(crate) const IP_ADDRESSES: Facts = Facts {
    validate: |address, errors| {
        if address.name().parse::<std::net::IpAddr>().is_err() {
            let path = Path::new("metadata").child("name");
            errors.invalid(&path, address.name(), super::pod_validation::IP_FAULT);
        }
        let path = Path::new("spec").child("parentRef");
        for field in ["resource", "name"] {
            if address.str_at(&["spec", "parentRef", field]).is_empty() {
                errors.required(&path.child(field), "");
            }
        }
    },
    // Names of IPv6 addresses hold colons.
    name_rule: crate::strategy::NameRule::PathSegment,
    fields: &[
        "spec.parentRef.group",
        "spec.parentRef.resource",
        "spec.parentRef.namespace",
        "spec.parentRef.name",
    ],
    columns: &ADDRESS_COLUMNS,
    ..PLAIN
};
