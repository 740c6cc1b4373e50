//! How long starts take; the figures are printed.

use std::time::Duration;

use stdx::Env;

use crate::support::{Node, Outcome, Result};

fn p(sorted: &[Duration], percent: usize) -> String {
    let at = (sorted.len() * percent / 100).min(sorted.len() - 1);
    format!("{:.2}", sorted[at].as_secs_f64() * 1000.0)
}

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let [least, half, most] = [0, 50, 90].map(|percent| p(&times, percent));
    println!("figure  {what}: min {least} ms, p50 {half} ms, p90 {most} ms");
}

pub async fn starts_are_quick() -> Outcome {
    let node = Node::start().await?;
    let env = Env::real();
    let (mut sandboxes, mut creates, mut starts) = (Vec::new(), Vec::new(), Vec::new());
    let (mut seconds, mut removals, mut floors) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..30 {
        let begun = env.instant();
        let pod = node.pod().await?;
        sandboxes.push(begun.elapsed());
        // A kubelet spends this and more on the pod's network and volumes.
        env.sleep(Duration::from_millis(15)).await;
        let begun = env.instant();
        let id = pod.create(pod.container(&["sleep", "1000"])).await?;
        creates.push(begun.elapsed());
        let begun = env.instant();
        pod.start(&id).await?;
        starts.push(begun.elapsed());
        env.sleep(Duration::from_millis(30)).await;
        let begun = env.instant();
        std::process::Command::new("/bin/busybox").arg("true").status()?;
        floors.push(begun.elapsed());
        let begun = env.instant();
        pod.run(&["sleep", "1000"]).await?;
        seconds.push(begun.elapsed());
        let begun = env.instant();
        pod.remove().await?;
        removals.push(begun.elapsed());
    }
    show("floor: a program executed without a container", floors);
    show("sandbox", sandboxes);
    show("create, first container", creates);
    show("start, first container", starts);
    show("create and start, second container", seconds);
    show("removal of a pod with two containers", removals);
    node.end().await
}

pub async fn fifty_at_once() -> Outcome {
    let node = Node::start().await?;
    let env = Env::real();
    let begun = env.instant();
    let one = async || -> Result<(crate::support::Pod, Duration)> {
        let begun = env.instant();
        let pod = node.pod().await?;
        pod.run(&["sleep", "1000"]).await?;
        Ok((pod, begun.elapsed()))
    };
    let started = futures::future::try_join_all((0..50).map(|_| one())).await?;
    let all = begun.elapsed();
    let (pods, times): (Vec<_>, Vec<_>) = started.into_iter().unzip();
    show_memory(&node)?;
    show("sandbox and container, 50 at once", times);
    println!("figure  50 pods at once: {:.0} ms", all.as_secs_f64() * 1000.0);
    let begun = env.instant();
    futures::future::try_join_all(pods.into_iter().map(|pod| pod.remove())).await?;
    println!("figure  their removal: {:.0} ms", begun.elapsed().as_secs_f64() * 1000.0);
    node.end().await
}

/// The proportional share of memory of the nursery and all shims.
fn show_memory(node: &Node) -> Outcome {
    let parent = crate::support::config(node.directory.path()).cgroup_parent;
    let shims = linux::cgroup::Host::detect()?.cgroup(&parent).child("shims").processes()?;
    let share = |pid: &i32| -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.unwrap_or(0)
    };
    let all: u64 = shims.iter().map(share).sum();
    println!("figure  memory of {} shims with their nursery: {all} KiB (PSS)", shims.len() - 1);
    Ok(())
}
