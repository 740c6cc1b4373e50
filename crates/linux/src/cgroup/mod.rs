//! Control groups of version 1 (also hybrid) and 2 behind one type.
//!
//! A [`Cgroup`] is one path below the roots of all hierarchies that the host mounts. With version
//! 1 it is a directory in each of them (and in the bare version 2 hierarchy of a hybrid host,
//! which gives `cgroup.kill`); with version 2 it is one directory. Paths are counted from each
//! mount's root, so they mean the same on a host and inside a cgroup namespace.
//!
//! On version 1 the first move of a process costs a grace period of the kernel (5-14 ms
//! measured); further moves right after it and `clone3` into a version 2 group cost next to
//! nothing. Who needs a quick start moves an idle process ahead of time and forks from it.

mod host;
mod limits;
mod stats;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub use host::{Hierarchy, Host, Layout};
pub use limits::Limits;
pub use stats::Stats;

use crate::{devices::DeviceRule, process};

/// A control group by its path, whether it exists yet or not. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cgroup {
    host: Arc<Host>,
    path: String,
}

impl Host {
    /// The group at `path`, `/` being the root of each hierarchy's mount.
    pub fn cgroup(self: &Arc<Self>, path: &str) -> Cgroup {
        let clean: Vec<&str> =
            path.split('/').filter(|part| !matches!(*part, "" | "." | "..")).collect();
        Cgroup { host: self.clone(), path: clean.join("/") }
    }

    /// The group that this process is in (of the memory or unified hierarchy).
    pub fn own(self: &Arc<Self>) -> io::Result<Cgroup> {
        let path = self.own_path(&fs::read_to_string("/proc/self/cgroup")?);
        Ok(self.cgroup(&path))
    }
}

impl Cgroup {
    /// Its path from the root of every hierarchy, with a leading slash.
    pub fn path(&self) -> String {
        format!("/{}", self.path)
    }

    pub fn child(&self, name: &str) -> Self {
        self.host.cgroup(&format!("{}/{name}", self.path))
    }

    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Its directory in every hierarchy.
    pub fn directories(&self) -> impl Iterator<Item = PathBuf> {
        self.host.hierarchies.iter().map(|hierarchy| hierarchy.mount.join(&self.path))
    }

    fn directory(&self, controller: &str) -> Option<PathBuf> {
        self.host.with(controller).map(|hierarchy| hierarchy.mount.join(&self.path))
    }

    /// The directory of the bare version 2 hierarchy, where there is one.
    pub fn unified(&self) -> Option<PathBuf> {
        self.host.unified().map(|hierarchy| hierarchy.mount.join(&self.path))
    }

    pub fn exists(&self) -> bool {
        self.directories().any(|directory| directory.exists())
    }

    /// Creates it and its ancestors, with the controllers enabled along the way (version 2) and
    /// the sets of CPUs and memory nodes taken over from the parent (version 1).
    pub fn create(&self) -> io::Result<()> {
        for hierarchy in &self.host.hierarchies {
            self.create_in(hierarchy)?;
        }
        Ok(())
    }

    fn create_in(&self, hierarchy: &Hierarchy) -> io::Result<()> {
        let mut directory = hierarchy.mount.clone();
        for part in self.path.split('/').filter(|part| !part.is_empty()) {
            if self.host.layout == Layout::V2 {
                enable_controllers(&directory);
            }
            let parent = directory.clone();
            directory.push(part);
            match fs::create_dir(&directory) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
            if hierarchy.has("cpuset") && self.host.layout != Layout::V2 {
                inherit_cpuset(&parent, &directory)?;
            }
        }
        Ok(())
    }

    /// Sets what `limits` names and leaves the rest.
    pub fn apply(&self, limits: &Limits) -> io::Result<()> {
        for write in limits.writes(self.host.layout) {
            let Some(directory) = self.directory(write.controller) else { continue };
            match fs::write(directory.join(&write.file), &write.value) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && write.optional => {}
                Err(error) => {
                    let text = format!("{} = {:?}: {error}", write.file, write.value);
                    return Err(io::Error::new(error.kind(), text));
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Allows the devices of `rules` and no others. `false` when the host cannot restrict them.
    pub fn restrict_devices(&self, rules: &[DeviceRule]) -> io::Result<bool> {
        if self.host.layout == Layout::V2 {
            let Some(directory) = self.unified() else { return Ok(false) };
            return crate::devices::attach_program(&directory, rules).map(|()| true);
        }
        let Some(directory) = self.directory("devices") else { return Ok(false) };
        fs::write(directory.join("devices.deny"), "a")?;
        for rule in rules {
            fs::write(directory.join("devices.allow"), rule.to_string())?;
        }
        Ok(true)
    }

    /// Moves a process; 0 is the caller.
    pub fn add(&self, pid: i32) -> io::Result<()> {
        self.directories().try_for_each(|dir| fs::write(dir.join("cgroup.procs"), pid.to_string()))
    }

    /// The processes of this group and of those below it.
    pub fn processes(&self) -> io::Result<Vec<i32>> {
        let mut pids = Vec::new();
        if let Some(directory) = self.process_directory() {
            collect_processes(&directory, &mut pids)?;
        }
        Ok(pids)
    }

    /// The one hierarchy in which membership is read: all agree.
    fn process_directory(&self) -> Option<PathBuf> {
        self.directories().find(|directory| directory.exists())
    }

    /// Kills every process of this group and of those below it. They may take a moment to be
    /// gone; [`Cgroup::delete`] waits for that.
    pub fn kill(&self) -> io::Result<()> {
        if let Some(unified) = self.unified()
            && fs::write(unified.join("cgroup.kill"), "1").is_ok()
        {
            return Ok(());
        }
        // Frozen, none of them can fork between being listed and being killed.
        let frozen = self.set_frozen(true).is_ok();
        let killed = self.processes().map(|pids| {
            pids.into_iter().for_each(|pid| drop(process::kill(pid, libc::SIGKILL)));
        });
        if frozen {
            self.set_frozen(false)?;
        }
        killed
    }

    /// Stops or continues all processes of the group.
    pub fn set_frozen(&self, frozen: bool) -> io::Result<()> {
        if self.host.layout == Layout::V2 {
            let directory = self.unified().ok_or(io::ErrorKind::Unsupported)?;
            return fs::write(directory.join("cgroup.freeze"), if frozen { "1" } else { "0" });
        }
        let directory = self.directory("freezer").ok_or(io::ErrorKind::Unsupported)?;
        fs::write(directory.join("freezer.state"), if frozen { "FROZEN" } else { "THAWED" })
    }

    pub fn stats(&self) -> io::Result<Stats> {
        let read = |controller: &str, file: &str| {
            let path = self.directory(controller)?.join(file);
            fs::read_to_string(path).ok()
        };
        if !self.exists() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(match self.host.layout {
            Layout::V2 => stats::version2(read),
            Layout::V1 | Layout::Hybrid => stats::version1(read),
        })
    }

    /// How many processes the kernel has killed for want of memory within the group's limit.
    pub fn oom_kills(&self) -> u64 {
        self.stats().map(|stats| stats.oom_kills).unwrap_or(0)
    }

    /// Removes the group and those below it, waiting up to two seconds for processes that are
    /// on their way out. Absence is no error.
    pub fn delete(&self) -> io::Result<()> {
        let mut result = Ok(());
        for directory in self.directories() {
            if let Err(error) = delete_tree(&directory) {
                result = Err(error);
            }
        }
        result
    }
}

fn enable_controllers(directory: &Path) {
    let Ok(offered) = fs::read_to_string(directory.join("cgroup.controllers")) else { return };
    // One by one, because a single one that cannot be enabled would refuse them all; what is
    // missing shows when a limit cannot be set.
    for controller in offered.split_whitespace() {
        let _ = fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

fn inherit_cpuset(parent: &Path, directory: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = directory.join(file);
        if fs::read_to_string(&own).is_ok_and(|text| text.trim().is_empty()) {
            fs::write(&own, fs::read_to_string(parent.join(file))?.trim())?;
        }
    }
    Ok(())
}

fn collect_processes(directory: &Path, pids: &mut Vec<i32>) -> io::Result<()> {
    let text = match fs::read_to_string(directory.join("cgroup.procs")) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        // A group of version 2 in threaded mode lists no processes.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => String::new(),
        Err(error) => return Err(error),
    };
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    subdirectories(directory).iter().try_for_each(|below| collect_processes(below, pids))
}

fn subdirectories(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let is_dir = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    entries.flatten().filter(is_dir).map(|entry| entry.path()).collect()
}

fn delete_tree(directory: &Path) -> io::Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    subdirectories(directory).iter().try_for_each(|below| delete_tree(below))?;
    let mut wait = Duration::from_micros(500);
    loop {
        match fs::remove_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // The kernel tells nobody when the last exiting process has left, on version 1.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                if wait > Duration::from_secs(1) {
                    return Err(error);
                }
                std::thread::sleep(wait);
                wait *= 2;
            }
            other => return other,
        }
    }
}
