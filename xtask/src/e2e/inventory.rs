//! What stands on this machine, before and after.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
};

use anyhow::Result;

/// Sets of lines by kind.
pub struct Inventory(BTreeMap<&'static str, BTreeSet<String>>);

/// Processes are told by their command line, because others come and go with other pids.
pub fn take() -> Result<Inventory> {
    let mut kinds = BTreeMap::new();
    kinds.insert("processes", gantry_processes());
    kinds.insert("mounts", lines(&fs::read_to_string("/proc/mounts")?));
    kinds.insert("links", shown(&["ip", "-br", "link"], |l| l.split_whitespace().next()));
    kinds.insert("routes", shown(&["ip", "route", "show", "table", "all"], |line| Some(line)));
    kinds.insert("nft tables", shown(&["nft", "list", "tables"], |line| Some(line)));
    kinds.insert("network namespaces", shown(&["ip", "netns"], |line| Some(line)));
    kinds.insert("loops", shown(&["losetup", "-a"], |line| Some(line)));
    kinds.insert("cgroups", cgroups());
    kinds.insert("forwarding", lines(&fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?));
    for directory in ["/run", "/var/lib", "/etc/cni", "/opt"] {
        kinds.insert(directory, names(directory));
    }
    Ok(Inventory(kinds))
}

impl Inventory {
    pub fn kinds(&self) -> usize {
        self.0.len()
    }

    pub fn differences(&self, after: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (kind, before) in &self.0 {
            let after = &after.0[kind];
            found.extend(after.difference(before).map(|line| format!("{kind}: left {line}")));
            found.extend(before.difference(after).map(|line| format!("{kind}: lost {line}")));
        }
        found
    }
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(str::to_owned).collect()
}

fn shown(command: &[&str], pick: fn(&str) -> Option<&str>) -> BTreeSet<String> {
    let output = Command::new(command[0]).args(&command[1..]).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.lines().filter_map(pick).map(str::to_owned).collect()
}

fn names(directory: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn gantry_processes() -> BTreeSet<String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let command = |pid: &str| fs::read_to_string(format!("/proc/{pid}/cmdline")).ok();
    entries
        .filter_map(|entry| command(entry.file_name().to_str()?))
        .filter(|line| line.split('\0').next().is_some_and(|exe| exe.ends_with("gantry")))
        .map(|line| line.replace('\0', " "))
        .collect()
}

fn cgroups() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for hierarchy in names("/sys/fs/cgroup") {
        let path = format!("/sys/fs/cgroup/{hierarchy}");
        for name in names(&path) {
            if fs::metadata(format!("{path}/{name}")).is_ok_and(|m| m.is_dir()) {
                found.insert(format!("{hierarchy}/{name}"));
            }
        }
    }
    found
}
