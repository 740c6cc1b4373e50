//! `hostPath`: checks what lies there against the type that was asked for.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt},
    path::Path,
};

use k8s_openapi::api::core::v1::HostPathVolumeSource;

pub fn check(source: &HostPathVolumeSource) -> Result<(), String> {
    let path = Path::new(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    if kind.is_empty() {
        // Upstream's runtimes make a missing directory; so that all do, it is made here.
        return if path.exists() { Ok(()) } else { make_dir(path) };
    }
    if kind == "DirectoryOrCreate" && !path.exists() {
        return make_dir(path);
    }
    if kind == "FileOrCreate" && !path.exists() {
        let made = OpenOptions::new().create(true).append(true).mode(0o644).open(path);
        return made.map(drop).map_err(|error| format!("cannot make {}: {error}", path.display()));
    }
    let fits = fs::metadata(path).map(|found| {
        let file_type = found.file_type();
        match kind {
            "Directory" | "DirectoryOrCreate" => file_type.is_dir(),
            "File" | "FileOrCreate" => file_type.is_file(),
            "Socket" => file_type.is_socket(),
            "CharDevice" => file_type.is_char_device(),
            "BlockDevice" => file_type.is_block_device(),
            _ => false,
        }
    });
    let what = match kind {
        "Directory" | "DirectoryOrCreate" => "a directory",
        "File" | "FileOrCreate" => "a file",
        "Socket" => "a socket file",
        "CharDevice" => "a character device",
        "BlockDevice" => "a block device",
        other => return Err(format!("hostPath type {other:?} is unknown")),
    };
    if fits.unwrap_or(false) {
        return Ok(());
    }
    Err(format!("hostPath type check failed: {} is not {what}", source.path))
}

fn make_dir(path: &Path) -> Result<(), String> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.map_err(|error| format!("cannot make {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_is_checked() {
        let root = tempfile::tempdir().unwrap();
        let source = |name: &str, kind: &str| HostPathVolumeSource {
            path: root.path().join(name).to_string_lossy().into_owned(),
            type_: Some(kind.into()),
        };
        check(&source("dir", "DirectoryOrCreate")).unwrap();
        check(&source("file", "FileOrCreate")).unwrap();
        check(&source("dir", "Directory")).unwrap();
        let wrong = check(&source("file", "Directory")).unwrap_err();
        assert!(wrong.ends_with("is not a directory"), "{wrong}");
        assert!(check(&source("none", "Socket")).unwrap_err().ends_with("is not a socket file"));
        assert!(check(&source("none", "CharDevice")).is_err());
    }
}
