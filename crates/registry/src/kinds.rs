//! The table of kinds that have particulars. What is not in it is served by the facts in
//! [`PLAIN`].

pub mod core;

mod apps;
mod auth;
mod batch;
mod cells;
mod cluster;
mod networking;
mod pod_spec;
mod pod_validation;
mod policy;
mod storage;

use std::sync::Arc;

use self::core::{
    config, endpoints, events, namespaces, nodes, pods, quotas, services::Services, volumes,
};
use crate::{
    facts::{Facts, PLAIN},
    strategy::Strategy,
};

type Line = (&'static str, &'static str, &'static Facts);

/// One line per kind: group, resource, facts.
#[rustfmt::skip]
const KINDS: &[Line] = &[
    ("", "pods", &pods::FACTS),
    ("", "namespaces", &namespaces::FACTS),
    ("", "nodes", &nodes::FACTS),
    ("", "endpoints", &endpoints::ENDPOINTS),
    ("discovery.k8s.io", "endpointslices", &endpoints::ENDPOINT_SLICES),
    ("", "configmaps", &config::CONFIG_MAPS),
    ("", "secrets", &config::SECRETS),
    ("", "serviceaccounts", &config::SERVICE_ACCOUNTS),
    ("", "events", &events::FACTS),
    ("", "limitranges", &quotas::LIMIT_RANGES),
    ("", "resourcequotas", &quotas::RESOURCE_QUOTAS),
    ("", "podtemplates", &quotas::POD_TEMPLATES),
    ("", "replicationcontrollers", &quotas::REPLICATION_CONTROLLERS),
    ("", "persistentvolumes", &volumes::VOLUMES),
    ("", "persistentvolumeclaims", &volumes::CLAIMS),
    ("apps", "deployments", &apps::DEPLOYMENTS),
    ("apps", "replicasets", &apps::REPLICA_SETS),
    ("apps", "daemonsets", &apps::DAEMON_SETS),
    ("apps", "statefulsets", &apps::STATEFUL_SETS),
    ("apps", "controllerrevisions", &apps::CONTROLLER_REVISIONS),
    ("batch", "jobs", &batch::JOBS),
    ("batch", "cronjobs", &batch::CRON_JOBS),
    ("rbac.authorization.k8s.io", "roles", &auth::ROLES),
    ("rbac.authorization.k8s.io", "clusterroles", &auth::CLUSTER_ROLES),
    ("rbac.authorization.k8s.io", "rolebindings", &auth::ROLE_BINDINGS),
    ("rbac.authorization.k8s.io", "clusterrolebindings", &auth::CLUSTER_ROLE_BINDINGS),
    ("certificates.k8s.io", "certificatesigningrequests", &auth::CERTIFICATE_REQUESTS),
    ("certificates.k8s.io", "clustertrustbundles", &auth::TRUST_BUNDLES),
    ("certificates.k8s.io", "podcertificaterequests", &auth::POD_CERTIFICATE_REQUESTS),
    ("storage.k8s.io", "storageclasses", &storage::CLASSES),
    ("storage.k8s.io", "volumeattributesclasses", &storage::ATTRIBUTES_CLASSES),
    ("storage.k8s.io", "volumeattachments", &storage::ATTACHMENTS),
    ("storage.k8s.io", "csinodes", &storage::CSI_NODES),
    ("storage.k8s.io", "csidrivers", &storage::CSI_DRIVERS),
    ("storage.k8s.io", "csistoragecapacities", &storage::CSI_CAPACITIES),
    ("resource.k8s.io", "deviceclasses", &storage::RESOURCE_OBJECTS),
    ("resource.k8s.io", "resourceclaims", &storage::RESOURCE_CLAIMS),
    ("resource.k8s.io", "resourceclaimtemplates", &storage::RESOURCE_OBJECTS),
    ("resource.k8s.io", "devicetaintrules", &storage::TAINT_RULES),
    ("resource.k8s.io", "resourceslices", &storage::RESOURCE_SLICES),
    ("networking.k8s.io", "ingresses", &networking::INGRESSES),
    ("networking.k8s.io", "ingressclasses", &networking::INGRESS_CLASSES),
    ("networking.k8s.io", "networkpolicies", &networking::NETWORK_POLICIES),
    ("networking.k8s.io", "servicecidrs", &networking::SERVICE_CIDRS),
    ("networking.k8s.io", "ipaddresses", &networking::IP_ADDRESSES),
    ("policy", "poddisruptionbudgets", &policy::BUDGETS),
    ("autoscaling", "horizontalpodautoscalers", &policy::AUTOSCALERS),
    ("coordination.k8s.io", "leases", &cluster::LEASES),
    ("scheduling.k8s.io", "priorityclasses", &cluster::PRIORITY_CLASSES),
    ("node.k8s.io", "runtimeclasses", &cluster::RUNTIME_CLASSES),
    ("flowcontrol.apiserver.k8s.io", "flowschemas", &cluster::FLOW_SCHEMAS),
    ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations", &cluster::PRIORITY_LEVELS),
    ("admissionregistration.k8s.io", "validatingwebhookconfigurations", &cluster::VALIDATING_WEBHOOKS),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", &cluster::MUTATING_WEBHOOKS),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies", &cluster::VALIDATING_POLICIES),
    ("admissionregistration.k8s.io", "mutatingadmissionpolicies", &cluster::MUTATING_POLICIES),
    ("admissionregistration.k8s.io", "validatingadmissionpolicybindings", &cluster::POLICY_BINDINGS),
    ("admissionregistration.k8s.io", "mutatingadmissionpolicybindings", &cluster::POLICY_BINDINGS),
    ("apiextensions.k8s.io", "customresourcedefinitions", &cluster::DEFINITIONS),
    ("storagemigration.k8s.io", "storageversionmigrations", &cluster::MIGRATIONS),
    ("apiregistration.k8s.io", "apiservices", &cluster::API_SERVICES),
];

/// The strategy of a resource; `group` is the one that it is stored in.
pub fn strategy(group: &str, resource: &str) -> Arc<dyn Strategy> {
    if (group, resource) == ("", "services") {
        return Arc::new(Services);
    }
    let line = KINDS.iter().find(|(g, r, _)| *g == group && *r == resource);
    Arc::new(*line.map_or(&PLAIN, |(_, _, facts)| facts))
}

/// Group and resource of each kind in the table.
#[cfg(test)]
pub(crate) fn table() -> impl Iterator<Item = (&'static str, &'static str)> {
    KINDS.iter().map(|(group, resource, _)| (*group, *resource)).chain([("", "services")])
}
