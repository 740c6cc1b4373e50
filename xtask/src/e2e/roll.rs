//! Three rollouts of six replicas under load: no request fails.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::{
    harness::{Cluster, eventually},
    load::{Load, Target},
};

const REQUESTS: u64 = 100_000;
const ROLLOUTS: u32 = 3;

pub fn run(cluster: &Cluster) -> Result<String> {
    cluster.k("apply -f examples/hello")?;
    cluster.k("scale deployment hello --replicas=6")?;
    cluster.k("rollout status deployment/hello --timeout=90s")?;
    let load = Load::start(targets(cluster)?)?;
    for round in 1..=ROLLOUTS {
        cluster.k(&format!("set env deployment/hello HELLO_MESSAGE=Round-{round}"))?;
        cluster.k("rollout status deployment/hello --timeout=120s")?;
        let share = REQUESTS / u64::from(ROLLOUTS) * u64::from(round);
        eventually("enough requests", 120, || Ok((load.answered() >= share).then_some(())))?;
    }
    let outcome = load.stop();
    let fresh = outcome.fresh as f64 / outcome.answered.max(1) as f64 * 100.0;
    let failures = outcome.failures.join("; ");
    ensure!(outcome.failed == 0, "{} of {} failed: {failures}", outcome.failed, outcome.answered);
    cluster.k("delete -f examples/hello --wait=false")?;
    Ok(format!("{} requests, 0 failed, {fresh:.0}% on new connections", outcome.answered))
}

/// ClusterIP from every node; NodePort and LoadBalancer from the host.
fn targets(cluster: &Cluster) -> Result<Vec<Target>> {
    let address = eventually("the Service has an address", 30, || {
        let service = cluster.json("get service hello")?;
        let ip = service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().map(str::to_owned);
        Ok(ip)
    })?;
    let service = cluster.json("get service hello")?;
    let cluster_ip = service["spec"]["clusterIP"].as_str().context("no ClusterIP")?.to_owned();
    let node_port = service["spec"]["ports"][0]["nodePort"].as_i64().context("no NodePort")?;
    let status = cluster.status()?;
    let mut targets = Vec::new();
    for node in status["nodes"].as_array().into_iter().flatten() {
        let name = node["name"].as_str().unwrap_or_default();
        let pid = cluster.node_pid(name)?;
        targets.push(Target {
            label: format!("ClusterIP from {name}"),
            address: format!("{cluster_ip}:80").parse()?,
            namespace: Some(PathBuf::from(format!("/proc/{pid}/ns/net"))),
        });
        let ip = node["address"].as_str().unwrap_or_default();
        targets.push(Target {
            label: format!("NodePort of {name}"),
            address: format!("{ip}:{node_port}").parse()?,
            namespace: None,
        });
    }
    targets.push(Target {
        label: "LoadBalancer".into(),
        address: format!("{address}:80").parse()?,
        namespace: None,
    });
    Ok(targets)
}
