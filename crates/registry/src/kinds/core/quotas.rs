//! LimitRanges, ResourceQuotas, PodTemplates and ReplicationControllers.

use machinery::{Map, Object, Value};

use crate::{
    edit::{each, inside, or, spec, text},
    errors::Path,
    facts::{Facts, PLAIN},
    kinds::{
        cells::{CONTAINERS, IMAGES, OWN_TEMPLATE_CONTAINERS, OWN_TEMPLATE_IMAGES, labels, number},
        pod_spec::{self, canonical_quantities},
        pod_validation,
    },
    request::Propagation,
    strategy::APPS_SCALE,
    table::{AGE, Column, NAME},
};

pub(crate) const LIMIT_RANGES: Facts = Facts {
    default: |range| {
        spec(range, |spec| {
            each(spec, "limits", |limit| {
                for field in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
                    inside(limit, field, canonical_quantities);
                }
                if text(limit, "type") == "Container" {
                    fill(limit, "max", "default");
                    fill(limit, "default", "defaultRequest");
                    fill(limit, "min", "defaultRequest");
                }
            });
        });
    },
    validate: |range, errors| {
        for (at, limit) in
            range.list_at(&["spec", "limits"]).iter().filter_map(Value::as_map).enumerate()
        {
            let path = Path::new("spec").child("limits").index(at);
            if text(limit, "type").is_empty() {
                errors.required(&path.child("type"), "");
            }
        }
    },
    create_on_update: true,
    columns: &[
        NAME,
        Column {
            kind: "date",
            ..Column::text("Created At", |o, _| o.str_at(&["metadata", "creationTimestamp"]).into())
        },
    ],
    ..PLAIN
};

/// Copies what the other list lacks.
fn fill(limit: &mut Map, from: &str, to: &str) {
    let Some(source) = limit.get(from).and_then(Value::as_map).cloned() else { return };
    let target = limit.map_entry(to);
    for (name, value) in source.iter() {
        or(target, name, value.clone());
    }
}

static QUOTA_COLUMNS: [Column; 4] = [
    NAME,
    Column::text("Request", |o, _| usage(o, false).into()),
    Column::text("Limit", |o, _| usage(o, true).into()),
    AGE,
];

/// `cpu: 1/4, pods: 2/10`, of limits or of everything else.
fn usage(quota: &Object, limits: bool) -> String {
    let hard = quota.map_at(&["status", "hard"]).into_iter().flat_map(Map::iter);
    let parts: Vec<String> = hard
        .filter(|(name, _)| name.starts_with("limits") == limits)
        .map(|(name, hard)| {
            let used = quota.str_at(&["status", "used", name]);
            let used = if used.is_empty() { "0" } else { used };
            format!("{name}: {used}/{}", hard.as_str().unwrap_or_default())
        })
        .collect();
    parts.join(", ")
}

pub(crate) const RESOURCE_QUOTAS: Facts = Facts {
    default: |quota| {
        spec(quota, |spec| inside(spec, "hard", canonical_quantities));
        inside(quota.root_mut(), "status", |status| {
            inside(status, "hard", canonical_quantities);
            inside(status, "used", canonical_quantities);
        });
    },
    returns_deleted: true,
    columns: &QUOTA_COLUMNS,
    ..PLAIN
};

static TEMPLATE_COLUMNS: [Column; 4] = [
    NAME,
    OWN_TEMPLATE_CONTAINERS,
    OWN_TEMPLATE_IMAGES,
    Column::text("Pod Labels", |o, _| labels(o.map_at(&["template", "metadata", "labels"]))),
];

pub(crate) const POD_TEMPLATES: Facts = Facts {
    default: |object| {
        inside(object.root_mut(), "template", |template| {
            pod_spec::default(template.map_entry("spec"))
        });
    },
    validate: |object, errors| {
        let spec = object.map_at(&["template", "spec"]).cloned().unwrap_or_default();
        pod_validation::validate(&spec, &Path::new("template").child("spec"), errors);
    },
    generation: true,
    generation_fields: &["template"],
    returns_deleted: true,
    columns: &TEMPLATE_COLUMNS,
    ..PLAIN
};

static CONTROLLER_COLUMNS: [Column; 8] = [
    NAME,
    Column::integer("Desired", |o, _| number(o, &["spec", "replicas"])),
    Column::integer("Current", |o, _| number(o, &["status", "replicas"])),
    Column::integer("Ready", |o, _| number(o, &["status", "readyReplicas"])),
    AGE,
    CONTAINERS,
    IMAGES,
    Column::text("Selector", |o, _| labels(o.map_at(&["spec", "selector"]))).wide(),
];

pub(crate) const REPLICATION_CONTROLLERS: Facts = Facts {
    default: |controller| {
        let labels = controller.map_at(&["spec", "template", "metadata", "labels"]).cloned();
        if let Some(labels) = labels.filter(|labels| !labels.is_empty()) {
            if controller.labels().is_none_or(Map::is_empty) {
                controller.metadata_mut().insert("labels", labels.clone());
            }
            spec(controller, |spec| {
                if spec.get("selector").and_then(Value::as_map).is_none_or(Map::is_empty) {
                    spec.insert("selector", labels);
                }
            });
        }
        spec(controller, |spec| {
            or(spec, "replicas", 1);
            inside(spec, "template", |template| pod_spec::default(template.map_entry("spec")));
        });
    },
    validate: |controller, errors| {
        let path = Path::new("spec");
        if controller.map_at(&["spec", "selector"]).is_none_or(Map::is_empty) {
            errors.required(&path.child("selector"), "");
        }
        match controller.map_at(&["spec", "template"]) {
            None => errors.required(&path.child("template"), ""),
            Some(template) => {
                let spec =
                    template.get("spec").and_then(Value::as_map).cloned().unwrap_or_default();
                pod_validation::validate(&spec, &path.child("template").child("spec"), errors);
            }
        }
        errors.non_negative(&path.child("replicas"), controller.i64_at(&["spec", "replicas"]));
    },
    generation: true,
    propagation: Some(Propagation::Orphan),
    fields: &["status.replicas"],
    field_value: Some(|o, _| o.i64_at(&["status", "replicas"]).unwrap_or(0).to_string().into()),
    scale: Some(&APPS_SCALE),
    columns: &CONTROLLER_COLUMNS,
    ..PLAIN
};
