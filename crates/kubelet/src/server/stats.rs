//! What containers use: the runtime's statistics, as `/stats/summary` shows them.

use std::collections::BTreeMap;

use cri::v1;
use serde_json::{Value as Json, json};
use stdx::Timestamp;

use super::{Answer, Refusal, Server};
use crate::runtime_state::keys;

/// One container's use.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    pub container: String,
    pub id: String,
    pub cpu_nanos: u64,
    pub nano_cores: u64,
    pub working_set: u64,
    pub memory: u64,
    pub rss: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    pub disk: u64,
    pub timestamp: i64,
}

pub async fn usages(server: &Server) -> Vec<Usage> {
    let mut runtime = server.context.runtime.clone();
    let answer = runtime.list_container_stats(v1::ListContainerStatsRequest { filter: None }).await;
    let listed = answer.map(|answer| answer.into_inner().stats).unwrap_or_default();
    listed.into_iter().filter_map(read).collect()
}

fn read(stats: v1::ContainerStats) -> Option<Usage> {
    let attributes = stats.attributes?;
    let label = |key: &str| attributes.labels.get(key).cloned().unwrap_or_default();
    let value = |value: &Option<v1::UInt64Value>| value.as_ref().map_or(0, |value| value.value);
    let cpu = stats.cpu.unwrap_or_default();
    let memory = stats.memory.unwrap_or_default();
    Some(Usage {
        namespace: label(keys::POD_NAMESPACE),
        pod: label(keys::POD_NAME),
        uid: label(keys::POD_UID),
        container: label(keys::CONTAINER_NAME),
        id: attributes.id.clone(),
        cpu_nanos: value(&cpu.usage_core_nano_seconds),
        nano_cores: value(&cpu.usage_nano_cores),
        working_set: value(&memory.working_set_bytes),
        memory: value(&memory.usage_bytes),
        rss: value(&memory.rss_bytes),
        page_faults: value(&memory.page_faults),
        major_page_faults: value(&memory.major_page_faults),
        disk: stats.writable_layer.map_or(0, |layer| value(&layer.used_bytes)),
        timestamp: cpu.timestamp,
    })
}

/// The use of all containers together, as the node's.
pub fn total(usages: &[Usage]) -> Usage {
    let mut total = Usage::default();
    for usage in usages {
        total.cpu_nanos += usage.cpu_nanos;
        total.nano_cores += usage.nano_cores;
        total.working_set += usage.working_set;
        total.memory += usage.memory;
        total.rss += usage.rss;
        total.page_faults += usage.page_faults;
        total.major_page_faults += usage.major_page_faults;
        total.timestamp = total.timestamp.max(usage.timestamp);
    }
    total
}

pub async fn summary(server: &Server) -> Result<Answer, Refusal> {
    let usages = usages(server).await;
    let now = server.context.env.now().rfc3339();
    let node = total(&usages);
    let mut pods: BTreeMap<(String, String, String), Vec<Usage>> = BTreeMap::new();
    for usage in usages {
        let key = (usage.namespace.clone(), usage.pod.clone(), usage.uid.clone());
        pods.entry(key).or_default().push(usage);
    }
    let listed: Vec<Json> = pods
        .iter()
        .map(|((namespace, name, uid), usages)| {
            let all = total(usages);
            json!({
                "podRef": { "namespace": namespace, "name": name, "uid": uid },
                "startTime": now,
                "containers": usages.iter().map(container).collect::<Vec<_>>(),
                "cpu": cpu(&all),
                "memory": memory(&all),
            })
        })
        .collect();
    let capacity = server.context.config.capacity.memory_bytes as u64;
    let mut node_memory = memory(&node);
    node_memory["availableBytes"] = json!(capacity.saturating_sub(node.working_set));
    Ok(super::json(&json!({
        "node": {
            "nodeName": server.context.config.node_name,
            "startTime": now,
            "cpu": cpu(&node),
            "memory": node_memory,
        },
        "pods": listed,
    })))
}

fn container(usage: &Usage) -> Json {
    json!({
        "name": usage.container,
        "startTime": time(usage),
        "cpu": cpu(usage),
        "memory": memory(usage),
        "rootfs": { "time": time(usage), "usedBytes": usage.disk },
    })
}

fn time(usage: &Usage) -> String {
    Timestamp::from_nanos(i128::from(usage.timestamp)).rfc3339()
}

fn cpu(usage: &Usage) -> Json {
    json!({
        "time": time(usage),
        "usageNanoCores": usage.nano_cores,
        "usageCoreNanoSeconds": usage.cpu_nanos,
    })
}

fn memory(usage: &Usage) -> Json {
    json!({
        "time": time(usage),
        "usageBytes": usage.memory,
        "workingSetBytes": usage.working_set,
        "rssBytes": usage.rss,
        "pageFaults": usage.page_faults,
        "majorPageFaults": usage.major_page_faults,
    })
}
