//! Rules for values that many kinds hold: addresses, label selectors, conditions.

use std::net::IpAddr;

use api::names;

use super::{Errors, FieldPath};
use crate::{Map, Value};

/// An IP address; leading zeros and IPv4 mapped into IPv6 are refused.
pub fn validate_ip(text: &str, path: &FieldPath, errors: &mut Errors) {
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_some() => {
            errors.invalid(path, text, "must not be an IPv4-mapped IPv6 address");
        }
        Ok(_) => {}
        Err(_) => {
            let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.invalid(path, text, detail);
        }
    }
}

/// A network such as `10.0.0.0/8` without bits beyond its prefix.
pub fn validate_cidr(text: &str, path: &FieldPath, errors: &mut Errors) {
    let Some((ip, bits)) = parse_cidr(text) else {
        let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
        return errors.invalid(path, text, detail);
    };
    let (value, width) = match ip {
        IpAddr::V4(ip) => (u128::from(u32::from(ip)), 32),
        IpAddr::V6(ip) => (u128::from(ip), 128),
    };
    let host_bits = width - bits;
    let mask = if host_bits == 128 { u128::MAX } else { (1u128 << host_bits) - 1 };
    if value & mask != 0 {
        errors.invalid(path, text, "must not have bits set beyond the prefix length");
    }
}

fn parse_cidr(text: &str) -> Option<(IpAddr, u32)> {
    let (ip, bits) = text.split_once('/')?;
    let ip: IpAddr = ip.parse().ok()?;
    let canonical = !bits.is_empty() && (bits == "0" || !bits.starts_with(['0', '+']));
    let bits: u32 = bits.parse().ok().filter(|_| canonical)?;
    let width = if ip.is_ipv4() { 32 } else { 128 };
    (bits <= width).then_some((ip, bits))
}

/// Keys and values of a map of labels; all errors are of the map, as in Kubernetes.
pub fn validate_labels(labels: &Map, path: &FieldPath, errors: &mut Errors) {
    for (key, value) in labels.iter() {
        errors.faults(path, key, names::label_key(key));
        let value = value.as_str().unwrap_or_default();
        errors.faults(path, value, names::label_value(value));
    }
}

/// A `LabelSelector` in object form.
pub fn validate_label_selector(selector: &Map, path: &FieldPath, errors: &mut Errors) {
    if let Some(Value::Map(labels)) = selector.get("matchLabels") {
        validate_labels(labels, &path.child("matchLabels"), errors);
    }
    let list = selector.get("matchExpressions").and_then(Value::as_list).unwrap_or(&[]);
    for (at, requirement) in list.iter().enumerate() {
        let expressions = path.child("matchExpressions");
        validate_requirement(requirement, &expressions.index(at), errors);
    }
}

fn validate_requirement(requirement: &Value, path: &FieldPath, errors: &mut Errors) {
    let text = |key| requirement.get(key).and_then(Value::as_str).unwrap_or_default();
    let values = requirement.get("values").and_then(Value::as_list).unwrap_or(&[]);
    match text("operator") {
        "In" | "NotIn" if values.is_empty() => errors.required(
            &path.child("values"),
            "must be specified when `operator` is 'In' or 'NotIn'",
        ),
        "Exists" | "DoesNotExist" if !values.is_empty() => errors.forbidden(
            &path.child("values"),
            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
        ),
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => errors.invalid(&path.child("operator"), other, "not a valid selector operator"),
    }
    errors.faults(&path.child("key"), text("key"), names::label_key(text("key")));
    for (at, value) in values.iter().enumerate() {
        let value = value.as_str().unwrap_or_default();
        let list = path.child("values");
        errors.faults(&list.index(at), value, names::label_value(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    #[test]
    fn addresses_and_networks() {
        let path = FieldPath::root("f");
        let count = |check: fn(&str, &FieldPath, &mut Errors), text: &str| {
            let mut errors = Errors::new();
            check(text, &path, &mut errors);
            errors.len()
        };
        for (text, faults) in
            [("10.0.0.1", 0), ("::1", 0), ("010.0.0.1", 1), ("::ffff:1.2.3.4", 1), ("x", 1)]
        {
            assert_eq!(count(validate_ip, text), faults, "{text}");
        }
        for (text, faults) in [
            ("10.0.0.0/8", 0),
            ("::/0", 0),
            ("0.0.0.0/0", 0),
            ("10.0.0.1/8", 1),
            ("10.0.0.0/33", 1),
            ("10.0.0.0/08", 1),
            ("x", 1),
        ] {
            assert_eq!(count(validate_cidr, text), faults, "{text}");
        }
    }

    #[test]
    fn selectors_in_object_form() {
        let mut errors = Errors::new();
        let selector = value!({
            "matchLabels": {"a b": "c"},
            "matchExpressions": [
                {"key": "k", "operator": "In"},
                {"key": "k", "operator": "Exists", "values": ["v"]},
                {"key": "k", "operator": "Is"},
            ],
        });
        validate_label_selector(
            selector.as_map().unwrap(),
            &FieldPath::root("spec").child("selector"),
            &mut errors,
        );
        let fields: Vec<&str> = errors.causes().iter().map(|c| c.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "spec.selector.matchLabels",
                "spec.selector.matchExpressions[0].values",
                "spec.selector.matchExpressions[1].values",
                "spec.selector.matchExpressions[2].operator",
            ]
        );
    }
}
