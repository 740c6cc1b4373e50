//! What a container may not do, read from inside.

use std::{fs, os::unix::fs::PermissionsExt};

use cri::v1::{self, security_profile::ProfileType};

use crate::support::{Node, Outcome, bind, security, texts, wait_log};

fn seccomp(kind: ProfileType, reference: &str) -> Option<v1::SecurityProfile> {
    Some(v1::SecurityProfile { profile_type: kind as i32, localhost_ref: reference.to_owned() })
}

pub async fn users_and_groups_are_the_images() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let id = pod
        .run_with(&["sleep", "1000"], |config| {
            security(config).run_as_username = "web".into();
            security(config).supplemental_groups = vec![1000, 2000];
            config.working_dir = "/made/for/me".into();
        })
        .await?;
    let out =
        pod.exec(&id, &["sh", "-c", "id -u; id -g; id -G; pwd; echo x > /dev/stdout"]).await?;
    assert_eq!(out.1, "33\n34\n34 50 1000 2000\n/made/for/me\nx\n", "{}", out.2);
    let user = pod.status(&id).await?.user.and_then(|user| user.linux).ok_or("user")?;
    assert_eq!((user.uid, user.gid, user.supplemental_groups), (33, 34, vec![34, 1000, 2000, 50]));
    let (_, out) = pod
        .output(&["sh", "-c", "id -u; id -g; grep CapEff /proc/self/status"], |config| {
            security(config).run_as_user = Some(v1::Int64Value { value: 1234 });
            security(config).run_as_group = Some(v1::Int64Value { value: 99 });
        })
        .await?;
    assert_eq!(out, "1234\n99\nCapEff:\t0000000000000000\n");
    pod.remove().await?;
    node.end().await
}

pub async fn capabilities_are_bounded() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let read = ["sh", "-c", "grep -E 'Cap(Eff|Bnd|Inh|Amb)|NoNewPrivs' /proc/self/status"];
    let (_, out) = pod.output(&read, |_| {}).await?;
    let default = "00000000a80425fb";
    assert!(out.contains(&format!("CapEff:\t{default}")), "{out}");
    assert!(out.contains(&format!("CapBnd:\t{default}")), "{out}");
    let change = |config: &mut v1::ContainerConfig| {
        security(config).no_new_privs = true;
        security(config).capabilities = Some(v1::Capability {
            add_capabilities: texts(&["NET_ADMIN"]),
            drop_capabilities: texts(&["ALL"]),
            ..Default::default()
        });
    };
    let id = pod.run_with(&["sleep", "1000"], change).await?;
    let out = pod.exec(&id, &read).await?.1;
    let lines: Vec<&str> = out.lines().collect();
    let expected = [
        "CapInh:\t0000000000000000",
        "CapEff:\t0000000000001000",
        "CapBnd:\t0000000000001000",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
    ];
    assert_eq!(lines, expected);
    pod.remove().await?;
    node.end().await
}

pub async fn the_default_filter_is_on_also_for_execs() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let read = ["grep", "Seccomp:", "/proc/self/status"];
    let id = pod
        .run_with(&["sleep", "1000"], |config| {
            security(config).seccomp = seccomp(ProfileType::RuntimeDefault, "");
        })
        .await?;
    assert_eq!(pod.exec(&id, &read).await?.1, "Seccomp:\t2\n");
    let (code, _, error) = pod.exec(&id, &["unshare", "-n", "true"]).await?;
    assert!(code != 0 && error.contains("not permitted"), "{error}");
    let change = |config: &mut v1::ContainerConfig| {
        security(config).run_as_user = Some(v1::Int64Value { value: 1000 });
        security(config).seccomp = seccomp(ProfileType::RuntimeDefault, "");
        security(config).no_new_privs = true;
    };
    assert_eq!(pod.output(&read, change).await?.1, "Seccomp:\t2\n");
    let unconfined = |config: &mut v1::ContainerConfig| {
        security(config).seccomp = seccomp(ProfileType::Unconfined, "");
    };
    assert_eq!(pod.output(&read, unconfined).await?.1, "Seccomp:\t0\n");
    let profiles = node.directory.path().join("seccomp");
    fs::create_dir_all(&profiles)?;
    let no_mkdir = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"#;
    fs::write(profiles.join("no-mkdir.json"), no_mkdir)?;
    let localhost = |config: &mut v1::ContainerConfig| {
        security(config).seccomp = seccomp(ProfileType::Localhost, "no-mkdir.json");
    };
    let (_, out) = pod.output(&["sh", "-c", "mkdir /x 2>&1"], localhost).await?;
    assert!(out.contains("No space left"), "{out}");
    pod.remove().await?;
    node.end().await
}

pub async fn paths_are_masked_and_read_only() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let script = "wc -c < /proc/interrupts; echo 1 > /proc/sys/kernel/panic; ls -A /sys/firmware; \
                  touch /sys/x; mkdir /sys/fs/cgroup/memory/x /sys/fs/cgroup/x; \
                  ls /dev | tr '\\n' ' '";
    let (_, out) = pod.output(&["sh", "-c", &format!("exec 2>&1; {script}")], |_| {}).await?;
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], "0", "{out}");
    assert_eq!(out.matches("Read-only file system").count(), 4, "{out}");
    let nodes =
        "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero ";
    assert_eq!(lines.last(), Some(&nodes), "{out}");
    pod.remove().await?;
    node.end().await
}

pub async fn the_root_can_be_read_only() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let volume = node.directory.path().join("volume");
    fs::create_dir(&volume)?;
    let script = "exec 2>&1; touch /x; touch /data/y && echo written; touch /dev/shm/z && echo shm";
    let (_, out) = pod
        .output(&["sh", "-c", script], |config| {
            security(config).readonly_rootfs = true;
            config.mounts = vec![bind(&volume, "/data")];
        })
        .await?;
    assert_eq!(out, "touch: /x: Read-only file system\nwritten\nshm\n");
    assert!(volume.join("y").exists());
    pod.remove().await?;
    node.end().await
}

pub async fn mounts_are_placed_within_the_root() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let volume = node.directory.path().join("volume");
    fs::create_dir_all(volume.join("sub"))?;
    fs::write(volume.join("file"), "content\n")?;
    // A link in the container's own files that leads out of it must end inside.
    let trap = format!("{}/out", node.directory.path().display());
    let first = pod.run(&["sh", "-c", &format!("ln -s {trap} /link; sleep 1000")]).await?;
    drop(first);
    let mut read_only = bind(&volume, "/a/b");
    read_only.readonly = true;
    let mounts = vec![bind(&volume.join("file"), "/etc/one-file"), read_only, bind(&volume, "/a")];
    let script = "exec 2>&1; cat /etc/one-file; touch /a/b/x; touch /a/y && echo ok; ls /a/b/sub";
    let (_, out) =
        pod.output(&["sh", "-c", script], |config| config.mounts = mounts.clone()).await?;
    assert_eq!(out, "content\ntouch: /a/b/x: Read-only file system\nok\n");
    let id = pod.create({
        let mut config = pod.container(&["true"]);
        config.mounts = vec![bind(&volume, "/proc/sys")];
        config
    });
    let error = pod.start(&id.await?).await.unwrap_err().to_string();
    assert!(error.contains("cannot be mounted on"), "{error}");
    assert!(!std::path::Path::new(&trap).exists());
    pod.remove().await?;
    node.end().await
}

pub async fn propagation_is_as_asked() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let volume = node.directory.path().join("volume");
    fs::create_dir(&volume)?;
    linux::mount::bind(&volume, &volume)?;
    linux::mount::set_propagation(&volume, linux::mount::Propagation::Shared, false)?;
    for name in ["from-host", "from-container"] {
        fs::create_dir(volume.join(name))?;
    }
    let with = |propagation: v1::MountPropagation| {
        let mount = v1::Mount { propagation: propagation as i32, ..bind(&volume, "/v") };
        move |config: &mut v1::ContainerConfig| {
            config.mounts = vec![mount];
            security(config).privileged = true;
        }
    };
    let private =
        pod.run_with(&["sleep", "1000"], with(v1::MountPropagation::PropagationPrivate)).await?;
    let slave = pod
        .run_with(&["sleep", "1000"], with(v1::MountPropagation::PropagationHostToContainer))
        .await?;
    let shared = pod
        .run_with(&["sleep", "1000"], with(v1::MountPropagation::PropagationBidirectional))
        .await?;
    let inner = volume.join("from-host");
    linux::mount::tmpfs(&inner, Some(4096), 0o755, linux::mount::Options::default())?;
    fs::write(inner.join("seen"), "")?;
    let sees = ["test", "-e", "/v/from-host/seen"];
    assert_eq!(pod.exec(&private, &sees).await?.0, 1);
    assert_eq!(pod.exec(&slave, &sees).await?.0, 0);
    assert_eq!(pod.exec(&shared, &sees).await?.0, 0);
    let mount = "mount -t tmpfs none /v/from-container && touch /v/from-container/seen";
    assert_eq!(pod.exec(&slave, &["sh", "-c", mount]).await?.0, 0);
    assert!(!volume.join("from-container/seen").exists());
    assert_eq!(pod.exec(&shared, &["sh", "-c", mount]).await?.0, 0);
    assert!(volume.join("from-container/seen").exists());
    pod.remove().await?;
    linux::mount::detach_below(&volume)?;
    node.end().await
}

pub async fn devices_are_restricted() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let loop_control = "mknod /dev/disk b 7 0 && cat /dev/disk";
    let script =
        format!("exec 2>&1; head -c 3 /dev/zero | wc -c; echo x > /dev/null; {loop_control}");
    let (_, out) = pod.output(&["sh", "-c", &script], |_| {}).await?;
    assert!(out.starts_with("3\n") && out.contains("Operation not permitted"), "{out}");
    let (_, out) = pod
        .output(&["sh", "-c", "ls -l /dev/own; head -c 1 /dev/own | wc -c"], |config| {
            config.devices = vec![v1::Device {
                container_path: "/dev/own".into(),
                host_path: "/dev/zero".into(),
                permissions: "r".into(),
            }];
        })
        .await?;
    assert!(out.contains("1,   5") && out.ends_with("1\n"), "{out}");
    pod.remove().await?;
    node.end().await
}

pub async fn a_privileged_container_sees_devices() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let script = "ls /dev | wc -l; touch /sys/fs/cgroup 2>/dev/null; wc -c < /proc/interrupts | head -c1; \
                  grep Seccomp: /proc/self/status; mount -t tmpfs none /mnt && echo mounted";
    let (_, out) = pod
        .output(&["sh", "-c", &format!("mkdir /mnt; {script}")], |config| {
            security(config).privileged = true;
            security(config).seccomp = seccomp(ProfileType::RuntimeDefault, "");
        })
        .await?;
    let devices: usize = out.lines().next().unwrap_or_default().trim().parse()?;
    let of_host = fs::read_dir("/dev")?.count();
    assert!(devices + 5 > of_host, "{devices} of {of_host}");
    assert!(out.contains("Seccomp:\t0") && out.contains("mounted"), "{out}");
    pod.remove().await?;
    node.end().await
}

/// The way of CVE-2019-5736: a program that is our own, and its file's write side.
pub async fn our_program_cannot_be_overwritten() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let before = fs::read("/proc/self/exe")?;
    let volume = node.directory.path().join("volume");
    fs::create_dir(&volume)?;
    fs::write(volume.join("evil"), "#!/proc/self/exe\n")?;
    fs::set_permissions(volume.join("evil"), fs::Permissions::from_mode(0o755))?;
    let script = "exec 2>&1; echo ready; while :; do \
                  for p in /proc/[0-9]*; do case $(readlink $p/exe) in /bin/busybox|'') ;; \
                  *) echo found; echo evil > $p/exe && echo written;; esac; done; done";
    let id = pod
        .run_with(&["sh", "-c", script], |config| {
            config.mounts = vec![bind(&volume, "/v")];
            security(config).privileged = true;
        })
        .await?;
    wait_log(&pod, &id, "ready").await?;
    for _ in 0..10 {
        // Whether it can be run does not matter; what it leaves behind does.
        let _ = pod.exec(&id, &["/v/evil"]).await;
        pod.exec(&id, &["true"]).await?;
    }
    pod.stop(&id, 0).await?;
    assert!(!pod.log(&id).await?.contains("written"));
    assert!(fs::read("/proc/self/exe")? == before);
    pod.remove().await?;
    node.end().await
}

pub async fn sysctls_stay_in_the_pod() -> Outcome {
    let node = Node::start().await?;
    let name = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    let before = fs::read_to_string(name)?;
    let pod = node
        .pod_with(|config| {
            let linux = config.linux.get_or_insert_default();
            linux.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "123".into());
            linux.sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
        })
        .await?;
    let (_, out) = pod.output(&["cat", name, "/proc/sys/kernel/shm_rmid_forced"], |_| {}).await?;
    assert_eq!(out, "123\n1\n");
    assert_eq!(fs::read_to_string(name)?, before);
    pod.remove().await?;
    node.end().await
}
