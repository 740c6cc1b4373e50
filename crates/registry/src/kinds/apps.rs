//! Deployments, ReplicaSets, StatefulSets, DaemonSets and ControllerRevisions.

use machinery::{Map, Object, Value, value};

use super::{
    cells::{CONTAINERS, IMAGES, SELECTOR, labels, number},
    pod_spec, pod_validation,
};
use crate::{
    compare::semantically_equal,
    edit::{each, or, spec},
    errors::{Errors, Path},
    facts::{Facts, PLAIN},
    selector::label_selector,
    strategy::APPS_SCALE,
    table::{AGE, Column, NAME},
};

/// Defaults of `spec.template`.
pub(crate) fn default_template(spec: &mut Map) {
    pod_spec::default(spec.map_entry("template").map_entry("spec"));
}

/// A selector that is set, is not empty and selects the template; the template itself.
pub(crate) fn validate_selector_and_template(object: &Object, kind: &str, errors: &mut Errors) {
    let path = Path::new("spec");
    let selected = object.at(&["spec", "selector"]);
    match selected.and_then(Value::as_map) {
        None => errors.required(&path.child("selector"), ""),
        Some(selector) => {
            validate_label_selector(selector, &path.child("selector"), errors);
            if label_selector(selected).is_everything() {
                let why = format!("empty selector is invalid for {kind}");
                errors.invalid(&path.child("selector"), Value::Map(selector.clone()), &why);
            }
        }
    }
    let labels = object.map_at(&["spec", "template", "metadata", "labels"]);
    let label = |key: &str| labels?.get(key)?.as_str();
    if !label_selector(selected).matches(label) {
        let value = labels.cloned().map_or(Value::Null, Value::Map);
        let path = path.child("template").child("metadata").child("labels");
        errors.invalid(&path, value, "`selector` does not match template `labels`");
    }
    validate_template(object, kind, &["Always"], errors);
}

/// The pod template of a workload; `policies` are the restart policies that it may have.
pub(crate) fn validate_template(
    object: &Object,
    kind: &str,
    policies: &[&str],
    errors: &mut Errors,
) {
    let path = Path::new("spec").child("template");
    let template = object.map_at(&["spec", "template"]);
    crate::names::labels(
        template.and_then(|t| t.at(&["metadata", "labels"])?.as_map()),
        &path.child("metadata").child("labels"),
        errors,
    );
    let spec = template.and_then(|t| t.get("spec")?.as_map()).cloned().unwrap_or_default();
    pod_validation::validate(&spec, &path.child("spec"), errors);
    let policy = spec.get("restartPolicy").and_then(Value::as_str).unwrap_or_default();
    if !policies.contains(&policy) && matches!(policy, "Always" | "OnFailure" | "Never") {
        errors.not_supported(&path.child("spec").child("restartPolicy"), policy, policies);
    }
    if policies == ["Always"] && spec.get("activeDeadlineSeconds").is_some_and(|v| !v.is_null()) {
        let why = match kind {
            "deployment" => "activeDeadlineSeconds in ReplicaSet is not Supported".to_owned(),
            "daemonset" => "activeDeadlineSeconds in DaemonSet is not Supported".to_owned(),
            "statefulset" => "activeDeadlineSeconds in StatefulSet is not Supported".to_owned(),
            _ => "activeDeadlineSeconds in ReplicaSet is not Supported".to_owned(),
        };
        errors.forbidden(&path.child("spec").child("activeDeadlineSeconds"), &why);
    }
}

/// The terms of a `LabelSelector`.
pub(crate) fn validate_label_selector(selector: &Map, path: &Path, errors: &mut Errors) {
    crate::names::labels(
        selector.get("matchLabels").and_then(Value::as_map),
        &path.child("matchLabels"),
        errors,
    );
    let terms = selector.get("matchExpressions").and_then(Value::as_list).unwrap_or(&[]);
    for (at, term) in terms.iter().filter_map(Value::as_map).enumerate() {
        let path = path.child("matchExpressions").index(at);
        let values = term.get("values").and_then(Value::as_list).unwrap_or(&[]);
        let operator = term.get("operator").and_then(Value::as_str).unwrap_or_default();
        match operator {
            "In" | "NotIn" if values.is_empty() => {
                errors.required(
                    &path.child("values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                );
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.forbidden(&path.child("values"), why);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                errors.invalid(&path.child("operator"), other, "not a valid selector operator")
            }
        }
        let key = term.get("key").and_then(Value::as_str).unwrap_or_default();
        crate::names::qualified_at(key, &path.child("key"), errors);
    }
}

fn non_negatives(object: &Object, fields: &[&str], errors: &mut Errors) {
    for field in fields {
        errors.non_negative(&Path::new("spec").child(field), object.i64_at(&["spec", field]));
    }
}

fn selector_stays(subresource: &str, new: &Object, old: &Object, errors: &mut Errors) {
    if subresource.is_empty() {
        let path = "spec.selector".into();
        errors.immutable(&path, new.at(&["spec", "selector"]), old.at(&["spec", "selector"]));
    }
}

/// A count or a percentage.
fn count_or_percent(value: Option<&Value>, path: &Path, errors: &mut Errors) {
    match value {
        Some(Value::Int(number)) => errors.non_negative(path, Some(*number)),
        Some(Value::String(text)) => {
            for fault in api::names::percent(text) {
                errors.invalid(path, text.as_str(), &fault);
            }
        }
        _ => {}
    }
}

fn is_zero(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Int(0) | Value::Null) => true,
        Some(Value::String(text)) => matches!(text.as_str(), "0%" | "0"),
        _ => false,
    }
}

fn rolling(object: &Object, field: &str, errors: &mut Errors) {
    let path = Path::new("spec").child(field);
    let kind = object.str_at(&["spec", field, "type"]);
    let rolling = object.at(&["spec", field, "rollingUpdate"]).filter(|value| !value.is_null());
    match kind {
        "" => errors.required(&path.child("type"), ""),
        "RollingUpdate" => {
            let path = path.child("rollingUpdate");
            let Some(rolling) = rolling else {
                return errors.required(&path, "this should be defaulted and never be nil");
            };
            let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
            count_or_percent(unavailable, &path.child("maxUnavailable"), errors);
            count_or_percent(surge, &path.child("maxSurge"), errors);
            if is_zero(unavailable) && is_zero(surge) {
                let value = unavailable.cloned().unwrap_or_default();
                errors.invalid(
                    &path.child("maxUnavailable"),
                    value,
                    "may not be 0 when `maxSurge` is 0",
                );
            }
        }
        "Recreate" if field == "strategy" => {
            if rolling.is_some() {
                let why = "may not be specified when strategy `type` is 'Recreate'";
                errors.forbidden(&path.child("rollingUpdate"), why);
            }
        }
        "OnDelete" if field == "updateStrategy" => {}
        other => {
            let known: &[&str] = if field == "strategy" {
                &["Recreate", "RollingUpdate"]
            } else {
                &["RollingUpdate", "OnDelete"]
            };
            if field == "strategy" {
                errors.not_supported(&path.child("type"), other, known);
            } else {
                let quoted: Vec<String> = known.iter().map(|k| format!("{k:?}")).collect();
                let detail = format!("supported values: {}", quoted.join(", "));
                errors.shown(
                    &path,
                    "FieldValueNotSupported",
                    "Unsupported value",
                    &strategy_shown(other),
                    &detail,
                );
            }
        }
    }
}

/// An update strategy as upstream prints its internal form.
fn strategy_shown(kind: &str) -> String {
    format!("{{\"Type\":{kind:?},\"RollingUpdate\":null}}")
}

static DEPLOYMENT_COLUMNS: [Column; 8] = [
    NAME,
    Column::text("Ready", |o, _| ready(o)),
    Column::text("Up-to-date", |o, _| number(o, &["status", "updatedReplicas"])),
    Column::text("Available", |o, _| number(o, &["status", "availableReplicas"])),
    AGE,
    CONTAINERS,
    IMAGES,
    Column::text("Selector", |o, _| label_selector(o.at(&["spec", "selector"])).to_string().into())
        .wide(),
];

fn ready(object: &Object) -> Value {
    let count = |path: &[&str]| object.i64_at(path).unwrap_or(0);
    format!("{}/{}", count(&["status", "readyReplicas"]), count(&["spec", "replicas"])).into()
}

pub(crate) const DEPLOYMENTS: Facts = Facts {
    default: |deployment| {
        spec(deployment, |spec| {
            or(spec, "replicas", 1);
            let strategy = spec.map_entry("strategy");
            or(strategy, "type", "RollingUpdate");
            if strategy.get("type").and_then(Value::as_str) == Some("RollingUpdate") {
                let rolling = strategy.map_entry("rollingUpdate");
                or(rolling, "maxUnavailable", "25%");
                or(rolling, "maxSurge", "25%");
            }
            or(spec, "revisionHistoryLimit", 10);
            or(spec, "progressDeadlineSeconds", 600);
            default_template(spec);
        });
    },
    validate: |deployment, errors| {
        non_negatives(deployment, &["replicas"], errors);
        validate_selector_and_template(deployment, "deployment", errors);
        rolling(deployment, "strategy", errors);
        non_negatives(
            deployment,
            &["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"],
            errors,
        );
        let (deadline, ready) = (
            deployment.i64_at(&["spec", "progressDeadlineSeconds"]),
            deployment.i64_at(&["spec", "minReadySeconds"]).unwrap_or(0),
        );
        if let Some(deadline) = deadline.filter(|&deadline| deadline <= ready) {
            let path = Path::new("spec").child("progressDeadlineSeconds");
            errors.invalid(&path, deadline, "must be greater than minReadySeconds");
        }
    },
    validate_update: selector_stays,
    generation: true,
    generation_fields: &["spec"],
    scale: Some(&APPS_SCALE),
    columns: &DEPLOYMENT_COLUMNS,
    ..PLAIN
};

static REPLICA_SET_COLUMNS: [Column; 8] = [
    NAME,
    Column::integer("Desired", |o, _| number(o, &["spec", "replicas"])),
    Column::integer("Current", |o, _| number(o, &["status", "replicas"])),
    Column::integer("Ready", |o, _| number(o, &["status", "readyReplicas"])),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub(crate) const REPLICA_SETS: Facts = Facts {
    default: |set| {
        spec(set, |spec| {
            or(spec, "replicas", 1);
            default_template(spec);
        });
    },
    validate: |set, errors| {
        non_negatives(set, &["replicas", "minReadySeconds"], errors);
        validate_selector_and_template(set, "deployment", errors);
    },
    validate_update: selector_stays,
    generation: true,
    fields: &["status.replicas"],
    field_value: Some(|o, _| o.i64_at(&["status", "replicas"]).unwrap_or(0).to_string().into()),
    scale: Some(&APPS_SCALE),
    columns: &REPLICA_SET_COLUMNS,
    ..PLAIN
};

static DAEMON_SET_COLUMNS: [Column; 11] = [
    NAME,
    Column::integer("Desired", |o, _| number(o, &["status", "desiredNumberScheduled"])),
    Column::integer("Current", |o, _| number(o, &["status", "currentNumberScheduled"])),
    Column::integer("Ready", |o, _| number(o, &["status", "numberReady"])),
    Column::integer("Up-to-date", |o, _| number(o, &["status", "updatedNumberScheduled"])),
    Column::integer("Available", |o, _| number(o, &["status", "numberAvailable"])),
    Column::text("Node Selector", |o, _| {
        labels(o.map_at(&["spec", "template", "spec", "nodeSelector"]))
    }),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

/// The daemon sets' spec ties a generation of templates to their controller's own count.
fn template_generation(new: &mut Object, old: &Object) {
    let before = old.annotation(TEMPLATE_GENERATION).and_then(|text| text.parse().ok());
    let before: i64 = before.unwrap_or(1);
    let same = semantically_equal(new.at(&["spec", "template"]), old.at(&["spec", "template"]));
    let now = if same { before } else { before + 1 };
    new.set_at(&["metadata", "annotations", TEMPLATE_GENERATION], now.to_string());
}

pub(crate) const DAEMON_SETS: Facts = Facts {
    default: |set| {
        spec(set, |spec| {
            let strategy = spec.map_entry("updateStrategy");
            or(strategy, "type", "RollingUpdate");
            if strategy.get("type").and_then(Value::as_str) == Some("RollingUpdate") {
                let rolling = strategy.map_entry("rollingUpdate");
                or(rolling, "maxUnavailable", 1);
                or(rolling, "maxSurge", 0);
            }
            or(spec, "revisionHistoryLimit", 10);
            default_template(spec);
        });
        let annotations = set.metadata_mut().map_entry("annotations");
        or(annotations, TEMPLATE_GENERATION, "1");
    },
    prepare_create: |_, set| set.set_at(&["metadata", "annotations", TEMPLATE_GENERATION], "1"),
    prepare_update: |subresource, new, old| {
        if subresource.is_empty() {
            template_generation(new, old);
        }
    },
    validate: |set, errors| {
        validate_selector_and_template(set, "daemonset", errors);
        non_negatives(set, &["minReadySeconds"], errors);
        rolling(set, "updateStrategy", errors);
        non_negatives(set, &["revisionHistoryLimit"], errors);
    },
    validate_update: selector_stays,
    initial_status: |_| {
        Some(value!({
            "currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0,
        }))
    },
    generation: true,
    columns: &DAEMON_SET_COLUMNS,
    ..PLAIN
};

static STATEFUL_SET_COLUMNS: [Column; 5] =
    [NAME, Column::text("Ready", |o, _| ready(o)), AGE, CONTAINERS, IMAGES];

pub(crate) const STATEFUL_SETS: Facts = Facts {
    default: |set| {
        spec(set, |spec| {
            or(spec, "podManagementPolicy", "OrderedReady");
            let strategy = spec.map_entry("updateStrategy");
            or(strategy, "type", "RollingUpdate");
            if strategy.get("type").and_then(Value::as_str) == Some("RollingUpdate") {
                let rolling = strategy.map_entry("rollingUpdate");
                or(rolling, "partition", 0);
                or(rolling, "maxUnavailable", 1);
            }
            let retention = spec.map_entry("persistentVolumeClaimRetentionPolicy");
            or(retention, "whenDeleted", "Retain");
            or(retention, "whenScaled", "Retain");
            or(spec, "replicas", 1);
            or(spec, "revisionHistoryLimit", 10);
            each(spec, "volumeClaimTemplates", |claim| {
                or(claim.map_entry("spec"), "volumeMode", "Filesystem");
                or(claim.map_entry("status"), "phase", "Pending");
            });
            default_template(spec);
        });
    },
    validate: |set, errors| {
        let path = Path::new("spec");
        let policy = set.str_at(&["spec", "podManagementPolicy"]);
        if !matches!(policy, "OrderedReady" | "Parallel") {
            let why = "must be 'OrderedReady' or 'Parallel'";
            errors.invalid(&path.child("podManagementPolicy"), policy, why);
        }
        match set.str_at(&["spec", "updateStrategy", "type"]) {
            "RollingUpdate" | "OnDelete" => {}
            other => {
                let why = "must be 'RollingUpdate' or 'OnDelete'";
                let path = path.child("updateStrategy");
                errors.shown(
                    &path,
                    "FieldValueInvalid",
                    "Invalid value",
                    &strategy_shown(other),
                    why,
                );
            }
        }
        let partition = set.i64_at(&["spec", "updateStrategy", "rollingUpdate", "partition"]);
        errors.non_negative(
            &path.child("updateStrategy").child("rollingUpdate").child("partition"),
            partition,
        );
        non_negatives(set, &["replicas", "minReadySeconds", "revisionHistoryLimit"], errors);
        validate_selector_and_template(set, "statefulset", errors);
    },
    validate_update: |subresource, new, old, errors| {
        if !subresource.is_empty() {
            return;
        }
        for field in ["selector", "volumeClaimTemplates", "serviceName", "podManagementPolicy"] {
            let path = Path::new("spec").child(field);
            errors.immutable(&path, new.at(&["spec", field]), old.at(&["spec", field]));
        }
    },
    // The stored form of a claim has no kind; readers see it.
    on_read: |set| {
        if set.at(&["spec", "volumeClaimTemplates"]).is_some() {
            spec(set, |spec| {
                each(spec, "volumeClaimTemplates", |claim| {
                    or(claim, "apiVersion", "v1");
                    or(claim, "kind", "PersistentVolumeClaim");
                });
            });
        }
    },
    initial_status: |_| Some(value!({"replicas": 0, "availableReplicas": 0})),
    generation: true,
    scale: Some(&APPS_SCALE),
    columns: &STATEFUL_SET_COLUMNS,
    ..PLAIN
};

static REVISION_COLUMNS: [Column; 4] = [
    NAME,
    Column::text("Controller", |o, _| match o.controller_reference() {
        Some(owner) => {
            let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
            let kind = if group.is_empty() {
                owner.kind.to_string()
            } else {
                format!("{}.{group}", owner.kind)
            };
            format!("{}/{}", kind.to_lowercase(), owner.name).into()
        }
        None => "<none>".into(),
    }),
    Column::text("Revision", |o, _| number(o, &["revision"])),
    AGE,
];

pub(crate) const CONTROLLER_REVISIONS: Facts = Facts {
    validate: |revision, errors| {
        errors.non_negative(&"revision".into(), revision.i64_at(&["revision"]));
    },
    validate_update: |_, new, old, errors| {
        errors.immutable(&"data".into(), new.at(&["data"]), old.at(&["data"]));
    },
    columns: &REVISION_COLUMNS,
    ..PLAIN
};
