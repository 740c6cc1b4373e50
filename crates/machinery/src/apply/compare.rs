//! How two trees differ.

use std::collections::BTreeMap;

use super::{
    path::PathElement,
    set::FieldSet,
    shape::{Node, Ownership},
    tree::index,
};
use crate::{Map, Value};

/// How a new tree differs from an old one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    pub added: FieldSet,
    pub modified: FieldSet,
    pub removed: FieldSet,
}

/// What became of a value as a whole.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stays,
    Added,
    Modified,
    Removed,
}

pub fn compare(old: &Value, new: &Value, node: Node) -> Comparison {
    walk(Some(old), Some(new), node).1
}

impl Comparison {
    /// Without paths in `ignored` and below.
    pub fn without(self, ignored: &FieldSet) -> Self {
        if ignored.is_empty() {
            return self;
        }
        Self {
            added: self.added.recursive_difference(ignored),
            modified: self.modified.recursive_difference(ignored),
            removed: self.removed.recursive_difference(ignored),
        }
    }

    fn attach(&mut self, element: PathElement, fate: Fate, below: Self) {
        let sets = [
            (&mut self.added, below.added, Fate::Added),
            (&mut self.modified, below.modified, Fate::Modified),
            (&mut self.removed, below.removed, Fate::Removed),
        ];
        for (set, below, this) in sets {
            if fate == this || !below.is_empty() {
                set.attach(element.clone(), below, fate == this);
            }
        }
    }
}

fn walk(old: Option<&Value>, new: Option<&Value>, node: Node) -> (Fate, Comparison) {
    let mut out = Comparison::default();
    // Shared memory is equal without looking.
    if let (Some(Value::Map(a)), Some(Value::Map(b))) = (old, new)
        && a.same(b)
    {
        return (Fate::Stays, out);
    }
    let fate = match (old, new) {
        (None, _) => Fate::Added,
        (_, None) => Fate::Removed,
        _ => Fate::Stays,
    };
    let decisive = new.filter(|v| !v.is_null()).or(old).unwrap_or(&Value::Null);
    let how = node.ownership(decisive);
    if how == Ownership::Leaf || (hollow(old) && hollow(new)) {
        let modified = fate == Fate::Stays && old != new;
        return (if modified { Fate::Modified } else { fate }, out);
    }
    match how {
        Ownership::Fields => walk_fields(old, new, node, &mut out),
        how => walk_items(old, new, &how, node, &mut out),
    }
    (fate, out)
}

/// Missing, null or empty: the difference between those is one of the whole value.
fn hollow(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Map(map)) => map.is_empty(),
        Some(Value::List(items)) => items.is_empty(),
        Some(_) => false,
    }
}

fn walk_fields(old: Option<&Value>, new: Option<&Value>, node: Node, out: &mut Comparison) {
    let empty = Map::new();
    let old = old.and_then(Value::as_map).unwrap_or(&empty);
    let new = new.and_then(Value::as_map).unwrap_or(&empty);
    for (name, before) in old.iter().filter(|(name, _)| !new.contains_key(name)) {
        let (fate, below) = walk(Some(before), None, node.field(name).0);
        out.attach(PathElement::Field(name.clone()), fate, below);
    }
    for (name, after) in new.iter() {
        let (fate, below) = walk(old.get(name), Some(after), node.field(name).0);
        out.attach(PathElement::Field(name.clone()), fate, below);
    }
}

fn walk_items(
    old: Option<&Value>,
    new: Option<&Value>,
    how: &Ownership,
    node: Node,
    out: &mut Comparison,
) {
    let node = node.item();
    let items = |v: Option<&'_ Value>| index_of(v, how, node);
    let (old, mut new) = (items(old), items(new));
    for (element, before) in old {
        let (fate, below) = walk(Some(&before), new.remove(&element).as_ref(), node);
        out.attach(element, fate, below);
    }
    for (element, after) in new {
        let (fate, below) = walk(None, Some(&after), node);
        out.attach(element, fate, below);
    }
}

fn index_of(list: Option<&Value>, how: &Ownership, node: Node) -> BTreeMap<PathElement, Value> {
    let items = list.and_then(Value::as_list).unwrap_or(&[]);
    index(items, how, node).into_iter().map(|(element, item)| (element, item.clone())).collect()
}
