//! A kubelet changes its own node and the pods bound to it, and nothing about how they are placed.

use api::Status;
use async_trait::async_trait;
use machinery::{Map, Object};
use registry::{Attributes, Operation};

use super::{Plugin, World, is_resource, refuse};
use crate::authz::node::node_of;

pub struct NodeRestriction;
pub const PLUGIN: NodeRestriction = NodeRestriction;

const MIRROR: &str = "kubernetes.io/config.mirror";
const RESTRICTED: &str = "node-restriction.kubernetes.io/";
/// Labels below `kubernetes.io` and `k8s.io` that a kubelet may set on its node.
const ALLOWED_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
const ALLOWED_PREFIXES: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

#[async_trait]
impl Plugin for NodeRestriction {
    async fn validate(&self, _: &World, attributes: &Attributes<'_>) -> Result<(), Status> {
        let Some(node) = node_of(&attributes.context.user) else { return Ok(()) };
        let checked = match attributes.subresource {
            "" if is_resource(attributes, "", "pods") => pod(attributes, node),
            "status" if is_resource(attributes, "", "pods") => pod_status(attributes, node),
            "eviction" if is_resource(attributes, "", "pods") => Ok(()),
            _ if is_resource(attributes, "", "pods") => {
                let sub = attributes.subresource;
                Err(format!(
                    "unexpected pod subresource {sub:?}, only 'status' and 'eviction' are allowed"
                ))
            }
            _ if is_resource(attributes, "", "nodes") => own_node(attributes, node),
            "" if is_resource(attributes, "coordination.k8s.io", "leases") => {
                lease(attributes, node)
            }
            _ if is_resource(attributes, "storage.k8s.io", "csinodes") => {
                named(attributes, node, "CSINode")
            }
            _ => Ok(()),
        };
        checked.map_err(|why| refuse(attributes, &why))
    }
}

fn pod(attributes: &Attributes<'_>, node: &str) -> Result<(), String> {
    match attributes.operation {
        Operation::Create => attributes.object.as_ref().map_or(Ok(()), |pod| mirror_pod(pod, node)),
        Operation::Delete => bound_here(attributes.old_object.as_ref(), node, "delete"),
        operation => Err(format!(
            "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
            operation.as_str()
        )),
    }
}

fn mirror_pod(pod: &Object, node: &str) -> Result<(), String> {
    if pod.annotation(MIRROR).is_none() {
        return Err(format!(
            "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
        ));
    }
    if pod.str_at(&["spec", "nodeName"]) != node {
        return Err(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    if !pod.str_at(&["spec", "serviceAccountName"]).is_empty() {
        return Err(format!("node {node:?} can not create pods that reference a service account"));
    }
    let owners: Vec<_> = pod.owner_references().collect();
    let own = matches!(owners.as_slice(), [owner] if owner.kind == "Node" && owner.name == node && owner.controller);
    if owners.is_empty() || own {
        Ok(())
    } else {
        Err(format!("node {node:?} can only create pods with an owner reference set to itself"))
    }
}

fn pod_status(attributes: &Attributes<'_>, node: &str) -> Result<(), String> {
    bound_here(attributes.old_object.as_ref(), node, "update status for")?;
    let labels = |object: &Option<Object>| object.as_ref().and_then(Object::labels).cloned();
    if labels(&attributes.object) == labels(&attributes.old_object) {
        Ok(())
    } else {
        Err(format!("node {node:?} cannot update labels through pod status"))
    }
}

fn bound_here(pod: Option<&Object>, node: &str, what: &str) -> Result<(), String> {
    match pod {
        Some(pod) if pod.str_at(&["spec", "nodeName"]) != node => {
            Err(format!("node {node:?} can only {what} pods with spec.nodeName set to itself"))
        }
        _ => Ok(()),
    }
}

fn own_node(attributes: &Attributes<'_>, node: &str) -> Result<(), String> {
    named(attributes, node, "node")?;
    let Some(new) = &attributes.object else { return Ok(()) };
    let empty = Map::new();
    let labels = new.labels().unwrap_or(&empty);
    let old_labels = attributes.old_object.as_ref().and_then(Object::labels).unwrap_or(&empty);
    let changed =
        labels.iter().filter(|(key, value)| old_labels.get(key) != Some(value)).map(|(key, _)| key);
    let removed = old_labels.keys().filter(|key| !labels.contains_key(key));
    let forbidden: Vec<&str> =
        changed.chain(removed).map(|key| key.as_str()).filter(|key| is_forbidden(key)).collect();
    if !forbidden.is_empty() {
        return Err(format!("is not allowed to modify labels: {}", forbidden.join(", ")));
    }
    let taints_changed = attributes
        .old_object
        .as_ref()
        .is_some_and(|old| old.list_at(&["spec", "taints"]) != new.list_at(&["spec", "taints"]));
    if taints_changed {
        Err(format!("node {node:?} is not allowed to modify taints"))
    } else {
        Ok(())
    }
}

fn is_forbidden(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    if label.starts_with(RESTRICTED) || domain.ends_with(".node-restriction.kubernetes.io") {
        return true;
    }
    let reserved = ["kubernetes.io", "k8s.io"].iter().any(|root| {
        domain == *root || domain.strip_suffix(root).is_some_and(|rest| rest.ends_with('.'))
    });
    let allowed = ALLOWED_LABELS.contains(&label)
        || ALLOWED_PREFIXES.iter().any(|prefix| {
            domain == *prefix || domain.strip_suffix(prefix).is_some_and(|rest| rest.ends_with('.'))
        });
    reserved && !allowed
}

fn lease(attributes: &Attributes<'_>, node: &str) -> Result<(), String> {
    if attributes.namespace != "kube-node-lease" {
        return Err("can only access leases in the \"kube-node-lease\" system namespace".into());
    }
    named(attributes, node, "node lease")
}

fn named(attributes: &Attributes<'_>, node: &str, what: &str) -> Result<(), String> {
    let name = match attributes.name {
        "" => attributes.object.as_ref().map_or("", |object| object.name()),
        name => name,
    };
    if name == node {
        Ok(())
    } else {
        Err(format!("node {node:?} is not allowed to modify {what} {name:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_place_pods_are_the_administrators() {
        for allowed in [
            "kubernetes.io/hostname",
            "example.com/rack",
            "node.kubernetes.io/x",
            "topology.kubernetes.io/zone",
        ] {
            assert!(!is_forbidden(allowed), "{allowed}");
        }
        for forbidden in
            ["node-restriction.kubernetes.io/x", "node-role.kubernetes.io/master", "a.k8s.io/b"]
        {
            assert!(is_forbidden(forbidden), "{forbidden}");
        }
    }
}
