//! Reads the fact files. Their form is described where they are written, in `xtask/src/facts`.

use super::{
    Field, FieldType, Kind, ListType, MapType, PatchStrategy, Resource, Schema, Subresource,
    TypeDef, TypeId, kind_key, resource_key,
};
use crate::{GroupVersion, GroupVersionKind, GroupVersionResource};

const TYPES: &str = include_str!("../../data/types.txt");
const RESOURCES: &str = include_str!("../../data/resources.txt");

/// The files are part of the program and covered by its tests, so a malformed line is a
/// programming error and panics.
pub(super) fn embedded() -> Schema {
    let mut schema = Schema::default();
    for (at, line) in TYPES.lines().filter(|l| l.starts_with("type ")).enumerate() {
        let name = word(line, 1);
        schema.type_names.insert(name, TypeId(at as u32));
    }
    read_types(&mut schema);
    read_resources(&mut schema);
    schema.kinds.sort_by(|a, b| kind_key(a).cmp(&kind_key(b)));
    schema.resources.sort_by(|a, b| resource_key(a).cmp(&resource_key(b)));
    schema
}

fn word(line: &'static str, at: usize) -> &'static str {
    line.split(' ').nth(at).unwrap_or_else(|| panic!("short fact line: {line}"))
}

fn read_types(schema: &mut Schema) {
    for line in TYPES.lines() {
        match line.split_once(' ') {
            Some(("type", rest)) => schema.types.push(type_line(rest)),
            Some(("kind", rest)) => {
                let ty = TypeId(schema.types.len() as u32 - 1);
                schema.kinds.push(Kind { gvk: gvk(rest), ty });
            }
            Some(("field", rest)) => {
                let field = field_line(rest, schema);
                if let Some(ty) = schema.types.last_mut() {
                    ty.fields.push(field);
                }
            }
            _ => {}
        }
    }
    for ty in &mut schema.types {
        sort_fields(ty);
    }
}

fn sort_fields(ty: &mut TypeDef) {
    let mut order: Vec<u16> = (0..ty.fields.len() as u16).collect();
    order.sort_by_key(|&at| ty.fields[usize::from(at)].name);
    // `order[new] = old`; `declared` lists, for each old place, its new one.
    ty.declared = vec![0; order.len()];
    for (new, &old) in order.iter().enumerate() {
        ty.declared[usize::from(old)] = new as u16;
    }
    ty.fields.sort_by_key(|f| f.name);
}

/// `NAME GO_NAME [atomic]`
fn type_line(rest: &'static str) -> TypeDef {
    let mut words = rest.split(' ');
    let name = words.next().unwrap_or_default();
    let go_name = words.next().unwrap_or_default();
    TypeDef {
        name,
        short_name: name.rsplit('.').next().unwrap_or(name),
        go_name,
        atomic: words.next() == Some("atomic"),
        fields: Vec::new(),
        declared: Vec::new(),
    }
}

/// `NAME TYPE NUMBER FLAG…`; a default is the rest of the line.
fn field_line(rest: &'static str, schema: &Schema) -> Field {
    let (rest, default) = match rest.split_once(" default=") {
        Some((rest, default)) => (rest, Some(default)),
        None => (rest, None),
    };
    let mut words = rest.split(' ');
    let name = words.next().unwrap_or_default();
    let ty = field_type(words.next().unwrap_or_default(), schema);
    let mut numbers: Vec<u32> =
        words.next().unwrap_or_default().split('.').map(|n| n.parse().unwrap_or(0)).collect();
    let proto = numbers.pop().unwrap_or(0);
    let mut field = Field {
        name,
        ty,
        required: false,
        default,
        proto,
        proto_outer: numbers,
        proto_items: false,
        list_type: None,
        map_keys: Vec::new(),
        map_type: None,
        patch_strategy: PatchStrategy::default(),
        patch_merge_key: "",
        enum_values: Vec::new(),
        omit_empty: false,
        omit_zero: false,
        pointer: false,
        format: "",
        go_type: "",
        inline: "",
    };
    for flag in words {
        field_flag(&mut field, flag);
    }
    field
}

fn field_flag(field: &mut Field, flag: &'static str) {
    let (key, value) = flag.split_once('=').unwrap_or((flag, ""));
    match key {
        "required" => field.required = true,
        "omitempty" => field.omit_empty = true,
        "omitzero" => field.omit_zero = true,
        "pointer" => field.pointer = true,
        "items" => field.proto_items = true,
        "list" => {
            let (kind, keys) = value.split_once(':').unwrap_or((value, ""));
            field.list_type = match kind {
                "map" => Some(ListType::Map),
                "set" => Some(ListType::Set),
                _ => Some(ListType::Atomic),
            };
            field.map_keys = words(keys);
        }
        "map" if value == "atomic" => field.map_type = Some(MapType::Atomic),
        "map" => field.map_type = Some(MapType::Granular),
        "patch" => field.patch_strategy = patch_strategy(value),
        "key" => field.patch_merge_key = value,
        "format" => field.format = value,
        "inline" => field.inline = value,
        "go" => field.go_type = value,
        "enum" => field.enum_values = words(value),
        _ => panic!("unknown flag in the facts: {flag}"),
    }
}

fn patch_strategy(value: &str) -> PatchStrategy {
    let has = |name| value.split(',').any(|part| part == name);
    PatchStrategy { merge: has("merge"), replace: has("replace"), retain_keys: has("retainKeys") }
}

fn field_type(text: &'static str, schema: &Schema) -> FieldType {
    let id = |name: &str| {
        *schema.type_names.get(name).unwrap_or_else(|| panic!("unknown type in the facts: {name}"))
    };
    if let Some(inner) = text.strip_prefix("[]") {
        return FieldType::List(Box::new(field_type(inner, schema)));
    }
    if let Some(inner) = text.strip_prefix("{}") {
        return FieldType::Map(Box::new(field_type(inner, schema)));
    }
    if let Some((how, name)) = text.split_once('|') {
        return match how {
            "array" => FieldType::SchemaOrArray(id(name)),
            "bool" => FieldType::SchemaOrBool(id(name)),
            _ => FieldType::SchemaOrStrings(id(name)),
        };
    }
    match text {
        "bool" => FieldType::Bool,
        "int32" => FieldType::Int32,
        "int64" => FieldType::Int64,
        "uint32" => FieldType::UInt32,
        "uint64" => FieldType::UInt64,
        "float64" => FieldType::Float64,
        "string" => FieldType::String,
        "bytes" => FieldType::Bytes,
        "quantity" => FieldType::Quantity,
        "intorstring" => FieldType::IntOrString,
        "time" => FieldType::Time,
        "microtime" => FieldType::MicroTime,
        "duration" => FieldType::Duration,
        "raw" => FieldType::RawExtension,
        "fields" => FieldType::FieldsV1,
        "json" => FieldType::Json,
        name => FieldType::Ref(id(name)),
    }
}

fn words(list: &'static str) -> Vec<&'static str> {
    list.split(',').filter(|w| !w.is_empty()).collect()
}

/// `GROUP/VERSION KIND`, with nothing before the slash for the core group.
fn gvk(text: &'static str) -> GroupVersionKind {
    let (version, kind) = text.split_once(' ').unwrap_or((text, ""));
    fixed_version(version).kind(smol_str::SmolStr::new_static(kind))
}

fn fixed_version(text: &'static str) -> GroupVersion {
    let (group, version) = text.split_once('/').unwrap_or(("", text));
    let fixed = smol_str::SmolStr::new_static;
    GroupVersion { group: fixed(group), version: fixed(version) }
}

fn read_resources(schema: &mut Schema) {
    for line in RESOURCES.lines() {
        match line.split_once(' ') {
            Some(("resource", rest)) => schema.resources.push(resource_line(rest)),
            Some(("sub", rest)) => {
                if let Some(resource) = schema.resources.last_mut() {
                    resource.subresources.push(sub_line(rest));
                }
            }
            _ => {}
        }
    }
}

/// `GROUP/VERSION PLURAL KIND FLAG…`
fn resource_line(rest: &'static str) -> Resource {
    let version = fixed_version(word(rest, 0));
    let plural = word(rest, 1);
    let kind = word(rest, 2);
    let mut resource = Resource {
        gvr: GroupVersionResource::fixed("", "", plural),
        gvk: version.kind(smol_str::SmolStr::new_static(kind)),
        list_kind: "",
        singular: "",
        short_names: Vec::new(),
        categories: Vec::new(),
        namespaced: false,
        verbs: Vec::new(),
        subresources: Vec::new(),
        served: false,
        storage_version: version.clone(),
        storage_prefix: "",
    };
    resource.gvr.group = version.group;
    resource.gvr.version = version.version;
    for flag in rest.split(' ').skip(3) {
        resource_flag(&mut resource, flag);
    }
    resource
}

fn resource_flag(resource: &mut Resource, flag: &'static str) {
    let (key, value) = flag.split_once('=').unwrap_or((flag, ""));
    match key {
        "list" => resource.list_kind = value,
        "singular" => resource.singular = value,
        "short" => resource.short_names = words(value),
        "categories" => resource.categories = words(value),
        "namespaced" => resource.namespaced = true,
        "served" => resource.served = true,
        "verbs" => resource.verbs = words(value),
        "stored" => resource.storage_version = fixed_version(value),
        "prefix" => resource.storage_prefix = value,
        _ => panic!("unknown flag in the facts: {flag}"),
    }
}

/// `NAME GROUP/VERSION KIND VERBS`
fn sub_line(rest: &'static str) -> Subresource {
    let kind = smol_str::SmolStr::new_static(word(rest, 2));
    Subresource {
        name: word(rest, 0),
        gvk: fixed_version(word(rest, 1)).kind(kind),
        verbs: words(word(rest, 3)),
    }
}
