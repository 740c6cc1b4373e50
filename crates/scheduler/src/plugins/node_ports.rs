//! Two pods of one node cannot have the same port of it.

use crate::{
    cluster::Cluster,
    cycle::Rejection,
    node::Node,
    plugins::{Evaluate, Plugin},
    pod::Pod,
    queue::Event,
};

pub const PLUGIN: Plugin = Plugin { name: "NodePorts", evaluate, weight: 0, helps };

struct NodePorts<'a>(&'a Pod);

fn evaluate<'a>(pod: &'a Pod, _: &'a Cluster) -> Option<Box<dyn Evaluate + 'a>> {
    if pod.host_ports.is_empty() {
        return None;
    }
    Some(Box::new(NodePorts(pod)))
}

fn clashes(pod: &Pod, node: &Node) -> bool {
    pod.host_ports.iter().any(|port| node.host_ports.iter().any(|taken| taken.clashes(port)))
}

impl Evaluate for NodePorts<'_> {
    fn filter(&self, node: &Node) -> Result<(), Rejection> {
        if clashes(self.0, node) {
            const REASON: &str = "node(s) didn't have free ports for the requested pod ports";
            return Err(Rejection::resolvable(REASON));
        }
        Ok(())
    }
}

fn helps(pod: &Pod, event: &Event<'_>) -> bool {
    match event {
        Event::NodeChanged(node) => !clashes(pod, node),
        Event::PodGone(gone) => {
            gone.host_ports.iter().any(|freed| pod.host_ports.iter().any(|p| p.clashes(freed)))
        }
        Event::PodChanged(_) => false,
    }
}
