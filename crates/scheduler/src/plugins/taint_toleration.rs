//! Taints keep pods away, or make a node less welcome, unless tolerated.

use crate::{
    cluster::Cluster,
    cycle::{Rejection, normalize},
    node::Node,
    plugins::{Evaluate, Plugin},
    pod::Pod,
    queue::Event,
};

pub const PLUGIN: Plugin = Plugin { name: "TaintToleration", evaluate, weight: 3, helps };

struct Taints<'a>(&'a Pod);

fn evaluate<'a>(pod: &'a Pod, _: &'a Cluster) -> Option<Box<dyn Evaluate + 'a>> {
    Some(Box::new(Taints(pod)))
}

fn keeps_away(pod: &Pod, node: &Node) -> bool {
    let hard = |effect: &str| matches!(effect, "NoSchedule" | "NoExecute");
    node.taints.iter().any(|taint| hard(&taint.effect) && !pod.tolerates(taint))
}

impl Evaluate for Taints<'_> {
    fn filter(&self, node: &Node) -> Result<(), Rejection> {
        if keeps_away(self.0, node) {
            return Err(Rejection::final_("node(s) had untolerated taint(s)"));
        }
        Ok(())
    }

    /// How many PreferNoSchedule taints are not tolerated.
    fn score(&self, node: &Node) -> i64 {
        let soft = node.taints.iter().filter(|taint| taint.effect == "PreferNoSchedule");
        soft.filter(|taint| !self.0.tolerates(taint)).count() as i64
    }

    fn normalize(&self, _: &[&Node], scores: &mut [i64]) {
        normalize(scores, true);
    }
}

fn helps(pod: &Pod, event: &Event<'_>) -> bool {
    match event {
        Event::NodeChanged(node) => !keeps_away(pod, node),
        Event::PodChanged(changed) => changed.key == pod.key,
        Event::PodGone(_) => false,
    }
}
