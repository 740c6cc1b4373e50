//! Field errors in the words of Kubernetes.

use api::Cause;
use machinery::Value;

/// A path such as `spec.containers[0].name`, built from the outside in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    pub fn new(field: &str) -> Self {
        Self(field.to_owned())
    }

    #[must_use]
    pub fn child(&self, field: &str) -> Self {
        if self.0.is_empty() { Self::new(field) } else { Self(format!("{}.{field}", self.0)) }
    }

    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Path {
    fn from(field: &str) -> Self {
        Self::new(field)
    }
}

/// Collects field errors in the order in which they are found.
#[derive(Debug, Default)]
pub struct Errors(Vec<Cause>);

impl Errors {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Drops what was found after a point.
    pub fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }

    pub fn into_causes(self) -> Vec<Cause> {
        self.0
    }

    pub fn extend(&mut self, other: impl IntoIterator<Item = Cause>) {
        self.0.extend(other);
    }

    pub fn push(&mut self, path: &Path, reason: &str, message: String) {
        self.0.push(Cause { reason: reason.into(), message, field: path.0.clone() });
    }

    fn add(&mut self, path: &Path, reason: &str, head: &str, detail: &str) {
        let message = if detail.is_empty() { head.to_owned() } else { format!("{head}: {detail}") };
        self.push(path, reason, message);
    }

    pub fn required(&mut self, path: &Path, detail: &str) {
        self.add(path, "FieldValueRequired", "Required value", detail);
    }

    pub fn forbidden(&mut self, path: &Path, detail: &str) {
        self.add(path, "FieldValueForbidden", "Forbidden", detail);
    }

    pub fn invalid(&mut self, path: &Path, value: impl Into<Value>, detail: &str) {
        let head = format!("Invalid value: {}", show(&value.into()));
        self.add(path, "FieldValueInvalid", &head, detail);
    }

    pub fn duplicate(&mut self, path: &Path, value: impl Into<Value>) {
        let head = format!("Duplicate value: {}", show(&value.into()));
        self.add(path, "FieldValueDuplicate", &head, "");
    }

    pub fn not_found(&mut self, path: &Path, value: impl Into<Value>) {
        let head = format!("Not found: {}", show(&value.into()));
        self.add(path, "FieldValueNotFound", &head, "");
    }

    /// `valid` in the order in which the message lists them.
    pub fn not_supported(&mut self, path: &Path, value: impl Into<Value>, valid: &[&str]) {
        let head = format!("Unsupported value: {}", show(&value.into()));
        let quoted: Vec<String> = valid.iter().map(|v| format!("{v:?}")).collect();
        let detail = format!("supported values: {}", quoted.join(", "));
        self.add(path, "FieldValueNotSupported", &head, &detail);
    }

    /// At most `max_bytes` are allowed.
    pub fn too_long(&mut self, path: &Path, max_bytes: usize) {
        let detail = format!("may not be more than {max_bytes} bytes");
        self.add(path, "FieldValueTooLong", "Too long", &detail);
    }

    pub fn too_many(&mut self, path: &Path, count: usize, max: usize) {
        let noun = if max == 1 { "item" } else { "items" };
        let detail = format!("must have at most {max} {noun}");
        self.add(path, "FieldValueTooMany", &format!("Too many: {count}"), &detail);
    }

    /// A value that is shown as it is given, where upstream prints its internal form.
    pub fn shown(&mut self, path: &Path, reason: &str, head: &str, shown: &str, detail: &str) {
        self.add(path, reason, &format!("{head}: {shown}"), detail);
    }

    /// The value is part of a closed list of texts.
    pub fn one_of(&mut self, path: &Path, value: &str, valid: &[&str]) {
        if !valid.contains(&value) {
            self.not_supported(path, value, valid);
        }
    }

    /// `0 <= value`, in the words used for counts.
    pub fn non_negative(&mut self, path: &Path, value: Option<i64>) {
        if let Some(value) = value.filter(|&v| v < 0) {
            self.invalid(path, value, "must be greater than or equal to 0");
        }
    }

    /// The field must not change on update.
    pub fn immutable(&mut self, path: &Path, new: Option<&Value>, old: Option<&Value>) {
        if !crate::compare::semantically_equal(new, old) {
            let value = new.cloned().unwrap_or_default();
            self.invalid(path, value, "field is immutable");
        }
    }
}

/// A value as `field.Error` prints it: texts quoted as Go does, the rest as JSON.
fn show(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        other => serde_json::to_string(other).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speaks_as_kubernetes_does() {
        let mut errors = Errors::default();
        let path = Path::new("spec").child("ports").index(0);
        errors.invalid(&path.child("port"), 0, "must be between 1 and 65535, inclusive");
        errors.not_supported(&path.child("protocol"), "X", &["SCTP", "TCP", "UDP"]);
        errors.required(&Path::new("metadata").child("name"), "name or generateName is required");
        let texts: Vec<String> =
            errors.into_causes().iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        assert_eq!(
            texts,
            [
                "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.ports[0].protocol: Unsupported value: \"X\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
                "metadata.name: Required value: name or generateName is required",
            ]
        );
    }
}
