//! From a pod to what the runtime is asked to make.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use cri::v1;
use k8s_openapi::api::core::v1::VolumeMount;

use crate::{
    config::KubeletConfig,
    dns,
    pod::{Container, Pod, PodExt, container_hash},
    resources,
    runtime_state::keys,
    security,
};

/// The sandbox of a pod. `node_resolv_conf` is the text of the node's resolver configuration.
pub fn sandbox(
    pod: &Pod,
    attempt: u32,
    config: &KubeletConfig,
    node_resolv_conf: &str,
) -> v1::PodSandboxConfig {
    let mut labels: BTreeMap<String, String> = pod.metadata.labels.clone().unwrap_or_default();
    labels.insert(keys::POD_NAME.into(), pod.name().into());
    labels.insert(keys::POD_NAMESPACE.into(), pod.namespace().into());
    labels.insert(keys::POD_UID.into(), pod.uid().into());
    let mut annotations = pod.metadata.annotations.clone().unwrap_or_default();
    annotations.entry(keys::CONFIG_SOURCE.into()).or_insert_with(|| "api".into());
    let security = pod.spec().security_context.as_ref();
    let sysctls = security.and_then(|security| security.sysctls.clone()).unwrap_or_default();
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: pod.name().into(),
            uid: pod.uid().into(),
            namespace: pod.namespace().into(),
            attempt,
        }),
        hostname: if pod.host_network() { String::new() } else { dns::hostname(pod) },
        log_directory: path_text(&config.pod_log_dir(pod.namespace(), pod.name(), pod.uid())),
        dns_config: Some(dns::resolver(pod, config, node_resolv_conf)),
        port_mappings: port_mappings(pod),
        labels: labels.into_iter().collect(),
        annotations: annotations.into_iter().collect(),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: resources::cgroup_parent(pod, config),
            security_context: Some(security::of_sandbox(pod, config)),
            sysctls: sysctls.into_iter().map(|sysctl| (sysctl.name, sysctl.value)).collect(),
            overhead: None,
            resources: Some(resources::of_pod(pod)),
        }),
        windows: None,
    }
}

fn port_mappings(pod: &Pod) -> Vec<v1::PortMapping> {
    if pod.host_network() {
        return Vec::new();
    }
    let containers = pod.all_containers();
    let ports = containers.iter().flat_map(|(container, _)| container.ports.iter().flatten());
    ports
        .map(|port| v1::PortMapping {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => v1::Protocol::Udp as i32,
                Some("SCTP") => v1::Protocol::Sctp as i32,
                _ => v1::Protocol::Tcp as i32,
            },
            container_port: port.container_port,
            host_port: port.host_port.unwrap_or(0),
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}

/// What is known only when a container is about to be made.
pub struct ContainerInputs<'a> {
    pub image_ref: String,
    /// Numeric uid, or name, of the user that the image names.
    pub image_user: (Option<i64>, String),
    pub restart_count: u32,
    pub variables: Vec<(String, String)>,
    /// Volumes of the pod, and `subPath` parts already bound, by index of the mount.
    pub volumes: &'a BTreeMap<String, PathBuf>,
    pub sub_paths: BTreeMap<usize, PathBuf>,
    pub hosts_file: Option<PathBuf>,
    pub termination_log: PathBuf,
}

/// One container, or why it cannot be described (`CreateContainerConfigError`).
pub fn container(
    pod: &Pod,
    container: &Container,
    inputs: &ContainerInputs,
    config: &KubeletConfig,
) -> Result<v1::ContainerConfig, String> {
    let (uid, name) = &inputs.image_user;
    let security = security::of_container(pod, container, (*uid, name), config)?;
    let lookup = |name: &str| {
        inputs.variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    };
    let expand = |list: &Option<Vec<String>>| -> Vec<String> {
        let words = list.iter().flatten();
        words.map(|word| crate::env_vars::expand_with(word, lookup)).collect()
    };
    let mut image = crate::images::spec_of(&inputs.image_ref);
    image.user_specified_image = container.image.clone().unwrap_or_default();
    Ok(v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata {
            name: container.name.clone(),
            attempt: inputs.restart_count,
        }),
        image: Some(image),
        command: expand(&container.command),
        args: expand(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: inputs
            .variables
            .iter()
            .map(|(key, value)| v1::KeyValue {
                key: key.clone(),
                value: value.clone().into_bytes(),
            })
            .collect(),
        mounts: mounts(pod, container, inputs)?,
        devices: Vec::new(),
        labels: [
            (keys::POD_NAME, pod.name()),
            (keys::POD_NAMESPACE, pod.namespace()),
            (keys::POD_UID, pod.uid()),
            (keys::CONTAINER_NAME, &container.name),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into_iter()
        .collect(),
        annotations: annotations(pod, container, inputs).into_iter().collect(),
        log_path: format!("{}/{}.log", container.name, inputs.restart_count),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(resources::of_container(pod, container, config)),
            security_context: Some(security),
        }),
        stop_signal: stop_signal(container),
        ..v1::ContainerConfig::default()
    })
}

fn stop_signal(container: &Container) -> i32 {
    let lifecycle = container.lifecycle.as_ref();
    let name = lifecycle.and_then(|lifecycle| lifecycle.stop_signal.as_deref());
    let signal = name.and_then(|name| v1::Signal::from_str_name(&format!("SIGNAL_{name}")));
    signal.unwrap_or_default() as i32
}

fn annotations(
    pod: &Pod,
    container: &Container,
    inputs: &ContainerInputs,
) -> Vec<(String, String)> {
    let mut list = vec![
        (keys::HASH, container_hash(container)),
        (keys::RESTART_COUNT, inputs.restart_count.to_string()),
        (keys::TERMINATION_PATH, termination_path(container).to_owned()),
        (
            keys::TERMINATION_POLICY,
            container.termination_message_policy.clone().unwrap_or_else(|| "File".into()),
        ),
    ];
    if let Some(seconds) = pod.spec().termination_grace_period_seconds {
        list.push((keys::POD_GRACE, seconds.to_string()));
    }
    list.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

pub fn termination_path(container: &Container) -> &str {
    container.termination_message_path.as_deref().unwrap_or("/dev/termination-log")
}

fn mounts(
    pod: &Pod,
    container: &Container,
    inputs: &ContainerInputs,
) -> Result<Vec<v1::Mount>, String> {
    let mut mounts = Vec::new();
    let own = container.volume_mounts.as_deref().unwrap_or_default();
    for (index, mount) in own.iter().enumerate() {
        mounts.push(volume_mount(pod, mount, index, inputs)?);
    }
    let taken = |path: &str| own.iter().any(|mount| mount.mount_path == path);
    if let Some(hosts) = inputs.hosts_file.as_ref().filter(|_| !taken("/etc/hosts")) {
        mounts.push(bind(hosts, "/etc/hosts"));
    }
    let path = termination_path(container);
    if !path.is_empty() && !taken(path) {
        mounts.push(bind(&inputs.termination_log, path));
    }
    Ok(mounts)
}

fn bind(host: &Path, inside: &str) -> v1::Mount {
    v1::Mount {
        host_path: path_text(host),
        container_path: inside.to_owned(),
        ..v1::Mount::default()
    }
}

fn volume_mount(
    pod: &Pod,
    mount: &VolumeMount,
    index: usize,
    inputs: &ContainerInputs,
) -> Result<v1::Mount, String> {
    let volume = inputs.volumes.get(&mount.name);
    let volume = volume.ok_or_else(|| format!("volume {:?} is not mounted", mount.name))?;
    let host = inputs.sub_paths.get(&index).unwrap_or(volume);
    let propagation = match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => v1::MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") => v1::MountPropagation::PropagationBidirectional,
        _ => v1::MountPropagation::PropagationPrivate,
    };
    let inside = if mount.mount_path.starts_with('/') {
        mount.mount_path.clone()
    } else {
        format!("/{}", mount.mount_path)
    };
    Ok(v1::Mount {
        host_path: path_text(host),
        container_path: inside,
        readonly: mount.read_only == Some(true) || is_read_only(pod, &mount.name),
        propagation: propagation as i32,
        ..v1::Mount::default()
    })
}

/// Volumes whose content is the agent's are never written by containers.
fn is_read_only(pod: &Pod, name: &str) -> bool {
    pod.spec().volumes.iter().flatten().find(|volume| volume.name == name).is_some_and(|volume| {
        volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.downward_api.is_some()
            || volume.projected.is_some()
    })
}

pub fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_described() {
        let pod: Pod = serde_json::from_str(
            r#"{"metadata":{"name":"web","namespace":"a","uid":"u"},"spec":{
                "volumes":[{"name":"c","configMap":{"name":"c"}}],
                "containers":[{"name":"app","image":"img:1","command":["run","$(A)"],
                "volumeMounts":[{"name":"c","mountPath":"/etc/c"}]}]}}"#,
        )
        .unwrap();
        let volumes = BTreeMap::from([("c".to_owned(), PathBuf::from("/v/c"))]);
        let inputs = ContainerInputs {
            image_ref: "sha256:1".into(),
            image_user: (Some(0), String::new()),
            restart_count: 3,
            variables: vec![("A".into(), "b".into())],
            volumes: &volumes,
            sub_paths: BTreeMap::new(),
            hosts_file: Some("/h/hosts".into()),
            termination_log: "/h/log".into(),
        };
        let made =
            container(&pod, &pod.spec().containers[0], &inputs, &KubeletConfig::new("n")).unwrap();
        assert_eq!(made.command, ["run", "b"]);
        assert_eq!(made.log_path, "app/3.log");
        assert_eq!(made.labels[keys::POD_UID], "u");
        assert_eq!(made.annotations[keys::RESTART_COUNT], "3");
        let inside: Vec<_> =
            made.mounts.iter().map(|m| (m.container_path.as_str(), m.readonly)).collect();
        assert_eq!(
            inside,
            [("/etc/c", true), ("/etc/hosts", false), ("/dev/termination-log", false)]
        );
    }
}
