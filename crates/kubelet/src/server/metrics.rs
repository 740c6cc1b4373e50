//! Metrics in the Prometheus text format, under upstream's names.

use std::fmt::Write;

use http::StatusCode;

use super::{
    Answer, Server, answer,
    stats::{self, Usage},
};
use crate::pod::PodExt;

const KIND: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Default)]
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let text: Vec<String> =
            labels.iter().map(|(key, value)| format!("{key}={value:?}")).collect();
        let labels =
            if text.is_empty() { String::new() } else { format!("{{{}}}", text.join(",")) };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    fn answer(self) -> Answer {
        answer(StatusCode::OK, KIND, self.0.into_bytes())
    }
}

/// The agent itself.
pub async fn agent(server: &Server) -> Answer {
    let pods = server.manager.pods();
    let running = pods.iter().filter(|pod| pod.phase() == "Running").count();
    let mut page = Page::default();
    page.family("kubelet_node_name", "gauge", "The node's name. The count is always 1.");
    page.sample("kubelet_node_name", &[("node", &server.context.config.node_name)], 1.0);
    page.family("kubelet_running_pods", "gauge", "Pods that have a running sandbox");
    page.sample("kubelet_running_pods", &[], running as f64);
    page.family("kubelet_desired_pods", "gauge", "Pods that this node was told to run");
    page.sample("kubelet_desired_pods", &[], pods.len() as f64);
    let containers = stats::usages(server).await.len();
    page.family("kubelet_running_containers", "gauge", "Containers that are running");
    page.sample("kubelet_running_containers", &[("container_state", "running")], containers as f64);
    page.answer()
}

/// Containers, under cAdvisor's names.
pub async fn cadvisor(server: &Server) -> Answer {
    let usages = stats::usages(server).await;
    let mut page = Page::default();
    let mut family = |name: &str, kind: &str, help: &str, value: &dyn Fn(&Usage) -> f64| {
        page.family(name, kind, help);
        for usage in &usages {
            let labels = [
                ("container", usage.container.as_str()),
                ("id", &usage.id),
                ("namespace", &usage.namespace),
                ("pod", &usage.pod),
            ];
            page.sample(name, &labels, value(usage));
        }
    };
    let seconds = |usage: &Usage| usage.cpu_nanos as f64 / 1e9;
    family("container_cpu_usage_seconds_total", "counter", "CPU time used, in seconds", &seconds);
    family("container_memory_usage_bytes", "gauge", "Memory in use, caches included", &|u| {
        u.memory as f64
    });
    family(
        "container_memory_working_set_bytes",
        "gauge",
        "Memory that cannot be reclaimed",
        &|u| u.working_set as f64,
    );
    family("container_memory_rss", "gauge", "Anonymous memory, in bytes", &|u| u.rss as f64);
    family("container_fs_usage_bytes", "gauge", "Bytes in the writable layer", &|u| u.disk as f64);
    page.answer()
}

/// What a metrics server reads.
pub async fn resource(server: &Server) -> Answer {
    let usages = stats::usages(server).await;
    let mut page = Page::default();
    let node = stats::total(&usages);
    page.family("node_cpu_usage_seconds_total", "counter", "CPU time used by the node, in seconds");
    page.sample("node_cpu_usage_seconds_total", &[], node.cpu_nanos as f64 / 1e9);
    page.family("node_memory_working_set_bytes", "gauge", "Working set of the node, in bytes");
    page.sample("node_memory_working_set_bytes", &[], node.working_set as f64);
    let labels = |usage: &Usage| {
        [
            ("container", usage.container.clone()),
            ("namespace", usage.namespace.clone()),
            ("pod", usage.pod.clone()),
        ]
    };
    page.family(
        "container_cpu_usage_seconds_total",
        "counter",
        "CPU time used by the container, in seconds",
    );
    for usage in &usages {
        let labels = labels(usage);
        let labels: Vec<(&str, &str)> =
            labels.iter().map(|(key, value)| (*key, value.as_str())).collect();
        page.sample("container_cpu_usage_seconds_total", &labels, usage.cpu_nanos as f64 / 1e9);
    }
    page.family(
        "container_memory_working_set_bytes",
        "gauge",
        "Working set of the container, in bytes",
    );
    for usage in &usages {
        let labels = labels(usage);
        let labels: Vec<(&str, &str)> =
            labels.iter().map(|(key, value)| (*key, value.as_str())).collect();
        page.sample("container_memory_working_set_bytes", &labels, usage.working_set as f64);
    }
    page.family(
        "resource_scrape_error",
        "gauge",
        "1 if there was an error while getting container metrics, 0 otherwise",
    );
    page.sample("resource_scrape_error", &[], 0.0);
    page.answer()
}

/// Readiness as the probes last found it.
pub async fn probes(server: &Server) -> Answer {
    let mut page = Page::default();
    page.family("prober_probe_total", "counter", "Containers by the result of their readiness");
    for pod in server.manager.pods() {
        let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.clone());
        for status in statuses.unwrap_or_default() {
            let labels = [
                ("container", status.name.as_str()),
                ("namespace", pod.namespace()),
                ("pod", pod.name()),
                ("probe_type", "Readiness"),
                ("result", if status.ready { "successful" } else { "failed" }),
            ];
            page.sample("prober_probe_total", &labels, 1.0);
        }
    }
    page.answer()
}
