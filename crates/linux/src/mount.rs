//! Mounts: classical calls by path, and detached trees that are placed later.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::CWD,
    mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags},
};

use crate::check;

/// How mount events travel between this mount and its peers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    /// As it is.
    #[default]
    Unchanged,
    Private,
    /// Events come in and none go out.
    Slave,
    Shared,
}

/// Attributes for [`set_attributes`]; what is off is left as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes {
    pub read_only: bool,
    pub no_suid: bool,
    pub no_dev: bool,
    pub no_exec: bool,
    pub propagation: Propagation,
    /// The mounts below too.
    pub recursive: bool,
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Changes a mount that `tree` stands for (`mount_setattr`).
pub fn set_attributes(tree: impl AsFd, wanted: Attributes) -> io::Result<()> {
    let bit = |on: bool, value: u64| if on { value } else { 0 };
    let attr = MountAttr {
        set: bit(wanted.read_only, libc::MOUNT_ATTR_RDONLY)
            | bit(wanted.no_suid, libc::MOUNT_ATTR_NOSUID)
            | bit(wanted.no_dev, libc::MOUNT_ATTR_NODEV)
            | bit(wanted.no_exec, libc::MOUNT_ATTR_NOEXEC),
        clear: 0,
        propagation: match wanted.propagation {
            Propagation::Unchanged => 0,
            Propagation::Private => libc::MS_PRIVATE,
            Propagation::Slave => libc::MS_SLAVE,
            Propagation::Shared => libc::MS_SHARED,
        },
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if wanted.recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a C string and `attr` lives through the call with its true size.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    })?;
    Ok(())
}

/// A detached copy of the mount at `path` (and of those below it), to be placed by [`attach`].
pub fn clone_tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(rustix::mount::open_tree(CWD, path, flags)?)
}

/// Places a detached tree at `target`.
pub fn attach(tree: impl AsFd, target: &Path) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
    Ok(rustix::mount::move_mount(tree, "", CWD, target, flags)?)
}

/// Options of [`mount`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    pub read_only: bool,
    pub no_suid: bool,
    pub no_dev: bool,
    pub no_exec: bool,
}

impl Options {
    fn flags(self) -> MountFlags {
        let mut flags = MountFlags::empty();
        flags.set(MountFlags::RDONLY, self.read_only);
        flags.set(MountFlags::NOSUID, self.no_suid);
        flags.set(MountFlags::NODEV, self.no_dev);
        flags.set(MountFlags::NOEXEC, self.no_exec);
        flags
    }
}

/// Mounts a file system of type `kind` (`tmpfs`, `proc`, `overlay`, …) with its own `data`.
pub fn mount(kind: &str, target: &Path, options: Options, data: &str) -> io::Result<()> {
    let data = crate::c_string(data)?;
    Ok(rustix::mount::mount(kind, target, kind, options.flags(), data.as_c_str())?)
}

/// A tmpfs of at most `size_bytes` (none: half of the memory), with `mode` for its root.
pub fn tmpfs(
    target: &Path,
    size_bytes: Option<u64>,
    mode: u32,
    options: Options,
) -> io::Result<()> {
    let size = size_bytes.map(|bytes| format!(",size={bytes}")).unwrap_or_default();
    mount("tmpfs", target, options, &format!("mode={mode:o}{size}"))
}

/// Binds `source` to `target`, without the mounts below it.
pub fn bind(source: &Path, target: &Path) -> io::Result<()> {
    Ok(rustix::mount::mount_bind(source, target)?)
}

/// Binds `source` with everything mounted below it.
pub fn bind_recursive(source: &Path, target: &Path) -> io::Result<()> {
    Ok(rustix::mount::mount_bind_recursive(source, target)?)
}

/// Makes the mount at `path` read-only without touching its file system (`bind,remount,ro`).
pub fn remount_read_only(path: &Path, options: Options) -> io::Result<()> {
    let flags = MountFlags::BIND | MountFlags::RDONLY | options.flags();
    Ok(rustix::mount::mount_remount(path, flags, c"")?)
}

/// Changes the propagation of the mount at `path`.
pub fn set_propagation(path: &Path, propagation: Propagation, recursive: bool) -> io::Result<()> {
    let mut flags = match propagation {
        Propagation::Unchanged => return Ok(()),
        Propagation::Private => MountPropagationFlags::PRIVATE,
        Propagation::Slave => MountPropagationFlags::DOWNSTREAM,
        Propagation::Shared => MountPropagationFlags::SHARED,
    };
    flags.set(MountPropagationFlags::REC, recursive);
    Ok(rustix::mount::mount_change(path, flags)?)
}

/// Takes the topmost mount at `path` away, as soon as nobody uses it. Its absence is no error.
pub fn detach(path: &Path) -> io::Result<()> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Takes every mount at and below `path` away, the last mounted first.
pub fn detach_below(path: &Path) -> io::Result<()> {
    for mount in table()?.iter().rev().filter(|mount| mount.point.starts_with(path)) {
        detach(&mount.point)?;
    }
    Ok(())
}

/// Makes `root` the root of this mount namespace and drops the old one.
pub fn pivot_into(root: &Path) -> io::Result<()> {
    rustix::process::chdir(root)?;
    // The old root lands on top of the new one and is taken away from there, so that the image
    // needs no directory for it.
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

/// One line of /proc/self/mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// The directory within the file system that is the root of this mount.
    pub root: PathBuf,
    pub point: PathBuf,
    /// The file system's type.
    pub kind: String,
    pub source: String,
    pub super_options: String,
    /// Options of the mount itself, as `rw,nosuid`.
    pub options: String,
}

/// All mounts that this process sees, in the order in which they were made.
pub fn table() -> io::Result<Vec<Mounted>> {
    Ok(parse_table(&fs::read_to_string("/proc/self/mountinfo")?))
}

fn parse_table(text: &str) -> Vec<Mounted> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Mounted> {
    let (own, fs) = line.split_once(" - ")?;
    let own: Vec<&str> = own.split(' ').collect();
    let mut fs = fs.splitn(3, ' ');
    Some(Mounted {
        root: unescape(own.get(3)?).into(),
        point: unescape(own.get(4)?).into(),
        options: (*own.get(5)?).to_owned(),
        kind: fs.next()?.to_owned(),
        source: unescape(fs.next()?),
        super_options: fs.next().unwrap_or_default().to_owned(),
    })
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        match after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte as char);
                rest = &after[3..];
            }
            None => {
                plain.push('\\');
                rest = after;
            }
        }
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_table_is_read() {
        let line = "36 35 98:0 /sub /mnt/a\\040b rw,noatime shared:1 - ext4 /dev/sda rw,errors=x";
        let mounted = parse_line(line).unwrap();
        assert_eq!(mounted.point, Path::new("/mnt/a b"));
        assert_eq!(mounted.root, Path::new("/sub"));
        assert_eq!((&*mounted.kind, &*mounted.super_options), ("ext4", "rw,errors=x"));
        assert!(parse_line("broken").is_none());
    }

    #[test]
    fn this_process_has_a_root_mount() {
        assert!(table().unwrap().iter().any(|mounted| mounted.point == Path::new("/")));
    }
}
