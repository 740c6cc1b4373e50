//! What a codec needs of a type, worked out once from the schema facts.

use std::sync::{LazyLock, OnceLock};

use api::{Field, FieldType, TypeDef, TypeId, schema};

use crate::{Map, Value};

/// Precomputed facts of one type.
pub(crate) struct Shape {
    pub ty: &'static TypeDef,
    /// Fields that are written in JSON even when nothing was set, with what is written.
    pub always: Vec<(u16, Value)>,
    /// The message's parts in the order of their numbers.
    pub message: Vec<Part>,
}

/// A part of a protobuf message.
pub(crate) enum Part {
    /// An index into the type's fields.
    Field { number: u32, field: u16 },
    /// A message whose fields are inline in JSON.
    Inline { number: u32, parts: Vec<Part> },
}

impl Part {
    pub fn number(&self) -> u32 {
        match self {
            Self::Field { number, .. } | Self::Inline { number, .. } => *number,
        }
    }
}

pub(crate) fn shape(id: TypeId) -> &'static Shape {
    static SHAPES: LazyLock<Vec<OnceLock<Shape>>> =
        LazyLock::new(|| schema().types().map(|_| OnceLock::new()).collect());
    SHAPES[id.index()].get_or_init(|| Shape::of(schema().type_of(id)))
}

impl Shape {
    fn of(ty: &'static TypeDef) -> Self {
        let always = ty
            .fields
            .iter()
            .enumerate()
            .filter_map(|(at, field)| Some((at as u16, written_when_unset(field)?)))
            .collect();
        let fields = ty.fields.iter().enumerate();
        let paths = fields
            .filter(|(_, field)| field.proto != 0)
            .map(|(at, field)| (field.proto_outer.as_slice(), field.proto, at as u16))
            .collect();
        Self { ty, always, message: parts(paths) }
    }
}

/// Outer numbers, own number, index of the field.
type Path = (&'static [u32], u32, u16);

fn parts(fields: Vec<Path>) -> Vec<Part> {
    let mut out: Vec<Part> = Vec::new();
    let mut inner: Vec<(u32, Vec<Path>)> = Vec::new();
    for (outer, number, field) in fields {
        match outer.split_first() {
            None => out.push(Part::Field { number, field }),
            Some((&first, rest)) => match inner.iter_mut().find(|(n, _)| *n == first) {
                Some((_, list)) => list.push((rest, number, field)),
                None => inner.push((first, vec![(rest, number, field)])),
            },
        }
    }
    out.extend(inner.into_iter().map(|(number, list)| Part::Inline { number, parts: parts(list) }));
    out.sort_by_key(Part::number);
    out
}

/// What Go writes for a field that was never set; `None` when it leaves the field out.
fn written_when_unset(field: &Field) -> Option<Value> {
    if field.omit_zero {
        return None;
    }
    let nullable = field.pointer
        || matches!(
            field.ty,
            FieldType::List(_) | FieldType::Map(_) | FieldType::Bytes | FieldType::Json
        );
    if nullable {
        return (!field.omit_empty).then_some(Value::Null);
    }
    if is_scalar(&field.ty) && field.omit_empty {
        return None;
    }
    Some(zero(&field.ty))
}

pub(crate) fn is_scalar(ty: &FieldType) -> bool {
    use FieldType as T;
    matches!(ty, T::Bool | T::Int32 | T::Int64 | T::UInt32 | T::UInt64 | T::Float64 | T::String)
}

/// What Go writes for a zero value of this type.
pub(crate) fn zero(ty: &FieldType) -> Value {
    use FieldType as T;
    match ty {
        T::Bool | T::SchemaOrBool(_) => Value::Bool(false),
        T::Int32 | T::Int64 | T::UInt32 | T::UInt64 | T::Float64 | T::IntOrString => Value::Int(0),
        T::String => "".into(),
        T::Quantity => "0".into(),
        T::Duration => "0s".into(),
        T::Ref(id) => zero_struct(*id).into(),
        T::Bytes | T::Time | T::MicroTime | T::RawExtension | T::FieldsV1 | T::Json => Value::Null,
        T::SchemaOrArray(_) | T::SchemaOrStrings(_) | T::List(_) | T::Map(_) => Value::Null,
    }
}

pub(crate) fn zero_struct(id: TypeId) -> Map {
    let shape = shape(id);
    let name = |at: u16| static_name(shape.ty.fields[usize::from(at)].name);
    shape.always.iter().map(|(at, value)| (name(*at), value.clone())).collect()
}

pub(crate) fn static_name(name: &'static str) -> smol_str::SmolStr {
    smol_str::SmolStr::new_static(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_without_anything_is_written_as_go_writes_it() {
        let pod = schema().type_named("io.k8s.api.core.v1.Pod").unwrap();
        let text = format!("{:?}", zero_struct(pod));
        assert_eq!(text, r#"{"metadata":{},"spec":{"containers":null},"status":{}}"#);
    }
}
