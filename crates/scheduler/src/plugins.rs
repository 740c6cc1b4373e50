//! The table of scheduling plugins. Adding one takes a file in `plugins/` and a line here.

mod image_locality;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources_balanced_allocation;
mod node_resources_fit;
mod node_unschedulable;
mod taint_toleration;

use crate::{cluster::Cluster, cycle::Rejection, node::Node, pod::Pod, queue::Event};

/// The plugins, in the order in which they filter. Weights are upstream's defaults.
pub const PLUGINS: &[Plugin] = &[
    node_unschedulable::PLUGIN,
    node_name::PLUGIN,
    taint_toleration::PLUGIN,
    node_affinity::PLUGIN,
    node_ports::PLUGIN,
    node_resources_fit::PLUGIN,
    node_resources_balanced_allocation::PLUGIN,
    image_locality::PLUGIN,
];

/// One rule about where pods may or should run.
pub struct Plugin {
    /// The name in Kubernetes' scheduler configuration.
    pub name: &'static str,
    /// Looks at the pod (and the cluster) once; `None` when the plugin has nothing to say.
    pub evaluate: for<'a> fn(&'a Pod, &'a Cluster) -> Option<Box<dyn Evaluate + 'a>>,
    /// Counts its scores; zero when it only filters.
    pub weight: i64,
    /// Whether an event may let a pod fit that this plugin turned down.
    pub helps: fn(&Pod, &Event<'_>) -> bool,
}

/// A plugin's view of one pod, asked node by node.
pub trait Evaluate {
    fn filter(&self, _node: &Node) -> Result<(), Rejection> {
        Ok(())
    }

    /// Any number; [`Evaluate::normalize`] brings all nodes' into 0..=100.
    fn score(&self, _node: &Node) -> i64 {
        0
    }

    fn normalize(&self, _nodes: &[&Node], _scores: &mut [i64]) {}
}
