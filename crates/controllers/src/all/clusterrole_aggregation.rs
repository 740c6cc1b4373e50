//! Fills ClusterRoles that have an aggregation rule with the rules of those it selects.

use client::{Change, Key};
use machinery::Value;
use stdx::Timestamp;

use crate::{conditions, plan::*, resources::*, selector::Selector};

pub const CONTROLLER: Controller = Controller {
    name: "clusterrole-aggregation-controller",
    account: "clusterrole-aggregation-controller",
    primary: &CLUSTER_ROLES,
    watches: &[mapped(&CLUSTER_ROLES, aggregating)],
    rbac: &[allow(&CLUSTER_ROLES, &["update", "escalate"])],
    workers: 1,
    work: Work::Reconcile(reconcile),
};

fn aggregating(_: &Change, world: &World) -> Vec<Key> {
    let roles = world.list(&CLUSTER_ROLES).all();
    let has_rule = |role: &&std::sync::Arc<client::Cached>| {
        role.object().is_ok_and(|role| role.at(&["aggregationRule"]).is_some())
    };
    roles.iter().filter(has_rule).map(|role| role.key.clone()).collect()
}

fn reconcile(key: &Key, world: &World, _: Timestamp) -> Plan {
    let mut plan = Plan::none();
    let Some(mut role) = world.object(&CLUSTER_ROLES, key) else { return plan };
    if role.at(&["aggregationRule"]).is_none() {
        return plan;
    }
    let mut rules: Vec<Value> = Vec::new();
    for selector in role.list_at(&["aggregationRule", "clusterRoleSelectors"]) {
        let Some(selector) = Selector::parse(Some(selector)) else { return plan };
        for other in world.list(&CLUSTER_ROLES).all() {
            if other.key == *key || !selector.matches(&other.labels) {
                continue;
            }
            let Ok(other) = other.object() else { continue };
            for rule in other.list_at(&["rules"]) {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    let rules = Value::from(rules);
    let old = role.root().get("rules").cloned().unwrap_or_default();
    let none_yet = old.is_null() && rules.as_list() == Some(&[]);
    if !none_yet && !conditions::same(&old, &rules) {
        role.root_mut().insert("rules", rules);
        plan.push(Intent::Update { resource: &CLUSTER_ROLES, subresource: "", object: role });
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{cached, world};
    use machinery::value;

    #[test]
    fn takes_the_rules_of_what_it_selects() {
        let whole = value!({"metadata": {"name": "whole"}, "rules": null,
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "whole"}}]}});
        let part = value!({"metadata": {"name": "part", "labels": {"to": "whole"}}, "rules": [{"verbs": ["get"]}]});
        let other = value!({"metadata": {"name": "other"}, "rules": [{"verbs": ["list"]}]});
        let world = world([(&CLUSTER_ROLES, vec![cached(whole), cached(part), cached(other)])]);
        let plan = reconcile(&Key::new("", "whole"), &world, Timestamp::default());
        let Intent::Update { object, .. } = &plan.steps[0].intent else { panic!() };
        assert_eq!(object.at(&["rules"]), Some(&value!([{"verbs": ["get"]}])));
        assert!(reconcile(&Key::new("", "part"), &world, Timestamp::default()).is_empty());
    }
}
