//! What ownership needs to know of trees: which paths a configuration sets, what a merge makes
//! of two trees, and a tree without some paths.

use super::{
    path::PathElement,
    set::FieldSet,
    shape::{Node, Ownership, item_keys},
};
use crate::{Map, Value};

/// A path and why the tree is invalid there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub path: String,
    pub text: String,
}

/// The element of a list's item. An item without its keys has none.
fn element(item: &Value, how: &Ownership, node: Node) -> Option<PathElement> {
    match how {
        Ownership::Keyed(keys) => item_keys(item, keys, node).ok().map(PathElement::Key),
        _ => Some(PathElement::Value(item.clone())),
    }
}

/// The items of a list by element, in order. Of items with one element the first counts.
pub(super) fn index<'v>(
    items: &'v [Value],
    how: &Ownership,
    node: Node,
) -> Vec<(PathElement, &'v Value)> {
    items.iter().filter_map(|item| Some((element(item, how, node)?, item))).collect()
}

/// The paths that a configuration sets.
pub fn to_set(value: &Value, node: Node) -> FieldSet {
    let mut set = FieldSet::new();
    match (node.ownership(value), value) {
        (Ownership::Fields, Value::Map(map)) => {
            for (name, value) in map.iter() {
                let (inner, declared) = node.field(name);
                let hollow = value.is_null() || value.as_map().is_some_and(Map::is_empty);
                let leaf = inner.ownership(value) == Ownership::Leaf;
                let below = if leaf { FieldSet::new() } else { to_set(value, inner) };
                let member = leaf || hollow || !declared;
                set.attach(PathElement::Field(name.clone()), below, member);
            }
        }
        (how @ (Ownership::Set | Ownership::Keyed(_)), Value::List(items)) => {
            for (element, item) in index(items, &how, node.item()) {
                set.attach(element, to_set(item, node.item()), true);
            }
        }
        _ => {}
    }
    set
}

/// Checks a configuration: declared fields only, each item once, with its keys.
pub fn validate(value: &Value, node: Node) -> Vec<Fault> {
    let mut faults = Vec::new();
    check(value, node, &mut String::new(), &mut faults);
    faults
}

fn check(value: &Value, node: Node, path: &mut String, faults: &mut Vec<Fault>) {
    let length = path.len();
    match (node.ownership(value), value) {
        (_, Value::Map(map)) if !matches!(node, Node::Deduced | Node::Atomic) => {
            for (name, value) in map.iter() {
                let (inner, declared) = node.field(name);
                path.push_str(&format!(".{name}"));
                if !declared && is_closed(node) {
                    faults.push(Fault {
                        path: path.clone(),
                        text: "field not declared in schema".into(),
                    });
                } else {
                    check(value, inner, path, faults);
                }
                path.truncate(length);
            }
        }
        (Ownership::Keyed(keys), Value::List(items)) => {
            let mut seen = std::collections::BTreeSet::new();
            for (at, item) in items.iter().enumerate() {
                match item_keys(item, &keys, node.item()) {
                    Ok(found) => {
                        let element = PathElement::Key(found);
                        let shown = element.to_string();
                        if !seen.insert(element) {
                            let text = format!("duplicate entries for key {shown}");
                            faults.push(Fault { path: path.clone(), text });
                        }
                        path.push_str(&shown);
                    }
                    Err(text) => {
                        let text = format!("element {at}: {text}");
                        faults.push(Fault { path: path.clone(), text });
                    }
                }
                check(item, node.item(), path, faults);
                path.truncate(length);
            }
        }
        (Ownership::Set, Value::List(items)) => {
            let mut seen = std::collections::BTreeSet::new();
            for item in items.iter() {
                let element = PathElement::Value(item.clone());
                let shown = element.to_string();
                if !seen.insert(element) {
                    let text = format!("duplicate entries for key {shown}");
                    faults.push(Fault { path: path.clone(), text });
                }
            }
        }
        (_, Value::List(items)) => {
            for (at, item) in items.iter().enumerate() {
                path.push_str(&format!("[{at}]"));
                check(item, node.item(), path, faults);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

/// Whether a type knows all its fields.
fn is_closed(node: Node) -> bool {
    use api::FieldType;
    matches!(node, Node::Struct { .. } | Node::Typed { ty: FieldType::Ref(_), .. })
}

/// A live tree with a configuration laid over it.
pub fn merge(live: &Value, config: &Value, node: Node) -> Value {
    if config.is_null() {
        return config.clone();
    }
    match (node.ownership(config), live, config) {
        (Ownership::Fields, Value::Map(live), Value::Map(config)) => {
            let mut out = live.clone();
            for (name, value) in config.iter() {
                let merged = match live.get(name) {
                    Some(before) => merge(before, value, node.field(name).0),
                    None => value.clone(),
                };
                out.insert(name.clone(), merged);
            }
            out.into()
        }
        (how @ (Ownership::Set | Ownership::Keyed(_)), Value::List(live), Value::List(config)) => {
            Value::from(merge_items(live, config, &how, node.item()))
        }
        _ => config.clone(),
    }
}

/// The configuration's items keep their order; live items that it does not name keep their
/// places among them.
fn merge_items(live: &[Value], config: &[Value], how: &Ownership, node: Node) -> Vec<Value> {
    let left = index(live, how, node);
    let right = index(config, how, node);
    let find = |list: &[(PathElement, &Value)], wanted: &PathElement| -> Option<Value> {
        list.iter().find(|(element, _)| element == wanted).map(|(_, item)| (*item).clone())
    };
    let merged = |element: &PathElement, item: &Value| match find(&left, element) {
        Some(before) => merge(&before, item, node),
        None => item.clone(),
    };
    let mut shared = right.iter().map(|(e, _)| e).filter(|e| find(&left, e).is_some()).peekable();
    let mut out = Vec::with_capacity(left.len() + right.len());
    let mut done: Vec<&PathElement> = Vec::new();
    let (mut l, mut r) = (0, 0);
    while l < left.len() || r < right.len() {
        if let (Some((element, _)), Some((next, item))) = (left.get(l), right.get(r)) {
            if element == next {
                done.push(next);
                out.push(merged(next, item));
                (l, r) = (l + 1, r + 1);
                shared.next();
                continue;
            }
            let wanted = shared.peek().is_some_and(|next| *next != element);
            if wanted && find(&right, element).is_some() {
                l += 1;
                continue;
            }
        }
        if let Some((element, item)) = left.get(l) {
            if find(&right, element).is_none() {
                out.push((*item).clone());
                l += 1;
                continue;
            }
            if done.contains(&element) {
                l += 1;
            }
        }
        if let Some((element, item)) = right.get(r) {
            done.push(element);
            out.push(merged(element, item));
            r += 1;
            if shared.peek() == Some(&element) {
                shared.next();
            }
        }
    }
    out
}

/// A tree without some paths. Maps and lists that end up empty go too.
pub fn remove(value: &Value, gone: &FieldSet, node: Node) -> Value {
    match (node.ownership(value), value) {
        (Ownership::Fields, Value::Map(map)) => {
            let mut out = Map::new();
            for (name, value) in map.iter() {
                let element = PathElement::Field(name.clone());
                if gone.has_member(&element) {
                    continue;
                }
                let value = match gone.child(&element) {
                    Some(below) => remove(value, below, node.field(name).0),
                    None => value.clone(),
                };
                if !value.is_null() || gone.child(&element).is_none() {
                    out.insert(name.clone(), value);
                }
            }
            if out.is_empty() { Value::Null } else { out.into() }
        }
        (how @ (Ownership::Set | Ownership::Keyed(_)), Value::List(items)) => {
            let mut out = Vec::with_capacity(items.len());
            for item in items.iter() {
                let Some(element) = element(item, &how, node.item()) else {
                    out.push(item.clone());
                    continue;
                };
                if gone.has_member(&element) {
                    continue;
                }
                match gone.child(&element) {
                    Some(below) => out.push(remove(item, below, node.item())),
                    None => out.push(item.clone()),
                }
            }
            if out.is_empty() { Value::Null } else { out.into() }
        }
        (_, Value::Map(_) | Value::List(_)) => Value::Null,
        _ => value.clone(),
    }
}
