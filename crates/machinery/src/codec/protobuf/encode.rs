//! Trees to protobuf messages.

use api::{Field, FieldType, TypeId};
use stdx::Timestamp;

use super::wire::Reverse;
use crate::{
    Map, Value,
    codec::Error,
    json, scalars,
    shape::{Part, shape, zero},
};

type Done = Result<(), Error>;

/// Writes a struct's message, without tag and length.
pub fn message(map: &Map, ty: TypeId, out: &mut Reverse) -> Done {
    let shape = shape(ty);
    parts(map, &shape.message, &shape.ty.fields, out)
}

fn parts(map: &Map, list: &[Part], fields: &'static [Field], out: &mut Reverse) -> Done {
    for part in list.iter().rev() {
        match part {
            Part::Field { number, field } => {
                self::field(map, *number, &fields[usize::from(*field)], out)?;
            }
            Part::Inline { number, parts: inner } => {
                out.nested(*number, |out| parts(map, inner, fields, out))?;
            }
        }
    }
    Ok(())
}

fn field(map: &Map, number: u32, field: &Field, out: &mut Reverse) -> Done {
    let found = map.get(field.name).filter(|v| !v.is_null());
    match (&field.ty, found) {
        (FieldType::List(item), Some(value)) => {
            let items = value.as_list().ok_or_else(|| wrong(field, value))?;
            if field.proto_items {
                return out.nested(number, |out| list(1, item, items, field, out));
            }
            list(number, item, items, field, out)
        }
        (FieldType::Map(item), Some(value)) => {
            let entries = value.as_map().ok_or_else(|| wrong(field, value))?;
            entries.iter().rev().try_for_each(|(key, value)| {
                out.nested(number, |out| {
                    self::value(2, item, value, field, out)?;
                    out.field_bytes(1, key.as_bytes());
                    Ok(())
                })
            })
        }
        (ty, Some(value)) => self::value(number, ty, value, field, out),
        (FieldType::List(_) | FieldType::Map(_) | FieldType::Bytes, None) => Ok(()),
        (_, None) if field.pointer => Ok(()),
        (ty, None) => self::value(number, ty, &zero(ty), field, out),
    }
}

fn list(number: u32, item: &FieldType, items: &[Value], field: &Field, out: &mut Reverse) -> Done {
    items.iter().rev().try_for_each(|value| self::value(number, item, value, field, out))
}

fn wrong(field: &Field, value: &Value) -> Error {
    Error::WrongType { field: field.name, found: value.type_name() }
}

/// Writes one value with its tag.
fn value(number: u32, ty: &FieldType, value: &Value, field: &Field, out: &mut Reverse) -> Done {
    use FieldType as T;
    let text = || value.as_str().ok_or_else(|| wrong(field, value));
    match ty {
        T::Bool => {
            let flag = value.as_bool().ok_or_else(|| wrong(field, value))?;
            out.field_varint(number, flag.into());
        }
        T::Int32 | T::Int64 | T::UInt32 | T::UInt64 => {
            let whole = value.as_i64().ok_or_else(|| wrong(field, value))?;
            out.field_varint(number, whole as u64);
        }
        T::Float64 => out.field_double(number, float(value).ok_or_else(|| wrong(field, value))?),
        T::String => out.field_bytes(number, text()?.as_bytes()),
        T::Bytes => {
            let bytes = match value {
                Value::Null => Vec::new(),
                _ => scalars::base64_decode(text()?).map_err(|_| wrong(field, value))?,
            };
            out.field_bytes(number, &bytes);
        }
        T::Quantity => {
            let text = quantity_text(value).ok_or_else(|| wrong(field, value))?;
            out.nested(number, |out| {
                out.field_bytes(1, text.as_bytes());
                Ok(())
            })?;
        }
        T::IntOrString => out.nested(number, |out| int_or_string(value, field, out))?,
        T::Time | T::MicroTime => out.nested(number, |out| time(ty, value, field, out))?,
        T::Duration => {
            let nanos = scalars::parse_duration(text()?).ok_or_else(|| wrong(field, value))?;
            out.nested(number, |out| {
                out.field_varint(1, nanos as u64);
                Ok(())
            })?;
        }
        T::RawExtension | T::FieldsV1 | T::Json => out.nested(number, |out| {
            if !value.is_null() {
                out.field_bytes(1, &json::to_vec(value));
            }
            Ok(())
        })?,
        T::SchemaOrArray(id) => out.nested(number, |out| match value {
            Value::List(items) => items.iter().rev().try_for_each(|item| {
                let map = item.as_map().ok_or_else(|| wrong(field, item))?;
                out.nested(2, |out| message(map, *id, out))
            }),
            _ => schema_part(1, value, *id, field, out),
        })?,
        T::SchemaOrBool(id) => out.nested(number, |out| match value {
            Value::Bool(flag) => {
                out.field_varint(1, (*flag).into());
                Ok(())
            }
            _ => {
                schema_part(2, value, *id, field, out)?;
                out.field_varint(1, 1);
                Ok(())
            }
        })?,
        T::SchemaOrStrings(id) => out.nested(number, |out| match value {
            Value::List(items) => list(2, &T::String, items, field, out),
            _ => schema_part(1, value, *id, field, out),
        })?,
        T::Ref(id) => {
            let empty = Map::new();
            let map = match value {
                Value::Null => &empty,
                _ => value.as_map().ok_or_else(|| wrong(field, value))?,
            };
            out.nested(number, |out| message(map, *id, out))?;
        }
        // A list within a list or map is a message with one repeated field.
        T::List(item) => {
            let items = match value {
                Value::Null => &[],
                _ => value.as_list().ok_or_else(|| wrong(field, value))?,
            };
            out.nested(number, |out| list(1, item, items, field, out))?;
        }
        T::Map(_) => return Err(wrong(field, value)),
    }
    Ok(())
}

fn float(value: &Value) -> Option<f64> {
    match value {
        Value::Int(whole) => Some(*whole as f64),
        Value::Float(number) => Some(*number),
        _ => None,
    }
}

fn quantity_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.to_string()),
        Value::Int(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Null => Some("0".into()),
        _ => None,
    }
}

fn int_or_string(value: &Value, field: &Field, out: &mut Reverse) -> Done {
    let (kind, number, text) = match value {
        Value::Int(number) => (0, *number, ""),
        Value::String(text) => (1, 0, text.as_str()),
        _ => return Err(wrong(field, value)),
    };
    out.field_bytes(3, text.as_bytes());
    out.field_varint(2, number as u64);
    out.field_varint(1, kind);
    Ok(())
}

/// A zero time is an empty message.
fn time(ty: &FieldType, value: &Value, field: &Field, out: &mut Reverse) -> Done {
    let text = match value {
        Value::Null => return Ok(()),
        _ => value.as_str().ok_or_else(|| wrong(field, value))?,
    };
    let time = Timestamp::parse(text).ok_or_else(|| wrong(field, value))?;
    let nanos = match ty {
        FieldType::MicroTime => time.as_nanos().rem_euclid(1_000_000_000) / 1000 * 1000,
        _ => 0,
    };
    out.field_varint(2, nanos as u64);
    out.field_varint(1, time.as_secs() as u64);
    Ok(())
}

fn schema_part(number: u32, value: &Value, id: TypeId, field: &Field, out: &mut Reverse) -> Done {
    if value.is_null() {
        return Ok(());
    }
    let map = value.as_map().ok_or_else(|| wrong(field, value))?;
    out.nested(number, |out| message(map, id, out))
}
