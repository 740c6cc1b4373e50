//! Another command inside a running container, with the container's own confinement.

use std::{
    fs, io,
    io::Write,
    os::fd::{AsFd, OwnedFd},
};

use linux::{
    fdsocket,
    process::{self, CloneOptions, Forked, ns},
    pty,
};

use super::{
    During,
    container::{Step, set_streams},
    prepare, read_memory, receive, send, user,
};
use crate::launch::{ExecLaunch, Reply, Started};

/// Starts the command, reports it, waits for it and reports its end. The agent holds the streams.
pub(super) fn run(control: &OwnedFd, mut fds: Vec<OwnedFd>) -> io::Result<()> {
    if fds.is_empty() {
        return Err(io::Error::other("the exec came without its plan"));
    }
    let plan: ExecLaunch = read_memory(fds.remove(0))?;
    let (ours, theirs) = fdsocket::pair()?;
    let gone = || io::Error::other("the container is not running");
    let target = process::pidfd_open(plan.target_pid).map_err(|_| gone())?;
    if !process::is_running(plan.target_pid, plan.target_start) {
        return Err(gone());
    }
    // Opened before the container's mounts replace ours.
    let open = |path: &std::path::PathBuf| fs::OpenOptions::new().write(true).open(path);
    let groups: Vec<fs::File> = plan.cgroup.procs.iter().map(open).collect::<io::Result<_>>()?;
    let unified = plan.cgroup.unified.as_deref().map(fs::File::open).transpose()?;
    let all = ns::MOUNT | ns::NET | ns::IPC | ns::UTS | ns::CGROUP | ns::PID;
    process::set_namespaces(target.as_fd(), all)
        .during(|| "joining the container's namespaces".to_owned())?;
    let cgroup = unified.as_ref().map(AsFd::as_fd);
    match process::clone_into(CloneOptions { cgroup, ..CloneOptions::default() })? {
        Forked::Child => {
            drop(ours);
            let result = become_command(&theirs, &plan, groups, fds);
            let text = result.err().map(|error| error.to_string()).unwrap_or_default();
            let _ = send(&theirs, &Step::Failed(text), &[]);
            process::exit_now(126)
        }
        Forked::Parent { pid, .. } => {
            drop((theirs, fds, groups));
            supervise(control, &ours, pid)
        }
    }
}

fn supervise(control: &OwnedFd, command: &OwnedFd, pid: i32) -> io::Result<()> {
    let mut terminal = None;
    while let Some((step, mut fds)) = receive::<Step>(command)? {
        match step {
            Step::Terminal => terminal = fds.pop(),
            Step::Failed(text) => {
                process::wait_pid(pid, true)?;
                return Err(io::Error::other(text));
            }
            Step::Joined | Step::Cloned(_) | Step::Resolved(_) => {}
        }
    }
    // /proc is the container's by now; the agent reads the start time itself.
    let started = Started { pid, ..Started::default() };
    let fds: Vec<_> = terminal.iter().map(AsFd::as_fd).collect();
    send(control, &Reply::Started(started), &fds)?;
    drop(fds);
    drop(terminal);
    let code = process::wait_pid(pid, true)?.map_or(137, |(_, exit)| exit.code());
    send(control, &Reply::Exited(code), &[])
}

fn become_command(
    socket: &OwnedFd,
    plan: &ExecLaunch,
    groups: Vec<fs::File>,
    streams: Vec<OwnedFd>,
) -> io::Result<()> {
    let process = &plan.process;
    for mut group in groups {
        group.write_all(b"0").during(|| "joining the container's control group".to_owned())?;
    }
    prepare::set_limits(process)?;
    let terminal = process.terminal.then(pty::open).transpose();
    let terminal = terminal.during(|| "opening the terminal".to_owned())?;
    if let Some((ours, _)) = &terminal {
        send(socket, &Step::Terminal, &[ours.as_fd()])?;
    }
    let identity = user::resolve(&process.user)?;
    set_streams(&streams, terminal.as_ref().map(|(_, program)| program))?;
    drop((streams, terminal));
    prepare::execute(process, &identity)
}
