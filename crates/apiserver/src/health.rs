//! `/healthz`, `/livez`, `/readyz` and `/metrics`.

use std::sync::atomic::{AtomicBool, Ordering};

use http::Response;

use crate::{body::Body, pipeline::Call, respond};

/// What the health checks know beyond what they try.
#[derive(Default)]
pub struct Health {
    /// The objects that every cluster has were written.
    pub bootstrapped: AtomicBool,
}

/// The name of a check and why it fails.
type Outcome = (&'static str, Result<(), String>);

/// Runs the checks of `root` (`healthz`, `livez`, `readyz`), or one alone.
pub async fn serve(call: &Call, root: &str, only: &str) -> Response<Body> {
    let excluded: Vec<&str> = call.query.all("exclude").collect();
    let checks = run(call, root).await;
    if !only.is_empty() {
        return match checks.into_iter().find(|(name, _)| *name == only) {
            Some((_, Ok(()))) => respond::text(200, "ok"),
            Some((_, Err(why))) => respond::text(500, format!("internal server error: {why}\n")),
            None => super::handlers::no_such_path(),
        };
    }
    let mut lines = String::new();
    let mut failed = Vec::new();
    for (name, outcome) in &checks {
        match outcome {
            _ if excluded.contains(name) => lines.push_str(&format!("[+]{name} excluded: ok\n")),
            Ok(()) => lines.push_str(&format!("[+]{name} ok\n")),
            Err(_) => {
                lines.push_str(&format!("[-]{name} failed: reason withheld\n"));
                failed.push(*name);
            }
        }
    }
    if !failed.is_empty() {
        return respond::text(500, format!("{lines}{root} check failed\n"));
    }
    match call.query.contains("verbose") {
        true => respond::text(200, format!("{lines}{root} check passed\n")),
        false => respond::text(200, "ok"),
    }
}

async fn run(call: &Call, root: &str) -> Vec<Outcome> {
    let server = &call.server;
    let store = server.data.registry().store().current_revision().await;
    let mut checks: Vec<Outcome> = vec![
        ("ping", Ok(())),
        ("etcd", store.map(|_| ()).map_err(|error| stdx::chain(&error).to_string())),
    ];
    let bootstrapped = server.health.bootstrapped.load(Ordering::Acquire);
    let when = |holds: bool, why: &str| if holds { Ok(()) } else { Err(why.to_owned()) };
    checks.push(("poststarthook/rbac/bootstrap-roles", when(bootstrapped, "not finished")));
    if root == "readyz" {
        checks.push(("informer-sync", when(server.is_synced(), "informers have not synced")));
        checks
            .push(("shutdown", when(!server.stopping.is_cancelled(), "process is shutting down")));
    }
    checks
}

/// All figures in the text format of Prometheus.
pub async fn metrics(call: &Call) -> Response<Body> {
    let server = &call.server;
    let registry = server.data.registry();
    let mut extra: Vec<(&str, String, f64)> = Vec::new();
    if let Ok(stats) = registry.store().stats().await {
        extra.push((
            "apiserver_storage_size_bytes",
            "{storage_cluster_id=\"0\"}".into(),
            stats.bytes_on_disk as f64,
        ));
        extra.push(("etcd_mvcc_db_total_size_in_bytes", String::new(), stats.bytes_on_disk as f64));
        extra.push((
            "etcd_mvcc_db_total_size_in_use_in_bytes",
            String::new(),
            stats.bytes_in_use as f64,
        ));
        extra.push(("etcd_debugging_mvcc_keys_total", String::new(), stats.keys as f64));
    }
    for (name, value) in process_figures() {
        extra.push((name, String::new(), value));
    }
    let body = server.metrics.render(&extra);
    call.reply(200, "text/plain; version=0.0.4; charset=utf-8", body.into())
}

/// What the kernel says about this process.
fn process_figures() -> Vec<(&'static str, f64)> {
    let read =
        |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    let mut figures = Vec::new();
    let stat = read("stat");
    // Fields are counted from behind the command's name, which may hold spaces.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
    if let (Some(user), Some(system)) = (ticks(11), ticks(12)) {
        figures.push(("process_cpu_seconds_total", (user + system) / 100.0));
    }
    let memory: Vec<f64> =
        read("statm").split(' ').filter_map(|pages| pages.trim().parse().ok()).collect();
    if let [size, resident, ..] = memory.as_slice() {
        figures.push(("process_resident_memory_bytes", resident * 4096.0));
        figures.push(("process_virtual_memory_bytes", size * 4096.0));
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        figures.push(("process_open_fds", open.count() as f64));
    }
    figures
}
