//! How fields are owned: as a whole, field by field, or item by item. Read from the built-in
//! schema, from the structural schema of a custom resource, or deduced from the value.

use api::{
    Field, FieldType, TypeId, schema,
    schema::{ListType, MapType},
};

use crate::{Map, Value};

/// What is known of a value's type.
#[derive(Clone, Copy, Debug)]
pub enum Node<'a> {
    Struct {
        id: TypeId,
        atomic: bool,
    },
    /// A value of a built-in type; the field that holds it says how lists and maps are owned.
    Typed {
        ty: &'a FieldType,
        field: Option<&'a Field>,
    },
    /// A node of an OpenAPI v3 schema.
    Schema(&'a Value),
    /// An object of a custom resource: its schema, with `metadata` of the built-in type.
    Root(&'a Value),
    /// Nothing is known: maps field by field, lists as a whole.
    Deduced,
    /// Owned as a whole whatever it is.
    Atomic,
}

/// How the parts of a value are owned.
#[derive(Clone, Debug, PartialEq)]
pub enum Ownership<'a> {
    /// A scalar, or a list or map with one owner.
    Leaf,
    Fields,
    /// Items by value.
    Set,
    /// Items by their keys.
    Keyed(Vec<&'a str>),
}

impl<'a> Node<'a> {
    /// `value` decides where the type does not.
    pub fn ownership(self, value: &Value) -> Ownership<'a> {
        match value {
            Value::Map(_) => self.map_ownership(),
            Value::List(_) => self.list_ownership(),
            _ => Ownership::Leaf,
        }
    }

    fn map_ownership(self) -> Ownership<'a> {
        let fields = |atomic| if atomic { Ownership::Leaf } else { Ownership::Fields };
        match self {
            Self::Struct { atomic, .. } => fields(atomic),
            Self::Typed { ty, field } => {
                let by_field = field.is_some_and(|f| f.map_type == Some(MapType::Atomic));
                match ty {
                    FieldType::Ref(id) => fields(by_field || schema().type_of(*id).atomic),
                    FieldType::Map(_) | FieldType::RawExtension | FieldType::FieldsV1 => {
                        fields(by_field)
                    }
                    _ => Ownership::Leaf,
                }
            }
            Self::Schema(node) => fields(text(node, "x-kubernetes-map-type") == "atomic"),
            Self::Root(_) | Self::Deduced => Ownership::Fields,
            Self::Atomic => Ownership::Leaf,
        }
    }

    fn list_ownership(self) -> Ownership<'a> {
        match self {
            Self::Typed { field: Some(field), .. } => match field.list_type {
                Some(ListType::Map) => Ownership::Keyed(field.map_keys.clone()),
                Some(ListType::Set) => Ownership::Set,
                Some(ListType::Atomic) => Ownership::Leaf,
                // Without a list type the merge strategy tells.
                None if field.patch_strategy.merge && field.patch_merge_key.is_empty() => {
                    Ownership::Set
                }
                None if field.patch_strategy.merge => Ownership::Keyed(vec![field.patch_merge_key]),
                None => Ownership::Leaf,
            },
            Self::Schema(node) => match text(node, "x-kubernetes-list-type") {
                "set" => Ownership::Set,
                "map" => {
                    let keys = node.get("x-kubernetes-list-map-keys").and_then(Value::as_list);
                    let keys = keys.unwrap_or(&[]).iter().filter_map(Value::as_str);
                    Ownership::Keyed(keys.collect())
                }
                _ => Ownership::Leaf,
            },
            _ => Ownership::Leaf,
        }
    }

    /// The node of a field, and whether the type declares it by name.
    pub fn field(self, name: &str) -> (Node<'a>, bool) {
        match self {
            Self::Struct { id, .. } => struct_field(id, name),
            Self::Typed { ty, .. } => match ty {
                FieldType::Ref(id) => struct_field(*id, name),
                FieldType::Map(item) => (Self::Typed { ty: item, field: None }, false),
                _ => (Self::Deduced, false),
            },
            Self::Root(_) if name == "metadata" => match object_meta() {
                Some(id) => (Self::Struct { id, atomic: false }, true),
                None => (Self::Deduced, true),
            },
            Self::Root(_) if matches!(name, "apiVersion" | "kind") => (Self::Deduced, true),
            Self::Root(node) | Self::Schema(node) => schema_field(node, name),
            Self::Deduced => (Self::Deduced, false),
            Self::Atomic => (Self::Atomic, false),
        }
    }

    /// The node of a list's items.
    pub fn item(self) -> Node<'a> {
        match self {
            Self::Typed { ty: FieldType::List(item), .. } => Self::Typed { ty: item, field: None },
            Self::Schema(node) => node.get("items").map_or(Self::Deduced, Self::Schema),
            _ => Self::Deduced,
        }
    }

    /// The default of a list's key in an item that leaves it out.
    pub fn key_default(self, key: &str) -> Option<Value> {
        match self {
            Self::Struct { id, .. } => declared_default(id, key),
            Self::Typed { ty, .. } => declared_default(ty.struct_id()?, key),
            Self::Schema(node) => node.at(&["properties", key, "default"]).cloned(),
            _ => None,
        }
    }
}

fn declared_default(id: TypeId, key: &str) -> Option<Value> {
    let field = schema().type_of(id).field(key)?;
    if let Some(default) = field.default {
        return crate::json::parse(default.as_bytes()).ok();
    }
    let always = !field.pointer && !field.omit_empty;
    always.then(|| crate::shape::zero(&field.ty))
}

fn struct_field<'a>(id: TypeId, name: &str) -> (Node<'a>, bool) {
    match schema().type_of(id).field(name) {
        Some(field) => (Node::Typed { ty: &field.ty, field: Some(field) }, true),
        None => (Node::Deduced, false),
    }
}

fn schema_field<'a>(node: &'a Value, name: &str) -> (Node<'a>, bool) {
    if let Some(property) = node.at(&["properties", name]) {
        return (Node::Schema(property), true);
    }
    match node.get("additionalProperties") {
        Some(inner @ Value::Map(_)) => (Node::Schema(inner), false),
        _ => (Node::Deduced, false),
    }
}

fn object_meta() -> Option<TypeId> {
    schema().type_named("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
}

fn text<'a>(node: &'a Value, key: &str) -> &'a str {
    node.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The keys of an item in a keyed list; `Err` names the key that is missing.
pub fn item_keys(item: &Value, keys: &[&str], node: Node) -> Result<Map, String> {
    let mut found = Map::new();
    for &key in keys {
        match item.get(key).filter(|v| !v.is_null()).cloned().or_else(|| node.key_default(key)) {
            Some(value) => {
                found.insert(key, value);
            }
            None => {
                return Err(format!(
                    "associative list with keys has an element that omits key field {key:?} (and doesn't have default value)"
                ));
            }
        }
    }
    Ok(found)
}
