//! Seccomp profiles: our default one and those that pods bring, compiled once.
//!
//! The default allows what ordinary programs need and refuses the rest with EPERM, as the
//! runtimes of Docker, containerd and CRI-O agree to. Calls that a capability makes legitimate
//! are allowed to containers that have it.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use cri::v1::{self, security_profile::ProfileType};
use linux::{
    caps::Caps,
    seccomp::{self, Action, Compare, Condition, Rule},
    syscalls,
};
use serde::Deserialize;

use crate::error::{During, Error, Result};

/// Compiled filters: the default by capabilities.
pub(crate) struct Cache {
    directory: PathBuf,
    default: Mutex<BTreeMap<u64, Vec<u64>>>,
}

impl Cache {
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, default: Mutex::default() }
    }

    /// The filters that a container with this security context gets.
    pub fn filters(
        &self,
        security: &v1::LinuxContainerSecurityContext,
        available: Caps,
    ) -> Result<Vec<Vec<u64>>> {
        // Without a word about it, nothing is filtered: the kubelet decides the default.
        let Some(profile) = security.seccomp.as_ref().filter(|_| !security.privileged) else {
            return Ok(Vec::new());
        };
        match profile.profile_type() {
            ProfileType::Unconfined => Ok(Vec::new()),
            ProfileType::RuntimeDefault => {
                let caps = crate::plan::capabilities(security, available)?.0;
                Ok(vec![self.default_filter(caps)?])
            }
            ProfileType::Localhost => Ok(vec![self.localhost(&profile.localhost_ref)?]),
        }
    }

    fn default_filter(&self, caps: Caps) -> Result<Vec<u64>> {
        let mut filters = self.default.lock().unwrap_or_else(PoisonError::into_inner);
        let relevant = CAPABILITY_CALLS.iter().filter_map(|(name, _)| Caps::named(name));
        let key = relevant.fold(Caps::NONE, |all, cap| all.with(cap)).and(caps).0;
        if let Some(filter) = filters.get(&key) {
            return Ok(filter.clone());
        }
        let (default, rules) = default_rules(caps);
        let filter = compile(default, &rules)?;
        filters.insert(key, filter.clone());
        Ok(filter)
    }

    /// A profile of the node, in the JSON form that container engines share.
    fn localhost(&self, reference: &str) -> Result<Vec<u64>> {
        let path = self.directory.join(reference.trim_start_matches("localhost/"));
        let what = || format!("reading the seccomp profile {}", path.display());
        let bytes = fs::read(&path).during(what)?;
        let profile: Profile = serde_json::from_slice(&bytes).map_err(|error| {
            Error::Invalid(format!("the seccomp profile {} is malformed: {error}", path.display()))
        })?;
        let (default, rules) = profile.rules()?;
        compile(default, &rules)
    }
}

fn compile(default: Action, rules: &[Rule]) -> Result<Vec<u64>> {
    let filter = seccomp::compile(default, rules);
    Ok(filter.during(|| "compiling the seccomp profile".to_owned())?.0)
}

const EPERM: u16 = 1;
const ENOSYS: u16 = 38;

fn default_rules(caps: Caps) -> (Action, Vec<Rule>) {
    let mut rules = Vec::new();
    let mut allow = |name: &str, conditions: Vec<Condition>| {
        // A call that this architecture lacks needs no rule.
        if let Some(number) = syscalls::number(name) {
            rules.push(Rule { call: number as u32, conditions, action: Action::Allow });
        }
    };
    for name in ALLOWED.split_whitespace() {
        allow(name, Vec::new());
    }
    for (_, calls) in CAPABILITY_CALLS.iter().filter(|(name, _)| has(caps, name)) {
        for name in calls.split_whitespace() {
            allow(name, Vec::new());
        }
    }
    let is = |argument, compare, value| vec![Condition { argument, compare, value }];
    for personality in PERSONALITIES {
        allow("personality", is(0, Compare::Equal, *personality));
    }
    // Sockets of every family but those to the hypervisor's host.
    const AF_VSOCK: u64 = 40;
    allow("socket", is(0, Compare::NotEqual, AF_VSOCK));
    if !has(caps, "SYS_ADMIN") {
        allow("clone", is(0, Compare::MaskedEqual(NEW_NAMESPACES), 0));
        // Its flags lie behind a pointer, so libraries are told to fall back to `clone`.
        if let Some(number) = syscalls::number("clone3") {
            let action = Action::Errno(ENOSYS);
            rules.push(Rule { call: number as u32, conditions: Vec::new(), action });
        }
    }
    (Action::Errno(EPERM), rules)
}

fn has(caps: Caps, name: &str) -> bool {
    Caps::named(name).is_some_and(|cap| caps.contains(cap))
}

/// All `CLONE_NEW*` flags.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
/// Linux, Linux with 32-bit or short-inode quirks, and the query.
const PERSONALITIES: &[u64] = &[0x0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Allowed to everyone, whatever the arguments.
const ALLOWED: &str = "
    accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir chmod
    chown clock_adjtime clock_getres clock_gettime clock_nanosleep close close_range connect
    copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old
    epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit
    exit_group faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod fchmodat
    fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork fremovexattr
    fsetxattr fstat fstatfs fsync ftruncate futex futex_requeue futex_wait futex_waitv futex_wake
    futimesat get_mempolicy get_robust_list get_thread_area getcpu getcwd getdents getdents64
    getegid geteuid getgid getgroups getitimer getpeername getpgid getpgrp getpid getppid
    getpriority getrandom getresgid getresuid getrlimit getrusage getsid getsockname getsockopt
    gettid gettimeofday getuid getxattr getxattrat inotify_add_watch inotify_init inotify_init1
    inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit ioctl
    ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self
    lchown lgetxattr link linkat listen listmount listxattr listxattrat llistxattr lremovexattr
    lseek lsetxattr lstat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore
    mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap modify_ldt mprotect mq_getsetattr
    mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv
    msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat open openat
    openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll
    ppoll prctl pread64 preadv preadv2 prlimit64 process_mrelease process_vm_readv
    process_vm_writev pselect6 ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat
    readv recvfrom recvmmsg recvmsg remap_file_pages removexattr removexattrat rename renameat
    renameat2 restart_syscall riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask
    rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
    sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam
    sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop sendfile sendmmsg
    sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid
    setgroups setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid
    setsockopt setuid setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd
    signalfd4 socketpair splice stat statfs statmount statx symlink symlinkat sync sync_file_range
    syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime
    timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill truncate umask uname
    unlink unlinkat uretprobe utime utimensat utimes vfork vmsplice wait4 waitid write writev
";

/// Allowed with a capability.
const CAPABILITY_CALLS: &[(&str, &str)] = &[
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie
         lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount
         open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog
         umount umount2 unshare",
    ),
    ("SYS_BOOT", "reboot"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_MODULE", "delete_module finit_module init_module"),
    ("SYS_PACCT", "acct"),
    ("SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("SYS_RAWIO", "ioperm iopl"),
    ("SYS_TIME", "clock_settime settimeofday stime"),
    ("SYS_TTY_CONFIG", "vhangup"),
    ("SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("SYSLOG", "syslog"),
    ("BPF", "bpf"),
    ("PERFMON", "perf_event_open"),
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u16>,
    #[serde(default)]
    syscalls: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    name: Option<String>,
    action: String,
    errno_ret: Option<u16>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

impl Profile {
    fn rules(&self) -> Result<(Action, Vec<Rule>)> {
        let default = action(&self.default_action, self.default_errno_ret)?;
        let mut rules = Vec::new();
        for group in &self.syscalls {
            let action = action(&group.action, group.errno_ret)?;
            let arguments = group.args.as_deref().unwrap_or_default();
            let conditions: Vec<Condition> =
                arguments.iter().map(condition).collect::<Result<_>>()?;
            for name in group.names.iter().chain(&group.name) {
                // Profiles name calls of all architectures.
                let Some(number) = syscalls::number(name) else { continue };
                let call = number as u32;
                rules.push(Rule { call, conditions: conditions.clone(), action });
            }
        }
        Ok((default, rules))
    }
}

fn action(name: &str, errno: Option<u16>) -> Result<Action> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_ERRNO" => Action::Errno(errno.unwrap_or(EPERM)),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_TRACE" => Action::Trace(errno.unwrap_or(EPERM)),
        "SCMP_ACT_LOG" => Action::Log,
        other => return Err(Error::Invalid(format!("unknown seccomp action {other:?}"))),
    })
}

fn condition(argument: &Argument) -> Result<Condition> {
    let mut value = argument.value;
    let compare = match &*argument.op {
        "SCMP_CMP_EQ" => Compare::Equal,
        "SCMP_CMP_NE" => Compare::NotEqual,
        "SCMP_CMP_LT" => Compare::Less,
        "SCMP_CMP_LE" => Compare::LessOrEqual,
        "SCMP_CMP_GT" => Compare::Greater,
        "SCMP_CMP_GE" => Compare::GreaterOrEqual,
        "SCMP_CMP_MASKED_EQ" => {
            value = argument.value_two;
            Compare::MaskedEqual(argument.value)
        }
        other => return Err(Error::Invalid(format!("unknown seccomp comparison {other:?}"))),
    };
    if argument.index > 5 {
        return Err(Error::Invalid(format!("a call has no argument {}", argument.index)));
    }
    Ok(Condition { argument: argument.index, compare, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_profile_compiles_once_per_set_of_capabilities() {
        let cache = Cache::new(PathBuf::new());
        let plain = cache.default_filter(Caps::NONE).unwrap();
        assert_eq!(plain, cache.default_filter(Caps::named("CHOWN").unwrap()).unwrap());
        let admin = cache.default_filter(Caps::named("SYS_ADMIN").unwrap()).unwrap();
        assert_ne!(plain, admin);
        assert!(plain.len() < 1000, "{}", plain.len());
        assert_eq!(cache.default.lock().unwrap().len(), 2);
    }

    #[test]
    fn every_name_of_the_list_is_a_call_somewhere() {
        let elsewhere = ["riscv_hwprobe", "stime", "umount"];
        let names = ALLOWED.split_whitespace();
        let names =
            names.chain(CAPABILITY_CALLS.iter().flat_map(|(_, calls)| calls.split_whitespace()));
        let unknown: Vec<&str> = names
            .filter(|name| syscalls::number(name).is_none())
            .filter(|name| !elsewhere.contains(name))
            .collect();
        if cfg!(target_arch = "x86_64") {
            assert!(unknown.is_empty(), "{unknown:?}");
        }
    }

    #[test]
    fn a_profile_in_json_becomes_rules() {
        let text = r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": [
            {"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13,
             "args": [{"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]}]}"#;
        let profile: Profile = serde_json::from_str(text).unwrap();
        let (default, rules) = profile.rules().unwrap();
        assert_eq!((default, rules.len()), (Action::Errno(38), 2));
        assert_eq!(rules[1].action, Action::Errno(13));
        assert_eq!(rules[1].conditions[0].compare, Compare::Equal);
        assert!(action("SCMP_ACT_NOTIFY", None).is_err());
    }
}
