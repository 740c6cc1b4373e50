//! The operating system: the only crate of the workspace with `unsafe` code.
//!
//! It wraps what containers and node sandboxes need from the kernel and is absent from `std`:
//! processes in new namespaces ([`process`]), mounts ([`mount`]), control groups of either
//! version behind one type ([`cgroup`]), capabilities ([`caps`]), system call filters
//! ([`seccomp`]), terminals ([`pty`]), network namespaces ([`netns`], [`pinned`]) with their
//! links and routes over netlink ([`links`], [`routes`]), packet filters ([`nft`], [`nft_ruleset`],
//! [`conntrack`]), a copy of our own
//! program that a container cannot write to ([`exe`]) and sockets that carry file descriptors
//! ([`fdsocket`]).
//!
//! Invariants: nothing here knows Kubernetes or keeps state; functions that fork refuse to do so
//! in a process with more than one thread; every `unsafe` block says why it is sound.

pub mod caps;
pub mod cgroup;
pub mod conntrack;
pub mod devices;
pub mod exe;
pub mod fdsocket;
pub mod links;
pub mod mount;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod nft_expr;
pub mod nft_ruleset;
pub mod pinned;
pub mod process;
pub mod pty;
pub mod ready;
pub mod routes;
pub mod seccomp;
pub mod syscalls;

/// The result of `call`, a libc function that answers -1 and `errno` on failure.
pub(crate) fn check(call: impl Into<i64>) -> std::io::Result<i64> {
    match call.into() {
        -1 => Err(std::io::Error::last_os_error()),
        value => Ok(value),
    }
}

/// `text` as a C string; a NUL within it is an error.
pub(crate) fn c_string(text: impl AsRef<[u8]>) -> std::io::Result<std::ffi::CString> {
    std::ffi::CString::new(text.as_ref()).map_err(|_| {
        std::io::Error::new(std::io::ErrorKind::InvalidInput, "the text contains a NUL byte")
    })
}
