//! The template language of `-o jsonpath=`: text with `{expressions}` that select values.
//!
//! Covered: fields (`.a`, `['a.b']`, `.a\.b`), `[*]`, `.*`, `[n]`, `[a:b:s]`, unions, `..a`,
//! filters with one comparison or a bare path, `{range}…{end}`, quoted text. What is missing in
//! the object gives nothing, as kubectl's `get` does.

use machinery::Value;

use crate::{Error, Result};

/// A parsed template.
#[derive(Clone, Debug)]
pub struct JsonPath(Vec<Node>);

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Text(String),
    Path(Vec<Step>),
    Range(Vec<Step>, Vec<Node>),
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// `$`: back to the whole document.
    Root,
    Field(String),
    Wildcard,
    /// `..`: the value and everything below it.
    Descend,
    /// Start, end, step; counted from the end when negative.
    Slice(Option<i64>, Option<i64>, i64),
    Index(i64),
    Union(Vec<Step>),
    Filter(Operand, Option<(Comparison, Operand)>),
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    Path(Vec<Step>),
    Literal(Value),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl JsonPath {
    /// Parses a template; an expression without braces, such as `.a.b`, is taken as one too.
    pub fn parse(template: &str) -> Result<Self> {
        let template = template.trim_matches('\0');
        if template.is_empty() {
            return Err(Error::other("template format specified but no template given"));
        }
        let relaxed = !template.contains('{');
        let whole = match relaxed {
            true => format!("{{{}}}", template.trim_start_matches('$')),
            false => template.to_owned(),
        };
        parse_template(&whole)
            .map(Self)
            .map_err(|why| Error::other(format!("error parsing jsonpath {template}, {why}")))
    }

    /// The text of the template with all values filled in.
    pub fn evaluate(&self, root: &Value) -> String {
        let mut out = String::new();
        print_nodes(&self.0, root, root, &mut out);
        out
    }

    /// The values that the expressions select, without text.
    pub fn values<'a>(&self, root: &'a Value) -> Vec<&'a Value> {
        let paths = self.0.iter().filter_map(|node| match node {
            Node::Path(steps) => Some(walk(steps, root, root)),
            _ => None,
        });
        paths.flatten().collect()
    }
}

fn print_nodes(nodes: &[Node], root: &Value, current: &Value, out: &mut String) {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Path(steps) => {
                let texts: Vec<String> = walk(steps, root, current).into_iter().map(text).collect();
                out.push_str(&texts.join(" "));
            }
            Node::Range(steps, body) => {
                for item in walk(steps, root, current) {
                    print_nodes(body, root, item, out);
                }
            }
        }
    }
}

/// A value as it stands in text: strings bare, maps and lists as JSON.
pub fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.to_string(),
        Value::Null => String::new(),
        other => String::from_utf8_lossy(&machinery::json::to_vec(other)).into_owned(),
    }
}

fn walk<'a>(steps: &[Step], root: &'a Value, current: &'a Value) -> Vec<&'a Value> {
    steps.iter().fold(vec![current], |values, step| {
        values.into_iter().flat_map(|value| take(step, root, value)).collect()
    })
}

fn take<'a>(step: &Step, root: &'a Value, value: &'a Value) -> Vec<&'a Value> {
    match step {
        Step::Root => vec![root],
        Step::Field(name) => match value {
            Value::Map(map) => map.get(name).into_iter().collect(),
            _ => Vec::new(),
        },
        Step::Wildcard => children(value),
        Step::Descend => descendants(value),
        Step::Index(at) => {
            let list = value.as_list().unwrap_or_default();
            let at = if *at < 0 { *at + list.len() as i64 } else { *at };
            usize::try_from(at).ok().and_then(|at| list.get(at)).into_iter().collect()
        }
        Step::Slice(from, to, by) => {
            let list = value.as_list().unwrap_or_default();
            let length = list.len() as i64;
            let place = |at: i64| (if at < 0 { at + length } else { at }).clamp(0, length) as usize;
            let (from, to) = (place(from.unwrap_or(0)), place(to.unwrap_or(length)));
            list.get(from..to.max(from))
                .unwrap_or_default()
                .iter()
                .step_by((*by).max(1) as usize)
                .collect()
        }
        Step::Union(steps) => steps.iter().flat_map(|step| take(step, root, value)).collect(),
        Step::Filter(left, comparison) => {
            let mut kept = value.as_list().unwrap_or_default().iter().collect::<Vec<_>>();
            kept.retain(|item| holds(left, comparison.as_ref(), root, item));
            kept
        }
    }
}

fn children(value: &Value) -> Vec<&Value> {
    match value {
        Value::List(list) => list.iter().collect(),
        Value::Map(map) => map.iter().map(|(_, v)| v).collect(),
        _ => Vec::new(),
    }
}

fn descendants(value: &Value) -> Vec<&Value> {
    let mut all = vec![value];
    for child in children(value) {
        all.extend(descendants(child));
    }
    all
}

fn holds(
    left: &Operand,
    comparison: Option<&(Comparison, Operand)>,
    root: &Value,
    item: &Value,
) -> bool {
    let first = |operand: &Operand| match operand {
        Operand::Literal(value) => Some(value.clone()),
        Operand::Path(steps) => walk(steps, root, item).first().map(|&v| v.clone()),
    };
    let Some((comparison, right)) = comparison else { return first(left).is_some() };
    let (Some(left), Some(right)) = (first(left), first(right)) else { return false };
    let Some(order) = order(&left, &right) else {
        return *comparison == Comparison::NotEqual;
    };
    match comparison {
        Comparison::Equal => order.is_eq(),
        Comparison::NotEqual => order.is_ne(),
        Comparison::Less => order.is_lt(),
        Comparison::LessOrEqual => order.is_le(),
        Comparison::Greater => order.is_gt(),
        Comparison::GreaterOrEqual => order.is_ge(),
    }
}

fn order(left: &Value, right: &Value) -> Option<std::cmp::Ordering> {
    let number = |value: &Value| match value {
        Value::Int(n) => Some(*n as f64),
        Value::Float(n) => Some(*n),
        _ => None,
    };
    match (left, right) {
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        _ => number(left)?.partial_cmp(&number(right)?),
    }
}

/// Splits a template into text and expressions and nests the ranges.
fn parse_template(template: &str) -> Result<Vec<Node>, String> {
    let mut stack: Vec<(Vec<Step>, Vec<Node>)> = vec![(Vec::new(), Vec::new())];
    let mut rest = template;
    while !rest.is_empty() {
        let Some(open) = rest.find('{') else {
            push(&mut stack, Node::Text(rest.into()));
            break;
        };
        if open > 0 {
            push(&mut stack, Node::Text(rest[..open].into()));
        }
        let close = closing_brace(&rest[open + 1..]).ok_or("unclosed action")?;
        let inner = rest[open + 1..open + 1 + close].trim();
        rest = &rest[open + close + 2..];
        if inner == "end" {
            let (steps, body) = stack.pop().ok_or("not in range, nothing to end")?;
            if stack.is_empty() {
                return Err("not in range, nothing to end".into());
            }
            push(&mut stack, Node::Range(steps, body));
        } else if let Some(range) = inner.strip_prefix("range ") {
            stack.push((Parser::new(range.trim()).path()?, Vec::new()));
        } else {
            for node in Parser::new(inner).action()? {
                push(&mut stack, node);
            }
        }
    }
    match (stack.pop(), stack.is_empty()) {
        (Some((_, nodes)), true) => Ok(nodes),
        _ => Err("unterminated range".into()),
    }
}

fn push(stack: &mut [(Vec<Step>, Vec<Node>)], node: Node) {
    if let Some((_, nodes)) = stack.last_mut() {
        nodes.push(node);
    }
}

/// The place of the `}` that ends an action, not one inside quotes.
fn closing_brace(text: &str) -> Option<usize> {
    let (mut quote, mut escaped) = (None, false);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (_, '\\') => escaped = true,
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, '}') => return Some(at),
            _ => {}
        }
    }
    None
}

struct Parser<'a> {
    text: &'a str,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Self { text }
    }

    fn peek(&self) -> Option<char> {
        self.text.chars().next()
    }

    fn eat(&mut self, prefix: &str) -> bool {
        match self.text.strip_prefix(prefix) {
            Some(rest) => {
                self.text = rest;
                true
            }
            None => false,
        }
    }

    /// The inside of braces: quoted texts and paths after each other.
    fn action(&mut self) -> Result<Vec<Node>, String> {
        let mut nodes = Vec::new();
        loop {
            self.text = self.text.trim_start();
            match self.peek() {
                None => return Ok(nodes),
                Some('"' | '\'') => nodes.push(Node::Text(self.quoted()?)),
                Some(_) => {
                    let before = self.text.len();
                    nodes.push(Node::Path(self.path()?));
                    if self.text.len() == before {
                        return Err(format!("unrecognized character in action: {:?}", self.text));
                    }
                }
            }
        }
    }

    fn quoted(&mut self) -> Result<String, String> {
        let open = self.peek().ok_or("text is missing")?;
        let mut out = String::new();
        let mut chars = self.text.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => match chars.next().map(|(_, c)| c) {
                    Some('n') => out.push('\n'),
                    Some('t') => out.push('\t'),
                    Some('r') => out.push('\r'),
                    Some(other) => out.push(other),
                    None => break,
                },
                c if c == open => {
                    self.text = &self.text[at + c.len_utf8()..];
                    return Ok(out);
                }
                c => out.push(c),
            }
        }
        Err("unterminated quoted string".into())
    }

    fn path(&mut self) -> Result<Vec<Step>, String> {
        let mut steps = Vec::new();
        if self.eat("$") {
            steps.push(Step::Root);
        } else {
            self.eat("@");
        }
        loop {
            if self.eat("..") {
                steps.push(Step::Descend);
                if self.peek() != Some('[') {
                    steps.push(self.field()?);
                }
            } else if self.eat(".") {
                match self.peek() {
                    None | Some('[' | ' ' | ')') => {}
                    _ => steps.push(self.field()?),
                }
            } else if self.eat("[") {
                steps.push(self.bracket()?);
            } else if steps.is_empty() && self.peek().is_some_and(char::is_alphabetic) {
                steps.push(self.field()?);
            } else {
                return Ok(steps);
            }
        }
    }

    fn field(&mut self) -> Result<Step, String> {
        if self.eat("*") {
            return Ok(Step::Wildcard);
        }
        let mut name = String::new();
        let mut chars = self.text.char_indices().peekable();
        let end = loop {
            match chars.next() {
                None => break self.text.len(),
                Some((_, '\\')) => name.extend(chars.next().map(|(_, c)| c)),
                Some((at, c)) if ".[]{}()=!<>, |\t\n\"'".contains(c) => break at,
                Some((_, c)) => name.push(c),
            }
        };
        self.text = &self.text[end..];
        match name.is_empty() {
            true => Err(format!("a field name is missing before {:?}", self.text)),
            false => Ok(Step::Field(name)),
        }
    }

    /// What follows `[`, with the closing bracket.
    fn bracket(&mut self) -> Result<Step, String> {
        if self.eat("?(") {
            let filter = self.filter()?;
            self.text = self.text.trim_start();
            return match self.eat(")]") {
                true => Ok(filter),
                false => Err("unterminated filter".into()),
            };
        }
        let mut steps = Vec::new();
        loop {
            self.text = self.text.trim_start();
            steps.push(self.subscript()?);
            self.text = self.text.trim_start();
            if self.eat("]") {
                break;
            }
            if !self.eat(",") {
                return Err("unterminated array".into());
            }
        }
        Ok(if steps.len() == 1 { steps.remove(0) } else { Step::Union(steps) })
    }

    fn subscript(&mut self) -> Result<Step, String> {
        if self.eat("*") {
            return Ok(Step::Wildcard);
        }
        if matches!(self.peek(), Some('"' | '\'')) {
            return Ok(Step::Field(self.quoted()?));
        }
        let end = self.text.find([',', ']']).ok_or("unterminated array")?;
        let (inner, rest) = self.text.split_at(end);
        self.text = rest;
        let parts: Vec<Option<i64>> = inner
            .split(':')
            .map(|part| match part.trim() {
                "" => Ok(None),
                number => {
                    number.parse().map(Some).map_err(|_| format!("invalid array index {inner}"))
                }
            })
            .collect::<Result<_, String>>()?;
        match parts.as_slice() {
            [Some(at)] => Ok(Step::Index(*at)),
            [from, to] => Ok(Step::Slice(*from, *to, 1)),
            [from, to, by] => Ok(Step::Slice(*from, *to, by.unwrap_or(1))),
            _ => Err(format!("invalid array index {inner}")),
        }
    }

    fn filter(&mut self) -> Result<Step, String> {
        let left = self.operand()?;
        self.text = self.text.trim_start();
        let signs = [
            ("==", Comparison::Equal),
            ("!=", Comparison::NotEqual),
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::GreaterOrEqual),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
        ];
        let Some((_, comparison)) = signs.into_iter().find(|(sign, _)| self.eat(sign)) else {
            return Ok(Step::Filter(left, None));
        };
        Ok(Step::Filter(left, Some((comparison, self.operand()?))))
    }

    fn operand(&mut self) -> Result<Operand, String> {
        self.text = self.text.trim_start();
        match self.peek() {
            Some('"' | '\'') => Ok(Operand::Literal(self.quoted()?.into())),
            Some('@' | '$' | '.') => Ok(Operand::Path(self.path()?)),
            _ => {
                let end = self.text.find([' ', ')', '=', '!', '<', '>']).unwrap_or(self.text.len());
                let (word, rest) = self.text.split_at(end);
                self.text = rest;
                let value = machinery::json::parse(word.as_bytes());
                value
                    .map(Operand::Literal)
                    .map_err(|_| format!("unrecognized value {word:?} in a filter"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery::value;

    fn check(template: &str, expected: &str) {
        let document = value!({
            "kind": "List",
            "items": [
                {"metadata": {"name": "a", "labels": {"app.kubernetes.io/name": "x"}},
                 "n": 1, "ok": true, "ip": [{"type": "In", "v": "1.2.3.4"}, {"type": "Out", "v": "5.6.7.8"}]},
                {"metadata": {"name": "b"}, "n": 20, "ok": false},
            ],
            "status": {"loadBalancer": {"ingress": [{"ip": "10.0.0.1"}]}},
        });
        let found = JsonPath::parse(template).unwrap().evaluate(&document);
        assert_eq!(found, expected, "{template}");
    }

    #[test]
    fn templates_select_and_print() {
        check("{.status.loadBalancer.ingress[0].ip}", "10.0.0.1");
        check(".kind", "List");
        check("{$.kind}", "List");
        check("{.items[*].metadata.name}", "a b");
        check("{.items[-1].metadata.name}", "b");
        check("{.items[0:1].n}", "1");
        check("{.items[0].metadata.labels.app\\.kubernetes\\.io/name}", "x");
        check("{.items[0].metadata.labels['app.kubernetes.io/name']}", "x");
        check("{.items[?(@.n>5)].metadata.name}", "b");
        check("{.items[?(@.metadata.name==\"a\")].ip[?(@.type==\"Out\")].v}", "5.6.7.8");
        check("{.items[?(@.ip)].metadata.name}", "a");
        check("{.items[?(@.ok==true)].metadata.name}", "a");
        check("{range .items[*]}{.metadata.name}{\"\\t\"}{.n}{\"\\n\"}{end}", "a\t1\nb\t20\n");
        check("{range .items[*]}{range .ip[*]}{.v},{end}{end}", "1.2.3.4,5.6.7.8,");
        check("{.items[*]['metadata.name', 'n']}", "1 20");
        check("{..name}", "a b");
        check(
            "name={.items[0].metadata}",
            "name={\"labels\":{\"app.kubernetes.io/name\":\"x\"},\"name\":\"a\"}",
        );
        check("{.missing.deep[3]}", "");
        check("{.items[0].ok}/{.items[1].n}", "true/20");
    }

    #[test]
    fn broken_templates_are_errors() {
        for template in
            ["{.a", "{range .a}x", "{end}", "{.a[}", "{.a[?(@.b==\"c\"]}", "{.a[x]}", ""]
        {
            assert!(JsonPath::parse(template).is_err(), "{template}");
        }
    }
}
