//! The three-way patch of `apply`: what the file says now, what it said before, what is there.
//!
//! Fields of the file that differ are set; fields that the file had and has no more are removed;
//! all others belong to somebody else and stay. Lists merge by the key that the schema of a
//! built-in kind names (strategic merge patch) and are otherwise replaced as a whole. With no
//! schema the result is a JSON merge patch (RFC 7386).

use ::api::{Field, FieldType, TypeId, schema};
use machinery::{Map, Value};

/// The patch that turns `current` into what `modified` asks for; empty when nothing is to do.
/// `ty` is the type of a built-in kind; `None` gives a JSON merge patch.
pub fn three_way(original: &Map, modified: &Map, current: &Map, ty: Option<TypeId>) -> Map {
    maps(original, modified, current, ty.map_or(Shape::Unknown, Shape::Struct))
}

/// What the schema says of a value.
#[derive(Clone, Copy)]
enum Shape<'a> {
    Struct(TypeId),
    /// A map of values of one type.
    Uniform(&'a FieldType),
    Unknown,
}

impl<'a> Shape<'a> {
    fn of(ty: &'a FieldType) -> Self {
        match ty {
            FieldType::Ref(id) => Self::Struct(*id),
            FieldType::Map(item) => Self::Uniform(item),
            FieldType::List(item) => Self::of(item),
            _ => Self::Unknown,
        }
    }

    fn field(self, name: &str) -> (Option<&'static Field>, Shape<'a>) {
        match self {
            Self::Struct(id) => match schema().type_of(id).field(name) {
                Some(field) => (Some(field), Shape::of(&field.ty)),
                None => (None, Self::Unknown),
            },
            Self::Uniform(item) => (None, Self::of(item)),
            Self::Unknown => (None, Self::Unknown),
        }
    }
}

fn maps(original: &Map, modified: &Map, current: &Map, shape: Shape) -> Map {
    let mut patch = Map::new();
    for (name, wanted) in modified.iter() {
        let Some(present) = current.get(name) else {
            if !wanted.is_null() {
                patch.insert(name.clone(), wanted.clone());
            }
            continue;
        };
        field(&mut patch, name, original.get(name), wanted, present, shape);
    }
    for name in original.keys() {
        if !modified.contains_key(name) && current.contains_key(name) {
            patch.insert(name.clone(), Value::Null);
        }
    }
    patch
}

/// One field that both the file and the server have.
fn field(
    patch: &mut Map,
    name: &str,
    original: Option<&Value>,
    wanted: &Value,
    present: &Value,
    shape: Shape,
) {
    let (facts, inner) = shape.field(name);
    let strategy = facts.map(|f| f.patch_strategy).unwrap_or_default();
    match (wanted, present) {
        (Value::Map(wanted), Value::Map(present)) if strategy.replace && !strategy.retain_keys => {
            if wanted != present {
                let mut whole = wanted.clone();
                whole.insert("$patch", "replace");
                patch.insert(name, whole);
            }
        }
        (Value::Map(wanted), Value::Map(present)) => {
            let empty = Map::new();
            let before = original.and_then(Value::as_map).unwrap_or(&empty);
            let mut change = maps(before, wanted, present, inner);
            if change.is_empty() {
                return;
            }
            if strategy.retain_keys {
                let keys: Vec<Value> = wanted.keys().map(|k| k.clone().into()).collect();
                change.insert("$retainKeys", keys);
            }
            patch.insert(name, change);
        }
        (Value::List(wanted), Value::List(present)) if strategy.merge => {
            let before = original.and_then(Value::as_list).unwrap_or_default();
            match facts.map_or("", |f| f.patch_merge_key) {
                "" => primitives(patch, name, before, wanted, present),
                key => keyed(patch, name, key, [before, wanted, present], inner),
            }
        }
        _ if same(wanted, present) => {}
        _ => {
            patch.insert(name, wanted.clone());
        }
    }
}

/// Equal, with whole floats and integers taken for the same number.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Int(a), Value::Float(b)) | (Value::Float(b), Value::Int(a)) => *a as f64 == *b,
        (Value::List(a), Value::List(b)) => {
            a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| same(a, b))
        }
        (Value::Map(a), Value::Map(b)) => {
            a.len() == b.len()
                && a.iter().zip(b.iter()).all(|((k, a), (l, b))| k == l && same(a, b))
        }
        _ => a == b,
    }
}

/// A set of scalars, such as finalizers.
fn primitives(patch: &mut Map, name: &str, before: &[Value], wanted: &[Value], present: &[Value]) {
    let added: Vec<Value> = wanted.iter().filter(|v| !present.contains(v)).cloned().collect();
    let gone = |v: &&Value| !wanted.contains(v) && present.contains(v);
    let removed: Vec<Value> = before.iter().filter(gone).cloned().collect();
    if added.is_empty() && removed.is_empty() {
        return;
    }
    patch.insert(format!("$setElementOrder/{name}"), wanted.to_vec());
    if !added.is_empty() {
        patch.insert(name, added);
    }
    if !removed.is_empty() {
        patch.insert(format!("$deleteFromPrimitiveList/{name}"), removed);
    }
}

/// A list of maps that are found by `key`. `lists` are the former, wanted and present items.
fn keyed(patch: &mut Map, name: &str, key: &str, lists: [&[Value]; 3], shape: Shape) {
    let [before, wanted, present] = lists;
    if [wanted, present].iter().any(|list| !has_distinct_keys(list, key)) {
        return replaced(patch, name, before, wanted, present, shape);
    }
    let find = |list: &[Value], id: &Value| {
        list.iter().find(|item| item.get(key) == Some(id)).and_then(Value::as_map).cloned()
    };
    let mut changes: Vec<Value> = Vec::new();
    for item in wanted {
        let (Some(id), Some(map)) = (item.get(key), item.as_map()) else { continue };
        let Some(there) = find(present, id) else {
            changes.push(item.clone());
            continue;
        };
        let mut change = maps(&find(before, id).unwrap_or_default(), map, &there, shape);
        if !change.is_empty() {
            change.insert(key, id.clone());
            changes.push(change.into());
        }
    }
    for id in before.iter().filter_map(|item| item.get(key)) {
        if find(wanted, id).is_none() && find(present, id).is_some() {
            let directive = [("$patch", Value::from("delete")), (key, id.clone())];
            changes.push(directive.into_iter().collect::<Map>().into());
        }
    }
    let ids =
        |list: &[Value]| list.iter().filter_map(|item| item.get(key)).cloned().collect::<Vec<_>>();
    let wanted_ids = ids(wanted);
    let mut present_ids = ids(present);
    present_ids.retain(|id| wanted_ids.contains(id));
    let mut kept_ids = wanted_ids.clone();
    kept_ids.retain(|id| present_ids.contains(id));
    if changes.is_empty() && kept_ids == present_ids {
        return;
    }
    let order = |id: &Value| Value::from([(key, id.clone())].into_iter().collect::<Map>());
    patch.insert(
        format!("$setElementOrder/{name}"),
        wanted_ids.iter().map(order).collect::<Vec<_>>(),
    );
    if !changes.is_empty() {
        patch.insert(name, changes);
    }
}

fn has_distinct_keys(list: &[Value], key: &str) -> bool {
    let ids: Vec<Option<&Value>> = list.iter().map(|item| item.get(key)).collect();
    ids.iter().enumerate().all(|(at, id)| id.is_some() && !ids[..at].contains(id))
}

/// Items that the key does not tell apart (a port for TCP and for UDP): the list is replaced
/// unless each item holds what is wanted already.
fn replaced(
    patch: &mut Map,
    name: &str,
    before: &[Value],
    wanted: &[Value],
    present: &[Value],
    shape: Shape,
) {
    let empty = Map::new();
    let unchanged = |at: usize| {
        let former = before.get(at).and_then(Value::as_map).unwrap_or(&empty);
        match (wanted[at].as_map(), present[at].as_map()) {
            (Some(wanted), Some(present)) => maps(former, wanted, present, shape).is_empty(),
            _ => wanted[at] == present[at],
        }
    };
    if wanted.len() == present.len() && (0..wanted.len()).all(unchanged) {
        return;
    }
    let directive: Map = [("$patch", "replace")].into_iter().collect();
    let items: Vec<Value> = wanted.iter().cloned().chain([directive.into()]).collect();
    patch.insert(name, items);
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::api::GroupVersionKind;
    use machinery::{patch, value};

    fn map(value: Value) -> Map {
        value.as_map().unwrap().clone()
    }

    fn type_of(group: &str, kind: &str) -> TypeId {
        schema().kind(&GroupVersionKind::new(group, "v1", kind)).unwrap().ty
    }

    /// Applies the strategic patch as a server does and compares.
    fn check(ty: TypeId, original: Value, modified: Value, current: Value, expected: Value) {
        let (original, modified, current) = (map(original), map(modified), map(current));
        let change = three_way(&original, &modified, &current, Some(ty));
        let after = patch::apply_strategic(&current, &change, ty).unwrap();
        assert_eq!(Value::from(after.clone()), expected, "patch {:?}", Value::from(change));
        let again = three_way(&modified, &modified, &after, Some(ty));
        assert!(again.is_empty(), "applied twice it changes nothing: {:?}", Value::from(again));
    }

    #[test]
    fn fields_of_others_stay_and_own_ones_go() {
        check(
            type_of("apps", "Deployment"),
            value!({"spec": {"replicas": 2, "paused": true}, "metadata": {"labels": {"a": "1", "b": "2"}}}),
            value!({"spec": {"paused": false}, "metadata": {"labels": {"a": "3"}}}),
            value!({"spec": {"replicas": 5, "paused": true, "minReadySeconds": 3},
                    "metadata": {"labels": {"a": "1", "b": "2", "other": "x"}}}),
            value!({"spec": {"paused": false, "minReadySeconds": 3}, "metadata": {"labels": {"a": "3", "other": "x"}}}),
        );
    }

    #[test]
    fn containers_merge_by_name() {
        let pod = |containers: Value| value_of(&["spec", "containers"], containers);
        check(
            type_of("", "Pod"),
            pod(
                value!([{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "old", "image": "o"}]),
            ),
            pod(value!([{"name": "new", "image": "n"}, {"name": "a", "image": "2"}])),
            pod(
                value!([{"name": "a", "image": "1", "imagePullPolicy": "Always", "env": [{"name": "X", "value": "1"}]},
                        {"name": "old", "image": "o"}, {"name": "injected", "image": "i"}]),
            ),
            pod(
                value!([{"name": "new", "image": "n"}, {"name": "a", "image": "2", "imagePullPolicy": "Always"},
                        {"name": "injected", "image": "i"}]),
            ),
        );
    }

    fn value_of(path: &[&str], value: Value) -> Value {
        let mut map = Map::new();
        map.set_at(path, value);
        map.into()
    }

    #[test]
    fn a_strategy_keeps_only_the_keys_of_its_kind() {
        check(
            type_of("apps", "Deployment"),
            value!({"spec": {"strategy": {"type": "RollingUpdate"}}}),
            value!({"spec": {"strategy": {"type": "Recreate"}}}),
            value!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
            value!({"spec": {"strategy": {"type": "Recreate"}}}),
        );
    }

    #[test]
    fn finalizers_are_a_set() {
        check(
            type_of("", "ConfigMap"),
            value!({"metadata": {"finalizers": ["x/a", "x/b"]}}),
            value!({"metadata": {"finalizers": ["x/b", "x/c"]}}),
            value!({"metadata": {"finalizers": ["x/a", "x/b", "x/other"]}}),
            value!({"metadata": {"finalizers": ["x/b", "x/c", "x/other"]}}),
        );
    }

    #[test]
    fn ports_that_share_a_number_replace_the_list() {
        let service = |ports: Value| value_of(&["spec", "ports"], ports);
        let before = value!([{"port": 53, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]);
        let after = value!([{"port": 53, "protocol": "TCP", "name": "t"}, {"port": 53, "protocol": "UDP", "name": "u"}]);
        check(
            type_of("", "Service"),
            service(before.clone()),
            service(after.clone()),
            service(before),
            service(after),
        );
    }

    #[test]
    fn without_a_schema_it_is_a_merge_patch() {
        let original = map(value!({"spec": {"a": 1, "gone": 1, "list": [1, 2]}}));
        let modified = map(value!({"spec": {"a": 2, "list": [2]}}));
        let current = map(value!({"spec": {"a": 1, "gone": 1, "list": [1, 2], "other": true}}));
        let change = three_way(&original, &modified, &current, None);
        assert_eq!(
            Value::from(change.clone()),
            value!({"spec": {"a": 2, "gone": null, "list": [2]}})
        );
        let mut after = Value::from(current);
        patch::merge(&mut after, &change.into());
        assert_eq!(after, value!({"spec": {"a": 2, "list": [2], "other": true}}));
    }

    #[test]
    fn equal_numbers_of_two_types_are_no_change() {
        let (wanted, there) = (map(value!({"spec": {"x": 1}})), map(value!({"spec": {"x": 1.0}})));
        assert!(three_way(&wanted, &wanted, &there, None).is_empty());
    }
}
