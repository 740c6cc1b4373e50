//! Defaults that the published description declares. What it lacks is set by hand per kind.

use api::{FieldType, TypeId, schema};

use crate::{Map, Value, json, shape::static_name};

/// Sets declared defaults of unset fields, all the way down. Returns whether anything changed.
pub fn apply(map: &mut Map, ty: TypeId) -> bool {
    let Some(plan) = plan(ty) else { return false };
    let mut changed = false;
    for step in plan {
        match (&step.default, map.get(step.name)) {
            (Some(default), None | Some(Value::Null)) => {
                map.insert(static_name(step.name), default.clone());
                changed = true;
            }
            (_, None | Some(Value::Null)) => continue,
            _ => {}
        }
        // Looked at before it is copied: most subtrees have all their defaults already.
        let Some(inner) = &step.inner else { continue };
        let Some(mut value) = map.get(step.name).cloned() else { continue };
        if apply_value(&mut value, inner) {
            map.insert(static_name(step.name), value);
            changed = true;
        }
    }
    changed
}

fn apply_value(value: &mut Value, ty: &FieldType) -> bool {
    match ty {
        FieldType::Ref(id) => match value {
            Value::Map(map) => apply(map, *id),
            _ => false,
        },
        FieldType::List(item) => {
            let Value::List(items) = value else { return false };
            let mut copy: Option<Vec<Value>> = None;
            for at in 0..items.len() {
                let mut entry = items[at].clone();
                if apply_value(&mut entry, item) {
                    copy.get_or_insert_with(|| items.to_vec())[at] = entry;
                }
            }
            replace(value, copy.map(Value::from))
        }
        FieldType::Map(item) => {
            let Value::Map(map) = value else { return false };
            let mut copy: Option<Map> = None;
            for (key, entry) in map.iter() {
                let mut entry = entry.clone();
                if apply_value(&mut entry, item) {
                    copy.get_or_insert_with(|| map.clone()).insert(key.clone(), entry);
                }
            }
            replace(value, copy.map(Value::from))
        }
        _ => false,
    }
}

fn replace(value: &mut Value, new: Option<Value>) -> bool {
    match new {
        Some(new) => {
            *value = new;
            true
        }
        None => false,
    }
}

/// A field with a default, or with defaults below it.
struct Step {
    name: &'static str,
    default: Option<Value>,
    inner: Option<FieldType>,
}

/// `None` when neither the type nor anything below it has defaults.
fn plan(ty: TypeId) -> Option<&'static [Step]> {
    use std::sync::LazyLock;
    static PLANS: LazyLock<Vec<Option<Vec<Step>>>> = LazyLock::new(plans);
    PLANS[ty.index()].as_deref()
}

fn plans() -> Vec<Option<Vec<Step>>> {
    let types: Vec<_> = schema().types().collect();
    let mut wanted: Vec<bool> =
        types.iter().map(|(_, ty)| ty.fields.iter().any(|f| f.default.is_some())).collect();
    // A type is wanted when a type below it is; repeat until nothing is added.
    loop {
        let before = wanted.clone();
        for (id, ty) in &types {
            let below = ty.fields.iter().filter_map(|f| f.ty.struct_id());
            wanted[id.index()] |= below.into_iter().any(|inner| before[inner.index()]);
        }
        if wanted == before {
            break;
        }
    }
    let steps = |id: TypeId| -> Vec<Step> {
        let fields = schema().type_of(id).fields.iter();
        let step = fields.map(|f| Step {
            name: f.name,
            default: f.default.and_then(|text| json::parse(text.as_bytes()).ok()),
            inner: f.ty.struct_id().filter(|i| wanted[i.index()]).map(|_| f.ty.clone()),
        });
        step.filter(|s| s.default.is_some() || s.inner.is_some()).collect()
    };
    types.iter().map(|(id, _)| wanted[id.index()].then(|| steps(*id))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Object, value};

    #[test]
    fn declared_defaults_are_set_deep_down() {
        let ty = schema().type_named("io.k8s.api.core.v1.Pod").unwrap();
        let pod = value!({"spec": {
            "containers": [{"ports": [{"containerPort": 80}, {"protocol": "UDP"}]}],
            "volumes": [{"name": "v", "iscsi": {"iqn": "x"}}],
        }});
        let mut map = Object::from_value(pod).unwrap().into_map();
        assert!(apply(&mut map, ty));
        let expected = value!({"spec": {
            "containers": [{"ports": [
                {"containerPort": 80, "protocol": "TCP"}, {"protocol": "UDP"},
            ]}],
            "volumes": [{"name": "v", "iscsi": {"iqn": "x", "iscsiInterface": "default"}}],
        }});
        assert_eq!(Value::Map(map.clone()), expected);
        assert!(!apply(&mut map, ty), "nothing is left to do");
    }
}
