//! Which cluster is meant: `--kubeconfig`, `$KUBECONFIG`, `~/.kube/config`, and when there is
//! none of these, the one cluster that lives on this machine.

use std::path::{Path, PathBuf};

use client::Kubeconfig;

use crate::{Error, Result};

/// Where `gantry up` keeps its clusters.
const LOCAL_CLUSTERS: &str = "/var/lib/gantry/clusters";

/// A kubeconfig and the directory from which its relative paths count.
pub struct Found {
    pub config: Kubeconfig,
    pub directory: PathBuf,
}

/// Loads the kubeconfig that applies. `flag` is the value of `--kubeconfig`.
pub fn load(flag: Option<&Path>) -> Result<Found> {
    let candidates = match flag {
        Some(path) => vec![path.to_owned()],
        None => existing(&from_environment()),
    };
    let candidates = match candidates.is_empty() {
        true => vec![local_cluster(Path::new(LOCAL_CLUSTERS))?],
        false => candidates,
    };
    let mut merged: Option<Found> = None;
    for path in candidates {
        let config =
            Kubeconfig::load(&path).map_err(|e| Error::other(stdx::chain(&e).to_string()))?;
        let directory = path.parent().unwrap_or(Path::new(".")).to_owned();
        match &mut merged {
            None => merged = Some(Found { config: absolute(config, &directory), directory }),
            Some(found) => merge(&mut found.config, absolute(config, &directory)),
        }
    }
    merged.ok_or_else(|| Error::other("no kubeconfig is given"))
}

/// `$KUBECONFIG` (a list of files), else `~/.kube/config`.
fn from_environment() -> Vec<PathBuf> {
    match std::env::var_os("KUBECONFIG").filter(|value| !value.is_empty()) {
        Some(list) => std::env::split_paths(&list).filter(|p| !p.as_os_str().is_empty()).collect(),
        None => std::env::var_os("HOME")
            .map(|home| vec![Path::new(&home).join(".kube/config")])
            .unwrap_or_default(),
    }
}

fn existing(paths: &[PathBuf]) -> Vec<PathBuf> {
    paths.iter().filter(|path| path.exists()).cloned().collect()
}

/// The kubeconfig of the only cluster on this machine.
fn local_cluster(clusters: &Path) -> Result<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(clusters)
        .map(|entries| entries.flatten().map(|e| e.path().join("kubeconfig")).collect())
        .unwrap_or_default();
    found.retain(|path| path.exists());
    found.sort();
    match found.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(Error::other(
            "there is no kubeconfig and no local cluster; make one with `sudo gantry up` or say --kubeconfig FILE",
        )),
        many => {
            let list: Vec<String> =
                many.iter().map(|path| format!("--kubeconfig {}", path.display())).collect();
            Err(Error::other(format!(
                "this machine has several clusters; choose one with one of:\n  {}",
                list.join("\n  ")
            )))
        }
    }
}

/// Makes the paths in a file absolute, so that files of several directories can be merged.
fn absolute(mut config: Kubeconfig, directory: &Path) -> Kubeconfig {
    let fix = |text: &mut String| {
        if !text.is_empty() {
            *text = directory.join(&*text).display().to_string();
        }
    };
    for cluster in &mut config.clusters {
        fix(&mut cluster.entry.certificate_authority);
    }
    for user in &mut config.users {
        fix(&mut user.entry.client_certificate);
        fix(&mut user.entry.client_key);
        fix(&mut user.entry.token_file);
    }
    config
}

/// The first file that names something wins.
fn merge(into: &mut Kubeconfig, other: Kubeconfig) {
    macro_rules! join {
        ($field:ident) => {
            for entry in other.$field {
                if !into.$field.iter().any(|known| known.name == entry.name) {
                    into.$field.push(entry);
                }
            }
        };
    }
    join!(clusters);
    join!(users);
    join!(contexts);
    if into.current_context.is_empty() {
        into.current_context = other.current_context;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_local_cluster_is_taken_and_several_are_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(local_cluster(dir.path()).unwrap_err().text().contains("gantry up"));
        for name in ["a", "b"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("a/kubeconfig"), "").unwrap();
        assert_eq!(local_cluster(dir.path()).unwrap(), dir.path().join("a/kubeconfig"));
        std::fs::write(dir.path().join("b/kubeconfig"), "").unwrap();
        let several = local_cluster(dir.path()).unwrap_err().text();
        assert!(several.contains("a/kubeconfig") && several.contains("b/kubeconfig"), "{several}");
    }

    #[test]
    fn of_several_files_the_first_wins() {
        let parse = |text: &str| Kubeconfig::parse(text).unwrap();
        let mut first = parse("contexts: [{name: a, context: {cluster: x}}]\n");
        merge(
            &mut first,
            parse("contexts: [{name: a, context: {cluster: y}}, {name: b}]\ncurrent-context: b\n"),
        );
        assert_eq!(first.contexts.len(), 2);
        assert_eq!(first.contexts[0].entry.cluster, "x");
        assert_eq!(first.current_context, "b");
    }
}
