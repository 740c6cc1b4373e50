//! A node as a machine in small.
//!
//! ```text
//!   supervisor ─spawn─▶ launcher ─clone3 into six namespaces─▶ PID 1 ─spawn─▶ agent
//!                          │ joins the node's cgroup first         │ waits for the cable
//!                          │ plugs the cable, says go              │ mounts, pivots, reaps
//!                          └ waits, and exits as PID 1 did         └ starts the agent again
//! ```
//!
//! Killing PID 1 kills everything of the node, as pulling the plug does: the kernel ends its PID
//! namespace, and network, mounts and pinned namespaces go with the last process.

use std::{
    fs,
    io::{self, PipeReader, PipeWriter, Read, Write},
    net::IpAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use linux::{
    links::{Address, Rtnl},
    mount::{self, Options, Propagation},
    process::{self, CloneOptions, Forked, ns},
    routes::Route,
};

use crate::{ClusterConfig, Error, Layout, NodeConfig, host, pki::write_private};

/// Runs a node until it ends; called by the hidden subcommand `node-sandbox`, before any thread
/// has been started. Gives back the exit code.
pub fn launch(cluster: &str, node: &str) -> Result<i32, Error> {
    let layout = Layout::of(cluster);
    let config = layout.load()?;
    let node = config.nodes.iter().find(|n| n.name == node).ok_or_else(|| Error::Invalid {
        what: format!("cluster {cluster:?} has no node {node:?}"),
    })?;
    let root = prepare_root(&layout, &config, node)?;
    let group = host::cgroup(&layout, &node.name)?;
    group.add(std::process::id() as i32).map_err(|e| Error::system("join the node's cgroup", e))?;
    let (ready, go) = io::pipe().map_err(|e| Error::system("make a pipe", e))?;
    let namespaces = ns::MOUNT | ns::PID | ns::NET | ns::IPC | ns::UTS | ns::CGROUP;
    let forked = process::clone_into(CloneOptions { namespaces, ..CloneOptions::default() })
        .map_err(|e| Error::system("make the node's namespaces", e))?;
    match forked {
        Forked::Child => {
            drop(go);
            let outcome = init(ready, &root, &config, node);
            if let Err(error) = &outcome {
                eprintln!("node {}: {}", node.name, stdx::chain(error));
            }
            process::exit_now(i32::from(outcome.is_err()))
        }
        Forked::Parent { pid, pidfd: _pidfd } => {
            drop(ready);
            supervise(&layout, &config, node, pid, go)
        }
    }
}

/// The launcher's part after the clone.
fn supervise(
    layout: &Layout,
    config: &ClusterConfig,
    node: &NodeConfig,
    pid: i32,
    mut go: PipeWriter,
) -> Result<i32, Error> {
    let pid_file = layout.pid_file(&node.name);
    let mut start = || {
        host::plug(config, node, pid)?;
        write_private(&pid_file, pid.to_string().as_bytes())?;
        go.write_all(b"!").map_err(|e| Error::system("start the node", e))
    };
    if let Err(error) = start() {
        let _ = process::kill(pid, 9);
        return Err(error);
    }
    drop(go);
    let exit = loop {
        match process::wait_pid(pid, true) {
            Ok(Some((_, exit))) => break exit.code(),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::system("wait for the node", error)),
        }
    };
    let _ = fs::remove_file(pid_file);
    Ok(exit)
}

/// Directories that every node's file tree has.
const DIRECTORIES: &[&str] = &[
    "proc",
    "sys",
    "dev",
    "run",
    "tmp",
    "root",
    "etc/cni/net.d",
    "etc/gantry",
    "etc/ssl/certs",
    "opt/cni/bin",
    "usr/local/bin",
    "var/lib",
    "var/log/pods",
    "var/log/containers",
];

/// Makes the node's file tree, which stays between its lives, with its identity and what its
/// agent is to do.
fn prepare_root(
    layout: &Layout,
    config: &ClusterConfig,
    node: &NodeConfig,
) -> Result<PathBuf, Error> {
    let root = layout.node_root(&node.name);
    let fill = || -> io::Result<()> {
        for directory in DIRECTORIES {
            fs::create_dir_all(root.join(directory))?;
        }
        fs::write(root.join("usr/local/bin/gantry"), b"")?;
        fs::write(root.join("etc/hostname"), format!("{}\n", node.name))?;
        let hosts = format!("127.0.0.1 localhost\n::1 localhost\n{} {}\n", node.address, node.name);
        fs::write(root.join("etc/hosts"), hosts)?;
        fs::write(root.join("etc/resolv.conf"), resolv_conf())?;
        let machine = root.join("etc/machine-id");
        if !machine.exists() {
            fs::write(machine, format!("{}\n", stdx::Env::real().uuid().replace('-', "")))?;
        }
        if let Ok(release) = fs::read("/etc/os-release") {
            fs::write(root.join("etc/os-release"), release)?;
        }
        if !root.join("etc/mtab").exists() {
            symlink("/proc/self/mounts", root.join("etc/mtab"))?;
        }
        Ok(())
    };
    fill().map_err(|e| Error::io(&root, e))?;
    let join = format!(
        "{}\n",
        serde_json::json!({
            "server": config.node_url(),
            "token": format!("{}.{}", config.bootstrap_token, layout.pki().ca_hash()?),
            "nodeName": node.name,
            "nodeIp": node.address,
            "clusterDns": config.dns_address(),
            "podNetwork": config.pod_network(),
            "serviceNetwork": config.service_network(),
            "fastFailover": config.fast_failover,
        })
    );
    write_private(&root.join("etc/gantry/agent.json"), join.as_bytes())?;
    Ok(root)
}

/// The host's resolvers, without those that only listen on its own loopback.
fn resolv_conf() -> String {
    let candidates = ["/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"];
    let text = candidates.iter().find_map(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    let usable = |line: &&str| {
        line.split_whitespace()
            .nth(1)
            .and_then(|ip| ip.parse::<IpAddr>().ok())
            .is_none_or(|ip| !(line.starts_with("nameserver") && ip.is_loopback()))
    };
    text.lines().filter(usable).map(|line| format!("{line}\n")).collect()
}

/// PID 1: sets the machine up, then starts the agent and reaps whatever dies.
fn init(
    mut ready: PipeReader,
    root: &Path,
    config: &ClusterConfig,
    node: &NodeConfig,
) -> Result<(), Error> {
    process::die_with_parent(9).map_err(|e| Error::system("follow the launcher", e))?;
    let mut go = [0];
    ready.read_exact(&mut go).map_err(|e| Error::system("wait for the cable", e))?;
    drop(ready);
    process::set_name("gantry-init").map_err(|e| Error::system("set the name", e))?;
    rustix::process::setsid().map_err(|e| Error::system("start a session", e.into()))?;
    rustix::system::sethostname(node.name.as_bytes())
        .map_err(|e| Error::system("set the host name", e.into()))?;
    bring_network_up(config, node)?;
    mount_tree(root).map_err(|e| Error::system("mount the node's file tree", e))?;
    leave_root_cgroup().map_err(|e| Error::system("make room in the cgroup", e))?;
    run_agent()
}

/// `RTPROT_STATIC` of rtnetlink(7).
const STATIC: u8 = 4;

fn bring_network_up(config: &ClusterConfig, node: &NodeConfig) -> Result<(), Error> {
    let fail = |what: &'static str| move |source| Error::network(what, source);
    let mut rtnl = Rtnl::open().map_err(fail("open netlink"))?;
    let links = rtnl.links().map_err(fail("list devices"))?;
    for link in &links {
        if link.loopback || link.name == "eth0" {
            rtnl.set_up(link.index).map_err(fail("bring a device up"))?;
        }
    }
    let cable = links.iter().find(|link| link.name == "eth0");
    let index = cable.ok_or_else(|| Error::network("find eth0", "the cable is gone"))?.index;
    let (_, prefix_bits) = config.node_network();
    rtnl.add_address(Address { index, ip: node.address.into(), prefix_bits })
        .map_err(fail("set the node's address"))?;
    // As an administrator's route: those of our own number belong to the agent, which removes
    // what it did not plan.
    let route =
        Route { protocol: STATIC, ..Route::default_v4(config.host_address().into(), index) };
    rtnl.set_route(route).map_err(fail("set the default route"))
}

/// The devices that containers and agents expect.
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty", "kmsg", "fuse"];

fn mount_tree(root: &Path) -> io::Result<()> {
    let plain = Options::default();
    let safe = Options { no_suid: true, no_dev: true, no_exec: true, read_only: false };
    mount::set_propagation(Path::new("/"), Propagation::Private, true)?;
    mount::bind(root, root)?;
    mount::mount("proc", &root.join("proc"), safe, "")?;
    mount::mount("sysfs", &root.join("sys"), safe, "")?;
    mount::tmpfs(&root.join("run"), None, 0o755, Options { no_suid: true, no_dev: true, ..plain })?;
    mount::tmpfs(&root.join("tmp"), None, 0o1777, plain)?;
    mount_devices(&root.join("dev"))?;
    mount_cgroups(&root.join("sys/fs/cgroup"))?;
    mount::bind(&std::env::current_exe()?, &root.join("usr/local/bin/gantry"))?;
    mount::remount_read_only(&root.join("usr/local/bin/gantry"), plain)?;
    if Path::new("/etc/ssl/certs").is_dir() {
        mount::bind(Path::new("/etc/ssl/certs"), &root.join("etc/ssl/certs"))?;
        mount::remount_read_only(&root.join("etc/ssl/certs"), plain)?;
    }
    mount::pivot_into(root)?;
    // Volumes that containers mount with propagation need a shared root.
    mount::set_propagation(Path::new("/"), Propagation::Shared, true)
}

fn mount_devices(dev: &Path) -> io::Result<()> {
    mount::tmpfs(dev, Some(1 << 20), 0o755, Options { no_suid: true, ..Options::default() })?;
    for name in DEVICES {
        let device = Path::new("/dev").join(name);
        if device.exists() {
            fs::write(dev.join(name), b"")?;
            mount::bind(&device, &dev.join(name))?;
        }
    }
    for directory in ["pts", "shm", "mqueue"] {
        fs::create_dir(dev.join(directory))?;
    }
    let quiet = Options { no_suid: true, no_exec: true, ..Options::default() };
    mount::mount("devpts", &dev.join("pts"), quiet, "newinstance,ptmxmode=0666,mode=0620,gid=5")?;
    mount::tmpfs(&dev.join("shm"), None, 0o1777, quiet)?;
    mount::mount("mqueue", &dev.join("mqueue"), quiet, "")?;
    symlink("pts/ptmx", dev.join("ptmx"))?;
    for (name, number) in [("stdin", 0), ("stdout", 1), ("stderr", 2)] {
        symlink(format!("/proc/self/fd/{number}"), dev.join(name))?;
    }
    symlink("/proc/self/fd", dev.join("fd"))
}

/// Mounts every hierarchy of the host; the cgroup namespace makes the node's group its root.
fn mount_cgroups(target: &Path) -> io::Result<()> {
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let unified_only = own.lines().all(|line| line.starts_with("0::"));
    let quiet = Options { no_suid: true, no_dev: true, no_exec: true, read_only: false };
    if unified_only {
        return mount::mount("cgroup2", target, quiet, "");
    }
    mount::tmpfs(target, Some(1 << 20), 0o755, quiet)?;
    for line in own.lines() {
        let controllers = line.split(':').nth(1).unwrap_or_default();
        let (directory, kind, data) = match controllers.strip_prefix("name=") {
            _ if controllers.is_empty() => ("unified", "cgroup2", String::new()),
            Some(name) => (name, "cgroup", format!("none,name={name}")),
            None => (controllers, "cgroup", controllers.to_owned()),
        };
        let point = target.join(directory);
        fs::create_dir(&point)?;
        mount::mount(kind, &point, quiet, &data)?;
    }
    Ok(())
}

/// With version 2 a group that has processes cannot give controllers to groups below it, so the
/// node's own processes move into a leaf.
fn leave_root_cgroup() -> io::Result<()> {
    let host = linux::cgroup::Host::detect()?;
    let leaf = host.cgroup("/init");
    leaf.create()?;
    leaf.add(1)
}

const RESTART_PAUSE: Duration = Duration::from_millis(200);

/// Starts the agent, again whenever it ends, and reaps every orphan of the node.
fn run_agent() -> Result<(), Error> {
    let mut agent = start_agent()?;
    loop {
        match process::wait_any(true) {
            Ok(Some((pid, exit))) if pid == agent.id() as i32 => {
                eprintln!("the agent ended with {}; starting it again", exit.code());
                std::thread::sleep(RESTART_PAUSE);
                agent = start_agent()?;
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::system("wait for the node's processes", error)),
        }
    }
}

fn start_agent() -> Result<Child, Error> {
    Command::new("/usr/local/bin/gantry")
        .args(["agent", "--config", "/etc/gantry/agent.json"])
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .stdin(Stdio::null())
        .spawn()
        .map_err(|e| Error::system("start the agent", e))
}
