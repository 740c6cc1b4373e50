//! The tree that objects are made of.

use std::{fmt, sync::Arc};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, SeqAccess, Visitor},
    ser::{SerializeMap, SerializeSeq},
};
use smol_str::SmolStr;

/// A JSON-like value. Integers and floats are told apart as in Kubernetes (`int64`, `float64`).
#[derive(Clone, Default, PartialEq)]
pub enum Value {
    #[default]
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    String(SmolStr),
    List(Arc<Vec<Value>>),
    Map(Map),
}

/// String keys to values, sorted by key, each key once. Cloning is cheap; changing a shared map
/// copies that map alone. Field names of up to 23 bytes live inline.
#[derive(Clone, Default, PartialEq)]
pub struct Map(Arc<Vec<(SmolStr, Value)>>);

impl Map {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// From entries that are sorted by key and hold each key once.
    pub(crate) fn from_sorted(entries: Vec<(SmolStr, Value)>) -> Self {
        debug_assert!(entries.is_sorted_by(|a, b| a.0 < b.0));
        Self(Arc::new(entries))
    }

    fn position(&self, key: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(k, _)| k.as_str().cmp(key))
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.position(key).ok().map(|at| &self.0[at].1)
    }

    pub fn contains_key(&self, key: &str) -> bool {
        self.position(key).is_ok()
    }

    pub fn get_mut(&mut self, key: &str) -> Option<&mut Value> {
        let at = self.position(key).ok()?;
        Some(&mut Arc::make_mut(&mut self.0)[at].1)
    }

    /// Sets `key`, giving back what it held.
    pub fn insert(&mut self, key: impl Into<SmolStr>, value: impl Into<Value>) -> Option<Value> {
        let (key, value) = (key.into(), value.into());
        let at = self.position(&key);
        let entries = Arc::make_mut(&mut self.0);
        match at {
            Ok(at) => Some(std::mem::replace(&mut entries[at].1, value)),
            Err(at) => {
                entries.insert(at, (key, value));
                None
            }
        }
    }

    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let at = self.position(key).ok()?;
        Some(Arc::make_mut(&mut self.0).remove(at).1)
    }

    /// The value at `key`, set to an empty map first when it is missing or no map.
    pub fn map_entry(&mut self, key: &str) -> &mut Map {
        if !matches!(self.get(key), Some(Value::Map(_))) {
            self.insert(key, Map::new());
        }
        match self.get_mut(key) {
            Some(Value::Map(map)) => map,
            _ => unreachable!("set to a map above"),
        }
    }

    /// The value at `key`, set to an empty list first when it is missing or no list.
    pub fn list_entry(&mut self, key: &str) -> &mut Vec<Value> {
        if !matches!(self.get(key), Some(Value::List(_))) {
            self.insert(key, Value::List(Arc::default()));
        }
        match self.get_mut(key) {
            Some(Value::List(list)) => Arc::make_mut(list),
            _ => unreachable!("set to a list above"),
        }
    }

    /// Entries in key order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&SmolStr, &Value)> + ExactSizeIterator {
        self.0.iter().map(|(key, value)| (key, value))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&SmolStr, &mut Value)> {
        Arc::make_mut(&mut self.0).iter_mut().map(|(key, value)| (&*key, value))
    }

    pub fn keys(&self) -> impl Iterator<Item = &SmolStr> {
        self.0.iter().map(|(key, _)| key)
    }

    pub fn retain(&mut self, mut keep: impl FnMut(&SmolStr, &mut Value) -> bool) {
        Arc::make_mut(&mut self.0).retain_mut(|(key, value)| keep(key, value));
    }

    /// Walks nested maps by field name.
    pub fn at(&self, path: &[&str]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.get(first)?, |value, key| value.get(key))
    }

    pub fn str_at(&self, path: &[&str]) -> Option<&str> {
        self.at(path)?.as_str()
    }

    /// Sets a value below nested maps, making those that are missing.
    pub fn set_at(&mut self, path: &[&str], value: impl Into<Value>) {
        match path {
            [] => {}
            [last] => {
                self.insert(*last, value);
            }
            [first, rest @ ..] => self.map_entry(first).set_at(rest, value),
        }
    }

    /// Removes a value below nested maps.
    pub fn remove_at(&mut self, path: &[&str]) -> Option<Value> {
        match path {
            [] => None,
            [last] => self.remove(last),
            [first, rest @ ..] => self.get_mut(first)?.as_map_mut()?.remove_at(rest),
        }
    }

    /// Whether both share their memory: certainly equal, without looking.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<K: Into<SmolStr>, V: Into<Value>> FromIterator<(K, V)> for Map {
    /// Later entries replace earlier ones of the same key.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut list: Vec<(SmolStr, Value)> =
            entries.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
        if !list.is_sorted_by(|a, b| a.0 < b.0) {
            list.sort_by(|a, b| a.0.cmp(&b.0));
            list.reverse();
            list.dedup_by(|a, b| a.0 == b.0);
            list.reverse();
        }
        Self(Arc::new(list))
    }
}

impl Value {
    /// The field of a map; `None` for anything else.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.as_map()?.get(key)
    }

    pub fn at(&self, path: &[&str]) -> Option<&Value> {
        path.iter().try_fold(self, |value, key| value.get(key))
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            _ => None,
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(flag) => Some(*flag),
            _ => None,
        }
    }

    pub fn as_map(&self) -> Option<&Map> {
        match self {
            Self::Map(map) => Some(map),
            _ => None,
        }
    }

    pub fn as_map_mut(&mut self) -> Option<&mut Map> {
        match self {
            Self::Map(map) => Some(map),
            _ => None,
        }
    }

    pub fn as_list(&self) -> Option<&[Value]> {
        match self {
            Self::List(list) => Some(list),
            _ => None,
        }
    }

    pub fn as_list_mut(&mut self) -> Option<&mut Vec<Value>> {
        match self {
            Self::List(list) => Some(Arc::make_mut(list)),
            _ => None,
        }
    }

    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// How Go's JSON decoder names the type in its errors.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "bool",
            Self::Int(_) | Self::Float(_) => "number",
            Self::String(_) => "string",
            Self::List(_) => "array",
            Self::Map(_) => "object",
        }
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Bool(flag)
    }
}
impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}
impl From<i32> for Value {
    fn from(number: i32) -> Self {
        Self::Int(number.into())
    }
}
impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.into())
    }
}
impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text.into())
    }
}
impl From<SmolStr> for Value {
    fn from(text: SmolStr) -> Self {
        Self::String(text)
    }
}
impl From<Map> for Value {
    fn from(map: Map) -> Self {
        Self::Map(map)
    }
}
impl<T: Into<Value>> From<Vec<T>> for Value {
    fn from(list: Vec<T>) -> Self {
        Self::List(Arc::new(list.into_iter().map(Into::into).collect()))
    }
}
impl From<serde_json::Value> for Value {
    fn from(json: serde_json::Value) -> Self {
        use serde_json::Value as J;
        match json {
            J::Null => Self::Null,
            J::Bool(flag) => Self::Bool(flag),
            J::Number(n) => {
                n.as_i64().map_or_else(|| Self::Float(n.as_f64().unwrap_or(0.0)), Self::Int)
            }
            J::String(text) => text.into(),
            J::Array(list) => list.into(),
            J::Object(map) => Self::Map(map.into_iter().collect()),
        }
    }
}

/// Writes a [`Value`] in JSON's own syntax: `value!({ "spec": { "replicas": 3 } })`.
#[macro_export]
macro_rules! value {
    ($($json:tt)+) => { $crate::Value::from($crate::__json!($($json)+)) };
}
#[doc(hidden)]
pub use serde_json::json as __json;
#[doc(hidden)]
#[macro_export]
macro_rules! __json {
    ($($json:tt)+) => { $crate::value::__json!($($json)+) };
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => s.serialize_unit(),
            Self::Bool(flag) => s.serialize_bool(*flag),
            Self::Int(number) => s.serialize_i64(*number),
            // As in Go, a whole number is written without a point.
            Self::Float(number) if number.fract() == 0.0 && number.abs() < 1e15 => {
                s.serialize_i64(*number as i64)
            }
            Self::Float(number) => s.serialize_f64(*number),
            Self::String(text) => s.serialize_str(text),
            Self::List(list) => {
                let mut seq = s.serialize_seq(Some(list.len()))?;
                for item in list.iter() {
                    seq.serialize_element(item)?;
                }
                seq.end()
            }
            Self::Map(map) => map.serialize(s),
        }
    }
}

impl Serialize for Map {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut out = s.serialize_map(Some(self.len()))?;
        for (key, value) in self.iter() {
            out.serialize_entry(key.as_str(), value)?;
        }
        out.end()
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(ValueVisitor)
    }
}

impl<'de> Deserialize<'de> for Map {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match Value::deserialize(d)? {
            Value::Map(map) => Ok(map),
            other => Err(serde::de::Error::custom(format!(
                "expected an object, got {}",
                other.type_name()
            ))),
        }
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        Value::deserialize(d)
    }
    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Bool(flag))
    }
    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Int(number))
    }
    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(i64::try_from(number).map_or(Value::Float(number as f64), Value::Int))
    }
    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Value::Float(number))
    }
    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::String(text.into()))
    }
    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::String(text.into()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::with_capacity(seq.size_hint().unwrap_or(0).min(1024));
        while let Some(item) = seq.next_element()? {
            list.push(item);
        }
        Ok(Value::List(Arc::new(list)))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries: Vec<(SmolStr, Value)> = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Value::Map(entries.into_iter().collect()))
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).unwrap_or_default())
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_leaves_the_clone_alone() {
        let original = value!({"spec": {"replicas": 3}, "metadata": {"name": "web"}});
        let mut copy = original.clone();
        copy.as_map_mut().unwrap().set_at(&["spec", "replicas"], 5);
        assert_eq!(original.at(&["spec", "replicas"]), Some(&Value::Int(3)));
        assert_eq!(copy.at(&["spec", "replicas"]), Some(&Value::Int(5)));
        let (a, b) = (original.get("metadata").unwrap(), copy.get("metadata").unwrap());
        assert!(a.as_map().unwrap().same(b.as_map().unwrap()));
    }

    #[test]
    fn maps_are_sorted_and_the_last_of_a_key_wins() {
        let map: Map = [("b", 1), ("a", 2), ("b", 3)].into_iter().collect();
        assert_eq!(format!("{map:?}"), r#"{"a":2,"b":3}"#);
    }

    #[test]
    fn removes_below_nested_maps() {
        let mut map: Map = Map::new();
        map.set_at(&["a", "b", "c"], "x");
        assert_eq!(map.remove_at(&["a", "b", "c"]), Some("x".into()));
        assert_eq!(map.remove_at(&["a", "nothing", "c"]), None);
    }
}
