//! What a machine must offer, each lack told in one sentence with its remedy.

use std::{fs, net::TcpListener, path::Path};

use crate::Error;

/// Checks everything that does not depend on a cluster's configuration.
pub fn check_machine() -> Result<(), Error> {
    check_root()?;
    file_system("overlay", "load it with `modprobe overlay`")?;
    kernel_release()?;
    namespaces()?;
    cgroups()
}

/// Refuses a port that another process listens on.
pub fn check_port(port: u16) -> Result<(), Error> {
    TcpListener::bind(("127.0.0.1", port)).map(drop).map_err(|_| {
        lack(format!("port {port} on this machine is taken"), "choose another one with --port")
    })
}

fn lack(problem: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error::Preflight { problem: problem.into(), remedy: remedy.into() }
}

/// Refuses to go on without root.
pub fn check_root() -> Result<(), Error> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(lack(
        "nodes need root: they are made of namespaces, mounts and cgroups",
        "run it with sudo",
    ))
}

fn file_system(name: &str, remedy: &str) -> Result<(), Error> {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.split_whitespace().last() == Some(name)) {
        return Ok(());
    }
    Err(lack(format!("the kernel has no {name} file system"), remedy))
}

const OLDEST: (u32, u32) = (5, 15);

fn kernel_release() -> Result<(), Error> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= OLDEST {
        return Ok(());
    }
    let problem = format!("the kernel is {}, older than {}.{}", release.trim(), OLDEST.0, OLDEST.1);
    Err(lack(problem, "boot a newer one"))
}

fn namespaces() -> Result<(), Error> {
    for name in ["net", "mnt", "pid", "uts", "ipc", "cgroup"] {
        if !Path::new("/proc/self/ns").join(name).exists() {
            return Err(lack(
                format!("the kernel has no {name} namespaces"),
                "boot a kernel built with CONFIG_NAMESPACES",
            ));
        }
    }
    Ok(())
}

fn cgroups() -> Result<(), Error> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if mounts.contains(" - cgroup2 ") || mounts.contains(" - cgroup ") {
        return Ok(());
    }
    Err(lack("no cgroup hierarchy is mounted", "mount one at /sys/fs/cgroup"))
}
