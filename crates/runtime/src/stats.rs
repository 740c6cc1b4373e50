//! Use of resources, from the control groups and the writable layers.

use std::{fs, os::unix::fs::MetadataExt, path::Path, sync::Arc};

use cri::v1;
use linux::cgroup;

use crate::{
    Runtime,
    container::Container,
    error::{During, Result},
    sandbox::Sandbox,
};

/// A container's use; what does not run has a writable layer only.
pub(crate) fn container(runtime: &Runtime, container: &Container) -> v1::ContainerStats {
    let now = runtime.now_ns();
    let attributes = v1::ContainerAttributes {
        id: container.id.clone(),
        metadata: container.config.metadata.clone(),
        labels: container.config.labels.clone(),
        annotations: container.config.annotations.clone(),
    };
    let running = container.running().is_ok();
    let stats = running.then(|| container.cgroup(runtime).stats().ok()).flatten();
    let upper = runtime.0.snapshot_directory(&container.id).join("upper");
    v1::ContainerStats {
        attributes: Some(attributes),
        cpu: stats.map(|stats| cpu(now, &stats)),
        memory: stats.map(|stats| memory(now, &stats)),
        swap: stats.map(|stats| v1::SwapUsage {
            timestamp: now,
            swap_available_bytes: None,
            swap_usage_bytes: value(stats.swap_usage_bytes),
        }),
        writable_layer: Some(directory_usage(now, &upper)),
        io: None,
    }
}

/// A pod's use: its group's, its network devices' and its containers'.
pub(crate) fn sandbox(runtime: &Runtime, sandbox: &Sandbox) -> v1::PodSandboxStats {
    let now = runtime.now_ns();
    let stats = sandbox.cgroup(runtime).stats().unwrap_or_default();
    let containers = runtime.containers_of(&sandbox.id);
    let of_containers = containers.iter().filter(|container| container.running().is_ok());
    let linux = v1::LinuxPodSandboxStats {
        cpu: Some(cpu(now, &stats)),
        memory: Some(memory(now, &stats)),
        network: sandbox.netns().and_then(|netns| network(now, &netns)),
        process: Some(v1::ProcessUsage { timestamp: now, process_count: value(stats.pids) }),
        containers: of_containers.map(|own| container(runtime, own)).collect(),
        io: None,
    };
    v1::PodSandboxStats {
        attributes: Some(v1::PodSandboxAttributes {
            id: sandbox.id.clone(),
            metadata: sandbox.config.metadata.clone(),
            labels: sandbox.config.labels.clone(),
            annotations: sandbox.config.annotations.clone(),
        }),
        linux: Some(linux),
        windows: None,
    }
}

fn value(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

fn cpu(now: i64, stats: &cgroup::Stats) -> v1::CpuUsage {
    v1::CpuUsage {
        timestamp: now,
        usage_core_nano_seconds: value(stats.cpu_usage_ns),
        usage_nano_cores: None,
        psi: None,
    }
}

fn memory(now: i64, stats: &cgroup::Stats) -> v1::MemoryUsage {
    let available =
        stats.memory_limit_bytes.map(|limit| limit.saturating_sub(stats.memory_working_set_bytes));
    v1::MemoryUsage {
        timestamp: now,
        working_set_bytes: value(stats.memory_working_set_bytes),
        available_bytes: available.and_then(value),
        usage_bytes: value(stats.memory_usage_bytes),
        rss_bytes: value(stats.memory_rss_bytes),
        page_faults: value(stats.page_faults),
        major_page_faults: value(stats.major_page_faults),
        psi: None,
    }
}

/// Bytes and files below `path`, as they lie on disk.
fn directory_usage(now: i64, path: &Path) -> v1::FilesystemUsage {
    let (mut bytes, mut files) = (0, 0);
    add_usage(path, &mut bytes, &mut files);
    v1::FilesystemUsage {
        timestamp: now,
        fs_id: Some(v1::FilesystemIdentifier { mountpoint: path.display().to_string() }),
        used_bytes: value(bytes),
        inodes_used: value(files),
    }
}

fn add_usage(path: &Path, bytes: &mut u64, files: &mut u64) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    *bytes += meta.blocks() * 512;
    *files += 1;
    if meta.is_dir() {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.for_each(|entry| add_usage(&entry.path(), bytes, files));
    }
}

/// Counters of a pod's network devices, its loopback excepted.
fn network(now: i64, netns: &Path) -> Option<v1::NetworkUsage> {
    let namespace = linux::netns::NetNs::open(netns).ok()?;
    let table = namespace.run(|| fs::read_to_string("/proc/thread-self/net/dev")).ok()?.ok()?;
    let mut interfaces = parse_devices(&table).into_iter();
    Some(v1::NetworkUsage {
        timestamp: now,
        default_interface: interfaces.next(),
        interfaces: interfaces.collect(),
    })
}

fn parse_devices(table: &str) -> Vec<v1::NetworkInterfaceUsage> {
    let line = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> =
            numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        Some(v1::NetworkInterfaceUsage {
            name: name.trim().to_owned(),
            rx_bytes: value(*numbers.first()?),
            rx_errors: value(*numbers.get(2)?),
            tx_bytes: value(*numbers.get(8)?),
            tx_errors: value(*numbers.get(10)?),
        })
    };
    table.lines().filter_map(line).filter(|usage| usage.name != "lo").collect()
}

/// The file system of images and of writable layers.
pub(crate) fn file_systems(runtime: &Runtime) -> Result<v1::ImageFsInfoResponse> {
    let now = runtime.now_ns();
    let root = &runtime.0.config.root;
    let what = || format!("looking at {}", root.display());
    fs::metadata(root).during(what)?;
    let images = runtime.0.images.list();
    let layers: std::collections::BTreeSet<&String> =
        images.iter().flat_map(|image| &image.layers).collect();
    let usage = |path: &Path, bytes, files| v1::FilesystemUsage {
        timestamp: now,
        fs_id: Some(v1::FilesystemIdentifier { mountpoint: path.display().to_string() }),
        used_bytes: value(bytes),
        inodes_used: value(files),
    };
    let image_bytes = layers.iter().map(|layer| runtime.0.images.layer_bytes(layer)).sum();
    let snapshots = root.join("snapshots");
    Ok(v1::ImageFsInfoResponse {
        image_filesystems: vec![usage(
            &runtime.0.images.layers(),
            image_bytes,
            layers.len() as u64,
        )],
        container_filesystems: vec![directory_usage(now, &snapshots)],
    })
}

pub(crate) fn matching_containers(
    runtime: &Runtime,
    filter: Option<v1::ContainerStatsFilter>,
) -> Vec<Arc<Container>> {
    let filter = filter.unwrap_or_default();
    let containers: Vec<_> = runtime.state().containers.values().cloned().collect();
    containers
        .into_iter()
        .filter(|container| {
            (filter.id.is_empty() || container.id.starts_with(&filter.id))
                && (filter.pod_sandbox_id.is_empty()
                    || container.sandbox_id == filter.pod_sandbox_id)
                && selects(&filter.label_selector, &container.config.labels)
        })
        .collect()
}

pub(crate) fn matching_sandboxes(
    runtime: &Runtime,
    filter: Option<v1::PodSandboxStatsFilter>,
) -> Vec<Arc<Sandbox>> {
    let filter = filter.unwrap_or_default();
    let sandboxes: Vec<_> = runtime.state().sandboxes.values().cloned().collect();
    sandboxes
        .into_iter()
        .filter(|sandbox| {
            (filter.id.is_empty() || sandbox.id.starts_with(&filter.id))
                && selects(&filter.label_selector, &sandbox.config.labels)
        })
        .collect()
}

/// Whether `labels` has everything that `wanted` says.
#[allow(clippy::disallowed_types)] // The generated messages use it; nothing iterates here in order.
pub(crate) fn selects(
    wanted: &std::collections::HashMap<String, String>,
    labels: &std::collections::HashMap<String, String>,
) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_counters_are_read_without_loopback() {
        let table = "Inter-| Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  \
                     eth0: 10 2 3 0 0 0 0 0 20 5 6 0 0 0 0 0\n";
        let devices = parse_devices(table);
        assert_eq!(devices.len(), 1);
        assert_eq!((&*devices[0].name, devices[0].rx_bytes.unwrap().value), ("eth0", 10));
        assert_eq!(devices[0].tx_errors.unwrap().value, 6);
    }
}
