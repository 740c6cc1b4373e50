//! Holds the direction of the edges between crates.
//!
//! `stdx → api → machinery → registry → apiserver`; `store` stands on `stdx` alone and is known to
//! `registry` alone; components know `client`, never what is behind the API.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Crate and the crates of ours that it may name in its dependencies.
const ALLOWED: &[(&str, &[&str])] = &[
    ("stdx", &[]),
    ("api", &["stdx"]),
    ("machinery", &["stdx", "api"]),
    ("store", &["stdx"]),
    ("registry", &["stdx", "api", "machinery", "store"]),
    ("apiserver", &["stdx", "api", "machinery", "registry"]),
    ("client", &["stdx", "api", "machinery"]),
    ("controllers", &["stdx", "api", "machinery", "client"]),
    ("scheduler", &["stdx", "api", "machinery", "client"]),
    ("linux", &["stdx"]),
    ("cri", &["stdx"]),
    ("runtime", &["stdx", "linux", "cri"]),
    ("kubelet", &["stdx", "api", "machinery", "client", "cri", "linux"]),
    ("net", &["stdx", "api", "machinery", "client", "linux"]),
    ("proxy", &["stdx", "api", "machinery", "client", "linux"]),
    ("kubectl", &["stdx", "api", "machinery", "client"]),
    ("cluster", &["stdx", "linux"]),
];

pub fn run(_: &[String]) -> Result<()> {
    let output = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps"])
        .output()
        .context("cannot run cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let wrong = wrong_edges(&metadata);
    if !wrong.is_empty() {
        bail!("edges that ARCHITECTURE.md does not allow:\n  {}", wrong.join("\n  "));
    }
    println!("all edges between crates are allowed");
    Ok(())
}

/// Every dependency (but those of tests) on a crate of ours that is not allowed.
fn wrong_edges(metadata: &Value) -> Vec<String> {
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let packages = list(metadata, "packages");
    let names: Vec<String> = packages.iter().map(|package| text(package, "name")).collect();
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let mut wrong = Vec::new();
    for package in &packages {
        let name = text(package, "name");
        let Some(allowed) = allowed.get(name.as_str()) else { continue };
        for dependency in list(package, "dependencies") {
            let target = text(&dependency, "name");
            let ours = names.contains(&target) && text(&dependency, "kind") != "dev";
            if ours && !allowed.contains(&target.as_str()) {
                wrong.push(format!("{name} → {target}"));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_must_not_know_the_registry() {
        let metadata = serde_json::json!({ "packages": [
            { "name": "registry", "dependencies": [] },
            { "name": "kubelet", "dependencies": [
                { "name": "registry", "kind": null },
                { "name": "client", "kind": null },
            ]},
            { "name": "client", "dependencies": [{ "name": "registry", "kind": "dev" }] },
        ]});
        assert_eq!(wrong_edges(&metadata), ["kubelet → registry"]);
    }
}
