//! Role-based access control: an index from subjects to the rules that their bindings grant.
//!
//! A decision looks only at the bindings of the user and of its groups, never at all bindings.

use machinery::{Object, Value};
use smol_str::SmolStr;
use std::{collections::BTreeMap, sync::Arc};

use super::{Decision, Query};
use crate::UserInfo;

/// All roles and bindings, kept up to date by [`RbacIndex::upsert`] and [`RbacIndex::remove`].
#[derive(Default)]
pub struct RbacIndex {
    /// Roles by namespace (empty for cluster roles) and name.
    roles: BTreeMap<Scoped, Arc<[Rule]>>,
    bindings: BTreeMap<Scoped, Binding>,
    /// Bindings by subject, then by the namespace that they hold in (empty: everywhere).
    by_subject: BTreeMap<Subject, BTreeMap<SmolStr, Vec<Scoped>>>,
}

type Scoped = (SmolStr, SmolStr);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    User(SmolStr),
    Group(SmolStr),
}

#[derive(Clone, Debug)]
struct Binding {
    subjects: Vec<Subject>,
    role_kind: SmolStr,
    role_name: SmolStr,
}

/// One `PolicyRule`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub verbs: Vec<SmolStr>,
    pub api_groups: Vec<SmolStr>,
    pub resources: Vec<SmolStr>,
    pub resource_names: Vec<SmolStr>,
    pub non_resource_urls: Vec<SmolStr>,
}

/// Which of the four kinds an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RbacKind {
    Role,
    Binding,
}

impl RbacIndex {
    pub fn upsert(&mut self, kind: RbacKind, object: &Object) {
        let key = (SmolStr::from(object.namespace()), SmolStr::from(object.name()));
        match kind {
            RbacKind::Role => {
                self.roles.insert(key, rules_of(object).into());
            }
            RbacKind::Binding => {
                self.unbind(&key);
                self.bind(key, Binding::read(object));
            }
        }
    }

    pub fn remove(&mut self, kind: RbacKind, namespace: &str, name: &str) {
        let key = (SmolStr::from(namespace), SmolStr::from(name));
        match kind {
            RbacKind::Role => {
                self.roles.remove(&key);
            }
            RbacKind::Binding => self.unbind(&key),
        }
    }

    fn bind(&mut self, key: Scoped, binding: Binding) {
        for subject in &binding.subjects {
            let by_namespace = self.by_subject.entry(subject.clone()).or_default();
            by_namespace.entry(key.0.clone()).or_default().push(key.clone());
        }
        self.bindings.insert(key, binding);
    }

    fn unbind(&mut self, key: &Scoped) {
        let Some(old) = self.bindings.remove(key) else { return };
        for subject in old.subjects {
            let Some(by_namespace) = self.by_subject.get_mut(&subject) else { continue };
            if let Some(keys) = by_namespace.get_mut(&key.0) {
                keys.retain(|other| other != key);
                if keys.is_empty() {
                    by_namespace.remove(&key.0);
                }
            }
            if by_namespace.is_empty() {
                self.by_subject.remove(&subject);
            }
        }
    }

    /// Whether a rule allows the request; if not, names the roles that bindings miss.
    pub fn authorize(&self, user: &UserInfo, query: &Query<'_>) -> Decision {
        let mut missing = Vec::new();
        for (key, binding, subject) in self.bindings_of(user, query.namespace) {
            match self.role_of(key, binding) {
                None => missing.push(binding.not_found()),
                Some(rules) if rules.iter().any(|rule| rule.allows(query)) => {
                    return Decision::Allow(binding.granted_by(key, subject));
                }
                Some(_) => {}
            }
        }
        let texts = match missing.as_slice() {
            [] => String::new(),
            [one] => format!("RBAC: {one}"),
            many => format!("RBAC: [{}]", many.join(", ")),
        };
        Decision::NoOpinion(texts)
    }

    /// Every rule that holds for the user in a namespace (empty: cluster-wide ones only).
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        let bindings = self.bindings_of(user, namespace);
        bindings
            .filter_map(|(key, binding, _)| self.role_of(key, binding))
            .flat_map(|r| r.to_vec())
            .collect()
    }

    /// The rules of a role that a binding in `namespace` refers to.
    pub fn role_rules(
        &self,
        namespace: &str,
        role_kind: &str,
        role_name: &str,
    ) -> Option<Arc<[Rule]>> {
        let namespace = if role_kind == "Role" { namespace } else { "" };
        self.roles.get(&(namespace.into(), role_name.into())).cloned()
    }

    fn role_of(&self, key: &Scoped, binding: &Binding) -> Option<Arc<[Rule]>> {
        self.role_rules(&key.0, &binding.role_kind, &binding.role_name)
    }

    fn bindings_of<'a>(
        &'a self,
        user: &'a UserInfo,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a Scoped, &'a Binding, Subject)> {
        let scopes = if namespace.is_empty() { vec![""] } else { vec!["", namespace] };
        let subjects = std::iter::once(Subject::User(user.name.as_str().into()))
            .chain(user.groups.iter().map(|group| Subject::Group(group.as_str().into())));
        let subjects: Vec<Subject> = subjects.collect();
        scopes.into_iter().flat_map(move |scope| {
            subjects.clone().into_iter().flat_map(move |subject| {
                let keys = self.by_subject.get(&subject).and_then(|scopes| scopes.get(scope));
                let keys = keys.map(Vec::as_slice).unwrap_or_default();
                keys.iter()
                    .filter_map(move |key| Some((key, self.bindings.get(key)?, subject.clone())))
            })
        })
    }
}

impl Binding {
    fn read(object: &Object) -> Self {
        Self {
            subjects: object
                .list_at(&["subjects"])
                .iter()
                .filter_map(|subject| Subject::read(subject, object.namespace()))
                .collect(),
            role_kind: object.str_at(&["roleRef", "kind"]).into(),
            role_name: object.str_at(&["roleRef", "name"]).into(),
        }
    }

    fn not_found(&self) -> String {
        let resource = self.role_kind.to_lowercase();
        format!("{resource}.rbac.authorization.k8s.io {:?} not found", self.role_name.as_str())
    }

    fn granted_by(&self, (namespace, name): &Scoped, subject: Subject) -> String {
        let place = if namespace.is_empty() {
            format!("ClusterRoleBinding {name:?}")
        } else {
            format!("RoleBinding \"{name}/{namespace}\"")
        };
        let to = match subject {
            Subject::User(user) => {
                match user.strip_prefix("system:serviceaccount:").and_then(|u| u.split_once(':')) {
                    Some((namespace, name)) => format!("ServiceAccount \"{name}/{namespace}\""),
                    None => format!("User {user:?}"),
                }
            }
            Subject::Group(group) => format!("Group {group:?}"),
        };
        format!(
            "RBAC: allowed by {place} of {} {:?} to {to}",
            self.role_kind,
            self.role_name.as_str()
        )
    }
}

impl Subject {
    fn read(value: &Value, binding_namespace: &str) -> Option<Self> {
        let field = |name| value.get(name).and_then(Value::as_str).unwrap_or_default();
        match field("kind") {
            "User" => Some(Self::User(field("name").into())),
            "Group" => Some(Self::Group(field("name").into())),
            "ServiceAccount" => {
                let namespace = match field("namespace") {
                    "" => binding_namespace,
                    own => own,
                };
                let user = format!("system:serviceaccount:{namespace}:{}", field("name"));
                (!namespace.is_empty()).then(|| Self::User(user.into()))
            }
            _ => None,
        }
    }
}

/// The rules of a Role or ClusterRole object.
pub fn rules_of(role: &Object) -> Vec<Rule> {
    role.list_at(&["rules"]).iter().map(Rule::read).collect()
}

impl Rule {
    pub fn read(value: &Value) -> Self {
        let list = |field| {
            let items = value.get(field).and_then(Value::as_list).unwrap_or_default();
            items.iter().filter_map(Value::as_str).map(SmolStr::from).collect::<Vec<_>>()
        };
        Self {
            verbs: list("verbs"),
            api_groups: list("apiGroups"),
            resources: list("resources"),
            resource_names: list("resourceNames"),
            non_resource_urls: list("nonResourceURLs"),
        }
    }

    pub fn allows(&self, query: &Query<'_>) -> bool {
        if !any(&self.verbs, query.verb) {
            return false;
        }
        if !query.is_resource {
            return self.non_resource_urls.iter().any(|url| url_covers(url, query.path));
        }
        any(&self.api_groups, query.group)
            && self.covers_resource(query.resource, query.subresource)
            && (self.resource_names.is_empty()
                || self.resource_names.iter().any(|name| name == query.name))
    }

    fn covers_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources.iter().any(|rule| match rule.split_once('/') {
            None if rule == "*" => true,
            None => subresource.is_empty() && rule == resource,
            Some(("*", sub)) => !subresource.is_empty() && sub == subresource,
            Some((main, sub)) => main == resource && sub == subresource,
        })
    }

    /// The rule taken apart into rules of one verb, one group and one resource (or one path).
    fn atoms(&self) -> Vec<Rule> {
        let mut atoms = Vec::new();
        for verb in &self.verbs {
            for url in &self.non_resource_urls {
                atoms.push(Self {
                    verbs: vec![verb.clone()],
                    non_resource_urls: vec![url.clone()],
                    ..Self::default()
                });
            }
            for group in &self.api_groups {
                for resource in &self.resources {
                    atoms.push(Self {
                        verbs: vec![verb.clone()],
                        api_groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        resource_names: self.resource_names.clone(),
                        ..Self::default()
                    });
                }
            }
        }
        atoms
    }

    /// Whether everything in the atom `other` is allowed by this rule.
    fn covers_atom(&self, other: &Rule) -> bool {
        let within =
            |mine: &[SmolStr], theirs: &[SmolStr]| theirs.iter().all(|item| any(mine, item));
        if !within(&self.verbs, &other.verbs) {
            return false;
        }
        if let [url] = other.non_resource_urls.as_slice() {
            return self.non_resource_urls.iter().any(|mine| url_covers(mine, url));
        }
        let named = !other.resource_names.is_empty();
        let names = self.resource_names.is_empty()
            || (named
                && other.resource_names.iter().all(|name| self.resource_names.contains(name)));
        let resources = other.resources.iter().all(|item| {
            self.resources.contains(item)
                || self.resources.iter().any(|mine| mine == "*")
                || item
                    .split_once('/')
                    .is_some_and(|(_, sub)| self.resources.contains(&format!("*/{sub}").into()))
        });
        within(&self.api_groups, &other.api_groups) && resources && names
    }

    /// The form that Kubernetes prints in escalation errors.
    fn compact(&self) -> String {
        let list = |name: &str, items: &[SmolStr]| match items {
            [] => None,
            items => {
                let quoted: Vec<String> = items.iter().map(|item| format!("{item:?}")).collect();
                Some(format!("{name}:[{}]", quoted.join(" ")))
            }
        };
        let parts = [
            list("APIGroups", &self.api_groups),
            list("Resources", &self.resources),
            list("NonResourceURLs", &self.non_resource_urls),
            list("ResourceNames", &self.resource_names),
            list("Verbs", &self.verbs),
        ];
        format!("{{{}}}", parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

/// The part of `wanted` that `held` does not grant, one compact line per missing permission.
pub fn missing_rules(held: &[Rule], wanted: &[Rule]) -> Vec<String> {
    let atoms = wanted.iter().flat_map(Rule::atoms);
    let missing = atoms.filter(|atom| !held.iter().any(|rule| rule.covers_atom(atom)));
    let mut merged: BTreeMap<String, Rule> = BTreeMap::new();
    for atom in missing {
        let key = Rule { verbs: Vec::new(), ..atom.clone() }.compact();
        merged.entry(key).and_modify(|rule| rule.verbs.extend(atom.verbs.clone())).or_insert(atom);
    }
    merged.into_values().map(|rule| rule.compact()).collect()
}

fn any(rule: &[SmolStr], item: &str) -> bool {
    rule.iter().any(|mine| mine == "*" || mine == item)
}

fn url_covers(rule: &str, path: &str) -> bool {
    rule == "*"
        || rule == path
        || rule.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery::value;

    fn object(json: Value) -> Object {
        Object::from_value(json).unwrap()
    }

    fn index() -> RbacIndex {
        let mut index = RbacIndex::default();
        let role = object(value!({
            "metadata": {"name": "reader"},
            "rules": [
                {"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"]},
                {"verbs": ["get"], "nonResourceURLs": ["/metrics", "/logs/*"]},
            ],
        }));
        index.upsert(RbacKind::Role, &role);
        let binding = object(value!({
            "metadata": {"name": "readers", "namespace": "a"},
            "subjects": [{"kind": "Group", "name": "devs"}, {"kind": "ServiceAccount", "name": "bot"}],
            "roleRef": {"kind": "ClusterRole", "name": "reader"},
        }));
        index.upsert(RbacKind::Binding, &binding);
        index
    }

    fn user(name: &str, groups: &[&str]) -> UserInfo {
        UserInfo {
            name: name.into(),
            groups: groups.iter().map(|&g| g.into()).collect(),
            ..UserInfo::default()
        }
    }

    fn can(
        index: &RbacIndex,
        user: &UserInfo,
        verb: &str,
        resource: &str,
        namespace: &str,
    ) -> bool {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let query =
            Query { is_resource: true, verb, resource, subresource, namespace, ..Query::default() };
        matches!(index.authorize(user, &query), Decision::Allow(_))
    }

    #[test]
    fn a_binding_holds_in_its_namespace() {
        let mut index = index();
        let dev = user("jane", &["devs"]);
        let bot = user("system:serviceaccount:a:bot", &[]);
        assert!(can(&index, &dev, "list", "pods", "a"));
        assert!(can(&index, &dev, "get", "pods/log", "a"));
        assert!(can(&index, &bot, "get", "pods", "a"));
        assert!(!can(&index, &dev, "get", "pods/exec", "a"));
        assert!(!can(&index, &dev, "list", "pods", "b"));
        assert!(!can(&index, &dev, "delete", "pods", "a"));
        assert!(!can(&index, &user("joe", &[]), "list", "pods", "a"));
        index.remove(RbacKind::Binding, "a", "readers");
        assert!(!can(&index, &dev, "list", "pods", "a"));
        assert!(index.by_subject.is_empty());
    }

    #[test]
    fn a_binding_to_a_missing_role_says_so() {
        let mut index = index();
        index.remove(RbacKind::Role, "", "reader");
        let query = Query {
            is_resource: true,
            verb: "get",
            resource: "pods",
            namespace: "a",
            ..Query::default()
        };
        let Decision::NoOpinion(why) = index.authorize(&user("jane", &["devs"]), &query) else {
            panic!("allowed")
        };
        assert_eq!(why, r#"RBAC: clusterrole.rbac.authorization.k8s.io "reader" not found"#);
    }

    #[test]
    fn missing_rules_are_those_that_nothing_held_covers() {
        let rule = |verbs: &[&str], resources: &[&str]| Rule {
            verbs: verbs.iter().map(|&v| v.into()).collect(),
            api_groups: vec!["".into()],
            resources: resources.iter().map(|&r| r.into()).collect(),
            ..Rule::default()
        };
        let held = [rule(&["get"], &["pods"]), rule(&["*"], &["secrets"])];
        let wanted = [rule(&["get", "list", "watch"], &["pods"]), rule(&["delete"], &["secrets"])];
        assert_eq!(
            missing_rules(&held, &wanted),
            [r#"{APIGroups:[""], Resources:["pods"], Verbs:["list" "watch"]}"#]
        );
        assert!(missing_rules(&[rule(&["*"], &["*"])], &wanted).is_empty());
    }
}
