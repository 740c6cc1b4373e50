//! The check that keeps users from granting themselves or others more than they have.

use machinery::Object;
use std::sync::PoisonError;

use super::{
    Authorizer, MASTERS, Query,
    rbac::{Rule, missing_rules, rules_of},
};
use crate::UserInfo;

const GROUP: &str = "rbac.authorization.k8s.io";

/// Whether `user` may write this role or binding; the reason why not.
pub fn check(
    authorizer: &Authorizer,
    user: &UserInfo,
    resource: &str,
    object: &Object,
    old: Option<&Object>,
) -> Result<(), String> {
    if user.groups.iter().any(|group| group == MASTERS) {
        return Ok(());
    }
    let same = |field: &str| old.is_some_and(|old| old.at(&[field]) == object.at(&[field]));
    match resource {
        "roles" | "clusterroles" => {
            if same("rules") && same("aggregationRule")
                || may(authorizer, user, "escalate", resource, object)
            {
                return Ok(());
            }
            if object.at(&["aggregationRule"]).is_some_and(|rule| !rule.is_null()) {
                let everything = Rule {
                    verbs: vec!["*".into()],
                    api_groups: vec!["*".into()],
                    resources: vec!["*".into()],
                    ..Rule::default()
                };
                return covers(authorizer, user, object.namespace(), &[everything], || {
                    "must have cluster-admin privileges to use an aggregationRule".into()
                });
            }
            granted(authorizer, user, object.namespace(), &rules_of(object))
        }
        "rolebindings" | "clusterrolebindings" => {
            if same("subjects") && same("roleRef") {
                return Ok(());
            }
            let (kind, name) =
                (object.str_at(&["roleRef", "kind"]), object.str_at(&["roleRef", "name"]));
            let role = if kind == "ClusterRole" { "clusterroles" } else { "roles" };
            let query = Query {
                is_resource: true,
                verb: "bind",
                group: GROUP,
                version: "v1",
                resource: role,
                namespace: object.namespace(),
                name,
                ..Query::default()
            };
            if authorizer.authorize(user, &query).allowed() {
                return Ok(());
            }
            let rbac = authorizer.rbac.read().unwrap_or_else(PoisonError::into_inner);
            let rules = rbac.role_rules(object.namespace(), kind, name);
            drop(rbac);
            match rules {
                Some(rules) => granted(authorizer, user, object.namespace(), &rules),
                None => Err(format!("{}.{GROUP} {name:?} not found", kind.to_lowercase())),
            }
        }
        _ => Ok(()),
    }
}

fn may(
    authorizer: &Authorizer,
    user: &UserInfo,
    verb: &str,
    resource: &str,
    object: &Object,
) -> bool {
    let query = Query {
        is_resource: true,
        verb,
        group: GROUP,
        version: "v1",
        resource,
        namespace: object.namespace(),
        name: object.name(),
        ..Query::default()
    };
    authorizer.authorize(user, &query).allowed()
}

fn granted(
    authorizer: &Authorizer,
    user: &UserInfo,
    namespace: &str,
    rules: &[Rule],
) -> Result<(), String> {
    covers(authorizer, user, namespace, rules, || String::new())
}

fn covers(
    authorizer: &Authorizer,
    user: &UserInfo,
    namespace: &str,
    rules: &[Rule],
    instead: impl Fn() -> String,
) -> Result<(), String> {
    let missing = missing_rules(&authorizer.rules_for(user, namespace), rules);
    if missing.is_empty() {
        return Ok(());
    }
    let text = instead();
    if !text.is_empty() {
        return Err(text);
    }
    let groups: Vec<String> = user.groups.iter().map(|group| format!("{group:?}")).collect();
    Err(format!(
        "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        groups.join(" "),
        missing.join("\n")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::rbac::RbacKind;
    use machinery::{Value, value};

    fn object(json: Value) -> Object {
        Object::from_value(json).unwrap()
    }

    fn jane() -> UserInfo {
        UserInfo {
            name: "jane".into(),
            groups: vec!["system:authenticated".into()],
            ..UserInfo::default()
        }
    }

    fn authorizer(verbs: &[&str]) -> Authorizer {
        let authorizer = Authorizer::default();
        let mut rbac = authorizer.rbac.write().unwrap();
        let rules = value!([
            {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]},
            {"verbs": verbs, "apiGroups": [GROUP], "resources": ["clusterroles", "roles"]},
        ]);
        let role = object(value!({"metadata": {"name": "mine"}}));
        let mut role = role;
        role.root_mut().insert("rules", rules);
        rbac.upsert(RbacKind::Role, &role);
        rbac.upsert(
            RbacKind::Role,
            &object(value!({
                "metadata": {"name": "strong"},
                "rules": [{"verbs": ["delete"], "apiGroups": [""], "resources": ["nodes"]}],
            })),
        );
        rbac.upsert(
            RbacKind::Binding,
            &object(value!({
                "metadata": {"name": "b"},
                "subjects": [{"kind": "User", "name": "jane"}],
                "roleRef": {"kind": "ClusterRole", "name": "mine"},
            })),
        );
        drop(rbac);
        authorizer
    }

    fn binding(role: &str) -> Object {
        object(value!({
            "metadata": {"name": "new"},
            "subjects": [{"kind": "User", "name": "joe"}],
            "roleRef": {"kind": "ClusterRole", "name": role},
        }))
    }

    #[test]
    fn only_held_rules_can_be_bound() {
        let authorizer = authorizer(&["create"]);
        let check =
            |role: &str| check(&authorizer, &jane(), "clusterrolebindings", &binding(role), None);
        assert_eq!(check("mine"), Ok(()));
        assert_eq!(
            check("strong").unwrap_err(),
            "user \"jane\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n\
             {APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"delete\"]}"
        );
        assert_eq!(
            check("none").unwrap_err(),
            "clusterrole.rbac.authorization.k8s.io \"none\" not found"
        );
    }

    #[test]
    fn bind_and_escalate_lift_the_limit() {
        let authorizer = authorizer(&["bind", "escalate"]);
        assert_eq!(
            check(&authorizer, &jane(), "clusterrolebindings", &binding("strong"), None),
            Ok(())
        );
        let role = object(value!({
            "metadata": {"name": "own"},
            "rules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
        }));
        assert_eq!(check(&authorizer, &jane(), "clusterroles", &role, None), Ok(()));
    }
}
