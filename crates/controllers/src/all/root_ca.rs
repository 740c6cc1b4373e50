//! Publishes the cluster's certificates to every namespace as the ConfigMap `kube-root-ca.crt`.

use client::{Change, Key};
use machinery::{Object, value};
use stdx::Timestamp;

use crate::{plan::*, resources::*};

pub const CONTROLLER: Controller = Controller {
    name: "root-ca-certificate-publisher-controller",
    account: "root-ca-cert-publisher",
    primary: &NAMESPACES,
    watches: &[mapped(&CONFIG_MAPS, namespace_of)],
    rbac: &[allow(&CONFIG_MAPS, &["create", "update"])],
    workers: 1,
    work: Work::Reconcile(reconcile),
};

const NAME: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
/// What clients of a real cluster read there.
const DESCRIPTION_TEXT: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

fn namespace_of(change: &Change, _: &World) -> Vec<Key> {
    let key = change.key();
    if key.name == NAME { vec![Key::new("", &key.namespace)] } else { Vec::new() }
}

fn reconcile(key: &Key, world: &World, _: Timestamp) -> Plan {
    let mut plan = Plan::none();
    let Some(bundle) = &world.config().root_ca else { return plan };
    if world.get(&NAMESPACES, key).is_none_or(|namespace| namespace.is_deleting()) {
        return plan;
    }
    let data = value!({"ca.crt": bundle});
    match world.object(&CONFIG_MAPS, &Key::new(&key.name, NAME)) {
        None => {
            let mut object = Object::new("v1", "ConfigMap", &key.name, NAME);
            object.set_at(&["metadata", "annotations", DESCRIPTION], DESCRIPTION_TEXT);
            object.root_mut().insert("data", data);
            plan.push(Intent::Create { resource: &CONFIG_MAPS, object });
        }
        Some(mut object) => {
            let described = object.annotation(DESCRIPTION).is_some_and(|text| !text.is_empty());
            if object.root().get("data") == Some(&data) && described {
                return plan;
            }
            object.set_at(&["metadata", "annotations", DESCRIPTION], DESCRIPTION_TEXT);
            object.root_mut().insert("data", data);
            plan.push(Intent::Update { resource: &CONFIG_MAPS, subresource: "", object });
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, scenario::{cached, world_with}};

    #[test]
    fn what_was_edited_comes_back() {
        let namespace = || cached(value!({"metadata": {"name": "d"}}));
        let decide = |maps| {
            let config = Config { root_ca: Some("PEM".into()), ..Config::default() };
            let world = world_with(config, [(&NAMESPACES, vec![namespace()]), (&CONFIG_MAPS, maps)]);
            reconcile(&Key::new("", "d"), &world, Timestamp::default())
        };
        let made = decide(vec![]);
        let Intent::Create { object, .. } = &made.steps[0].intent else { panic!() };
        assert!(decide(vec![cached(object.clone().into_value())]).is_empty());
        let mut edited = object.clone();
        edited.set_at(&["data", "ca.crt"], "other");
        let repaired = decide(vec![cached(edited.into_value())]);
        assert_eq!(repaired.steps[0].intent.verb(), "update");
    }
}
