//! Likes nodes that have the pod's images already.

use crate::{
    cluster::Cluster,
    cycle::MAX_SCORE,
    node::Node,
    plugins::{Evaluate, Plugin},
    pod::Pod,
    queue::Event,
};

pub const PLUGIN: Plugin = Plugin { name: "ImageLocality", evaluate, weight: 1, helps };

const MIB: i64 = 1 << 20;
/// Less than this is not worth a thought; more, per container, makes no difference.
const LEAST_BYTES: i64 = 23 * MIB;
const MOST_BYTES: i64 = 1000 * MIB;

struct Locality<'a> {
    pod: &'a Pod,
    nodes: i64,
    /// On how many nodes each image is: images that are everywhere count in full.
    spread: Vec<i64>,
}

fn evaluate<'a>(pod: &'a Pod, cluster: &'a Cluster) -> Option<Box<dyn Evaluate + 'a>> {
    let on = |image| cluster.nodes().filter(|n| n.images.contains_key(image)).count() as i64;
    let names: Vec<_> = pod.images.iter().map(|image| full_name(image)).collect();
    let spread: Vec<i64> = names.iter().map(|name| on(name.as_str())).collect();
    let nodes = cluster.node_count() as i64;
    if spread.iter().all(|&count| count == 0) {
        return None;
    }
    Some(Box::new(Locality { pod, nodes, spread }))
}

/// A name without tag or digest means `:latest`.
fn full_name(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or_default();
    if last.contains(':') || last.contains('@') { image.into() } else { format!("{image}:latest") }
}

impl Evaluate for Locality<'_> {
    fn score(&self, node: &Node) -> i64 {
        let sized = self.pod.images.iter().zip(&self.spread).filter_map(|(image, on)| {
            let bytes = node.images.get(full_name(image).as_str())?;
            Some(bytes * on / self.nodes.max(1))
        });
        let most = MOST_BYTES * (self.pod.images.len().max(1) as i64);
        let bytes = sized.sum::<i64>().clamp(LEAST_BYTES, most);
        MAX_SCORE * (bytes - LEAST_BYTES) / (most - LEAST_BYTES)
    }
}

fn helps(_: &Pod, _: &Event<'_>) -> bool {
    false
}
