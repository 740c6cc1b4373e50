//! Label and field selectors: as query strings and built from requirements.

use std::fmt;

use smol_str::SmolStr;

use crate::names;

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
        let mut requirements = Parser { tokens: lex(text), at: 0 }.selector()?;
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
        let mut values: Vec<SmolStr> = values.iter().map(|v| SmolStr::new(v)).collect();
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
            Self::GreaterThan | Self::LessThan => (count != 1)
                .then_some("for 'Gt', 'Lt' operators, exactly one value is required"),
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

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Symbol(&'static str),
    End,
}

const SYMBOLS: [&str; 9] = ["==", "!=", "=", "!", "<", ">", "(", ")", ","];

fn lex(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start_matches([' ', '\t', '\r', '\n']);
    while !rest.is_empty() {
        let symbol = SYMBOLS.into_iter().find(|s| rest.starts_with(s));
        let length = match symbol {
            Some(symbol) => {
                tokens.push(Token::Symbol(symbol));
                symbol.len()
            }
            None => {
                let end = |c: char| " \t\r\n=!<>(),".contains(c);
                let length = rest.find(end).unwrap_or(rest.len());
                tokens.push(Token::Word(rest[..length].to_owned()));
                length
            }
        };
        rest = rest[length..].trim_start_matches([' ', '\t', '\r', '\n']);
    }
    tokens.push(Token::End);
    tokens
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Self::Word(word) => word,
            Self::Symbol(symbol) => symbol,
            Self::End => "",
        }
    }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

fn found(token: &Token, expected: &str) -> SelectorError {
    SelectorError(format!("found '{}', expected: {expected}", token.text()))
}

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).unwrap_or(&Token::End)
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn selector(&mut self) -> Result<Vec<Requirement>, SelectorError> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                Token::End => return Ok(requirements),
                Token::Word(_) | Token::Symbol("!") => {}
                other => return Err(found(other, "!, identifier, or 'end of string'")),
            }
            let requirement = self.requirement().map_err(|error| {
                SelectorError(format!("unable to parse requirement: {error}"))
            })?;
            requirements.push(requirement);
            match self.next() {
                Token::End => return Ok(requirements),
                Token::Symbol(",") => {}
                other => return Err(found(&other, "',' or 'end of string'")),
            }
            if !matches!(self.peek(), Token::Word(_) | Token::Symbol("!")) {
                return Err(found(self.peek(), "identifier after ','"));
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let mut token = self.next();
        let absent = token == Token::Symbol("!");
        if absent {
            token = self.next();
        }
        let Token::Word(key) = token else { return Err(found(&token, "identifier")) };
        let wrong = names::label_key(&key);
        if !wrong.is_empty() {
            let text = format!("<nil>: Invalid value: {}: {}", quoted(&key), wrong.join("; "));
            return Err(SelectorError(text));
        }
        let none: [&str; 0] = [];
        if absent {
            return Requirement::new(&key, Operator::DoesNotExist, &none);
        }
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Requirement::new(&key, Operator::Exists, &none);
        }
        let operator = self.operator()?;
        let mut values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.exact_value()?],
        };
        values.sort();
        values.dedup();
        Requirement::new(&key, operator, &values)
    }

    fn operator(&mut self) -> Result<Operator, SelectorError> {
        let token = self.next();
        Ok(match token.text() {
            "in" => Operator::In,
            "notin" => Operator::NotIn,
            "=" => Operator::Equals,
            "==" => Operator::DoubleEquals,
            "!=" => Operator::NotEquals,
            ">" => Operator::GreaterThan,
            "<" => Operator::LessThan,
            _ => return Err(found(&token, "in, notin, =, ==, !=, gt, lt")),
        })
    }

    fn exact_value(&mut self) -> Result<String, SelectorError> {
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Ok(String::new());
        }
        match self.next() {
            Token::Word(word) => Ok(word),
            other => Err(found(&other, "identifier")),
        }
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        let open = self.next();
        if open != Token::Symbol("(") {
            return Err(SelectorError(format!("found '{}' expected: '('", open.text())));
        }
        let mut values = Vec::new();
        let mut after_word = false;
        loop {
            let token = self.next();
            match token {
                Token::Symbol(")") => {
                    if !after_word {
                        values.push(String::new());
                    }
                    return Ok(values);
                }
                Token::Symbol(",") => {
                    if !after_word {
                        values.push(String::new());
                    }
                    after_word = false;
                }
                Token::Word(word) if !after_word => {
                    values.push(word);
                    after_word = true;
                }
                other if after_word => return Err(found(&other, "',' or ')'")),
                other => return Err(found(&other, "',', ')' or identifier")),
            }
        }
    }
}

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
            let bad = || {
                SelectorError(format!("invalid selector: '{text}'; can't understand '{part}'"))
            };
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
        let holds = |r: &FieldRequirement| {
            (field(&r.field).unwrap_or_default() == r.value) != r.negated
        };
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

    fn matches(selector: &str, labels: &[(&str, &str)]) -> bool {
        let value = |key: &str| labels.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
        LabelSelector::parse(selector).unwrap().matches(value)
    }

    #[test]
    fn label_selectors_match() {
        let labels = [("app", "web"), ("tier", "front"), ("n", "5"), ("e", "")];
        for selector in [
            "", "app=web", "app==web,tier!=back", "app in (db, web)", "app notin (db)", "!x", "e",
            "n>4", "n<6", "missing!=1", "e=", "e in ()", "example.com/x notin (a)", " app = web ",
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
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
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
