//! Disruption budgets and autoscalers.

use machinery::{Map, Object, Value, value};

use super::{
    apps::validate_label_selector,
    cells::{int_or_string, number},
    pod_validation::quantity,
};
use crate::{
    edit::{maps, or, spec, text},
    errors::Path,
    facts::{Facts, PLAIN},
    table::{AGE, Column, NAME},
};

static BUDGET_COLUMNS: [Column; 5] = [
    NAME,
    Column::text("Min Available", |o, _| int_or_string(o, &["spec", "minAvailable"], "N/A")),
    Column::text("Max Unavailable", |o, _| int_or_string(o, &["spec", "maxUnavailable"], "N/A")),
    Column::integer("Allowed Disruptions", |o, _| number(o, &["status", "disruptionsAllowed"])),
    AGE,
];

pub(crate) const BUDGETS: Facts = Facts {
    validate: |budget, errors| {
        let path = Path::new("spec");
        let has = |field| budget.at(&["spec", field]).is_some_and(|v: &Value| !v.is_null());
        if has("minAvailable") && has("maxUnavailable") {
            let json = |field: &str| match budget.at(&["spec", field]) {
                Some(value) => serde_json::to_string(value).unwrap_or_default(),
                None => "null".into(),
            };
            let shown = format!(
                "{{\"MinAvailable\":{},\"Selector\":{},\"MaxUnavailable\":{},\"UnhealthyPodEvictionPolicy\":{}}}",
                json("minAvailable"),
                json("selector"),
                json("maxUnavailable"),
                json("unhealthyPodEvictionPolicy")
            );
            let why = "minAvailable and maxUnavailable cannot be both set";
            errors.shown(&path, "FieldValueInvalid", "Invalid value", &shown, why);
        }
        for field in ["minAvailable", "maxUnavailable"] {
            match budget.at(&["spec", field]) {
                Some(Value::Int(number)) => errors.non_negative(&path.child(field), Some(*number)),
                Some(Value::String(text)) => {
                    for fault in api::names::percent(text) {
                        errors.invalid(&path.child(field), text.as_str(), &fault);
                    }
                }
                _ => {}
            }
        }
        if let Some(selector) = budget.map_at(&["spec", "selector"]) {
            validate_label_selector(selector, &path.child("selector"), errors);
        }
    },
    initial_status: |_| {
        Some(
            value!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0}),
        )
    },
    generation: true,
    unconditional_update: false,
    columns: &BUDGET_COLUMNS,
    ..PLAIN
};

static SCALER_COLUMNS: [Column; 7] = [
    NAME,
    Column::text("Reference", |o, _| {
        let target = |field| o.str_at(&["spec", "scaleTargetRef", field]);
        format!("{}/{}", target("kind"), target("name")).into()
    }),
    Column::text("Targets", |o, _| targets(o).into()),
    Column::text("MinPods", |o, _| int_or_string(o, &["spec", "minReplicas"], "<unset>")),
    Column::text("MaxPods", |o, _| number(o, &["spec", "maxReplicas"])),
    Column::text("Replicas", |o, _| number(o, &["status", "currentReplicas"])),
    AGE,
];

/// Where each type of metric keeps its own.
fn source(kind: &str) -> &'static str {
    match kind {
        "External" => "external",
        "Pods" => "pods",
        "Object" => "object",
        "ContainerResource" => "containerResource",
        _ => "resource",
    }
}

fn targets(scaler: &Object) -> String {
    const MOST: usize = 2;
    let metrics = scaler.list_at(&["spec", "metrics"]);
    let current = scaler.list_at(&["status", "currentMetrics"]);
    let shown: Vec<String> = metrics
        .iter()
        .filter_map(Value::as_map)
        .enumerate()
        .map(|(at, metric)| target(metric, current.get(at)))
        .collect();
    match (shown.len(), shown.len().saturating_sub(MOST)) {
        (0, _) => "<none>".into(),
        (_, 0) => shown.join(", "),
        (_, more) => format!("{} + {more} more...", shown[..MOST].join(", ")),
    }
}

fn target(metric: &Map, status: Option<&Value>) -> String {
    let kind = text(metric, "type");
    let at = source(kind);
    let wanted = |field: &str| metric.at(&[at, "target", field]).cloned();
    let now = |field: &str| status?.at(&[at, "current", field]).cloned();
    let show = |value: Option<Value>, suffix: &str| match value {
        Some(Value::String(text)) => format!("{text}{suffix}"),
        Some(Value::Int(number)) => format!("{number}{suffix}"),
        _ => "<unknown>".into(),
    };
    let named = matches!(kind, "Resource" | "ContainerResource");
    let name = metric.str_at(&[at, "name"]).unwrap_or_default();
    match (named, wanted("averageValue")) {
        (true, Some(average)) => {
            format!("{name}: {}/{}", show(now("averageValue"), ""), show(Some(average), ""))
        }
        (true, None) => {
            let wanted = wanted("averageUtilization");
            let wanted = if wanted.is_none() { "<auto>".into() } else { show(wanted, "%") };
            format!("{name}: {}/{wanted}", show(now("averageUtilization"), "%"))
        }
        (false, Some(average)) => {
            let suffix = if kind == "Pods" { "" } else { " (avg)" };
            format!("{}/{}{suffix}", show(now("averageValue"), ""), show(Some(average), ""))
        }
        (false, None) => format!("{}/{}", show(now("value"), ""), show(wanted("value"), "")),
    }
}

pub(crate) const AUTOSCALERS: Facts = Facts {
    default: |scaler| {
        spec(scaler, |spec| {
            or(spec, "minReplicas", 1);
            if spec.get("metrics").and_then(Value::as_list).is_none_or(<[_]>::is_empty) {
                spec.insert("metrics", value!([cpu_metric(80)]));
            }
        });
    },
    validate: |scaler, errors| {
        let path = Path::new("spec");
        let (least, most) = (
            scaler.i64_at(&["spec", "minReplicas"]).unwrap_or(1),
            scaler.i64_at(&["spec", "maxReplicas"]).unwrap_or(0),
        );
        if least < 0 {
            errors.invalid(&path.child("minReplicas"), least, "must be greater than or equal to 0");
        }
        if most < 0 {
            errors.invalid(&path.child("maxReplicas"), most, "must be greater than 0");
        }
        if most != 0 && most < least {
            errors.invalid(
                &path.child("maxReplicas"),
                most,
                "must be greater than or equal to `minReplicas`",
            );
        }
        for field in ["kind", "name"] {
            if scaler.str_at(&["spec", "scaleTargetRef", field]).is_empty() {
                errors.required(&path.child("scaleTargetRef").child(field), "");
            }
        }
        if scaler.str_at(&["spec", "scaleTargetRef", "apiVersion"]).is_empty() {
            let path = path.child("scaleTargetRef").child("apiVersion");
            errors.invalid(&path, "", "apiVersion must specify API group");
        }
        let empty = Map::new();
        let spec = scaler.map_at(&["spec"]).unwrap_or(&empty);
        if least == 0
            && !maps(spec, "metrics").any(|m| matches!(text(m, "type"), "Object" | "External"))
        {
            let why = "must specify at least one Object or External metric to support scaling to zero replicas";
            errors.forbidden(&path.child("metrics"), why);
        }
        for (at, metric) in maps(spec, "metrics").enumerate() {
            let path = path.child("metrics").index(at);
            let kind = text(metric, "type");
            let known = ["ContainerResource", "External", "Object", "Pods", "Resource"];
            if kind.is_empty() {
                errors.required(&path.child("type"), "must specify a metric source type");
            } else {
                errors.one_of(&path.child("type"), kind, &known);
            }
            let average = metric.at(&[source(kind), "target", "averageValue"]).and_then(quantity);
            if average.is_some_and(|q| q.is_negative() || q.is_zero()) {
                let path = path.child(source(kind)).child("target").child("averageValue");
                errors.invalid(
                    &path,
                    average.map(|q| q.to_string()).unwrap_or_default(),
                    "must be positive",
                );
            }
        }
        if most == 0 {
            errors.required(&path.child("maxReplicas"), "");
        }
    },
    initial_status: |_| Some(value!({"desiredReplicas": 0, "currentMetrics": null})),
    generation: true,
    columns: &SCALER_COLUMNS,
    to_version: |scaler, version| {
        if version == "autoscaling/v1" {
            to_v1(scaler);
        }
    },
    from_version: |scaler, version| {
        if version == "autoscaling/v1" {
            from_v1(scaler);
        }
    },
    ..PLAIN
};

fn cpu_metric(percent: i64) -> serde_json::Value {
    serde_json::json!({
        "type": "Resource",
        "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}},
    })
}

/// What `autoscaling/v1` has no field for travels in annotations.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// The percentage when the metric is the plain one of `autoscaling/v1`.
fn plain_cpu<'a>(metric: &'a Value, side: &str) -> Option<&'a Value> {
    let is_cpu = metric.at(&["resource", "name"]).and_then(Value::as_str) == Some("cpu");
    metric.at(&["resource", side, "averageUtilization"]).filter(|_| is_cpu)
}

fn to_v1(scaler: &mut Object) {
    // A number that this version always shows.
    if scaler.at(&["status", "currentReplicas"]).is_none() {
        scaler.set_at(&["status", "currentReplicas"], 0);
    }
    let take = |scaler: &mut Object, path: &[&str]| match scaler.remove_at(path) {
        Some(Value::List(list)) => list.to_vec(),
        _ => Vec::new(),
    };
    let stash = |scaler: &mut Object, key: &str, list: &[Value]| {
        if !list.is_empty() {
            let text = serde_json::to_string(list).unwrap_or_default();
            scaler.set_at(&["metadata", "annotations", key], text);
        }
    };
    let metrics = take(scaler, &["spec", "metrics"]);
    let (cpu, rest): (Vec<Value>, Vec<Value>) =
        metrics.into_iter().partition(|m| plain_cpu(m, "target").is_some());
    if let Some(percent) = cpu.first().and_then(|metric| plain_cpu(metric, "target")) {
        scaler.set_at(&["spec", "targetCPUUtilizationPercentage"], percent.clone());
    }
    stash(scaler, METRICS, &rest);
    let current = take(scaler, &["status", "currentMetrics"]);
    if let Some(percent) = current.iter().find_map(|metric| plain_cpu(metric, "current")) {
        let percent = percent.clone();
        scaler.set_at(&["status", "currentCPUUtilizationPercentage"], percent);
    }
    stash(scaler, CURRENT, &current);
    let conditions = take(scaler, &["status", "conditions"]);
    stash(scaler, CONDITIONS, &conditions);
    if let Some(behavior) = scaler.remove_at(&["spec", "behavior"]) {
        let text = serde_json::to_string(&behavior).unwrap_or_default();
        scaler.set_at(&["metadata", "annotations", BEHAVIOR], text);
    }
}

fn from_v1(scaler: &mut Object) {
    let fetch = |scaler: &mut Object, key: &str| -> Option<Value> {
        let text = scaler.remove_at(&["metadata", "annotations", key])?;
        machinery::json::parse(text.as_str()?.as_bytes()).ok()
    };
    let mut metrics: Vec<Value> = Vec::new();
    if let Some(percent) =
        scaler.remove_at(&["spec", "targetCPUUtilizationPercentage"]).and_then(|v| v.as_i64())
    {
        metrics.push(cpu_metric(percent).into());
    }
    if let Some(Value::List(rest)) = fetch(scaler, METRICS) {
        metrics.extend(rest.iter().cloned());
    }
    if !metrics.is_empty() {
        scaler.set_at(&["spec", "metrics"], metrics);
    }
    scaler.remove_at(&["status", "currentCPUUtilizationPercentage"]);
    for (key, path) in [
        (CURRENT, &["status", "currentMetrics"]),
        (CONDITIONS, &["status", "conditions"]),
        (BEHAVIOR, &["spec", "behavior"]),
    ] {
        if let Some(value) = fetch(scaler, key) {
            scaler.set_at(path, value);
        }
    }
    if scaler.map_at(&["metadata", "annotations"]).is_some_and(Map::is_empty) {
        scaler.metadata_mut().remove("annotations");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_hold_the_same() {
        let scaler = value!({"metadata": {"name": "h"}, "spec": {
            "maxReplicas": 5,
            "metrics": [cpu_metric(70), {"type": "Pods", "pods": {"metric": {"name": "q"}, "target": {"averageValue": "3"}}}],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 5}},
        }});
        let stored = Object::from_value(scaler).unwrap();
        let mut other = stored.clone();
        to_v1(&mut other);
        assert_eq!(other.i64_at(&["spec", "targetCPUUtilizationPercentage"]), Some(70));
        assert!(other.at(&["spec", "metrics"]).is_none());
        from_v1(&mut other);
        other.root_mut().remove("status");
        assert_eq!(other, stored);
    }
}
