//! Files that change all at once: the layout that readers of configMap, secret, downwardAPI and
//! projected volumes know.
//!
//! ```text
//! volume/..2026_11_24_10_00_00.5f3a…/dir/file   the files of one version
//! volume/..data -> ..2026_11_24_10_00_00.5f3a…  exchanged by one rename
//! volume/dir    -> ..data/dir                   what containers open
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Component, Path, PathBuf},
};

use stdx::Timestamp;

use super::ownership;

/// One file: its content, permission bits, and owner when it is not root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileContent {
    pub bytes: Vec<u8>,
    pub mode: u32,
    pub owner: Option<u32>,
}

/// Files by their path below the volume.
pub type Files = BTreeMap<String, FileContent>;

const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_tmp";

/// Makes the volume show `files`. `true` when something changed.
pub fn write(
    volume: &Path,
    files: &Files,
    group: Option<i64>,
    now: Timestamp,
    suffix: u64,
) -> io::Result<bool> {
    for path in files.keys() {
        check(path)?;
    }
    fs::create_dir_all(volume)?;
    let data = volume.join(DATA);
    let old = fs::read_link(&data).ok();
    if old.is_some() && is_current(&data, files, group) {
        link_entries(volume, files)?;
        return Ok(false);
    }
    let stamp = now.rfc3339().replace(['-', ':', 'T'], "_").replace('Z', "");
    let name = format!("..{stamp}.{suffix:016x}");
    write_version(&volume.join(&name), files, group)?;
    let next = volume.join(DATA_NEXT);
    let _ = fs::remove_file(&next);
    symlink(&name, &next)?;
    fs::rename(&next, &data)?;
    link_entries(volume, files)?;
    if let Some(old) = old {
        fs::remove_dir_all(volume.join(old))?;
    }
    if let Some(group) = group {
        ownership::give_directory(volume, group)?;
    } else {
        fs::set_permissions(volume, fs::Permissions::from_mode(0o755))?;
    }
    Ok(true)
}

/// A path that stays in the volume and cannot collide with the layout.
fn check(path: &str) -> io::Result<()> {
    let invalid = |why: &str| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("invalid path {path:?}: {why}"))
    };
    let components: Vec<_> = Path::new(path).components().collect();
    match components.first() {
        None => return Err(invalid("it must not be empty")),
        Some(Component::Normal(first)) if first.to_string_lossy().starts_with("..") => {
            return Err(invalid("it must not start with \"..\""));
        }
        _ => {}
    }
    if components.iter().any(|component| !matches!(component, Component::Normal(_))) {
        return Err(invalid("it must be relative and without \"..\""));
    }
    Ok(())
}

fn is_current(data: &Path, files: &Files, group: Option<i64>) -> bool {
    let present = list(data, Path::new("")).unwrap_or_default();
    let wanted: BTreeSet<PathBuf> = files.keys().map(PathBuf::from).collect();
    present == wanted
        && files.iter().all(|(path, content)| {
            let path = data.join(path);
            let mode = fs::metadata(&path).map(|found| found.permissions().mode() & 0o777);
            mode.is_ok_and(|mode| mode == wanted_mode(content, group))
                && fs::read(&path).is_ok_and(|bytes| bytes == content.bytes)
        })
}

fn wanted_mode(content: &FileContent, group: Option<i64>) -> u32 {
    // A group must be able to read what is mounted for it; these volumes are never written.
    if group.is_some() { content.mode | 0o440 } else { content.mode }
}

fn list(root: &Path, below: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            found.append(&mut list(root, &path)?);
        } else {
            found.insert(path);
        }
    }
    Ok(found)
}

fn write_version(directory: &Path, files: &Files, group: Option<i64>) -> io::Result<()> {
    let make_dir = |path: &Path| -> io::Result<()> {
        fs::create_dir_all(path)?;
        match group {
            Some(group) => ownership::give_directory(path, group),
            None => fs::set_permissions(path, fs::Permissions::from_mode(0o755)),
        }
    };
    make_dir(directory)?;
    for (path, content) in files {
        let path = directory.join(path);
        if let Some(parent) = path.parent().filter(|parent| *parent != directory) {
            make_dir(parent)?;
        }
        fs::write(&path, &content.bytes)?;
        // By chmod, since a mode at creation is subject to the umask.
        fs::set_permissions(&path, fs::Permissions::from_mode(wanted_mode(content, group)))?;
        let owner = content.owner;
        if owner.is_some() || group.is_some() {
            let gid = group.map(|gid| gid as u32);
            std::os::unix::fs::chown(&path, owner, gid)?;
        }
    }
    Ok(())
}

/// One link per first component; links to what is no longer there are removed.
fn link_entries(volume: &Path, files: &Files) -> io::Result<()> {
    let wanted: BTreeSet<&str> =
        files.keys().filter_map(|path| path.split('/').find(|part| !part.is_empty())).collect();
    for name in &wanted {
        let link = volume.join(name);
        let target = Path::new(DATA).join(name);
        if fs::read_link(&link).is_ok_and(|found| found == target) {
            continue;
        }
        symlink(target, link)?;
    }
    for entry in fs::read_dir(volume)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !wanted.contains(&*name) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(entries: &[(&str, &str)]) -> Files {
        let content = |text: &str| FileContent { bytes: text.into(), mode: 0o644, owner: None };
        entries.iter().map(|(path, text)| ((*path).to_owned(), content(text))).collect()
    }

    #[test]
    fn a_version_replaces_another_at_once() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("v");
        let now = Timestamp::from_secs(1_790_000_000);
        let one = files(&[("a", "1"), ("dir/b", "2")]);
        assert!(write(&volume, &one, None, now, 1).unwrap());
        assert_eq!(fs::read_to_string(volume.join("dir/b")).unwrap(), "2");
        assert!(fs::symlink_metadata(volume.join("dir")).unwrap().is_symlink());
        let before = fs::read_link(volume.join(DATA)).unwrap();
        assert!(!write(&volume, &one, None, now, 2).unwrap());
        assert_eq!(fs::read_link(volume.join(DATA)).unwrap(), before);

        let two = files(&[("a", "changed")]);
        assert!(write(&volume, &two, None, now, 3).unwrap());
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "changed");
        assert!(fs::symlink_metadata(volume.join("dir")).is_err());
        assert!(!volume.join(before).exists());
    }

    #[test]
    fn a_changed_mode_is_a_change() {
        let root = tempfile::tempdir().unwrap();
        let now = Timestamp::from_secs(1);
        let mut wanted = files(&[("a", "1")]);
        write(root.path(), &wanted, None, now, 1).unwrap();
        wanted.get_mut("a").unwrap().mode = 0o400;
        assert!(write(root.path(), &wanted, None, now, 2).unwrap());
        let mode = fs::metadata(root.path().join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o400);
    }

    #[test]
    fn paths_stay_inside() {
        for bad in ["", "/etc/x", "../x", "a/../../x", "..x", "./../x"] {
            assert!(check(bad).is_err(), "{bad}");
        }
        for good in ["a", "a/b", "a..b", ".hidden"] {
            assert!(check(good).is_ok(), "{good}");
        }
    }
}
