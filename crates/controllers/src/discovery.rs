//! Which resources the server has, for controllers that work on all of them.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use api::GroupVersionResource;
use client::{Client, Error, Resource};
use serde::Deserialize;

/// A resource and what can be done with it.
#[derive(Clone, Debug)]
pub struct Discovered {
    pub resource: Resource,
    pub verbs: Vec<String>,
}

impl Discovered {
    pub fn can(&self, verbs: &[&str]) -> bool {
        verbs.iter().all(|verb| self.verbs.iter().any(|known| known == verb))
    }
}

/// What was found, and which group versions did not answer.
#[derive(Clone, Debug, Default)]
pub struct Discovery {
    pub resources: Vec<Discovered>,
    pub failed: Vec<(String, String)>,
}

impl Discovery {
    /// The resource of a kind, as an owner reference names it; any version of its group.
    pub fn of_kind(&self, api_version: &str, kind: &str) -> Option<&Resource> {
        let group = crate::plan::group_of(api_version);
        let matches = |d: &&Discovered| d.resource.kind == kind && d.resource.gvr.group == group;
        self.resources.iter().find(matches).map(|d| &d.resource)
    }
}

#[derive(Deserialize)]
struct GroupList {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    versions: Vec<Version>,
    preferred_version: Option<Version>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    group_version: String,
}

#[derive(Deserialize)]
struct ResourceList {
    #[serde(default)]
    resources: Vec<WireResource>,
}

#[derive(Deserialize)]
struct WireResource {
    name: String,
    kind: String,
    namespaced: bool,
    #[serde(default)]
    verbs: Vec<String>,
}

/// Every resource in its group's preferred version, or in another where that lacks it.
pub async fn discover(client: &Client) -> Result<Discovery, Error> {
    let mut found = Discovery::default();
    let mut seen = BTreeSet::new();
    add(client, "/api/v1", ("", "v1"), &mut found, &mut seen).await;
    let groups: GroupList = client.get_json("/apis").await?;
    for group in groups.groups {
        let preferred = group.preferred_version.map(|v| v.group_version);
        let others = group.versions.into_iter().map(|v| v.group_version);
        let others = others.filter(|v| Some(v) != preferred.as_ref()).collect::<Vec<_>>();
        for version in preferred.iter().chain(&others) {
            if let Some(named) = version.split_once('/') {
                add(client, &format!("/apis/{version}"), named, &mut found, &mut seen).await;
            }
        }
    }
    Ok(found)
}

async fn add(
    client: &Client,
    path: &str,
    (group, version): (&str, &str),
    found: &mut Discovery,
    seen: &mut BTreeSet<(String, String)>,
) {
    let list: ResourceList = match client.get_json(path).await {
        Ok(list) => list,
        Err(error) => return found.failed.push((path.to_owned(), stdx::chain(&error).to_string())),
    };
    for wire in list.resources {
        if wire.name.contains('/') || !seen.insert((group.to_owned(), wire.name.clone())) {
            continue;
        }
        let gvr = GroupVersionResource {
            group: group.into(),
            version: version.into(),
            resource: wire.name.as_str().into(),
        };
        let resource = Resource { gvr, kind: intern(&wire.kind), namespaced: wire.namespaced };
        found.resources.push(Discovered { resource, verbs: wire.verbs });
    }
}

/// Kinds are static texts. Each different one is kept for ever, which is bounded by the number of
/// kinds that a cluster ever has.
pub fn intern(text: &str) -> &'static str {
    static KNOWN: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = known.get(text) {
        return found;
    }
    let kept: &'static str = Box::leak(text.to_owned().into_boxed_str());
    known.insert(kept);
    kept
}
