//! What the Kubernetes API *is*, as data and small pure types: names of kinds and resources,
//! schema facts, quantities, selectors, and the error type that clients see.
//!
//! Invariants: no I/O, no async, nothing that changes at run time.

pub mod gvk;
pub mod schema;
pub mod status;

pub use gvk::{GroupVersion, GroupVersionKind, GroupVersionResource};
pub use schema::{Field, FieldType, Kind, Resource, Schema, Subresource, TypeDef, TypeId, schema};
pub use status::{Cause, Reason, Status};
