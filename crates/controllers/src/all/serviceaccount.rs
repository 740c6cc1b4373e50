//! Gives every namespace its `default` service account.

use client::{Change, Key};
use machinery::Object;
use stdx::Timestamp;

use crate::{plan::*, resources::*};

pub const CONTROLLER: Controller = Controller {
    name: "serviceaccount-controller",
    account: "service-account-controller",
    primary: &NAMESPACES,
    watches: &[mapped(&SERVICE_ACCOUNTS, namespace_of_deleted)],
    rbac: &[allow(&SERVICE_ACCOUNTS, &["create"])],
    workers: 1,
    work: Work::Reconcile(reconcile),
};

fn namespace_of_deleted(change: &Change, _: &World) -> Vec<Key> {
    match &change.new {
        Some(_) => Vec::new(),
        None => vec![Key::new("", &change.key().namespace)],
    }
}

fn reconcile(key: &Key, world: &World, _: Timestamp) -> Plan {
    let mut plan = Plan::none();
    let alive = world.get(&NAMESPACES, key).is_some_and(|namespace| !namespace.is_deleting());
    if alive && world.get(&SERVICE_ACCOUNTS, &Key::new(&key.name, "default")).is_none() {
        let object = Object::new("v1", "ServiceAccount", &key.name, "default");
        plan.push(Intent::Create { resource: &SERVICE_ACCOUNTS, object });
    }
    plan
}
