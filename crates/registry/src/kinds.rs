//! The table of kinds that have particulars. What is not in it is served by the facts in
//! [`PLAIN`].

pub mod core;

mod apps;
mod auth;
mod batch;
mod cells;
mod pod_spec;
mod pod_validation;

use std::sync::Arc;

use crate::{
    facts::{Facts, PLAIN},
    strategy::Strategy,
};
use self::core::{
    config, endpoints, events, namespaces, nodes, pods, quotas,
    services::Services,
    volumes,
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
];

/// The strategy of a resource; `group` is the one that it is stored in.
pub fn strategy(group: &str, resource: &str) -> Arc<dyn Strategy> {
    if (group, resource) == ("", "services") {
        return Arc::new(Services);
    }
    let line = KINDS.iter().find(|(g, r, _)| *g == group && *r == resource);
    Arc::new(*line.map_or(&PLAIN, |(_, _, facts)| facts))
}
