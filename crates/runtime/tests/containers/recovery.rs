//! Ends of agents, shims and nurseries that nobody asked for.

use std::fs;

use cri::v1;
use serde_json::Value;
use stdx::Env;

use crate::support::{Node, Outcome, Pod, Result, wait_log};

/// A number from what the shim wrote down.
fn recorded(node: &Node, id: &str, field: &str) -> Result<i32> {
    let state = crate::support::config(node.directory.path()).state;
    let path = state.join("containers").join(id).join("started.json");
    let record: Value = serde_json::from_slice(&fs::read(path)?)?;
    Ok(record[field].as_i64().ok_or("the record lacks the field")? as i32)
}

/// The pod as a client of the restarted agent.
fn again(node: &Node, pod: Pod) -> Pod {
    Pod { client: node.runtime_client(), ..pod }
}

pub async fn containers_outlive_the_agent() -> Outcome {
    let node = Node::start().await?;
    let mut pod = node.pod().await?;
    let script =
        "i=0; while [ $i -lt 400 ]; do echo line-$i; i=$((i+1)); sleep 0.002; done; exit 6";
    let id = pod.run(&["sh", "-c", script]).await?;
    let other = pod.run(&["sleep", "1000"]).await?;
    wait_log(&pod, &id, "line-10").await?;
    pod.client = cri::Endpoint::connect_lazy("unix:///nowhere")?.runtime();
    let node = node.restart().await?;
    let pod = again(&node, pod);
    let status = pod.status(&other).await?;
    assert_eq!(status.state(), v1::ContainerState::ContainerRunning);
    let (code, out, _) = pod.exec(&other, &["echo", "still here"]).await?;
    assert_eq!((code, &*out), (0, "still here\n"));
    assert_eq!(pod.wait_exit(&id).await?.exit_code, 6);
    let log = pod.log(&id).await?;
    let lines: Vec<&str> = log.lines().filter_map(|line| line.rsplit(' ').next()).collect();
    let expected: Vec<String> = (0..400).map(|number| format!("line-{number}")).collect();
    assert_eq!(lines, expected);
    pod.remove().await?;
    node.end().await
}

pub async fn an_end_without_agent_is_known_later() -> Outcome {
    let node = Node::start().await?;
    let mut pod = node.pod().await?;
    let id = pod.run(&["sh", "-c", "echo ready; sleep 0.3; echo last words; exit 11"]).await?;
    wait_log(&pod, &id, "ready").await?;
    let log = pod.status(&id).await?.log_path;
    let shim = recorded(&node, &id, "shim_pid")?;
    let pidfd = linux::process::pidfd_open(shim)?;
    pod.client = cri::Endpoint::connect_lazy("unix:///nowhere")?.runtime();
    let node = node.restart_after(async move {
        let pidfd = linux::ready::register(pidfd)?;
        let limit = std::time::Duration::from_secs(10);
        let ended = Env::real().timeout(limit, pidfd.readable()).await;
        ended.ok_or("the shim does not end")??.retain_ready();
        Ok(())
    });
    let node = node.await?;
    let pod = again(&node, pod);
    let status = pod.wait_exit(&id).await?;
    assert_eq!((status.exit_code, status.state()), (11, v1::ContainerState::ContainerExited));
    assert!(fs::read_to_string(log)?.contains("last words"));
    pod.remove().await?;
    node.end().await
}

pub async fn a_killed_shim_ends_its_container() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let id = pod.run(&["sh", "-c", "(sleep 501 &); sleep 500"]).await?;
    let process = recorded(&node, &id, "pid")?;
    let begun = linux::process::start_time(process)?;
    linux::process::kill(recorded(&node, &id, "shim_pid")?, linux::process::signal::KILL)?;
    let status = pod.wait_exit(&id).await?;
    assert_eq!((status.exit_code, &*status.reason), (137, "Error"));
    assert!(status.message.contains("shim was killed"), "{}", status.message);
    let mut left = true;
    for _ in 0..100 {
        left = linux::process::is_running(process, begun);
        if !left {
            break;
        }
        Env::real().sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(!left, "the container's process outlived its shim");
    pod.remove().await?;
    node.end().await
}

pub async fn a_killed_nursery_is_replaced() -> Outcome {
    let node = Node::start().await?;
    let pod = node.pod().await?;
    let before = pod.run(&["sleep", "1000"]).await?;
    let parent = crate::support::config(node.directory.path()).cgroup_parent;
    let shims = linux::cgroup::Host::detect()?.cgroup(&parent).child("shims").processes()?;
    let named = |pid: &&i32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.trim() == "gantry-nursery"
    };
    let nursery = shims.iter().find(named).ok_or("there is no nursery")?;
    linux::process::kill(*nursery, linux::process::signal::KILL)?;
    let (code, out) = pod.output(&["echo", "born anyway"], |_| {}).await?;
    assert_eq!((code, &*out), (0, "born anyway\n"));
    assert_eq!(pod.status(&before).await?.state(), v1::ContainerState::ContainerRunning);
    pod.remove().await?;
    node.end().await
}

pub async fn a_created_container_starts_after_a_restart() -> Outcome {
    let node = Node::start().await?;
    let mut pod = node.pod().await?;
    let id = pod.create(pod.container(&["echo", "late"])).await?;
    pod.client = cri::Endpoint::connect_lazy("unix:///nowhere")?.runtime();
    let node = node.restart().await?;
    let pod = again(&node, pod);
    assert_eq!(pod.status(&id).await?.state(), v1::ContainerState::ContainerCreated);
    pod.start(&id).await?;
    pod.wait_exit(&id).await?;
    assert!(pod.log(&id).await?.contains("late"));
    pod.remove().await?;
    node.end().await
}
