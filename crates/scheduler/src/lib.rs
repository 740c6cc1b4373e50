//! Gives every pod a node.
//!
//! Flow: informers of pods and nodes feed the [`cluster::Cluster`] (projections, no objects) and
//! the [`queue::Queue`] ▸ [`cycle::schedule`] decides for one pod, purely, over the cluster as it
//! stands and the [`plugins::PLUGINS`] table ▸ the runner assumes the pod onto the node and binds
//! it through the API, many bindings in flight ▸ a pod that fits nowhere waits for an event that
//! one of the plugins which turned it down says may help.
//!
//! Invariants: a cycle does no I/O and reads no clock. A pod counts against its node from the
//! moment it is assumed until it is seen gone, or its binding failed. Nothing is polled.

pub mod cluster;
pub mod cycle;
pub mod node;
pub mod plugins;
pub mod pod;
pub mod queue;
pub mod resources;
mod run;
pub mod selector;

pub use run::{Config, run};
