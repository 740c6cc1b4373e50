//! The patches of the API: JSON patch, merge patch, strategic merge patch. What they make is
//! then decoded like any body.

mod json_patch;
mod strategic;

use api::{Cause, GroupVersionKind, Reason, Status, status::Details};

pub use json_patch::apply_json_patch;
pub use strategic::apply_strategic;

use crate::{
    Map, Object, Value, codec,
    fields::{self, FieldValidation},
};

/// The kinds of patch, by media type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
    /// Server-side apply.
    Apply,
}

impl PatchType {
    pub fn of_media_type(media_type: &str) -> Option<Self> {
        Some(match media_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Self::Json,
            "application/merge-patch+json" => Self::Merge,
            "application/strategic-merge-patch+json" => Self::Strategic,
            "application/apply-patch+yaml" => Self::Apply,
            _ => return None,
        })
    }
}

/// Applies a patch of a built-in kind and decodes the result. Not for server-side apply.
/// Gives the object and the warnings to send.
pub fn patch_object(
    current: &Object,
    patch: &[u8],
    patch_type: PatchType,
    gvk: &GroupVersionKind,
    validation: FieldValidation,
) -> Result<(Object, Vec<String>), Status> {
    let kind = api::schema().kind(gvk).ok_or_else(|| fields::body::unregistered(gvk, &gvk.kind))?;
    let (patched, duplicates) = apply(current, patch, patch_type, Some(kind.ty))?;
    if patch_type != PatchType::Strategic {
        return decode_patched(&patched, &duplicates, gvk, validation);
    }
    let shown = parse(patch).map(|(patch, _)| go_text(&patch)).unwrap_or_default();
    decode_shown(&patched, &duplicates, gvk, validation, &shown, |why| {
        match why.rsplit_once(" of type ") {
            // A strategic merge patch is converted without JSON in between.
            Some((_, ty @ ("bool" | "string" | "int32" | "int64"))) => {
                format!("unrecognized type: {ty}")
            }
            _ => why.to_owned(),
        }
    })
}

fn parse(patch: &[u8]) -> Result<(Value, Vec<String>), Status> {
    codec::parse(patch, codec::Format::Json).map_err(|_| Status::bad_request("invalid JSON patch"))
}

/// Applies a patch to a tree. `ty` is the kind's type; a strategic merge patch needs it.
/// Gives the result and the paths of the patch's fields that stand twice.
pub fn apply(
    current: &Object,
    patch: &[u8],
    patch_type: PatchType,
    ty: Option<api::TypeId>,
) -> Result<(Value, Vec<String>), Status> {
    let (patch, duplicates) = parse(patch)?;
    let patched = match (patch_type, ty) {
        (PatchType::Json, _) => apply_json_patch(&current.clone().into_value(), &patch)?,
        (PatchType::Strategic, Some(ty)) => {
            let patch = patch_map(&patch, "")?;
            apply_strategic(current.root(), patch, ty)?.into()
        }
        (PatchType::Merge, _) => {
            patch_map(&patch, "error decoding patch: ")?;
            let mut document = current.clone().into_value();
            merge(&mut document, &patch);
            document
        }
        (PatchType::Strategic | PatchType::Apply, _) => return Err(unsupported_media_type()),
    };
    Ok((patched, duplicates))
}

/// The failure for a patch type that a kind does not take.
pub fn unsupported_media_type() -> Status {
    let accepted =
        "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";
    Status::new(
        415,
        Reason::UnsupportedMediaType,
        format!(
            "the body of the request was in an unknown format - accepted media types include: {accepted}"
        ),
    )
}

fn patch_map<'a>(patch: &'a Value, prefix: &str) -> Result<&'a Map, Status> {
    patch.as_map().ok_or_else(|| {
        let found = patch.type_name();
        Status::bad_request(format!(
            "{prefix}json: cannot unmarshal {found} into Go value of type map[string]interface {{}}"
        ))
    })
}

/// RFC 7386.
pub fn merge(document: &mut Value, patch: &Value) {
    let Value::Map(patch) = patch else {
        *document = patch.clone();
        return;
    };
    if !matches!(document, Value::Map(_)) {
        *document = Map::new().into();
    }
    let Value::Map(map) = document else { return };
    for (key, change) in patch.iter() {
        match change {
            Value::Null => {
                map.remove(key);
            }
            Value::Map(_) => {
                let mut value = map.get(key).cloned().unwrap_or(Value::Null);
                merge(&mut value, change);
                map.insert(key.clone(), value);
            }
            _ => {
                map.insert(key.clone(), change.clone());
            }
        }
    }
}

/// Decodes a patched tree; the failures are of the patch (422).
pub fn decode_patched(
    patched: &Value,
    duplicates: &[String],
    gvk: &GroupVersionKind,
    validation: FieldValidation,
) -> Result<(Object, Vec<String>), Status> {
    decode_shown(patched, duplicates, gvk, validation, &format!("{patched:?}"), str::to_owned)
}

fn decode_shown(
    patched: &Value,
    duplicates: &[String],
    gvk: &GroupVersionKind,
    validation: FieldValidation,
    shown: &str,
    reword: fn(&str) -> String,
) -> Result<(Object, Vec<String>), Status> {
    let invalid = |why: &str| {
        let cause = Cause {
            reason: "FieldValueInvalid".into(),
            message: format!("Invalid value: {shown:?}: {}", reword(why)),
            field: "patch".into(),
        };
        Status::invalid("", "", "", vec![cause])
    };
    let kind = api::schema().kind(gvk).ok_or_else(|| fields::body::unregistered(gvk, &gvk.kind))?;
    let decoded = fields::decode(patched, kind.ty).map_err(|error| invalid(&error.0))?;
    let doubled = duplicates.iter().map(|path| format!("duplicate field {path:?}"));
    let strict: Vec<String> = doubled.chain(decoded.strict).collect();
    let mut object = Object::from_map(decoded.map);
    fields::complete(&mut object);
    match validation {
        FieldValidation::Strict if !strict.is_empty() => {
            Err(invalid(&format!("strict decoding error: {}", strict.join(", "))))
        }
        FieldValidation::Warn => Ok((object, strict)),
        _ => Ok((object, Vec::new())),
    }
}

/// What a patch that does not fit the object answers; upstream keeps its reason to itself.
fn unprocessable() -> Status {
    let text = "the server rejected our request due to an error in our request";
    Status::new(422, Reason::Invalid, text).with_details(Details::default())
}

/// A value as Go's `%v` prints it.
fn go_text(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(text) => text.to_string(),
        Value::List(items) => go_list(items),
        Value::Map(map) => go_map(map),
        other => format!("{other:?}"),
    }
}

fn go_map(map: &Map) -> String {
    let entries: Vec<String> = map.iter().map(|(k, v)| format!("{k}:{}", go_text(v))).collect();
    format!("map[{}]", entries.join(" "))
}

fn go_list(items: &[Value]) -> String {
    format!("[{}]", items.iter().map(go_text).collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests;
