//! Giving a volume to the pod's `fsGroup`.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
};

/// A directory whose new files inherit the group.
pub fn give_directory(path: &Path, group: i64) -> io::Result<()> {
    chown(path, None, Some(group as u32))?;
    let mode = fs::metadata(path)?.permissions().mode() & 0o7777;
    fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o2770))
}
