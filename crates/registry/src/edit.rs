//! Small edits of trees, for defaults.

use machinery::{Map, Object, Value};

/// Sets a field that is absent, null or an empty text.
pub(crate) fn or(map: &mut Map, field: &str, value: impl Into<Value>) {
    let absent = match map.get(field) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(_) => false,
    };
    if absent {
        map.insert(field, value);
    }
}

/// As [`or`], also for a zero.
pub(crate) fn or_zero(map: &mut Map, field: &str, value: i64) {
    if map.get(field).and_then(Value::as_i64) == Some(0) {
        map.remove(field);
    }
    or(map, field, value);
}

/// Edits each map of a list, if there is one.
pub(crate) fn each(map: &mut Map, field: &str, mut edit: impl FnMut(&mut Map)) {
    let Some(list) = map.get_mut(field).and_then(Value::as_list_mut) else { return };
    list.iter_mut().filter_map(Value::as_map_mut).for_each(&mut edit);
}

/// Edits a map that is there.
pub(crate) fn inside(map: &mut Map, field: &str, edit: impl FnOnce(&mut Map)) {
    if let Some(inner) = map.get_mut(field).and_then(Value::as_map_mut) {
        edit(inner);
    }
}

/// Edits `spec`, made first when missing.
pub(crate) fn spec(object: &mut Object, edit: impl FnOnce(&mut Map)) {
    edit(object.root_mut().map_entry("spec"));
}

pub(crate) fn text<'a>(map: &'a Map, field: &str) -> &'a str {
    map.get(field).and_then(Value::as_str).unwrap_or_default()
}

pub(crate) fn list<'a>(map: &'a Map, field: &str) -> &'a [Value] {
    map.get(field).and_then(Value::as_list).unwrap_or(&[])
}

pub(crate) fn maps<'a>(map: &'a Map, field: &str) -> impl Iterator<Item = &'a Map> + use<'a> {
    list(map, field).iter().filter_map(Value::as_map)
}

pub(crate) fn flag(map: &Map, field: &str) -> bool {
    map.get(field).and_then(Value::as_bool).unwrap_or(false)
}

/// Takes a field from the other object, or drops it where the other has none.
pub(crate) fn copy_field(new: &mut Object, old: &Object, path: &[&str]) {
    match old.at(path) {
        Some(value) => new.set_at(path, value.clone()),
        None => {
            new.remove_at(path);
        }
    }
}
