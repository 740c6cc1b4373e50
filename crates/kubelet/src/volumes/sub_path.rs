//! `subPath`: mounts a part of a volume, resolved so that links in it cannot lead outside.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, statat};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

/// `subPathExpr` with the container's variables; a variable that is not set is an error.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut missing = None;
    let expanded = crate::env_vars::expand_with(text, |name| {
        let value = lookup(name);
        if value.is_none() {
            missing.get_or_insert_with(|| name.to_owned());
        }
        value
    });
    match missing {
        None => Ok(expanded),
        Some(name) => Err(format!("missing value for {name:?}")),
    }
}

/// Binds the part of `volume` named `sub_path` at `target` and gives `target` back. A part that
/// is missing is made as a directory.
pub fn prepare(volume: &Path, sub_path: &str, target: &Path) -> Result<PathBuf, String> {
    let relative = Path::new(sub_path);
    if relative.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(format!("subPath {sub_path:?} must be relative and without \"..\""));
    }
    let tell = |error: io::Error| format!("cannot prepare subPath {sub_path:?}: {error}");
    let part = open_or_make(volume, relative).map_err(tell)?;
    bind(&part, target).map_err(tell)?;
    Ok(target.to_owned())
}

/// Opens below the volume; the kernel refuses every way out of it.
fn open_or_make(volume: &Path, relative: &Path) -> io::Result<OwnedFd> {
    let root = openat(CWD, volume, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match openat2(&root, relative, flags, Mode::empty(), beneath) {
        Ok(found) => return Ok(found),
        Err(rustix::io::Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let mut current = root;
    for part in relative.components() {
        let Component::Normal(name) = part else { continue };
        let name = Path::new(name);
        if statat(&current, name, AtFlags::SYMLINK_NOFOLLOW).is_err() {
            mkdirat(&current, name, Mode::from_raw_mode(0o750))?;
        }
        current = openat2(&current, name, flags, Mode::empty(), beneath)?;
    }
    Ok(current)
}

fn bind(part: &OwnedFd, target: &Path) -> io::Result<()> {
    // What an earlier start of the container left is of an earlier state of the volume.
    let _ = unmount(target, UnmountFlags::DETACH);
    let link = format!("/proc/self/fd/{}", part.as_raw_fd());
    if fs::metadata(&link)?.is_dir() {
        fs::create_dir_all(target)?;
    } else {
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::OpenOptions::new().create(true).append(true).open(target)?;
    }
    mount_bind(&link, target)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_cannot_lead_outside() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("v");
        fs::create_dir_all(volume.join("in")).unwrap();
        std::os::unix::fs::symlink("/etc", volume.join("out")).unwrap();
        std::os::unix::fs::symlink("in", volume.join("link")).unwrap();
        assert!(open_or_make(&volume, Path::new("out")).is_err());
        assert!(open_or_make(&volume, Path::new("out/passwd")).is_err());
        assert!(open_or_make(&volume, Path::new("link")).is_ok());
        open_or_make(&volume, Path::new("new/deep")).unwrap();
        assert!(volume.join("new/deep").is_dir());
        assert!(prepare(&volume, "../x", root.path()).is_err());
    }

    #[test]
    fn an_expression_needs_its_variables() {
        let lookup = |name: &str| (name == "POD").then(|| "web-0".to_owned());
        assert_eq!(expand("logs/$(POD)", lookup).unwrap(), "logs/web-0");
        assert!(expand("$(NONE)", lookup).is_err());
    }
}
