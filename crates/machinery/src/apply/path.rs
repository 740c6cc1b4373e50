//! Elements of paths into an object, as `managedFields` writes them.

use std::{cmp::Ordering, fmt};

use smol_str::{SmolStr, SmolStrBuilder, format_smolstr};

use crate::{Map, Value, json};

/// One step of a path.
#[derive(Clone, Debug, PartialEq)]
pub enum PathElement {
    /// `f:name`: a field of a struct or map.
    Field(SmolStr),
    /// `k:{…}`: the item of a list with these keys.
    Key(Map),
    /// `v:…`: the item of a set.
    Value(Value),
    /// `i:N`: an item of an atomic list; read, never written.
    Index(i64),
}

impl PathElement {
    pub fn field(name: &str) -> Self {
        Self::Field(name.into())
    }

    /// Reads the form of `FieldsV1`; `None` when it is malformed.
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        Some(match kind {
            "f" => Self::Field(rest.into()),
            "v" => Self::Value(json::parse(rest.as_bytes()).ok()?),
            "k" => match json::parse(rest.as_bytes()).ok()? {
                Value::Map(map) => Self::Key(map),
                _ => return None,
            },
            "i" => Self::Index(rest.parse().ok()?),
            _ => return None,
        })
    }

    /// The form of `FieldsV1`.
    pub fn encode(&self) -> SmolStr {
        match self {
            Self::Field(name) => {
                let mut text = SmolStrBuilder::new();
                text.push_str("f:");
                text.push_str(name);
                text.finish()
            }
            Self::Key(map) => format_smolstr!("k:{map:?}"),
            Self::Value(value) => format_smolstr!("v:{value:?}"),
            Self::Index(at) => format_smolstr!("i:{at}"),
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Field(_) => 0,
            Self::Key(_) => 1,
            Self::Value(_) => 2,
            Self::Index(_) => 3,
        }
    }
}

impl fmt::Display for PathElement {
    /// As error texts show it: `.name`, `[name="a"]`, `[="x"]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Key(map) => {
                let keys: Vec<String> = map.iter().map(|(k, v)| format!("{k}={v:?}")).collect();
                write!(f, "[{}]", keys.join(","))
            }
            Self::Value(value) => write!(f, "[={value:?}]"),
            Self::Index(at) => write!(f, "[{at}]"),
        }
    }
}

impl Eq for PathElement {}

impl PartialOrd for PathElement {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PathElement {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Field(a), Self::Field(b)) => a.cmp(b),
            (Self::Key(a), Self::Key(b)) => compare_maps(a, b),
            (Self::Value(a), Self::Value(b)) => compare(a, b),
            (Self::Index(a), Self::Index(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

fn compare_maps(a: &Map, b: &Map) -> Ordering {
    for ((ka, va), (kb, vb)) in a.iter().zip(b.iter()) {
        let order = ka.cmp(kb).then_with(|| compare(va, vb));
        if order != Ordering::Equal {
            return order;
        }
    }
    a.len().cmp(&b.len())
}

/// A total order over values: by type, then by value.
fn compare(a: &Value, b: &Value) -> Ordering {
    let number = |v: &Value| match v {
        Value::Int(n) => Some(*n as f64),
        Value::Float(n) => Some(*n),
        _ => None,
    };
    if let (Value::Int(a), Value::Int(b)) = (a, b) {
        return a.cmp(b);
    }
    if let (Some(a), Some(b)) = (number(a), number(b)) {
        return a.total_cmp(&b);
    }
    match (a, b) {
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Map(a), Value::Map(b)) => compare_maps(a, b),
        (Value::List(a), Value::List(b)) => {
            let differing = a.iter().zip(b.iter()).map(|(a, b)| compare(a, b));
            let first = differing.into_iter().find(|order| *order != Ordering::Equal);
            first.unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        _ => rank(a).cmp(&rank(b)),
    }
}

fn rank(value: &Value) -> u8 {
    match value {
        Value::Float(_) => 0,
        Value::Int(_) => 1,
        Value::String(_) => 2,
        Value::Bool(_) => 3,
        Value::List(_) => 4,
        Value::Map(_) => 5,
        Value::Null => 6,
    }
}
