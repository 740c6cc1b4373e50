//! From a CRI request to a complete launch plan: pure, so that every rule can be tested alone.

use std::{collections::BTreeMap, path::PathBuf};

use cri::v1::{self, NamespaceMode};
use linux::{
    caps::Caps,
    cgroup::Limits,
    devices::{DeviceKind, DeviceRule},
};

use crate::{
    error::{Error, Result},
    image::ImageConfig,
    launch::{
        BindMount, CgroupView, DeviceNode, Launch, Namespaces, PidNamespace, Process, Propagation,
        ResourceLimit, Root, User,
    },
};

/// What a container may do when nothing is said: the set that all runtimes agree on.
const DEFAULT_CAPABILITIES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Everything that a launch is decided from.
pub(crate) struct Input<'a> {
    pub config: &'a v1::ContainerConfig,
    pub image: &'a ImageConfig,
    pub sandbox: SandboxView<'a>,
    pub directory: PathBuf,
    pub root: Root,
    /// Capabilities that this process can hand on.
    pub available: Caps,
    /// PID namespace, resolved by the caller because it depends on running processes.
    pub pid: PidNamespace,
    pub cgroup: CgroupView,
    /// Compiled filters for this container.
    pub seccomp: Vec<Vec<u64>>,
    /// Extra nodes, resolved from the host by the caller.
    pub devices: Vec<DeviceNode>,
}

pub(crate) struct SandboxView<'a> {
    pub config: &'a v1::PodSandboxConfig,
    pub namespaces: Namespaces,
    pub shared_memory: Option<PathBuf>,
    pub resolv_conf: Option<PathBuf>,
    pub hostname_file: Option<PathBuf>,
    pub hostname: String,
}

pub(crate) fn launch(input: Input<'_>) -> Result<Launch> {
    let security = security(input.config);
    let process = process(&input, &security)?;
    let namespaces = Namespaces { pid: input.pid, ..input.sandbox.namespaces.clone() };
    let mut cgroup = input.cgroup;
    cgroup.read_only = !security.privileged;
    let mut devices: Vec<DeviceNode> = STANDARD_DEVICES.iter().map(standard_device).collect();
    devices.extend(input.devices);
    let mounts = mounts(input.config, &input.sandbox)?;
    let log_directory = &input.sandbox.config.log_directory;
    let log = &input.config.log_path;
    Ok(Launch {
        directory: input.directory,
        process,
        root: Root { read_only: security.readonly_rootfs, ..input.root },
        namespaces,
        mounts,
        shared_memory: input.sandbox.shared_memory,
        privileged: security.privileged,
        masked_paths: unless(security.privileged, security.masked_paths),
        readonly_paths: unless(security.privileged, security.readonly_paths),
        devices,
        cgroup,
        log: (!log.is_empty() && !log_directory.is_empty())
            .then(|| PathBuf::from(log_directory).join(log)),
        stdin: input.config.stdin,
        stdin_once: input.config.stdin_once,
    })
}

fn unless(condition: bool, paths: Vec<String>) -> Vec<String> {
    if condition { Vec::new() } else { paths }
}

pub(crate) fn security(config: &v1::ContainerConfig) -> v1::LinuxContainerSecurityContext {
    let linux = config.linux.as_ref();
    linux.and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

fn process(input: &Input<'_>, security: &v1::LinuxContainerSecurityContext) -> Result<Process> {
    let config = input.config;
    let resources = config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    let (capabilities, ambient) = capabilities(security, input.available)?;
    let cwd = [&config.working_dir, &input.image.working_dir];
    let cwd = cwd.into_iter().find(|cwd| !cwd.is_empty()).cloned();
    Ok(Process {
        args: arguments(config, input.image),
        env: environment(config, input.image, &input.sandbox.hostname),
        cwd: cwd.unwrap_or_else(|| "/".to_owned()),
        terminal: config.tty,
        user: user(security, input.image)?,
        capabilities: capabilities.0,
        ambient: ambient.0,
        no_new_privileges: security.no_new_privs,
        seccomp: input.seccomp.clone(),
        oom_score_adj: resources.map(|resources| resources.oom_score_adj),
        limits: vec![ResourceLimit {
            resource: OPEN_FILES,
            soft: Some(OPEN_FILES_LIMIT),
            hard: Some(OPEN_FILES_LIMIT),
        }],
    })
}

/// A command beside a container's own process, confined as that one is.
pub(crate) fn exec_process(of_container: Process, args: Vec<String>, terminal: bool) -> Process {
    let mut process = Process { args, terminal, ..of_container };
    if terminal && !process.env.iter().any(|entry| entry.starts_with("TERM=")) {
        process.env.push("TERM=xterm".to_owned());
    }
    process
}

/// `RLIMIT_NOFILE`; the same number on x86-64 and arm64.
const OPEN_FILES: u32 = 7;
const OPEN_FILES_LIMIT: u64 = 1 << 20;

/// `command` replaces the image's entrypoint and command, `args` alone the command.
fn arguments(config: &v1::ContainerConfig, image: &ImageConfig) -> Vec<String> {
    let (entrypoint, command) = match (config.command.is_empty(), config.args.is_empty()) {
        (true, true) => (&image.entrypoint, &image.cmd),
        (true, false) => (&image.entrypoint, &config.args),
        (false, _) => (&config.command, &config.args),
    };
    entrypoint.iter().chain(command).cloned().collect()
}

/// The image's variables, then the host's name, then the pod's; the last of a name counts.
fn environment(config: &v1::ContainerConfig, image: &ImageConfig, hostname: &str) -> Vec<String> {
    let mut order: Vec<String> = Vec::new();
    let mut values: BTreeMap<String, String> = BTreeMap::new();
    let mut set = |name: String, value: String| {
        if values.insert(name.clone(), value).is_none() {
            order.push(name);
        }
    };
    for (name, value) in image.env.iter().filter_map(|entry| entry.split_once('=')) {
        set(name.to_owned(), value.to_owned());
    }
    if !hostname.is_empty() {
        set("HOSTNAME".to_owned(), hostname.to_owned());
    }
    if config.tty {
        set("TERM".to_owned(), "xterm".to_owned());
    }
    for pair in &config.envs {
        set(pair.key.clone(), String::from_utf8_lossy(&pair.value).into_owned());
    }
    order.into_iter().map(|name| format!("{name}={}", values[&name])).collect()
}

fn user(security: &v1::LinuxContainerSecurityContext, image: &ImageConfig) -> Result<User> {
    let number = |value: &v1::Int64Value| {
        u32::try_from(value.value)
            .map_err(|_| Error::Invalid(format!("{} is no user or group ID", value.value)))
    };
    let gid = security.run_as_group.as_ref().map(number).transpose()?;
    let spec = match &security.run_as_user {
        Some(uid) => number(uid)?.to_string(),
        None if !security.run_as_username.is_empty() => security.run_as_username.clone(),
        None if gid.is_some() && image.user.is_empty() => {
            return Err(Error::Invalid("a group is given without a user".to_owned()));
        }
        None => image.user.clone(),
    };
    let supplementary = security
        .supplemental_groups
        .iter()
        .map(|gid| number(&v1::Int64Value { value: *gid }))
        .collect::<Result<_>>()?;
    let strict = security.supplemental_groups_policy() == v1::SupplementalGroupsPolicy::Strict;
    Ok(User { spec, gid, supplementary, strict })
}

/// The permitted set and the ambient one, within what can be handed on.
pub(crate) fn capabilities(
    security: &v1::LinuxContainerSecurityContext,
    available: Caps,
) -> Result<(Caps, Caps)> {
    if security.privileged {
        return Ok((available, Caps::NONE));
    }
    let named = |name: &String| -> Result<Caps> {
        if name.eq_ignore_ascii_case("ALL") {
            return Ok(Caps::ALL);
        }
        Caps::named(name).ok_or_else(|| Error::Invalid(format!("unknown capability {name:?}")))
    };
    let all = |names: &[String]| -> Result<Caps> {
        names.iter().try_fold(Caps::NONE, |set, name| Ok(set.with(named(name)?)))
    };
    let asked = security.capabilities.clone().unwrap_or_default();
    let mut default = Caps::NONE;
    for name in DEFAULT_CAPABILITIES {
        default = default.with(Caps::named(name).unwrap_or_default());
    }
    let (add, drop) = (all(&asked.add_capabilities)?, all(&asked.drop_capabilities)?);
    let ambient = all(&asked.add_ambient_capabilities)?;
    // ALL goes first, whichever side it is on, so that single names can except from it.
    let mut set = if drop == Caps::ALL { Caps::NONE } else { default.without(drop) };
    set = if add == Caps::ALL && drop != Caps::ALL { add.without(drop) } else { set.with(add) };
    let set = set.with(ambient).and(available);
    Ok((set, ambient.and(set)))
}

fn mounts(config: &v1::ContainerConfig, sandbox: &SandboxView<'_>) -> Result<Vec<BindMount>> {
    let mut mounts = Vec::new();
    let pods =
        [("/etc/resolv.conf", &sandbox.resolv_conf), ("/etc/hostname", &sandbox.hostname_file)];
    for (target, source) in pods {
        let given = config.mounts.iter().any(|mount| mount.container_path == target);
        if let Some(source) = source.as_ref().filter(|_| !given) {
            mounts.push(BindMount {
                source: source.clone(),
                target: target.to_owned(),
                read_only: security(config).readonly_rootfs,
                recursive_read_only: false,
                propagation: Propagation::Private,
            });
        }
    }
    for mount in &config.mounts {
        mounts.push(bind_mount(mount)?);
    }
    // Outer directories first, or they would hide what lies in them.
    mounts.sort_by_key(|mount| mount.target.trim_matches('/').split('/').count());
    Ok(mounts)
}

fn bind_mount(mount: &v1::Mount) -> Result<BindMount> {
    if mount.image.is_some() {
        return Err(Error::Invalid("image volumes are not supported by this runtime".to_owned()));
    }
    if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
        return Err(Error::Invalid(
            "id-mapped mounts are not supported by this runtime".to_owned(),
        ));
    }
    if mount.container_path.is_empty() || mount.host_path.is_empty() {
        return Err(Error::Invalid("a mount lacks its source or its target".to_owned()));
    }
    Ok(BindMount {
        source: PathBuf::from(&mount.host_path),
        target: mount.container_path.clone(),
        read_only: mount.readonly,
        recursive_read_only: mount.recursive_read_only,
        propagation: match mount.propagation() {
            v1::MountPropagation::PropagationPrivate => Propagation::Private,
            v1::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
            v1::MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
        },
    })
}

const STANDARD_DEVICES: &[(&str, u32, u32)] = &[
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

fn standard_device((path, major, minor): &(&str, u32, u32)) -> DeviceNode {
    let (major, minor) = (*major, *minor);
    DeviceNode { path: (*path).to_owned(), block: false, major, minor, mode: 0o666, uid: 0, gid: 0 }
}

/// The devices that a container may use: the standard ones, terminals, and its own.
pub(crate) fn device_rules(privileged: bool, extra: &[(DeviceNode, String)]) -> Vec<DeviceRule> {
    if privileged {
        return vec![DeviceRule::EVERYTHING];
    }
    let node_only = DeviceRule { read: false, write: false, ..DeviceRule::EVERYTHING };
    let mut rules = vec![
        DeviceRule { kind: Some(DeviceKind::Character), ..node_only },
        DeviceRule { kind: Some(DeviceKind::Block), ..node_only },
    ];
    let standard =
        |(_, major, minor): &(&str, u32, u32)| DeviceRule::character(*major, Some(*minor));
    rules.extend(STANDARD_DEVICES.iter().map(standard));
    rules.extend([DeviceRule::character(5, Some(1)), DeviceRule::character(5, Some(2))]);
    rules.push(DeviceRule::character(136, None));
    for (node, permissions) in extra {
        let kind = if node.block { DeviceKind::Block } else { DeviceKind::Character };
        rules.push(DeviceRule {
            kind: Some(kind),
            major: Some(node.major),
            minor: Some(node.minor),
            read: permissions.contains('r'),
            write: permissions.contains('w'),
            mknod: permissions.contains('m'),
        });
    }
    rules
}

/// Limits of a container's or sandbox's control group. Zero and empty mean: not said.
pub(crate) fn limits(resources: &v1::LinuxContainerResources) -> Limits {
    let said = |value: i64| (value != 0).then_some(value);
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    let text = |value: &String| (!value.is_empty()).then(|| value.clone());
    Limits {
        cpu_shares: positive(resources.cpu_shares),
        cpu_quota_us: said(resources.cpu_quota),
        cpu_period_us: positive(resources.cpu_period),
        memory_bytes: said(resources.memory_limit_in_bytes),
        memory_and_swap_bytes: said(resources.memory_swap_limit_in_bytes),
        pids: None,
        cpuset_cpus: text(&resources.cpuset_cpus),
        cpuset_mems: text(&resources.cpuset_mems),
        hugepages: resources
            .hugepage_limits
            .iter()
            .map(|limit| (limit.page_size.clone(), limit.limit))
            .collect(),
        unified: resources.unified.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
    }
}

/// The namespaces that a pod asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PodNamespaces {
    pub host_network: bool,
    pub host_ipc: bool,
    pub pid: NamespaceMode,
}

pub(crate) fn pod_namespaces(config: &v1::PodSandboxConfig) -> PodNamespaces {
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let options = security.and_then(|security| security.namespace_options.clone());
    // The default of each field is POD, the value of a message that is absent.
    let options = options.unwrap_or(v1::NamespaceOption {
        pid: NamespaceMode::Container as i32,
        ..v1::NamespaceOption::default()
    });
    PodNamespaces {
        host_network: options.network() == NamespaceMode::Node,
        host_ipc: options.ipc() == NamespaceMode::Node,
        pid: options.pid(),
    }
}

/// A signal's number by its name, with or without `SIG`, or by its number.
pub(crate) fn signal_number(name: &str) -> Option<i32> {
    let name = name.trim().to_ascii_uppercase();
    let bare = name.strip_prefix("SIG").unwrap_or(&name);
    if let Ok(number) = bare.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let real_time = |from: i32, rest: &str| match rest {
        "" => Some(from),
        rest => Some(from + rest.trim_start_matches('+').replace('-', "-").parse::<i32>().ok()?),
    };
    if let Some(rest) = bare.strip_prefix("RTMIN") {
        return real_time(34, &rest.replace("PLUS", "+"));
    }
    if let Some(rest) = bare.strip_prefix("RTMAX") {
        return real_time(64, &rest.replace("MINUS", "-"));
    }
    SIGNALS.iter().find(|(known, _)| *known == bare).map(|(_, number)| *number)
}

/// Numbers of x86-64 and arm64, which agree.
const SIGNALS: &[(&str, i32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// The signal that asks a container to stop: the pod's, the image's, or SIGTERM.
pub(crate) fn stop_signal(config: &v1::ContainerConfig, image: &ImageConfig) -> i32 {
    let asked = config.stop_signal();
    if asked != v1::Signal::RuntimeDefault {
        let name = asked.as_str_name().trim_start_matches("SIGNAL_");
        if let Some(number) = signal_number(name) {
            return number;
        }
    }
    signal_number(&image.stop_signal).unwrap_or(linux::process::signal::TERM)
}

/// resolv.conf of a pod.
pub(crate) fn resolv_conf(dns: &v1::DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn command_and_args_replace_the_images() {
        let image = ImageConfig {
            entrypoint: texts(&["/entry"]),
            cmd: texts(&["default"]),
            ..ImageConfig::default()
        };
        let of = |command: &[&str], args: &[&str]| {
            let (command, args) = (texts(command), texts(args));
            arguments(&v1::ContainerConfig { command, args, ..Default::default() }, &image)
        };
        assert_eq!(of(&[], &[]), ["/entry", "default"]);
        assert_eq!(of(&[], &["x"]), ["/entry", "x"]);
        assert_eq!(of(&["/own"], &[]), ["/own"]);
        assert_eq!(of(&["/own"], &["x"]), ["/own", "x"]);
    }

    #[test]
    fn capabilities_are_added_dropped_and_bounded() {
        let of = |add: &[&str], drop: &[&str], available: Caps| {
            let asked = v1::Capability {
                add_capabilities: texts(add),
                drop_capabilities: texts(drop),
                ..Default::default()
            };
            let security = v1::LinuxContainerSecurityContext {
                capabilities: Some(asked),
                ..Default::default()
            };
            capabilities(&security, available).map(|(set, _)| set.names().collect::<Vec<_>>())
        };
        assert_eq!(of(&[], &[], Caps::ALL).unwrap().len(), 14);
        assert_eq!(of(&["NET_ADMIN"], &["ALL"], Caps::ALL).unwrap(), ["NET_ADMIN"]);
        assert_eq!(of(&["ALL"], &["CHOWN"], Caps::ALL).unwrap().len(), 40);
        assert_eq!(of(&["SYS_TIME"], &["ALL"], Caps::NONE).unwrap().len(), 0);
        assert!(of(&["NO_SUCH"], &[], Caps::ALL).is_err());
    }

    #[test]
    fn the_last_value_of_a_variable_counts() {
        let image = ImageConfig { env: texts(&["A=1", "B=2"]), ..Default::default() };
        let pair = |key: &str, value: &str| v1::KeyValue { key: key.into(), value: value.into() };
        let envs = vec![pair("B", "3"), pair("C", "x=y")];
        let config = v1::ContainerConfig { envs, ..Default::default() };
        assert_eq!(environment(&config, &image, "pod"), ["A=1", "B=3", "HOSTNAME=pod", "C=x=y"]);
    }

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(signal_number("SIGTERM"), Some(15));
        assert_eq!(signal_number("usr1"), Some(10));
        assert_eq!(signal_number("37"), Some(37));
        assert_eq!(signal_number("SIGRTMIN+3"), Some(37));
        assert_eq!(signal_number("SIGRTMAXMINUS1"), Some(63));
        assert_eq!(signal_number("SIGNOPE"), None);
    }

    #[test]
    fn outer_mounts_come_first() {
        let mount = |path: &str| v1::Mount {
            container_path: path.into(),
            host_path: "/src".into(),
            ..Default::default()
        };
        let config = v1::ContainerConfig {
            mounts: vec![mount("/a/b/c"), mount("/a"), mount("/etc/hostname")],
            ..Default::default()
        };
        let sandbox = SandboxView {
            config: &v1::PodSandboxConfig::default(),
            namespaces: Namespaces::default(),
            shared_memory: None,
            resolv_conf: Some("/r".into()),
            hostname_file: Some("/h".into()),
            hostname: String::new(),
        };
        let mounts = mounts(&config, &sandbox).unwrap();
        let targets: Vec<&str> = mounts.iter().map(|mount| &*mount.target).collect();
        assert_eq!(targets, ["/a", "/etc/resolv.conf", "/etc/hostname", "/a/b/c"]);
    }
}
