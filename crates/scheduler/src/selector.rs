//! Selectors over labels, compiled for many matches.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1 as core, apimachinery::pkg::apis::meta::v1::LabelSelector as WireSelector,
};
use smol_str::SmolStr;

pub type Labels = BTreeMap<SmolStr, SmolStr>;

pub fn labels(wire: Option<&BTreeMap<String, String>>) -> Labels {
    wire.into_iter().flatten().map(|(k, v)| (k.into(), v.into())).collect()
}

/// One requirement on a label (or, for fields, on `metadata.name`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: SmolStr,
    pub operator: Operator,
    pub values: Vec<SmolStr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    Gt,
    Lt,
}

impl Requirement {
    fn new(key: &str, operator: &str, values: Option<&Vec<String>>) -> Option<Self> {
        let operator = match operator {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            "Gt" => Operator::Gt,
            "Lt" => Operator::Lt,
            _ => return None,
        };
        let values = values.into_iter().flatten().map(SmolStr::from).collect();
        Some(Self { key: key.into(), operator, values })
    }

    pub fn matches(&self, value: Option<&SmolStr>) -> bool {
        let number = |text: &SmolStr| text.parse::<i64>().ok();
        let bound = || self.values.first().and_then(number);
        match self.operator {
            Operator::In => value.is_some_and(|v| self.values.contains(v)),
            Operator::NotIn => value.is_none_or(|v| !self.values.contains(v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt => value.and_then(number).zip(bound()).is_some_and(|(v, b)| v > b),
            Operator::Lt => value.and_then(number).zip(bound()).is_some_and(|(v, b)| v < b),
        }
    }
}

/// A label selector of pods; one that is absent matches nothing, an empty one everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Option<Vec<Requirement>>);

impl LabelSelector {
    pub fn read(wire: Option<&WireSelector>) -> Self {
        let Some(wire) = wire else { return Self(None) };
        let equal = wire.match_labels.iter().flatten().map(|(key, value)| Requirement {
            key: key.into(),
            operator: Operator::In,
            values: vec![value.into()],
        });
        let expressions = wire.match_expressions.iter().flatten();
        let expressions =
            expressions.filter_map(|e| Requirement::new(&e.key, &e.operator, e.values.as_ref()));
        Self(Some(equal.chain(expressions).collect()))
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        let Some(requirements) = &self.0 else { return false };
        requirements.iter().all(|r| r.matches(labels.get(&r.key)))
    }
}

/// One term of a node selector: all of its requirements must hold. An empty term matches nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeTerm {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

impl NodeTerm {
    pub fn read(wire: &core::NodeSelectorTerm) -> Self {
        let read = |list: &Option<Vec<core::NodeSelectorRequirement>>| {
            let list = list.iter().flatten();
            list.filter_map(|r| Requirement::new(&r.key, &r.operator, r.values.as_ref())).collect()
        };
        Self { labels: read(&wire.match_expressions), fields: read(&wire.match_fields) }
    }

    pub fn matches(&self, name: &SmolStr, labels: &Labels) -> bool {
        let empty = self.labels.is_empty() && self.fields.is_empty();
        !empty
            && self.labels.iter().all(|r| r.matches(labels.get(&r.key)))
            && self.fields.iter().all(|r| r.key == "metadata.name" && r.matches(Some(name)))
    }

    /// The node names that the term insists on, when it does.
    pub fn node_names(&self) -> Option<&[SmolStr]> {
        let by_name = self.fields.iter().find(|r| r.operator == Operator::In)?;
        Some(&by_name.values)
    }
}
