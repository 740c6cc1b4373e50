//! Keeps one pod on every node that the template allows.
//!
//! Pods are tied to their node by affinity and tolerate what is wrong with nodes, so that the
//! scheduler binds them even where it would bind no other.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use client::{Cached, Change, Key};
use machinery::{Object, Value, value};
use stdx::Timestamp;

use super::deployment::scaled;
use crate::{
    node_affinity,
    plan::*,
    pod_template::{generated_name, pod_from_template},
    resources::*,
    revisions::{self, HASH},
    taints,
    views::{Pod, Toleration},
};

pub const CONTROLLER: Controller = Controller {
    name: "daemonset-controller",
    account: "daemon-set-controller",
    primary: &DAEMON_SETS,
    watches: &[adopted_by(&PODS), owned_by(&CONTROLLER_REVISIONS), mapped(&NODES, sets_of_node)],
    rbac: &[
        allow(&PODS, &["create", "delete", "patch"]),
        allow(&CONTROLLER_REVISIONS, &["create", "update", "delete"]),
        allow_sub(&DAEMON_SETS, "status", &["update"]),
    ],
    workers: 2,
    work: Work::Reconcile(reconcile),
};

const BURST: usize = 250;
const GENERATION_ANNOTATION: &str = "deprecated.daemonset.template.generation";
const GENERATION_LABEL: &str = "pod-template-generation";
/// A pod that fails at once is not replaced more often than this.
const FAILED_POD_WAIT: Duration = Duration::from_secs(10);

/// Labels and taints decide where pods may run; heartbeats do not.
fn sets_of_node(change: &Change, world: &World) -> Vec<Key> {
    let relevant = |node: &Option<Arc<Cached>>| {
        let node = node.as_ref()?;
        let taints = node.object().map(|object| taints::of_node(&object)).unwrap_or_default();
        let taints: Vec<(String, String, String)> =
            taints.into_iter().map(|t| (t.key, t.value, t.effect)).collect();
        Some((node.labels.clone(), taints))
    };
    if relevant(&change.old) == relevant(&change.new) {
        return Vec::new();
    }
    world.list(&DAEMON_SETS).all().iter().map(|set| set.key.clone()).collect()
}

fn reconcile(key: &Key, world: &World, now: Timestamp) -> Plan {
    let mut plan = Plan::none();
    let Some(object) = world.object(&DAEMON_SETS, key) else { return plan };
    let Some(selector) = selector_of(&object).filter(|selector| !selector.is_empty()) else { return plan };
    if object.is_deleting() {
        return plan;
    }
    let candidates = world.list(&PODS).in_namespace(&key.namespace);
    let claimed = claim(&mut plan, &PODS, &object, &selector, &candidates, |_| true);
    if !plan.is_empty() {
        return plan;
    }
    let history = revisions::history(&mut plan, &object, world);
    let mut set = Set { hash: history.current.hash.clone(), pods: by_node(claimed), object, world, now };
    let before = plan.steps.len();
    set.manage(&mut plan);
    let settled = plan.steps.len() == before;
    if settled && set.object.str_at(&["spec", "updateStrategy", "type"]) != "OnDelete" {
        set.roll(&mut plan);
    }
    set.write_status(&mut plan);
    let used: Vec<String> = set
        .pods
        .values()
        .flatten()
        .filter_map(|(_, pod)| pod.metadata.labels.str_at(&[HASH]).map(str::to_owned))
        .collect();
    revisions::clean_up(&mut plan, &set.object, &history, |revision| used.contains(&revision.hash));
    plan
}

type Pods = Vec<(Arc<Cached>, Pod)>;
/// The old and the new pod of a node.
type Pair<'a> = (Option<&'a (Arc<Cached>, Pod)>, Option<&'a (Arc<Cached>, Pod)>);

/// Pods by the node that they are on or meant for, the most settled first.
fn by_node(cached: Vec<Arc<Cached>>) -> BTreeMap<String, Pods> {
    let mut nodes: BTreeMap<String, Pods> = BTreeMap::new();
    for cached in cached {
        let Some(pod) = Pod::read(&cached) else { continue };
        if pod.is_deleting() && pod.is_finished() {
            continue;
        }
        if let Some(node) = node_affinity::target_node(&pod.spec.node_name, &pod.spec.affinity) {
            nodes.entry(node).or_default().push((cached, pod));
        }
    }
    for pods in nodes.values_mut() {
        pods.sort_by_key(|(_, pod)| (pod.spec.node_name.is_empty(), pod.metadata.creation_timestamp));
    }
    nodes
}

struct Set<'a> {
    object: Object,
    hash: String,
    pods: BTreeMap<String, Pods>,
    world: &'a World,
    now: Timestamp,
}

impl Set<'_> {
    fn nodes(&self) -> Vec<Object> {
        self.world.list(&NODES).all().iter().map(|cached| tree(&NODES, cached)).collect()
    }

    /// Whether a pod should be on the node, and whether one that is there may stay.
    fn should_run(&self, node: &Object) -> (bool, bool) {
        let spec = self.object.at(&["spec", "template", "spec"]).cloned().unwrap_or_default();
        let named = spec.get("nodeName").and_then(Value::as_str).unwrap_or_default();
        let named_elsewhere = !named.is_empty() && named != node.name();
        if named_elsewhere || !node_affinity::allows(&spec, node) {
            return (false, false);
        }
        let mut tolerations: Vec<Toleration> =
            tolerations(&spec).iter().filter_map(|t| serde_json::from_slice(&machinery::json::to_vec(t)).ok()).collect();
        tolerations.retain(|t| t.toleration_seconds.is_none());
        let taints = taints::of_node(node);
        let untolerated = |effect: &str| {
            let mut of_effect = taints.iter().filter(|taint| taint.effect == effect);
            of_effect.any(|taint| !tolerations.iter().any(|t| t.tolerates(taint)))
        };
        let (no_schedule, no_execute) = (untolerated("NoSchedule"), untolerated("NoExecute"));
        (!no_schedule && !no_execute, !no_execute)
    }

    /// One pod on each node that should have one, none on the others.
    fn manage(&mut self, plan: &mut Plan) {
        let nodes = self.nodes();
        let mut missing = Vec::new();
        for node in &nodes {
            let (should_run, may_stay) = self.should_run(node);
            let pods = self.pods.get(node.name());
            match pods {
                None if should_run => missing.push(node.name().to_owned()),
                None => {}
                Some(pods) if !may_stay => pods.iter().for_each(|(cached, pod)| self.delete(plan, cached, pod)),
                Some(pods) => {
                    let idle = self.tidy(plan, pods) == 0;
                    let surges = idle && should_run && self.allows_surge();
                    missing.extend(surges.then(|| node.name().to_owned()));
                }
            }
        }
        self.remove_lost(plan, &nodes);
        for (index, node) in missing.into_iter().take(BURST).enumerate() {
            self.create(plan, &node, index);
        }
    }

    /// Removes finished and surplus pods of one node; returns how many go on running.
    fn tidy(&self, plan: &mut Plan, pods: &Pods) -> usize {
        let mut running = Vec::new();
        for (cached, pod) in pods.iter().filter(|(_, pod)| !pod.is_deleting()) {
            match pod.status.phase.as_str() {
                "Failed" => self.remove_failed(plan, cached, pod),
                "Succeeded" => {
                    let text = format!(
                        "Found succeeded daemon pod {} on node {}, will try to delete it",
                        cached.key, pod.spec.node_name
                    );
                    plan.event(Note::normal(&self.object, "SucceededDaemonPod", text));
                    self.delete(plan, cached, pod);
                }
                _ => running.push((cached, pod)),
            }
        }
        let keep = if self.allows_surge() { self.surging(&running) } else { vec![0] };
        for (index, (cached, pod)) in running.iter().enumerate() {
            if !keep.contains(&index) {
                self.delete(plan, cached, pod);
            }
        }
        running.len()
    }

    /// While surging a node may hold one old and one new pod, until the new one is available or
    /// the old one is not ready.
    fn surging(&self, running: &[(&Arc<Cached>, &Pod)]) -> Vec<usize> {
        let new = running.iter().position(|(_, pod)| self.is_updated(pod));
        let old = running.iter().position(|(_, pod)| !self.is_updated(pod));
        match (new, old) {
            (Some(new), Some(old)) => {
                let replaced = self.is_available(running[new].1) || !running[old].1.is_ready();
                if replaced { vec![new] } else { vec![new, old] }
            }
            (new, old) => new.or(old).into_iter().collect(),
        }
    }

    fn remove_failed(&self, plan: &mut Plan, cached: &Arc<Cached>, pod: &Pod) {
        let made = pod.metadata.creation_timestamp.unwrap_or(self.now);
        let at = made + FAILED_POD_WAIT;
        if self.now < at {
            return plan.requeue_in(at.since(self.now));
        }
        let text = format!(
            "Found failed daemon pod {} on node {}, will try to kill it",
            cached.key, pod.spec.node_name
        );
        plan.event(Note::warning(&self.object, "FailedDaemonPod", text));
        self.delete(plan, cached, pod);
    }

    /// Pods never bound whose node is gone would wait for ever.
    fn remove_lost(&self, plan: &mut Plan, nodes: &[Object]) {
        for (node, pods) in &self.pods {
            if nodes.iter().any(|known| known.name() == node) {
                continue;
            }
            for (cached, pod) in pods.iter().filter(|(_, pod)| pod.spec.node_name.is_empty()) {
                self.delete(plan, cached, pod);
            }
        }
    }

    fn create(&self, plan: &mut Plan, node: &str, index: usize) {
        let template = self.object.at(&["spec", "template"]).cloned().unwrap_or_default();
        let name = generated_name(self.object.name(), self.object.uid(), self.now, index);
        let mut pod = pod_from_template(&template, &self.object, &name);
        pod.metadata_mut().insert("generateName", format!("{}-", self.object.name()));
        pod.set_at(&["metadata", "labels", HASH], self.hash.as_str());
        if let Some(generation) = self.object.annotation(GENERATION_ANNOTATION) {
            pod.set_at(&["metadata", "labels", GENERATION_LABEL], generation);
        }
        let spec = pod.root_mut().map_entry("spec");
        let all = tolerations(&Value::Map(spec.clone()));
        spec.insert("tolerations", all);
        node_affinity::pin(spec, node);
        plan.push(Intent::Create { resource: &PODS, object: pod })
            .note(Note::normal(&self.object, "SuccessfulCreate", format!("Created pod: {name}")))
            .failure(Note::warning(&self.object, "FailedCreate", "Error creating: "));
    }

    fn delete(&self, plan: &mut Plan, cached: &Arc<Cached>, pod: &Pod) {
        if pod.is_deleting() {
            return;
        }
        let text = format!("Deleted pod: {}", pod.name());
        plan.push(Intent::delete(&PODS, cached))
            .note(Note::normal(&self.object, "SuccessfulDelete", text))
            .failure(Note::warning(&self.object, "FailedDelete", "Error deleting: "));
    }

    fn is_updated(&self, pod: &Pod) -> bool {
        pod.metadata.labels.str_at(&[HASH]) == Some(&self.hash)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        pod.is_available(self.min_ready_seconds(), self.now)
    }

    fn min_ready_seconds(&self) -> i64 {
        self.object.i64_at(&["spec", "minReadySeconds"]).unwrap_or(0)
    }

    fn wanted_nodes(&self) -> Vec<String> {
        let nodes = self.nodes();
        nodes.iter().filter(|node| self.should_run(node).0).map(|node| node.name().to_owned()).collect()
    }

    fn allows_surge(&self) -> bool {
        self.limits(100).0 > 0
    }

    /// `maxSurge` and `maxUnavailable` for so many nodes, both rounded up, not both zero.
    fn limits(&self, nodes: i64) -> (i64, i64) {
        if self.object.str_at(&["spec", "updateStrategy", "type"]) == "OnDelete" {
            return (0, 0);
        }
        let field = |name| self.object.at(&["spec", "updateStrategy", "rollingUpdate", name]);
        let surge = field("maxSurge").map_or(0, |value| scaled(Some(value), nodes, true));
        let unavailable = field("maxUnavailable").map_or(1, |value| scaled(Some(value), nodes, true));
        if nodes > 0 && surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
    }

    /// The old and the new pod of a node; `None` when there are more, which `manage` will mend.
    fn pair<'b>(&self, pods: &'b Pods) -> Option<Pair<'b>> {
        let active: Vec<_> = pods.iter().filter(|(_, pod)| !pod.is_deleting()).collect();
        let (new, old): (Vec<_>, Vec<_>) = active.into_iter().partition(|(_, pod)| self.is_updated(pod));
        (new.len() <= 1 && old.len() <= 1).then(|| (old.first().copied(), new.first().copied()))
    }

    /// Replaces pods of older templates, within the limits of the strategy.
    fn roll(&mut self, plan: &mut Plan) {
        let wanted = self.wanted_nodes();
        let (surge, unavailable) = self.limits(wanted.len() as i64);
        if surge == 0 { self.roll_in_place(plan, &wanted, unavailable) } else { self.roll_with_surge(plan, surge) }
    }

    fn roll_in_place(&self, plan: &mut Plan, wanted: &[String], max_unavailable: i64) {
        let none = Pods::new();
        let mut unavailable = 0;
        let (mut at_once, mut candidates) = (Vec::new(), Vec::new());
        let others = self.pods.keys().filter(|node| !wanted.contains(node));
        for node in wanted.iter().chain(others) {
            let pods = self.pods.get(node).unwrap_or(&none);
            match self.pair(pods) {
                Some((Some(old), None)) if !self.is_available(&old.1) => {
                    at_once.push(old);
                    unavailable += 1;
                }
                Some((Some(old), None)) => candidates.push(old),
                Some((None, Some((_, new)))) => unavailable += i64::from(!self.is_available(new)),
                _ => unavailable += 1,
            }
        }
        let room = (max_unavailable - unavailable).max(0) as usize;
        for (cached, pod) in at_once.into_iter().chain(candidates.into_iter().take(room)) {
            self.delete(plan, cached, pod);
        }
    }

    fn roll_with_surge(&self, plan: &mut Plan, max_surge: i64) {
        let mut surging = 0;
        let (mut at_once, mut candidates) = (Vec::new(), Vec::new());
        for (node, pods) in &self.pods {
            match self.pair(pods) {
                Some((Some(old), None)) if !self.is_available(&old.1) => at_once.push(node),
                Some((Some(_), None)) => candidates.push(node),
                Some((Some(_), Some((_, new)))) if !self.is_available(new) => surging += 1,
                Some((Some((cached, old)), Some(_))) => self.delete(plan, cached, old),
                Some((None, _)) => {}
                None => surging += 1,
            }
        }
        let room = (max_surge - surging).max(0) as usize;
        for (index, node) in at_once.into_iter().chain(candidates.into_iter().take(room)).enumerate() {
            self.create(plan, node, index);
        }
    }

    fn write_status(&self, plan: &mut Plan) {
        let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
        let mut add = |field, is: bool| *counts.entry(field).or_default() += i64::from(is);
        for node in self.nodes() {
            let wanted = self.should_run(&node).0;
            let pod = self.pods.get(node.name()).and_then(|pods| pods.first()).map(|(_, pod)| pod);
            add("desiredNumberScheduled", wanted);
            add("currentNumberScheduled", wanted && pod.is_some());
            add("numberMisscheduled", !wanted && pod.is_some());
            let Some(pod) = pod.filter(|_| wanted) else { continue };
            add("numberReady", pod.is_ready());
            add("numberAvailable", self.is_available(pod));
            add("updatedNumberScheduled", self.is_updated(pod));
            if let Some(wait) = pod.available_in(self.min_ready_seconds(), self.now).filter(|w| !w.is_zero()) {
                plan.requeue_in(wait);
            }
        }
        let mut status = self.object.map_at(&["status"]).cloned().unwrap_or_default();
        let get = |field: &str| counts.get(field).copied().unwrap_or(0);
        let unavailable = get("desiredNumberScheduled") - get("numberAvailable");
        for field in [
            "desiredNumberScheduled",
            "currentNumberScheduled",
            "numberMisscheduled",
            "numberReady",
            "numberAvailable",
            "updatedNumberScheduled",
        ] {
            status.insert(field, get(field));
        }
        status.insert("numberUnavailable", unavailable);
        status.insert("observedGeneration", self.object.generation());
        plan.set_status(&DAEMON_SETS, &self.object, status);
    }
}

/// The template's tolerations, and those of every daemon.
fn tolerations(spec: &Value) -> Vec<Value> {
    let mut all: Vec<Value> = spec.get("tolerations").and_then(Value::as_list).unwrap_or(&[]).to_vec();
    let mut wanted = vec![
        (taints::NOT_READY, "NoExecute"),
        (taints::UNREACHABLE, "NoExecute"),
        (taints::DISK_PRESSURE, "NoSchedule"),
        (taints::MEMORY_PRESSURE, "NoSchedule"),
        (taints::PID_PRESSURE, "NoSchedule"),
        (taints::UNSCHEDULABLE, "NoSchedule"),
    ];
    if spec.get("hostNetwork").and_then(Value::as_bool) == Some(true) {
        wanted.push((taints::NETWORK_UNAVAILABLE, "NoSchedule"));
    }
    for (key, effect) in wanted {
        let toleration = value!({"key": key, "operator": "Exists", "effect": effect});
        let same = |known: &Value| {
            let text = |field| known.get(field).and_then(Value::as_str).unwrap_or_default();
            text("key") == key && text("effect") == effect && text("operator") == "Exists"
        };
        match all.iter().position(same) {
            Some(at) => all[at] = toleration,
            None => all.push(toleration),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{cached, world};

    fn set() -> Cached {
        cached(value!({
            "metadata": {"namespace": "d", "name": "agent", "uid": "ds1", "generation": 1},
            "spec": {
                "selector": {"matchLabels": {"app": "agent"}},
                "template": {"metadata": {"labels": {"app": "agent"}}, "spec": {"nodeSelector": {"os": "linux"}, "containers": []}},
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
            },
        }))
    }

    fn node(name: &str, os: &str, taint: &str) -> Cached {
        let taints = if taint.is_empty() { value!([]) } else { value!([{"key": taint, "effect": "NoSchedule"}]) };
        let mut node = value!({"metadata": {"name": name, "labels": {"os": os}}});
        node.as_map_mut().unwrap().set_at(&["spec", "taints"], taints);
        cached(node)
    }

    fn revision(hash: &str, number: i64) -> Cached {
        let template = set().object().unwrap().at(&["spec", "template"]).unwrap().clone();
        let mut revision = value!({
            "metadata": {"namespace": "d", "name": format!("agent-{hash}"), "uid": hash, "labels": {"controller-revision-hash": hash},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "agent", "uid": "ds1", "controller": true}]},
            "revision": number,
        });
        revision.as_map_mut().unwrap().set_at(&["data", "spec", "template"], template);
        cached(revision)
    }

    fn pod(name: &str, node: &str, hash: &str) -> Cached {
        cached(value!({
            "metadata": {"namespace": "d", "name": name, "uid": name, "labels": {"app": "agent", "controller-revision-hash": hash},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "agent", "uid": "ds1", "controller": true}]},
            "spec": {"nodeName": node},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        }))
    }

    fn plan(nodes: Vec<Cached>, pods: Vec<Cached>, revisions: Vec<Cached>) -> Plan {
        let world = world([(&DAEMON_SETS, vec![set()]), (&NODES, nodes), (&PODS, pods), (&CONTROLLER_REVISIONS, revisions)]);
        reconcile(&Key::new("d", "agent"), &world, Timestamp::from_secs(100))
    }

    fn pod_steps(plan: &Plan) -> Vec<String> {
        let of_pods = plan.steps.iter().filter(|s| *s.intent.resource() == PODS);
        of_pods
            .map(|step| match &step.intent {
                Intent::Create { object, .. } => {
                    let target = node_affinity::target_node("", object.at(&["spec", "affinity"]).unwrap());
                    format!("create on {}", target.unwrap())
                }
                other => format!("{} {}", other.verb(), other.key().name),
            })
            .collect()
    }

    #[test]
    fn runs_where_labels_and_taints_allow() {
        let nodes = vec![
            node("a", "linux", ""),
            node("b", "windows", ""),
            node("c", "linux", taints::UNSCHEDULABLE),
            node("e", "linux", "special"),
        ];
        let plan = plan(nodes, vec![], vec![]);
        assert_eq!(pod_steps(&plan), ["create on a", "create on c"]);
        assert_eq!(plan.steps[0].intent.resource(), &CONTROLLER_REVISIONS);
    }

    #[test]
    fn replaces_old_pods_one_by_one_and_removes_strays() {
        let nodes = || vec![node("a", "linux", ""), node("b", "linux", ""), node("w", "windows", "")];
        let pods = vec![pod("pa", "a", "old"), pod("pb", "b", "old")];
        assert_eq!(pod_steps(&plan(nodes(), pods, vec![revision("new", 2)])), ["delete pa"]);
        let pods = vec![pod("pa", "a", "new"), pod("pb", "b", "new"), pod("pw", "w", "new")];
        assert_eq!(pod_steps(&plan(nodes(), pods, vec![revision("new", 2)])), ["delete pw"]);
        let pods = vec![pod("pa", "a", "new"), pod("pb", "b", "new")];
        assert_eq!(pod_steps(&plan(nodes(), pods, vec![revision("new", 2)])), Vec::<String>::new());
    }
}
