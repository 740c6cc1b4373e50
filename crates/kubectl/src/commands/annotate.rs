//! `kubectl annotate` is `label` on another field.

pub use super::label::Annotate;
