//! Our own program as a container may see it: readable and executable, never writable.
//!
//! A process on its way into a container still runs our program, and /proc/self/exe of that
//! process is a door to the file. Its write side is shut by executing the file through a detached
//! read-only mount (costs no memory, shares the page cache with everyone), or, where the kernel
//! refuses one, from a sealed copy in memory.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};

use crate::mount;

/// A protected handle on the running program.
#[derive(Debug)]
pub struct ProtectedExe {
    file: OwnedFd,
    sealed_copy: bool,
}

impl ProtectedExe {
    pub fn open() -> io::Result<Self> {
        match read_only_mount() {
            Ok(file) => Ok(Self { file, sealed_copy: false }),
            Err(_) => Ok(Self { file: sealed_copy()?, sealed_copy: true }),
        }
    }

    /// A path to execute; valid in this process and, until it executes, in its children.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Whether this is a copy in memory (its size is then taken once).
    pub fn is_copy(&self) -> bool {
        self.sealed_copy
    }
}

fn read_only_mount() -> io::Result<OwnedFd> {
    let path = fs::read_link("/proc/self/exe")?;
    // The name must still be our file: it may have been replaced, or lie in another mount
    // namespace.
    use std::os::unix::fs::MetadataExt;
    let (named, running) = (fs::metadata(&path)?, fs::metadata("/proc/self/exe")?);
    if (named.dev(), named.ino()) != (running.dev(), running.ino()) {
        return Err(io::Error::other("the program's file was replaced"));
    }
    let tree = mount::clone_tree(&path, false)?;
    mount::set_attributes(
        &tree,
        mount::Attributes {
            read_only: true,
            propagation: mount::Propagation::Private,
            ..Default::default()
        },
    )?;
    Ok(tree)
}

fn sealed_copy() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = fs::File::from(rustix::fs::memfd_create("gantry", flags)?);
    io::copy(&mut fs::File::open("/proc/self/exe")?, &mut &copy)?;
    let all = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&copy, all)?;
    // Executing a file that is open for writing fails, so a read-only handle replaces ours.
    let path = format!("/proc/self/fd/{}", copy.as_fd().as_raw_fd());
    Ok(rustix::fs::open(Path::new(&path), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sealed_copy_cannot_be_written() {
        let copy = sealed_copy().unwrap();
        let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
        let written = fs::OpenOptions::new().write(true).open(&path).and_then(|mut file| {
            use io::Write;
            file.write_all(b"overwritten")
        });
        assert!(written.is_err());
        let ours = fs::read("/proc/self/exe").unwrap();
        assert!(fs::read(&path).unwrap() == ours);
    }
}
