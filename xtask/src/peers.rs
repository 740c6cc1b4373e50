//! Builds the real components from their Go modules, into a cache outside the clone.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

pub const KUBERNETES: &str = "v1.37.2";
/// The staging modules of that release.
const STAGING: &str = "v0.37.2";
const ETCD: &str = "v3.6.16";

/// A program that we hold ourselves against.
struct Peer {
    name: &'static str,
    module: &'static str,
    version: &'static str,
    package: &'static str,
}

const PEERS: &[Peer] = &[
    Peer {
        name: "kubectl",
        module: "k8s.io/kubernetes",
        version: KUBERNETES,
        package: "k8s.io/kubernetes/cmd/kubectl",
    },
    Peer {
        name: "kube-apiserver",
        module: "k8s.io/kubernetes",
        version: KUBERNETES,
        package: "k8s.io/kubernetes/cmd/kube-apiserver",
    },
    Peer {
        name: "etcd",
        module: "go.etcd.io/etcd/server/v3",
        version: ETCD,
        package: "go.etcd.io/etcd/server/v3",
    },
];

/// `cargo xtask peers [NAME...]`
pub fn run(arguments: &[String]) -> Result<()> {
    if let Some(unknown) = arguments.iter().find(|a| PEERS.iter().all(|p| p.name != **a)) {
        let names: Vec<_> = PEERS.iter().map(|peer| peer.name).collect();
        bail!("no peer {unknown:?}; there are {}", names.join(", "));
    }
    for peer in
        PEERS.iter().filter(|p| arguments.is_empty() || arguments.iter().any(|a| a == p.name))
    {
        println!("{:<16} {:<9} {}", peer.name, peer.version, path(peer.name)?.display());
    }
    Ok(())
}

/// The program's path; built first if it is not in the cache in this version.
pub fn path(name: &str) -> Result<PathBuf> {
    let peer = PEERS.iter().find(|peer| peer.name == name).context("no such peer")?;
    let cache = cache()?;
    let program = cache.join("bin").join(name);
    let stamp = cache.join("bin").join(format!("{name}.version"));
    if program.exists() && fs::read_to_string(&stamp).is_ok_and(|v| v.trim() == peer.version) {
        return Ok(program);
    }
    eprintln!("building {name} {} from its Go module", peer.version);
    build(peer, &cache, &program)?;
    fs::write(&stamp, peer.version)?;
    Ok(program)
}

fn cache() -> Result<PathBuf> {
    let base = match std::env::var_os("GANTRY_CACHE") {
        Some(path) => PathBuf::from(path),
        None => {
            let home = std::env::var_os("HOME").context("HOME is not set")?;
            Path::new(&home).join(".cache/gantry-peers")
        }
    };
    fs::create_dir_all(base.join("bin"))
        .with_context(|| format!("cannot write to {}", base.display()))?;
    Ok(base)
}

fn build(peer: &Peer, cache: &Path, program: &Path) -> Result<()> {
    let directory = cache.join("modules").join(peer.name);
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("go.mod"), go_mod(peer)?)?;
    let main = format!("//go:build tools\n\npackage peer\n\nimport _ \"{}\"\n", peer.package);
    fs::write(directory.join("tools.go"), main)?;
    let _ = fs::remove_file(directory.join("go.sum"));
    go(&directory, &["mod", "tidy", "-e"])?;
    // Built beside its place and moved there, so that a build cut short leaves nothing usable.
    let unfinished = program.with_extension("unfinished");
    let flags = link_flags(peer);
    let output = unfinished.to_string_lossy().into_owned();
    go(&directory, &["build", "-mod=mod", "-ldflags", &flags, "-o", &output, peer.package])?;
    fs::rename(&unfinished, program)?;
    Ok(())
}

fn link_flags(peer: &Peer) -> String {
    let mut flags = "-s -w".to_owned();
    if peer.module == "k8s.io/kubernetes" {
        for (variable, value) in [
            ("gitVersion", KUBERNETES),
            ("gitMajor", "1"),
            ("gitMinor", "37"),
            ("gitTreeState", "clean"),
        ] {
            flags += &format!(" -X k8s.io/component-base/version.{variable}={value}");
        }
    }
    flags
}

/// A module that requires the peer's; for Kubernetes with its staging modules replaced by their
/// published versions.
fn go_mod(peer: &Peer) -> Result<String> {
    let mut text =
        format!("module peer\n\ngo 1.26.0\n\nrequire {} {}\n", peer.module, peer.version);
    if peer.module == "k8s.io/kubernetes" {
        for module in staging_modules(peer)? {
            text += &format!("\nreplace {module} => {module} {STAGING}\n");
        }
    }
    Ok(text)
}

/// The modules that Kubernetes' own go.mod replaces by its staging directories.
fn staging_modules(peer: &Peer) -> Result<Vec<String>> {
    let output = Command::new("go")
        .args(["mod", "download", "-json", &format!("{}@{}", peer.module, peer.version)])
        .output()
        .context("cannot run go")?;
    let answer: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("go mod download")?;
    let path = answer["GoMod"].as_str().context("the module has no go.mod")?;
    let text = fs::read_to_string(path)?;
    let replaced = |line: &str| {
        let (module, target) = line.trim().trim_start_matches("replace ").split_once(" => ")?;
        target.starts_with("./staging").then(|| module.trim().to_owned())
    };
    Ok(text.lines().filter_map(replaced).collect())
}

fn go(directory: &Path, arguments: &[&str]) -> Result<()> {
    let output = Command::new("go")
        .args(arguments)
        .current_dir(directory)
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-buildvcs=false")
        .output()
        .context("cannot run go; install Go 1.26 or later")?;
    if !output.status.success() {
        bail!("go {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
