//! `securityContext` in the runtime's terms.

use cri::v1;
use k8s_openapi::api::core::v1::{SeccompProfile, SecurityContext};

use crate::{
    config::KubeletConfig,
    pod::{Container, Pod, PodExt},
};

/// Paths that unprivileged containers do not see, and those that they see read-only: the
/// defaults that all runtimes share.
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/interrupts",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

pub fn namespaces(pod: &Pod) -> v1::NamespaceOption {
    let spec = pod.spec();
    let node_or = |node: Option<bool>, other: v1::NamespaceMode| {
        if node == Some(true) { v1::NamespaceMode::Node as i32 } else { other as i32 }
    };
    let pid = if spec.share_process_namespace == Some(true) {
        v1::NamespaceMode::Pod
    } else {
        v1::NamespaceMode::Container
    };
    v1::NamespaceOption {
        network: node_or(spec.host_network, v1::NamespaceMode::Pod),
        pid: node_or(spec.host_pid, pid),
        ipc: node_or(spec.host_ipc, v1::NamespaceMode::Pod),
        ..v1::NamespaceOption::default()
    }
}

pub fn of_sandbox(pod: &Pod, config: &KubeletConfig) -> v1::LinuxSandboxSecurityContext {
    let security = pod.spec().security_context.clone().unwrap_or_default();
    let privileged = pod.all_containers().iter().any(|(container, _)| {
        container.security_context.as_ref().is_some_and(|s| s.privileged == Some(true))
    });
    v1::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod)),
        run_as_user: security.run_as_user.map(|value| v1::Int64Value { value }),
        run_as_group: security
            .run_as_user
            .and(security.run_as_group)
            .map(|value| v1::Int64Value { value }),
        supplemental_groups: supplemental_groups(pod),
        supplemental_groups_policy: groups_policy(pod),
        privileged,
        seccomp: Some(seccomp(security.seccomp_profile.as_ref(), privileged, config)),
        ..v1::LinuxSandboxSecurityContext::default()
    }
}

fn supplemental_groups(pod: &Pod) -> Vec<i64> {
    let security = pod.spec().security_context.as_ref();
    let listed = security.and_then(|security| security.supplemental_groups.clone());
    let mut groups = listed.unwrap_or_default();
    groups.extend(security.and_then(|security| security.fs_group));
    groups
}

fn groups_policy(pod: &Pod) -> i32 {
    let security = pod.spec().security_context.as_ref();
    let policy = security.and_then(|security| security.supplemental_groups_policy.as_deref());
    match policy {
        Some("Strict") => v1::SupplementalGroupsPolicy::Strict as i32,
        _ => v1::SupplementalGroupsPolicy::Merge as i32,
    }
}

fn seccomp(
    profile: Option<&SeccompProfile>,
    privileged: bool,
    config: &KubeletConfig,
) -> v1::SecurityProfile {
    use v1::security_profile::ProfileType;
    let of = |kind: ProfileType, local: String| v1::SecurityProfile {
        profile_type: kind as i32,
        localhost_ref: local,
    };
    match profile {
        Some(profile) => match profile.type_.as_str() {
            "RuntimeDefault" => of(ProfileType::RuntimeDefault, String::new()),
            "Localhost" => {
                let name = profile.localhost_profile.clone().unwrap_or_default();
                let path = config.root_dir.join("seccomp").join(name);
                of(ProfileType::Localhost, path.to_string_lossy().into_owned())
            }
            _ => of(ProfileType::Unconfined, String::new()),
        },
        None if config.seccomp_default && !privileged => {
            of(ProfileType::RuntimeDefault, String::new())
        }
        None => of(ProfileType::Unconfined, String::new()),
    }
}

/// The container's security context, or why it must not be made with this image's user.
pub fn of_container(
    pod: &Pod,
    container: &Container,
    image_user: (Option<i64>, &str),
    config: &KubeletConfig,
) -> Result<v1::LinuxContainerSecurityContext, String> {
    let own = container.security_context.clone().unwrap_or_default();
    let of_pod = pod.spec().security_context.clone().unwrap_or_default();
    let run_as_user = own.run_as_user.or(of_pod.run_as_user);
    let run_as_group = own.run_as_group.or(of_pod.run_as_group);
    if own.run_as_non_root.or(of_pod.run_as_non_root) == Some(true) {
        must_not_be_root(run_as_user, image_user)?;
    }
    let privileged = own.privileged == Some(true);
    let (image_uid, image_name) = image_user;
    // The image's user when the spec names none, so that runtimes need not look it up.
    let user = run_as_user.or(image_uid);
    let unmasked = privileged || own.proc_mount.as_deref() == Some("Unmasked");
    let paths = |list: &[&str]| -> Vec<String> {
        if unmasked { Vec::new() } else { list.iter().map(|path| (*path).to_owned()).collect() }
    };
    let profile = own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref());
    Ok(v1::LinuxContainerSecurityContext {
        capabilities: Some(capabilities(&own)),
        privileged,
        namespace_options: Some(namespaces(pod)),
        run_as_user: user.map(|value| v1::Int64Value { value }),
        run_as_group: run_as_group.map(|value| v1::Int64Value { value }),
        run_as_username: if user.is_none() { image_name.to_owned() } else { String::new() },
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: supplemental_groups(pod),
        supplemental_groups_policy: groups_policy(pod),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        seccomp: Some(seccomp(profile, privileged, config)),
        ..v1::LinuxContainerSecurityContext::default()
    })
}

fn capabilities(own: &SecurityContext) -> v1::Capability {
    let capabilities = own.capabilities.clone().unwrap_or_default();
    v1::Capability {
        add_capabilities: capabilities.add.unwrap_or_default(),
        drop_capabilities: capabilities.drop.unwrap_or_default(),
        ..v1::Capability::default()
    }
}

fn must_not_be_root(
    run_as_user: Option<i64>,
    image_user: (Option<i64>, &str),
) -> Result<(), String> {
    match (run_as_user, image_user) {
        (Some(0), _) => Err("container's runAsUser breaks non-root policy".into()),
        (Some(_), _) => Ok(()),
        (None, (Some(0), _)) | (None, (None, "")) => {
            Err("container has runAsNonRoot and image will run as root".into())
        }
        (None, (Some(_), _)) => Ok(()),
        (None, (None, name)) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: &str) -> Pod {
        serde_json::from_str(&format!(r#"{{"spec":{spec}}}"#)).unwrap()
    }

    #[test]
    fn root_is_refused_when_asked() {
        let pod = pod(r#"{"securityContext":{"runAsNonRoot":true},"containers":[{"name":"a"}]}"#);
        let config = KubeletConfig::new("n");
        let check = |user| of_container(&pod, &pod.spec().containers[0], user, &config);
        assert!(check((None, "")).is_err());
        assert!(check((None, "app")).unwrap_err().contains("non-numeric"));
        assert_eq!(check((Some(7), "")).unwrap().run_as_user.unwrap().value, 7);
    }

    #[test]
    fn seccomp_is_on_unless_privileged() {
        use v1::security_profile::ProfileType;
        let config = KubeletConfig::new("n");
        let kind = |spec: &str| {
            let pod = pod(spec);
            let made = of_container(&pod, &pod.spec().containers[0], (Some(0), ""), &config);
            made.unwrap().seccomp.unwrap().profile_type
        };
        let default = ProfileType::RuntimeDefault as i32;
        let none = ProfileType::Unconfined as i32;
        assert_eq!(kind(r#"{"containers":[{"name":"a"}]}"#), default);
        assert_eq!(
            kind(r#"{"containers":[{"name":"a","securityContext":{"privileged":true}}]}"#),
            none
        );
        let explicit = r#"{"containers":[{"name":"a","securityContext":{"seccompProfile":{"type":"Unconfined"}}}]}"#;
        assert_eq!(kind(explicit), none);
    }
}
