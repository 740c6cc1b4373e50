//! A node takes what fits into its allocatable resources; the emptiest is liked best.

use std::borrow::Cow;

use crate::{
    cluster::Cluster,
    cycle::{MAX_SCORE, Rejection},
    node::Node,
    plugins::{Evaluate, Plugin},
    pod::Pod,
    queue::Event,
    resources::Resources,
};

pub const PLUGIN: Plugin = Plugin { name: "NodeResourcesFit", evaluate, weight: 1, helps };

struct Fit<'a>(&'a Pod);

fn evaluate<'a>(pod: &'a Pod, _: &'a Cluster) -> Option<Box<dyn Evaluate + 'a>> {
    Some(Box::new(Fit(pod)))
}

/// What is short, as Kubernetes words it, and whether an empty node would have enough.
fn shortages(pod: &Pod, node: &Node) -> (Vec<Cow<'static, str>>, bool) {
    let (wants, has, used) = (&pod.requests, &node.allocatable, &node.requested);
    let mut short = Vec::new();
    let mut could_fit = true;
    if node.pods.len() as i64 + 1 > has.pods {
        short.push("Too many pods".into());
        could_fit &= has.pods > 0;
    }
    let mut check = |name: &str, wanted: i64, total: i64, taken: i64| {
        if wanted > 0 && wanted > total - taken {
            short.push(format!("Insufficient {name}").into());
            could_fit &= wanted <= total;
        }
    };
    check("cpu", wants.cpu_milli, has.cpu_milli, used.cpu_milli);
    check("memory", wants.memory_bytes, has.memory_bytes, used.memory_bytes);
    check(
        "ephemeral-storage",
        wants.ephemeral_storage_bytes,
        has.ephemeral_storage_bytes,
        used.ephemeral_storage_bytes,
    );
    for (name, wanted) in &wants.scalar {
        let amount = |from: &Resources| from.scalar.get(name).copied().unwrap_or(0);
        check(name, *wanted, amount(has), amount(used));
    }
    (short, could_fit)
}

impl Evaluate for Fit<'_> {
    fn filter(&self, node: &Node) -> Result<(), Rejection> {
        let (reasons, resolvable) = shortages(self.0, node);
        if reasons.is_empty() { Ok(()) } else { Err(Rejection { reasons, resolvable }) }
    }

    /// LeastAllocated over CPU and memory: the share that stays free, of 100.
    fn score(&self, node: &Node) -> i64 {
        let free = |wanted: i64, used: i64, total: i64| {
            let needed = wanted + used;
            if total <= 0 || needed > total { 0 } else { (total - needed) * MAX_SCORE / total }
        };
        let (wants, used, has) = (&self.0.scored, &node.scored, &node.allocatable);
        let cpu = free(wants.cpu_milli, used.cpu_milli, has.cpu_milli);
        (cpu + free(wants.memory_bytes, used.memory_bytes, has.memory_bytes)) / 2
    }
}

fn helps(pod: &Pod, event: &Event<'_>) -> bool {
    match event {
        Event::NodeChanged(node) => shortages(pod, node).0.is_empty(),
        Event::PodGone(gone) => gone.is_assigned(),
        Event::PodChanged(changed) => changed.key == pod.key || changed.is_assigned(),
    }
}
