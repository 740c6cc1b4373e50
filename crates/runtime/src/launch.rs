//! What the agent and its shims say to each other: plain data, decided by the agent.
//!
//! The agent plans a container completely; the shim and the child that becomes the container only
//! carry the plan out. So everything here is serialised, and nothing here touches the system.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

/// A container to start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Launch {
    /// The container's state directory; the shim keeps its socket and its results there.
    pub directory: PathBuf,
    pub process: Process,
    pub root: Root,
    pub namespaces: Namespaces,
    pub mounts: Vec<BindMount>,
    /// Shared memory of the pod, bound at /dev/shm; none gives the container its own.
    pub shared_memory: Option<PathBuf>,
    /// Sees every device and a writable /sys.
    pub privileged: bool,
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
    pub devices: Vec<DeviceNode>,
    pub cgroup: CgroupView,
    pub log: Option<PathBuf>,
    /// Keep standard input open for attachments.
    pub stdin: bool,
    /// Close standard input when the first attachment that had it ends.
    pub stdin_once: bool,
}

/// A command to run beside the first process of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExecLaunch {
    pub process: Process,
    /// The container's first process, as this PID namespace counts.
    pub target_pid: i32,
    pub target_start: u64,
    /// `cgroup.procs` of every hierarchy, or the one directory of version 2.
    pub cgroup: Join,
}

/// The program and everything that is set right before it is executed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Process {
    pub args: Vec<String>,
    /// `NAME=value`; a missing PATH or HOME is filled in.
    pub env: Vec<String>,
    pub cwd: String,
    pub terminal: bool,
    pub user: User,
    /// Permitted, effective and bounding set.
    pub capabilities: u64,
    pub ambient: u64,
    pub no_new_privileges: bool,
    /// Compiled filters, in the order in which they are installed.
    pub seccomp: Vec<Vec<u64>>,
    pub oom_score_adj: Option<i64>,
    pub limits: Vec<ResourceLimit>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResourceLimit {
    /// A `RLIMIT_*` number.
    pub resource: u32,
    pub soft: Option<u64>,
    pub hard: Option<u64>,
}

/// Who runs the program; names are looked up in the image.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct User {
    /// `user`, `uid`, `user:group` or `uid:gid`; empty is root.
    pub spec: String,
    /// Goes before the spec's group.
    pub gid: Option<u32>,
    pub supplementary: Vec<u32>,
    /// Leave out the groups that the image's /etc/group adds.
    pub strict: bool,
}

/// A resolved [`User`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

/// The root file system: an overlay that only the container ever mounts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Root {
    /// The directory that the lower names are relative to, so that many layers fit in one page of
    /// mount options.
    pub layers: PathBuf,
    /// The image's layers, the topmost first.
    pub lower: Vec<String>,
    pub upper: PathBuf,
    pub work: PathBuf,
    /// An empty directory to mount at.
    pub mount_point: PathBuf,
    pub read_only: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Namespaces {
    /// Pinned namespaces to join; `None` is the host's.
    pub net: Option<PathBuf>,
    pub ipc: Option<PathBuf>,
    pub uts: Option<PathBuf>,
    pub pid: PidNamespace,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub enum PidNamespace {
    /// A new one, with the container's process as its first.
    #[default]
    Own,
    Host,
    /// That of this process, which must be the one that began at `start`.
    Of {
        pid: i32,
        start: u64,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BindMount {
    pub source: PathBuf,
    pub target: String,
    pub read_only: bool,
    /// Mounts below are read-only too.
    pub recursive_read_only: bool,
    pub propagation: Propagation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    Private,
    HostToContainer,
    Bidirectional,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    pub path: String,
    pub block: bool,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// How the container sees its control groups, and where its deaths by memory are counted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CgroupView {
    /// Directory name to mount options of version 1; empty with version 2.
    pub version1: BTreeMap<String, String>,
    pub read_only: bool,
    /// A file with an `oom_kill` line.
    pub oom_file: Option<PathBuf>,
    /// The directory with `cgroup.kill`, and all `cgroup.procs` of the group.
    pub kill_file: Option<PathBuf>,
}

/// How a process gets into its control groups.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Join {
    /// The one directory of a version 2 host: the process is born there.
    pub unified: Option<PathBuf>,
    /// `cgroup.procs` files of a version 1 or hybrid host: the process moves there.
    pub procs: Vec<PathBuf>,
}

/// Agent to shim. Descriptors travel beside the message.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Puts an idle child into the container's groups, ahead of the launch.
    Join(Join),
    /// Descriptor: the [`Launch`] in a memory file.
    Launch,
    /// Descriptors: the [`ExecLaunch`] in a memory file; without a terminal then stdin, stdout,
    /// stderr.
    Exec,
    /// Become the first process of a new PID namespace that containers share.
    Pause,
}

/// Shim to agent.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// The shim lives and listens.
    Born,
    Joined,
    /// Descriptor, for an exec with a terminal: our end of it.
    Started(Started),
    Failed(String),
    /// The end of an exec.
    Exited(i32),
}

/// A running container as its shim first reports it; kept in the state directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    pub pid: i32,
    pub start: u64,
    pub shim_pid: i32,
    pub shim_start: u64,
    pub identity: Identity,
    /// Nanoseconds since the Unix epoch.
    pub at: i64,
}

/// How a container ended; kept in the state directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    pub code: i32,
    pub out_of_memory: bool,
    /// Nanoseconds since the Unix epoch.
    pub at: i64,
    /// What ended it, where the code does not say: the agent's own finding.
    #[serde(default)]
    pub reason: Option<String>,
    #[serde(default)]
    pub message: String,
}

/// Names within a container's state directory.
pub mod file {
    pub const SOCKET: &str = "shim.sock";
    pub const STARTED: &str = "started.json";
    pub const ENDED: &str = "ended.json";
}

/// The frames on a shim's socket: a kind, a length (4 bytes, big endian), as many bytes.
pub mod frame {
    pub const STDIN: u8 = 0;
    pub const STDOUT: u8 = 1;
    pub const STDERR: u8 = 2;
    /// Columns and rows, 2 bytes each, big endian.
    pub const RESIZE: u8 = 3;
    pub const CLOSE_STDIN: u8 = 4;
    /// Opens the log file anew; answered by [`DONE`] or [`FAILED`].
    pub const REOPEN_LOG: u8 = 5;
    /// From now on the container's output comes to this connection.
    pub const ATTACH: u8 = 6;
    pub const DONE: u8 = 7;
    pub const FAILED: u8 = 8;
    /// The exit code, 4 bytes, big endian.
    pub const EXIT: u8 = 9;

    pub const HEADER_BYTES: usize = 5;

    pub fn encode(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
        bytes.push(kind);
        bytes.extend((payload.len() as u32).to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    /// The first whole frame of `bytes`: its kind, payload and total length.
    pub fn decode(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
        let length = u32::from_be_bytes(bytes.get(1..HEADER_BYTES)?.try_into().ok()?) as usize;
        let end = HEADER_BYTES + length;
        Some((bytes[0], bytes.get(HEADER_BYTES..end)?, end))
    }
}

#[cfg(test)]
mod tests {
    use super::frame;

    #[test]
    fn frames_come_back_whole_or_not_at_all() {
        let bytes = frame::encode(frame::STDOUT, b"hello");
        assert_eq!(frame::decode(&bytes), Some((frame::STDOUT, &b"hello"[..], 10)));
        assert_eq!(frame::decode(&bytes[..9]), None);
        assert_eq!(frame::decode(&[]), None);
    }
}
