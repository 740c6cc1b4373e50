//! Pods waiting for a node.
//!
//! ```text
//!   add ─▶ active ─pop─▶ (cycle) ─no node─▶ unschedulable ─event that helps─▶ backoff ─time─▶ active
//! ```
//!
//! The queue is data: the caller brings the time and sleeps until [`Queue::next_due`].

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use client::Key;
use stdx::{HashMap, Instant, backoff::Backoff};

use crate::{node::Node, plugins::PLUGINS, pod::Pod};

/// Something that changed in the cluster.
pub enum Event<'a> {
    /// A node appeared or changed.
    NodeChanged(&'a Node),
    /// A pod appeared on a node, or changed.
    PodChanged(&'a Pod),
    /// A pod left its node.
    PodGone(&'a Pod),
}

/// `podInitialBackoffSeconds` and `podMaxBackoffSeconds` of upstream's defaults.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
/// After this long an unschedulable pod is tried again whatever happened.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Where each waiting pod stands.
#[derive(Default)]
pub struct Queue {
    pods: HashMap<Key, Waiting>,
    active: BTreeSet<(Reverse<i32>, u64, Key)>,
    delayed: BTreeSet<(Instant, Key)>,
    sequence: u64,
    /// Changes since the pods that are being decided on were popped may already have helped.
    in_flight: BTreeMap<Key, bool>,
}

struct Waiting {
    pod: Arc<Pod>,
    attempts: u32,
    place: Place,
}

enum Place {
    Active(u64),
    /// Waits for a time; `plugins` is empty when it is about to become active.
    Delayed {
        until: Instant,
        plugins: Option<Vec<&'static str>>,
        ready_at: Instant,
    },
    /// Its scheduling gates are not all removed.
    Gated,
}

impl Queue {
    /// A pod that wants a node, new or changed.
    pub fn add(&mut self, pod: Arc<Pod>) {
        let key = pod.key.clone();
        if let Some(waiting) = self.pods.get_mut(&key) {
            let gated = matches!(waiting.place, Place::Gated);
            let was = std::mem::replace(&mut waiting.pod, pod.clone());
            if !(gated && pod.gates.is_empty()) && same_wishes(&was, &pod) {
                return;
            }
            self.leave(&key);
        }
        if pod.gates.is_empty() {
            self.activate(pod, 0);
        } else {
            self.pods.insert(key, Waiting { pod, attempts: 0, place: Place::Gated });
        }
    }

    /// The pod is gone, bound or being deleted.
    pub fn remove(&mut self, key: &Key) {
        self.leave(key);
        self.in_flight.remove(key);
    }

    fn leave(&mut self, key: &Key) -> Option<Waiting> {
        let waiting = self.pods.remove(key)?;
        match &waiting.place {
            Place::Active(sequence) => {
                self.active.remove(&(Reverse(waiting.pod.priority), *sequence, key.clone()));
            }
            Place::Delayed { until, .. } => drop(self.delayed.remove(&(*until, key.clone()))),
            Place::Gated => {}
        }
        Some(waiting)
    }

    fn activate(&mut self, pod: Arc<Pod>, attempts: u32) {
        self.sequence += 1;
        let key = pod.key.clone();
        self.active.insert((Reverse(pod.priority), self.sequence, key.clone()));
        self.pods.insert(key, Waiting { pod, attempts, place: Place::Active(self.sequence) });
    }

    /// The next pod to decide on: the highest priority, then the one that waited longest. Gives
    /// the number of attempts before too, for [`Queue::give_back`].
    pub fn pop(&mut self, now: Instant) -> Option<(Arc<Pod>, u32)> {
        self.release_due(now);
        let (_, _, key) = self.active.pop_first()?;
        let waiting = self.pods.remove(&key)?;
        self.in_flight.insert(key, false);
        Some((waiting.pod, waiting.attempts))
    }

    /// The pod has its node.
    pub fn done(&mut self, key: &Key) {
        self.in_flight.remove(key);
    }

    /// The pod found no node, turned down by these plugins (none: it failed for another reason).
    pub fn give_back(
        &mut self,
        pod: Arc<Pod>,
        attempts: u32,
        plugins: Vec<&'static str>,
        now: Instant,
    ) {
        let Some(helped) = self.in_flight.remove(&pod.key) else { return };
        let attempts = attempts + 1;
        let ready_at = now + BACKOFF.delay(attempts);
        let soon = helped || plugins.is_empty();
        let until = if soon { ready_at } else { now + LONGEST_WAIT };
        let plugins = (!soon).then_some(plugins);
        let key = pod.key.clone();
        self.delayed.insert((until, key.clone()));
        self.pods.insert(
            key,
            Waiting { pod, attempts, place: Place::Delayed { until, plugins, ready_at } },
        );
    }

    /// Lets those pods try again that the event may help.
    pub fn notice(&mut self, event: &Event<'_>, now: Instant) {
        // Whatever is being decided on saw the cluster before this event.
        self.in_flight.values_mut().for_each(|helped| *helped = true);
        let helped: Vec<Key> = self
            .pods
            .iter()
            .filter(|(_, w)| w.is_helped_by(event))
            .map(|(k, _)| k.clone())
            .collect();
        for key in helped {
            let Some(waiting) = self.leave(&key) else { continue };
            let Place::Delayed { ready_at, .. } = waiting.place else { continue };
            if ready_at <= now {
                self.activate(waiting.pod, waiting.attempts);
            } else {
                self.delayed.insert((ready_at, key.clone()));
                let place = Place::Delayed { until: ready_at, plugins: None, ready_at };
                self.pods.insert(key, Waiting { place, ..waiting });
            }
        }
    }

    /// When the next pod becomes active by itself.
    pub fn next_due(&self) -> Option<Instant> {
        self.delayed.first().map(|(at, _)| *at)
    }

    fn release_due(&mut self, now: Instant) {
        while let Some((at, key)) = self.delayed.first().cloned() {
            if at > now {
                return;
            }
            if let Some(waiting) = self.leave(&key) {
                self.activate(waiting.pod, waiting.attempts);
            }
        }
    }

    /// Active, waiting and gated pods.
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }
}

impl Waiting {
    fn is_helped_by(&self, event: &Event<'_>) -> bool {
        let Place::Delayed { plugins: Some(plugins), .. } = &self.place else { return false };
        PLUGINS.iter().any(|p| plugins.contains(&p.name) && (p.helps)(&self.pod, event))
    }
}

/// Whether a change of the pod leaves all that scheduling looks at alone.
fn same_wishes(was: &Pod, now: &Pod) -> bool {
    was.uid == now.uid
        && was.requests == now.requests
        && was.labels == now.labels
        && was.tolerations == now.tolerations
        && was.gates == now.gates
        && was.node_selector == now.node_selector
        && was.required_nodes == now.required_nodes
        && was.priority == now.priority
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::Resources;

    fn pod(name: &str, priority: i32) -> Arc<Pod> {
        let requests = Resources { cpu_milli: 500, ..Resources::default() };
        Arc::new(Pod { key: Key::new("a", name), priority, requests, ..Pod::default() })
    }

    fn node(cpu_milli: i64) -> Node {
        let allocatable = Resources { cpu_milli, pods: 10, ..Resources::default() };
        Node { name: "n".into(), allocatable, ..Node::default() }
    }

    fn popped(queue: &mut Queue, now: Instant) -> Option<String> {
        queue.pop(now).map(|(pod, _)| pod.key.name.to_string())
    }

    #[test]
    fn priority_goes_first_then_age() {
        let mut queue = Queue::default();
        let now = Instant::now();
        for (name, priority) in [("low", 0), ("high", 9), ("late", 0)] {
            queue.add(pod(name, priority));
        }
        let order: Vec<_> = std::iter::from_fn(|| popped(&mut queue, now)).collect();
        assert_eq!(order, ["high", "low", "late"]);
    }

    #[test]
    fn only_an_event_that_helps_wakes_a_pod() {
        let mut queue = Queue::default();
        let start = Instant::now();
        queue.add(pod("x", 0));
        let (x, attempts) = queue.pop(start).unwrap();
        queue.give_back(x, attempts, vec!["NodeResourcesFit"], start);
        let later = start + Duration::from_secs(60);
        queue.notice(&Event::NodeChanged(&node(100)), later);
        assert_eq!(popped(&mut queue, later), None, "too small a node");
        queue.notice(&Event::NodeChanged(&node(1000)), later);
        assert_eq!(popped(&mut queue, later).as_deref(), Some("x"));
    }

    #[test]
    fn an_event_during_the_cycle_is_not_lost_and_backoff_holds() {
        let mut queue = Queue::default();
        let start = Instant::now();
        queue.add(pod("x", 0));
        let (x, attempts) = queue.pop(start).unwrap();
        queue.notice(&Event::NodeChanged(&node(1000)), start);
        queue.give_back(x, attempts, vec!["NodeResourcesFit"], start);
        assert_eq!(popped(&mut queue, start), None, "backs off");
        assert_eq!(queue.next_due(), Some(start + Duration::from_secs(1)));
        assert!(popped(&mut queue, start + Duration::from_secs(1)).is_some());
    }

    #[test]
    fn a_pod_deleted_during_its_cycle_does_not_come_back() {
        let mut queue = Queue::default();
        let now = Instant::now();
        queue.add(pod("x", 0));
        let (x, attempts) = queue.pop(now).unwrap();
        queue.remove(&x.key.clone());
        queue.give_back(x, attempts, Vec::new(), now);
        assert!(queue.is_empty());
    }
}
