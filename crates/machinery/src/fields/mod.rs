//! Checks a tree against a kind's fields, and brings it into the form that Go's decoder and
//! encoder would give it: unknown fields dropped, empty values left out or written as the
//! field asks, quantities, times and base64 canonical.
//!
//! The texts of errors are those of upstream's decoder, because they reach users.

pub mod body;
mod scalar;

use api::{Field, FieldType, GroupVersionKind, Status, TypeId, schema};

pub use body::{decode_body, not_handled};

use crate::{
    Map, Object, Value,
    shape::{shape, static_name, zero, zero_struct},
};

/// What a tree became.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoded {
    pub map: Map,
    /// What strict decoding objects to: `unknown field "spec.foo"`.
    pub strict: Vec<String>,
}

/// The first wrong type in a tree, in the words of Go's decoder.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub String);

/// The `fieldValidation` parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

impl FieldValidation {
    /// Empty means `Warn`; `None` for anything unknown.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Warn" => Some(Self::Warn),
            "Ignore" => Some(Self::Ignore),
            "Strict" => Some(Self::Strict),
            _ => None,
        }
    }
}

/// Checks and normalises the body of a kind. `duplicates` are the paths that
/// [`crate::json::parse_noting_duplicates`] found. Gives the object and the warnings to send.
///
/// Fails with 400 for a wrong type, and under `Strict` for unknown or duplicate fields.
pub fn decode_object(
    body: &Value,
    duplicates: &[String],
    gvk: &GroupVersionKind,
    validation: FieldValidation,
) -> Result<(Object, Vec<String>), Status> {
    let (object, strict) = decode_noting(body, duplicates, gvk)?;
    judge(object, strict, gvk, validation)
}

/// Writes kind and version into the claim templates of a StatefulSet: protobuf does not carry
/// them, and upstream puts them into everything that it gives out.
pub fn complete(object: &mut Object) {
    if object.kind() != "StatefulSet" || object.list_at(&CLAIM_TEMPLATES).is_empty() {
        return;
    }
    let templates = object.list_at(&CLAIM_TEMPLATES).iter().map(|template| {
        let mut map = template.as_map().cloned().unwrap_or_default();
        map.insert("apiVersion", "v1");
        map.insert("kind", "PersistentVolumeClaim");
        Value::Map(map)
    });
    let templates: Vec<Value> = templates.collect();
    object.set_at(&CLAIM_TEMPLATES, templates);
}

const CLAIM_TEMPLATES: [&str; 2] = ["spec", "volumeClaimTemplates"];

/// The object, and what strict decoding objects to.
fn decode_noting(
    body: &Value,
    duplicates: &[String],
    gvk: &GroupVersionKind,
) -> Result<(Object, Vec<String>), Status> {
    let kind = schema().kind(gvk).ok_or_else(|| body::unregistered(gvk, &gvk.kind))?;
    let decoded = decode(body, kind.ty).map_err(|error| not_handled(gvk, &error.0))?;
    let doubled = duplicates.iter().map(|path| format!("duplicate field {path:?}"));
    let mut object = Object::from_map(decoded.map);
    complete(&mut object);
    Ok((object, doubled.chain(decoded.strict).collect()))
}

fn judge(
    object: Object,
    strict: Vec<String>,
    gvk: &GroupVersionKind,
    validation: FieldValidation,
) -> Result<(Object, Vec<String>), Status> {
    match validation {
        FieldValidation::Strict if !strict.is_empty() => {
            Err(not_handled(gvk, &format!("strict decoding error: {}", strict.join(", "))))
        }
        FieldValidation::Warn => Ok((object, strict)),
        _ => Ok((object, Vec::new())),
    }
}

/// Checks and normalises a struct.
pub fn decode(value: &Value, ty: TypeId) -> Result<Decoded, Error> {
    let mut decoder = Decoder { strict: Vec::new(), path: Vec::new(), error: None };
    let map = match value {
        Value::Map(map) => decoder.structure(map, ty),
        Value::Null => zero_struct(ty),
        other => {
            let go = schema().type_of(ty).go_name;
            let found = other.type_name();
            return Err(Error(format!(
                "json: cannot unmarshal {found} into Go value of type {go}"
            )));
        }
    };
    match decoder.error {
        Some(error) => Err(error),
        None => Ok(Decoded { map, strict: decoder.strict }),
    }
}

enum Step<'a> {
    Field(&'static Field),
    Key(&'a str),
    Index(usize),
}

struct Decoder<'a> {
    strict: Vec<String>,
    path: Vec<Step<'a>>,
    /// The first error; decoding goes on as Go does.
    error: Option<Error>,
}

/// Where a value stands, for error texts.
#[derive(Clone, Copy)]
struct Place {
    owner: &'static str,
    field: &'static Field,
}

impl<'a> Decoder<'a> {
    fn structure(&mut self, map: &'a Map, ty: TypeId) -> Map {
        let shape = shape(ty);
        let fields: &'static [Field] = &shape.ty.fields;
        let mut slots: Vec<Option<Value>> = vec![None; fields.len()];
        let mut set = vec![false; fields.len()];
        for (key, value) in map.iter() {
            match fields.binary_search_by(|f| f.name.cmp(key)) {
                Ok(at) if value.is_null() => set[at] = false,
                Ok(at) => {
                    let place = Place { owner: shape.ty.short_name, field: &fields[at] };
                    self.path.push(Step::Field(&fields[at]));
                    set[at] = true;
                    slots[at] = self.field(value, place);
                    self.path.pop();
                }
                Err(_) => {
                    let path = self.strict_path(key);
                    self.strict.push(format!("unknown field {path:?}"));
                }
            }
        }
        for (at, unset) in &shape.always {
            let at = usize::from(*at);
            if !set[at] || slots[at].is_none() {
                slots[at] = Some(unset.clone());
            }
        }
        let named = fields.iter().zip(slots);
        Map::from_sorted(named.filter_map(|(f, v)| Some((static_name(f.name), v?))).collect())
    }

    /// `None` when Go leaves the value out.
    fn field(&mut self, value: &'a Value, place: Place) -> Option<Value> {
        let field = place.field;
        let value = self.value(value, &field.ty, place);
        if field.pointer {
            return Some(value);
        }
        if field.omit_zero && value.is_null() {
            return None;
        }
        let empty = field.omit_empty
            && match &value {
                Value::Bool(flag) => !flag,
                Value::Int(number) => *number == 0 && field.ty != FieldType::IntOrString,
                Value::Float(number) => *number == 0.0,
                Value::String(text) => {
                    text.is_empty() && matches!(field.ty, FieldType::String | FieldType::Bytes)
                }
                Value::List(items) => items.is_empty(),
                Value::Map(map) => map.is_empty() && matches!(field.ty, FieldType::Map(_)),
                Value::Null => matches!(
                    field.ty,
                    FieldType::List(_) | FieldType::Map(_) | FieldType::Bytes | FieldType::Json
                ),
            };
        (!empty).then_some(value)
    }

    fn value(&mut self, value: &'a Value, ty: &FieldType, place: Place) -> Value {
        use FieldType as T;
        if value.is_null() && !matches!(ty, T::RawExtension | T::Json | T::FieldsV1) {
            return zero(ty);
        }
        match (ty, value) {
            (T::RawExtension | T::Json | T::FieldsV1, _) => value.clone(),
            (T::Ref(id), Value::Map(map)) => self.structure(map, *id).into(),
            (T::List(item), Value::List(items)) => self.list(items, item, place),
            (T::Map(item), Value::Map(map)) => self.map(map, item, place),
            (
                T::SchemaOrArray(id) | T::SchemaOrBool(id) | T::SchemaOrStrings(id),
                Value::Map(map),
            ) => self.structure(map, *id).into(),
            (T::SchemaOrBool(_), Value::Bool(_)) => value.clone(),
            (T::SchemaOrArray(id), Value::List(items)) => self.list(items, &T::Ref(*id), place),
            (T::SchemaOrStrings(_), Value::List(items)) => self.list(items, &T::String, place),
            _ => match scalar::normal(value, ty) {
                Ok(value) => value,
                Err(fault) => {
                    self.fail(fault, ty, place);
                    Value::Null
                }
            },
        }
    }

    fn list(&mut self, items: &'a [Value], item: &FieldType, place: Place) -> Value {
        let mut out = Vec::with_capacity(items.len());
        for (at, value) in items.iter().enumerate() {
            self.path.push(Step::Index(at));
            out.push(self.value(value, item, place));
            self.path.pop();
        }
        Value::from(out)
    }

    fn map(&mut self, map: &'a Map, item: &FieldType, place: Place) -> Value {
        let mut out = Vec::with_capacity(map.len());
        for (key, value) in map.iter() {
            self.path.push(Step::Key(key));
            out.push((key.clone(), self.value(value, item, place)));
            self.path.pop();
        }
        Map::from_sorted(out).into()
    }

    fn fail(&mut self, fault: scalar::Fault, ty: &FieldType, place: Place) {
        if self.error.is_some() {
            return;
        }
        let (found, go) = match fault {
            scalar::Fault::Other(text) => {
                self.error = Some(Error(text));
                return;
            }
            scalar::Fault::Type(found) => (found, self.go_type(ty, place)),
            scalar::Fault::Inner(found, go) => (found, go.to_owned()),
        };
        let (owner, path) = (place.owner, self.json_path());
        let text = format!(
            "json: cannot unmarshal {found} into Go struct field {owner}.{path} of type {go}"
        );
        self.error = Some(Error(text));
    }

    fn go_type(&self, ty: &FieldType, place: Place) -> String {
        let field = place.field;
        if std::ptr::eq(ty, &field.ty) && !field.go_type.is_empty() {
            return field.go_type.to_owned();
        }
        // An item of a list of named strings.
        let named_item = field.go_type.strip_prefix("[]").filter(|_| is_text_list(&field.ty));
        match named_item {
            Some(name) if *ty == FieldType::String => name.to_owned(),
            _ => go_type(ty),
        }
    }

    /// Field names without list indices or map keys, as Go prints them.
    fn json_path(&self) -> String {
        let mut names = Vec::new();
        for step in &self.path {
            if let Step::Field(field) = step {
                names.extend([field.inline, field.name].into_iter().filter(|n| !n.is_empty()));
            }
        }
        names.join(".")
    }

    fn strict_path(&self, last: &str) -> String {
        let mut out = String::new();
        for step in &self.path {
            match step {
                Step::Field(field) => push_name(&mut out, field.name),
                Step::Key(key) => push_name(&mut out, key),
                Step::Index(at) => out.push_str(&format!("[{at}]")),
            }
        }
        push_name(&mut out, last);
        out
    }
}

fn push_name(out: &mut String, name: &str) {
    if !out.is_empty() {
        out.push('.');
    }
    out.push_str(name);
}

fn is_text_list(ty: &FieldType) -> bool {
    matches!(ty, FieldType::List(item) if **item == FieldType::String)
}

/// How Go prints an unnamed type.
fn go_type(ty: &FieldType) -> String {
    use FieldType as T;
    match ty {
        T::Bool => "bool".into(),
        T::Int32 => "int32".into(),
        T::Int64 => "int64".into(),
        T::UInt32 => "uint32".into(),
        T::UInt64 => "uint64".into(),
        T::Float64 => "float64".into(),
        T::String => "string".into(),
        T::Bytes => "[]uint8".into(),
        T::Quantity => "resource.Quantity".into(),
        T::IntOrString => "intstr.IntOrString".into(),
        T::Time => "v1.Time".into(),
        T::MicroTime => "v1.MicroTime".into(),
        T::Duration => "v1.Duration".into(),
        T::RawExtension => "runtime.RawExtension".into(),
        T::FieldsV1 => "v1.FieldsV1".into(),
        T::Json => "v1.JSON".into(),
        T::SchemaOrArray(_) => "v1.JSONSchemaPropsOrArray".into(),
        T::SchemaOrBool(_) => "v1.JSONSchemaPropsOrBool".into(),
        T::SchemaOrStrings(_) => "v1.JSONSchemaPropsOrStringArray".into(),
        T::Ref(id) => schema().type_of(*id).go_name.to_owned(),
        T::List(item) => format!("[]{}", go_type(item)),
        T::Map(item) => format!("map[string]{}", go_type(item)),
    }
}

#[cfg(test)]
mod tests;
