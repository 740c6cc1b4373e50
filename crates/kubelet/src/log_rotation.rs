//! Keeps containers' logs within their size: the current file is moved aside, the runtime opens a
//! new one, older ones are compressed, the oldest are removed.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use cri::v1;
use flate2::{Compression, write::GzEncoder};
use stdx::{CancellationToken, Timestamp};

use crate::context::Context;

/// How often sizes are looked at while logs grow, and while none does.
const BUSY: Duration = Duration::from_secs(10);
const QUIET: Duration = Duration::from_secs(60);

pub async fn run(context: Arc<Context>, cancel: CancellationToken) {
    let mut total_before = 0;
    loop {
        let total = rotate_all(&context).await;
        let wait = if total == total_before { QUIET } else { BUSY };
        total_before = total;
        if cancel.run_until_cancelled(context.env.sleep(wait)).await.is_none() {
            return;
        }
    }
}

/// Rotates what is too large; gives the bytes of all current logs.
async fn rotate_all(context: &Context) -> u64 {
    let root = context.config.log_dir.clone();
    let found = context.env.blocking(move || current_logs(&root)).await.unwrap_or_default();
    let total = found.iter().map(|(_, bytes)| bytes).sum();
    let large =
        found.into_iter().filter(|(_, bytes)| *bytes > context.config.container_log_max_bytes);
    let large: Vec<PathBuf> = large.map(|(path, _)| path).collect();
    if large.is_empty() {
        return total;
    }
    let state = v1::ContainerStateValue { state: v1::ContainerState::ContainerRunning as i32 };
    let filter = v1::ContainerFilter { state: Some(state), ..v1::ContainerFilter::default() };
    let request = v1::ListContainersRequest { filter: Some(filter) };
    let Ok(listed) = context.runtime.clone().list_containers(request).await else { return total };
    for container in listed.into_inner().containers {
        let request =
            v1::ContainerStatusRequest { container_id: container.id.clone(), verbose: false };
        let Ok(answer) = context.runtime.clone().container_status(request).await else { continue };
        let path = answer.into_inner().status.map(|status| PathBuf::from(status.log_path));
        if let Some(path) = path.filter(|path| large.contains(path)) {
            if let Err(error) = rotate(context, &container.id, &path).await {
                tracing::warn!(path = %path.display(), %error, "a log was not rotated");
            }
        }
    }
    total
}

/// The current logs of all containers: `POD/CONTAINER/N.log`.
fn current_logs(root: &Path) -> Vec<(PathBuf, u64)> {
    let entries = |path: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let files = entries(root).into_iter().flat_map(|pod| entries(&pod)).flat_map(|c| entries(&c));
    files
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .filter_map(|path| std::fs::metadata(&path).ok().map(|found| (path, found.len())))
        .collect()
}

async fn rotate(context: &Context, id: &str, path: &Path) -> io::Result<()> {
    let aside = aside(path, context.env.now());
    std::fs::rename(path, &aside)?;
    let request = v1::ReopenContainerLogRequest { container_id: id.to_owned() };
    if let Err(status) = context.runtime.clone().reopen_container_log(request).await {
        // The container goes on writing to the old file: give it its name back.
        std::fs::rename(&aside, path)?;
        return Err(io::Error::other(status.message().to_owned()));
    }
    let (path, keep) = (path.to_owned(), context.config.container_log_max_files);
    let tidied = context.env.blocking(move || tidy(&path, keep)).await;
    tidied.unwrap_or_else(|| Err(io::Error::other("the compression panicked")))
}

/// `0.log` becomes `0.log.20260102-150405`.
fn aside(path: &Path, now: Timestamp) -> PathBuf {
    let stamp = now.rfc3339().replace(['-', ':', 'Z'], "").replace('T', "-");
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{stamp}"));
    name.into()
}

/// Removes the oldest rotated files and compresses all but the newest.
fn tidy(path: &Path, keep: u32) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let prefix = format!("{}.", path.file_name().unwrap_or_default().to_string_lossy());
    let mut rotated: Vec<PathBuf> = std::fs::read_dir(directory)?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect();
    rotated.sort();
    // The current file counts as one.
    let keep = keep.saturating_sub(1) as usize;
    let surplus = rotated.len().saturating_sub(keep);
    for old in rotated.drain(..surplus) {
        std::fs::remove_file(old)?;
    }
    rotated.pop();
    for plain in rotated.iter().filter(|path| path.extension().is_none_or(|end| end != "gz")) {
        compress(plain)?;
    }
    Ok(())
}

fn compress(plain: &Path) -> io::Result<()> {
    let mut name = plain.as_os_str().to_owned();
    name.push(".gz");
    let mut partial = name.clone();
    partial.push(".tmp");
    let mut encoder = GzEncoder::new(std::fs::File::create(&partial)?, Compression::fast());
    io::copy(&mut std::fs::File::open(plain)?, &mut encoder)?;
    encoder.finish()?;
    std::fs::rename(partial, name)?;
    std::fs::remove_file(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_and_older_ones_are_compressed() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("0.log");
        for n in 1..=4 {
            std::fs::write(root.path().join(format!("0.log.20260101-00000{n}")), "x").unwrap();
        }
        std::fs::write(&path, "now").unwrap();
        tidy(&path, 4).unwrap();
        let mut names: Vec<String> = std::fs::read_dir(root.path())
            .unwrap()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        assert_eq!(
            names,
            [
                "0.log",
                "0.log.20260101-000002.gz",
                "0.log.20260101-000003.gz",
                "0.log.20260101-000004"
            ]
        );
        let stamp = aside(&path, Timestamp::parse("2026-01-02T15:04:05Z").unwrap());
        assert!(stamp.to_string_lossy().ends_with("0.log.20260102-150405"));
    }
}
