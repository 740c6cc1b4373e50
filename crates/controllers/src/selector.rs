//! `metav1.LabelSelector`, parsed for matching.

use machinery::{Map, Value};
use smol_str::SmolStr;

/// The requirements of a selector, all of which must hold. Empty: matches everything.
#[derive(Clone, Debug, PartialEq)]
pub struct Selector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq)]
enum Requirement {
    In(SmolStr, Vec<SmolStr>),
    NotIn(SmolStr, Vec<SmolStr>),
    Exists(SmolStr),
    DoesNotExist(SmolStr),
}

impl Selector {
    /// Parses `{matchLabels, matchExpressions}`. `None` for a missing selector, which selects
    /// nothing, and for one with an operator that there is not.
    pub fn parse(selector: Option<&Value>) -> Option<Self> {
        let selector = selector?.as_map()?;
        let mut all = match selector.get("matchLabels").and_then(Value::as_map) {
            Some(labels) => Self::of_labels(labels).0,
            None => Vec::new(),
        };
        let expressions = selector.get("matchExpressions").and_then(Value::as_list).unwrap_or(&[]);
        for expression in expressions {
            let key: SmolStr = expression.get("key")?.as_str()?.into();
            let values = || {
                let list = expression.get("values").and_then(Value::as_list).unwrap_or(&[]);
                list.iter().filter_map(|v| v.as_str().map(SmolStr::from)).collect()
            };
            all.push(match expression.get("operator")?.as_str()? {
                "In" => Requirement::In(key, values()),
                "NotIn" => Requirement::NotIn(key, values()),
                "Exists" => Requirement::Exists(key),
                "DoesNotExist" => Requirement::DoesNotExist(key),
                _ => return None,
            });
        }
        Some(Self(all))
    }

    /// The old form of Services and ReplicationControllers: every label must be equal.
    pub fn of_labels(labels: &Map) -> Self {
        let text = |value: &Value| SmolStr::from(value.as_str().unwrap_or_default());
        Self(labels.iter().map(|(k, v)| Requirement::In(k.clone(), vec![text(v)])).collect())
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn matches(&self, labels: &Map) -> bool {
        let value = |key: &str| labels.get(key).and_then(Value::as_str);
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => {
                value(key).is_some_and(|v| values.iter().any(|x| x == v))
            }
            Requirement::NotIn(key, values) => {
                value(key).is_none_or(|v| values.iter().all(|x| x != v))
            }
            Requirement::Exists(key) => value(key).is_some(),
            Requirement::DoesNotExist(key) => value(key).is_none(),
        })
    }
}

impl std::fmt::Display for Selector {
    /// As in a `labelSelector` query and in `status.selector` of a scale.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, requirement) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            match requirement {
                Requirement::In(key, values) if values.len() == 1 => {
                    write!(f, "{key}={}", values[0])?
                }
                Requirement::In(key, values) => write!(f, "{key} in ({})", values.join(","))?,
                Requirement::NotIn(key, values) => write!(f, "{key} notin ({})", values.join(","))?,
                Requirement::Exists(key) => write!(f, "{key}")?,
                Requirement::DoesNotExist(key) => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery::value;

    #[test]
    fn matches_as_labels_do() {
        let selector = Selector::parse(Some(&value!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "tier", "operator": "NotIn", "values": ["old"]},
                {"key": "zone", "operator": "Exists"},
            ],
        })))
        .unwrap();
        let labels = |value: Value| value.as_map().unwrap().clone();
        assert!(selector.matches(&labels(value!({"app": "web", "zone": "a"}))));
        assert!(!selector.matches(&labels(value!({"app": "web", "zone": "a", "tier": "old"}))));
        assert!(!selector.matches(&labels(value!({"app": "web"}))));
        assert_eq!(selector.to_string(), "app=web,tier notin (old),zone");
        assert_eq!(Selector::parse(None), None);
        assert!(Selector::parse(Some(&value!({}))).unwrap().is_empty());
    }
}
