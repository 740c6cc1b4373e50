//! Label and field selectors over the index of the cache.

use api::{
    Status,
    selector::{FieldSelector, LabelSelector, Operator, Requirement},
};
use machinery::Value;
use smol_str::SmolStr;

use crate::{cache::Entry, request::ListOptions, storage::Storage};

/// What a list or watch is narrowed to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    labels: LabelSelector,
    fields: Vec<FieldTerm>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldTerm {
    field: FieldRef,
    negated: bool,
    value: SmolStr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FieldRef {
    Name,
    Namespace,
    /// An index into the strategy's selectable fields.
    Own(usize),
}

impl Selector {
    pub(crate) fn parse(storage: &Storage, options: &ListOptions) -> Result<Self, Status> {
        let bad = |error: api::selector::SelectorError| Status::bad_request(error.to_string());
        let labels = LabelSelector::parse(&options.label_selector).map_err(bad)?;
        let parsed = FieldSelector::parse(&options.field_selector).map_err(bad)?;
        let fields = parsed.requirements().iter().map(|requirement| {
            let field = field_ref(storage, &requirement.field)?;
            Ok(FieldTerm {
                field,
                negated: requirement.negated,
                value: requirement.value.as_str().into(),
            })
        });
        Ok(Self { labels, fields: fields.collect::<Result<_, Status>>()? })
    }

    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_empty()
    }

    pub(crate) fn matches(&self, entry: &Entry) -> bool {
        let holds = |term: &FieldTerm| {
            let value = match term.field {
                FieldRef::Name => entry.name(),
                FieldRef::Namespace => entry.namespace(),
                FieldRef::Own(index) => entry.field(index),
            };
            (value == term.value) != term.negated
        };
        self.fields.iter().all(holds) && self.labels.matches(|key| entry.label(key))
    }

    /// The name, when only one can match.
    pub(crate) fn single_name(&self) -> Option<&str> {
        self.equal_to(FieldRef::Name)
    }

    pub(crate) fn single_namespace(&self) -> Option<&str> {
        self.equal_to(FieldRef::Namespace)
    }

    /// A field of the kind's own that must have one value.
    pub(crate) fn trigger(&self) -> Option<(usize, SmolStr)> {
        self.fields.iter().find_map(|term| match term.field {
            FieldRef::Own(index) if !term.negated => Some((index, term.value.clone())),
            _ => None,
        })
    }

    fn equal_to(&self, field: FieldRef) -> Option<&str> {
        let term = self.fields.iter().find(|term| !term.negated && term.field == field)?;
        Some(term.value.as_str())
    }
}

fn field_ref(storage: &Storage, field: &str) -> Result<FieldRef, Status> {
    match field {
        "metadata.name" => Ok(FieldRef::Name),
        "metadata.namespace" => Ok(FieldRef::Namespace),
        _ => {
            let own = storage.strategy.selectable_fields().iter().position(|f| *f == field);
            own.map(FieldRef::Own)
                .ok_or_else(|| Status::bad_request(storage.strategy.unsupported_field(field)))
        }
    }
}

/// Reads a `metav1.LabelSelector`. An empty one selects everything, a missing one nothing, and
/// so does one that is invalid.
pub fn label_selector(selector: Option<&Value>) -> LabelSelector {
    let Some(selector) = selector.filter(|selector| !selector.is_null()) else {
        return LabelSelector::nothing();
    };
    let equal = selector.get("matchLabels").and_then(Value::as_map);
    let equal = equal.into_iter().flat_map(|map| map.iter()).map(|(key, value)| {
        let value = value.as_str().unwrap_or_default();
        Requirement::new(key.as_str(), Operator::Equals, &[value]).ok()
    });
    let terms = selector.get("matchExpressions").and_then(Value::as_list).unwrap_or(&[]);
    let requirements: Option<Vec<Requirement>> =
        equal.chain(terms.iter().map(expression)).collect();
    requirements.map_or_else(LabelSelector::nothing, LabelSelector::from_requirements)
}

fn expression(term: &Value) -> Option<Requirement> {
    let text = |field| term.get(field).and_then(Value::as_str).unwrap_or_default();
    let operator = match text("operator") {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        _ => return None,
    };
    let values = term.get("values").and_then(Value::as_list).unwrap_or(&[]);
    let values: Vec<&str> = values.iter().filter_map(Value::as_str).collect();
    Requirement::new(text("key"), operator, &values).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery::{Object, value};

    #[test]
    fn a_selector_value_matches_objects() {
        let mut object = Object::new("v1", "Pod", "a", "b");
        object.set_at(&["metadata", "labels", "app"], "web");
        let matches =
            |selector: Option<&Value>| label_selector(selector).matches(|key| object.label(key));
        let yes = value!({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]});
        assert!(matches(Some(&yes)));
        assert!(matches(Some(&value!({}))));
        assert!(!matches(None));
        let no =
            value!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["api"]}]});
        assert!(!matches(Some(&no)));
    }
}
