//! Status conditions, and when a status counts as changed.

use machinery::{Map, Value, value};
use stdx::Timestamp;

/// One condition to set. `reason` and `message` may be empty.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    pub kind: &'static str,
    pub status: &'static str,
    pub reason: String,
    pub message: String,
}

impl Condition {
    pub fn new(
        kind: &'static str,
        status: &'static str,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self { kind, status, reason: reason.into(), message: message.into() }
    }
}

pub fn find<'a>(conditions: &'a [Value], kind: &str) -> Option<&'a Map> {
    let is_it = |map: &&Map| map.str_at(&["type"]) == Some(kind);
    conditions.iter().filter_map(Value::as_map).find(is_it)
}

pub fn is_true(conditions: &[Value], kind: &str) -> bool {
    find(conditions, kind).is_some_and(|map| map.str_at(&["status"]) == Some("True"))
}

pub fn remove(conditions: &mut Vec<Value>, kind: &str) {
    conditions.retain(|c| c.get("type").and_then(Value::as_str) != Some(kind));
}

/// Sets a condition without `lastUpdateTime`; the transition time moves only with the status.
pub fn set(conditions: &mut Vec<Value>, condition: &Condition, now: Timestamp) {
    let known = find(conditions, condition.kind);
    let same = known.is_some_and(|known| known.str_at(&["status"]) == Some(condition.status));
    let transition = match known.and_then(|known| known.str_at(&["lastTransitionTime"])) {
        Some(time) if same => time.to_owned(),
        _ => now.rfc3339(),
    };
    let mut entry = value!({
        "type": condition.kind, "status": condition.status, "lastTransitionTime": transition,
    });
    if let Some(map) = entry.as_map_mut() {
        for (field, text) in [("reason", &condition.reason), ("message", &condition.message)] {
            if !text.is_empty() {
                map.insert(field, text.as_str());
            }
        }
    }
    let at = conditions
        .iter()
        .position(|c| c.get("type").and_then(Value::as_str) == Some(condition.kind));
    match at {
        Some(at) => conditions[at] = entry,
        None => conditions.push(entry),
    }
}

/// Whether two trees say the same, where a zero value says as much as a missing one: the server
/// drops empty fields, and a controller that took this for a difference would write for ever.
pub fn same(a: &Value, b: &Value) -> bool {
    pruned(a) == pruned(b)
}

/// The tree without nulls, zeros, empty texts, lists and maps.
pub fn pruned(value: &Value) -> Value {
    match value {
        Value::Map(map) => {
            let kept: Map = map
                .iter()
                .map(|(key, value)| (key.clone(), pruned(value)))
                .filter(|(_, value)| !is_zero(value))
                .collect();
            Value::Map(kept)
        }
        Value::List(list) => Value::from(list.iter().map(pruned).collect::<Vec<_>>()),
        other => other.clone(),
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) | Value::Int(0) => true,
        Value::Float(number) => *number == 0.0,
        Value::String(text) => text.is_empty(),
        Value::List(list) => list.is_empty(),
        Value::Map(map) => map.is_empty(),
        Value::Bool(true) | Value::Int(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transition_time_moves_with_the_status_alone() {
        let mut conditions = Vec::new();
        let at = Timestamp::from_secs;
        set(&mut conditions, &Condition::new("A", "True", "R", ""), at(0));
        set(&mut conditions, &Condition::new("A", "True", "S", "m"), at(60));
        let known = find(&conditions, "A").unwrap();
        assert_eq!(known.str_at(&["lastTransitionTime"]), Some("1970-01-01T00:00:00Z"));
        assert_eq!(known.str_at(&["reason"]), Some("S"));
        set(&mut conditions, &Condition::new("A", "False", "S", "m"), at(60));
        let known = find(&conditions, "A").unwrap();
        assert_eq!(known.str_at(&["lastTransitionTime"]), Some("1970-01-01T00:01:00Z"));
        assert_eq!(conditions.len(), 1);
    }

    #[test]
    fn zero_and_missing_say_the_same() {
        assert!(same(&value!({"a": 0, "b": {"c": []}}), &value!({})));
        assert!(!same(&value!({"a": 1}), &value!({})));
    }
}
