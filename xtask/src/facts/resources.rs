//! Writes `resources.txt`: what the server serves, and where the store keeps it.

use std::{collections::BTreeMap, fmt::Write as _, fs};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{modules::Modules, openapi::read_json};

/// Resources whose stored version is not the one that is served.
const STORED: &[(&str, &str, &str)] = &[
    ("events.k8s.io", "events", "/v1"),
    ("autoscaling", "horizontalpodautoscalers", "autoscaling/v2"),
    ("coordination.k8s.io", "leasecandidates", "coordination.k8s.io/v1beta1"),
    ("certificates.k8s.io", "clustertrustbundles", "certificates.k8s.io/v1beta1"),
    ("certificates.k8s.io", "podcertificaterequests", "certificates.k8s.io/v1beta1"),
    ("storagemigration.k8s.io", "storageversionmigrations", "storagemigration.k8s.io/v1beta1"),
    ("resource.k8s.io", "devicetaintrules", "resource.k8s.io/v1beta2"),
    ("resource.k8s.io", "resourcepoolstatusrequests", "resource.k8s.io/v1alpha3"),
    ("resource.k8s.io", "*", "resource.k8s.io/v1"),
    ("scheduling.k8s.io", "workloads", "scheduling.k8s.io/v1beta1"),
    ("scheduling.k8s.io", "podgroups", "scheduling.k8s.io/v1beta1"),
    ("admissionregistration.k8s.io", "*", "admissionregistration.k8s.io/v1"),
];

/// Keys that do not begin with the plural.
const PREFIXES: &[(&str, &str, &str)] = &[
    ("", "replicationcontrollers", "controllers"),
    ("", "endpoints", "services/endpoints"),
    ("", "nodes", "minions"),
    ("", "services", "services/specs"),
    ("networking.k8s.io", "ingresses", "ingress"),
    (
        "apiextensions.k8s.io",
        "customresourcedefinitions",
        "apiextensions.k8s.io/customresourcedefinitions",
    ),
    ("apiregistration.k8s.io", "apiservices", "apiregistration.k8s.io/apiservices"),
];

pub fn generate(modules: &Modules) -> Result<String> {
    let dir = modules.kubernetes.join("api/discovery");
    let mut sections: BTreeMap<(String, String), String> = BTreeMap::new();
    for entry in fs::read_dir(&dir)? {
        let path = entry?.path();
        let document = read_json(&path)?;
        if document["kind"] != "APIResourceList" {
            continue;
        }
        let version = document["groupVersion"].as_str().context("no groupVersion")?;
        for resource in document["resources"].as_array().into_iter().flatten() {
            let name = resource["name"].as_str().context("no name")?.to_owned();
            let line = match name.split_once('/') {
                None => resource_line(version, &name, resource)?,
                Some((_, sub)) => sub_line(version, sub, resource)?,
            };
            sections.insert((version.to_owned(), name), line);
        }
    }
    Ok(sections.into_values().collect())
}

fn words(value: &Value) -> String {
    let words: Vec<&str> =
        value.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    words.join(",")
}

fn full(version: &str) -> String {
    if version.contains('/') { version.to_owned() } else { format!("/{version}") }
}

fn resource_line(version: &str, name: &str, resource: &Value) -> Result<String> {
    let version = full(version);
    let (group, short_version) = version.split_once('/').context("no version")?;
    let kind = resource["kind"].as_str().context("no kind")?;
    let verbs = words(&resource["verbs"]);
    let mut out = format!("resource {version} {name} {kind}");
    if verbs.contains("list") {
        write!(out, " list={kind}List")?;
    }
    write!(out, " singular={}", resource["singularName"].as_str().unwrap_or_default())?;
    for (flag, key) in [("short", "shortNames"), ("categories", "categories")] {
        let list = words(&resource[key]);
        if !list.is_empty() {
            write!(out, " {flag}={list}")?;
        }
    }
    if resource["namespaced"] == true {
        out.push_str(" namespaced");
    }
    if is_stable(short_version) {
        out.push_str(" served");
    }
    write!(out, " verbs={verbs}")?;
    if verbs.contains("create") && verbs.contains("list") {
        let stored = find(STORED, group, name).unwrap_or(&version);
        write!(out, " stored={stored} prefix={}", find(PREFIXES, group, name).unwrap_or(name))?;
    }
    out.push('\n');
    Ok(out)
}

/// Versions with `alpha` or `beta` in their name are off unless a flag asks for them.
fn is_stable(version: &str) -> bool {
    !version.contains("alpha") && !version.contains("beta")
}

fn find<'a>(table: &[(&str, &str, &'a str)], group: &str, name: &str) -> Option<&'a str> {
    let row = table.iter().find(|(g, n, _)| *g == group && (*n == name || *n == "*"))?;
    Some(row.2)
}

fn sub_line(version: &str, sub: &str, resource: &Value) -> Result<String> {
    let group = resource["group"].as_str();
    let own = resource["version"].as_str();
    let version = match (group, own) {
        (None, None) => full(version),
        (group, own) => format!("{}/{}", group.unwrap_or_default(), own.unwrap_or(version)),
    };
    let kind = resource["kind"].as_str().context("no kind")?;
    Ok(format!("sub {sub} {version} {kind} {}\n", words(&resource["verbs"])))
}
