//! `/api`, `/apis` and below: what this server serves, in the old and the aggregated form.

use std::cmp::Ordering;

use api::{GroupVersion, schema::schema};
use base64::{Engine, engine::general_purpose::STANDARD};
use registry::ResourceInfo;
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

/// Groups in the order in which clients prefer them; others follow by name.
const GROUP_ORDER: &[&str] = &[
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "resource.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "internal.apiserver.k8s.io",
    "storagemigration.k8s.io",
];

/// Everything served at one moment.
pub struct Discovery<R> {
    /// By group, version and plural.
    resources: Vec<R>,
}

impl<R: std::ops::Deref<Target = ResourceInfo>> Discovery<R> {
    pub fn new(mut resources: Vec<R>) -> Self {
        let key = |r: &R| (r.gvr.group.clone(), r.gvr.version.clone(), r.gvr.resource.clone());
        resources.sort_by_key(key);
        Self { resources }
    }

    /// Groups in order, each with its versions, the preferred one first.
    pub fn groups(&self) -> Vec<(String, Vec<String>)> {
        let mut groups: Vec<(String, Vec<String>)> = Vec::new();
        for resource in &self.resources {
            let (group, version) = (resource.gvr.group.as_str(), resource.gvr.version.as_str());
            match groups.last_mut() {
                Some((last, versions)) if last == group => {
                    if versions.last().is_none_or(|v| v != version) {
                        versions.push(version.into());
                    }
                }
                _ => groups.push((group.into(), vec![version.into()])),
            }
        }
        for (_, versions) in &mut groups {
            versions.sort_by(|a, b| compare_versions(b, a));
        }
        let rank =
            |group: &str| GROUP_ORDER.iter().position(|&g| g == group).unwrap_or(GROUP_ORDER.len());
        groups.sort_by(|(a, _), (b, _)| (rank(a), a).cmp(&(rank(b), b)));
        groups
    }

    /// `/api`
    pub fn core_versions(&self, server_address: &str) -> Json {
        json!({
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}],
        })
    }

    /// `/apis`
    pub fn group_list(&self) -> Json {
        let named = self.groups().into_iter().filter(|(group, _)| !group.is_empty());
        let groups: Vec<Json> =
            named.map(|(group, versions)| group_json(&group, &versions)).collect();
        json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
    }

    /// `/apis/GROUP`
    pub fn group(&self, name: &str) -> Option<Json> {
        let (group, versions) = self.groups().into_iter().find(|(group, _)| group == name)?;
        let mut json = group_json(&group, &versions);
        json["kind"] = "APIGroup".into();
        json["apiVersion"] = "v1".into();
        Some(json)
    }

    /// `/api/v1` and `/apis/GROUP/VERSION`
    pub fn resource_list(&self, group: &str, version: &str) -> Option<Json> {
        let resources: Vec<Json> = self.of(group, version).flat_map(resource_json).collect();
        if resources.is_empty() {
            return None;
        }
        let group_version = GroupVersion::new(group, version).to_string();
        let mut list = json!({"kind": "APIResourceList", "groupVersion": group_version, "resources": resources});
        if !group.is_empty() {
            list["apiVersion"] = "v1".into();
        }
        Some(list)
    }

    /// The aggregated form of `/api` (`core`) or `/apis`.
    pub fn aggregated(&self, core: bool) -> Json {
        let groups = self.groups().into_iter().filter(|(group, _)| group.is_empty() == core);
        let items: Vec<Json> =
            groups.map(|(group, versions)| self.aggregated_group(&group, &versions)).collect();
        json!({
            "kind": "APIGroupDiscoveryList",
            "apiVersion": "apidiscovery.k8s.io/v2",
            "metadata": {},
            "items": items,
        })
    }

    fn aggregated_group(&self, group: &str, versions: &[String]) -> Json {
        let versions: Vec<Json> = versions
            .iter()
            .map(|version| {
                let resources: Vec<Json> =
                    self.of(group, version).map(aggregated_resource).collect();
                json!({"version": version, "resources": resources, "freshness": "Current"})
            })
            .collect();
        let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
        json!({"metadata": metadata, "versions": versions})
    }

    fn of<'a>(
        &'a self,
        group: &'a str,
        version: &'a str,
    ) -> impl Iterator<Item = &'a ResourceInfo> {
        let fits = move |r: &&ResourceInfo| r.gvr.group == group && r.gvr.version == version;
        self.resources.iter().map(|r| &**r).filter(fits)
    }
}

/// Kubernetes' order of versions: `v2 > v1 > v1beta2 > v1beta1 > v1alpha1`, then other names.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    match (parse_version(a), parse_version(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        (Some(_), None) => Ordering::Greater,
        (None, Some(_)) => Ordering::Less,
        (None, None) => b.cmp(a),
    }
}

/// Stability, major, minor.
fn parse_version(version: &str) -> Option<(u8, u32, u32)> {
    let rest = version.strip_prefix('v')?;
    for (marker, stability) in [("alpha", 0), ("beta", 1)] {
        if let Some((major, minor)) = rest.split_once(marker) {
            return Some((stability, major.parse().ok()?, minor.parse().ok()?));
        }
    }
    Some((2, rest.parse().ok()?, 0))
}

fn group_json(group: &str, versions: &[String]) -> Json {
    let entry = |version: &String| json!({"groupVersion": format!("{group}/{version}"), "version": version});
    json!({
        "name": group,
        "versions": versions.iter().map(entry).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(entry),
    })
}

/// A resource and its subresources as `APIResource`s.
fn resource_json(info: &ResourceInfo) -> Vec<Json> {
    let mut main = json!({
        "name": info.gvr.resource.as_str(),
        "singularName": info.singular.as_str(),
        "namespaced": info.namespaced,
        "kind": info.gvk.kind.as_str(),
        "verbs": strings(&info.verbs),
    });
    add_names(&mut main, info);
    if !info.prefix.is_empty() {
        let stored = &info.storage;
        // Upstream hashes the version that this one kind was first stored in.
        let version =
            if stored.kind == "CustomResourceDefinition" { "v1beta1" } else { &stored.version };
        let text = format!("{}/{version}/{}", stored.group, stored.kind);
        main["storageVersionHash"] = STANDARD.encode(&Sha256::digest(text)[..8]).into();
    }
    let mut list = vec![main];
    for sub in subresources(info) {
        let mut json = json!({
            "name": format!("{}/{}", info.gvr.resource, sub.name),
            "singularName": "",
            "namespaced": info.namespaced,
            "kind": sub.gvk.kind.as_str(),
            "verbs": sub.verbs,
        });
        if sub.gvk.group_version() != info.gvk.group_version() {
            if !sub.gvk.group.is_empty() {
                json["group"] = sub.gvk.group.as_str().into();
            }
            json["version"] = sub.gvk.version.as_str().into();
        }
        list.push(json);
    }
    list
}

fn aggregated_resource(info: &ResourceInfo) -> Json {
    let scope = if info.namespaced { "Namespaced" } else { "Cluster" };
    let mut main = json!({
        "resource": info.gvr.resource.as_str(),
        "responseKind": response_kind(info, &info.gvk),
        "scope": scope,
        "singularResource": info.singular.as_str(),
        "verbs": strings(&info.verbs),
    });
    add_names(&mut main, info);
    let subs: Vec<Json> = subresources(info)
        .into_iter()
        .map(|sub| {
            json!({
                "subresource": sub.name,
                "responseKind": response_kind(info, &sub.gvk),
                "verbs": sub.verbs,
            })
        })
        .collect();
    if !subs.is_empty() {
        main["subresources"] = subs.into();
    }
    main
}

/// Group and version are left empty where they are those of the list.
fn response_kind(info: &ResourceInfo, gvk: &api::GroupVersionKind) -> Json {
    if gvk.group_version() == info.gvk.group_version() {
        json!({"group": "", "version": "", "kind": gvk.kind.as_str()})
    } else {
        json!({"group": gvk.group.as_str(), "version": gvk.version.as_str(), "kind": gvk.kind.as_str()})
    }
}

fn add_names(json: &mut Json, info: &ResourceInfo) {
    if !info.short_names.is_empty() {
        json["shortNames"] = strings(&info.short_names);
    }
    if !info.categories.is_empty() {
        json["categories"] = strings(&info.categories);
    }
}

struct Sub {
    name: String,
    gvk: api::GroupVersionKind,
    verbs: Vec<String>,
}

fn subresources(info: &ResourceInfo) -> Vec<Sub> {
    let known = schema().resource(&info.gvr.group, &info.gvr.version, &info.gvr.resource);
    if let Some(known) = known {
        let own = |s: &&str| (*s).to_owned();
        let sub = |s: &api::schema::Subresource| Sub {
            name: s.name.into(),
            gvk: s.gvk.clone(),
            verbs: s.verbs.iter().map(own).collect(),
        };
        return known.subresources.iter().map(sub).collect();
    }
    let custom = |name: &smol_str::SmolStr| Sub {
        name: name.to_string(),
        gvk: match name.as_str() {
            "scale" => api::GroupVersionKind::new("autoscaling", "v1", "Scale"),
            _ => info.gvk.clone(),
        },
        verbs: ["get", "patch", "update"].map(String::from).to_vec(),
    };
    info.subresources.iter().map(custom).collect()
}

fn strings(list: &[smol_str::SmolStr]) -> Json {
    list.iter().map(|item| item.as_str()).collect::<Vec<_>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_stability() {
        let mut versions = ["v1alpha3", "v1beta1", "v2", "foo1", "v1", "v1beta2", "v10"];
        versions.sort_by(|a, b| compare_versions(b, a));
        assert_eq!(versions, ["v10", "v2", "v1", "v1beta2", "v1beta1", "v1alpha3", "foo1"]);
    }
}
