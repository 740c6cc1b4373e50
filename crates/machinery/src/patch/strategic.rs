//! Strategic merge patch: lists merge by the keys that the schema names, and directives in the
//! patch (`$patch`, `$retainKeys`, `$setElementOrder/…`, `$deleteFromPrimitiveList/…`) say what
//! a plain document cannot.

use api::{Field, FieldType, Reason, Status, TypeId, schema};
use smol_str::SmolStr;

use super::{go_list, go_map, go_text, unprocessable};
use crate::{Map, Value};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PREFIX: &str = "$deleteFromPrimitiveList/";
const ORDER_PREFIX: &str = "$setElementOrder/";

/// Applies a strategic merge patch to an object or a part of one.
pub fn apply_strategic(document: &Map, patch: &Map, ty: TypeId) -> Result<Map, Status> {
    merge_map(document, patch, Shape::Struct(ty))
}

/// What is known of a map's fields.
#[derive(Clone, Copy)]
enum Shape<'a> {
    Struct(TypeId),
    /// All values have one type.
    Uniform(&'a FieldType),
    Unknown,
}

impl<'a> Shape<'a> {
    fn of(ty: &'a FieldType) -> Self {
        match ty {
            FieldType::Ref(id)
            | FieldType::SchemaOrArray(id)
            | FieldType::SchemaOrBool(id)
            | FieldType::SchemaOrStrings(id) => Self::Struct(*id),
            FieldType::Map(item) => Self::Uniform(item),
            _ => Self::Unknown,
        }
    }

    /// The field's facts, and the shape of its value, or of its items.
    fn field(self, name: &str) -> (Option<&'static Field>, Shape<'a>) {
        match self {
            Self::Struct(id) => match schema().type_of(id).field(name) {
                Some(field) => {
                    let inner = match &field.ty {
                        FieldType::List(item) => Shape::of(item),
                        ty => Shape::of(ty),
                    };
                    (Some(field), inner)
                }
                None => (None, Shape::Unknown),
            },
            Self::Uniform(item) => (None, Shape::of(item)),
            Self::Unknown => (None, Shape::Unknown),
        }
    }
}

fn bad(text: impl Into<String>) -> Status {
    Status::bad_request(text)
}

/// Failures that upstream does not expect answer 500.
fn unexpected(text: String) -> Status {
    Status::new(500, Reason::Unknown, text)
}

fn merge_map(original: &Map, patch: &Map, shape: Shape) -> Result<Map, Status> {
    if let Some(directive) = patch.get(PATCH) {
        return match directive.as_str() {
            Some("replace") => {
                let mut rest = patch.clone();
                rest.remove(PATCH);
                Ok(rest)
            }
            Some("delete") => Ok(Map::new()),
            _ => Err(bad_patch_type(directive, patch)),
        };
    }
    let mut out = original.clone();
    let mut patch = patch.clone();
    retain_keys(&mut out, &mut patch)?;
    merge_ordered(&mut out, &mut patch, shape)?;
    for (key, change) in patch.iter() {
        let (name, deletes) = match key.strip_prefix(DELETE_PREFIX) {
            Some(name) => (name, true),
            None => (key.as_str(), false),
        };
        if change.is_null() {
            out.remove(name);
            continue;
        }
        merge_field(&mut out, name, change, deletes, shape)?;
    }
    Ok(out)
}

fn bad_patch_type(directive: &Value, map: &Map) -> Status {
    unexpected(format!("unknown patch type: {} in map: {}", go_text(directive), go_map(map)))
}

fn merge_field(
    out: &mut Map,
    name: &str,
    change: &Value,
    deletes: bool,
    shape: Shape,
) -> Result<(), Status> {
    let (field, inner) = shape.field(name);
    let strategy = field.map(|f| f.patch_strategy).unwrap_or_default();
    let merged = match (out.get(name), change) {
        (Some(Value::Map(old)), Value::Map(change)) if !strategy.replace => {
            Some(merge_map(old, change, inner)?.into())
        }
        (Some(Value::List(old)), Value::List(change)) if strategy.merge => {
            let key = field.map_or("", |f| f.patch_merge_key);
            let merged =
                if deletes { without(old, change) } else { merge_list(old, change, key, inner)? };
            Some(Value::from(merged))
        }
        (Some(Value::List(_)), Value::List(_)) => Some(change.clone()),
        _ if deletes => None,
        _ => plain(change),
    };
    if let Some(merged) = merged {
        out.insert(name, merged);
    }
    Ok(())
}

/// Only the fields that `$retainKeys` names stay.
fn retain_keys(out: &mut Map, patch: &mut Map) -> Result<(), Status> {
    let Some(list) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let wrong = || bad("invalid patch format of retainKeys");
    let keep: Vec<SmolStr> = list
        .as_list()
        .ok_or_else(wrong)?
        .iter()
        .filter_map(|v| v.as_str().map(SmolStr::new))
        .collect();
    let named = |key: &str| keep.iter().any(|k| k == key);
    let directive = |key: &str| key.starts_with(DELETE_PREFIX) || key.starts_with(ORDER_PREFIX);
    if patch.iter().any(|(key, v)| !v.is_null() && !directive(key) && !named(key)) {
        return Err(wrong());
    }
    out.retain(|key, _| named(key));
    Ok(())
}

/// Merges the lists whose order the patch gives, and takes them out of the patch.
fn merge_ordered(out: &mut Map, patch: &mut Map, shape: Shape) -> Result<(), Status> {
    let directives: Vec<SmolStr> =
        patch.keys().filter(|key| key.starts_with(ORDER_PREFIX)).cloned().collect();
    for directive in directives {
        let name = &directive[ORDER_PREFIX.len()..];
        let order = patch.remove(&directive).unwrap_or_default();
        let order = list_of(&order)?.to_vec();
        let (field, inner) = shape.field(name);
        let key = field.map_or("", |f| f.patch_merge_key);
        let strategy = field.map(|f| f.patch_strategy).unwrap_or_default();
        let change = patch.get(name).map(|v| list_of(v).map(<[Value]>::to_vec)).transpose()?;
        let old = match out.get(name) {
            None | Some(Value::Null) => None,
            Some(list) => Some(list_of(list)?.to_vec()),
        };
        check_order(change.as_deref().unwrap_or(&[]), &order, key)?;
        let merged = match (&old, change) {
            (None, None) => continue,
            (Some(old), None) => old.clone(),
            (None, Some(change)) => change.iter().filter_map(plain).collect(),
            (Some(old), Some(change)) if strategy.merge => merge_list(old, &change, key, inner)?,
            (Some(_), Some(change)) => change,
        };
        out.insert(name, Value::from(arrange(merged, &order, old.as_deref().unwrap_or(&[]), key)));
        patch.remove(name);
    }
    Ok(())
}

fn list_of(value: &Value) -> Result<&[Value], Status> {
    value.as_list().ok_or_else(|| {
        let kind = match value {
            Value::Map(_) => "map",
            Value::String(_) => "string",
            Value::Bool(_) => "bool",
            _ => "float64",
        };
        unexpected(format!("expected a slice, but received a {kind}"))
    })
}

/// The items of the patch stand in the order that the directive gives.
fn check_order(change: &[Value], order: &[Value], key: &str) -> Result<(), Status> {
    let mut rest = order.iter();
    let listed = |item: &Value| item.get(PATCH).is_none();
    for item in change.iter().filter(|item| listed(item)) {
        if !rest.any(|other| same(item, other, key)) {
            return Err(unexpected(format!(
                "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                go_list(change),
                go_list(order)
            )));
        }
    }
    Ok(())
}

fn same(a: &Value, b: &Value, key: &str) -> bool {
    match (a, b) {
        (Value::Map(a), Value::Map(b)) => {
            a.get(key).is_some_and(|value| !value.is_null() && b.get(key) == Some(value))
        }
        _ => a == b,
    }
}

fn without(old: &[Value], gone: &[Value]) -> Vec<Value> {
    old.iter().filter(|item| !gone.contains(item)).cloned().collect()
}

fn merge_list(
    old: &[Value],
    change: &[Value],
    key: &str,
    inner: Shape,
) -> Result<Vec<Value>, Status> {
    let maps = old.iter().chain(change).any(|item| matches!(item, Value::Map(_)));
    if old.iter().chain(change).any(|item| matches!(item, Value::List(_))) {
        return Err(unprocessable());
    }
    if !maps {
        let mut merged: Vec<Value> = Vec::with_capacity(old.len() + change.len());
        for item in old.iter().chain(change) {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        return Ok(arrange(merged, change, old, key));
    }
    if key.is_empty() {
        return Err(unexpected("cannot merge lists without merge key".into()));
    }
    let mut merged = old.to_vec();
    let mut rest: Vec<&Map> = Vec::new();
    let mut replaces = false;
    for item in change {
        let map = item
            .as_map()
            .ok_or_else(|| unexpected("list element types are not identical".into()))?;
        match map.get(PATCH).map(Value::as_str) {
            None => rest.push(map),
            Some(Some("delete")) => {
                let value = key_of(map, key)?;
                merged.retain(|item| item.get(key) != Some(value));
            }
            Some(Some("replace")) => replaces = true,
            Some(Some("merge")) => {
                return Err(unexpected(
                    "merging lists cannot yet be specified in the patch".into(),
                ));
            }
            _ => return Err(bad_patch_type(map.get(PATCH).unwrap_or(&Value::Null), map)),
        }
    }
    let items: Vec<Value> = rest.iter().map(|map| Value::Map((*map).clone())).collect();
    if replaces {
        return Ok(items);
    }
    for map in rest {
        let value = key_of(map, key)?;
        match merged.iter_mut().find(|item| item.get(key) == Some(value)) {
            Some(found) => {
                let before = found.as_map().cloned().unwrap_or_default();
                *found = merge_map(&before, map, inner)?.into();
            }
            None => merged.extend(plain(&Value::Map(map.clone()))),
        }
    }
    Ok(arrange(merged, &items, old, key))
}

fn key_of<'a>(map: &'a Map, key: &str) -> Result<&'a Value, Status> {
    map.get(key).ok_or_else(|| {
        unexpected(format!("map: {} does not contain declared merge key: {key}", go_map(map)))
    })
}

/// Puts the items that the patch names into its order, and weaves them into the others by the
/// order that the server had. New items come before the server's that follow none of them.
fn arrange(
    merged: Vec<Value>,
    patch_order: &[Value],
    server_order: &[Value],
    key: &str,
) -> Vec<Value> {
    let place = |list: &[Value], item: &Value| list.iter().position(|other| same(item, other, key));
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| place(patch_order, item).is_some());
    named.sort_by_key(|item| place(patch_order, item));
    others.sort_by_key(|item| place(server_order, item));
    let mut out = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    while let (Some(left), Some(right)) = (others.peek(), named.peek()) {
        let before = match (place(server_order, left), place(server_order, right)) {
            (Some(left), Some(right)) => left < right,
            _ => false,
        };
        out.extend(if before { others.next() } else { named.next() });
    }
    out.extend(others);
    out.extend(named);
    out
}

/// A part of the patch as a plain value: no nulls, no directives. `None` for what the patch
/// says to delete.
fn plain(value: &Value) -> Option<Value> {
    match value {
        Value::Map(map) => {
            if map.contains_key(PATCH) {
                return None;
            }
            let fields = map.iter().filter(|(key, v)| !v.is_null() && !is_directive(key));
            let fields = fields.filter_map(|(key, v)| Some((key.clone(), plain(v)?)));
            Some(Map::from_sorted(fields.collect()).into())
        }
        Value::List(items) => Some(items.iter().filter_map(plain).collect::<Vec<_>>().into()),
        other => Some(other.clone()),
    }
}

fn is_directive(key: &str) -> bool {
    key == RETAIN_KEYS || key.starts_with(DELETE_PREFIX) || key.starts_with(ORDER_PREFIX)
}
