//! Nodes.

use std::collections::BTreeSet;

use machinery::{Map, Object, Value};

use crate::{
    compare::semantically_equal,
    edit::{copy_field, inside, maps, text},
    errors::{Errors, Path},
    facts::{Facts, PLAIN, field_text},
    kinds::{
        cells::{condition, text_or},
        pod_spec::canonical_quantities,
    },
    names,
    table::{AGE, Column, NAME},
};

/// `podCIDR` is the first of `podCIDRs`; who sets one means both.
fn same_blocks(node: &mut Object) {
    let one = node.str_at(&["spec", "podCIDR"]).to_owned();
    let first =
        node.list_at(&["spec", "podCIDRs"]).first().and_then(Value::as_str).map(str::to_owned);
    match first {
        Some(first) if one.is_empty() => node.set_at(&["spec", "podCIDR"], first),
        first if !one.is_empty() && first.as_ref() != Some(&one) => {
            node.set_at(&["spec", "podCIDRs"], vec![one])
        }
        _ => {}
    }
}

const ROLE_PREFIX: &str = "node-role.kubernetes.io/";

static COLUMNS: [Column; 10] = [
    NAME,
    Column::text("Status", |node, _| {
        let mut words = vec![match condition(node, "Ready") {
            Some("True") => "Ready",
            Some(_) => "NotReady",
            None => "Unknown",
        }];
        if node.bool_at(&["spec", "unschedulable"]) {
            words.push("SchedulingDisabled");
        }
        words.join(",").into()
    }),
    Column::text("Roles", |node, _| roles(node).into()),
    AGE,
    Column::text("Version", |node, _| {
        node.str_at(&["status", "nodeInfo", "kubeletVersion"]).into()
    }),
    Column::text("Internal-IP", |node, _| address(node, "InternalIP")).wide(),
    Column::text("External-IP", |node, _| address(node, "ExternalIP")).wide(),
    Column::text("OS-Image", |node, _| {
        text_or(node, &["status", "nodeInfo", "osImage"], "<unknown>")
    })
    .wide(),
    Column::text("Kernel-Version", |node, _| {
        let info = |field| node.str_at(&["status", "nodeInfo", field]);
        let version = match info("kernelVersion") {
            "" => "<unknown>",
            version => version,
        };
        match info("architecture") {
            "" => version.into(),
            architecture => format!("{version} ({architecture})").into(),
        }
    })
    .wide(),
    Column::text("Container-Runtime", |node, _| {
        text_or(node, &["status", "nodeInfo", "containerRuntimeVersion"], "<unknown>")
    })
    .wide(),
];

fn roles(node: &Object) -> String {
    let labels = node.labels().into_iter().flat_map(Map::iter);
    let roles: BTreeSet<&str> = labels
        .filter_map(|(key, value)| match key.as_str() {
            "kubernetes.io/role" => value.as_str(),
            key => key.strip_prefix(ROLE_PREFIX),
        })
        .filter(|role| !role.is_empty())
        .collect();
    if roles.is_empty() { "<none>".into() } else { roles.into_iter().collect::<Vec<_>>().join(",") }
}

fn address(node: &Object, kind: &str) -> Value {
    let addresses = node.list_at(&["status", "addresses"]).iter().filter_map(Value::as_map);
    let found = addresses.into_iter().find(|a| text(a, "type") == kind);
    found.map_or("<none>", |address| text(address, "address")).into()
}

pub(crate) const FACTS: Facts = Facts {
    default: |node| {
        same_blocks(node);
        inside(node.root_mut(), "status", |status| {
            for field in ["capacity", "allocatable"] {
                inside(status, field, canonical_quantities);
            }
            if let (None, Some(capacity)) =
                (status.get("allocatable"), status.get("capacity").cloned())
            {
                status.insert("allocatable", capacity);
            }
        });
    },
    // The kubelet registers with its status in the same request.
    initial_status: |node| Some(node.at(&["status"]).cloned().unwrap_or_else(|| Map::new().into())),
    prepare_update: |subresource, new, old| {
        if subresource == "status" {
            copy_field(new, old, &["spec"]);
        }
    },
    validate: |node, errors| taints(node, errors),
    validate_update: |subresource, new, old, errors| {
        if !subresource.is_empty() {
            return;
        }
        let path = Path::new("spec");
        for (field, label) in [
            ("podCIDRs", "node updates may not change podCIDR except from \"\" to valid"),
            ("providerID", "node updates may not change providerID except from \"\" to valid"),
        ] {
            let before = old
                .at(&["spec", field])
                .filter(|v| !matches!(v, Value::Null) && v.as_str() != Some(""));
            if before.is_some() && !semantically_equal(new.at(&["spec", field]), before) {
                errors.forbidden(&path.child(field), label);
            }
        }
    },
    fields: &["spec.unschedulable"],
    field_value: Some(|node, field| match field_text(node, field) {
        empty if empty.is_empty() => "false".into(),
        text => text,
    }),
    columns: &COLUMNS,
    ..PLAIN
};

fn taints(node: &Object, errors: &mut Errors) {
    let path = Path::new("metadata").child("taints");
    let mut seen = BTreeSet::new();
    let spec = node.map_at(&["spec"]).cloned().unwrap_or_default();
    for (at, taint) in maps(&spec, "taints").enumerate() {
        let path = path.index(at);
        names::qualified_at(text(taint, "key"), &path.child("key"), errors);
        names::report(
            &api::names::label_value(text(taint, "value")),
            &path.child("value"),
            text(taint, "value"),
            errors,
        );
        match text(taint, "effect") {
            "" => errors.required(&path.child("effect"), ""),
            effect => errors.one_of(
                &path.child("effect"),
                effect,
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            ),
        }
        if !seen.insert((text(taint, "key").to_owned(), text(taint, "effect").to_owned())) {
            errors.push(
                &path,
                "FieldValueDuplicate",
                format!(
                    "Duplicate value: {}: taints must be unique by key and effect pair",
                    taint_json(taint)
                ),
            );
        }
    }
}

/// A taint as upstream prints its internal form.
fn taint_json(taint: &Map) -> String {
    let (key, value, effect) = (text(taint, "key"), text(taint, "value"), text(taint, "effect"));
    let added = match text(taint, "timeAdded") {
        "" => "null".to_owned(),
        time => format!("{time:?}"),
    };
    format!("{{\"Key\":{key:?},\"Value\":{value:?},\"Effect\":{effect:?},\"TimeAdded\":{added}}}")
}
