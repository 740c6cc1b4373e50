//! The core group.

pub(crate) mod config;
pub(crate) mod endpoints;
pub(crate) mod events;
pub mod eviction;
pub mod namespaces;
pub(crate) mod nodes;
pub(crate) mod pod_columns;
pub mod pods;
pub(crate) mod quotas;
pub mod services;
pub(crate) mod volumes;
