//! Cordoned nodes take no pods, but for those that tolerate it.

use crate::{
    cluster::Cluster,
    cycle::Rejection,
    node::Node,
    plugins::{Evaluate, Plugin},
    pod::{Pod, Taint},
    queue::Event,
};

pub const PLUGIN: Plugin = Plugin { name: "NodeUnschedulable", evaluate, weight: 0, helps };

/// Carries whether the pod tolerates the taint that stands for the flag.
struct Unschedulable(bool);

fn evaluate<'a>(pod: &'a Pod, _: &'a Cluster) -> Option<Box<dyn Evaluate + 'a>> {
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        value: "".into(),
        effect: "NoSchedule".into(),
    };
    Some(Box::new(Unschedulable(pod.tolerates(&taint))))
}

impl Evaluate for Unschedulable {
    fn filter(&self, node: &Node) -> Result<(), Rejection> {
        if node.unschedulable && !self.0 {
            return Err(Rejection::final_("node(s) were unschedulable"));
        }
        Ok(())
    }
}

fn helps(_: &Pod, event: &Event<'_>) -> bool {
    matches!(event, Event::NodeChanged(node) if !node.unschedulable)
}
