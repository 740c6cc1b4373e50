//! Label and field selectors: as query strings and built from requirements.

mod field;
mod parse;

use std::fmt;

use smol_str::SmolStr;

use crate::names;

pub use field::{FieldRequirement, FieldSelector};

/// A conjunction of requirements on labels; the empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    /// Matches no object at all: what a missing `LabelSelector` means.
    nothing: bool,
}

/// One requirement on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: SmolStr,
    pub operator: Operator,
    /// Sorted, each once.
    pub values: Vec<SmolStr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    In,
    NotIn,
    Equals,
    DoubleEquals,
    NotEquals,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// Why a selector is invalid, in Kubernetes' words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

impl LabelSelector {
    pub fn everything() -> Self {
        Self::default()
    }

    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// Parses `a=b,c in (d,e),!f`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = parse::requirements(text)?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// Each label must have exactly this value.
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let equals = |(key, value): (&str, &str)| Requirement {
            key: key.into(),
            operator: Operator::Equals,
            values: vec![value.into()],
        };
        Self { requirements: labels.into_iter().map(equals).collect(), nothing: false }
    }

    pub fn from_requirements(requirements: Vec<Requirement>) -> Self {
        Self { requirements, nothing: false }
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    pub fn is_nothing(&self) -> bool {
        self.nothing
    }

    /// `label` gives an object's value of a key.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(label(&r.key)))
    }
}

impl Requirement {
    /// Checks key, operator and values against each other.
    pub fn new(
        key: &str,
        operator: Operator,
        values: &[impl AsRef<str>],
    ) -> Result<Self, SelectorError> {
        let values: Vec<&str> = values.iter().map(AsRef::as_ref).collect();
        let mut faults = Vec::new();
        check("key", &quoted(key), names::label_key(key), &mut faults);
        let list = format!("[{}]", values.iter().map(|v| quoted(v)).collect::<Vec<_>>().join(","));
        if let Some(fault) = operator.count_fault(values.len()) {
            faults.push(format!("values: Invalid value: {list}: {fault}"));
        }
        for (at, value) in values.iter().enumerate() {
            let path = format!("values[{at}][{key}]");
            if operator.is_order() && value.parse::<i64>().is_err() {
                let fault = "for 'Gt', 'Lt' operators, the value must be an integer";
                faults.push(format!("values[{at}]: Invalid value: {}: {fault}", quoted(value)));
            }
            check(&path, &quoted(value), names::label_value(value), &mut faults);
        }
        match faults.as_slice() {
            [] => Ok(Self::unchecked(key, operator, &values)),
            [one] => Err(SelectorError(one.clone())),
            many => Err(SelectorError(format!("[{}]", many.join(", ")))),
        }
    }

    fn unchecked(key: &str, operator: Operator, values: &[&str]) -> Self {
        let mut values: Vec<SmolStr> = values.iter().map(SmolStr::new).collect();
        values.sort();
        values.dedup();
        Self { key: key.into(), operator, values }
    }

    pub fn matches(&self, value: Option<&str>) -> bool {
        let listed = |value: &str| self.values.iter().any(|v| v == value);
        match self.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => value.is_some_and(listed),
            Operator::NotIn | Operator::NotEquals => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => self.compare(value).is_some_and(|(a, b)| a > b),
            Operator::LessThan => self.compare(value).is_some_and(|(a, b)| a < b),
        }
    }

    fn compare(&self, value: Option<&str>) -> Option<(i64, i64)> {
        Some((value?.parse().ok()?, self.values.first()?.parse().ok()?))
    }
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}

fn check(path: &str, value: &str, wrong: names::Faults, faults: &mut Vec<String>) {
    if !wrong.is_empty() {
        faults.push(format!("{path}: Invalid value: {value}: {}", wrong.join("; ")));
    }
}

impl Operator {
    fn is_order(self) -> bool {
        matches!(self, Self::GreaterThan | Self::LessThan)
    }

    fn count_fault(self, count: usize) -> Option<&'static str> {
        match self {
            Self::In | Self::NotIn => {
                (count == 0).then_some("for 'in', 'notin' operators, values set can't be empty")
            }
            Self::Equals | Self::DoubleEquals | Self::NotEquals => {
                (count != 1).then_some("exact-match compatibility requires one single value")
            }
            Self::Exists | Self::DoesNotExist => {
                (count != 0).then_some("values set must be empty for exists and does not exist")
            }
            Self::GreaterThan | Self::LessThan => {
                (count != 1).then_some("for 'Gt', 'Lt' operators, exactly one value is required")
            }
        }
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.requirements.iter().map(Requirement::to_string).collect();
        f.write_str(&parts.join(","))
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, list) = (&self.key, self.values.join(","));
        match self.operator {
            Operator::In => write!(f, "{key} in ({list})"),
            Operator::NotIn => write!(f, "{key} notin ({list})"),
            Operator::Equals => write!(f, "{key}={list}"),
            Operator::DoubleEquals => write!(f, "{key}=={list}"),
            Operator::NotEquals => write!(f, "{key}!={list}"),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{list}"),
            Operator::LessThan => write!(f, "{key}<{list}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(selector: &str, labels: &[(&str, &str)]) -> bool {
        let value = |key: &str| labels.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
        LabelSelector::parse(selector).unwrap().matches(value)
    }

    #[test]
    fn label_selectors_match() {
        let labels = [("app", "web"), ("tier", "front"), ("n", "5"), ("e", "")];
        for selector in [
            "",
            "app=web",
            "app==web,tier!=back",
            "app in (db, web)",
            "app notin (db)",
            "!x",
            "e",
            "n>4",
            "n<6",
            "missing!=1",
            "e=",
            "e in ()",
            "example.com/x notin (a)",
            " app = web ",
        ] {
            assert!(matches(selector, &labels), "{selector}");
        }
        for selector in ["app!=web", "x", "!app", "n>5", "app>1", "app in (db)", "x in ()"] {
            assert!(!matches(selector, &labels), "{selector}");
        }
        assert!(!LabelSelector::nothing().matches(|_| Some("")));
    }

    #[test]
    fn bad_label_selectors_have_kubernetes_words() {
        for (text, expected) in [
            ("a,", "found '', expected: identifier after ','"),
            ("=a", "found '=', expected: !, identifier, or 'end of string'"),
            (
                "a b",
                "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
            ),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("a in (b c)", "unable to parse requirement: found 'c', expected: ',' or ')'"),
            ("a=b c", "found 'c', expected: ',' or 'end of string'"),
            ("!", "unable to parse requirement: found '', expected: identifier"),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap_err().to_string(), expected, "{text}");
        }
        assert!(LabelSelector::parse("a=b!c").is_err());
        assert!(LabelSelector::parse("a/b/c=d").is_err());
    }

    #[test]
    fn selectors_print_as_they_parse() {
        for text in ["a=b", "a in (b,c),!d,e", "x!=y", "a notin (b)"] {
            assert_eq!(LabelSelector::parse(text).unwrap().to_string(), text);
        }
    }
}
