//! The controllers of Kubernetes: each compares what should be with what is, and plans the writes
//! that close the gap.
//!
//! Flow: [`run`] starts one informer per resource that any controller watches ▸ a change is mapped
//! to keys of the controllers that care ([`plan::Watch`]) ▸ a worker takes a key and calls the
//! controller's pure `reconcile(key, world, now) -> Plan` ▸ [`apply`] carries the plan out under
//! the controller's own identity ▸ the worker holds the key until the informers have seen what was
//! written.
//!
//! Invariants:
//! * A `reconcile` does no I/O, reads no clock and keeps no state: everything is in its [`World`].
//! * Every intent carries the uid or resourceVersion that it was decided on, or is a create under
//!   a name that the plan chose. On conflict the rest of the plan is dropped and the key retried.
//! * A key is not reconciled again before its controller's view includes its last writes, so a
//!   late watch never makes a second pod where one was wanted.
//! * Adding a controller is one file under `all/` and one line in `all.rs`.

mod all;
pub mod apply;
pub mod certificates;
pub mod conditions;
pub mod config;
pub mod discovery;
pub mod metrics;
pub mod node_affinity;
pub mod plan;
pub mod pod_template;
pub mod resources;
pub mod revisions;
pub mod runner;
pub mod selector;
pub mod service_pods;
pub mod taints;
pub mod views;

#[cfg(test)]
mod scenario;

pub use all::ALL;
pub use config::{Config, NodeStreams};
pub use plan::{Controller, Intent, Plan, World};
pub use runner::{READER, run};

/// Why a key could not be reconciled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused a write or could not be asked.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// An owner reference names a kind that the server does not have, or not yet.
    #[error("the server has no kind {kind} in {api_version}")]
    UnknownKind { api_version: String, kind: String },
    /// The `reconcile` function panicked; the key is tried again.
    #[error("reconcile panicked: {0}")]
    Panic(String),
}
