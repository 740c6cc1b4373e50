//! Node selectors and node affinity, required and preferred.

use crate::{
    cluster::Cluster,
    cycle::{Rejection, normalize},
    node::Node,
    plugins::{Evaluate, Plugin},
    pod::Pod,
    queue::Event,
};

pub const PLUGIN: Plugin = Plugin { name: "NodeAffinity", evaluate, weight: 2, helps };

struct NodeAffinity<'a>(&'a Pod);

fn evaluate<'a>(pod: &'a Pod, _: &'a Cluster) -> Option<Box<dyn Evaluate + 'a>> {
    let silent = pod.node_selector.is_empty()
        && pod.required_nodes.is_none()
        && pod.preferred_nodes.is_empty();
    if silent {
        return None;
    }
    Some(Box::new(NodeAffinity(pod)))
}

/// Whether the node satisfies the pod's node selector and required node affinity.
pub fn matches(pod: &Pod, node: &Node) -> bool {
    let selected = pod.node_selector.iter().all(|(key, value)| node.labels.get(key) == Some(value));
    let required = pod
        .required_nodes
        .as_ref()
        .is_none_or(|terms| terms.iter().any(|term| term.matches(&node.name, &node.labels)));
    selected && required
}

impl Evaluate for NodeAffinity<'_> {
    fn filter(&self, node: &Node) -> Result<(), Rejection> {
        if matches(self.0, node) {
            return Ok(());
        }
        Err(Rejection::final_("node(s) didn't match Pod's node affinity/selector"))
    }

    /// The sum of the weights of the preferred terms that match.
    fn score(&self, node: &Node) -> i64 {
        let matching = self
            .0
            .preferred_nodes
            .iter()
            .filter(|(_, term)| term.matches(&node.name, &node.labels));
        matching.map(|(weight, _)| weight).sum()
    }

    fn normalize(&self, _: &[&Node], scores: &mut [i64]) {
        normalize(scores, false);
    }
}

fn helps(pod: &Pod, event: &Event<'_>) -> bool {
    matches!(event, Event::NodeChanged(node) if matches(pod, node))
}
