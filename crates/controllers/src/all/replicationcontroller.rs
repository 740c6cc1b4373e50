//! Keeps `spec.replicas` pods alive for the older kind, by the rules of ReplicaSets.

use client::Key;
use stdx::Timestamp;

use super::replicaset::reconcile_kind;
use crate::{plan::*, resources::*};

pub const CONTROLLER: Controller = Controller {
    name: "replicationcontroller-controller",
    account: "replication-controller",
    primary: &REPLICATION_CONTROLLERS,
    watches: &[adopted_by(&PODS)],
    rbac: &[
        allow(&PODS, &["create", "delete", "patch"]),
        allow_sub(&REPLICATION_CONTROLLERS, "status", &["update"]),
    ],
    workers: 5,
    work: Work::Reconcile(reconcile),
};

fn reconcile(key: &Key, world: &World, now: Timestamp) -> Plan {
    reconcile_kind(&REPLICATION_CONTROLLERS, key, world, now)
}
