//! A pod that names its node goes there.

use crate::{
    cluster::Cluster,
    cycle::Rejection,
    node::Node,
    plugins::{Evaluate, Plugin},
    pod::Pod,
    queue::Event,
};

pub const PLUGIN: Plugin = Plugin { name: "NodeName", evaluate, weight: 0, helps };

struct NodeName<'a>(&'a Pod);

fn evaluate<'a>(pod: &'a Pod, _: &'a Cluster) -> Option<Box<dyn Evaluate + 'a>> {
    if pod.node_name.is_empty() {
        return None;
    }
    Some(Box::new(NodeName(pod)))
}

impl Evaluate for NodeName<'_> {
    fn filter(&self, node: &Node) -> Result<(), Rejection> {
        if node.name != self.0.node_name {
            return Err(Rejection::final_("node(s) didn't match the requested node name"));
        }
        Ok(())
    }
}

fn helps(pod: &Pod, event: &Event<'_>) -> bool {
    matches!(event, Event::NodeChanged(node) if node.name == pod.node_name)
}
