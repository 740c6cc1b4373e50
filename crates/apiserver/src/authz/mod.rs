//! Who may do what: the node authorizer, then roles.
//!
//! Flow: [`Authorizer::authorize`] asks, in order, the break-glass group, [`node`] and [`rbac`];
//! the first that allows ends it. Nobody's denial is final until all were asked.

pub mod bootstrap;
pub mod escalation;
pub mod node;
pub mod rbac;

use std::sync::{PoisonError, RwLock};

use crate::{UserInfo, request_info::RequestInfo};
use node::NodeGraph;
use rbac::{RbacIndex, Rule};

/// The group whose members may do everything: only the administrator of the break-glass
/// kubeconfig is in it.
pub const MASTERS: &str = "system:masters";

/// One question: may this user do that?
#[derive(Clone, Copy, Debug, Default)]
pub struct Query<'a> {
    pub is_resource: bool,
    pub verb: &'a str,
    pub group: &'a str,
    pub version: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    pub path: &'a str,
    /// The field selector of a list or watch, empty when there is none.
    pub field_selector: &'a str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Allowed, and by what.
    Allow(String),
    /// Nothing allows it; the text, perhaps empty, says what was missing.
    NoOpinion(String),
}

impl Decision {
    pub fn allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }
}

impl<'a> Query<'a> {
    pub fn of(info: &'a RequestInfo, field_selector: &'a str) -> Self {
        Self {
            is_resource: info.is_resource,
            verb: &info.verb,
            group: &info.group,
            version: &info.version,
            resource: &info.resource,
            subresource: &info.subresource,
            namespace: &info.namespace,
            name: &info.name,
            path: &info.path,
            field_selector,
        }
    }

    fn full_resource(&self) -> String {
        match self.subresource {
            "" => self.resource.to_owned(),
            subresource => format!("{}/{subresource}", self.resource),
        }
    }
}

/// All authorizers of a server over their indexes.
#[derive(Default)]
pub struct Authorizer {
    pub rbac: RwLock<RbacIndex>,
    pub nodes: RwLock<NodeGraph>,
}

impl Authorizer {
    pub fn authorize(&self, user: &UserInfo, query: &Query<'_>) -> Decision {
        if user.groups.iter().any(|group| group == MASTERS) {
            return Decision::Allow(String::new());
        }
        let by_node =
            self.nodes.read().unwrap_or_else(PoisonError::into_inner).authorize(user, query);
        if by_node.allowed() {
            return by_node;
        }
        let by_role =
            self.rbac.read().unwrap_or_else(PoisonError::into_inner).authorize(user, query);
        match (by_node, by_role) {
            (Decision::NoOpinion(node), Decision::NoOpinion(role)) => {
                let said =
                    [node, role].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>();
                Decision::NoOpinion(said.join(", "))
            }
            (_, allowed) => allowed,
        }
    }

    /// Every rule that roles grant to the user in a namespace.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        self.rbac.read().unwrap_or_else(PoisonError::into_inner).rules_for(user, namespace)
    }
}

/// What a refused user is told, without the object in front.
pub fn refusal(user: &UserInfo, query: &Query<'_>, why: &str) -> String {
    let name = &user.name;
    let text = if !query.is_resource {
        format!("User {name:?} cannot {} path {:?}", query.verb, query.path)
    } else {
        let place = match query.namespace {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace {namespace:?}"),
        };
        let (verb, resource, group) = (query.verb, query.full_resource(), query.group);
        format!("User {name:?} cannot {verb} resource {resource:?} in API group {group:?} {place}")
    };
    if why.is_empty() { text } else { format!("{text}: {why}") }
}

/// The 403 of a refused request.
pub fn forbidden(user: &UserInfo, query: &Query<'_>, why: &str) -> api::Status {
    api::Status::forbidden(query.group, query.resource, query.name, &refusal(user, query, why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query;

    fn message(url: &str) -> String {
        let parsed = query::Query::parse("");
        let info = RequestInfo::parse(&http::Method::GET, url, &parsed);
        let user = UserInfo { name: "jane".into(), ..UserInfo::default() };
        forbidden(&user, &Query::of(&info, ""), "").message
    }

    #[test]
    fn refusals_read_as_in_kubernetes() {
        assert_eq!(
            message("/api/v1/namespaces/default/pods"),
            r#"pods is forbidden: User "jane" cannot list resource "pods" in API group "" in the namespace "default""#
        );
        assert_eq!(
            message("/apis/apps/v1/namespaces/a/deployments/web/scale"),
            r#"deployments.apps "web" is forbidden: User "jane" cannot get resource "deployments/scale" in API group "apps" in the namespace "a""#
        );
        assert_eq!(
            message("/api/v1/nodes"),
            r#"nodes is forbidden: User "jane" cannot list resource "nodes" in API group "" at the cluster scope"#
        );
        assert_eq!(message("/metrics"), r#"forbidden: User "jane" cannot get path "/metrics""#);
    }
}
