//! Volumes of a pod: from the spec to directories on this node.
//!
//! [`set_up`] is idempotent: it is run before the sandbox is made and again when an object that a
//! volume shows has changed; what is as it should be is left alone. [`tear_down`] unmounts and
//! removes everything below the pod's directory.

mod atomic_writer;
mod content;
mod empty_dir;
mod host_path;
mod ownership;
mod sub_path;
mod token;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::Volume;
use stdx::Timestamp;

pub use self::content::data;
pub use self::sub_path::{expand as expand_sub_path, prepare as prepare_sub_path};
pub use self::token::Tokens;
use crate::{
    context::Context,
    objects::Wake,
    pod::{Pod, PodExt},
};

/// Where each volume lies, by its name.
#[derive(Clone, Debug, Default)]
pub struct Mounted {
    pub paths: BTreeMap<String, PathBuf>,
    /// When a token among the contents is to be renewed.
    pub refresh_at: Option<Timestamp>,
}

/// Why one volume cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("{kind} failed for volume {volume:?} : {text}")]
pub struct VolumeError {
    pub volume: String,
    pub kind: &'static str,
    pub text: String,
}

/// Makes every volume of the pod that its containers can mount.
pub async fn set_up(context: &Context, pod: &Pod, wake: &Wake) -> Result<Mounted, VolumeError> {
    let mut mounted = Mounted::default();
    for volume in pod.spec().volumes.iter().flatten() {
        let fail = |text: String| VolumeError {
            volume: volume.name.clone(),
            kind: "MountVolume.SetUp",
            text,
        };
        let path = one(context, pod, volume, wake, &mut mounted.refresh_at).await.map_err(fail)?;
        mounted.paths.insert(volume.name.clone(), path);
    }
    Ok(mounted)
}

/// Shows changed objects and renewed tokens in volumes that are mounted already.
pub async fn refresh(context: &Context, pod: &Pod, wake: &Wake) -> Result<Mounted, VolumeError> {
    set_up(context, pod, wake).await
}

async fn one(
    context: &Context,
    pod: &Pod,
    volume: &Volume,
    wake: &Wake,
    refresh_at: &mut Option<Timestamp>,
) -> Result<PathBuf, String> {
    let group = pod.spec().security_context.as_ref().and_then(|security| security.fs_group);
    let directory = |plugin: &str| {
        let pod_dir = context.config.pod_dir(pod.uid());
        pod_dir.join("volumes").join(format!("kubernetes.io~{plugin}")).join(&volume.name)
    };
    if let Some(source) = &volume.host_path {
        let source = source.clone();
        let path = PathBuf::from(&source.path);
        return blocking(context, move || host_path::check(&source).map(|()| path)).await;
    }
    if let Some(source) = &volume.empty_dir {
        let (source, path) = (source.clone(), directory("empty-dir"));
        return blocking(context, move || empty_dir::set_up(&path, &source, group).map(|()| path))
            .await;
    }
    if let Some(plugin) = content::plugin(volume) {
        let path = directory(plugin);
        let wanted = content::gather(context, pod, volume, wake).await?;
        if let Some(at) = wanted.refresh_at {
            *refresh_at = Some(refresh_at.map_or(at, |known| known.min(at)));
        }
        let now = context.env.now();
        let suffix = context.env.random_u64();
        return blocking(context, move || {
            atomic_writer::write(&path, &wanted.files, group, now, suffix)
                .map(|_| path)
                .map_err(|error| error.to_string())
        })
        .await;
    }
    Err(unsupported(volume))
}

/// The name of what this agent cannot mount yet.
fn unsupported(volume: &Volume) -> String {
    let what = if let Some(claim) = &volume.persistent_volume_claim {
        format!("persistentVolumeClaim {:?}", claim.claim_name)
    } else if let Some(driver) = &volume.csi {
        format!("csi driver {:?}", driver.driver)
    } else if volume.ephemeral.is_some() {
        "ephemeral".into()
    } else if volume.nfs.is_some() {
        "nfs".into()
    } else if volume.image.is_some() {
        "image".into()
    } else {
        "this".into()
    };
    format!("{what} volumes are not supported by this node")
}

async fn blocking<T: Send + 'static>(
    context: &Context,
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let done = context.env.blocking(work).await;
    done.unwrap_or_else(|| Err("the work on the volume panicked".into()))
}

/// Unmounts everything below the pod's directory, then removes it.
pub async fn tear_down(context: &Context, uid: &str) -> Result<(), String> {
    let directory = context.config.pod_dir(uid);
    blocking(context, move || remove_pod_dir(&directory)).await
}

/// Mounts below `directory` go first, the deepest first, so that removal cannot reach through
/// one into a host path.
fn remove_pod_dir(directory: &Path) -> Result<(), String> {
    if !directory.exists() {
        return Ok(());
    }
    let mut mounts = mounts_below(directory);
    mounts.sort_by_key(|path| std::cmp::Reverse(path.as_os_str().len()));
    for path in &mounts {
        rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH)
            .map_err(|error| format!("cannot unmount {}: {error}", path.display()))?;
    }
    if !mounts_below(directory).is_empty() {
        return Err(format!("something is still mounted below {}", directory.display()));
    }
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {error}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// The mount points below a directory, from the kernel's own list.
fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    points.filter(|point| point.starts_with(directory)).collect()
}

/// The kernel writes space, tab, newline and backslash as octal.
fn unescape(text: &str) -> PathBuf {
    let replaced = text
        .replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\");
    PathBuf::from(replaced)
}
