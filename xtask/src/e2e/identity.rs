//! Each component has its own user and role; without the role it alone is Forbidden.

use anyhow::{Result, ensure};

use super::harness::{Cluster, eventually};

pub fn run(cluster: &Cluster) -> Result<String> {
    let bindings = cluster.json("get clusterrolebindings")?;
    let masters = bindings["items"].as_array().into_iter().flatten().filter(|binding| {
        binding["subjects"].as_array().into_iter().flatten().any(|s| s["name"] == "system:masters")
    });
    ensure!(masters.count() <= 1, "more than Kubernetes' own binding names system:masters");
    let who = cluster.k("auth whoami -o jsonpath={.status.userInfo.groups}")?;
    ensure!(!who.contains("system:masters"), "the admin is in system:masters: {who}");
    let forbidden = without_its_role(cluster)?;
    Ok(format!("without system:kube-scheduler: {forbidden}; given back, it schedules"))
}

/// Takes the scheduler's role away and gives it back.
fn without_its_role(cluster: &Cluster) -> Result<String> {
    let role = "system:kube-scheduler";
    let saved = cluster.k(&format!("get clusterrole {role} -o yaml"))?;
    cluster.kubectl(&["patch", "clusterrole", role, "--type=merge", "-p", r#"{"rules":[]}"#])?;
    let outcome = pending_until_restored(cluster, &saved);
    if outcome.is_err() {
        let _ = cluster.kubectl_with(&["replace", "--force", "-f", "-"], &saved);
    }
    outcome
}

fn pending_until_restored(cluster: &Cluster, saved: &str) -> Result<String> {
    let can =
        cluster.k("auth can-i create pods/binding --as=system:kube-scheduler").unwrap_or_default();
    ensure!(!can.contains("yes"), "the scheduler may still bind");
    cluster.k(
        "run lonely --image=busybox:1 --image-pull-policy=IfNotPresent --restart=Never -- sleep 60",
    )?;
    // A controller goes on working meanwhile: it alone is not enough to schedule.
    cluster.k("create serviceaccount bystander")?;
    std::thread::sleep(std::time::Duration::from_secs(2));
    let node = cluster.k("get pod lonely -o jsonpath={.spec.nodeName}")?;
    ensure!(node.is_empty(), "the pod was bound to {node} all the same");
    let rules: serde_json::Value = serde_json::from_str(&rules_of(cluster, saved)?)?;
    let patch = serde_json::json!({ "rules": rules }).to_string();
    cluster.kubectl(&[
        "patch",
        "clusterrole",
        "system:kube-scheduler",
        "--type=merge",
        "-p",
        &patch,
    ])?;
    eventually("the pod is bound", 60, || {
        let node = cluster.k("get pod lonely -o jsonpath={.spec.nodeName}")?;
        Ok((!node.is_empty()).then_some(()))
    })?;
    cluster.k("delete pod lonely --grace-period=0 --force")?;
    cluster.k("delete serviceaccount bystander")?;
    Ok("pods stay Pending".into())
}

/// The saved role's rules as JSON, converted by kubectl itself.
fn rules_of(cluster: &Cluster, saved: &str) -> Result<String> {
    let arguments = ["create", "--dry-run=client", "-f", "-", "-o", "jsonpath={.rules}"];
    cluster.kubectl_with(&arguments, saved)
}
