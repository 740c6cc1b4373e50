//! Processes: fork and clone into namespaces, pidfds, exec, signals, limits.

use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    path::Path,
};

pub use rustix::process::Pid;

use crate::check;

/// Signals by their number.
pub mod signal {
    pub const TERM: i32 = libc::SIGTERM;
    pub const KILL: i32 = libc::SIGKILL;
    pub const PIPE: i32 = libc::SIGPIPE;
    pub const CHILD: i32 = libc::SIGCHLD;
}

/// Namespaces for [`clone_into`], [`unshare`] and [`set_namespaces`], as `CLONE_NEW*` bits.
pub mod ns {
    pub const MOUNT: u64 = libc::CLONE_NEWNS as u64;
    pub const PID: u64 = libc::CLONE_NEWPID as u64;
    pub const NET: u64 = libc::CLONE_NEWNET as u64;
    pub const IPC: u64 = libc::CLONE_NEWIPC as u64;
    pub const UTS: u64 = libc::CLONE_NEWUTS as u64;
    pub const CGROUP: u64 = libc::CLONE_NEWCGROUP as u64;
}

/// What a fork left us as.
#[derive(Debug)]
pub enum Forked {
    /// The parent, with the child's pid in the parent's PID namespace and its pidfd.
    Parent {
        pid: i32,
        pidfd: OwnedFd,
    },
    Child,
}

/// How to clone: all off is a plain `fork`.
#[derive(Clone, Copy, Debug, Default)]
pub struct CloneOptions<'a> {
    /// Namespaces to create, of [`ns`].
    pub namespaces: u64,
    /// The child becomes a sibling: its parent is ours.
    pub sibling: bool,
    /// A cgroup v2 directory that the child starts in.
    pub cgroup: Option<BorrowedFd<'a>>,
}

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Clones this process (`clone3`). Fails when it has more than one thread, because the child of
/// such a process may find a lock of the allocator held for ever.
pub fn clone_into(how: CloneOptions<'_>) -> io::Result<Forked> {
    refuse_threads()?;
    let mut pidfd: libc::c_int = -1;
    let mut args = CloneArgs {
        flags: how.namespaces | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if how.sibling {
        args.flags |= libc::CLONE_PARENT as u64;
        args.exit_signal = 0;
    }
    if let Some(cgroup) = how.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` lives through the call and `pidfd` is writable. Neither CLONE_VM nor a stack
    // is given, so the child runs on its own copy of this stack; the process has one thread, so
    // no lock is held by a thread that the child lacks.
    let pid =
        check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) })?;
    if pid == 0 {
        return Ok(Forked::Child);
    }
    // SAFETY: the kernel has stored a new descriptor there, which nothing else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Forked::Parent { pid: pid as i32, pidfd })
}

fn refuse_threads() -> io::Result<()> {
    // Asking to leave the thread group changes nothing where there is only one thread, and is
    // refused where there are more (unshare(2)).
    // SAFETY: without other threads the call has no effect.
    check(unsafe { libc::unshare(libc::CLONE_THREAD) })
        .map(drop)
        .map_err(|_| io::Error::other("a process with more than one thread cannot fork"))
}

/// Moves the calling thread into new namespaces (`unshare`).
///
/// MOUNT, NET, IPC, UTS and CGROUP concern the calling thread alone (MOUNT also parts its current
/// directory from the other threads'); PID concerns its children.
pub fn unshare(namespaces: u64) -> io::Result<()> {
    // SAFETY: only CLONE_NEW* bits pass; file descriptors stay shared.
    check(unsafe { libc::unshare((namespaces & ALL_NAMESPACES) as libc::c_int) })?;
    Ok(())
}

const ALL_NAMESPACES: u64 = ns::MOUNT | ns::PID | ns::NET | ns::IPC | ns::UTS | ns::CGROUP;

/// Joins the namespaces of `kinds` of the process behind `pidfd` (`setns`), or the one namespace
/// that `fd` (of /proc/…/ns/… or a bind mount of it) stands for.
pub fn set_namespaces(fd: BorrowedFd<'_>, kinds: u64) -> io::Result<()> {
    // SAFETY: setns touches no memory of ours.
    check(unsafe { libc::setns(fd.as_raw_fd(), kinds as libc::c_int) })?;
    Ok(())
}

/// Joins the one namespace that the file at `path` stands for.
pub fn join_namespace(path: &Path, kind: u64) -> io::Result<()> {
    use std::os::fd::AsFd;
    set_namespaces(fs::File::open(path)?.as_fd(), kind)
}

/// Replaces this process. Returns only on failure.
pub fn exec(program: &CString, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end with NULL and point to strings that live through the call.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends this process at once, without running destructors or flushing buffers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Gives every signal its default action and blocks none, as a new program expects it.
pub fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL is a valid action; signals that refuse it answer an error.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: the set is initialised by sigemptyset before it is used.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// Ignores `signal` in this process (and what it executes, until reset).
pub fn ignore_signal(signal: i32) {
    // SAFETY: SIG_IGN is a valid action.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// A pidfd for `pid`, readable once it has exited.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?)
}

/// Sends a signal by number; 0 only asks whether the process is there.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: no siginfo is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })?;
    Ok(())
}

/// Sends a signal by number to a process.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill touches no memory.
    check(unsafe { libc::kill(pid, signal) })?;
    Ok(())
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
}

impl Exit {
    /// The exit code as shells and Kubernetes count it: 128 and the signal's number for a signal.
    pub fn code(self) -> i32 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128 + signal,
        }
    }
}

/// Waits for any child to end: `None` without children or, with `block` off, when all run.
pub fn wait_any(block: bool) -> io::Result<Option<(i32, Exit)>> {
    wait_pid(-1, block)
}

/// Waits for the child `pid`; `None` when it is no child of ours or, with `block` off, runs.
pub fn wait_pid(pid: i32, block: bool) -> io::Result<Option<(i32, Exit)>> {
    let mut status = 0;
    // A sibling clone has no exit signal, hence __WALL.
    let options = libc::__WALL | if block { 0 } else { libc::WNOHANG };
    loop {
        // SAFETY: `status` is writable.
        match check(unsafe { libc::waitpid(pid, &mut status, options) }) {
            Ok(0) => return Ok(None),
            Ok(pid) if libc::WIFEXITED(status) => {
                return Ok(Some((pid as i32, Exit::Code(libc::WEXITSTATUS(status)))));
            }
            Ok(pid) if libc::WIFSIGNALED(status) => {
                return Ok(Some((pid as i32, Exit::Signal(libc::WTERMSIG(status)))));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// A descriptor that becomes readable whenever a signal of `signals` is pending; they are blocked
/// for this thread, so call it before any other thread exists.
pub fn signal_fd(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised before use, and the returned descriptor is new and ours.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, *signal);
        }
        check(libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()))?;
        let fd = check(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

/// When process `pid` began, in clock ticks since boot: with the pid it names one process for as
/// long as the machine runs.
pub fn start_time(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat).ok_or_else(|| io::Error::other("the process's stat line is malformed"))
}

fn parse_start_time(stat: &str) -> Option<u64> {
    // The name may contain anything, so fields are counted after its closing parenthesis.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Whether `pid` still is the process that began at `start`, and has not ended.
pub fn is_running(pid: i32, start: u64) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let zombie = stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'));
    !zombie && parse_start_time(&stat) == Some(start)
}

/// Orphans among the descendants come to this process instead of to PID 1.
pub fn become_subreaper() -> io::Result<()> {
    // SAFETY: a plain integer option.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) })?;
    Ok(())
}

/// Keeps other processes of the same user from reading this one's memory and /proc entries.
pub fn hide_from_others() -> io::Result<()> {
    // SAFETY: a plain integer option.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })?;
    Ok(())
}

/// Sends `signal` to this process when its parent thread ends.
pub fn die_with_parent(signal: i32) -> io::Result<()> {
    // SAFETY: a plain integer option.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal, 0, 0, 0) })?;
    Ok(())
}

/// The name that `ps` shows, at most 15 bytes.
pub fn set_name(name: &str) -> io::Result<()> {
    Ok(rustix::thread::set_name(&crate::c_string(name)?)?)
}

/// Sets the soft and hard limit of `resource` (a `RLIMIT_*` number), lowered to the present hard
/// limit where raising it is not permitted. `None` is unlimited.
pub fn set_limit(resource: u32, soft: Option<u64>, hard: Option<u64>) -> io::Result<()> {
    let number = |limit: Option<u64>| limit.unwrap_or(libc::RLIM_INFINITY);
    let wanted = libc::rlimit { rlim_cur: number(soft), rlim_max: number(hard) };
    // SAFETY: both structures live through the calls.
    unsafe {
        if libc::setrlimit(resource as _, &wanted) == 0 {
            return Ok(());
        }
        let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        check(libc::getrlimit(resource as _, &mut now))?;
        let ceiling = now.rlim_max.min(wanted.rlim_max);
        let lowered = libc::rlimit { rlim_cur: wanted.rlim_cur.min(ceiling), rlim_max: ceiling };
        check(libc::setrlimit(resource as _, &lowered))?;
    }
    Ok(())
}

/// Sets this process's `oom_score_adj`; where lowering is not permitted, it stays as it is.
pub fn set_oom_score_adj(score: i64) -> io::Result<()> {
    match fs::write("/proc/self/oom_score_adj", score.clamp(-1000, 1000).to_string()) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}

/// Sets user, group and supplementary groups of this process, which has one thread. Capabilities
/// are kept (not effective) until [`crate::caps::apply`] sets them.
pub fn set_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: `groups` is a valid array for its length; the rest are plain integers. libc's
    // wrappers change every thread, and there is one.
    unsafe {
        check(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0))?;
        check(libc::setgroups(groups.len(), groups.as_ptr()))?;
        check(libc::setresgid(gid, gid, gid))?;
        check(libc::setresuid(uid, uid, uid))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
        assert_eq!(parse_start_time(stat), Some(4242));
        assert_eq!(parse_start_time("7 (a"), None);
    }

    #[test]
    fn a_process_is_known_by_pid_and_start() {
        let pid = std::process::id() as i32;
        let start = start_time(pid).unwrap();
        assert!(is_running(pid, start));
        assert!(!is_running(pid, start + 1));
    }

    #[test]
    fn a_process_with_threads_does_not_fork() {
        let (_keep, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || wait.recv().is_err());
        assert!(clone_into(CloneOptions::default()).is_err());
        drop(_keep);
        assert!(thread.join().unwrap());
    }
}
