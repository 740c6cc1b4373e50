//! From creation to removal.

use std::fs;

use cri::v1::{self, ContainerEventType as Event};
use stdx::Env;

use crate::support::{Node, Outcome, bind, security, texts, wait_log};

pub async fn output_goes_to_the_log() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let id = pod.run(&["sh", "-c", "echo out; echo err >&2; exit 3"]).await?;
    let status = pod.wait_exit(&id).await?;
    assert_eq!((status.exit_code, &*status.reason), (3, "Error"));
    let log = pod.log(&id).await?;
    let line = |stream: &str, text: &str| {
        log.lines().any(|line| line.ends_with(&format!(" {stream} F {text}")))
    };
    assert!(line("stdout", "out") && line("stderr", "err"), "{log}");
    let refused = pod.exec(&id, &["true"]).await.unwrap_err().to_string();
    assert!(refused.contains("is not running"), "{refused}");
    let id = pod.run(&["sleep", "1000"]).await?;
    let command = ["sh", "-c", "hostname; id -u; cat /etc/resolv.conf; echo $HOSTNAME $FROM $HOME"];
    let (code, out, _) = pod.exec(&id, &command).await?;
    assert_eq!((code, &*out), (0, "test-pod\n0\nnameserver 10.0.0.10\ntest-pod image /root\n"));
    pod.remove().await?;
    node.end().await
}

pub async fn a_stop_signal_ends_in_grace() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let script = "trap 'echo bye; exit 7' USR1; echo ready; while :; do sleep 0.05; done";
    let id = pod
        .run_with(&["sh", "-c", script], |config| config.stop_signal = v1::Signal::Sigusr1 as i32)
        .await?;
    wait_log(&pod, &id, "ready").await?;
    pod.stop(&id, 10).await?;
    let status = pod.status(&id).await?;
    assert_eq!((status.exit_code, status.state()), (7, v1::ContainerState::ContainerExited));
    assert!(pod.log(&id).await?.contains("bye"));
    assert!(status.started_at > 0 && status.finished_at >= status.started_at);
    pod.remove().await?;
    node.end().await
}

pub async fn a_deaf_container_is_killed() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let script = "trap '' TERM; (sleep 500 &); echo ready; while :; do sleep 1; done";
    let id = pod.run(&["sh", "-c", script]).await?;
    wait_log(&pod, &id, "ready").await?;
    let begun = Env::real().instant();
    pod.stop(&id, 1).await?;
    let took = begun.elapsed().as_millis();
    assert!((1000..4000).contains(&took), "{took} ms");
    assert_eq!(pod.status(&id).await?.exit_code, 137);
    pod.remove().await?;
    node.end().await
}

pub async fn a_command_that_is_missing_is_told() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let id = pod.create(pod.container(&["no-such-command"])).await?;
    let error = pod.start(&id).await.unwrap_err().to_string();
    assert!(error.contains("\"no-such-command\": executable file not found in $PATH"), "{error}");
    let status = pod.status(&id).await?;
    assert_eq!((status.exit_code, &*status.reason), (128, "StartError"));
    assert!(status.message.contains("no-such-command"));
    let id = pod.create(pod.container(&["/etc/passwd"])).await?;
    let error = pod.start(&id).await.unwrap_err().to_string();
    assert!(error.to_lowercase().contains("permission denied"), "{error}");
    pod.remove().await?;
    node.end().await
}

pub async fn bad_requests_leave_nothing() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let mut config = pod.container(&["true"]);
    config.image = Some(v1::ImageSpec { image: "absent".into(), ..Default::default() });
    let error = pod.create(config).await.unwrap_err().to_string();
    assert!(error.contains("absent"), "{error}");
    let start_error = async |change: fn(&mut v1::ContainerConfig)| {
        let mut config = pod.container(&["true"]);
        change(&mut config);
        let id = pod.create(config).await?;
        let error = pod.start(&id).await.err().map(|error| error.to_string());
        Ok::<_, Box<dyn std::error::Error>>(error.unwrap_or_default())
    };
    let error = start_error(|c| security(c).run_as_username = "nobody".into()).await?;
    assert!(error.contains("has no user \"nobody\""), "{error}");
    let error = start_error(|c| c.mounts = vec![bind("/no/such/source".as_ref(), "/mnt")]).await?;
    assert!(error.contains("/no/such/source"), "{error}");
    let error = start_error(|c| {
        security(c).capabilities =
            Some(v1::Capability { add_capabilities: texts(&["WINGS"]), ..Default::default() });
    });
    let error = error.await?;
    assert!(error.contains("WINGS"), "{error}");
    let refused = node.pod_with(|config| {
        let linux = config.linux.get_or_insert_default();
        linux.sysctls.insert("kernel.panic".into(), "1".into());
    });
    let error = refused.await.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("kernel.panic"), "{error}");
    pod.remove().await?;
    node.end().await
}

pub async fn containers_of_a_pod_share_what_they_should() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let first = pod.run(&["sh", "-c", "echo hello > /dev/shm/note; sleep 1000"]).await?;
    let second = pod.run(&["sleep", "1000"]).await?;
    let look = "cat /dev/shm/note; readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; \
                readlink /proc/self/ns/uts";
    let of_first = pod.exec(&first, &["sh", "-c", look]).await?.1;
    let of_second = pod.exec(&second, &["sh", "-c", look]).await?.1;
    assert!(of_first.starts_with("hello\nnet:["), "{of_first}");
    assert_eq!(of_first, of_second);
    let own = "readlink /proc/self/ns/mnt; readlink /proc/self/ns/pid";
    let of_first = pod.exec(&first, &["sh", "-c", own]).await?.1;
    assert_ne!(of_first, pod.exec(&second, &["sh", "-c", own]).await?.1);
    let host_net = fs::read_link("/proc/self/ns/net")?.display().to_string();
    let host = node
        .pod_with(|config| {
            let linux = config.linux.get_or_insert_default();
            let security = linux.security_context.get_or_insert_default();
            security.namespace_options = Some(v1::NamespaceOption {
                network: v1::NamespaceMode::Node as i32,
                pid: v1::NamespaceMode::Container as i32,
                ipc: v1::NamespaceMode::Node as i32,
                ..Default::default()
            });
        })
        .await?;
    let (_, out) = host.output(&["readlink", "/proc/self/ns/net"], |_| {}).await?;
    assert_eq!(out.trim(), host_net);
    host.remove().await?;
    pod.remove().await?;
    node.end().await
}

pub async fn pid_namespaces_are_as_asked() -> Outcome {
    let node = Node::start().await?;
    let with_pid = |mode: v1::NamespaceMode, target: &str| {
        let options = v1::NamespaceOption {
            pid: mode as i32,
            target_id: target.to_owned(),
            ..Default::default()
        };
        move |config: &mut v1::ContainerConfig| security(config).namespace_options = Some(options)
    };
    let pod = node
        .pod_with(|config| {
            let linux = config.linux.get_or_insert_default();
            let security = linux.security_context.get_or_insert_default();
            security.namespace_options = Some(v1::NamespaceOption::default());
        })
        .await?;
    let shared = with_pid(v1::NamespaceMode::Pod, "");
    let first = pod.run_with(&["sleep", "1000"], shared).await?;
    let shared = with_pid(v1::NamespaceMode::Pod, "");
    let (_, out) = pod.output(&["ps", "-o", "pid,comm"], shared).await?;
    assert!(out.contains("1 pause") && out.contains("sleep"), "{out}");
    pod.stop(&first, 0).await?;
    let target = pod.run(&["sleep", "999"]).await?;
    let (_, out) = pod.output(&["ps"], with_pid(v1::NamespaceMode::Target, &target)).await?;
    assert!(out.contains("sleep 999"), "{out}");
    let host = with_pid(v1::NamespaceMode::Node, "");
    // What a container without a PID namespace of its own leaves must end with it.
    let script = "(sleep 4321 &) ; sleep 0.1; ps | grep -c gantry-nursery";
    let (_, out) = pod.output(&["sh", "-c", script], host).await?;
    assert_ne!(out.trim(), "0");
    let left = || {
        fs::read_dir("/proc").into_iter().flatten().flatten().any(|entry| {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            line == b"sleep\04321\0"
        })
    };
    // Killed it is at once; to be gone it must run once more.
    for _ in (0..500).take_while(|_| left()) {
        Env::real().sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(!left(), "a process outlived its container");
    pod.remove().await?;
    node.end().await
}

pub async fn memory_beyond_the_limit_kills() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let eater = "x=$(head -c 1000000 /dev/zero | tr '\\0' x); while :; do x=\"$x$x\"; done";
    let id = pod
        .run_with(&["sh", "-c", eater], |config| {
            let resources = config.linux.get_or_insert_default().resources.get_or_insert_default();
            resources.memory_limit_in_bytes = 24 << 20;
        })
        .await?;
    let status = pod.wait_exit(&id).await?;
    assert_eq!((status.exit_code, &*status.reason), (137, "OOMKilled"));
    pod.remove().await?;
    node.end().await
}

pub async fn limits_change_while_running() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let id = pod.run(&["sleep", "1000"]).await?;
    let mut client = pod.client.clone();
    let resources = v1::LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        cpu_quota: 20_000,
        cpu_period: 100_000,
        cpu_shares: 512,
        ..Default::default()
    };
    client
        .update_container_resources(v1::UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(resources),
            ..Default::default()
        })
        .await?;
    drop(client);
    let read = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max; \
                cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max";
    let out = pod.exec(&id, &["sh", "-c", read]).await?.1;
    assert!(out.contains("67108864") && out.contains("20000"), "{out}");
    let resources = pod.status(&id).await?.resources.and_then(|r| r.linux).ok_or("resources")?;
    assert_eq!((resources.cpu_shares, resources.memory_limit_in_bytes), (512, 64 << 20));
    pod.remove().await?;
    node.end().await
}

pub async fn use_is_counted() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let script = "head -c 3000000 /dev/zero > /file; i=0; while [ $i -lt 50000 ]; do i=$((i+1)); \
                  done; echo done; sleep 1000";
    let id = pod.run(&["sh", "-c", script]).await?;
    wait_log(&pod, &id, "done").await?;
    let mut client = pod.client.clone();
    let request = v1::ContainerStatsRequest { container_id: id };
    let stats = client.container_stats(request).await?.into_inner().stats.ok_or("stats")?;
    let cpu = stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).ok_or("cpu")?.value;
    assert!(cpu > 1_000_000, "{cpu} ns");
    let memory = stats.memory.and_then(|memory| memory.working_set_bytes).ok_or("memory")?.value;
    assert!((4096..100 << 20).contains(&memory), "{memory} bytes");
    let disk = stats.writable_layer.and_then(|layer| layer.used_bytes).ok_or("layer")?.value;
    assert!((3_000_000..4_000_000).contains(&disk), "{disk} bytes");
    let request = v1::PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
    let stats = client.pod_sandbox_stats(request).await?.into_inner().stats.ok_or("stats")?;
    drop(client);
    assert_eq!(stats.linux.map(|linux| linux.containers.len()), Some(1));
    pod.remove().await?;
    node.end().await
}

pub async fn a_log_is_rotated_without_loss() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let script = "i=0; while [ $i -lt 300 ]; do echo line-$i; i=$((i+1)); sleep 0.002; done";
    let id = pod.run(&["sh", "-c", script]).await?;
    wait_log(&pod, &id, "line-20").await?;
    let path = pod.status(&id).await?.log_path;
    let old = format!("{path}.1");
    fs::rename(&path, &old)?;
    let request = v1::ReopenContainerLogRequest { container_id: id.clone() };
    pod.client.clone().reopen_container_log(request).await?;
    pod.wait_exit(&id).await?;
    let all = fs::read_to_string(&old)? + &fs::read_to_string(&path)?;
    let lines: Vec<&str> = all.lines().filter_map(|line| line.rsplit(' ').next()).collect();
    let expected: Vec<String> = (0..300).map(|number| format!("line-{number}")).collect();
    assert_eq!(lines, expected);
    pod.remove().await?;
    node.end().await
}

pub async fn events_tell_a_containers_life() -> Outcome {
    let node = Node::start().await?;
    let mut client = node.runtime_client();
    let mut events = client.get_container_events(v1::GetEventsRequest {}).await?.into_inner();
    let pod = node.pod().await?;
    let sandbox = pod.id.clone();
    let id = pod.run(&["true"]).await?;
    pod.wait_exit(&id).await?;
    pod.remove().await?;
    let mut seen = Vec::new();
    while seen.len() < 8 {
        let event = Env::real().timeout(std::time::Duration::from_secs(5), events.message()).await;
        let event = event.ok_or("an event is missing")??.ok_or("the stream ended")?;
        let of = if event.container_id == sandbox { "sandbox" } else { "container" };
        seen.push((of, event.container_event_type()));
    }
    let expected = [
        ("sandbox", Event::ContainerCreatedEvent),
        ("sandbox", Event::ContainerStartedEvent),
        ("container", Event::ContainerCreatedEvent),
        ("container", Event::ContainerStartedEvent),
        ("container", Event::ContainerStoppedEvent),
        ("sandbox", Event::ContainerStoppedEvent),
        ("container", Event::ContainerDeletedEvent),
        ("sandbox", Event::ContainerDeletedEvent),
    ];
    assert_eq!(seen, expected);
    drop((events, client));
    node.end().await
}
