//! Selectors in object form, and selectors held against objects.

use api::{
    LabelSelector,
    selector::{Operator, Requirement, SelectorError},
};

use crate::{Map, Object, Value};

/// A `LabelSelector` field as a selector: a missing one matches nothing, an empty one everything.
pub fn from_value(selector: Option<&Value>) -> Result<LabelSelector, SelectorError> {
    let Some(Value::Map(map)) = selector else { return Ok(LabelSelector::nothing()) };
    let mut requirements = Vec::new();
    if let Some(Value::Map(labels)) = map.get("matchLabels") {
        for (key, value) in labels.iter() {
            let value = value.as_str().unwrap_or_default();
            requirements.push(Requirement::new(key, Operator::Equals, &[value])?);
        }
    }
    for item in map.get("matchExpressions").and_then(Value::as_list).unwrap_or(&[]) {
        requirements.push(requirement(item)?);
    }
    Ok(LabelSelector::from_requirements(requirements))
}

fn requirement(item: &Value) -> Result<Requirement, SelectorError> {
    let text = |key| item.get(key).and_then(Value::as_str).unwrap_or_default();
    let operator = match text("operator") {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        other => {
            return Err(SelectorError(format!("{other:?} is not a valid label selector operator")));
        }
    };
    let values = item.get("values").and_then(Value::as_list).unwrap_or(&[]);
    let values: Vec<&str> = values.iter().filter_map(Value::as_str).collect();
    Requirement::new(text("key"), operator, &values)
}

/// A plain map of labels as a selector, as Services and ReplicationControllers have it.
pub fn from_labels(labels: Option<&Map>) -> LabelSelector {
    let Some(labels) = labels else { return LabelSelector::everything() };
    LabelSelector::from_labels(labels.iter().filter_map(|(k, v)| Some((k.as_str(), v.as_str()?))))
}

/// Whether an object's labels meet a selector.
pub fn matches(selector: &LabelSelector, object: &Object) -> bool {
    selector.matches(|key| object.label(key))
}

/// Whether labels meet a selector.
pub fn matches_labels(selector: &LabelSelector, labels: Option<&Map>) -> bool {
    selector.matches(|key| labels?.get(key)?.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    #[test]
    fn object_form() {
        let selector = value!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["back"]}],
        });
        let selector = from_value(Some(&selector)).unwrap();
        let pod = |tier: &str| {
            Object::from_value(value!({"metadata": {"labels": {"app": "web", "tier": tier}}}))
                .unwrap()
        };
        assert!(matches(&selector, &pod("front")) && !matches(&selector, &pod("back")));
        assert!(from_value(None).unwrap().is_nothing());
        assert!(from_value(Some(&value!({}))).unwrap().is_everything());
        let bad = value!({"matchExpressions": [{"key": "a", "operator": "Is"}]});
        assert_eq!(
            from_value(Some(&bad)).unwrap_err().to_string(),
            "\"Is\" is not a valid label selector operator"
        );
    }
}
