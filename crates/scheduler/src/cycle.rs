//! One decision: which node for this pod, now.

use std::{borrow::Cow, collections::BTreeMap};

use smol_str::SmolStr;

use crate::{
    cluster::Cluster,
    node::Node,
    plugins::{Evaluate, PLUGINS, Plugin},
    pod::Pod,
};

/// The best score that a plugin gives a node.
pub const MAX_SCORE: i64 = 100;

/// Why a node does not take a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Each as Kubernetes words it, such as `Insufficient cpu`.
    pub reasons: Vec<Cow<'static, str>>,
    /// Whether removing pods from the node could help.
    pub resolvable: bool,
}

impl Rejection {
    /// Removing pods would make room.
    pub fn resolvable(reason: &'static str) -> Self {
        Self { reasons: vec![reason.into()], resolvable: true }
    }

    /// It lies in the node itself.
    pub fn final_(reason: &'static str) -> Self {
        Self { reasons: vec![reason.into()], resolvable: false }
    }
}

/// The outcome of one cycle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Bind { node: SmolStr },
    Unschedulable(Unschedulable),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unschedulable {
    /// As in the pod's PodScheduled condition and the FailedScheduling event.
    pub message: String,
    /// The plugins that turned a node down: only events that they care about help.
    pub plugins: Vec<&'static str>,
    /// The nodes on which removing pods could make room.
    pub candidates: Vec<SmolStr>,
}

/// A plugin at work for one pod.
type Running<'a> = (&'static Plugin, Box<dyn Evaluate + 'a>);

/// Decides for one pod. `turn` counts cycles: it rotates where the search begins in a large
/// cluster and breaks ties, so that equal nodes share the load.
pub fn schedule(pod: &Pod, cluster: &Cluster, turn: u64) -> Decision {
    let running = evaluators(pod, cluster);
    let nodes: Vec<&Node> = cluster.nodes().collect();
    let mut rejected = Rejected::default();
    let feasible = search(&nodes, &running, turn, &mut rejected);
    match feasible.as_slice() {
        [] => Decision::Unschedulable(rejected.into_outcome(nodes.len())),
        [only] => Decision::Bind { node: only.name.clone() },
        many => Decision::Bind { node: best(many, &running, turn).name.clone() },
    }
}

/// The plugins that have something to say about this pod.
pub fn evaluators<'a>(pod: &'a Pod, cluster: &'a Cluster) -> Vec<Running<'a>> {
    PLUGINS.iter().filter_map(|p| Some((p, (p.evaluate)(pod, cluster)?))).collect()
}

/// The first plugin that turns the node down, in the table's order.
pub fn filter(node: &Node, running: &[Running<'_>]) -> Result<(), (&'static str, Rejection)> {
    running.iter().try_for_each(|(plugin, eval)| {
        eval.filter(node).map_err(|rejection| (plugin.name, rejection))
    })
}

fn search<'a>(
    nodes: &[&'a Node],
    running: &[Running<'_>],
    turn: u64,
    rejected: &mut Rejected,
) -> Vec<&'a Node> {
    let wanted = feasible_wanted(nodes.len());
    let start = if wanted < nodes.len() { turn as usize * wanted % nodes.len() } else { 0 };
    let mut feasible = Vec::new();
    for node in nodes[start..].iter().chain(&nodes[..start]) {
        match filter(node, running) {
            Ok(()) => feasible.push(*node),
            Err((plugin, rejection)) => rejected.note(plugin, node, rejection),
        }
        if feasible.len() == wanted {
            break;
        }
    }
    feasible
}

/// How many feasible nodes are enough: all of up to 100, then a share that sinks from 50% by one
/// point for every 125 nodes, at least 5% and 100 (`percentageOfNodesToScore: 0`).
fn feasible_wanted(nodes: usize) -> usize {
    const MIN: usize = 100;
    if nodes <= MIN {
        return nodes;
    }
    let percent = 50usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(MIN)
}

fn best<'a>(nodes: &[&'a Node], running: &[Running<'_>], turn: u64) -> &'a Node {
    let totals = scores(nodes, running);
    let highest = totals.iter().max().copied().unwrap_or(0);
    let tied: Vec<&Node> = nodes
        .iter()
        .zip(&totals)
        .filter(|(_, score)| **score == highest)
        .map(|(n, _)| *n)
        .collect();
    tied[turn as usize % tied.len()]
}

/// The weighted sum of every plugin's normalized scores, node by node.
fn scores(nodes: &[&Node], running: &[Running<'_>]) -> Vec<i64> {
    let mut totals = vec![0; nodes.len()];
    for (plugin, eval) in running.iter().filter(|(plugin, _)| plugin.weight > 0) {
        let mut own: Vec<i64> = nodes.iter().map(|node| eval.score(node)).collect();
        eval.normalize(nodes, &mut own);
        for (total, score) in totals.iter_mut().zip(own) {
            *total += score * plugin.weight;
        }
    }
    totals
}

/// Scales scores so that the highest becomes 100; reversed, so that the lowest does.
pub fn normalize(scores: &mut [i64], reverse: bool) {
    let highest = scores.iter().max().copied().unwrap_or(0);
    for score in scores {
        *score = if highest == 0 { 0 } else { *score * MAX_SCORE / highest };
        if reverse {
            *score = MAX_SCORE - *score;
        }
    }
}

/// The nodes that were turned down, counted by reason.
#[derive(Default)]
struct Rejected {
    reasons: BTreeMap<Cow<'static, str>, usize>,
    plugins: Vec<&'static str>,
    candidates: Vec<SmolStr>,
}

impl Rejected {
    fn note(&mut self, plugin: &'static str, node: &Node, rejection: Rejection) {
        for reason in rejection.reasons {
            *self.reasons.entry(reason).or_default() += 1;
        }
        if !self.plugins.contains(&plugin) {
            self.plugins.push(plugin);
        }
        if rejection.resolvable {
            self.candidates.push(node.name.clone());
        }
    }

    fn into_outcome(self, nodes: usize) -> Unschedulable {
        let Self { reasons, plugins, candidates } = self;
        if nodes == 0 {
            let message = "no nodes available to schedule pods".into();
            return Unschedulable { message, ..Unschedulable::default() };
        }
        let mut counted: Vec<String> =
            reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        counted.sort();
        let message = format!("0/{nodes} nodes are available: {}.", counted.join(", "));
        Unschedulable { message, plugins, candidates }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::Resources;

    fn node(name: &str, cpu_milli: i64) -> Node {
        let allocatable =
            Resources { cpu_milli, memory_bytes: 1 << 30, pods: 110, ..Resources::default() };
        Node { name: name.into(), allocatable, ..Node::default() }
    }

    fn cluster(nodes: impl IntoIterator<Item = Node>) -> Cluster {
        let mut cluster = Cluster::default();
        nodes.into_iter().for_each(|node| cluster.set_node(node));
        cluster
    }

    fn asks_cpu(cpu_milli: i64) -> Pod {
        let requests = Resources { cpu_milli, ..Resources::default() };
        Pod { scored: requests.clone(), requests, ..Pod::default() }
    }

    #[test]
    fn words_are_those_of_kubernetes() {
        let mut cordoned = node("c", 4000);
        cordoned.unschedulable = true;
        let mut cluster = cluster([node("a", 100), node("b", 1000), cordoned]);
        cluster.assume(Pod { node_name: "b".into(), ..asks_cpu(800) });
        let Decision::Unschedulable(why) = schedule(&asks_cpu(500), &cluster, 0) else {
            panic!("nothing fits");
        };
        assert_eq!(
            why.message,
            "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu."
        );
        assert_eq!(why.candidates, ["b"], "an empty node a would be too small");
    }

    #[test]
    fn without_nodes_it_says_so() {
        let Decision::Unschedulable(why) = schedule(&asks_cpu(1), &cluster([]), 0) else {
            panic!("there is no node");
        };
        assert_eq!(why.message, "no nodes available to schedule pods");
    }

    #[test]
    fn equal_pods_spread_over_equal_nodes() {
        let mut cluster = cluster([node("a", 1000), node("b", 1000), node("c", 1000)]);
        for turn in 0..6u64 {
            let mut pod = asks_cpu(100);
            pod.key = client::Key::new("x", &format!("p{turn}"));
            let Decision::Bind { node } = schedule(&pod, &cluster, turn) else { panic!("fits") };
            pod.node_name = node;
            cluster.assume(pod);
        }
        let counts: Vec<usize> = cluster.nodes().map(|node| node.pods.len()).collect();
        assert_eq!(counts, [2, 2, 2]);
    }

    #[test]
    fn large_clusters_are_sampled() {
        assert_eq!(feasible_wanted(100), 100);
        assert_eq!(feasible_wanted(1000), 420);
        assert_eq!(feasible_wanted(6000), 300);
    }
}
