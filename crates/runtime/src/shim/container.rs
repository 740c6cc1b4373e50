//! From the agent's request to a running container: the shim's and the usher's side.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use linux::{
    fdsocket,
    process::{self, CloneOptions, Forked, ns},
    pty,
};
use serde::{Deserialize, Serialize};

use super::{During, log::Log, monitor, prepare, read_memory, receive, send};
use crate::launch::{Identity, Join, Launch, PidNamespace, Reply, Request, Started, file};

/// Usher and container to shim. The end of the socket means that the program runs.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Step {
    Joined,
    /// The container's process exists, with this pid.
    Cloned(i32),
    /// Descriptor: our end of the terminal.
    Terminal,
    Resolved(Identity),
    Failed(String),
}

/// Carries a container from its join through its launch to its end.
pub(super) fn run(control: &OwnedFd, join: Join) -> io::Result<()> {
    let (ours, theirs) = fdsocket::pair()?;
    let cgroup = join.unified.as_deref().map(fs::File::open).transpose()?;
    let how = CloneOptions { cgroup: cgroup.as_ref().map(AsFd::as_fd), ..Default::default() };
    let usher = match process::clone_into(how)? {
        Forked::Child => {
            drop(ours);
            end(&theirs, usher(&theirs, &join));
        }
        Forked::Parent { pid, .. } => pid,
    };
    drop((theirs, cgroup));
    match receive::<Step>(&ours)? {
        Some((Step::Joined, _)) => send(control, &Reply::Joined, &[])?,
        Some((Step::Failed(text), _)) => return Err(io::Error::other(text)),
        _ => return Err(io::Error::other("the container's first process ended unexpectedly")),
    }
    let Some((Request::Launch, mut fds)) = receive::<Request>(control)? else {
        // The agent thought better of it; the usher sees the same end.
        return Ok(());
    };
    if fds.is_empty() {
        return Err(io::Error::other("the launch came without its plan"));
    }
    let plan = fds.remove(0);
    let launch: Launch = read_memory(plan.try_clone()?)?;
    // A log that cannot be written must be told while there is somebody to tell.
    let log =
        Log::open(launch.log.as_deref()).during(|| "opening the container's log".to_owned())?;
    let (container, streams) = start(&ours, &launch, plan)?;
    drop(ours);
    process::wait_pid(usher, true)?;
    let socket = monitor::listen(&launch.directory)?;
    write_whole(&launch.directory, file::STARTED, &container, false)?;
    send(control, &Reply::Started(container.clone()), &[])?;
    monitor::run(&launch, &container, streams, log, socket)
}

/// The shim's ends of a container's standard streams.
#[derive(Debug, Default)]
pub(super) struct Streams {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

fn start(usher: &OwnedFd, launch: &Launch, plan: OwnedFd) -> io::Result<(Started, Streams)> {
    let mut streams = Streams::default();
    if launch.process.terminal {
        fdsocket::send(usher, b"go", &[plan.as_fd()])?;
    } else {
        let stdin = if launch.stdin {
            let (read, write) = io::pipe()?;
            streams.stdin = Some(write.into());
            OwnedFd::from(read)
        } else {
            fs::File::open("/dev/null")?.into()
        };
        let (stdout, stdout_of_container) = io::pipe()?;
        let (stderr, stderr_of_container) = io::pipe()?;
        (streams.stdout, streams.stderr) = (Some(stdout.into()), Some(stderr.into()));
        let (out, err) = (stdout_of_container.as_fd(), stderr_of_container.as_fd());
        fdsocket::send(usher, b"go", &[plan.as_fd(), stdin.as_fd(), out, err])?;
    }
    drop(plan);
    let mut started = Started {
        shim_pid: std::process::id() as i32,
        shim_start: process::start_time(std::process::id() as i32)?,
        ..Started::default()
    };
    while let Some((step, mut fds)) = receive::<Step>(usher)? {
        match step {
            Step::Cloned(pid) => started.pid = pid,
            Step::Resolved(identity) => started.identity = identity,
            Step::Terminal if fds.len() == 1 => {
                let terminal = fds.remove(0);
                streams.stdin = Some(terminal.try_clone()?);
                streams.stdout = Some(terminal);
            }
            Step::Failed(text) => return Err(io::Error::other(text)),
            Step::Joined | Step::Terminal => {}
        }
    }
    if started.pid == 0 {
        return Err(io::Error::other("the container's first process ended unexpectedly"));
    }
    // A program that is gone already keeps its entry until we wait for it.
    started.start = process::start_time(started.pid)?;
    started.at = super::log::now_ns();
    Ok((started, streams))
}

/// Ends the usher (or a container that could not start), telling the shim why.
fn end(socket: &OwnedFd, result: io::Result<()>) -> ! {
    if let Err(error) = result {
        let _ = send(socket, &Step::Failed(error.to_string()), &[]);
    }
    process::exit_now(0)
}

fn usher(socket: &OwnedFd, join: &Join) -> io::Result<()> {
    let _ = process::set_name("gantry-usher");
    for procs in &join.procs {
        fs::write(procs, "0").during(|| format!("joining {}", procs.display()))?;
    }
    send(socket, &Step::Joined, &[])?;
    let mut buffer = [0; 16];
    let (length, mut fds) = fdsocket::receive(socket, &mut buffer)?;
    if length == 0 || fds.is_empty() {
        return Ok(());
    }
    let launch: Launch = read_memory(fds.remove(0))?;
    join_namespaces(&launch)?;
    let mut namespaces = ns::MOUNT | ns::CGROUP;
    if matches!(launch.namespaces.pid, PidNamespace::Own) {
        namespaces |= ns::PID;
    }
    match process::clone_into(CloneOptions { namespaces, sibling: true, cgroup: None })
        .during(|| "creating the container's namespaces".to_owned())?
    {
        Forked::Child => end(socket, prepare::become_container(socket, &launch, fds)),
        Forked::Parent { pid, .. } => send(socket, &Step::Cloned(pid), &[]),
    }
}

fn join_namespaces(launch: &Launch) -> io::Result<()> {
    let names = &launch.namespaces;
    for (path, kind) in [(&names.net, ns::NET), (&names.ipc, ns::IPC), (&names.uts, ns::UTS)] {
        if let Some(path) = path {
            process::join_namespace(path, kind)
                .during(|| format!("joining the namespace {}", path.display()))?;
        }
    }
    if let PidNamespace::Of { pid, start } = names.pid {
        let pidfd = process::pidfd_open(pid)?;
        if !process::is_running(pid, start) {
            return Err(io::Error::other("the container whose processes to share has ended"));
        }
        process::set_namespaces(pidfd.as_fd(), ns::PID)?;
    }
    Ok(())
}

/// Holds a PID namespace open as its first process, and reaps its orphans.
pub(super) fn pause(control: &OwnedFd) -> io::Result<()> {
    let how = CloneOptions { namespaces: ns::PID, ..CloneOptions::default() };
    match process::clone_into(how)? {
        Forked::Parent { pid, .. } => {
            let start = process::start_time(pid)?;
            let shim_pid = std::process::id() as i32;
            let shim_start = process::start_time(shim_pid)?;
            let started = Started { pid, start, shim_pid, shim_start, ..Started::default() };
            send(control, &Reply::Started(started), &[])?;
            process::wait_pid(pid, true)?;
            Ok(())
        }
        Forked::Child => {
            let _ = process::set_name("pause");
            reap_for_ever()
        }
    }
}

fn reap_for_ever() -> ! {
    // PID 1 is sent no signal that it has no handler for, so only SIGCHLD needs care.
    let signals = process::signal_fd(&[process::signal::CHILD]);
    loop {
        while let Ok(Some(_)) = process::wait_any(false) {}
        let Ok(signals) = &signals else { process::exit_now(1) };
        let mut wait = [rustix::event::PollFd::new(signals, rustix::event::PollFlags::IN)];
        let _ = rustix::event::poll(&mut wait, None);
        let _ = rustix::io::read(signals, &mut [0u8; 128]);
    }
}

/// Writes `value` so that the file is either whole or absent; with `durable`, also after a crash
/// of the machine.
pub(super) fn write_whole<T: Serialize>(
    directory: &Path,
    name: &str,
    value: &T,
    durable: bool,
) -> io::Result<()> {
    use std::io::Write;
    let temporary = directory.join(format!("{name}.new"));
    let mut out = fs::File::create(&temporary)?;
    out.write_all(&serde_json::to_vec(value)?)?;
    if durable {
        out.sync_data()?;
    }
    fs::rename(&temporary, directory.join(name))
}

/// Puts the program's standard streams in place, in a session of its own.
pub(super) fn set_streams(fds: &[OwnedFd], terminal: Option<&OwnedFd>) -> io::Result<()> {
    let _ = rustix::process::setsid();
    if let Some(terminal) = terminal {
        pty::take_control(terminal)?;
        return (0..3).try_for_each(|number| pty::set_standard(terminal, number));
    }
    fds.iter().zip(0..3).try_for_each(|(fd, number)| pty::set_standard(fd, number))
}
