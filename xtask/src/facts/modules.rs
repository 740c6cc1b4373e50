//! Where the Go modules lie.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

/// The release whose facts are taken; the libraries carry the same minor and patch under v0.
const KUBERNETES: &str = "v1.37.2";
const LIBRARIES: &str = "v0.37.2";

/// The module cache's directories.
pub struct Modules {
    pub kubernetes: PathBuf,
    /// Module path and directory of each library.
    libraries: Vec<(&'static str, PathBuf)>,
}

pub fn locate() -> Result<Modules> {
    let libraries = [
        "k8s.io/api",
        "k8s.io/apimachinery",
        "k8s.io/apiextensions-apiserver",
        "k8s.io/kube-aggregator",
    ];
    Ok(Modules {
        kubernetes: download("k8s.io/kubernetes", KUBERNETES)?,
        libraries: libraries
            .iter()
            .map(|&path| Ok((path, download(path, LIBRARIES)?)))
            .collect::<Result<_>>()?,
    })
}

/// Has Go fetch a module, or find it in its cache, and say where it lies.
fn download(path: &str, version: &str) -> Result<PathBuf> {
    let output = Command::new("go")
        .args(["mod", "download", "-json", &format!("{path}@{version}")])
        .current_dir(std::env::temp_dir())
        .output()
        .context("running go; it must be installed to read the published API")?;
    if !output.status.success() {
        bail!("go mod download {path}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let dir = answer["Dir"].as_str().with_context(|| format!("{path}: no directory"))?;
    Ok(PathBuf::from(dir))
}

impl Modules {
    /// The directory of a package by import path; `None` outside the known modules.
    pub fn package_dir(&self, import: &str) -> Option<PathBuf> {
        self.libraries.iter().find_map(|(module, dir)| {
            let below = import.strip_prefix(module)?;
            (below.is_empty() || below.starts_with('/'))
                .then(|| dir.join(below.trim_start_matches('/')))
        })
    }
}
