//! Likes nodes on which CPU and memory would be used to a like share.

use crate::{
    cluster::Cluster,
    cycle::MAX_SCORE,
    node::Node,
    plugins::{Evaluate, Plugin},
    pod::Pod,
    queue::Event,
};

pub const PLUGIN: Plugin =
    Plugin { name: "NodeResourcesBalancedAllocation", evaluate, weight: 1, helps };

struct Balance<'a>(&'a Pod);

/// A pod without requests moves no balance.
fn evaluate<'a>(pod: &'a Pod, _: &'a Cluster) -> Option<Box<dyn Evaluate + 'a>> {
    if pod.requests.cpu_milli == 0 && pod.requests.memory_bytes == 0 {
        return None;
    }
    Some(Box::new(Balance(pod)))
}

impl Evaluate for Balance<'_> {
    /// 100 less the standard deviation of the two shares (of two numbers: half their distance).
    fn score(&self, node: &Node) -> i64 {
        let share = |wanted: i64, used: i64, total: i64| {
            if total <= 0 { 1.0 } else { ((wanted + used) as f64 / total as f64).min(1.0) }
        };
        let (wants, used, has) = (&self.0.requests, &node.requested, &node.allocatable);
        let cpu = share(wants.cpu_milli, used.cpu_milli, has.cpu_milli);
        let memory = share(wants.memory_bytes, used.memory_bytes, has.memory_bytes);
        ((1.0 - (cpu - memory).abs() / 2.0) * MAX_SCORE as f64) as i64
    }
}

fn helps(_: &Pod, _: &Event<'_>) -> bool {
    false
}
