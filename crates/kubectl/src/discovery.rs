//! What the server serves, by any name that a user may give it.

use std::sync::Arc;

use ::api::{GroupVersion, GroupVersionKind, GroupVersionResource};
use client::{Client, Resource};
use serde_json::Value as Json;

use crate::{Error, Result};

/// Asks for everything in two answers; a server that cannot gives the older form.
const AGGREGATED: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

/// One resource of one version.
#[derive(Clone, Debug)]
pub struct ResourceInfo {
    pub resource: Resource,
    pub kind: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub verbs: Vec<String>,
    pub subresources: Vec<String>,
    /// Whether this is the version that the server prefers for its group.
    pub preferred: bool,
}

pub type Info = Arc<ResourceInfo>;

impl ResourceInfo {
    pub fn gvk(&self) -> GroupVersionKind {
        self.resource.gvr.group_version().kind(self.kind.as_str())
    }

    pub fn group(&self) -> &str {
        &self.resource.gvr.group
    }

    /// How output names the type: `pod`, `deployment.apps`.
    pub fn display_kind(&self) -> String {
        let kind = self.kind.to_lowercase();
        if self.group().is_empty() { kind } else { format!("{kind}.{}", self.group()) }
    }

    /// `pod/web`, `deployment.apps/web`.
    pub fn display(&self, name: &str) -> String {
        format!("{}/{name}", self.display_kind())
    }

    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    fn is_called(&self, name: &str) -> bool {
        self.resource.gvr.resource == name
            || self.singular == name
            || self.kind.to_lowercase() == name
            || self.short_names.iter().any(|short| short == name)
    }
}

/// All resources, in the server's order of groups and versions.
#[derive(Debug, Default)]
pub struct Discovery {
    pub resources: Vec<Info>,
}

impl Discovery {
    pub async fn load(client: &Client) -> Result<Self> {
        let mut resources = Vec::new();
        for root in ["/api", "/apis"] {
            let body = client.get_accepting(AGGREGATED, root, &[]).await?;
            let answer: Json = serde_json::from_slice(&body).map_err(|e| {
                Error::other(format!("cannot read the discovery of the server: {e}"))
            })?;
            if answer["kind"] == "APIGroupDiscoveryList" {
                resources.extend(parse_aggregated(&answer));
            } else {
                resources.extend(load_plain(client, &answer).await?);
            }
        }
        Ok(Self { resources: resources.into_iter().map(Arc::new).collect() })
    }

    /// Finds `pods`, `po`, `pod`, `Pod`, `deployments.apps` or `deployments.v1.apps`.
    pub fn find(&self, name: &str) -> Result<Info> {
        let lower = name.to_lowercase();
        let by_name = |name: &str, fits: &dyn Fn(&ResourceInfo) -> bool| {
            let candidates = || self.resources.iter().filter(|r| r.is_called(name) && fits(r));
            candidates().find(|r| r.preferred).or_else(|| candidates().next()).cloned()
        };
        let found = by_name(&lower, &|_| true).or_else(|| {
            let (base, rest) = lower.split_once('.')?;
            by_name(base, &|r| r.group() == rest).or_else(|| {
                let (version, group) = rest.split_once('.').unwrap_or((rest, ""));
                by_name(base, &|r| r.group() == group && r.resource.gvr.version == version)
            })
        });
        found.ok_or_else(|| {
            Error::other(format!("the server doesn't have a resource type {name:?}"))
        })
    }

    /// One resource, or all of a category such as `all`.
    pub fn find_all(&self, name: &str) -> Result<Vec<Info>> {
        let category: Vec<Info> = self
            .resources
            .iter()
            .filter(|r| r.preferred && r.has_verb("list") && r.categories.iter().any(|c| c == name))
            .cloned()
            .collect();
        if category.is_empty() { Ok(vec![self.find(name)?]) } else { Ok(category) }
    }

    pub fn of_kind(&self, gvk: &GroupVersionKind) -> Option<Info> {
        self.resources.iter().find(|r| r.gvk() == *gvk).cloned()
    }
}

fn text(value: &Json, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Json, key: &str) -> Vec<String> {
    let list = value[key].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

fn entries<'a>(value: &'a Json, key: &str) -> &'a [Json] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn resource(group: &str, version: &str, plural: &str, namespaced: bool) -> Resource {
    let gvr = GroupVersionResource {
        group: group.into(),
        version: version.into(),
        resource: plural.into(),
    };
    Resource { gvr, kind: "", namespaced }
}

fn parse_aggregated(answer: &Json) -> Vec<ResourceInfo> {
    let mut out: Vec<ResourceInfo> = Vec::new();
    for group in entries(answer, "items") {
        let name = text(&group["metadata"], "name");
        let first_of_group = out.len();
        for version in entries(group, "versions") {
            let version_name = text(version, "version");
            for r in entries(version, "resources") {
                let plural = text(r, "resource");
                let preferred = !out[first_of_group..]
                    .iter()
                    .any(|known| known.resource.gvr.resource == plural);
                out.push(ResourceInfo {
                    resource: resource(&name, &version_name, &plural, r["scope"] == "Namespaced"),
                    kind: text(&r["responseKind"], "kind"),
                    singular: text(r, "singularResource"),
                    short_names: texts(r, "shortNames"),
                    categories: texts(r, "categories"),
                    verbs: texts(r, "verbs"),
                    subresources: entries(r, "subresources")
                        .iter()
                        .map(|s| text(s, "subresource"))
                        .collect(),
                    preferred,
                });
            }
        }
    }
    out
}

/// The older form: a list of groups, and one answer per group and version.
async fn load_plain(client: &Client, answer: &Json) -> Result<Vec<ResourceInfo>> {
    let mut versions: Vec<GroupVersion> = texts(answer, "versions")
        .iter()
        .filter_map(|version| GroupVersion::parse(version))
        .collect();
    for group in entries(answer, "groups") {
        let preferred = text(&group["preferredVersion"], "groupVersion");
        let mut of_group: Vec<String> =
            entries(group, "versions").iter().map(|v| text(v, "groupVersion")).collect();
        of_group.sort_by_key(|version| *version != preferred);
        versions.extend(of_group.iter().filter_map(|version| GroupVersion::parse(version)));
    }
    let mut out: Vec<ResourceInfo> = Vec::new();
    for version in versions {
        let list: Json = client.get_json(&version.path()).await?;
        out.extend(parse_plain(&version, &list, &out));
    }
    Ok(out)
}

fn parse_plain(version: &GroupVersion, list: &Json, before: &[ResourceInfo]) -> Vec<ResourceInfo> {
    let all = entries(list, "resources");
    let plain = all.iter().filter(|r| !text(r, "name").contains('/'));
    let info = |r: &Json| {
        let plural = text(r, "name");
        let known = |i: &ResourceInfo| {
            i.resource.gvr.resource == plural && i.resource.gvr.group == version.group
        };
        let prefix = format!("{plural}/");
        ResourceInfo {
            resource: resource(
                &version.group,
                &version.version,
                &plural,
                r["namespaced"].as_bool().unwrap_or(false),
            ),
            kind: text(r, "kind"),
            singular: text(r, "singularName"),
            short_names: texts(r, "shortNames"),
            categories: texts(r, "categories"),
            verbs: texts(r, "verbs"),
            subresources: all
                .iter()
                .filter_map(|s| text(s, "name").strip_prefix(&prefix).map(str::to_owned))
                .collect(),
            preferred: !before.iter().any(known),
        }
    };
    plain.map(info).collect()
}

/// A small server for the tests of this crate.
#[cfg(test)]
pub fn sample() -> Discovery {
    let core = serde_json::json!({"resources": [
        {"name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "shortNames": ["po"], "categories": ["all"], "verbs": ["get", "list", "delete"]},
        {"name": "pods/log", "namespaced": true, "kind": "Pod", "verbs": ["get"]},
        {"name": "nodes", "singularName": "node", "namespaced": false, "kind": "Node", "shortNames": ["no"], "verbs": ["get", "list"]},
        {"name": "events", "singularName": "event", "namespaced": true, "kind": "Event", "shortNames": ["ev"], "verbs": ["get", "list"]},
    ]});
    let apps = serde_json::json!({"resources": [
        {"name": "deployments", "singularName": "deployment", "namespaced": true, "kind": "Deployment", "shortNames": ["deploy"], "categories": ["all"], "verbs": ["get", "list"]},
    ]});
    let events = serde_json::json!({"resources": [
        {"name": "events", "singularName": "event", "namespaced": true, "kind": "Event", "shortNames": ["ev"], "verbs": ["get", "list"]},
    ]});
    let mut all = Vec::new();
    for (version, list) in [("v1", core), ("apps/v1", apps), ("events.k8s.io/v1", events)] {
        let version = GroupVersion::parse(version).unwrap();
        let parsed = parse_plain(&version, &list, &all);
        all.extend(parsed);
    }
    Discovery { resources: all.into_iter().map(Arc::new).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_a_resource_finds_it() {
        let discovery = sample();
        for name in ["pods", "pod", "po", "Pod", "pods.v1"] {
            assert_eq!(discovery.find(name).unwrap().display("x"), "pod/x", "{name}");
        }
        for name in ["deploy", "deployments.apps", "deployment.v1.apps", "deploy.apps"] {
            assert_eq!(discovery.find(name).unwrap().display("x"), "deployment.apps/x", "{name}");
        }
        assert_eq!(discovery.find("events").unwrap().group(), "", "the core group comes first");
        assert_eq!(discovery.find("events.events.k8s.io").unwrap().group(), "events.k8s.io");
        let unknown = discovery.find("wombats").unwrap_err().text();
        assert_eq!(unknown, "error: the server doesn't have a resource type \"wombats\"");
        assert_eq!(discovery.find_all("all").unwrap().len(), 2);
        assert_eq!(discovery.find("pods").unwrap().subresources, ["log"]);
    }

    #[test]
    fn the_first_version_of_an_aggregated_group_is_preferred() {
        let version = |v: &str| {
            serde_json::json!({"version": v, "resources": [{
                "resource": "widgets", "singularResource": "widget", "scope": "Namespaced",
                "responseKind": {"kind": "Widget"}, "verbs": ["list"], "shortNames": ["wd"],
                "subresources": [{"subresource": "scale"}]}]})
        };
        let answer = serde_json::json!({"items": [
            {"metadata": {"name": "example.com"}, "versions": [version("v2"), version("v1")]}]});
        let all = parse_aggregated(&answer);
        assert_eq!(all.iter().map(|r| r.preferred).collect::<Vec<_>>(), [true, false]);
        assert!(all[0].resource.namespaced);
        assert_eq!(all[0].subresources, ["scale"]);
        assert_eq!(all[0].gvk().to_string(), "example.com/v2, Kind=Widget");
    }
}
