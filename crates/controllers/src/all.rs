//! The table of controllers: one line each.

use crate::Controller;

macro_rules! controllers {
    ($($module:ident)*) => {
        $(mod $module;)*
        /// Every controller there is, in the order in which they start.
        pub static ALL: &[&Controller] = &[$(&$module::CONTROLLER),*];
    };
}

controllers! {
    deployment
    replicaset
    replicationcontroller
    endpointslice
    endpoints
    serviceaccount
    root_ca
    namespace
    node_lifecycle
    taint_eviction
    pod_gc
    node_ipam
    load_balancer_pool
    csr_approving
    node_csr_approving
    csr_signing
    csr_cleaner
    garbage_collector
    daemonset
    statefulset
    job
    cronjob
    disruption
    ttl_after_finished
    clusterrole_aggregation
    token_cleaner
}
