//! One object in another version of its kind. Most versions differ in name only; events and
//! horizontal pod autoscalers differ in their fields.

use api::GroupVersionKind;

use crate::{Map, Object, Value, json, value};

/// Rewrites an object into another version of its kind.
pub fn convert(object: &mut Object, to: &GroupVersionKind) {
    let from = object.api_version().to_owned();
    match (to.kind.as_str(), from.as_str(), to.api_version().as_str()) {
        ("Event", "events.k8s.io/v1", "v1") => rename(object, |(new, old)| (new, old)),
        ("Event", "v1", "events.k8s.io/v1") => rename(object, |(new, old)| (old, new)),
        ("HorizontalPodAutoscaler", "autoscaling/v1", "autoscaling/v2") => hpa_to_v2(object),
        ("HorizontalPodAutoscaler", "autoscaling/v2", "autoscaling/v1") => hpa_to_v1(object),
        _ => {}
    }
    object.set_gvk(to);
}

/// Names of an event's fields in `events.k8s.io/v1` and in the core group.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
    ("reportingController", "reportingComponent"),
];

/// A field of a field selector on events in the core group's name for it.
pub fn event_field(name: &str) -> String {
    let (head, rest) = name.split_once('.').map_or((name, None), |(head, rest)| (head, Some(rest)));
    let core = EVENT_FIELDS.iter().find(|(new, _)| *new == head).map_or(head, |(_, old)| old);
    rest.map_or_else(|| core.to_owned(), |rest| format!("{core}.{rest}"))
}

fn rename(
    object: &mut Object,
    order: fn((&'static str, &'static str)) -> (&'static str, &'static str),
) {
    for (from, to) in EVENT_FIELDS.map(order) {
        if let Some(value) = object.root_mut().remove(from) {
            object.root_mut().insert(to, value);
        }
    }
    // The core group always writes these two, the newer one leaves them out when empty.
    for name in ["reportingComponent", "reportingController", "reportingInstance"] {
        if object.str_at(&[name]).is_empty() {
            object.root_mut().remove(name);
        }
    }
    if object.at(&["involvedObject"]).is_some() {
        for name in ["reportingComponent", "reportingInstance"] {
            if object.at(&[name]).is_none() {
                object.root_mut().insert(name, "");
            }
        }
    }
}

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const ROUND_TRIP: [&str; 6] = [
    METRICS,
    CURRENT_METRICS,
    CONDITIONS,
    BEHAVIOR,
    "autoscaling.alpha.kubernetes.io/scale-down-tolerance",
    "autoscaling.alpha.kubernetes.io/scale-up-tolerance",
];
/// The target, in percent, of an autoscaler that names no metric.
const DEFAULT_CPU_PERCENT: i64 = 80;

/// What version 1 cannot hold goes into annotations.
fn hpa_to_v1(object: &mut Object) {
    drop_annotations(object);
    let take = |object: &mut Object, part: &str, field: &str| object.remove_at(&[part, field]);
    let metrics = take(object, "spec", "metrics").unwrap_or_default();
    let metrics = metrics.as_list().unwrap_or(&[]);
    if let Some(percent) = metrics.iter().find_map(cpu_utilization) {
        object.set_at(&["spec", "targetCPUUtilizationPercentage"], percent.clone());
    }
    let others: Vec<Value> =
        metrics.iter().filter(|m| cpu_utilization(m).is_none()).map(metric_to_v1).collect();
    annotate(object, METRICS, others);
    let current = take(object, "status", "currentMetrics").unwrap_or_default();
    let current = current.as_list().unwrap_or(&[]);
    let used = current
        .iter()
        .rev()
        .find_map(|m| is_cpu(m).then(|| m.at(&["resource", "current", "averageUtilization"]))?);
    if let Some(used) = used {
        object.set_at(&["status", "currentCPUUtilizationPercentage"], used.clone());
    }
    annotate(object, CURRENT_METRICS, current.iter().map(status_to_v1).collect());
    if let Some(behavior) = take(object, "spec", "behavior") {
        let text = capitalised_text(&behavior);
        object.set_at(&["metadata", "annotations", BEHAVIOR], text);
    }
    let conditions = take(object, "status", "conditions").unwrap_or_default();
    annotate(object, CONDITIONS, conditions.as_list().unwrap_or(&[]).to_vec());
    if object.at(&["status", "currentReplicas"]).is_none() {
        object.set_at(&["status", "currentReplicas"], 0);
    }
}

fn hpa_to_v2(object: &mut Object) {
    let read = |object: &Object, name: &str| {
        json::parse(object.annotation(name)?.as_bytes()).ok().filter(|v| !v.is_null())
    };
    let list = |value: Option<Value>| value.and_then(|v| v.as_list().map(<[Value]>::to_vec));
    let mut metrics: Vec<Value> =
        list(read(object, METRICS)).unwrap_or_default().iter().map(metric_to_v2).collect();
    let percent = object.remove_at(&["spec", "targetCPUUtilizationPercentage"]);
    match percent.filter(|p| !p.is_null()) {
        Some(percent) => metrics.push(cpu_metric(percent)),
        None if metrics.is_empty() => metrics.push(cpu_metric(DEFAULT_CPU_PERCENT.into())),
        None => {}
    }
    object.set_at(&["spec", "metrics"], metrics);
    if let Some(behavior) = read(object, BEHAVIOR) {
        object.set_at(&["spec", "behavior"], with_key_case(&behavior, char::to_ascii_lowercase));
    }
    let used = object.remove_at(&["status", "currentCPUUtilizationPercentage"]);
    let current = match (list(read(object, CURRENT_METRICS)), used.filter(|u| !u.is_null())) {
        (Some(list), _) => Value::from(list.iter().map(status_to_v2).collect::<Vec<_>>()),
        (None, Some(used)) => value!([{
            "type": "Resource", "resource": {"name": "cpu", "current": {}},
        }])
        .with_at(&["resource", "current", "averageUtilization"], used),
        (None, None) => Value::Null,
    };
    object.set_at(&["status", "currentMetrics"], current);
    if object.i64_at(&["status", "currentReplicas"]) == Some(0) {
        object.remove_at(&["status", "currentReplicas"]);
    }
    if let Some(conditions) = list(read(object, CONDITIONS)) {
        object.set_at(&["status", "conditions"], conditions);
    }
    drop_annotations(object);
}

impl Value {
    /// The only item of a list, changed below.
    fn with_at(mut self, path: &[&str], value: Value) -> Self {
        if let Some(map) =
            self.as_list_mut().and_then(|l| l.first_mut()).and_then(Value::as_map_mut)
        {
            map.set_at(path, value);
        }
        self
    }
}

fn is_cpu(metric: &Value) -> bool {
    metric.get("type").and_then(Value::as_str) == Some("Resource")
        && metric.at(&["resource", "name"]).and_then(Value::as_str) == Some("cpu")
}

/// The percentage of a metric that version 1 has a field for.
fn cpu_utilization(metric: &Value) -> Option<&Value> {
    metric.at(&["resource", "target", "averageUtilization"]).filter(|_| is_cpu(metric))
}

fn cpu_metric(percent: Value) -> Value {
    let mut target = Map::new();
    target.insert("type", "Utilization");
    target.insert("averageUtilization", percent);
    let mut resource = Map::new();
    resource.insert("name", "cpu");
    resource.insert("target", target);
    let mut metric = Map::new();
    metric.insert("type", "Resource");
    metric.insert("resource", resource);
    metric.into()
}

fn annotate(object: &mut Object, name: &str, list: Vec<Value>) {
    if !list.is_empty() {
        let text = String::from_utf8(json::to_vec(&Value::from(list))).unwrap_or_default();
        object.set_at(&["metadata", "annotations", name], text);
    }
}

fn drop_annotations(object: &mut Object) {
    if !ROUND_TRIP.iter().any(|name| object.annotation(name).is_some()) {
        return;
    }
    for name in ROUND_TRIP {
        object.remove_at(&["metadata", "annotations", name]);
    }
    if object.map_at(&["metadata", "annotations"]).is_some_and(Map::is_empty) {
        object.remove_at(&["metadata", "annotations"]);
    }
}

/// The sources of a metric: its field, and the names of its values in version 1 for
/// `target.value` (or `current.value`), `averageValue` and `averageUtilization`.
const SOURCES: [(&str, [&str; 3], [&str; 3]); 5] = [
    ("object", ["targetValue", "averageValue", ""], ["currentValue", "averageValue", ""]),
    ("pods", ["", "targetAverageValue", ""], ["", "currentAverageValue", ""]),
    (
        "resource",
        ["", "targetAverageValue", "targetAverageUtilization"],
        ["", "currentAverageValue", "currentAverageUtilization"],
    ),
    (
        "containerResource",
        ["", "targetAverageValue", "targetAverageUtilization"],
        ["", "currentAverageValue", "currentAverageUtilization"],
    ),
    (
        "external",
        ["targetValue", "targetAverageValue", ""],
        ["currentValue", "currentAverageValue", ""],
    ),
];
const VALUES: [&str; 3] = ["value", "averageValue", "averageUtilization"];

fn metric_to_v1(metric: &Value) -> Value {
    flatten(metric, "target", |(_, spec, _)| spec)
}

fn status_to_v1(metric: &Value) -> Value {
    flatten(metric, "current", |(_, _, status)| status)
}

fn metric_to_v2(metric: &Value) -> Value {
    nest(metric, "target", |(_, spec, _)| spec)
}

fn status_to_v2(metric: &Value) -> Value {
    nest(metric, "current", |(_, _, status)| status)
}

type Source = (&'static str, [&'static str; 3], [&'static str; 3]);

fn flatten(metric: &Value, part: &str, names: fn(Source) -> [&'static str; 3]) -> Value {
    let mut out = metric.as_map().cloned().unwrap_or_default();
    for source in SOURCES {
        let Some(Value::Map(old)) = metric.get(source.0) else { continue };
        let mut new = old.clone();
        let values = new.remove(part).unwrap_or_default();
        for (value, name) in VALUES.into_iter().zip(names(source)) {
            if let (Some(found), false) = (values.get(value), name.is_empty()) {
                new.insert(name, found.clone());
            }
        }
        // Version 1 requires the value of an object's metric.
        if source.0 == "object" && values.get("value").is_none() {
            new.insert(names(source)[0], "0");
        }
        if let Some(Value::Map(identifier)) = new.remove("metric") {
            let selector = if source.0 == "external" { "metricSelector" } else { "selector" };
            new.insert("metricName", identifier.get("name").cloned().unwrap_or("".into()));
            if let Some(found) = identifier.get("selector") {
                new.insert(selector, found.clone());
            }
        }
        if let Some(described) = new.remove("describedObject") {
            new.insert("target", described);
        }
        out.insert(source.0, new);
    }
    out.into()
}

fn nest(metric: &Value, part: &str, names: fn(Source) -> [&'static str; 3]) -> Value {
    let mut out = metric.as_map().cloned().unwrap_or_default();
    for source in SOURCES {
        let Some(Value::Map(old)) = metric.get(source.0) else { continue };
        let mut new = old.clone();
        if source.0 == "object"
            && let Some(described) = new.remove("target")
        {
            new.insert("describedObject", described);
        }
        let mut values = Map::new();
        for (value, name) in VALUES.into_iter().zip(names(source)) {
            if let Some(found) = new.remove(name).filter(|v| !v.is_null()) {
                values.insert(value, found);
            }
        }
        if part == "target" {
            values.insert("type", target_type(&values));
            if values.contains_key("averageValue") {
                values.remove("value");
            }
        }
        new.insert(part, values);
        if let Some(name) = new.remove("metricName") {
            let mut identifier = Map::new();
            identifier.insert("name", name);
            let selector = new.remove("selector").or_else(|| new.remove("metricSelector"));
            if let Some(selector) = selector {
                identifier.insert("selector", selector);
            }
            new.insert("metric", identifier);
        }
        out.insert(source.0, new);
    }
    out.into()
}

fn target_type(values: &Map) -> &'static str {
    if values.contains_key("averageUtilization") {
        "Utilization"
    } else if values.contains_key("averageValue") {
        "AverageValue"
    } else {
        "Value"
    }
}

/// Upstream writes this annotation from a struct without JSON names, so that the keys are the
/// names of Go's fields.
fn capitalised_text(behavior: &Value) -> String {
    let value = with_key_case(behavior, char::to_ascii_uppercase);
    String::from_utf8(json::to_vec(&value)).unwrap_or_default()
}

fn with_key_case(value: &Value, change: fn(&char) -> char) -> Value {
    match value {
        Value::Map(map) => {
            let entries = map.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| {
                let mut chars = key.chars();
                let head = chars.next().map(|c| change(&c));
                let key: String = head.into_iter().chain(chars).collect();
                (key, with_key_case(value, change))
            });
            Value::Map(entries.collect())
        }
        Value::List(items) => {
            Value::from(items.iter().map(|item| with_key_case(item, change)).collect::<Vec<_>>())
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Object {
        Object::from_value(value).unwrap()
    }

    fn hpa(version: &str) -> GroupVersionKind {
        GroupVersionKind::new("autoscaling", version.to_owned(), "HorizontalPodAutoscaler")
    }

    #[test]
    fn events_in_both_groups() {
        let core = object(value!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"},
            "involvedObject": {"kind": "Pod", "name": "p"}, "message": "m", "reason": "r",
            "source": {"component": "c"}, "firstTimestamp": null, "lastTimestamp": null,
            "count": 3, "eventTime": null, "reportingComponent": "", "reportingInstance": "",
        }));
        let mut event = core.clone();
        convert(&mut event, &GroupVersionKind::new("events.k8s.io", "v1", "Event"));
        assert_eq!(event.str_at(&["note"]), "m");
        assert_eq!(event.str_at(&["regarding", "name"]), "p");
        assert!(event.at(&["reportingController"]).is_none());
        convert(&mut event, &GroupVersionKind::new("", "v1", "Event"));
        assert_eq!(event, core);
        assert_eq!(event_field("regarding.name"), "involvedObject.name");
    }

    #[test]
    fn autoscalers_round_trip() {
        let v2 = object(value!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {
                "maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "w"},
                "metrics": [
                    {"type": "External", "external": {"metric": {"name": "q", "selector": {"matchLabels": {"a": "b"}}}, "target": {"type": "AverageValue", "averageValue": "30"}}},
                    {"type": "Object", "object": {"describedObject": {"kind": "I", "name": "i"}, "metric": {"name": "r"}, "target": {"type": "Value", "value": "2k"}}},
                    {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}},
                ],
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 3, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 15}]}},
            },
            "status": {
                "currentReplicas": 1, "desiredReplicas": 1,
                "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 7, "averageValue": "5m"}}}],
                "conditions": [{"type": "AbleToScale", "status": "True"}],
            },
        }));
        let mut v1 = v2.clone();
        convert(&mut v1, &hpa("v1"));
        assert_eq!(v1.i64_at(&["spec", "targetCPUUtilizationPercentage"]), Some(50));
        assert_eq!(v1.i64_at(&["status", "currentCPUUtilizationPercentage"]), Some(7));
        assert!(v1.annotation(BEHAVIOR).unwrap().contains("StabilizationWindowSeconds"));
        assert!(v1.annotation(METRICS).unwrap().contains(r#""metricSelector":{"matchLabels""#));
        let mut back = v1.clone();
        convert(&mut back, &hpa("v2"));
        assert_eq!(back.into_value(), v2.into_value());
    }

    #[test]
    fn an_old_autoscaler_gets_its_implied_metric() {
        let mut old = object(value!({
            "apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "h"}, "spec": {"maxReplicas": 3},
        }));
        convert(&mut old, &hpa("v2"));
        let metric = &old.list_at(&["spec", "metrics"])[0];
        assert_eq!(cpu_utilization(metric), Some(&Value::Int(80)));
    }
}
