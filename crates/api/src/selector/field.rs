//! Field selectors.

use std::fmt;

use super::SelectorError;

/// A conjunction of requirements on fields: `metadata.name=a,status.phase!=Running`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    requirements: Vec<FieldRequirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    pub field: String,
    /// Whether the field must differ from the value.
    pub negated: bool,
    pub value: String,
}

impl FieldSelector {
    /// Parses a query string; empty parts are skipped, `\` escapes `,`, `=` and itself.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for part in split_unescaped(text) {
            if part.is_empty() {
                continue;
            }
            let bad =
                || SelectorError(format!("invalid selector: '{text}'; can't understand '{part}'"));
            let (field, negated, value) = split_operator(part).ok_or_else(bad)?;
            let value = unescape(value)?;
            requirements.push(FieldRequirement { field: field.to_owned(), negated, value });
        }
        Ok(Self { requirements })
    }

    pub fn requirements(&self) -> &[FieldRequirement] {
        &self.requirements
    }

    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// `field` gives an object's value of a field; a missing one is empty.
    pub fn matches<'a>(&self, field: impl Fn(&str) -> Option<&'a str>) -> bool {
        let holds =
            |r: &FieldRequirement| (field(&r.field).unwrap_or_default() == r.value) != r.negated;
        self.requirements.iter().all(holds)
    }

    /// The value that a field must have, when one requirement says so.
    pub fn exact(&self, field: &str) -> Option<&str> {
        let wanted = self.requirements.iter().find(|r| r.field == field && !r.negated);
        wanted.map(|r| r.value.as_str())
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn split_operator(part: &str) -> Option<(&str, bool, &str)> {
    let at = part.find(['=', '!'])?;
    let (field, rest) = part.split_at(at);
    if let Some(value) = rest.strip_prefix("!=") {
        return Some((field, true, value));
    }
    if let Some(value) = rest.strip_prefix("==") {
        return Some((field, false, value));
    }
    match rest.strip_prefix('=') {
        Some(value) => Some((field, false, value)),
        // A `!` within the name; the operator comes later.
        None => {
            let (head, negated, value) = split_operator(&rest[1..])?;
            Some((&part[..at + 1 + head.len()], negated, value))
        }
    }
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(next @ ('\\' | ',' | '=')) => out.push(next),
                other => {
                    let sequence: String = std::iter::once('\\').chain(other).collect();
                    return Err(SelectorError(format!(
                        "invalid field selector: invalid escape sequence: {sequence}"
                    )));
                }
            },
            ',' | '=' => {
                let code = u32::from(c);
                return Err(SelectorError(format!(
                    "invalid field selector: unescaped character in value: {code}"
                )));
            }
            _ => out.push(c),
        }
    }
    Ok(out)
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |r: &FieldRequirement| {
            let value = r.value.replace('\\', r"\\").replace(',', r"\,").replace('=', r"\=");
            format!("{}{}{value}", r.field, if r.negated { "!=" } else { "=" })
        };
        f.write_str(&self.requirements.iter().map(part).collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_selectors() {
        let fields = |name: &str| match name {
            "metadata.name" => Some("a,b"),
            "status.phase" => Some("Running"),
            _ => None,
        };
        let parse = |text| FieldSelector::parse(text).unwrap();
        assert!(parse(r"metadata.name=a\,b,status.phase!=Failed").matches(fields));
        assert!(!parse("status.phase!=Running").matches(fields));
        assert!(parse("spec.nodeName=").matches(fields));
        assert_eq!(parse(r"metadata.name==a\,b").exact("metadata.name"), Some("a,b"));
        let error = FieldSelector::parse("a").unwrap_err().to_string();
        assert_eq!(error, "invalid selector: 'a'; can't understand 'a'");
    }
}
