//! JSON in and out of [`Value`].

use crate::Value;

/// The deepest nesting that a body may have.
pub const MAX_DEPTH: usize = 10_000;

/// Parses one JSON document. Errors carry line and column.
pub fn parse(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_slice(bytes)
}

pub fn to_vec(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}
