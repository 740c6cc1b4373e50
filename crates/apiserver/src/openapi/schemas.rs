//! Types of the schema as JSON schemas.

use std::collections::{BTreeMap, BTreeSet};

use api::{
    descriptions::Descriptions,
    schema::{Field, FieldType, ListType, MapType, TypeDef, TypeId, schema},
};
use serde_json::{Map, Value as Json, json};

/// Which of the two documents is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    V2,
    V3,
}

impl Style {
    fn reference(self, name: &str) -> Json {
        match self {
            Self::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Self::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const EXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1";

/// The types that a document refers to, directly or through others.
#[derive(Default)]
pub struct TypeSet {
    types: BTreeSet<TypeId>,
    /// Types that are scalars or anything at all, by their names.
    plain: BTreeSet<String>,
}

impl TypeSet {
    /// A reference to a type, which becomes part of the document with all it refers to.
    pub fn reference(&mut self, id: TypeId, style: Style) -> Json {
        self.add(id);
        style.reference(schema().type_of(id).name)
    }

    /// A reference to a type by its published name; to any object when the schema lacks it.
    pub fn named(&mut self, name: &str, style: Style) -> Json {
        match schema().type_named(name) {
            Some(id) => self.reference(id, style),
            None => {
                self.plain.insert(name.to_owned());
                style.reference(name)
            }
        }
    }

    fn add(&mut self, id: TypeId) {
        if !self.types.insert(id) {
            return;
        }
        for field in &schema().type_of(id).fields {
            self.add_field_type(&field.ty);
        }
    }

    fn add_field_type(&mut self, ty: &FieldType) {
        match ty {
            FieldType::Ref(id) => self.add(*id),
            FieldType::SchemaOrArray(id)
            | FieldType::SchemaOrBool(id)
            | FieldType::SchemaOrStrings(id) => {
                self.add(*id);
                self.plain.extend(plain_name(ty));
            }
            FieldType::List(inner) | FieldType::Map(inner) => self.add_field_type(inner),
            other => self.plain.extend(plain_name(other)),
        }
    }

    /// All of them as JSON schemas by name.
    pub fn documents(&self, style: Style) -> Json {
        let (kinds, words) = (kinds_by_type(), Descriptions::load());
        let texts = api::descriptions::Descriptions::load();
        let mut all = Map::new();
        for id in &self.types {
            let ty = schema().type_of(*id);
            let mut document = structure(ty, style, &words);
            super::describe::describe(&mut document, ty, &texts, style);
            if let Some(kinds) = kinds.get(id) {
                document["x-kubernetes-group-version-kind"] = kinds.clone();
            }
            all.insert(ty.name.to_owned(), document);
        }
        for name in &self.plain {
            let mut document = plain_type(name, style);
            describe(&mut document, words.of_type(name));
            all.insert(name.clone(), document);
        }
        Json::Object(all)
    }
}

fn kinds_by_type() -> BTreeMap<TypeId, Json> {
    let mut kinds: BTreeMap<TypeId, Vec<Json>> = BTreeMap::new();
    for kind in schema().kinds() {
        let gvk = &kind.gvk;
        let group = if gvk.group == "meta.k8s.io" { "" } else { gvk.group.as_str() };
        let entry =
            json!({"group": group, "version": gvk.version.as_str(), "kind": gvk.kind.as_str()});
        kinds.entry(kind.ty).or_default().push(entry);
    }
    kinds.into_iter().map(|(id, list)| (id, list.into())).collect()
}

fn describe(document: &mut Json, text: &str) {
    if !text.is_empty() {
        document["description"] = text.into();
    }
}

fn structure(ty: &TypeDef, style: Style, words: &Descriptions) -> Json {
    let described = |field: &Field| {
        let mut property = property(field, style);
        let text = words.of_field(ty.name, field.name);
        // A reference stands alone in version 3: what is said beside it goes around it.
        if style == Style::V3 && !text.is_empty() && property.get("$ref").is_some() {
            property = json!({"allOf": [property]});
        }
        describe(&mut property, text);
        (field.name.to_owned(), property)
    };
    let properties: Map<String, Json> = ty.fields.iter().map(described).collect();
    let required: Vec<&str> =
        ty.fields.iter().filter(|field| field.required).map(|field| field.name).collect();
    let mut document = json!({"type": "object"});
    describe(&mut document, words.of_type(ty.name));
    if !properties.is_empty() {
        document["properties"] = properties.into();
    }
    if !required.is_empty() {
        document["required"] = required.into();
    }
    if ty.atomic {
        document["x-kubernetes-map-type"] = "atomic".into();
    }
    document
}

fn property(field: &Field, style: Style) -> Json {
    let mut property = typed(&field.ty, style);
    let declared = field.default.and_then(|text| serde_json::from_str::<Json>(text).ok());
    let zero = if field.pointer { None } else { zero_default(field) };
    let default = declared.or(zero).filter(|_| style == Style::V3);
    if let Some(default) = default {
        if property.get("$ref").is_some() {
            property = json!({"allOf": [property]});
        }
        property["default"] = default;
    }
    if !field.format.is_empty() && property.get("$ref").is_none() {
        property["format"] = field.format.into();
    }
    if !field.enum_values.is_empty() && property["type"] == "string" {
        property["enum"] = field.enum_values.clone().into();
    }
    add_merge_keys(&mut property, field);
    property
}

/// Go's zero value, where the field is always written.
fn zero_default(field: &Field) -> Option<Json> {
    match &field.ty {
        FieldType::Ref(_) => Some(json!({})),
        _ if field.omit_empty || !field.required => None,
        FieldType::String => Some("".into()),
        FieldType::Bool => Some(false.into()),
        FieldType::Int32 | FieldType::Int64 | FieldType::UInt32 | FieldType::UInt64 => {
            Some(0.into())
        }
        _ => None,
    }
}

fn add_merge_keys(property: &mut Json, field: &Field) {
    if let Some(list) = field.list_type {
        let name = match list {
            ListType::Atomic => "atomic",
            ListType::Set => "set",
            ListType::Map => "map",
        };
        property["x-kubernetes-list-type"] = name.into();
    }
    if !field.map_keys.is_empty() {
        property["x-kubernetes-list-map-keys"] = field.map_keys.clone().into();
    }
    if field.map_type == Some(MapType::Atomic) {
        property["x-kubernetes-map-type"] = "atomic".into();
    }
    let strategy = field.patch_strategy;
    let flags = [
        (strategy.merge, "merge"),
        (strategy.replace, "replace"),
        (strategy.retain_keys, "retainKeys"),
    ];
    let flags: Vec<&str> = flags.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
    if !flags.is_empty() {
        property["x-kubernetes-patch-strategy"] = flags.join(",").into();
    }
    if !field.patch_merge_key.is_empty() {
        property["x-kubernetes-patch-merge-key"] = field.patch_merge_key.into();
    }
}

fn typed(ty: &FieldType, style: Style) -> Json {
    use FieldType as T;
    match ty {
        T::Bool => json!({"type": "boolean"}),
        T::Int32 => json!({"type": "integer", "format": "int32"}),
        T::Int64 => json!({"type": "integer", "format": "int64"}),
        T::UInt32 => json!({"type": "integer", "format": "int64"}),
        T::UInt64 => json!({"type": "integer", "format": "int64"}),
        T::Float64 => json!({"type": "number", "format": "double"}),
        T::String => json!({"type": "string"}),
        T::Bytes => json!({"type": "string", "format": "byte"}),
        T::Ref(id) => style.reference(schema().type_of(*id).name),
        T::List(item) => json!({"type": "array", "items": item_type(item, style)}),
        T::Map(item) => json!({"type": "object", "additionalProperties": item_type(item, style)}),
        other => style.reference(&plain_name(other).unwrap_or_default()),
    }
}

fn item_type(item: &FieldType, style: Style) -> Json {
    let typed = typed(item, style);
    match (style, item) {
        (Style::V3, FieldType::Ref(_)) => json!({"allOf": [typed], "default": {}}),
        (Style::V3, FieldType::String) => json!({"type": "string", "default": ""}),
        _ => typed,
    }
}

/// The published name of a type that the schema holds as a scalar.
fn plain_name(ty: &FieldType) -> Option<String> {
    use FieldType as T;
    Some(match ty {
        T::Quantity => "io.k8s.apimachinery.pkg.api.resource.Quantity".to_owned(),
        T::IntOrString => "io.k8s.apimachinery.pkg.util.intstr.IntOrString".to_owned(),
        T::RawExtension => "io.k8s.apimachinery.pkg.runtime.RawExtension".to_owned(),
        T::Time => format!("{META}.Time"),
        T::MicroTime => format!("{META}.MicroTime"),
        T::Duration => format!("{META}.Duration"),
        T::FieldsV1 => format!("{META}.FieldsV1"),
        T::Json => format!("{EXTENSIONS}.JSON"),
        T::SchemaOrArray(_) => format!("{EXTENSIONS}.JSONSchemaPropsOrArray"),
        T::SchemaOrBool(_) => format!("{EXTENSIONS}.JSONSchemaPropsOrBool"),
        T::SchemaOrStrings(_) => format!("{EXTENSIONS}.JSONSchemaPropsOrStringArray"),
        _ => return None,
    })
}

fn plain_type(name: &str, style: Style) -> Json {
    let any_of = |types: [&str; 2], format: Option<&str>| match style {
        Style::V2 => match format {
            Some(format) => json!({"type": "string", "format": format}),
            None => json!({"type": "string"}),
        },
        Style::V3 => {
            let mut json = json!({"oneOf": types.map(|ty| json!({"type": ty}))});
            if let Some(format) = format {
                json["format"] = format.into();
            }
            json
        }
    };
    match name.rsplit('.').next().unwrap_or_default() {
        "Quantity" => any_of(["string", "number"], None),
        "IntOrString" => any_of(["integer", "string"], Some("int-or-string")),
        "Time" | "MicroTime" => json!({"type": "string", "format": "date-time"}),
        "Duration" => json!({"type": "string"}),
        "JSON"
        | "JSONSchemaPropsOrArray"
        | "JSONSchemaPropsOrBool"
        | "JSONSchemaPropsOrStringArray" => json!({}),
        _ => json!({"type": "object"}),
    }
}
