use std::process::ExitCode;

use anyhow::Result;
use client::ListOptions;
use cluster::{
    Layout,
    supervisor::{self, Request},
};
use machinery::Object;
use serde_json::{Value, json};

use super::{Outcome, block_on, existing};
use crate::{
    assemble::{NODES, is_node_ready},
    terminal::Output,
};

/// Show what runs of a cluster, at a glance
#[derive(clap::Args)]
#[command(after_help = "Example: gantry status -o json")]
pub struct Status {
    /// The cluster's name
    #[arg(default_value = "gantry")]
    name: String,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

impl Status {
    /// The exit code is 0 when everything runs, 1 when something does not.
    pub fn run(self) -> Outcome {
        let layout = existing(&self.name)?;
        block_on(|_| async move {
            let data = observe(&layout).await?;
            if !self.output.print(&data)? {
                print_text(&data);
            }
            let healthy = data["healthy"] == json!(true);
            Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        })
    }
}

/// What the supervisor sees of the processes and the API server of the nodes.
async fn observe(layout: &Layout) -> Result<Value> {
    let config = layout.load()?;
    let Some(answer) = supervisor::ask(layout, &Request::Status).await else {
        return Ok(json!({
            "name": config.name, "state": "Stopped", "healthy": false, "nodes": config.nodes,
        }));
    };
    let answer = answer?;
    let client = super::up::connect(layout)?;
    let registered: Vec<Object> = match client.list(&NODES, "", &ListOptions::default()).await {
        Ok(list) => list.items.iter().filter_map(|item| Object::from_json(item).ok()).collect(),
        Err(_) => Vec::new(),
    };
    let nodes: Vec<Value> = config
        .nodes
        .iter()
        .map(|node| {
            let part = answer.nodes.iter().find(|part| part.name == node.name);
            let object = registered.iter().find(|object| object.name() == node.name);
            json!({
                "name": node.name,
                "address": node.address,
                "pid": part.and_then(|part| part.pid),
                "ready": object.is_some_and(is_node_ready),
            })
        })
        .collect();
    let all_ready = nodes.iter().all(|node| node["ready"] == json!(true) && !node["pid"].is_null());
    Ok(json!({
        "name": config.name,
        "state": "Running",
        "healthy": all_ready && answer.server.pid.is_some(),
        "server": {
            "url": config.local_url(),
            "pid": answer.server.pid,
            "restarts": answer.server.restarts,
        },
        "supervisor": { "pid": answer.supervisor_pid },
        "nodes": nodes,
        "kubeconfig": layout.kubeconfig(),
    }))
}

fn print_text(data: &Value) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    println!("Cluster {} is {}.", text(&data["name"]), text(&data["state"]).to_lowercase());
    if let Some(server) = data.get("server") {
        let state = server["pid"].as_i64().map_or("down".into(), |pid| format!("running as {pid}"));
        println!("  server   {}  {state}, {} restart(s)", text(&server["url"]), server["restarts"]);
    }
    for node in data["nodes"].as_array().into_iter().flatten() {
        let state = match (node["pid"].is_null(), node["ready"] == json!(true)) {
            (true, _) => "dead",
            (false, true) => "Ready",
            (false, false) => "NotReady",
        };
        println!("  {:<8} {:<15} {state}", text(&node["name"]), text(&node["address"]));
    }
}
