//! API objects as trees, and everything that can be done to them without knowing their kind by
//! name: codecs, defaulting, field validation, patches, server-side apply.
//!
//! [`Object`] is a copy-on-write tree ([`Value`], [`Map`]): a clone is one reference count, and a
//! change copies only the maps on the path to it. It is parsed once per request. Typed Rust
//! structs (the `k8s-openapi` crate) are decoded from it for the one key at hand and dropped.
//!
//! Invariants: no I/O, no clock. A [`Map`] is sorted by key and holds each key once, so equal
//! objects encode to equal bytes.

pub mod apply;
pub mod codec;
pub mod convert;
pub mod defaults;
pub mod fields;
pub mod json;
pub mod object;
pub mod patch;
pub mod scalars;
pub mod selector;
mod shape;
pub mod typed;
pub mod validation;
pub mod value;
pub mod yaml;

pub use object::{Object, OwnerReference};
pub use value::{Map, Value};
