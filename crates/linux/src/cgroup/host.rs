//! What the host offers: which hierarchies are mounted where.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::mount::{self, Mounted};

/// Which version governs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    V1,
    /// Version 1 controllers beside a version 2 hierarchy without any.
    Hybrid,
    V2,
}

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Version 1 controllers (`cpu`, `memory`, …; or `name=systemd`), or `unified`.
    pub controllers: Vec<String>,
    pub mount: PathBuf,
    /// The group that the mount shows as its root, as this process names it.
    root: PathBuf,
}

impl Hierarchy {
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|own| own == controller)
    }
}

/// The hierarchies in which groups are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    pub layout: Layout,
    pub hierarchies: Vec<Hierarchy>,
}

const UNIFIED: &str = "unified";
/// Version 1 controllers that we make groups in; the others hold no limit of ours.
const CONTROLLERS: &[&str] =
    &["cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb"];

impl Host {
    /// Reads the mounts of this process. An error says what is missing.
    pub fn detect() -> io::Result<Arc<Self>> {
        let host = Self::plan(&mount::table()?).ok_or_else(|| {
            io::Error::other(
                "no control groups are mounted below /sys/fs/cgroup; mount cgroup2 there",
            )
        })?;
        host.lay_out_cpuset()?;
        Ok(Arc::new(host))
    }

    fn plan(table: &[Mounted]) -> Option<Self> {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for mounted in table {
            let controllers: Vec<String> = match &*mounted.kind {
                "cgroup2" => vec![UNIFIED.to_owned()],
                "cgroup" => version1_controllers(&mounted.super_options),
                _ => continue,
            };
            let known = hierarchies.iter().any(|seen| seen.controllers == controllers);
            if !controllers.is_empty() && !known && mounted.options.starts_with("rw") {
                let (mount, root) = (mounted.point.clone(), mounted.root.clone());
                hierarchies.push(Hierarchy { controllers, mount, root });
            }
        }
        let unified = hierarchies.iter().any(|hierarchy| hierarchy.has(UNIFIED));
        let layout = match (hierarchies.len(), unified) {
            (0, _) => return None,
            (1, true) => Layout::V2,
            (_, true) => Layout::Hybrid,
            (_, false) => Layout::V1,
        };
        Some(Self { layout, hierarchies })
    }

    /// A fresh version 1 cpuset root inside a namespace may have empty sets, which would refuse
    /// every process.
    fn lay_out_cpuset(&self) -> io::Result<()> {
        if self.layout == Layout::V2 {
            return Ok(());
        }
        let Some(hierarchy) = self.with("cpuset") else { return Ok(()) };
        for (file, system) in [
            ("cpuset.cpus", "/sys/devices/system/cpu/online"),
            ("cpuset.mems", "/sys/devices/system/node/online"),
        ] {
            let own = hierarchy.mount.join(file);
            if fs::read_to_string(&own).is_ok_and(|text| text.trim().is_empty()) {
                fs::write(&own, fs::read_to_string(system)?.trim())?;
            }
        }
        Ok(())
    }

    /// The hierarchy that has `controller`; on version 2, the one there is.
    pub(super) fn with(&self, controller: &str) -> Option<&Hierarchy> {
        match self.layout {
            Layout::V2 => self.unified(),
            _ => self.hierarchies.iter().find(|hierarchy| hierarchy.has(controller)),
        }
    }

    pub fn unified(&self) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|hierarchy| hierarchy.has(UNIFIED))
    }

    /// The path, from the mount's root, of the process whose /proc/…/cgroup reads `text`.
    pub(super) fn own_path(&self, text: &str) -> String {
        let of = |wanted: &str| {
            text.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                let controllers = fields.next()?;
                let path = fields.next()?;
                let matches = match wanted {
                    UNIFIED => controllers.is_empty(),
                    wanted => controllers.split(',').any(|name| name == wanted),
                };
                matches.then_some(path)
            })
        };
        let key = if self.layout == Layout::V2 { UNIFIED } else { "memory" };
        let (Some(path), Some(hierarchy)) = (of(key), self.with(key)) else {
            return "/".to_owned();
        };
        let below = Path::new(path).strip_prefix(&hierarchy.root).unwrap_or(Path::new(path));
        format!("/{}", below.display().to_string().trim_start_matches('/'))
    }
}

fn version1_controllers(options: &str) -> Vec<String> {
    let known = |option: &&str| CONTROLLERS.contains(option);
    options.split(',').filter(known).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounted(kind: &str, point: &str, super_options: &str) -> Mounted {
        Mounted {
            root: "/".into(),
            point: point.into(),
            kind: kind.into(),
            source: kind.into(),
            super_options: super_options.into(),
            options: "rw,nosuid".into(),
        }
    }

    #[test]
    fn the_layout_follows_the_mounts() {
        let v2 = mounted("cgroup2", "/sys/fs/cgroup", "rw,nsdelegate");
        let memory = mounted("cgroup", "/sys/fs/cgroup/memory", "rw,memory");
        let cpu = mounted("cgroup", "/sys/fs/cgroup/cpu,cpuacct", "rw,cpu,cpuacct");
        let systemd = mounted("cgroup", "/sys/fs/cgroup/systemd", "rw,name=systemd");
        let layout = |table: &[&Mounted]| {
            let table: Vec<Mounted> = table.iter().map(|mounted| (*mounted).clone()).collect();
            Host::plan(&table).map(|host| (host.layout, host.hierarchies.len()))
        };
        assert_eq!(layout(&[&v2]), Some((Layout::V2, 1)));
        assert_eq!(layout(&[&memory, &cpu, &systemd]), Some((Layout::V1, 2)));
        assert_eq!(layout(&[&memory, &cpu, &v2]), Some((Layout::Hybrid, 3)));
        assert_eq!(layout(&[&systemd]), None);
    }

    #[test]
    fn the_own_path_counts_from_the_mounts_root() {
        let text = "4:memory:/docker/abc/x\n0::/unified/path\n";
        let mut host = Host::plan(&[mounted("cgroup", "/m", "rw,memory")]).unwrap();
        assert_eq!(host.own_path(text), "/docker/abc/x");
        host.hierarchies[0].root = "/docker/abc".into();
        assert_eq!(host.own_path(text), "/x");
        let host = Host::plan(&[mounted("cgroup2", "/m", "rw")]).unwrap();
        assert_eq!(host.own_path(text), "/unified/path");
    }
}
