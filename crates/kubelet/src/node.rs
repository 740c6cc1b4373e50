//! The Node object: registration, status, and what it is made of.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use client::{
    Patch,
    events::{EventType, ObjectReference},
};
use cri::v1;
use machinery::{Map, Object, Value, value};
use stdx::{CancellationToken, Timestamp, backoff::Backoff, chain};
use tokio::sync::Notify;

use crate::{
    Error,
    config::Capacity,
    context::{Context, NODES},
};

/// What the node's status says of the runtime.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuntimeHealth {
    /// Empty when the runtime is ready; else why it is not.
    pub trouble: String,
    pub images: Vec<(Vec<String>, u64)>,
}

/// Facts about the machine that do not change while the agent runs.
#[derive(Clone, Debug, Default)]
pub struct MachineInfo {
    pub architecture: String,
    pub kernel_version: String,
    pub os_image: String,
    pub machine_id: String,
    pub boot_id: String,
    pub system_uuid: String,
}

impl MachineInfo {
    pub fn read() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        let machine_id = read("/etc/machine-id");
        let uuid = read("/sys/class/dmi/id/product_uuid");
        Self {
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64".into(),
                "aarch64" => "arm64".into(),
                other => other.into(),
            },
            kernel_version: rustix::system::uname().release().to_string_lossy().into_owned(),
            os_image: pretty.unwrap_or("Linux").trim_matches('"').to_owned(),
            system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
            machine_id,
            boot_id: read("/proc/sys/kernel/random/boot_id"),
        }
    }
}

/// Registers the node, then keeps its status current: on every change that `changed` announces,
/// and at the interval even without one.
pub async fn run(context: Arc<Context>, changed: Arc<Notify>, cancel: CancellationToken) {
    let reporter = Reporter { machine: MachineInfo::read(), context, last: None, was_ready: None };
    cancel.run_until_cancelled(reporter.run(changed)).await;
}

struct Reporter {
    context: Arc<Context>,
    machine: MachineInfo,
    /// The status that was written last, without heartbeats.
    last: Option<Value>,
    was_ready: Option<bool>,
}

const RETRY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(7));

impl Reporter {
    async fn run(mut self, changed: Arc<Notify>) {
        let env = self.context.env.clone();
        self.context.events.record(
            self.reference(),
            EventType::Normal,
            "Starting",
            "Starting kubelet.",
        );
        let mut failures = 0;
        while let Err(error) = self.register().await {
            failures += 1;
            tracing::info!(error = %chain(&error), "the node is not registered yet");
            env.sleep(RETRY.delay(failures)).await;
        }
        let mut failures = 0;
        let mut heartbeat = true;
        loop {
            let wait = match self.report(heartbeat).await {
                Ok(true) => {
                    failures = 0;
                    self.context.config.status_interval
                }
                // The runtime is not ready yet: look again soon, so that Ready is not late.
                Ok(false) => {
                    failures += 1;
                    RETRY.delay(failures).min(Duration::from_secs(2))
                }
                Err(error) => {
                    failures += 1;
                    tracing::info!(error = %chain(&error), "the node's status was not written");
                    RETRY.delay(failures)
                }
            };
            heartbeat = env.timeout(wait, changed.notified()).await.is_none();
        }
    }

    /// Upstream's events name the node by its name in place of its uid.
    fn reference(&self) -> ObjectReference {
        let name = &self.context.config.node_name;
        ObjectReference {
            kind: "Node".into(),
            name: name.clone(),
            uid: name.clone(),
            ..ObjectReference::default()
        }
    }

    async fn register(&self) -> Result<(), Error> {
        let context = &self.context;
        let name = &context.config.node_name;
        let health = health(context).await;
        let existing = context.client.find(&NODES, "", name).await?;
        let Some(existing) = existing else {
            if !context.config.register {
                return Ok(());
            }
            let mut node = self.new_node();
            let status = self.status(&health, None);
            node.root_mut().insert("status", status);
            match context.client.create(&NODES, "", &node).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_already_exists() => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        };
        self.reconcile_labels(&existing).await
    }

    /// Labels that describe the machine follow it, also when the node was registered before.
    async fn reconcile_labels(&self, existing: &Object) -> Result<(), Error> {
        let stale: Map = self
            .labels()
            .into_iter()
            .filter(|(key, value)| existing.label(key) != Some(value))
            .collect();
        if stale.is_empty() {
            return Ok(());
        }
        let mut patch = Map::new();
        patch.set_at(&["metadata", "labels"], stale);
        let patch = Patch::Strategic(Value::Map(patch));
        self.context.client.patch(&NODES, "", existing.name(), "", &patch).await?;
        Ok(())
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let config = &self.context.config;
        let mut labels = config.labels.clone();
        for prefix in ["kubernetes.io", "beta.kubernetes.io"] {
            labels.insert(format!("{prefix}/os"), "linux".into());
            labels.insert(format!("{prefix}/arch"), self.machine.architecture.clone());
        }
        labels.insert("kubernetes.io/hostname".into(), config.hostname.clone());
        labels
    }

    fn new_node(&self) -> Object {
        let config = &self.context.config;
        let mut node = Object::new("v1", "Node", "", &config.node_name);
        let labels: Map = self.labels().into_iter().collect();
        node.set_at(&["metadata", "labels"], labels);
        node.set_at(
            &["metadata", "annotations", "volumes.kubernetes.io/controller-managed-attach-detach"],
            "true",
        );
        if !config.provider_id.is_empty() {
            node.set_at(&["spec", "providerID"], config.provider_id.as_str());
        }
        let taints: Vec<Value> = config
            .taints
            .iter()
            .map(|(key, value, effect)| value!({ "key": key, "value": value, "effect": effect }))
            .collect();
        if !taints.is_empty() {
            node.set_at(&["spec", "taints"], taints);
        }
        node
    }

    /// Writes the status when it has changed or a heartbeat is due. Whether the node is ready.
    async fn report(&mut self, heartbeat: bool) -> Result<bool, Error> {
        let health = health(&self.context).await;
        let ready = health.trouble.is_empty();
        let fingerprint = self.status(
            &RuntimeHealth { images: health.images.clone(), ..health.clone() },
            Some(Timestamp::from_secs(0)),
        );
        if !heartbeat && self.last.as_ref() == Some(&fingerprint) {
            return Ok(ready);
        }
        let name = &self.context.config.node_name;
        let existing = self.context.client.get(&NODES, "", name).await;
        let existing = match existing {
            // Somebody deleted it: the agent is alive, so the node exists.
            Err(error) if error.is_not_found() => {
                self.register().await?;
                return Ok(false);
            }
            other => other?,
        };
        self.was_ready.get_or_insert_with(|| was_ready(&existing));
        let mut status = self.status(&health, None);
        keep_transitions(&mut status, &existing);
        let mut patch = Map::new();
        patch.insert("status", status);
        let patch = Patch::Strategic(Value::Map(patch));
        self.context.client.patch(&NODES, "", name, "status", &patch).await?;
        self.last = Some(fingerprint);
        self.tell(ready);
        Ok(ready)
    }

    fn tell(&mut self, ready: bool) {
        if self.was_ready == Some(ready) {
            return;
        }
        self.was_ready = Some(ready);
        let reason = if ready { "NodeReady" } else { "NodeNotReady" };
        let message = format!("Node {} status is now: {reason}", self.context.config.node_name);
        self.context.events.record(self.reference(), EventType::Normal, reason, message);
    }

    /// The whole status; `at` overrides the heartbeats' time.
    fn status(&self, health: &RuntimeHealth, at: Option<Timestamp>) -> Value {
        let context = &self.context;
        let config = &context.config;
        let now = at.unwrap_or_else(|| context.env.now()).rfc3339();
        let (runtime, version) = context
            .runtime_version
            .get()
            .cloned()
            .unwrap_or_else(|| ("unknown".into(), String::new()));
        let mut addresses: Vec<Value> = config
            .addresses
            .iter()
            .map(|ip| value!({ "type": "InternalIP", "address": ip.to_string() }))
            .collect();
        addresses.push(value!({ "type": "Hostname", "address": config.hostname }));
        let images: Vec<Value> = health
            .images
            .iter()
            .take(config.images_in_status)
            .map(|(names, size)| value!({ "names": names, "sizeBytes": size }))
            .collect();
        value!({
            "capacity": amounts(config.capacity),
            "allocatable": amounts(config.allocatable()),
            "addresses": serde_json::to_value(&addresses).unwrap_or_default(),
            "daemonEndpoints": { "kubeletEndpoint": { "Port": config.port } },
            "conditions": conditions(health, &now),
            "images": serde_json::to_value(&images).unwrap_or_default(),
            "nodeInfo": {
                "architecture": self.machine.architecture,
                "operatingSystem": "linux",
                "kernelVersion": self.machine.kernel_version,
                "osImage": self.machine.os_image,
                "machineID": self.machine.machine_id,
                "bootID": self.machine.boot_id,
                "systemUUID": self.machine.system_uuid,
                "containerRuntimeVersion": format!("{runtime}://{version}"),
                "kubeletVersion": config.version,
                "kubeProxyVersion": "",
            },
            "declaredFeatures": ["ExtendWebSocketsToKubelet"],
            "runtimeHandlers": [{ "name": "", "features": { "recursiveReadOnlyMounts": false, "userNamespaces": false } }],
        })
    }
}

/// What the API says so far, so that a new agent does not announce what has not changed.
fn was_ready(node: &Object) -> bool {
    node.list_at(&["status", "conditions"]).iter().any(|condition| {
        let field = |name| condition.get(name).and_then(Value::as_str);
        field("type") == Some("Ready") && field("status") == Some("True")
    })
}

fn amounts(capacity: Capacity) -> serde_json::Value {
    let cpu = if capacity.cpu_milli % 1000 == 0 {
        (capacity.cpu_milli / 1000).to_string()
    } else {
        format!("{}m", capacity.cpu_milli)
    };
    serde_json::json!({
        "cpu": cpu,
        "memory": format!("{}Ki", capacity.memory_bytes / 1024),
        "ephemeral-storage": format!("{}Ki", capacity.ephemeral_storage_bytes / 1024),
        "pods": capacity.pods.to_string(),
        "hugepages-1Gi": "0",
        "hugepages-2Mi": "0",
    })
}

fn conditions(health: &RuntimeHealth, now: &str) -> serde_json::Value {
    let condition = |kind: &str, holds: bool, reason: &str, message: &str| {
        serde_json::json!({
            "type": kind,
            "status": if holds { "True" } else { "False" },
            "reason": reason,
            "message": message,
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        })
    };
    let memory = "kubelet has sufficient memory available";
    let pids = "kubelet has sufficient PID available";
    let ready = if health.trouble.is_empty() {
        condition("Ready", true, "KubeletReady", "kubelet is posting ready status")
    } else {
        condition("Ready", false, "KubeletNotReady", &health.trouble)
    };
    serde_json::json!([
        condition("MemoryPressure", false, "KubeletHasSufficientMemory", memory),
        condition(
            "DiskPressure",
            false,
            "KubeletHasNoDiskPressure",
            "kubelet has no disk pressure"
        ),
        condition("PIDPressure", false, "KubeletHasSufficientPID", pids),
        ready,
    ])
}

/// A condition whose status is as before keeps the time of its last transition.
fn keep_transitions(status: &mut Value, existing: &Object) {
    let old = existing.list_at(&["status", "conditions"]);
    let Some(Value::List(conditions)) =
        status.as_map_mut().and_then(|map| map.get_mut("conditions"))
    else {
        return;
    };
    for condition in std::sync::Arc::make_mut(conditions) {
        let text = |value: &Value, field: &str| {
            value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let same = old.iter().find(|known| {
            text(known, "type") == text(condition, "type")
                && text(known, "status") == text(condition, "status")
        });
        let since =
            same.map(|known| text(known, "lastTransitionTime")).filter(|since| !since.is_empty());
        if let (Some(since), Some(map)) = (since, condition.as_map_mut()) {
            map.insert("lastTransitionTime", since);
        }
    }
}

/// Asks the runtime how it is, and which images it has, the largest first.
async fn health(context: &Context) -> RuntimeHealth {
    let mut runtime = context.runtime.clone();
    if context.runtime_version.get().is_none() {
        let request = v1::VersionRequest { version: "v1".into() };
        if let Ok(answer) = runtime.version(request).await {
            let answer = answer.into_inner();
            let _ = context.runtime_version.set((answer.runtime_name, answer.runtime_version));
        }
    }
    let trouble = match runtime.status(v1::StatusRequest { verbose: false }).await {
        Err(status) => format!("container runtime is down: {}", status.message()),
        Ok(answer) => trouble(&answer.into_inner()),
    };
    let listed = context.images.client().list_images(v1::ListImagesRequest { filter: None }).await;
    let mut images: Vec<(Vec<String>, u64)> = listed
        .map(|answer| answer.into_inner().images)
        .unwrap_or_default()
        .into_iter()
        .map(|image| {
            let names = image.repo_digests.into_iter().chain(image.repo_tags);
            (names.take(5).collect(), image.size)
        })
        .collect();
    images.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    RuntimeHealth { trouble, images }
}

fn trouble(answer: &v1::StatusResponse) -> String {
    let conditions = answer.status.as_ref().map(|status| status.conditions.as_slice());
    for (kind, what) in [
        ("RuntimeReady", "container runtime not ready"),
        ("NetworkReady", "container runtime network not ready"),
    ] {
        let found = conditions.unwrap_or_default().iter().find(|c| c.r#type == kind);
        match found {
            Some(condition) if condition.status => {}
            Some(condition) => {
                return format!(
                    "{what}: {kind}=false reason:{} message:{}",
                    condition.reason, condition.message
                );
            }
            None => return format!("{what}: {kind} is not reported"),
        }
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transition_is_kept_while_the_status_is_the_same() {
        let existing = Object::from_json(
            br#"{"status":{"conditions":[{"type":"Ready","status":"True","lastTransitionTime":"then"},
                {"type":"DiskPressure","status":"True","lastTransitionTime":"then"}]}}"#,
        )
        .unwrap();
        let mut status = value!({ "conditions": conditions(&RuntimeHealth::default(), "now") });
        keep_transitions(&mut status, &existing);
        let since = |kind: &str| {
            let list = status.get("conditions").and_then(Value::as_list).unwrap();
            let found = list.iter().find(|c| c.get("type").and_then(Value::as_str) == Some(kind));
            found.unwrap().get("lastTransitionTime").and_then(Value::as_str).unwrap().to_owned()
        };
        assert_eq!(since("Ready"), "then");
        assert_eq!(since("DiskPressure"), "now");
    }

    #[test]
    fn a_runtime_without_network_is_trouble() {
        let condition = |kind: &str, status: bool| v1::RuntimeCondition {
            r#type: kind.into(),
            status,
            reason: "R".into(),
            message: "m".into(),
        };
        let answer = |network: bool| v1::StatusResponse {
            status: Some(v1::RuntimeStatus {
                conditions: vec![
                    condition("RuntimeReady", true),
                    condition("NetworkReady", network),
                ],
            }),
            ..v1::StatusResponse::default()
        };
        assert_eq!(trouble(&answer(true)), "");
        assert!(
            trouble(&answer(false))
                .starts_with("container runtime network not ready: NetworkReady=false")
        );
    }
}
