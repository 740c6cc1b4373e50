//! Field errors as Kubernetes words them, and the rules that all kinds share.

pub mod meta;
pub mod path;
pub mod values;

use api::Cause;

pub use meta::{MetaRules, validate_object_meta, validate_object_meta_update};
pub use path::FieldPath;

use crate::Value;

/// The errors found in one object, in the order in which they were found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Errors(Vec<Cause>);

/// A value as an error text shows it.
pub trait BadValue {
    fn text(&self) -> String;
}

impl BadValue for str {
    fn text(&self) -> String {
        format!("{self:?}")
    }
}
impl BadValue for String {
    fn text(&self) -> String {
        self.as_str().text()
    }
}
impl BadValue for smol_str::SmolStr {
    fn text(&self) -> String {
        self.as_str().text()
    }
}
impl BadValue for Value {
    /// Lists and maps as JSON.
    fn text(&self) -> String {
        match self {
            Value::String(text) => text.as_str().text(),
            other => format!("{other:?}"),
        }
    }
}
impl BadValue for crate::Map {
    fn text(&self) -> String {
        format!("{self:?}")
    }
}
impl BadValue for [Value] {
    fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}
macro_rules! plain_values {
    ($($ty:ty)*) => { $(impl BadValue for $ty {
        fn text(&self) -> String { self.to_string() }
    })* };
}
plain_values!(bool i32 i64 u16 u32 u64 usize f64);
impl<T: BadValue + ?Sized> BadValue for &T {
    fn text(&self) -> String {
        (**self).text()
    }
}
impl<T: BadValue> BadValue for Option<T> {
    fn text(&self) -> String {
        self.as_ref().map_or_else(|| "null".into(), BadValue::text)
    }
}

/// A value whose text is made already.
pub struct Shown(pub String);

impl BadValue for Shown {
    fn text(&self) -> String {
        self.0.clone()
    }
}

/// A struct as JSON with its fields in the order of their declaration, which is how error texts
/// show it. `ty` is the OpenAPI name.
pub fn declared_json(value: &Value, ty: &str) -> String {
    match api::schema().type_named(ty) {
        Some(id) => declared(value, &api::FieldType::Ref(id)),
        None => format!("{value:?}"),
    }
}

fn declared(value: &Value, ty: &api::FieldType) -> String {
    use api::FieldType;
    match (value, ty) {
        (Value::Map(map), FieldType::Ref(id)) => {
            let fields = api::schema().type_of(*id).declared_fields();
            let set = fields.filter_map(|f| Some((f, map.get(f.name)?)));
            let parts: Vec<String> =
                set.map(|(f, v)| format!("{:?}:{}", f.name, declared(v, &f.ty))).collect();
            format!("{{{}}}", parts.join(","))
        }
        (Value::List(items), FieldType::List(item)) => {
            let parts: Vec<String> = items.iter().map(|v| declared(v, item)).collect();
            format!("[{}]", parts.join(","))
        }
        (Value::Map(map), FieldType::Map(item)) => {
            let parts: Vec<String> = map
                .iter()
                .map(|(k, v)| format!("{:?}:{}", k.as_str(), declared(v, item)))
                .collect();
            format!("{{{}}}", parts.join(","))
        }
        _ => format!("{value:?}"),
    }
}

impl Errors {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The causes, each text once.
    pub fn into_causes(self) -> Vec<Cause> {
        let mut causes: Vec<Cause> = Vec::with_capacity(self.0.len());
        for cause in self.0 {
            if !causes.contains(&cause) {
                causes.push(cause);
            }
        }
        causes
    }

    pub fn causes(&self) -> &[Cause] {
        &self.0
    }

    pub fn extend(&mut self, other: Errors) {
        self.0.extend(other.0);
    }

    fn push(&mut self, path: &FieldPath, reason: &str, head: String, detail: &str) {
        let message = if detail.is_empty() { head } else { format!("{head}: {detail}") };
        self.0.push(Cause { reason: reason.into(), message, field: path.to_string() });
    }

    pub fn required(&mut self, path: &FieldPath, detail: &str) {
        self.push(path, "FieldValueRequired", "Required value".into(), detail);
    }

    pub fn invalid(&mut self, path: &FieldPath, value: impl BadValue, detail: &str) {
        let head = format!("Invalid value: {}", value.text());
        self.push(path, "FieldValueInvalid", head, detail);
    }

    /// One `Invalid` for each fault of a rule in [`api::names`].
    pub fn faults(&mut self, path: &FieldPath, value: &str, faults: Vec<String>) {
        for fault in faults {
            self.invalid(path, value, &fault);
        }
    }

    pub fn type_invalid(&mut self, path: &FieldPath, value: impl BadValue, detail: &str) {
        let head = format!("Invalid value: {}", value.text());
        self.push(path, "FieldValueTypeInvalid", head, detail);
    }

    pub fn not_supported(&mut self, path: &FieldPath, value: impl BadValue, supported: &[&str]) {
        let head = format!("Unsupported value: {}", value.text());
        let quoted: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let detail = match quoted.as_slice() {
            [] => String::new(),
            _ => format!("supported values: {}", quoted.join(", ")),
        };
        self.push(path, "FieldValueNotSupported", head, &detail);
    }

    pub fn duplicate(&mut self, path: &FieldPath, value: impl BadValue) {
        let head = format!("Duplicate value: {}", value.text());
        self.push(path, "FieldValueDuplicate", head, "");
    }

    pub fn not_found(&mut self, path: &FieldPath, value: impl BadValue) {
        self.push(path, "FieldValueNotFound", format!("Not found: {}", value.text()), "");
    }

    pub fn forbidden(&mut self, path: &FieldPath, detail: &str) {
        self.push(path, "FieldValueForbidden", "Forbidden".into(), detail);
    }

    pub fn too_long(&mut self, path: &FieldPath, max_bytes: usize) {
        let unit = if max_bytes == 1 { "byte" } else { "bytes" };
        let detail = format!("may not be more than {max_bytes} {unit}");
        self.push(path, "FieldValueTooLong", "Too long".into(), &detail);
    }

    pub fn too_many(&mut self, path: &FieldPath, actual: usize, max: usize) {
        let unit = if max == 1 { "item" } else { "items" };
        let detail = format!("must have at most {max} {unit}");
        self.push(path, "FieldValueTooMany", format!("Too many: {actual}"), &detail);
    }

    pub fn too_short(&mut self, path: &FieldPath, min: usize) {
        let unit = if min == 1 { "character" } else { "characters" };
        let detail = format!("must be at least {min} {unit}");
        self.push(path, "FieldValueTooShort", "Too short".into(), &detail);
    }

    pub fn internal(&mut self, path: &FieldPath, detail: &str) {
        self.push(path, "InternalError", "Internal error".into(), detail);
    }

    /// A field that an update may not change.
    pub fn immutable(&mut self, path: &FieldPath, new: Option<&Value>, old: Option<&Value>) {
        let unset = |v: Option<&Value>| v.is_none_or(Value::is_null);
        if new != old && !(unset(new) && unset(old)) {
            self.invalid(path, new.unwrap_or(&Value::Null), "field is immutable");
        }
    }

    pub fn non_negative(&mut self, path: &FieldPath, value: i64) {
        if value < 0 {
            self.invalid(path, value, "must be greater than or equal to 0");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;

    #[test]
    fn texts_are_kubernetes() {
        let mut errors = Errors::new();
        let spec = FieldPath::root("spec");
        let containers = spec.child("containers");
        errors.required(&containers, "");
        errors.invalid(&containers.index(1).child("name"), "A b", "bad");
        errors.not_supported(&spec.child("type"), "X", &["A", "B"]);
        errors.duplicate(&containers.index(0), &value!({"a": 1}));
        errors.too_long(&FieldPath::root("metadata").child("labels").key("a.b"), 63);
        errors.too_many(&spec, 3, 1);
        errors.immutable(&spec.child("selector"), None, Some(&Value::Int(1)));
        let texts: Vec<String> =
            errors.into_causes().iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        assert_eq!(
            texts,
            [
                "spec.containers: Required value",
                "spec.containers[1].name: Invalid value: \"A b\": bad",
                "spec.type: Unsupported value: \"X\": supported values: \"A\", \"B\"",
                "spec.containers[0]: Duplicate value: {\"a\":1}",
                "metadata.labels[a.b]: Too long: may not be more than 63 bytes",
                "spec: Too many: 3: must have at most 1 item",
                "spec.selector: Invalid value: null: field is immutable",
            ]
        );
    }
}
