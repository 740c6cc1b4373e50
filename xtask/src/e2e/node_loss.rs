//! A node dies with everything on it; its pods serve from other nodes; it comes back.

use std::{process::Command, time::Instant};

use anyhow::{Context, Result, ensure};

use super::harness::{Cluster, NAME, eventually, output};

pub fn fast(cluster: &Cluster) -> Result<String> {
    let seconds = lose_a_node(cluster, 30)?;
    cluster.hold("full service after a node's death", seconds, 5.0)?;
    Ok(format!("full service {seconds:.1} s after the node died; it rejoined"))
}

/// With Kubernetes' timings: 50 s until NotReady and 300 s of toleration.
pub fn default(cluster: &Cluster) -> Result<String> {
    let seconds = lose_a_node(cluster, 420)?;
    ensure!(
        seconds > 300.0,
        "pods were replaced after {seconds:.0} s, before their toleration ran out"
    );
    Ok(format!("full service {seconds:.0} s after the node died; it rejoined"))
}

fn lose_a_node(cluster: &Cluster, limit_secs: u64) -> Result<f64> {
    cluster.k("apply -f examples/hello")?;
    cluster.k("scale deployment hello --replicas=6")?;
    cluster.k("rollout status deployment/hello --timeout=90s")?;
    let pods = cluster.json("get pods -l app=hello")?;
    let victim = pods["items"][0]["spec"]["nodeName"].as_str().context("no node")?.to_owned();
    let pid = cluster.node_pid(&victim)?;
    let started = Instant::now();
    output(Command::new("kill").args(["-9", &pid.to_string()]))?;
    eventually("six pods are ready on the other nodes", limit_secs, || {
        let pods = cluster.json("get pods -l app=hello")?;
        let serving = pods["items"].as_array().map_or(0, |items| {
            items
                .iter()
                .filter(|pod| pod["spec"]["nodeName"] != victim.as_str() && is_ready(pod))
                .count()
        });
        Ok((serving >= 6).then_some(()))
    })?;
    let seconds = started.elapsed().as_secs_f64();
    cluster.gantry(&["start", &victim, "--name", NAME])?;
    cluster.k(&format!("wait node/{victim} --for=condition=Ready --timeout=60s"))?;
    eventually("the node takes pods again", 60, || {
        let node = cluster.json(&format!("get node {victim}"))?;
        Ok(node["spec"]["taints"].is_null().then_some(()))
    })?;
    cluster.k("delete -f examples/hello --wait=false")?;
    Ok(seconds)
}

fn is_ready(pod: &serde_json::Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    pod["metadata"]["deletionTimestamp"].is_null()
        && conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}
