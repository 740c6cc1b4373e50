//! Endpoints and EndpointSlices.

use api::names;
use machinery::{Map, Object, Value};

use crate::{
    edit::{each, list, maps, or, text},
    errors::{Errors, Path},
    facts::{Facts, PLAIN},
    kinds::pod_validation::IP_FAULT,
    names::report,
    table::{AGE, Column, NAME},
};

static COLUMNS: [Column; 3] = [NAME, Column::text("Endpoints", |o, _| addresses(o).into()), AGE];

fn addresses(endpoints: &Object) -> String {
    let (mut shown, mut more) = (Vec::new(), 0);
    for subset in endpoints.list_at(&["subsets"]).iter().filter_map(Value::as_map) {
        let ports: Vec<i64> = maps(subset, "ports")
            .map(|p| p.get("port").and_then(Value::as_i64).unwrap_or(0))
            .collect();
        for address in maps(subset, "addresses") {
            let ip = text(address, "ip");
            let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
            let places = match ports.as_slice() {
                [] => vec![ip.to_owned()],
                ports => ports.iter().map(|port| format!("{host}:{port}")).collect(),
            };
            for place in places {
                if shown.len() < 3 { shown.push(place) } else { more += 1 }
            }
        }
    }
    match (shown.is_empty(), more) {
        (true, _) => "<none>".into(),
        (false, 0) => shown.join(","),
        (false, more) => format!("{} + {more} more...", shown.join(",")),
    }
}

pub(crate) const ENDPOINTS: Facts = Facts {
    default: |endpoints| {
        each(endpoints.root_mut(), "subsets", |s| each(s, "ports", |p| or(p, "protocol", "TCP")))
    },
    validate: |endpoints, errors| {
        for (at, subset) in
            endpoints.list_at(&["subsets"]).iter().filter_map(Value::as_map).enumerate()
        {
            let path = Path::new("subsets").index(at);
            if list(subset, "addresses").is_empty() && list(subset, "notReadyAddresses").is_empty()
            {
                errors.required(&path, "must specify `addresses` or `notReadyAddresses`");
            }
            for field in ["addresses", "notReadyAddresses"] {
                for (at, address) in maps(subset, field).enumerate() {
                    let path = path.child(field).index(at);
                    address_at(text(address, "ip"), &path.child("ip"), errors);
                }
            }
            ports(subset, &path, errors);
        }
    },
    create_on_update: true,
    columns: &COLUMNS,
    ..PLAIN
};

fn address_at(ip: &str, path: &Path, errors: &mut Errors) {
    match ip.parse::<std::net::IpAddr>() {
        Err(_) => {
            errors.invalid(path, ip, IP_FAULT);
            errors.invalid(path, ip, "must be a valid IP address");
        }
        Ok(ip) if ip.is_loopback() => {
            let why = "may not be in the loopback range (127.0.0.0/8, ::1/128)";
            errors.invalid(path, ip.to_string(), why);
        }
        Ok(ip) if ip.is_unspecified() => {
            errors.invalid(path, ip.to_string(), &format!("may not be unspecified ({ip})"));
        }
        Ok(_) => {}
    }
}

fn ports(holder: &Map, path: &Path, errors: &mut Errors) {
    let several = list(holder, "ports").len() > 1;
    for (at, port) in maps(holder, "ports").enumerate() {
        let path = path.child("ports").index(at);
        match text(port, "name") {
            "" if several => errors.required(&path.child("name"), ""),
            "" => {}
            name => report(&names::dns1123_label(name), &path.child("name"), name, errors),
        }
        if let Some(number) = port.get("port").and_then(Value::as_i64) {
            for fault in names::port_number(number) {
                errors.invalid(&path.child("port"), number, &fault);
            }
        }
        errors.one_of(&path.child("protocol"), text(port, "protocol"), &["SCTP", "TCP", "UDP"]);
    }
}

static SLICE_COLUMNS: [Column; 5] = [
    NAME,
    Column::text("AddressType", |o, _| o.str_at(&["addressType"]).into()),
    Column::text("Ports", |o, _| slice_ports(o).into()),
    Column::text("Endpoints", |o, _| slice_endpoints(o).into()),
    AGE,
];

fn slice_ports(slice: &Object) -> String {
    let ports = slice.list_at(&["ports"]);
    if slice.at(&["ports"]).is_none() || ports.is_empty() {
        return "<unset>".into();
    }
    let shown: Vec<String> = ports
        .iter()
        .take(3)
        .map(|port| {
            port.get("port").and_then(Value::as_i64).map_or("*".into(), |number| number.to_string())
        })
        .collect();
    match ports.len().saturating_sub(3) {
        0 => shown.join(","),
        more => format!("{} + {more} more...", shown.join(",")),
    }
}

fn slice_endpoints(slice: &Object) -> String {
    let all: Vec<&str> = slice
        .list_at(&["endpoints"])
        .iter()
        .filter_map(Value::as_map)
        .flat_map(|endpoint| list(endpoint, "addresses"))
        .filter_map(Value::as_str)
        .collect();
    match (all.len(), all.len().saturating_sub(3)) {
        (0, _) => "<unset>".into(),
        (_, 0) => all.join(","),
        (_, more) => format!("{} + {more} more...", all[..3].join(",")),
    }
}

pub(crate) const ENDPOINT_SLICES: Facts = Facts {
    default: |slice| {
        each(slice.root_mut(), "ports", |port| {
            if !port.contains_key("name") {
                port.insert("name", "");
            }
            or(port, "protocol", "TCP");
        });
    },
    validate: |slice, errors| {
        let kind = slice.str_at(&["addressType"]);
        match kind {
            "" => errors.required(&"addressType".into(), ""),
            kind => errors.one_of(&"addressType".into(), kind, &["FQDN", "IPv4", "IPv6"]),
        }
        let endpoints = slice.list_at(&["endpoints"]);
        if endpoints.len() > 1000 {
            errors.too_many(&"endpoints".into(), endpoints.len(), 1000);
        }
        for (at, endpoint) in endpoints.iter().filter_map(Value::as_map).enumerate() {
            let path = Path::new("endpoints").index(at).child("addresses");
            let addresses = list(endpoint, "addresses");
            if addresses.is_empty() {
                errors.required(&path, "");
            }
            for (at, address) in addresses.iter().filter_map(Value::as_str).enumerate() {
                let item = path.index(at);
                match (kind, address.parse::<std::net::IpAddr>()) {
                    ("IPv4", Ok(ip)) if !ip.is_ipv4() => {
                        errors.invalid(&path, address, "must be an IPv4 address")
                    }
                    ("IPv6", Ok(ip)) if !ip.is_ipv6() => {
                        errors.invalid(&path, address, "must be an IPv6 address")
                    }
                    ("IPv4" | "IPv6", _) => address_at(address, &item, errors),
                    _ => report(&names::dns1123_subdomain(address), &item, address, errors),
                }
            }
        }
        for (at, port) in slice.list_at(&["ports"]).iter().filter_map(Value::as_map).enumerate() {
            let path = Path::new("ports").index(at).child("protocol");
            errors.one_of(&path, text(port, "protocol"), &["SCTP", "TCP", "UDP"]);
        }
    },
    validate_update: |_, new, old, errors| {
        errors.immutable(&"addressType".into(), new.at(&["addressType"]), old.at(&["addressType"]));
    },
    generation: true,
    generation_fields: &["endpoints", "ports", "addressType"],
    columns: &SLICE_COLUMNS,
    ..PLAIN
};
