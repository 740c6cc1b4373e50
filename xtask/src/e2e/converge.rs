//! What is deleted or edited behind its back comes back; applying twice changes nothing.

use anyhow::{Result, ensure};

use super::harness::{Cluster, eventually};

const HELLO: &str = "examples/hello";

pub fn run(cluster: &Cluster) -> Result<String> {
    cluster.k(&format!("apply -f {HELLO}"))?;
    cluster.k("rollout status deployment/hello --timeout=60s")?;
    let again = cluster.k(&format!("apply -f {HELLO}"))?;
    ensure!(again.lines().all(|l| l.ends_with("unchanged")), "a second apply said:\n{again}");
    cluster.k(&format!("diff -f {HELLO}"))?;
    let deleted = pods_come_back(cluster)?;
    replica_set_comes_back(cluster)?;
    edit_is_undone(cluster)?;
    slices_come_back(cluster)?;
    Ok(format!("{deleted} deleted pods, a ReplicaSet, an edit and an EndpointSlice put right"))
}

fn ready(cluster: &Cluster) -> Result<i64> {
    let deployment = cluster.json("get deployment hello")?;
    Ok(deployment["status"]["readyReplicas"].as_i64().unwrap_or(0))
}

fn names(cluster: &Cluster, line: &str) -> Result<Vec<String>> {
    let text = cluster.k(&format!("{line} -o name"))?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn pods_come_back(cluster: &Cluster) -> Result<usize> {
    let before = names(cluster, "get pods -l app=hello")?;
    cluster.k("delete pods -l app=hello --wait=false --grace-period=1")?;
    eventually("three other pods are ready", 60, || {
        let now = names(cluster, "get pods -l app=hello")?;
        let others = now.len() == 3 && now.iter().all(|name| !before.contains(name));
        Ok((others && ready(cluster)? == 3).then_some(()))
    })?;
    Ok(before.len())
}

fn replica_set_comes_back(cluster: &Cluster) -> Result<()> {
    cluster.k("delete replicaset -l app=hello --wait=false")?;
    eventually("the ReplicaSet is made again", 60, || {
        let sets = cluster.json("get replicasets -l app=hello")?;
        let alive = sets["items"].as_array().is_some_and(|items| {
            items.iter().any(|i| {
                i["metadata"]["deletionTimestamp"].is_null() && i["status"]["readyReplicas"] == 3
            })
        });
        Ok(alive.then_some(()))
    })
}

fn edit_is_undone(cluster: &Cluster) -> Result<()> {
    let set = names(cluster, "get replicasets -l app=hello")?.remove(0);
    cluster.k(&format!("scale {set} --replicas=1"))?;
    eventually("the Deployment puts its ReplicaSet back to three", 60, || {
        let set = cluster.json(&format!("get {set}"))?;
        Ok((set["spec"]["replicas"] == 3 && ready(cluster)? == 3).then_some(()))
    })
}

fn slices_come_back(cluster: &Cluster) -> Result<()> {
    cluster.k("delete endpointslices -l kubernetes.io/service-name=hello")?;
    eventually("the EndpointSlice is made again", 60, || {
        let slices = cluster.json("get endpointslices -l kubernetes.io/service-name=hello")?;
        let endpoints = slices["items"].as_array().map_or(0, |items| {
            items.iter().map(|i| i["endpoints"].as_array().map_or(0, Vec::len)).sum()
        });
        Ok((endpoints == 3).then_some(()))
    })
}
