//! The roles and bindings that every cluster has, and what must be written so that they are there.

use std::collections::BTreeMap;

use machinery::{Map, Object, Value};

/// Facts of Kubernetes; the file's head describes its form.
const KUBERNETES: &str = include_str!("../../data/rbac.txt");
/// What this project adds.
const GANTRY: &str = include_str!("../../data/rbac_gantry.txt");

const GROUP: &str = "rbac.authorization.k8s.io";
const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// Every default role and binding. Aggregated roles hold the rules of those they gather.
pub fn desired() -> Vec<Object> {
    let mut objects: Vec<Object> = [KUBERNETES, GANTRY].into_iter().flat_map(parse).collect();
    aggregate(&mut objects);
    objects
}

/// The plural of a kind of this group.
pub fn resource_of(kind: &str) -> &'static str {
    match kind {
        "ClusterRole" => "clusterroles",
        "ClusterRoleBinding" => "clusterrolebindings",
        "Role" => "roles",
        _ => "rolebindings",
    }
}

/// What to write so that `desired` holds: `None` when `existing` is enough. Rules and subjects
/// that somebody added stay; those that are missing are added, unless the object is annotated
/// against it. The role that a binding refers to cannot change: such a binding is left alone.
pub fn reconcile(desired: &Object, existing: Option<&Object>) -> Option<Object> {
    let Some(existing) = existing else { return Some(desired.clone()) };
    if existing.annotation(AUTO_UPDATE) == Some("false") {
        return None;
    }
    let mut merged = existing.clone();
    for field in ["labels", "annotations"] {
        for (key, value) in desired.map_at(&["metadata", field]).into_iter().flat_map(Map::iter) {
            let held = merged.metadata_mut().map_entry(field);
            if !held.contains_key(key) {
                held.insert(key.clone(), value.clone());
            }
        }
    }
    // The rules of an aggregated role belong to the controller that gathers them.
    let fields: &[&str] =
        if desired.at(&["aggregationRule"]).is_some() { &[] } else { &["rules", "subjects"] };
    for &field in fields {
        add_missing(&mut merged, desired, field);
    }
    (merged != *existing).then_some(merged)
}

fn add_missing(merged: &mut Object, desired: &Object, field: &str) {
    let missing: Vec<Value> = desired
        .list_at(&[field])
        .iter()
        .filter(|item| !merged.list_at(&[field]).contains(item))
        .cloned()
        .collect();
    if !missing.is_empty() {
        merged.root_mut().list_entry(field).extend(missing);
    }
}

fn aggregate(objects: &mut [Object]) {
    // Three rounds: `admin` gathers `edit`, which gathers `view`, which gathers others.
    for _ in 0..3 {
        let snapshot = objects.to_vec();
        for object in objects.iter_mut() {
            let selectors = object.list_at(&["aggregationRule", "clusterRoleSelectors"]).to_vec();
            if selectors.is_empty() {
                continue;
            }
            let mut rules: Vec<Value> = Vec::new();
            for role in &snapshot {
                let selected = selectors.iter().any(|selector| {
                    let labels = selector.get("matchLabels").and_then(Value::as_map);
                    labels.is_some_and(|l| {
                        l.iter().all(|(key, value)| role.label(key) == value.as_str())
                    })
                });
                if selected && role.name() != object.name() {
                    rules.extend(
                        role.list_at(&["rules"])
                            .iter()
                            .filter(|&r| !rules.contains(r))
                            .cloned()
                            .collect::<Vec<_>>(),
                    );
                }
            }
            object.root_mut().insert("rules", rules);
        }
    }
}

fn parse(text: &str) -> Vec<Object> {
    let mut objects: Vec<Object> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.strip_prefix("  ") {
            None => objects.push(head(line)),
            Some(fact) => add_fact(objects.last_mut().expect("a fact follows its object"), fact),
        }
    }
    objects
}

fn head(line: &str) -> Object {
    let (kind, place) = line.split_once(' ').expect("KIND NAME");
    let (namespace, name) =
        place.split_once('/').filter(|_| !kind.starts_with("Cluster")).unwrap_or(("", place));
    let mut object = Object::new(&format!("{GROUP}/v1"), kind, namespace, name);
    object.set_at(&["metadata", "annotations", AUTO_UPDATE], "true");
    if kind.ends_with("Role") {
        object.root_mut().list_entry("rules");
    }
    object
}

fn add_fact(object: &mut Object, fact: &str) {
    let words: Vec<&str> = fact.split(' ').collect();
    match words.as_slice() {
        ["label", pair] => {
            let (key, value) = pair.split_once('=').expect("KEY=VALUE");
            object.set_at(&["metadata", "labels", key], value);
        }
        ["aggregate", pair] => {
            let (key, value) = pair.split_once('=').expect("KEY=VALUE");
            let labels: Map = [(key, value)].into_iter().collect();
            let selector: Map = [("matchLabels", labels)].into_iter().collect();
            let rule = object.root_mut().map_entry("aggregationRule");
            rule.list_entry("clusterRoleSelectors").push(selector.into());
        }
        ["allow", groups, resources, verbs, names @ ..] => {
            let mut rule: BTreeMap<&str, Value> = BTreeMap::new();
            rule.insert("apiGroups", list(groups));
            rule.insert("resources", list(resources));
            rule.insert("verbs", list(verbs));
            if let [names] = names {
                rule.insert("resourceNames", list(names));
            }
            push(object, "rules", rule);
        }
        ["url", paths, verbs] => {
            let rule = BTreeMap::from([("nonResourceURLs", list(paths)), ("verbs", list(verbs))]);
            push(object, "rules", rule);
        }
        ["role", kind, name] => {
            let reference = [("apiGroup", GROUP), ("kind", *kind), ("name", *name)];
            object.root_mut().insert("roleRef", reference.into_iter().collect::<Map>());
        }
        ["subject", kind, place] => add_subject(object, kind, place),
        _ => panic!("no fact of a role: {fact}"),
    }
}

fn add_subject(object: &mut Object, kind: &str, place: &str) {
    let account = (kind == "ServiceAccount").then(|| place.split_once('/')).flatten();
    let fields: Vec<(&str, &str)> = match account {
        Some((namespace, name)) => vec![("kind", kind), ("name", name), ("namespace", namespace)],
        None => vec![("apiGroup", GROUP), ("kind", kind), ("name", place)],
    };
    push(object, "subjects", fields);
}

fn push<'a, V: Into<Value>>(
    object: &mut Object,
    field: &str,
    item: impl IntoIterator<Item = (&'a str, V)>,
) {
    let map: Map = item.into_iter().collect();
    object.root_mut().list_entry(field).push(map.into());
}

fn list(text: &str) -> Value {
    text.split(',').map(|item| if item == "\"\"" { "" } else { item }).collect::<Vec<_>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::rbac::{Rule, rules_of};

    fn find(kind: &str, name: &str) -> Object {
        desired().into_iter().find(|o| o.kind() == kind && o.name() == name).unwrap()
    }

    #[test]
    fn the_facts_are_whole() {
        let all = desired();
        for binding in all.iter().filter(|o| o.kind().ends_with("Binding")) {
            let (kind, name) =
                (binding.str_at(&["roleRef", "kind"]), binding.str_at(&["roleRef", "name"]));
            assert!(all.iter().any(|o| o.kind() == kind && o.name() == name), "{}", binding.name());
        }
        let admin = find("ClusterRole", "admin");
        let grants = |verb: &str, resource: &str| {
            let mut rules = rules_of(&admin).into_iter();
            rules.any(|rule| {
                rule.verbs.contains(&verb.into()) && rule.resources.contains(&resource.into())
            })
        };
        assert!(
            grants("update", "deployments") && grants("list", "limitranges"),
            "gathers edit and view"
        );
        let node_proxier = rules_of(&find("ClusterRole", "system:node-proxier"));
        assert!(node_proxier.contains(&Rule {
            verbs: vec!["list".into(), "watch".into()],
            api_groups: vec!["".into()],
            resources: vec!["endpoints".into(), "services".into()],
            ..Rule::default()
        }));
    }

    #[test]
    fn writes_only_what_is_missing() {
        let role = find("ClusterRole", "system:basic-user");
        assert_eq!(reconcile(&role, None).as_ref(), Some(&role));
        assert_eq!(reconcile(&role, Some(&role)), None);
        let mut changed = role.clone();
        changed.root_mut().list_entry("rules").clear();
        let own: Map = [("verbs", list("get"))].into_iter().collect();
        changed.root_mut().list_entry("rules").push(own.into());
        let repaired = reconcile(&role, Some(&changed)).unwrap();
        assert_eq!(repaired.list_at(&["rules"]).len(), 1 + role.list_at(&["rules"]).len());
        changed.set_at(&["metadata", "annotations", AUTO_UPDATE], "false");
        assert_eq!(reconcile(&role, Some(&changed)), None);
    }
}
