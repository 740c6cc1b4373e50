//! Sets of paths, and their form in `fieldsV1`.

use std::collections::{BTreeMap, BTreeSet};

use super::{path::PathElement, shape::Node};
use crate::{Map, Value};

/// A set of paths. A path may be in the set, below one that is, or both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    members: BTreeSet<PathElement>,
    /// No child is empty.
    children: BTreeMap<PathElement, FieldSet>,
}

impl FieldSet {
    pub fn new() -> Self {
        Self::default()
    }

    /// From paths of field names.
    pub fn of_fields(paths: &[&[&str]]) -> Self {
        let mut set = Self::new();
        for path in paths {
            let path: Vec<PathElement> = path.iter().map(|name| PathElement::field(name)).collect();
            set.insert(&path);
        }
        set
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.is_empty()
    }

    /// The empty path is ignored.
    pub fn insert(&mut self, path: &[PathElement]) {
        match path {
            [] => {}
            [last] => {
                self.members.insert(last.clone());
            }
            [first, rest @ ..] => self.children.entry(first.clone()).or_default().insert(rest),
        }
    }

    /// Puts a set below an element, and the element itself in when it is a `member`.
    pub(super) fn attach(&mut self, element: PathElement, below: FieldSet, member: bool) {
        if below.is_empty() {
            if member {
                self.members.insert(element);
            }
            return;
        }
        if member {
            self.members.insert(element.clone());
        }
        self.children.insert(element, below);
    }

    pub fn has(&self, path: &[PathElement]) -> bool {
        match path {
            [] => false,
            [last] => self.members.contains(last),
            [first, rest @ ..] => self.children.get(first).is_some_and(|c| c.has(rest)),
        }
    }

    pub(super) fn has_member(&self, element: &PathElement) -> bool {
        self.members.contains(element)
    }

    pub(super) fn child(&self, element: &PathElement) -> Option<&FieldSet> {
        self.children.get(element)
    }

    pub fn union(&self, other: &Self) -> Self {
        let mut out = self.clone();
        out.absorb(other.clone());
        out
    }

    /// Becomes the union with another set.
    pub fn absorb(&mut self, mut other: Self) {
        if self.is_empty() {
            *self = other;
            return;
        }
        self.members.append(&mut other.members);
        for (element, child) in other.children {
            self.children.entry(element).or_default().absorb(child);
        }
    }

    pub fn intersection(&self, other: &Self) -> Self {
        if self.is_empty() || other.is_empty() {
            return Self::new();
        }
        let members = self.members.intersection(&other.members).cloned().collect();
        let children = self.children.iter().filter_map(|(element, child)| {
            let both = child.intersection(other.children.get(element)?);
            (!both.is_empty()).then(|| (element.clone(), both))
        });
        Self { members, children: children.collect() }
    }

    pub fn difference(&self, other: &Self) -> Self {
        let mut out = self.clone();
        out.subtract(other);
        out
    }

    /// Becomes the difference from another set.
    pub fn subtract(&mut self, other: &Self) {
        if self.is_empty() {
            return;
        }
        for element in &other.members {
            self.members.remove(element);
        }
        for (element, gone) in &other.children {
            let Some(child) = self.children.get_mut(element) else { continue };
            child.subtract(gone);
            if child.is_empty() {
                self.children.remove(element);
            }
        }
    }

    /// Like `difference`, but a path in `other` also takes away all that is below it.
    pub fn recursive_difference(&self, other: &Self) -> Self {
        let members = self.members.difference(&other.members).cloned().collect();
        let children = self.children.iter().filter_map(|(element, child)| {
            if other.members.contains(element) {
                return None;
            }
            let rest = match other.children.get(element) {
                Some(gone) => child.recursive_difference(gone),
                None => child.clone(),
            };
            (!rest.is_empty()).then(|| (element.clone(), rest))
        });
        Self { members, children: children.collect() }
    }

    /// Makes every declared field on the way to a path a member itself.
    pub(super) fn with_named_fields(&self, node: Node) -> Self {
        let mut out = self.clone();
        for (element, child) in &self.children {
            let inner = match element {
                PathElement::Field(name) => {
                    let (inner, declared) = node.field(name);
                    if declared {
                        out.members.insert(element.clone());
                    }
                    inner
                }
                _ => node.item(),
            };
            out.children.insert(element.clone(), child.with_named_fields(inner));
        }
        out
    }

    /// All paths, members before what is below them.
    pub fn paths(&self) -> Vec<Vec<PathElement>> {
        let mut out = Vec::new();
        self.collect(&mut Vec::new(), &mut out);
        out
    }

    fn collect(&self, prefix: &mut Vec<PathElement>, out: &mut Vec<Vec<PathElement>>) {
        for element in &self.members {
            let mut path = prefix.clone();
            path.push(element.clone());
            out.push(path);
        }
        for (element, child) in &self.children {
            prefix.push(element.clone());
            child.collect(prefix, out);
            prefix.pop();
        }
    }

    /// Reads `fieldsV1`; malformed elements make it `None`.
    pub fn decode(fields: &Map) -> Option<Self> {
        let mut set = Self::new();
        for (key, value) in fields.iter() {
            if key == "." {
                continue;
            }
            let element = PathElement::parse(key)?;
            let map = value.as_map()?;
            if map.is_empty() || map.contains_key(".") {
                set.members.insert(element.clone());
            }
            let child = Self::decode(map)?;
            if !child.is_empty() {
                set.children.insert(element, child);
            }
        }
        Some(set)
    }

    /// The form of `fieldsV1`.
    pub fn encode(&self) -> Map {
        let hollow = || Value::Map(Map::new());
        let only = self.members.iter().filter(|element| !self.children.contains_key(element));
        let leaves = only.map(|element| (element.encode(), hollow()));
        let inner = self.children.iter().map(|(element, child)| {
            let mut inner = child.encode();
            if self.members.contains(element) {
                inner.insert(".", hollow());
            }
            (element.encode(), Value::Map(inner))
        });
        leaves.chain(inner).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    #[test]
    fn sets_are_read_and_written() {
        let fields = value!({
            "f:metadata": {"f:labels": {".": {}, "f:a": {}}},
            "f:spec": {"f:c": {"k:{\"name\":\"x\"}": {".": {}, "f:image": {}}, "v:\"y\"": {}}},
        });
        let set = FieldSet::decode(fields.as_map().unwrap()).unwrap();
        assert_eq!(Value::Map(set.encode()), fields);
        assert_eq!(set.paths().len(), 5);
        assert!(FieldSet::decode(value!({"x:y": {}}).as_map().unwrap()).is_none());
    }

    #[test]
    fn algebra() {
        let set = |paths: &[&[&str]]| FieldSet::of_fields(paths);
        let a = set(&[&["a"], &["a", "b"], &["c", "d"]]);
        let b = set(&[&["a"], &["c", "d"], &["e"]]);
        assert_eq!(a.intersection(&b), set(&[&["a"], &["c", "d"]]));
        assert_eq!(a.difference(&b), set(&[&["a", "b"]]));
        assert_eq!(a.recursive_difference(&b), FieldSet::new());
        assert_eq!(a.union(&b), set(&[&["a"], &["a", "b"], &["c", "d"], &["e"]]));
    }
}
