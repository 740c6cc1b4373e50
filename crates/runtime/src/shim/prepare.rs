//! Inside the new namespaces: mounts, root, and the last steps before the program.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use linux::{
    caps::{self, Caps},
    mount::{self, Attributes, Options, Propagation as Flow},
    process, pty, seccomp,
};
use rustix::fs::{CWD, FileType, Mode};

use super::{
    During,
    container::{Step, set_streams},
    send, user,
};
use crate::launch::{BindMount, DeviceNode, Identity, Launch, Process, Propagation};

/// Turns this process into the container's program. Returns only with an error.
pub(super) fn become_container(
    socket: &OwnedFd,
    launch: &Launch,
    streams: Vec<OwnedFd>,
) -> io::Result<()> {
    let process = &launch.process;
    set_limits(process)?;
    build_root(launch)?;
    let terminal = launch.process.terminal.then(pty::open).transpose();
    let terminal = terminal.during(|| "opening the terminal".to_owned())?;
    if let Some((ours, _)) = &terminal {
        send(socket, &Step::Terminal, &[ours.as_fd()])?;
    }
    let program = terminal.as_ref().map(|(_, program)| program);
    if let Some(program) = program {
        let device = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(program));
        bind_over(Path::new(&device), "/dev/console")?;
    }
    finish_mounts(launch)?;
    let identity = user::resolve(&process.user)?;
    send(socket, &Step::Resolved(identity.clone()), &[])?;
    set_streams(&streams, program)?;
    drop((streams, terminal));
    execute(process, &identity)
}

/// Limits that need the privileges we start with.
pub(super) fn set_limits(process: &Process) -> io::Result<()> {
    process::reset_signals();
    if let Some(score) = process.oom_score_adj {
        process::set_oom_score_adj(score).during(|| "setting oom_score_adj".to_owned())?;
    }
    for limit in &process.limits {
        process::set_limit(limit.resource, limit.soft, limit.hard)
            .during(|| format!("setting resource limit {}", limit.resource))?;
    }
    Ok(())
}

/// The last steps: user, capabilities, filter, program. Shared by containers and execs.
pub(super) fn execute(process: &Process, identity: &Identity) -> io::Result<()> {
    let keep = Caps(process.capabilities);
    let name = || "setting capabilities".to_owned();
    rustix::process::umask(Mode::from_raw_mode(0o022));
    create_working_directory(&process.cwd)?;
    // The program may open /dev/stdout anew, as the user that it runs as.
    for number in 0..3 {
        let _ = std::os::unix::fs::fchown(standard(number), Some(identity.uid), None);
    }
    pty::close_from_on_exec(3)?;
    caps::bound(keep).during(name)?;
    process::set_user(identity.uid, identity.gid, &identity.groups)
        .during(|| format!("becoming user {}", identity.uid))?;
    rustix::process::chdir(Path::new(&process.cwd))
        .during(|| format!("changing to the working directory {:?}", process.cwd))?;
    let env = user::complete_env(&process.env, &identity.home);
    // Found as the user, with the user's rights.
    let ambient = Caps(process.ambient);
    let filters = process.seccomp.iter().map(|words| seccomp::Filter(words.clone()));
    let filters: Vec<seccomp::Filter> = filters.collect();
    let sys_admin = Caps::named("SYS_ADMIN").unwrap_or_default();
    let argv: Vec<CString> = c_strings(&process.args)?;
    if process.no_new_privileges {
        caps::apply(keep, ambient).during(name)?;
        let program = find_program(&process.args, &env)?;
        let env = c_strings(&env)?;
        caps::forbid_new_privileges()?;
        install(&filters)?;
        Err(failed_to_execute(&program, process::exec(&program, &argv, &env)))
    } else {
        // Installing a filter asks for SYS_ADMIN, so the last capabilities go after it.
        caps::apply(keep.with(sys_admin), Caps::NONE).during(name)?;
        let program = find_program(&process.args, &env)?;
        let env = c_strings(&env)?;
        install(&filters)?;
        caps::apply(keep, ambient).during(name)?;
        Err(failed_to_execute(&program, process::exec(&program, &argv, &env)))
    }
}

fn install(filters: &[seccomp::Filter]) -> io::Result<()> {
    filters
        .iter()
        .try_for_each(seccomp::install)
        .during(|| "installing the seccomp filter".to_owned())
}

fn standard(number: usize) -> std::os::fd::BorrowedFd<'static> {
    match number {
        0 => rustix::stdio::stdin(),
        1 => rustix::stdio::stdout(),
        _ => rustix::stdio::stderr(),
    }
}

fn failed_to_execute(program: &CString, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("exec {}: {error}", program.to_string_lossy()))
}

fn c_strings(list: &[String]) -> io::Result<Vec<CString>> {
    let convert = |text: &String| {
        CString::new(text.as_str()).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidInput, "an argument contains a NUL byte")
        })
    };
    list.iter().map(convert).collect()
}

/// The file to execute: a path as it is, a bare name by the PATH that the program will have.
fn find_program(args: &[String], env: &[String]) -> io::Result<CString> {
    let name = args.first().ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, "no command is given by the pod or the image")
    })?;
    let missing = |text: &str| io::Error::new(io::ErrorKind::NotFound, text.to_owned());
    if name.contains('/') {
        return match fs::metadata(name) {
            Ok(meta) if meta.is_dir() => Err(missing(&format!("exec: {name:?}: is a directory"))),
            Ok(_) => Ok(c_strings(std::slice::from_ref(name))?.remove(0)),
            Err(error) => {
                let text = format!("exec: {name:?}: stat {name}: {}", describe(&error));
                Err(io::Error::new(error.kind(), text))
            }
        };
    }
    let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
    let runnable = |path: &PathBuf| {
        fs::metadata(path)
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    path.split(':')
        .map(|directory| Path::new(if directory.is_empty() { "." } else { directory }).join(name))
        .find(runnable)
        .and_then(|found| CString::new(found.into_os_string().into_encoded_bytes()).ok())
        .ok_or_else(|| missing(&format!("exec: {name:?}: executable file not found in $PATH")))
}

fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

fn create_working_directory(cwd: &str) -> io::Result<()> {
    match fs::create_dir_all(cwd) {
        // A read-only root, or a file in the way: changing to it tells that better.
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Mounts the root with everything that comes from outside, and moves into it.
fn build_root(launch: &Launch) -> io::Result<()> {
    // Copies are made before propagation is cut, because a two-way mount must stay a peer of the
    // host's.
    let trees: Vec<(OwnedFd, bool)> =
        launch.mounts.iter().map(copy_source).collect::<io::Result<_>>()?;
    let shared_memory = launch.shared_memory.as_deref().map(|path| mount::clone_tree(path, false));
    let shared_memory = shared_memory.transpose()?;
    let devices = host_devices(launch)?;
    mount::set_propagation(Path::new("/"), Flow::Slave, true)?;
    mount_overlay(launch)?;
    mount::pivot_into(&launch.root.mount_point).during(|| "changing the root".to_owned())?;
    mount_system(launch, &devices)?;
    attach_shared_memory(shared_memory)?;
    for (tree, bind) in trees.into_iter().zip(&launch.mounts) {
        place(tree, bind)?;
    }
    Ok(())
}

fn copy_source(bind: &BindMount) -> io::Result<(OwnedFd, bool)> {
    let what = || format!("mounting {} at {}", bind.source.display(), bind.target);
    let is_dir = fs::metadata(&bind.source).during(what)?.is_dir();
    let tree = mount::clone_tree(&bind.source, true).during(what)?;
    let propagation = match bind.propagation {
        Propagation::Private => Flow::Private,
        Propagation::HostToContainer => Flow::Slave,
        Propagation::Bidirectional => Flow::Shared,
    };
    mount::set_attributes(&tree, Attributes { propagation, recursive: true, ..Default::default() })
        .during(what)?;
    if bind.read_only {
        let recursive = bind.recursive_read_only;
        let attributes = Attributes { read_only: true, recursive, ..Default::default() };
        mount::set_attributes(&tree, attributes).during(what)?;
    }
    Ok((tree, is_dir))
}

/// Places a copied tree in the container; links on the way resolve within the container's root.
fn place((tree, is_dir): (OwnedFd, bool), bind: &BindMount) -> io::Result<()> {
    let target = Path::new("/").join(&bind.target);
    let what = || format!("mounting {} at {}", bind.source.display(), bind.target);
    create_target(&target, is_dir).during(what)?;
    // A mount onto a file of /proc would change what the kernel tells about a process.
    let real = fs::canonicalize(&target).during(what)?;
    if real.starts_with("/proc") && real != Path::new("/proc") {
        return Err(io::Error::other(format!(
            "{} lies in /proc and cannot be mounted on",
            bind.target
        )));
    }
    mount::attach(tree, &real).during(what)
}

fn create_target(target: &Path, is_dir: bool) -> io::Result<()> {
    if target.exists() {
        return Ok(());
    }
    if is_dir {
        return fs::create_dir_all(target);
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::OpenOptions::new().create(true).append(true).open(target).map(drop)
}

fn mount_overlay(launch: &Launch) -> io::Result<()> {
    let root = &launch.root;
    rustix::process::chdir(&root.layers)?;
    // The upper directory dies with the container, so nothing in it needs to reach the disk
    // before an unmount returns.
    let data = format!(
        "lowerdir={},upperdir={},workdir={},volatile",
        root.lower.join(":"),
        root.upper.display(),
        root.work.display()
    );
    let options = Options::default();
    mount::mount("overlay", &root.mount_point, options, &data)
        .during(|| "mounting the container's root file system".to_owned())
}

const SAFE: Options = Options { read_only: false, no_suid: true, no_dev: true, no_exec: true };

fn mount_system(launch: &Launch, devices: &[DeviceNode]) -> io::Result<()> {
    let what = |name: &'static str| move || format!("mounting {name}");
    for directory in ["/proc", "/dev", "/sys"] {
        fs::create_dir_all(directory).during(what(directory))?;
    }
    mount::mount("proc", Path::new("/proc"), SAFE, "").during(what("/proc"))?;
    let dev = Options { no_suid: true, ..Options::default() };
    mount::tmpfs(Path::new("/dev"), Some(64 << 20), 0o755, dev).during(what("/dev"))?;
    make_devices(devices)?;
    for directory in ["/dev/pts", "/dev/shm", "/dev/mqueue"] {
        fs::create_dir(directory)?;
    }
    let pts = Options { no_suid: true, no_exec: true, ..Options::default() };
    mount::mount("devpts", Path::new("/dev/pts"), pts, "newinstance,ptmxmode=0666,mode=0620,gid=5")
        .during(what("/dev/pts"))?;
    mount::mount("mqueue", Path::new("/dev/mqueue"), SAFE, "").during(what("/dev/mqueue"))?;
    let sys = Options { read_only: !launch.privileged, ..SAFE };
    mount::mount("sysfs", Path::new("/sys"), sys, "").during(what("/sys"))?;
    mount_cgroups(launch).during(what("/sys/fs/cgroup"))
}

fn mount_cgroups(launch: &Launch) -> io::Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    let view = &launch.cgroup;
    if !root.exists() {
        return Ok(());
    }
    if view.version1.is_empty() {
        mount::mount("cgroup2", root, SAFE, "")?;
        return if view.read_only { make_read_only(root, false) } else { Ok(()) };
    }
    mount::tmpfs(root, Some(1 << 20), 0o755, SAFE)?;
    for (name, options) in &view.version1 {
        let directory = root.join(name);
        fs::create_dir(&directory)?;
        mount::mount("cgroup", &directory, SAFE, options)?;
        // A read-only option of the mount call would concern the hierarchy, not this mount.
        if view.read_only {
            make_read_only(&directory, false)?;
        }
        for alias in name.split(',').filter(|alias| alias != name) {
            std::os::unix::fs::symlink(name, root.join(alias))?;
        }
    }
    if view.read_only { make_read_only(root, false) } else { Ok(()) }
}

fn attach_shared_memory(shared: Option<OwnedFd>) -> io::Result<()> {
    let target = Path::new("/dev/shm");
    match shared {
        Some(tree) => mount::attach(tree, target),
        None => mount::tmpfs(target, Some(64 << 20), 0o1777, SAFE),
    }
    .during(|| "mounting /dev/shm".to_owned())
}

/// The nodes to make: the plan's, and every one of the host for a privileged container.
fn host_devices(launch: &Launch) -> io::Result<Vec<DeviceNode>> {
    let mut nodes = launch.devices.clone();
    if launch.privileged {
        collect_devices(Path::new("/dev"), &mut nodes)?;
    }
    Ok(nodes)
}

fn collect_devices(directory: &Path, nodes: &mut Vec<DeviceNode>) -> io::Result<()> {
    for entry in fs::read_dir(directory)?.flatten() {
        let (Ok(meta), path) = (entry.path().symlink_metadata(), entry.path()) else { continue };
        let kind = meta.file_type();
        let text = path.display().to_string();
        let own = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/console", "/dev/ptmx"];
        if own.contains(&&*text) {
            continue;
        }
        if kind.is_dir() {
            collect_devices(&path, nodes)?;
        } else if (kind.is_block_device() || kind.is_char_device())
            && !nodes.iter().any(|node| node.path == text)
        {
            nodes.push(DeviceNode {
                path: text,
                block: kind.is_block_device(),
                major: rustix::fs::major(meta.rdev()),
                minor: rustix::fs::minor(meta.rdev()),
                mode: meta.mode() & 0o7777,
                uid: meta.uid(),
                gid: meta.gid(),
            });
        }
    }
    Ok(())
}

fn make_devices(nodes: &[DeviceNode]) -> io::Result<()> {
    let umask = rustix::process::umask(Mode::empty());
    for node in nodes {
        make_device(node).during(|| format!("making the device {}", node.path))?;
    }
    rustix::process::umask(umask);
    let links = [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
        ("pts/ptmx", "/dev/ptmx"),
        ("/proc/kcore", "/dev/core"),
    ];
    links.iter().try_for_each(|(to, from)| std::os::unix::fs::symlink(to, from))
}

fn make_device(node: &DeviceNode) -> io::Result<()> {
    let path = Path::new(&node.path);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let kind = if node.block { FileType::BlockDevice } else { FileType::CharacterDevice };
    let device = rustix::fs::makedev(node.major, node.minor);
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(node.mode), device)?;
    if (node.uid, node.gid) != (0, 0) {
        std::os::unix::fs::chown(path, Some(node.uid), Some(node.gid))?;
    }
    Ok(())
}

/// What comes after all mounts are placed: hidden and read-only paths, then the root itself.
fn finish_mounts(launch: &Launch) -> io::Result<()> {
    for path in &launch.readonly_paths {
        let path = Path::new(path);
        if path.exists() {
            let tree = mount::clone_tree(path, true)?;
            let attributes =
                Attributes { read_only: true, recursive: true, ..Attributes::default() };
            mount::set_attributes(&tree, attributes)?;
            mount::attach(tree, path).during(|| format!("protecting {}", path.display()))?;
        }
    }
    for path in &launch.masked_paths {
        mask(Path::new(path)).during(|| format!("masking {path}"))?;
    }
    if launch.root.read_only {
        make_read_only(Path::new("/"), false)?;
    }
    Ok(())
}

fn mask(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => {
            mount::tmpfs(path, Some(4096), 0o755, Options { read_only: true, ..SAFE })
        }
        Ok(_) => mount::bind(Path::new("/dev/null"), path),
        Err(_) => Ok(()),
    }
}

fn bind_over(source: &Path, target: &str) -> io::Result<()> {
    create_target(Path::new(target), false)?;
    mount::bind(source, Path::new(target)).during(|| format!("mounting {target}"))
}

fn make_read_only(path: &Path, recursive: bool) -> io::Result<()> {
    let handle = rustix::fs::open(path, rustix::fs::OFlags::PATH, Mode::empty())?;
    mount::set_attributes(handle, Attributes { read_only: true, recursive, ..Default::default() })
}
