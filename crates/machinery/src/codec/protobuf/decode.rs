//! Protobuf messages to trees. Unknown fields are skipped; hostile bytes are errors.

use api::{Field, FieldType, TypeId};
use smol_str::SmolStr;
use stdx::Timestamp;

use super::wire::{Wire, fields};
use crate::{
    Map, Value,
    codec::Error,
    json, scalars,
    shape::{Part, is_scalar, shape, static_name, zero},
};

/// Messages within messages; beyond it the bytes are hostile.
const MAX_DEPTH: usize = 200;

pub fn message(bytes: &[u8], ty: TypeId) -> Result<Map, Error> {
    Decoder { depth: 0 }.message(bytes, ty)
}

struct Decoder {
    depth: usize,
}

impl Decoder {
    fn message(&mut self, bytes: &[u8], ty: TypeId) -> Result<Map, Error> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Error::Malformed("messages nested too deeply"));
        }
        let shape = shape(ty);
        let all: &'static [Field] = &shape.ty.fields;
        let mut slots: Vec<Option<Value>> = vec![None; all.len()];
        self.parts(bytes, &shape.message, all, &mut slots)?;
        for (at, unset) in &shape.always {
            let slot = &mut slots[usize::from(*at)];
            if slot.is_none() {
                *slot = Some(unset.clone());
            }
        }
        self.depth -= 1;
        let entries = all.iter().zip(slots);
        Ok(Map::from_sorted(
            entries.filter_map(|(f, slot)| Some((static_name(f.name), slot?))).collect(),
        ))
    }

    fn parts(
        &mut self,
        bytes: &[u8],
        list: &'static [Part],
        all: &'static [Field],
        slots: &mut [Option<Value>],
    ) -> Result<(), Error> {
        for wire in fields(bytes) {
            let (number, wire) = wire?;
            let Ok(at) = list.binary_search_by_key(&number, Part::number) else { continue };
            match &list[at] {
                Part::Inline { parts, .. } => self.parts(wire.bytes()?, parts, all, slots)?,
                Part::Field { field, .. } => {
                    let at = usize::from(*field);
                    self.field(wire, &all[at], &mut slots[at])?;
                }
            }
        }
        Ok(())
    }

    fn field(&mut self, wire: Wire, field: &Field, slot: &mut Option<Value>) -> Result<(), Error> {
        match &field.ty {
            FieldType::List(item) if field.proto_items => {
                *slot = Some(self.items(wire.bytes()?, item)?);
            }
            FieldType::List(item) => {
                let list = slot.get_or_insert_with(|| Value::from(Vec::<Value>::new()));
                if let Some(list) = list.as_list_mut() {
                    self.push(wire, item, list)?;
                }
            }
            FieldType::Map(item) => {
                let (key, value) = self.entry(wire.bytes()?, item)?;
                let map = slot.get_or_insert_with(|| Map::new().into());
                if let Some(map) = map.as_map_mut() {
                    map.insert(key, value);
                }
            }
            ty => {
                let value = self.value(wire, ty)?;
                *slot = written(field, &value).then_some(value);
            }
        }
        Ok(())
    }

    /// Numbers of a list may also come packed into one field.
    fn push(&mut self, wire: Wire, item: &FieldType, list: &mut Vec<Value>) -> Result<(), Error> {
        use FieldType as T;
        match (item, wire) {
            (T::Bool | T::Int32 | T::Int64 | T::UInt32 | T::UInt64, Wire::Bytes(mut packed)) => {
                while !packed.is_empty() {
                    let number = Wire::Varint(super::wire::varint(&mut packed)?);
                    list.push(self.value(number, item)?);
                }
            }
            _ => list.push(self.value(wire, item)?),
        }
        Ok(())
    }

    fn items(&mut self, bytes: &[u8], item: &FieldType) -> Result<Value, Error> {
        let mut list = Vec::new();
        for field in fields(bytes) {
            if let (1, wire) = field? {
                self.push(wire, item, &mut list)?;
            }
        }
        Ok(Value::from(list))
    }

    fn entry(&mut self, bytes: &[u8], item: &FieldType) -> Result<(SmolStr, Value), Error> {
        let (mut key, mut value) = (SmolStr::default(), None);
        for field in fields(bytes) {
            match field? {
                (1, wire) => key = wire.str()?.into(),
                (2, wire) => value = Some(self.value(wire, item)?),
                _ => {}
            }
        }
        Ok((key, value.unwrap_or_else(|| zero(item))))
    }

    fn value(&mut self, wire: Wire, ty: &FieldType) -> Result<Value, Error> {
        use FieldType as T;
        Ok(match ty {
            T::Bool => Value::Bool(wire.varint()? != 0),
            T::Int32 => Value::Int(i64::from(wire.varint()? as i32)),
            T::Int64 => Value::Int(wire.varint()? as i64),
            T::UInt32 => Value::Int(i64::from(wire.varint()? as u32)),
            T::UInt64 => {
                let number = wire.varint()?;
                i64::try_from(number).map_or(Value::Float(number as f64), Value::Int)
            }
            T::Float64 => float(wire.double()?),
            T::String => wire.str()?.into(),
            T::Bytes => scalars::base64_encode(wire.bytes()?).into(),
            T::Quantity => quantity(wire.bytes()?)?,
            T::IntOrString => int_or_string(wire.bytes()?)?,
            T::Time | T::MicroTime => time(wire.bytes()?, ty)?,
            T::Duration => duration(wire.bytes()?)?,
            T::RawExtension | T::FieldsV1 | T::Json => self.raw(wire.bytes()?)?,
            T::SchemaOrArray(id) => self.schema_or_array(wire.bytes()?, *id)?,
            T::SchemaOrBool(id) => self.schema_or_bool(wire.bytes()?, *id)?,
            T::SchemaOrStrings(id) => self.schema_or_strings(wire.bytes()?, *id)?,
            T::Ref(id) => self.message(wire.bytes()?, *id)?.into(),
            T::List(item) => self.items(wire.bytes()?, item)?,
            T::Map(_) => return Err(Error::Malformed("a map within a list or map")),
        })
    }

    /// JSON, or an object in its own envelope.
    fn raw(&mut self, bytes: &[u8]) -> Result<Value, Error> {
        let mut raw: &[u8] = &[];
        for field in fields(bytes) {
            if let (1, wire) = field? {
                raw = wire.bytes()?;
            }
        }
        if raw.is_empty() {
            return Ok(Value::Null);
        }
        if !super::is_enveloped(raw) {
            return Ok(json::parse(raw)?);
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Error::Malformed("messages nested too deeply"));
        }
        let envelope = super::open(raw)?;
        let object = crate::codec::from_envelope_with(&envelope, |raw, ty| self.message(raw, ty))?;
        self.depth -= 1;
        Ok(object.into_value())
    }

    fn schema_or_array(&mut self, bytes: &[u8], id: TypeId) -> Result<Value, Error> {
        let mut list: Vec<Value> = Vec::new();
        for field in fields(bytes) {
            match field? {
                (1, wire) => return Ok(self.message(wire.bytes()?, id)?.into()),
                (2, wire) => list.push(self.message(wire.bytes()?, id)?.into()),
                _ => {}
            }
        }
        Ok(if list.is_empty() { Value::Null } else { list.into() })
    }

    fn schema_or_bool(&mut self, bytes: &[u8], id: TypeId) -> Result<Value, Error> {
        let mut allows = false;
        for field in fields(bytes) {
            match field? {
                (1, wire) => allows = wire.varint()? != 0,
                (2, wire) => return Ok(self.message(wire.bytes()?, id)?.into()),
                _ => {}
            }
        }
        Ok(Value::Bool(allows))
    }

    fn schema_or_strings(&mut self, bytes: &[u8], id: TypeId) -> Result<Value, Error> {
        let mut list: Vec<Value> = Vec::new();
        for field in fields(bytes) {
            match field? {
                (1, wire) => return Ok(self.message(wire.bytes()?, id)?.into()),
                (2, wire) => list.push(wire.str()?.into()),
                _ => {}
            }
        }
        Ok(if list.is_empty() { Value::Null } else { list.into() })
    }
}

/// Whether Go writes a value that was set on the wire: zeros of `omitempty` fields are left out.
fn written(field: &Field, value: &Value) -> bool {
    // What is written for null is known without the wire.
    if value.is_null() {
        return false;
    }
    if field.pointer {
        return true;
    }
    let empty = match value {
        Value::Bool(flag) => !flag,
        Value::Int(number) => *number == 0,
        Value::Float(number) => *number == 0.0,
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    let droppable = is_scalar(&field.ty) || field.ty == FieldType::Bytes;
    !(empty && droppable && field.omit_empty)
}

/// Whole floats are written by Go without a point and so read back as integers.
fn float(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() < 1e15 {
        Value::Int(number as i64)
    } else {
        Value::Float(number)
    }
}

fn quantity(bytes: &[u8]) -> Result<Value, Error> {
    let mut text = "0";
    for field in fields(bytes) {
        if let (1, wire) = field? {
            text = wire.str()?;
        }
    }
    Ok(text.into())
}

fn int_or_string(bytes: &[u8]) -> Result<Value, Error> {
    let (mut kind, mut number, mut text) = (0, 0i32, "");
    for field in fields(bytes) {
        match field? {
            (1, wire) => kind = wire.varint()?,
            (2, wire) => number = wire.varint()? as i32,
            (3, wire) => text = wire.str()?,
            _ => {}
        }
    }
    Ok(if kind == 0 { number.into() } else { text.into() })
}

fn time(bytes: &[u8], ty: &FieldType) -> Result<Value, Error> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0i64, 0i32);
    for field in fields(bytes) {
        match field? {
            (1, wire) => seconds = wire.varint()? as i64,
            (2, wire) => nanos = wire.varint()? as i32,
            _ => {}
        }
    }
    let time = Timestamp::from_nanos(i128::from(seconds) * 1_000_000_000 + i128::from(nanos));
    Ok(match ty {
        FieldType::MicroTime => time.rfc3339_micro().into(),
        _ => time.rfc3339().into(),
    })
}

fn duration(bytes: &[u8]) -> Result<Value, Error> {
    let mut nanos = 0;
    for field in fields(bytes) {
        if let (1, wire) = field? {
            nanos = wire.varint()? as i64;
        }
    }
    Ok(scalars::format_duration(nanos).into())
}
