//! Descriptors in the async runtime.

use std::{io, os::fd::OwnedFd};

use tokio::io::unix::AsyncFd;

/// Registers `fd` with the reactor of the current runtime.
pub fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stands for one open descriptor for as long as it lives, and the
    // `AsyncFd` owns it until it is deregistered.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}
