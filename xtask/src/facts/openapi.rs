//! What the published OpenAPI description adds to the Go declarations.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use serde_json::Value;

/// Definitions of version 2, and of version 3 for their defaults, by type name.
pub struct OpenApi {
    definitions: BTreeMap<String, Value>,
    defaults: BTreeMap<(String, String), Value>,
}

impl OpenApi {
    pub fn read(kubernetes: &Path) -> Result<Self> {
        let dir = kubernetes.join("api/openapi-spec");
        let swagger: Value = read_json(&dir.join("swagger.json"))?;
        let definitions = swagger["definitions"].as_object().context("no definitions")?;
        let mut api = Self {
            definitions: definitions.clone().into_iter().collect(),
            defaults: BTreeMap::new(),
        };
        for entry in fs::read_dir(dir.join("v3"))? {
            api.read_defaults(&read_json(&entry?.path())?);
        }
        Ok(api)
    }

    fn read_defaults(&mut self, document: &Value) {
        for (name, schema) in document["components"]["schemas"].as_object().into_iter().flatten() {
            for (property, description) in schema["properties"].as_object().into_iter().flatten() {
                if let Some(default) = description.get("default").filter(|d| !is_zero(d)) {
                    self.defaults.insert((name.clone(), property.clone()), default.clone());
                }
            }
        }
    }

    pub fn type_names(&self) -> impl Iterator<Item = &String> {
        self.definitions.keys()
    }

    pub fn is_atomic(&self, ty: &str) -> bool {
        self.definitions.get(ty).is_some_and(|d| d["x-kubernetes-map-type"] == "atomic")
    }

    /// The flags of a field in the fact file's form.
    pub fn flags(&self, ty: &str, field: &str) -> Vec<String> {
        let Some(definition) = self.definitions.get(ty) else { return Vec::new() };
        let property = &definition["properties"][field];
        let text = |key: &str| property[key].as_str();
        let mut flags = Vec::new();
        if list(&definition["required"]).any(|r| r == field) {
            flags.push("required".to_owned());
        }
        if let Some(kind) = text("x-kubernetes-list-type") {
            let keys: Vec<&str> = list(&property["x-kubernetes-list-map-keys"]).collect();
            let keys = if keys.is_empty() { String::new() } else { format!(":{}", keys.join(",")) };
            flags.push(format!("list={kind}{keys}"));
        }
        if let Some(kind) = text("x-kubernetes-map-type") {
            flags.push(format!("map={kind}"));
        }
        if let Some(strategy) = text("x-kubernetes-patch-strategy") {
            flags.push(format!("patch={strategy}"));
        }
        if let Some(key) = text("x-kubernetes-patch-merge-key") {
            flags.push(format!("key={key}"));
        }
        flags
    }

    pub fn default(&self, ty: &str, field: &str) -> Option<&Value> {
        self.defaults.get(&(ty.to_owned(), field.to_owned()))
    }
}

/// Zero values are what a decoder makes of an absent field anyway.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

fn list(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str)
}

pub fn read_json(path: &Path) -> Result<Value> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&bytes).with_context(|| path.display().to_string())
}
