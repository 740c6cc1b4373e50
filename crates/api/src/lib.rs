//! What the Kubernetes API *is*, as data and small pure types: names of kinds and resources,
//! schema facts, quantities, selectors, and the error type that clients see.
//!
//! Invariants: no I/O, no async, nothing that changes at run time.

pub mod descriptions;
pub mod gvk;
pub mod names;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod status;

pub use gvk::{GroupVersion, GroupVersionKind, GroupVersionResource};
pub use quantity::Quantity;
pub use schema::{Field, FieldType, Kind, Resource, Schema, Subresource, TypeDef, TypeId, schema};
pub use selector::{FieldSelector, LabelSelector};
pub use status::{Cause, Reason, Status};
