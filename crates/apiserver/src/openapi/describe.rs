//! Puts descriptions into JSON schemas.

use api::{descriptions::Descriptions, schema::TypeDef};
use serde_json::{Value as Json, json};

use super::schemas::Style;

/// Describes a type and its fields.
pub fn describe(document: &mut Json, ty: &TypeDef, texts: &Descriptions, style: Style) {
    set(document, texts.of_type(ty.name));
    for field in &ty.fields {
        let Some(property) = document["properties"].get_mut(field.name) else { continue };
        let text = texts.of_field(ty.name, field.name);
        // In version 3 nothing may stand beside a reference.
        if style == Style::V3 && !text.is_empty() && property.get("$ref").is_some() {
            *property = json!({"allOf": [property.take()]});
        }
        set(property, text);
    }
}

fn set(document: &mut Json, text: &str) {
    if !text.is_empty() {
        document["description"] = text.into();
    }
}
