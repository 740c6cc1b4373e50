//! Scalars in the form in which Go writes them back.

use api::{FieldType, Quantity};
use stdx::Timestamp;

use crate::{Value, scalars};

/// Why a value does not fit.
pub enum Fault {
    /// The JSON type is wrong; holds what Go's message calls the value.
    Type(String),
    /// The same, of a type that reads its own JSON by way of the Go type given.
    Inner(String, &'static str),
    /// The whole message.
    Other(String),
}

/// The value as Go writes it after reading it. `value` is not null.
pub fn normal(value: &Value, ty: &FieldType) -> Result<Value, Fault> {
    use FieldType as T;
    match (ty, value) {
        (T::Bool, Value::Bool(_)) | (T::String, Value::String(_)) => Ok(value.clone()),
        (T::Int32, Value::Int(n)) => whole(value, i32::try_from(*n).is_ok()),
        (T::Int64, Value::Int(_)) => Ok(value.clone()),
        (T::UInt32, Value::Int(n)) => whole(value, u32::try_from(*n).is_ok()),
        (T::UInt64, Value::Int(n)) => whole(value, *n >= 0),
        (T::Int32 | T::Int64 | T::UInt32 | T::UInt64, Value::Float(_)) => whole(value, false),
        (T::Float64, Value::Int(_) | Value::Float(_)) => Ok(value.clone()),
        (T::Bytes, Value::String(text)) => bytes(text),
        (T::Quantity, _) => quantity(value),
        (T::IntOrString, _) => int_or_string(value),
        (T::Time, _) => time(value, "2006-01-02T15:04:05Z07:00", Timestamp::rfc3339),
        (T::MicroTime, _) => {
            time(value, "2006-01-02T15:04:05.000000Z07:00", Timestamp::rfc3339_micro)
        }
        (T::Duration, _) => duration(value),
        _ => Err(Fault::Type(value.type_name().into())),
    }
}

fn whole(value: &Value, fits: bool) -> Result<Value, Fault> {
    match value {
        _ if fits => Ok(value.clone()),
        Value::Int(number) => Err(Fault::Type(format!("number {number}"))),
        Value::Float(number) => Err(Fault::Type(format!("number {number}"))),
        other => Err(Fault::Type(other.type_name().into())),
    }
}

fn bytes(text: &str) -> Result<Value, Fault> {
    match scalars::base64_decode(text) {
        Ok(bytes) => Ok(scalars::base64_encode(&bytes).into()),
        Err(at) => Err(Fault::Other(format!("illegal base64 data at input byte {at}"))),
    }
}

fn quantity(value: &Value) -> Result<Value, Fault> {
    let text = match value {
        Value::String(text) => text.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        // Read as text, braces and all.
        other => format!("{other:?}"),
    };
    match Quantity::canonical(text.trim()) {
        Ok(canonical) if matches!(value, Value::String(text) if *text == canonical) => {
            Ok(value.clone())
        }
        Ok(canonical) => Ok(canonical.into()),
        Err(error) => Err(Fault::Other(error.to_string())),
    }
}

fn int_or_string(value: &Value) -> Result<Value, Fault> {
    match value {
        Value::String(_) => Ok(value.clone()),
        Value::Int(number) if i32::try_from(*number).is_ok() => Ok(value.clone()),
        Value::Int(number) => Err(Fault::Inner(format!("number {number}"), "int32")),
        Value::Float(number) => Err(Fault::Inner(format!("number {number}"), "int32")),
        other => Err(Fault::Inner(other.type_name().into(), "int32")),
    }
}

fn duration(value: &Value) -> Result<Value, Fault> {
    let Value::String(text) = value else {
        return Err(Fault::Inner(value.type_name().into(), "string"));
    };
    match scalars::parse_duration(text) {
        Some(nanos) => Ok(scalars::format_duration(nanos).into()),
        None => Err(Fault::Other(format!("time: invalid duration {text:?}"))),
    }
}

fn time(value: &Value, layout: &str, write: fn(Timestamp) -> String) -> Result<Value, Fault> {
    let Value::String(text) = value else {
        return Err(Fault::Inner(value.type_name().into(), "string"));
    };
    if let Err((rest, wanted)) = rfc3339(text) {
        let text =
            format!("parsing time {text:?} as {layout:?}: cannot parse {rest:?} as {wanted:?}");
        return Err(Fault::Other(text));
    }
    match Timestamp::parse(text) {
        Some(time) => {
            let written = write(time);
            Ok(if *text == written { value.clone() } else { written.into() })
        }
        None => Err(Fault::Other(format!("parsing time {text:?}: day out of range"))),
    }
}

/// Checks the shape of a time against Go's layout. On failure the rest of the text that does not
/// fit, and the element of the layout that it should fit.
fn rfc3339(text: &str) -> Result<(), (&str, &'static str)> {
    let mut rest = text;
    let elements = [
        (4, "2006"),
        (0, "-"),
        (2, "01"),
        (0, "-"),
        (2, "02"),
        (0, "T"),
        (2, "15"),
        (0, ":"),
        (2, "04"),
        (0, ":"),
        (2, "05"),
    ];
    for (digits, element) in elements {
        let fits = match digits {
            0 => rest.starts_with(element),
            n => rest.len() >= n && rest.as_bytes()[..n].iter().all(u8::is_ascii_digit),
        };
        if !fits {
            return Err((rest, element));
        }
        rest = &rest[digits.max(if digits == 0 { 1 } else { 0 })..];
    }
    if let Some(fraction) = rest.strip_prefix('.') {
        let digits =
            fraction.len() - fraction.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        if digits == 0 {
            return Err((rest, "Z07:00"));
        }
        rest = &fraction[digits..];
    }
    let bytes = rest.as_bytes();
    let offset = bytes.len() == 6
        && matches!(bytes[0], b'+' | b'-')
        && bytes[3] == b':'
        && [1, 2, 4, 5].into_iter().all(|at| bytes[at].is_ascii_digit());
    if rest == "Z" || offset { Ok(()) } else { Err((rest, "Z07:00")) }
}
