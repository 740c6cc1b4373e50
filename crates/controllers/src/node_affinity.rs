//! Which nodes a pod's `nodeSelector` and required node affinity allow.

use machinery::{Map, Object, Value};

/// Whether a pod of this spec may be on the node, as far as labels and fields go.
pub fn allows(spec: &Value, node: &Object) -> bool {
    let empty = Map::new();
    let labels = node.labels().unwrap_or(&empty);
    let selector = spec.get("nodeSelector").and_then(Value::as_map);
    if selector.is_some_and(|wanted| !wanted.iter().all(|(k, v)| labels.get(k) == Some(v))) {
        return false;
    }
    let terms = spec.at(&[
        "affinity",
        "nodeAffinity",
        "requiredDuringSchedulingIgnoredDuringExecution",
        "nodeSelectorTerms",
    ]);
    match terms.and_then(Value::as_list) {
        None => true,
        Some(terms) => terms.iter().any(|term| term_matches(term, labels, node.name())),
    }
}

/// A term without requirements matches nothing.
fn term_matches(term: &Value, labels: &Map, name: &str) -> bool {
    let list = |field| term.get(field).and_then(Value::as_list).unwrap_or(&[]);
    let (expressions, fields) = (list("matchExpressions"), list("matchFields"));
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let label = |key: &str| labels.get(key).and_then(Value::as_str);
    let field = |key: &str| (key == "metadata.name").then_some(name);
    expressions.iter().all(|e| requirement(e, label))
        && fields.iter().all(|e| requirement(e, field))
}

fn requirement<'a>(expression: &Value, lookup: impl Fn(&str) -> Option<&'a str>) -> bool {
    let text = |field| expression.get(field).and_then(Value::as_str).unwrap_or_default();
    let found = lookup(text("key"));
    let values = expression.get("values").and_then(Value::as_list).unwrap_or(&[]);
    let holds = |value: &str| values.iter().any(|v| v.as_str() == Some(value));
    let compare = |test: fn(i64, i64) -> bool| {
        let bound = values.first().and_then(Value::as_str).and_then(|text| text.parse().ok());
        found.and_then(|text| text.parse().ok()).zip(bound).is_some_and(|(a, b)| test(a, b))
    };
    match text("operator") {
        "In" => found.is_some_and(holds),
        "NotIn" => found.is_none_or(|value| !holds(value)),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => compare(|a, b| a > b),
        "Lt" => compare(|a, b| a < b),
        _ => false,
    }
}

/// The node that a DaemonSet's pod is meant for: where it is, or the one its affinity names.
pub fn target_node(node_name: &str, affinity: &Value) -> Option<String> {
    if !node_name.is_empty() {
        return Some(node_name.to_owned());
    }
    let terms = affinity.at(&[
        "nodeAffinity",
        "requiredDuringSchedulingIgnoredDuringExecution",
        "nodeSelectorTerms",
    ]);
    let mut fields = terms?
        .as_list()?
        .iter()
        .flat_map(|term| term.get("matchFields").and_then(Value::as_list).unwrap_or(&[]));
    let name = |e: &Value| {
        let is_name = e.get("key").and_then(Value::as_str) == Some("metadata.name");
        let values = e.get("values").and_then(Value::as_list).filter(|_| is_name)?;
        values.first()?.as_str().map(str::to_owned)
    };
    fields.find_map(name)
}

/// Ties a pod's spec to one node by name, so that the scheduler still does the binding.
pub fn pin(spec: &mut Map, node: &str) {
    const REQUIRED: [&str; 3] =
        ["affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"];
    let by_name = machinery::value!([{"key": "metadata.name", "operator": "In", "values": [node]}]);
    let terms = spec.at(&[REQUIRED[0], REQUIRED[1], REQUIRED[2], "nodeSelectorTerms"]);
    let mut terms: Vec<Value> =
        terms.and_then(Value::as_list).map(<[Value]>::to_vec).unwrap_or_default();
    if terms.is_empty() {
        terms.push(Map::new().into());
    }
    // Field names that a template gives would contradict the one set here.
    for term in terms.iter_mut().filter_map(Value::as_map_mut) {
        term.insert("matchFields", by_name.clone());
    }
    terms.dedup();
    let terms: Value = terms.into();
    spec.set_at(&[REQUIRED[0], REQUIRED[1], REQUIRED[2], "nodeSelectorTerms"], terms);
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery::value;

    #[test]
    fn a_pinned_spec_allows_its_node_alone() {
        let mut spec = value!({"nodeSelector": {"disk": "ssd"}}).as_map().unwrap().clone();
        pin(&mut spec, "a");
        let node = |name: &str, disk: &str| {
            let mut node = Object::new("v1", "Node", "", name);
            node.set_at(&["metadata", "labels", "disk"], disk);
            node
        };
        let spec = Value::Map(spec);
        assert!(allows(&spec, &node("a", "ssd")));
        assert!(!allows(&spec, &node("b", "ssd")));
        assert!(!allows(&spec, &node("a", "hdd")));
        assert_eq!(target_node("", spec.get("affinity").unwrap()), Some("a".into()));
    }
}
