//! `emptyDir`: scratch space on disk or in memory that lives as long as the pod.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use k8s_openapi::api::core::v1::EmptyDirVolumeSource;
use rustix::mount::{MountFlags, mount};

use super::ownership;
use crate::quantity;

pub fn set_up(
    path: &Path,
    source: &EmptyDirVolumeSource,
    group: Option<i64>,
) -> Result<(), String> {
    let made = path.exists();
    fs::create_dir_all(path).map_err(|error| format!("cannot make {}: {error}", path.display()))?;
    match source.medium.as_deref().unwrap_or_default() {
        "" => {}
        "Memory" => in_memory(path, source)?,
        other => return Err(format!("emptyDir medium {other:?} is not supported by this node")),
    }
    if made {
        return Ok(());
    }
    let open = || fs::set_permissions(path, fs::Permissions::from_mode(0o777));
    let owned = open().and_then(|()| group.map_or(Ok(()), |g| ownership::give_directory(path, g)));
    owned.map_err(|error| format!("cannot set the permissions of {}: {error}", path.display()))
}

fn in_memory(path: &Path, source: &EmptyDirVolumeSource) -> Result<(), String> {
    if super::mounts_below(path).iter().any(|point| point == path) {
        return Ok(());
    }
    let limit = source.size_limit.as_ref().and_then(|size| quantity::milli(&size.0));
    let options = match limit.filter(|&milli| milli > 0) {
        Some(milli) => format!("mode=0777,size={}", (milli + 999) / 1000),
        None => "mode=0777".to_owned(),
    };
    let options = std::ffi::CString::new(options).map_err(|error| error.to_string())?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", path, "tmpfs", flags, &*options)
        .map_err(|error| format!("cannot mount a tmpfs at {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anyone_may_write_and_content_survives() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("cache");
        let source = EmptyDirVolumeSource::default();
        set_up(&path, &source, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o777);
        fs::write(path.join("kept"), "x").unwrap();
        set_up(&path, &source, None).unwrap();
        assert!(path.join("kept").exists());
        let huge = EmptyDirVolumeSource { medium: Some("HugePages".into()), ..source };
        assert!(set_up(&path, &huge, None).unwrap_err().contains("HugePages"));
    }
}
