//! The resources that controllers read and write.

use client::Resource;

pub static PODS: Resource = Resource::namespaced("", "v1", "pods", "Pod");
pub static SERVICES: Resource = Resource::namespaced("", "v1", "services", "Service");
pub static ENDPOINTS: Resource = Resource::namespaced("", "v1", "endpoints", "Endpoints");
pub static CONFIG_MAPS: Resource = Resource::namespaced("", "v1", "configmaps", "ConfigMap");
pub static SECRETS: Resource = Resource::namespaced("", "v1", "secrets", "Secret");
pub static SERVICE_ACCOUNTS: Resource =
    Resource::namespaced("", "v1", "serviceaccounts", "ServiceAccount");
pub static REPLICATION_CONTROLLERS: Resource =
    Resource::namespaced("", "v1", "replicationcontrollers", "ReplicationController");
pub static RESOURCE_QUOTAS: Resource =
    Resource::namespaced("", "v1", "resourcequotas", "ResourceQuota");
pub static PERSISTENT_VOLUME_CLAIMS: Resource =
    Resource::namespaced("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim");
pub static EVENTS: Resource = client::events::EVENTS;
pub static NODES: Resource = Resource::cluster("", "v1", "nodes", "Node");
pub static NAMESPACES: Resource = Resource::cluster("", "v1", "namespaces", "Namespace");

pub static DEPLOYMENTS: Resource = Resource::namespaced("apps", "v1", "deployments", "Deployment");
pub static REPLICA_SETS: Resource = Resource::namespaced("apps", "v1", "replicasets", "ReplicaSet");
pub static DAEMON_SETS: Resource = Resource::namespaced("apps", "v1", "daemonsets", "DaemonSet");
pub static STATEFUL_SETS: Resource =
    Resource::namespaced("apps", "v1", "statefulsets", "StatefulSet");
pub static CONTROLLER_REVISIONS: Resource =
    Resource::namespaced("apps", "v1", "controllerrevisions", "ControllerRevision");

pub static JOBS: Resource = Resource::namespaced("batch", "v1", "jobs", "Job");
pub static CRON_JOBS: Resource = Resource::namespaced("batch", "v1", "cronjobs", "CronJob");

pub static ENDPOINT_SLICES: Resource =
    Resource::namespaced("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice");
pub static LEASES: Resource = client::leader::LEASES;
pub static POD_DISRUPTION_BUDGETS: Resource =
    Resource::namespaced("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget");
pub static CLUSTER_ROLES: Resource =
    Resource::cluster("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole");
pub static CERTIFICATE_SIGNING_REQUESTS: Resource = Resource::cluster(
    "certificates.k8s.io",
    "v1",
    "certificatesigningrequests",
    "CertificateSigningRequest",
);
pub static SUBJECT_ACCESS_REVIEWS: Resource =
    Resource::cluster("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview");

/// Everything there is of these is made by users of the extension API.
pub static CUSTOM_RESOURCE_DEFINITIONS: Resource = Resource::cluster(
    "apiextensions.k8s.io",
    "v1",
    "customresourcedefinitions",
    "CustomResourceDefinition",
);
