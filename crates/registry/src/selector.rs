//! Label and field selectors over the index of the cache.

use api::Status;
use machinery::Object;
use smol_str::SmolStr;

use crate::{cache::Entry, request::ListOptions, storage::Storage, strategy::Strategy};

/// What a list or watch is narrowed to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<FieldTerm>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: SmolStr,
    rule: Rule,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    In(Vec<SmolStr>),
    NotIn(Vec<SmolStr>),
    Exists,
    Absent,
    Above(i64),
    Below(i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldTerm {
    field: FieldRef,
    equal: bool,
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
        let labels = parse_labels(&options.label_selector).map_err(Status::bad_request)?;
        let fields = parse_fields(storage, &options.field_selector)?;
        Ok(Self { labels, fields })
    }

    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(crate) fn matches(&self, entry: &Entry) -> bool {
        self.labels.iter().all(|r| r.matches(entry.label(&r.key)))
            && self.fields.iter().all(|term| {
                let value = match term.field {
                    FieldRef::Name => entry.name(),
                    FieldRef::Namespace => entry.namespace(),
                    FieldRef::Own(index) => entry.field(index),
                };
                (value == term.value) == term.equal
            })
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
            FieldRef::Own(index) if term.equal => Some((index, term.value.clone())),
            _ => None,
        })
    }

    fn equal_to(&self, field: FieldRef) -> Option<&str> {
        let term = self.fields.iter().find(|term| term.equal && term.field == field)?;
        Some(term.value.as_str())
    }
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match &self.rule {
            Rule::In(set) => value.is_some_and(|v| set.iter().any(|s| s == v)),
            Rule::NotIn(set) => value.is_none_or(|v| set.iter().all(|s| s != v)),
            Rule::Exists => value.is_some(),
            Rule::Absent => value.is_none(),
            Rule::Above(bound) => number().is_some_and(|n| n > *bound),
            Rule::Below(bound) => number().is_some_and(|n| n < *bound),
        }
    }
}

/// Splits at commas outside parentheses.
fn terms(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut list) = (0, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                list.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    list.push(text[start..].trim());
    list.into_iter().filter(|term| !term.is_empty()).collect()
}

fn parse_labels(text: &str) -> Result<Vec<Requirement>, String> {
    terms(text).into_iter().map(parse_requirement).collect()
}

fn parse_requirement(term: &str) -> Result<Requirement, String> {
    let broken = || format!("unable to parse requirement: {term:?}");
    let make = |key: &str, rule| {
        let key = key.trim();
        let valid = !key.is_empty() && !key.contains(char::is_whitespace);
        valid.then(|| Requirement { key: key.into(), rule }).ok_or_else(broken)
    };
    if let Some(key) = term.strip_prefix('!') {
        return make(key, Rule::Absent);
    }
    for (operator, equal) in [("!=", false), ("==", true), ("=", true)] {
        if let Some((key, value)) = term.split_once(operator) {
            let set = vec![SmolStr::from(value.trim())];
            return make(key, if equal { Rule::In(set) } else { Rule::NotIn(set) });
        }
    }
    for (operator, above) in [('>', true), ('<', false)] {
        if let Some((key, value)) = term.split_once(operator) {
            let bound: i64 = value.trim().parse().map_err(|_| broken())?;
            return make(key, if above { Rule::Above(bound) } else { Rule::Below(bound) });
        }
    }
    let Some((head, values)) = term.split_once('(') else { return make(term, Rule::Exists) };
    let values = values.trim_end().strip_suffix(')').ok_or_else(broken)?;
    let set: Vec<SmolStr> = values.split(',').map(|v| v.trim().into()).collect();
    match head.trim().rsplit_once(char::is_whitespace) {
        Some((key, "in")) => make(key, Rule::In(set)),
        Some((key, "notin")) => make(key, Rule::NotIn(set)),
        _ => Err(broken()),
    }
}

fn parse_fields(storage: &Storage, text: &str) -> Result<Vec<FieldTerm>, Status> {
    let mut list = Vec::new();
    for term in text.split(',').filter(|term| !term.is_empty()) {
        let split = [("!=", false), ("==", true), ("=", true)]
            .into_iter()
            .find_map(|(operator, equal)| term.split_once(operator).map(|(f, v)| (f, v, equal)));
        let Some((field, value, equal)) = split else {
            let text = format!("invalid selector: '{text}'; can't understand '{term}'");
            return Err(Status::bad_request(text));
        };
        list.push(FieldTerm { field: field_ref(storage, field)?, equal, value: unescape(value) });
    }
    Ok(list)
}

fn field_ref(storage: &Storage, field: &str) -> Result<FieldRef, Status> {
    match field {
        "metadata.name" => Ok(FieldRef::Name),
        "metadata.namespace" if storage.namespaced || storage.strategy.selectable_fields().is_empty() => {
            Ok(FieldRef::Namespace)
        }
        _ => {
            let own = storage.strategy.selectable_fields().iter().position(|f| *f == field);
            own.map(FieldRef::Own).ok_or_else(|| Status::bad_request(unsupported(&*storage.strategy, field)))
        }
    }
}

fn unsupported(strategy: &dyn Strategy, field: &str) -> String {
    if strategy.selectable_fields().is_empty() {
        format!("{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
    } else {
        format!("field label not supported: {field}")
    }
}

/// `\,`, `\=` and `\\` stand for themselves.
fn unescape(value: &str) -> SmolStr {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
    }
    out.into()
}

/// Whether a `metav1.LabelSelector` (as a value) selects these labels. An empty one selects
/// everything, a missing one nothing.
pub fn label_selector_matches(selector: Option<&machinery::Value>, object: &Object) -> bool {
    let Some(selector) = selector else { return false };
    let label = |key: &str| object.label(key);
    let equal = selector.get("matchLabels").and_then(|m| m.as_map());
    let equal = equal.is_none_or(|map| map.iter().all(|(k, v)| label(k) == v.as_str()));
    let terms = selector.get("matchExpressions").and_then(|l| l.as_list()).unwrap_or(&[]);
    equal && terms.iter().all(|term| expression_matches(term, label))
}

fn expression_matches<'a>(term: &machinery::Value, label: impl Fn(&str) -> Option<&'a str>) -> bool {
    let text = |field| term.get(field).and_then(|v| v.as_str()).unwrap_or_default();
    let values = term.get("values").and_then(|v| v.as_list()).unwrap_or(&[]);
    let set = || values.iter().filter_map(|v| v.as_str()).map(SmolStr::from).collect();
    let rule = match text("operator") {
        "In" => Rule::In(set()),
        "NotIn" => Rule::NotIn(set()),
        "Exists" => Rule::Exists,
        "DoesNotExist" => Rule::Absent,
        _ => return false,
    };
    Requirement { key: text("key").into(), rule }.matches(label(text("key")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery::value;

    fn selects(selector: &str, labels: &[(&str, &str)]) -> bool {
        let parsed = parse_labels(selector).unwrap();
        parsed.iter().all(|r| r.matches(labels.iter().find(|(k, _)| *k == r.key).map(|(_, v)| *v)))
    }

    #[test]
    fn label_selectors_follow_the_query_syntax() {
        let labels = [("app", "web"), ("tier", "front"), ("weight", "5")];
        for yes in ["", "app", "app=web", "app==web,tier=front", "app in (web, api)", "!gone", "gone!=x", "x notin (a,b)", "weight>4", "weight<6"] {
            assert!(selects(yes, &labels), "{yes}");
        }
        for no in ["gone", "app=api", "app in (api)", "!app", "app notin (web)", "weight>5"] {
            assert!(!selects(no, &labels), "{no}");
        }
        assert!(parse_labels("a b").is_err());
        assert!(parse_labels("a in (b").is_err());
    }

    #[test]
    fn a_selector_value_matches_objects() {
        let mut object = Object::new("v1", "Pod", "a", "b");
        object.set_at(&["metadata", "labels", "app"], "web");
        let yes = value!({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]});
        assert!(label_selector_matches(Some(&yes), &object));
        assert!(label_selector_matches(Some(&value!({})), &object));
        assert!(!label_selector_matches(None, &object));
        let no = value!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["api"]}]});
        assert!(!label_selector_matches(Some(&no), &object));
    }
}
