//! The node authorizer: a kubelet reads what the pods bound to its node refer to, and no more.
//!
//! ```text
//! node ◀─ pod ─▶ secret, configmap, persistentvolumeclaim ─▶ persistentvolume, serviceaccount
//! ```
//! The graph keeps, per referenced object, the nodes that need it; it is fed by informers.

use std::collections::BTreeMap;

use machinery::{Map, Object, Value};
use smol_str::SmolStr;

use super::{Decision, Query, rbac::Rule};
use crate::UserInfo;

const USER_PREFIX: &str = "system:node:";
const GROUP: &str = "system:nodes";

/// The node that a user is the kubelet of.
pub fn node_of(user: &UserInfo) -> Option<&str> {
    let node = user.name.strip_prefix(USER_PREFIX)?;
    (!node.is_empty() && user.groups.iter().any(|group| group == GROUP)).then_some(node)
}

/// Which objects each node needs.
pub struct NodeGraph {
    pods: BTreeMap<Key, Pod>,
    /// How many pods of a node refer to an object.
    needed: BTreeMap<Target, BTreeMap<SmolStr, usize>>,
    /// Claims by the name of the volume bound to them, and secrets that the volume needs.
    volumes: BTreeMap<SmolStr, (Target, Vec<Target>)>,
    rules: Vec<Rule>,
}

type Key = (SmolStr, SmolStr);

#[derive(Debug)]
struct Pod {
    node: SmolStr,
    targets: Vec<Target>,
}

/// A resource, a namespace and a name.
type Target = (&'static str, SmolStr, SmolStr);

impl Default for NodeGraph {
    fn default() -> Self {
        let (pods, needed, volumes) = Default::default();
        Self { pods, needed, volumes, rules: static_rules() }
    }
}

impl NodeGraph {
    pub fn upsert_pod(&mut self, pod: &Object) {
        self.remove_pod(pod.namespace(), pod.name());
        let node = SmolStr::from(pod.str_at(&["spec", "nodeName"]));
        if node.is_empty() {
            return;
        }
        let mut targets = vec![("pods", pod.namespace().into(), pod.name().into())];
        let is_mirror = pod.annotation("kubernetes.io/config.mirror").is_some();
        if !is_mirror {
            targets.extend(pod_targets(pod));
        }
        for target in &targets {
            *self.needed.entry(target.clone()).or_default().entry(node.clone()).or_default() += 1;
        }
        self.pods.insert((pod.namespace().into(), pod.name().into()), Pod { node, targets });
    }

    pub fn remove_pod(&mut self, namespace: &str, name: &str) {
        let Some(pod) = self.pods.remove(&(namespace.into(), name.into())) else { return };
        for target in pod.targets {
            let Some(nodes) = self.needed.get_mut(&target) else { continue };
            if let Some(count) = nodes.get_mut(&pod.node) {
                *count -= 1;
                if *count == 0 {
                    nodes.remove(&pod.node);
                }
            }
            if nodes.is_empty() {
                self.needed.remove(&target);
            }
        }
    }

    pub fn upsert_volume(&mut self, volume: &Object) {
        let claim = |field| SmolStr::from(volume.str_at(&["spec", "claimRef", field]));
        let target = ("persistentvolumeclaims", claim("namespace"), claim("name"));
        let mut secrets = Vec::new();
        collect_secret_refs(volume.at(&["spec"]), &target.1, &mut secrets);
        self.volumes.insert(volume.name().into(), (target, secrets));
    }

    pub fn remove_volume(&mut self, name: &str) {
        self.volumes.remove(name);
    }

    /// Decides for users of the group `system:nodes`; has no opinion about others.
    pub fn authorize(&self, user: &UserInfo, query: &Query<'_>) -> Decision {
        let Some(node) = node_of(user) else { return Decision::NoOpinion(String::new()) };
        if !query.is_resource {
            return Decision::NoOpinion(String::new());
        }
        match self.refuse(node, query) {
            None => Decision::Allow(String::new()),
            Some(why) if why.is_empty() => Decision::NoOpinion(why),
            Some(why) => Decision::NoOpinion(format!("node: {why}")),
        }
    }

    /// Why a node may not; `None` when it may. What a node may write here without regard to the
    /// name is held to its own objects by the admission plugin `NodeRestriction`.
    fn refuse(&self, node: &str, query: &Query<'_>) -> Option<String> {
        let no = |why: &str| Some(why.to_owned());
        let reads = matches!(query.verb, "get" | "list" | "watch");
        let writes = matches!(query.verb, "create" | "update" | "patch");
        match (query.group, query.resource, query.subresource) {
            ("", "secrets" | "configmaps", "") if reads => self.if_needed(node, query),
            ("", "secrets" | "configmaps", "") => no("can only read resources of this type"),
            ("", "secrets" | "configmaps", _) => no("cannot read subresource"),
            ("", "persistentvolumeclaims", "status") => match query.verb {
                "get" | "update" | "patch" => self.if_needed(node, query),
                _ => no("can only get/update/patch this type"),
            },
            ("", "persistentvolumeclaims" | "persistentvolumes", "") if query.verb == "get" => {
                self.if_needed(node, query)
            }
            ("", "persistentvolumeclaims" | "persistentvolumes", "") => {
                no("can only get individual resources of this type")
            }
            ("", "serviceaccounts", "token") if query.verb == "create" => {
                self.if_needed(node, query)
            }
            ("", "serviceaccounts", "") if query.verb == "get" => self.if_needed(node, query),
            ("", "serviceaccounts", _) => {
                no("can only create tokens for individual service accounts")
            }
            ("", "nodes", "") if reads && query.name == node => None,
            ("", "nodes", "") if reads && query.name.is_empty() => {
                Some(format!("node '{node}' cannot read all nodes, only its own Node object"))
            }
            ("", "nodes", "") if reads => Some(format!(
                "node '{node}' cannot read '{}', only its own Node object",
                query.name
            )),
            ("", "nodes", "") if writes => None,
            ("", "nodes", "status") if writes && query.verb != "create" => None,
            ("", "nodes", _) => no(""),
            ("", "pods", "") if query.verb == "get" => self.if_needed(node, query),
            ("", "pods", "") if reads && selects(query, "spec.nodeName=", node) => None,
            ("", "pods", "") if reads && !query.name.is_empty() => self.if_needed(node, query),
            ("", "pods", "") if reads => {
                no("can only list/watch pods with spec.nodeName field selector")
            }
            ("coordination.k8s.io", "leases", "") => own_lease(node, query),
            ("storage.k8s.io", "csinodes", "") => own_csi_node(node, query),
            ("resource.k8s.io", "resourceslices", "")
                if matches!(query.verb, "list" | "watch" | "deletecollection") =>
            {
                let selected = selects(query, "spec.nodeName=", node);
                let why = "can only list/watch/deletecollection resourceslices with nodeName field selector";
                if selected { None } else { no(why) }
            }
            _ if self.rules.iter().any(|rule| rule.allows(query)) => None,
            _ => no(""),
        }
    }

    fn if_needed(&self, node: &str, query: &Query<'_>) -> Option<String> {
        if query.name.is_empty() {
            return Some("No Object name found".into());
        }
        let needed = self
            .targets_of(query)
            .any(|target| self.needed.get(&target).is_some_and(|nodes| nodes.contains_key(node)));
        (!needed).then(|| format!("no relationship found between node '{node}' and this object"))
    }

    /// What a node must need for the object of the query to be its business.
    fn targets_of<'a>(&'a self, query: &'a Query<'_>) -> impl Iterator<Item = Target> + 'a {
        const RESOURCES: [&str; 5] =
            ["secrets", "configmaps", "persistentvolumeclaims", "serviceaccounts", "pods"];
        let direct = RESOURCES
            .into_iter()
            .find(|&resource| resource == query.resource)
            .map(|resource| (resource, SmolStr::from(query.namespace), SmolStr::from(query.name)));
        let volume =
            (query.resource == "persistentvolumes").then(|| self.volumes.get(query.name)).flatten();
        let by_volume = self.volumes.values().filter(move |(_, secrets)| {
            query.resource == "secrets"
                && secrets
                    .iter()
                    .any(|(_, namespace, name)| namespace == query.namespace && name == query.name)
        });
        direct
            .into_iter()
            .chain(volume.map(|(claim, _)| claim.clone()))
            .chain(by_volume.map(|(claim, _)| claim.clone()))
    }
}

/// A write or read of one object; a create has no name yet.
fn is_own(node: &str, query: &Query<'_>) -> bool {
    query.name == node || (query.verb == "create" && query.name.is_empty())
}

fn own_lease(node: &str, query: &Query<'_>) -> Option<String> {
    if !matches!(query.verb, "get" | "create" | "update" | "patch" | "delete") {
        return Some("can only get, create, update, patch, or delete a node lease".into());
    }
    if query.namespace != "kube-node-lease" {
        return Some("can only access leases in the \"kube-node-lease\" system namespace".into());
    }
    let why = "can only access node lease with the same name as the requesting node";
    (!is_own(node, query)).then(|| why.into())
}

fn own_csi_node(node: &str, query: &Query<'_>) -> Option<String> {
    if !matches!(query.verb, "get" | "create" | "update" | "patch" | "delete") {
        return Some("can only get, create, update, patch, or delete a CSINode".into());
    }
    let why = "can only access CSINode with the same name as the requesting node";
    (!is_own(node, query)).then(|| why.into())
}

/// Whether the field selector holds a list or watch to the node.
fn selects(query: &Query<'_>, term: &str, node: &str) -> bool {
    query.field_selector.split(',').any(|part| {
        let value = part.trim().strip_prefix(term);
        value.is_some_and(|value| value.strip_prefix('=').unwrap_or(value) == node)
    })
}

/// What every node may do, whatever its pods.
fn static_rules() -> Vec<Rule> {
    const RULES: &[(&str, &str, &str)] = &[
        ("authentication.k8s.io", "tokenreviews", "create"),
        ("authorization.k8s.io", "localsubjectaccessreviews subjectaccessreviews", "create"),
        ("", "services", "get list watch"),
        ("", "events", "create patch update"),
        ("events.k8s.io", "events", "create patch update"),
        ("", "pods", "create delete"),
        ("", "pods/status", "patch update"),
        ("", "pods/eviction", "create"),
        ("certificates.k8s.io", "certificatesigningrequests", "create get list watch"),
        ("certificates.k8s.io", "clustertrustbundles", "get list watch"),
        ("certificates.k8s.io", "podcertificaterequests", "create get list watch"),
        ("", "endpoints", "get"),
        ("node.k8s.io", "runtimeclasses", "get list watch"),
        ("storage.k8s.io", "csidrivers", "get list watch"),
        ("storage.k8s.io", "volumeattachments", "get"),
        ("resource.k8s.io", "resourceclaims", "get"),
        (
            "resource.k8s.io",
            "resourceslices",
            "create delete deletecollection get list patch update watch",
        ),
    ];
    let words = |text: &str| text.split(' ').map(SmolStr::from).collect::<Vec<_>>();
    RULES
        .iter()
        .map(|(group, resources, verbs)| Rule {
            verbs: words(verbs),
            api_groups: vec![SmolStr::from(*group)],
            resources: words(resources),
            ..Rule::default()
        })
        .collect()
}

/// What a pod refers to in its namespace.
fn pod_targets(pod: &Object) -> Vec<Target> {
    let namespace = SmolStr::from(pod.namespace());
    let mut targets: Vec<Target> = Vec::new();
    let account = pod.str_at(&["spec", "serviceAccountName"]);
    if !account.is_empty() {
        targets.push(("serviceaccounts", namespace.clone(), account.into()));
    }
    for secret in pod.list_at(&["spec", "imagePullSecrets"]) {
        push(&mut targets, "secrets", &namespace, secret.get("name"));
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in pod.list_at(&["spec", list]) {
            container_targets(container, &namespace, &mut targets);
        }
    }
    for volume in pod.list_at(&["spec", "volumes"]) {
        volume_targets(pod.name(), volume, &namespace, &mut targets);
    }
    targets.sort();
    targets.dedup();
    targets
}

fn container_targets(container: &Value, namespace: &SmolStr, targets: &mut Vec<Target>) {
    for variable in items(container.get("env")) {
        push(targets, "secrets", namespace, variable.at(&["valueFrom", "secretKeyRef", "name"]));
        push(
            targets,
            "configmaps",
            namespace,
            variable.at(&["valueFrom", "configMapKeyRef", "name"]),
        );
    }
    for source in items(container.get("envFrom")) {
        push(targets, "secrets", namespace, source.at(&["secretRef", "name"]));
        push(targets, "configmaps", namespace, source.at(&["configMapRef", "name"]));
    }
}

fn volume_targets(pod: &str, volume: &Value, namespace: &SmolStr, targets: &mut Vec<Target>) {
    push(targets, "secrets", namespace, volume.at(&["secret", "secretName"]));
    push(targets, "configmaps", namespace, volume.at(&["configMap", "name"]));
    push(
        targets,
        "persistentvolumeclaims",
        namespace,
        volume.at(&["persistentVolumeClaim", "claimName"]),
    );
    if volume.get("ephemeral").is_some() {
        let name = volume.get("name").and_then(Value::as_str).unwrap_or_default();
        targets.push(("persistentvolumeclaims", namespace.clone(), format!("{pod}-{name}").into()));
    }
    for source in items(volume.at(&["projected", "sources"])) {
        push(targets, "secrets", namespace, source.at(&["secret", "name"]));
        push(targets, "configmaps", namespace, source.at(&["configMap", "name"]));
    }
    collect_secret_refs(Some(volume), namespace, targets);
}

/// References that volume drivers hold: fields named like `secretRef`, `nodePublishSecretRef`.
fn collect_secret_refs(value: Option<&Value>, namespace: &SmolStr, targets: &mut Vec<Target>) {
    let Some(map) = value.and_then(Value::as_map) else { return };
    for (field, inner) in map.iter() {
        let Some(inner_map) = inner.as_map() else { continue };
        if field.ends_with("ecretRef") {
            push_ref(targets, namespace, inner_map);
        } else {
            collect_secret_refs(Some(inner), namespace, targets);
        }
    }
    if let Some(name) = map.get("secretName").filter(|_| map.contains_key("shareName")) {
        push(targets, "secrets", namespace, Some(name));
    }
}

fn push_ref(targets: &mut Vec<Target>, namespace: &SmolStr, reference: &Map) {
    let namespace =
        reference.get("namespace").and_then(Value::as_str).map_or(namespace.clone(), SmolStr::from);
    push(targets, "secrets", &namespace, reference.get("name"));
}

fn push(
    targets: &mut Vec<Target>,
    resource: &'static str,
    namespace: &SmolStr,
    name: Option<&Value>,
) {
    if let Some(name) = name.and_then(Value::as_str).filter(|name| !name.is_empty()) {
        targets.push((resource, namespace.clone(), name.into()));
    }
}

fn items(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_list).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery::value;

    fn pod(node: &str) -> Object {
        Object::from_value(value!({
            "metadata": {"name": "p", "namespace": "a"},
            "spec": {
                "nodeName": node,
                "serviceAccountName": "bot",
                "containers": [{"name": "c", "env": [
                    {"name": "X", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "x"}}},
                ]}],
                "volumes": [
                    {"name": "s", "secret": {"secretName": "password"}},
                    {"name": "d", "persistentVolumeClaim": {"claimName": "data"}},
                ],
            },
        }))
        .unwrap()
    }

    fn can(
        graph: &NodeGraph,
        node: &str,
        verb: &str,
        resource: &str,
        name: &str,
        fields: &str,
    ) -> bool {
        let user = UserInfo {
            name: format!("system:node:{node}").into(),
            groups: vec!["system:nodes".into()],
            ..UserInfo::default()
        };
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let namespace = if matches!(resource, "nodes" | "persistentvolumes") { "" } else { "a" };
        let query = Query {
            is_resource: true,
            verb,
            resource,
            subresource,
            namespace,
            name,
            field_selector: fields,
            ..Query::default()
        };
        graph.authorize(&user, &query).allowed()
    }

    #[test]
    fn a_node_reads_what_its_pods_need() {
        let mut graph = NodeGraph::default();
        graph.upsert_pod(&pod("n1"));
        for (resource, name) in [("secrets", "password"), ("configmaps", "settings"), ("pods", "p")]
        {
            assert!(can(&graph, "n1", "get", resource, name, ""), "{resource}");
            assert!(!can(&graph, "n2", "get", resource, name, ""), "{resource}");
        }
        assert!(can(&graph, "n1", "create", "serviceaccounts/token", "bot", ""));
        assert!(!can(&graph, "n1", "create", "serviceaccounts/token", "other", ""));
        assert!(!can(&graph, "n1", "list", "secrets", "", ""));
        assert!(!can(&graph, "n1", "delete", "secrets", "password", ""));
        graph.upsert_pod(&pod("n2"));
        assert!(!can(&graph, "n1", "get", "secrets", "password", ""));
        graph.remove_pod("a", "p");
        assert!(!can(&graph, "n2", "get", "secrets", "password", ""));
        assert!(graph.needed.is_empty());
    }

    #[test]
    fn a_node_reaches_the_volume_behind_a_claim() {
        let mut graph = NodeGraph::default();
        graph.upsert_pod(&pod("n1"));
        let volume = Object::from_value(value!({
            "metadata": {"name": "pv"},
            "spec": {
                "claimRef": {"namespace": "a", "name": "data"},
                "csi": {"nodeStageSecretRef": {"namespace": "a", "name": "stage"}},
            },
        }));
        graph.upsert_volume(&volume.unwrap());
        assert!(can(&graph, "n1", "get", "persistentvolumes", "pv", ""));
        assert!(can(&graph, "n1", "get", "secrets", "stage", ""));
        assert!(!can(&graph, "n2", "get", "persistentvolumes", "pv", ""));
    }

    #[test]
    fn a_node_lists_its_own_pods_and_writes_its_own_node() {
        let graph = NodeGraph::default();
        assert!(can(&graph, "n1", "list", "pods", "", "spec.nodeName=n1"));
        assert!(!can(&graph, "n1", "list", "pods", "", ""));
        assert!(!can(&graph, "n1", "watch", "pods", "", "spec.nodeName=n2"));
        assert!(can(&graph, "n1", "patch", "nodes/status", "n1", ""));
        assert!(!can(&graph, "n1", "get", "nodes", "n2", ""));
        assert!(can(&graph, "n1", "create", "nodes", "", ""));
        assert!(can(&graph, "n1", "watch", "services", "", ""));
        assert!(!can(&graph, "n1", "delete", "nodes", "n1", ""));
    }
}
